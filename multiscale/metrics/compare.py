"""Measures that compare generated with real patches: what such a measure is given, and helpers for several of them.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from multiscale.data.patches import PatchDataset
from multiscale.metrics.frechet import Moments
from multiscale.metrics.measure import Kind, Metric, Result, plain
from multiscale.metrics.pools import Patches

if TYPE_CHECKING:
    import torch

    from multiscale.metrics.reals import RealFeatures

SPECTRUM_BATCH = 64


@dataclass(frozen=True)
class Comparison:
    """Generated and real patches, as far as the measure's ``needs`` ask for them."""

    count: int
    """Patches to compare."""
    dataset: PatchDataset
    """The real patches."""
    reals: RealFeatures | None
    """Features of the real patches; None if the measure needs none."""
    patches: Mapping[int | None, Patches]
    """The generated ones by octave (None: the mixture), ``count`` or more of each."""

    @property
    def octaves(self) -> range:
        """All octaves of the data."""
        return range(self.dataset.octaves)

    def moments(self, octave: int | None) -> tuple[Moments, Moments]:
        """Of the features of all real patches, and of those of the first ``count`` generated ones."""
        assert self.reals is not None
        return self.reals.moments(octave), self.patches[octave].moments[self.count]

    def features(self, octave: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Features of the first ``count`` real and generated patches, or of all real ones if there are fewer: [n, D]."""
        from multiscale.metrics.reals import fixed_order  # here: PyTorch takes seconds

        assert self.reals is not None
        rows = self.reals.rows(fixed_order(self.dataset, octave)[: self.count])
        return rows, self.patches[octave].bank[: self.count]

    def images(self, octaves: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Up to ``2 count`` real and ``count`` generated patches of each of some octaves: uint8 [n, C, N, N]."""
        real = [real_images(self.dataset, octave, 2 * self.count) for octave in octaves]
        return real, [self.patches[octave].images[: self.count] for octave in octaves]


@dataclass(frozen=True, kw_only=True)
class PatchKind(Kind):
    """A measure of patches; ``needs`` lists what it uses."""

    measured: Callable[[Comparison], Result]
    """Called in the first process only."""

    def __post_init__(self) -> None:
        assert self.needs, "without needs no patches are generated"


def compare(
    metric: Metric, dataset: PatchDataset, reals: RealFeatures | None, patches: Mapping[int | None, Patches]
) -> Result:
    """One measure of patches; arguments as the fields of :class:`Comparison`."""
    if not isinstance(metric.kind, PatchKind):
        raise ValueError(f"{metric.name} is not a measure of patches.")
    return plain(metric.name, metric.kind.measured(Comparison(metric.count, dataset, reals, patches)))


def real_images(dataset: PatchDataset, octave: int | None, count: int) -> np.ndarray:
    """The first ``count`` real patches of an octave in the fixed order, or all if there are fewer: uint8 [n, C, N, N]."""
    from multiscale.metrics.reals import fixed_order  # here: PyTorch takes seconds

    return np.stack([dataset[int(i)][0] for i in fixed_order(dataset, octave)[:count]])


def over_octaves(values: Sequence[float]) -> Result:
    """A result that is the mean over octaves."""
    return {"value": float(np.mean(values)), "octaves": [float(value) for value in values]}


def beside_halves(
    measured: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Result],
    real: Sequence[np.ndarray],
    fake: Sequence[np.ndarray],
) -> Result:
    """A measure by octave, with its ``floor``: the same between two halves of the real patches, if each octave has two."""
    result = measured([images[: len(made)] for images, made in zip(real, fake, strict=True)], fake)
    if min(map(len, real)) < 2:
        return result
    halves = zip(*(np.array_split(images, 2) for images in real), strict=True)
    return result | {"floor": measured(*halves)["octaves"]}


def mean_power(power: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> torch.Tensor:
    """Mean over patches uint8 [n, C, N, N] of a spectrum of each."""
    import torch  # here: it takes seconds

    parts = [power(torch.from_numpy(images[i : i + SPECTRUM_BATCH])) for i in range(0, len(images), SPECTRUM_BATCH)]
    return torch.cat(parts).mean(dim=0)


def number_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
