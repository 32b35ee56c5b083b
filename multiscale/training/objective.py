"""Everything that is differentiated: adversarial losses, gradient penalties and scale consistency of a part of a batch.

The trainer has the loop, optimisers and averages, and none of this mathematics; the memory estimate runs the very same
objective on the meta device. A new loss is a term in :meth:`Objective.discriminator` or :meth:`Objective.generator`
and a field of :class:`multiscale.config.TrainingConfig`.

Shapes: B images of a part, real and generated [B, C, N, N] in [-1, 1], zoom s [B] in octaves, z [B, z_dim].
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from multiscale.config import RunConfig
from multiscale.networks.discriminator import Discriminator
from multiscale.networks.generator import Generator
from multiscale.training import adversarial, augment
from multiscale.training.augment import AugmentPipe
from multiscale.training.consistency import PerceptualDistance, consistency_loss, sample_zoom_out
from multiscale.training.cuda_graphs import Replays
from multiscale.view import zoom_out
from torch_utils.devices import to_device
from torch_utils.random import BatchRows

Draws: TypeAlias = "BatchRows | np.random.Generator"

LAUNCH_BOUND = 2**20
"""Samples of a batch of images; what is done to more of them takes a GPU longer than Python needs to launch it."""

Generated: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Styles ws of a part, and its images with their graph."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images that are computed at a time, on the device, and their draws."""

    real: torch.Tensor
    labels: torch.Tensor
    """s, float64 [B] on the CPU."""
    zoom_log2: torch.Tensor
    """The same, float32 [B] on the device."""
    octave: np.ndarray
    """Octave of each image, integers [B]."""
    octaves: torch.Tensor
    """1 where an image belongs: float [B, octaves], on the device."""
    z: torch.Tensor
    transform: torch.Tensor
    images_seen: int
    """Real images shown in earlier steps."""
    draws: Callable[[str], Draws]
    """Fresh draws of this step for a purpose, such as ``"augment real"``."""
    train_fine: bool
    """The step's coin: gradients go to the finer view of a consistency pair, or to the coarser one."""


@dataclass(frozen=True)
class Losses:
    """What a backward pass starts from, and what is logged."""

    total: torch.Tensor
    """A scalar."""
    means: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Logged by name, any shape."""
    by_octave: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Logged by octave: a number per image, [B]."""
    sureness: torch.Tensor | None = None
    """D's margin on each real patch, [B], positive where it is right. Its sign steers ADA."""


