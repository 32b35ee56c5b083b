"""The patches that measures look at: pools over the mixture of scales and over each octave, shared by all measures.

Every measure takes the first patches of its pools, so that a pool is as large as its most demanding measure.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from multiscale.metrics.frechet import Moments
from multiscale.metrics.measure import Metric


@dataclass
class Pool:
    """Patches of one distribution, and which data of them are kept."""

    octave: int | None
    """None: the data's mixture."""
    count: int = 0
    """Patches that are generated."""
    moments: set[int] = field(default_factory=set)
    """Sizes of the leading subsets whose moments are wanted."""
    bank: int = 0
    """Number of leading patches whose features are kept."""
    images: int = 0
    """Number of leading patches whose images are kept."""

    @property
    def name(self) -> str:
        """Of its draws."""
        return "mixture" if self.octave is None else f"octave {self.octave}"


@dataclass
class Patches:
    """The data kept of a pool, complete in every process."""

    moments: dict[int, Moments]
    bank: np.ndarray
    """float32 [n, D]."""
    images: np.ndarray
    """uint8 [n, C, N, N]."""


def pools_for(metrics: Sequence[Metric], octaves: int, pictures: int = 0) -> list[Pool]:
    """The pools that serve all measures; ``pictures``: patches of each octave that a report shows."""
    mixture, each = Pool(None), [Pool(octave) for octave in range(octaves)]
    for metric in metrics:
        for pool in {"mixture": [mixture], "octave": each, "coarsest": each[:1]}.get(metric.kind.per, []):
            if metric.kind.needs:
                pool.count = max(pool.count, metric.count)
            if "moments" in metric.kind.needs:
                pool.moments.add(metric.count)
            if "bank" in metric.kind.needs:
                pool.bank = max(pool.bank, metric.count)
            if "images" in metric.kind.needs:
                pool.images = max(pool.images, metric.count)
    for pool in each if pictures else []:
        pool.count, pool.bank, pool.images = (max(n, pictures) for n in (pool.count, pool.bank, pool.images))
    return [pool for pool in (mixture, *each) if pool.count]
