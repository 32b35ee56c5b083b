"""Radial power spectra in each octave, generated against real."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multiscale.metrics import plots
from multiscale.metrics.compare import Comparison, PatchKind, beside_halves, mean_power, over_octaves
from multiscale.metrics.measure import KINDS, Picture, Result


def _distances(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    from multiscale.metrics.spectra import radial_power, spectrum_distance  # here: PyTorch takes seconds

    powers = [[mean_power(radial_power, images).numpy() for images in sets] for sets in (real, fake)]
    return over_octaves([spectrum_distance(*pair) for pair in zip(*powers, strict=True)]) | {
        name: [power.tolist() for power in sets] for name, sets in zip(("real", "fake"), powers, strict=True)
    }


def _measured(patches: Comparison) -> Result:
    return beside_halves(_distances, *patches.images(patches.octaves))


KINDS.add(
    PatchKind(
        name="spectrum",
        description="power spectra, fake against real",
        count=256,
        per="octave",
        needs=frozenset({"images"}),
        picture=Picture(
            "Power spectra",
            "Power over the frequency of each octave's patches, and fake over real in dB. Below 0 detail is missing; above "
            "0, most of all near the Nyquist limit at 0.5, there is aliasing or noise.",
            plots.spectra,
        ),
        measured=_measured,
    )
)
