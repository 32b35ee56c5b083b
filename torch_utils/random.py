"""Named random streams: every draw of a run follows from (seed, stream, counters), so a resumed run is the same run."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """A generator of its own for each seed, stream name and counters (such as step and rank).

    Args:
        seed: Seed of the run, >= 0.
        name: What is drawn, such as ``"latents"``.
        counters: Further integers >= 0, such as the step.
    """
    key = zlib.crc32(name.encode())  # stable over processes and Python versions, unlike hash()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key, *counters])))


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal float32 tensor of the given shape, on the CPU."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def latents(seed: int, z_dim: int) -> torch.Tensor:
    """The latent z of a seed that users type: float32 [1, z_dim], the same on every machine."""
    return normal(stream(seed, "z"), 1, z_dim)