class Objective:
    """Losses of both networks.

    Args:
        config: The run.
        G: Generator.
        D: Discriminator.
        augment: Applied to all images that D sees; None: no augmentation.
        perceptual: Distance between scales beside L1; None: L1 alone.
        compiled: D compiled, for all but the penalties, which are differentiated twice; None: D itself.
        replays: What calls of networks and augmentation go through, if a part is a whole step; None: nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        G: Generator,
        D: Discriminator,
        *,
        augment: AugmentPipe | None = None,
        perceptual: PerceptualDistance | None = None,
        compiled: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        replays: Replays | None = None,
    ) -> None:
        self.training, self.G, self.D = config.training, G, D
        self.augment, self.perceptual = augment, perceptual
        self._compiled, self.replays = compiled, replays
        self._pairs = self.training.adversarial == "pairs"

    def generate(self, part: Part, *, observe: bool) -> Generated:
        """Render the part's latents through its views; ``observe``: count them towards G's running means."""

        def generate(z: torch.Tensor, transform: torch.Tensor) -> Generated:
            ws = self.G.mapping(z, observe=observe)
            return ws, self.G.synthesis(ws, transform, observe=observe)

        return self._call("generate, observed" if observe else "generate", generate, self.G, part.z, part.transform)

    def logits(self, images: torch.Tensor, part: Part, role: str) -> torch.Tensor:
        """D's logits of augmented images, [B, L]; ``role`` is this call's name among those of a step."""
        if self._compiled is not None:
            return self._compiled(images, part.zoom_log2)
        return self._call(role, self.D, self.D, images, part.zoom_log2)

    def _call(
        self,
        role: str,
        function: Callable[..., Any],
        module: nn.Module,
        *inputs: torch.Tensor,
        variant: Hashable = None,
    ) -> Any:
        if self.replays is None:
            return function(*inputs)
        return self.replays(role, function, module, *inputs, variant=variant)

    def discriminator(self, part: Part, fake: torch.Tensor) -> Losses:
        """Real patches against generated ones; ``fake`` is detached here.

        Pairs do not fix the level of D's logits, so there the margin of a real patch is over its generated partner.
        """
        weights = self.D.logit_weights
        real_logits = self.logits(self.for_discriminator(part.real, "augment real", part), part, "D real")
        fake_logits = self.logits(self.for_discriminator(fake.detach(), "augment fake", part), part, "D fake")
        if self._pairs:
            loss = adversarial.pair_loss(real_logits, fake_logits, weights)
        else:
            loss = adversarial.discriminator_loss(fake_logits, real_logits, weights)
        logits = {
            "logits/real": adversarial.weighted_mean(real_logits, weights),
            "logits/fake": adversarial.weighted_mean(fake_logits, weights),
        }
        by_octave = {f"{name} by octave": values for name, values in logits.items()}
        sureness = logits["logits/real"] - logits["logits/fake"] if self._pairs else logits["logits/real"]
        return Losses(loss, {"loss/D": loss, **logits}, by_octave, sureness)

    @property
    def needs_penalties(self) -> bool:
        """Whether :meth:`penalties` has any term."""
        return self.training.r1_gamma > 0 or self.training.r2_gamma > 0

    @property
    def penalises_generated(self) -> bool:
        """Whether :meth:`penalties` looks at generated patches."""
        return self.training.r2_gamma > 0

    def penalties(self, part: Part, fake: torch.Tensor | None) -> Losses:
        """Gradient penalties R1 and R2, for a separate step every ``r1_interval``; ``fake`` is needed for R2."""
        total = torch.zeros([], device=part.real.device)
        means = {}
        for name, gamma, images in (("r1", self.training.r1_gamma, part.real), ("r2", self.training.r2_gamma, fake)):
            if gamma > 0:
                assert images is not None
                means[f"loss/{name}"] = self._penalty(name, gamma, images.detach(), part)
                total = total + means[f"loss/{name}"]
        return Losses(total * self.training.r1_interval, means)

    def generator(self, part: Part, generated: Generated) -> Losses:
        """Loss of the generator: to be taken for real by D, and to agree across scales."""
        ws, fake = generated
        logits = self.logits(self.for_discriminator(fake, "augment G", part), part, "G fake")
        if self._pairs:
            with torch.no_grad():
                real_logits = self.logits(self.for_discriminator(part.real, "augment G real", part), part, "G real")
            loss = adversarial.pair_loss(logits, real_logits, self.D.logit_weights)
        else:
            loss = adversarial.generator_loss(logits, self.D.logit_weights)
        means = {"loss/G": loss}
        weight = self.training.consistency_weight
        if weight:
            means["loss/consistency"] = consistency = self.consistency(fake, ws, part)
            loss = loss + weight * consistency
        return Losses(loss, means)

    def consistency(self, fine: torch.Tensor, ws: torch.Tensor, part: Part) -> torch.Tensor:
        """Render the same latents zoomed out about the same centres and compare; a coin detaches one of the two."""
        factor = to_device(sample_zoom_out(part.labels, part.draws("zoom out")), fine.device)
        with torch.set_grad_enabled(not part.train_fine):
            farther = zoom_out(part.transform, factor)
            coarse = self._call("coarse", self.G.synthesis, self.G.synthesis, ws, farther)
        weights = self.training.consistency_by_octave
        if weights is not None:
            by_image = np.asarray(weights)[np.minimum(part.octave, len(weights) - 1)]
            sample_weight = to_device(torch.from_numpy(by_image).float(), fine.device)
        return consistency_loss(
            fine if part.train_fine else fine.detach(),
            coarse,
            factor,
            self.perceptual,
            None if weights is None else sample_weight,
        )

    def _penalty(self, name: str, gamma: float, images: torch.Tensor, part: Part) -> torch.Tensor:
        """The gradient penalty R1 or R2 at the images as they are before augmentation, a scalar."""
        drawn = None if self.augment is None else self._draw(self.augment, images, f"augment {name}", part)

        def penalty(images: torch.Tensor, zoom_log2: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            seen = images.detach().requires_grad_(True)
            changed = seen if drawn is None else augment.apply(seen, drawn.pad, *tensors)
            logits = self.D(self._blurred(changed, part), zoom_log2)
            return adversarial.r1_penalty(adversarial.weighted_mean(logits, self.D.logit_weights), seen, gamma)

        inputs = images, part.zoom_log2, *(() if drawn is None else drawn.tensors)
        if self._is_replayed(images) and not self._blur_sigma(part):
            return self._call(f"penalty {name}", penalty, self.D, *inputs, variant=drawn and drawn.pad)
        return penalty(*inputs)

    def for_discriminator(self, images: torch.Tensor, purpose: str, part: Part) -> torch.Tensor:
        """Images as the discriminator sees them: augmented, then blurred early in the run."""
        if self.augment is not None:
            drawn = self._draw(self.augment, images, purpose, part)

            def change(images: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
                return augment.apply(images, drawn.pad, *tensors)

            if self._is_replayed(images):
                images = self._call(purpose, change, self.augment, images, *drawn.tensors, variant=drawn.pad)
            else:
                images = change(images, *drawn.tensors)
        return self._blurred(images, part)

    def _draw(self, pipe: AugmentPipe, images: torch.Tensor, purpose: str, part: Part) -> augment.Drawn:
        """What augmentation does to the images, padded alike in most steps if that is to be replayed."""
        pad_step = max(images.shape[-1] // 2, 1) if self._is_replayed(images) else 1
        return pipe.draw(images, generator=part.draws(purpose), group=part.octave, pad_step=pad_step)

    def _is_replayed(self, images: torch.Tensor) -> bool:
        """Whether what is done to these images takes less time than Python needs to launch it."""
        return self.replays is not None and images.numel() <= LAUNCH_BOUND

    def _blurred(self, images: torch.Tensor, part: Part) -> torch.Tensor:
        return adversarial.blur(images, self._blur_sigma(part))

    def _blur_sigma(self, part: Part) -> float:
        training = self.training
        fade_kimg = training.blur_fade_kimg or training.batch * 200 / 32
        return adversarial.blur_sigma(part.images_seen, sigma_px=training.blur_sigma_px, fade_images=fade_kimg * 1000)
