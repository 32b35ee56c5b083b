"""Kernel distance of features: over the data's mixture of scales, and in each octave."""

from __future__ import annotations

from multiscale.metrics.compare import Comparison, PatchKind, number_or_none, over_octaves
from multiscale.metrics.frechet import kernel_distance
from multiscale.metrics.measure import KINDS, Result


def _mixture(patches: Comparison) -> Result:
    value, error = kernel_distance(*patches.features(None))
    return {"value": value, "error": number_or_none(error)}


def _octaves(patches: Comparison) -> Result:
    found = [kernel_distance(*patches.features(octave)) for octave in patches.octaves]
    return over_octaves([value for value, _ in found]) | {"error": [number_or_none(error) for _, error in found]}


KINDS.add(
    PatchKind(
        name="mskid",
        description="kernel distance over the data's mixture of scales",
        count=1000,
        per="mixture",
        needs=frozenset({"bank"}),
        least=2,
        measured=_mixture,
    )
)
KINDS.add(
    PatchKind(
        name="mskid_octave",
        description="kernel distance within each octave",
        count=1000,
        per="octave",
        needs=frozenset({"bank"}),
        least=2,
        measured=_octaves,
    )
)
