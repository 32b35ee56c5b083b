"""Scale consistency: a view, downsampled, must look like the centre of the zoomed-out view.

Equations of "Learning Images Across Scales Using Adversarial Training" (Wolski et al., ACM TOG 43(4), 2024), the
section on the scale-consistency objective. Everything works on a whole batch at once and is differentiable to any order
with respect to the images.

Shapes: B batch, C channels, N image side in pixels; ``factor`` [B] how much farther out the coarser view is (>= 1);
``zoom_log2`` [B] zoom of the finer view in octaves (>= 0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betaincinv

from torch_utils.devices import full_precision
from torch_utils.random import BatchRows

# A footprint whose edge coincides with the image's border, up to the rounding of ``factor``, counts as inside. At 1024
# pixels a float32 factor moves the edge by at most 3e-5 px.
EDGE_TOLERANCE_PX = 1e-4

PerceptualDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def zoom_out_distribution(zoom_log2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters (alpha, beta) of the Beta distribution of the fraction of a view's octaves to zoom out by.

    With n = max(s, 1): alpha = n^(1/4) and beta = (alpha - 1 - alpha/n + 2/n) / (1/n), so that the mode
    (alpha - 1)/(alpha + beta - 2) is 1/n, one octave out of n; within the first octave (n = 1) it is uniform.
    Section "Scale consistency" of Wolski et al. 2024.

    Args:
        zoom_log2: s, any shape, octaves (>= 0).

    Returns:
        Two tensors of the same shape and dtype.
    """
    octaves = zoom_log2.clamp(min=1)
    alpha = octaves**0.25
    beta = (alpha - 1 - alpha / octaves + 2 / octaves) * octaves
    return alpha, beta


def sample_zoom_out(zoom_log2: torch.Tensor, generator: np.random.Generator | BatchRows) -> torch.Tensor:
    """Draw for each view the factor f = 2^(t s), t ~ Beta(alpha(s), beta(s)), by which to zoom out.

    Args:
        zoom_log2: s [B], octaves (>= 0), on any device.
        generator: Source of randomness; one uniform draw a view, through the inverse of the distribution function.

    Returns:
        f [B], float64 on the CPU, between 1 and 2^s: the coarser view never leaves zoom 1.
    """
    octaves = zoom_log2.detach().to("cpu", torch.float64)
    alpha, beta = zoom_out_distribution(octaves)
    fraction = betaincinv(alpha.numpy(), beta.numpy(), generator.random(octaves.shape))
    return torch.exp2(torch.from_numpy(fraction) * octaves)


def reduce_about_centre(images: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Downsample each image by its own factor about its centre, as it appears in a view zoomed out by that factor.

    A coarse pixel whose footprint (a square of side ``factor`` fine pixels) lies wholly inside the finer image gets the
    exact area average over it, fractional edges included, and is in the mask; all others are 0. The two-dimensional
    average is separable: reduced = W images W^T with the [N, N] matrix of ``_area_weights`` of each sample.

    Args:
        images: [B, C, N, N], floating point; half precision is computed and returned in float32.
        factor: [B], >= 1, any floating dtype (float64 welcome).

    Returns:
        reduced [B, C, N, N] and mask [B, 1, N, N] (1 inside, 0 outside), of one dtype.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    precision = torch.float32 if images.device.type == "mps" else torch.float64  # MPS has no float64
    factor = factor.detach().to(precision).to(images.device)
    weights, inside = _area_weights(factor, images.shape[-1])
    weights = weights.to(images.dtype).unsqueeze(1)  # [B, 1, N coarse, N fine]
    inside = inside.to(images.dtype)
    with full_precision(images.device):
        reduced = weights @ images @ weights.mT  # [B, C, N, N]
    mask = inside[:, None, :, None] * inside[:, None, None, :]  # [B, 1, N, N]
    return reduced, mask


def _area_weights(factor: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One-dimensional area averages [B, N coarse, N fine], and which coarse pixels [B, N] are wholly covered.

    In fine pixels, coarse pixel i covers [f (i - N/2) + N/2, f (i + 1 - N/2) + N/2]; its weight for fine pixel j is the
    overlap with [j, j + 1], divided by f. Rows of uncovered pixels are 0.
    """
    f = factor[:, None, None]  # [B, 1, 1]
    pixel = torch.arange(size, dtype=factor.dtype, device=factor.device)
    low = f * (pixel[:, None] - size / 2) + size / 2  # [B, N coarse, 1]
    high = f * (pixel[:, None] + 1 - size / 2) + size / 2
    inside = (low >= -EDGE_TOLERANCE_PX) & (high <= size + EDGE_TOLERANCE_PX)
    overlap = (torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0)  # [B, N coarse, N fine]
    return overlap / f * inside, inside[..., 0]


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of values [B, C, N, N] over the channels and the pixels of mask [B, 1, N, N]; [B], 0 for an empty mask."""
    count = mask.sum(dim=(1, 2, 3)) * values.shape[1]
    return (values * mask).sum(dim=(1, 2, 3)) / count.clamp(min=1)


def consistency_loss(
    fine: torch.Tensor,
    coarse: torch.Tensor,
    factor: torch.Tensor,
    perceptual: PerceptualDistance | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much the finer view, reduced, differs from the centre of the coarser one: mean |difference| + LPIPS.

    Both terms are averaged under the mask for each sample and then over the batch; a sample whose mask is empty counts
    as 0. Outside the mask both images are black when they are compared perceptually, so that nothing there counts.
    Section "Scale consistency" of Wolski et al. 2024.

    Args:
        fine: [B, C, N, N], views at zoom Z, range [-1, 1] nominal.
        coarse: [B, C, N, N], the same centres at zoom Z / factor. The caller detaches one of the two.
        factor: [B], >= 1.
        perceptual: Spatial distance of two batches of images, [B, 1, N, N] (``perceptual.LPIPS``); None: L1 only.
        weight: Of each sample in the mean, [B]; None: 1.

    Returns:
        Scalar >= 0.
    """
    reduced, mask = reduce_about_centre(fine, factor)
    per_sample = masked_mean((reduced - coarse).abs(), mask)  # [B]
    if perceptual is not None:
        per_sample = per_sample + masked_mean(perceptual(reduced, coarse * mask), mask)
    return (per_sample if weight is None else per_sample * weight).mean()
