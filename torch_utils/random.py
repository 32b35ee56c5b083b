"""Named random streams: every draw of a run follows from (seed, stream, counters), so a resumed run is the same run."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

Size: TypeAlias = "int | tuple[int, ...]"


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """A generator of its own for each seed, stream name and counters (such as step and rank).

    All streams of one name must have as many counters: left out, one counts as 0.

    Args:
        seed: Seed of the run, >= 0.
        name: What is drawn, such as ``"latents"``.
        counters: Further integers from 0 to 2^32 - 1, such as the step.

    Raises:
        ValueError: a counter is out of range.
    """
    if not all(0 <= counter < 2**32 for counter in counters):
        raise ValueError(f"counters are {counters}, but each must be from 0 to 2^32 - 1.")
    key = zlib.crc32(name.encode())  # stable over processes and Python versions, unlike hash()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key, *counters])))


class BatchRows:
    """Random numbers for some images (rows) of a batch, taken from draws for the whole batch.

    What an image gets depends on its place in the batch only, not on how many processes and parts share the work. The last
    axis of every draw is the rows.

    Args:
        rng: A fresh stream of this batch and purpose, such as ``stream(seed, "latents", step)``.
        batch: Images of the whole batch.
        rows: Which of them are drawn for.
    """

    def __init__(self, rng: np.random.Generator, batch: int, rows: slice) -> None:
        self.rng, self.batch, self.rows = rng, batch, rows
        self.count = len(range(*rows.indices(batch)))

    def integers(self, below: int, *, size: Size) -> np.ndarray:
        """0 ... below - 1, int64."""
        return self.rng.integers(below, size=self._whole(size))[..., self.rows]

    def uniform(self, low: float, high: float, *, size: Size) -> np.ndarray:
        """Uniform from low to high, float64."""
        return self.rng.uniform(low, high, size=self._whole(size))[..., self.rows]

    def random(self, size: Size) -> np.ndarray:
        """Uniform from 0 to 1, float64."""
        return self.rng.random(self._whole(size))[..., self.rows]

    def standard_normal(self, size: Size) -> np.ndarray:
        """Standard normal, float64."""
        return self.rng.standard_normal(self._whole(size))[..., self.rows]

    def _whole(self, size: Size) -> tuple[int, ...]:
        """The shape to draw for the whole batch."""
        *columns, count = (size,) if isinstance(size, int) else size
        assert count == self.count
        return *columns, self.batch


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 tensor of the given shape, on the CPU."""
    import torch  # here: it takes seconds

    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def latents(seed: int, z_dim: int) -> torch.Tensor:
    """The latent z of a seed that users type: float32 [1, z_dim], the same on every machine."""
    return normal(stream(seed, "z"), 1, z_dim)
