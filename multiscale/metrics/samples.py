"""The samples of measures: latents, zooms and centres, determined by (seed, purpose, index) alone.

What sample i of a measure is does not depend on the batch that it is computed in, nor on the processes that share the work.

Shapes: B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from multiscale.view import unchecked_transform, uniform_centres
from torch_utils.distributed import Process
from torch_utils.random import stream


class Views(Protocol):
    """A generator: latents [B, z_dim] and world-from-view transforms [B, 3, 3] to images [B, C, N, N] in [-1, 1]."""

    def __call__(self, z: torch.Tensor, transform: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Shape:
    """The shape of a model's patches and latents."""

    resolution: int
    channels: int
    octaves: int
    z_dim: int


def patch_views(
    seed: int, pool: str, indices: Sequence[int], labels: np.ndarray, z_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and views of patches: the zoom of a random real patch, at a uniform place of the world.

    Args:
        seed: Of all draws.
        pool: What the patches are for; each pool is a sequence of patches of its own.
        indices: Places in that sequence, [B].
        labels: log2 zooms of the real patches whose distribution is wanted, float [n].
        z_dim: Of the latents.

    Returns:
        z float32 [B, z_dim] and transforms float64 [B, 3, 3], on the CPU.
    """
    z, transforms = [], []
    for index in indices:
        rng = stream(seed, f"measure {pool}", index)
        zoom = torch.exp2(torch.tensor([float(labels[rng.integers(len(labels))])], dtype=torch.float64))
        transforms.append(unchecked_transform(zoom, uniform_centres(zoom, rng)))
        z.append(rng.standard_normal(z_dim))
    return torch.from_numpy(np.stack(z)).float(), torch.cat(transforms)


def quantised(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8 of the same shape, rounded as PNG files of them would be."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def own_batches(process: Process, count: int, batch: int) -> Iterator[list[int]]:
    """The samples of this process among 0 ... count - 1, in batches."""
    mine = range(process.rank, count, process.world_size)
    for start in range(0, len(mine), batch):
        yield list(mine[start : start + batch])


def done_by_all(process: Process, indices: Sequence[int], count: int) -> int:
    """How many of ``count`` samples all processes complete while the first one completes these of its own."""
    return min(indices[-1] + process.world_size, count) - (indices[0] - process.rank)


def gathered(process: Process, value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks, on all of them."""
    if process.world_size == 1:
        return [value]
    parcel: list[Any] = [None] * process.world_size
    dist.all_gather_object(parcel, value)
    return parcel


def in_order(parts: Sequence[dict[int, Any]]) -> list[Any]:
    """Samples that several processes hold by index, put in order."""
    joined = {index: value for part in parts for index, value in part.items()}
    return [joined[index] for index in sorted(joined)]
