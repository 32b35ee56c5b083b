"""Periodic patterns: the highest peak of the mean spectrum of each octave, generated over real."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multiscale.metrics.compare import Comparison, PatchKind, beside_halves, mean_power
from multiscale.metrics.measure import KINDS, Better, Column, Result, distance_from_best

BETTER: Better = "nearer 1"


def _ratios(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    """Of equal numbers of patches, for few of them make peaks by chance; the value is that of the worst octave."""
    from multiscale.metrics.spectra import lattice_peak, plane_power  # here: PyTorch takes seconds

    ratios = []
    for ours, theirs in zip(real, fake, strict=True):
        count = min(len(ours), len(theirs))
        peaks = [lattice_peak(mean_power(plane_power, images[:count])) for images in (ours, theirs)]
        ratios.append(peaks[1] / peaks[0])
    return {"value": max(ratios, key=lambda ratio: distance_from_best(ratio, BETTER)), "octaves": ratios}


def _measured(patches: Comparison) -> Result:
    return beside_halves(_ratios, *patches.images(patches.octaves))


KINDS.add(
    PatchKind(
        name="lattice",
        description="periodic patterns: highest peaks of spectra, fake over real",
        count=64,
        per="octave",
        needs=frozenset({"images"}),
        better=BETTER,
        least=16,
        columns=(Column("octaves", "lattice by octave", digits=2),),
        measured=_measured,
    )
)
