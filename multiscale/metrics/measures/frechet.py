"""Frechet distance of features: over the data's mixture of scales (MS-FID of Wolski et al. 2024), and in each octave."""

from __future__ import annotations

from multiscale.metrics.compare import Comparison, PatchKind, over_octaves
from multiscale.metrics.frechet import frechet_distance
from multiscale.metrics.measure import KINDS, Column, Result


def _mixture(patches: Comparison) -> Result:
    return {"value": frechet_distance(*patches.moments(None))}


def _octaves(patches: Comparison) -> Result:
    return over_octaves([frechet_distance(*patches.moments(octave)) for octave in patches.octaves])


KINDS.add(
    PatchKind(
        name="msfid",
        description="Frechet distance over the data's mixture of scales",
        count=1000,
        per="mixture",
        needs=frozenset({"moments"}),
        least=2,
        measured=_mixture,
    )
)
KINDS.add(
    PatchKind(
        name="msfid_octave",
        description="Frechet distance within each octave",
        count=1000,
        per="octave",
        needs=frozenset({"moments"}),
        least=2,
        columns=(Column(), Column("octaves", "by octave")),
        measured=_octaves,
    )
)
