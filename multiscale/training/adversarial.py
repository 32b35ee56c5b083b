"""The adversarial objective, alone: non-saturating loss, lazy R1, and the blur that fades in at the start.

Shapes: B images [B, C, N, N] in [-1, 1], L logits of an image [B, L] with weights [L] whose sum is 1 (L is 1 and its weight
1 but for a discriminator with local heads).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from torch_utils.ops.upfirdn2d import upfirdn2d


def generator_loss(fake_logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """-log sigmoid(D(G(z))), the non-saturating loss (Goodfellow et al. 2014): softplus(-D), a scalar."""
    return weighted_mean(F.softplus(-fake_logits), weights).mean()


def discriminator_loss(
    fake_logits: torch.Tensor, real_logits: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Logistic loss of the discriminator: softplus(D(G(z))) + softplus(-D(x)), a scalar."""
    return (
        weighted_mean(F.softplus(fake_logits), weights).mean() + weighted_mean(F.softplus(-real_logits), weights).mean()
    )


def weighted_mean(values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the logits of each image: [B, L], [L] -> [B]; None: all alike."""
    return values.mean(dim=1) if weights is None else (values * weights).sum(dim=1)


def pair_loss(logits: torch.Tensor, others: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Relativistic pairs (R3GAN, Huang et al. 2024): softplus(others - logits), a scalar; who trains wants ``logits`` above.

    The i-th of both are a pair; D gives the real ones first, G the generated ones.
    """
    return weighted_mean(F.softplus(others - logits), weights).mean()


def r1_penalty(real_logits: torch.Tensor, real: torch.Tensor, gamma: float) -> torch.Tensor:
    """Gradient penalty on real patches (Mescheder et al. 2018): gamma/2 E|grad D(x)|^2, a scalar; ``real`` needs gradients.

    Of generated patches the same is R2.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gamma / 2 * gradient.square().sum(dim=[1, 2, 3]).mean()


def lazy_adam(learning_rate: float, betas: tuple[float, float], interval: int) -> tuple[float, tuple[float, float]]:
    """Learning rate and betas when every ``interval`` steps one more step is taken (StyleGAN2 appendix B): c = i/(i + 1)."""
    c = interval / (interval + 1)
    return learning_rate * c, (betas[0] ** c, betas[1] ** c)


def lr_factor(progress: float, end: float) -> float:
    """What learning rates are multiplied by at a part of the run, 0 to 1: 1 in its first half, then a cosine to ``end``."""
    return end + (1 - end) * (1 + math.cos(math.pi * min(max(2 * progress - 1, 0.0), 1.0))) / 2


def blur_sigma(images_seen: float, *, sigma_px: float, fade_images: float) -> float:
    """Width of the blur after ``images_seen`` images, in pixels: from ``sigma_px`` linearly to 0 (StyleGAN3 section F.2)."""
    return max(1 - images_seen / fade_images, 0.0) * sigma_px if fade_images > 0 else 0.0


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Filter with 2^-(x/sigma)^2, cut at 3 sigma and normalised; images [B, C, N, N] keep their size."""
    radius = math.floor(3 * sigma)
    if radius == 0:
        return images
    position = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp2(-((position / sigma) ** 2))
    return upfirdn2d(images, kernel / kernel.sum(), padding=radius)
