"""Running mean of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


def half_life_decay(batch: int, half_life_images: float) -> float:
    """Decay per batch of a running mean whose half-life is counted in images; 0 for a half-life of 0."""
    return 0.5 ** (batch / half_life_images) if half_life_images > 0 else 0.0


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``module``: parameters by ``1 - decay``, buffers are copied."""
    means: list[torch.Tensor] = list(average.parameters())
    torch._foreach_lerp_(means, list[torch.Tensor](module.parameters()), 1 - decay)
    for mean, buffer in zip(average.buffers(), module.buffers(), strict=True):
        mean.copy_(buffer)
