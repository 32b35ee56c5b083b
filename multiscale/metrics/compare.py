"""Generated patches against real ones: each measure of two sets of patches, over the mixture of scales or by octave.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from multiscale.data.patches import PatchDataset
from multiscale.metrics.frechet import frechet_distance, kernel_distance, precision_recall
from multiscale.metrics.names import Metric
from multiscale.metrics.pools import Patches
from multiscale.metrics.reals import RealFeatures, fixed_order
from multiscale.metrics.sliced_wasserstein import sliced_wasserstein
from multiscale.metrics.spectra import radial_power, spectrum_distance

SPECTRUM_BATCH = 64

Result = dict[str, Any]
"""JSON values: ``value`` is the number to compare models by, ``octaves`` the same of each octave, where it has any, and
``floor`` what two halves of up to twice as many real patches give."""


def compare(
    metric: Metric, dataset: PatchDataset, reals: RealFeatures | None, patches: Mapping[int | None, Patches]
) -> Result:
    """One measure of patches.

    Args:
        metric: A measure that needs patches (``metric.kind.needs``).
        dataset: The real patches.
        reals: Their features, prepared for this measure; None: it needs none.
        patches: The generated ones by octave (None: the mixture), as many as it asks for.
    """
    count, octaves = metric.count, range(dataset.octaves)

    def frechet(octave: int | None) -> float:
        assert reals is not None
        return frechet_distance(reals.moments(octave), patches[octave].moments[count])

    def banks(octave: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Features of the first ``count`` real and generated patches, of fewer real ones where there are no more."""
        assert reals is not None
        return reals.rows(fixed_order(dataset, octave)[:count]), patches[octave].bank[:count]

    match metric.kind_name:
        case "msfid":
            return {"value": frechet(None)}
        case "msfid_octave":
            return over_octaves([frechet(octave) for octave in octaves])
        case "mskid":
            value, error = kernel_distance(*banks(None))
            return {"value": value, "error": _number(error)}
        case "mskid_octave":
            found = [kernel_distance(*banks(octave)) for octave in octaves]
            return over_octaves([value for value, _ in found]) | {"error": [_number(error) for _, error in found]}
        case "precision_recall":
            return _precision_recall([banks(octave) for octave in octaves])
    fake = [patches[octave].images[:count] for octave in octaves]
    real = [real_images(dataset, octave, 2 * count) for octave in octaves]
    halves = [np.array_split(images, 2) for images in real]
    measured = _sliced_wasserstein if metric.kind_name == "swd" else _spectra
    whole = [images[:count] for images in real]
    return measured(whole, fake) | {"floor": measured(*zip(*halves, strict=True))["octaves"]}


def real_images(dataset: PatchDataset, octave: int | None, count: int) -> np.ndarray:
    """The first real patches of an octave in the fixed order, fewer where there are no more: uint8 [n, C, N, N]."""
    return np.stack([dataset[int(i)][0] for i in fixed_order(dataset, octave)[:count]])


def over_octaves(values: Sequence[float]) -> Result:
    """A result that is the mean over octaves."""
    return {"value": float(np.mean(values)), "octaves": [float(value) for value in values]}


def _precision_recall(banks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Result:
    """Of equal numbers of real and generated patches; the value is the harmonic mean, averaged over octaves."""
    found = [precision_recall(real, fake[: len(real)]) for real, fake in banks]
    precision, recall = ([float(pair[k]) for pair in found] for k in (0, 1))
    return over_octaves([2 * p * r / (p + r) if p + r else 0.0 for p, r in found]) | {
        "precision": precision,
        "recall": recall,
    }


def _sliced_wasserstein(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    levels = [sliced_wasserstein(*pair) for pair in zip(real, fake, strict=True)]
    return over_octaves([level["mean"] for level in levels]) | {
        "levels": {side: [level[side] for level in levels] for side in levels[0] if side != "mean"}
    }


def _spectra(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    powers = [[_mean_power(images) for images in sets] for sets in (real, fake)]
    return over_octaves([spectrum_distance(*pair) for pair in zip(*powers, strict=True)]) | {
        name: [power.tolist() for power in sets] for name, sets in zip(("real", "fake"), powers, strict=True)
    }


def _mean_power(images: np.ndarray) -> np.ndarray:
    """Mean spectrum float64 [N/2 + 1] of patches uint8 [n, C, N, N]."""
    parts = [
        radial_power(torch.from_numpy(images[i : i + SPECTRUM_BATCH])) for i in range(0, len(images), SPECTRUM_BATCH)
    ]
    return torch.cat(parts).mean(dim=0).numpy()


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
