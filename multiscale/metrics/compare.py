"""Generated patches against real ones: each measure of two sets of patches, over the mixture of scales or by octave.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from multiscale.data.patches import PatchDataset
from multiscale.metrics.frechet import frechet_distance, kernel_distance, precision_recall
from multiscale.metrics.names import Metric
from multiscale.metrics.pools import Patches
from multiscale.metrics.reals import RealFeatures, fixed_order
from multiscale.metrics.sliced_wasserstein import sliced_wasserstein
from multiscale.metrics.spectra import lattice_peak, plane_power, radial_power, spectrum_distance

SPECTRUM_BATCH = 64
LEAST_DISTANCE = 1e-6
"""Of real patches, that a ratio is taken over."""

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

    def images(of: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Up to ``2 count`` real and ``count`` generated patches of each of some octaves."""
        real = [real_images(dataset, octave, 2 * count) for octave in of]
        return real, [patches[octave].images[:count] for octave in of]

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
        case "swd":
            return _beside_halves(_sliced_wasserstein, *images(octaves))
        case "spectrum":
            return _beside_halves(_spectra, *images(octaves))
        case "lattice":
            return _beside_halves(_lattice, *images(octaves))
        case "diversity":
            (real,), (fake,) = images([0])
            return _diversity(real[:count], fake)
    raise ValueError(f"{metric.name} is not a measure of patches.")


def real_images(dataset: PatchDataset, octave: int | None, count: int) -> np.ndarray:
    """The first real patches of an octave in the fixed order, fewer where there are no more: uint8 [n, C, N, N]."""
    return np.stack([dataset[int(i)][0] for i in fixed_order(dataset, octave)[:count]])


def over_octaves(values: Sequence[float]) -> Result:
    """A result that is the mean over octaves."""
    return {"value": float(np.mean(values)), "octaves": [float(value) for value in values]}


def _beside_halves(
    measured: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], Result],
    real: Sequence[np.ndarray],
    fake: Sequence[np.ndarray],
) -> Result:
    """A measure of real and generated patches by octave; ``floor``: of the halves of twice as many real ones."""
    whole = [images[: len(made)] for images, made in zip(real, fake, strict=True)]
    halves = zip(*(np.array_split(images, 2) for images in real), strict=True)
    return measured(whole, fake) | {"floor": measured(*halves)["octaves"]}


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
    powers = [[_mean(radial_power, images).numpy() for images in sets] for sets in (real, fake)]
    return over_octaves([spectrum_distance(*pair) for pair in zip(*powers, strict=True)]) | {
        name: [power.tolist() for power in sets] for name, sets in zip(("real", "fake"), powers, strict=True)
    }


def _lattice(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    """Of equal numbers of patches, for few of them make peaks by chance; the value is that of the worst octave."""
    ratios = []
    for ours, theirs in zip(real, fake, strict=True):
        count = min(len(ours), len(theirs))
        peaks = [lattice_peak(_mean(plane_power, images[:count])) for images in (ours, theirs)]
        ratios.append(peaks[1] / peaks[0])
    return {"value": max(ratios), "octaves": ratios}


def _diversity(real: np.ndarray, fake: np.ndarray) -> Result:
    """Mean distance between generated patches over that between real ones; ``layout``: each without its mean colour."""
    distances = {"real": pairwise_distances(real), "fake": pairwise_distances(fake)}
    whole, layout = (ours / max(theirs, LEAST_DISTANCE) for theirs, ours in zip(*distances.values(), strict=True))
    return {"value": whole, "layout": layout, **{name: list(pair) for name, pair in distances.items()}}


def pairwise_distances(images: np.ndarray) -> tuple[float, float]:
    """Mean root mean square difference of all pairs of two or more patches uint8 [n, C, N, N], in [-1, 1].

    Returns:
        As they are, and each freed of its mean colour.
    """
    x = torch.from_numpy(images).double() / 127.5 - 1
    size = x[0].numel()
    found = (torch.pdist(y.flatten(1)).mean() / size**0.5 for y in (x, x - x.mean(dim=(2, 3), keepdim=True)))
    whole, layout = (float(distance) for distance in found)
    return whole, layout


def _mean(power: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> torch.Tensor:
    """Mean over patches uint8 [n, C, N, N] of a spectrum of each."""
    parts = [power(torch.from_numpy(images[i : i + SPECTRUM_BATCH])) for i in range(0, len(images), SPECTRUM_BATCH)]
    return torch.cat(parts).mean(dim=0)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
