"""Precision and recall of features within each octave."""

from __future__ import annotations

from multiscale.metrics.compare import Comparison, PatchKind, over_octaves
from multiscale.metrics.frechet import precision_recall
from multiscale.metrics.measure import KINDS, Column, Result


def _measured(patches: Comparison) -> Result:
    """Of equal numbers of real and generated patches; the value is the harmonic mean, averaged over octaves."""
    features = [patches.features(octave) for octave in patches.octaves]
    found = [precision_recall(real, fake[: len(real)]) for real, fake in features]
    precision, recall = ([float(pair[k]) for pair in found] for k in (0, 1))
    return over_octaves([2 * p * r / (p + r) if p + r else 0.0 for p, r in found]) | {
        "precision": precision,
        "recall": recall,
    }


KINDS.add(
    PatchKind(
        name="precision_recall",
        description="precision and recall within each octave",
        count=1000,
        per="octave",
        needs=frozenset({"bank"}),
        better="higher",
        least=8,
        curves={"precision": ", precision", "recall": ", recall"},
        columns=(Column("recall", "recall by octave", digits=2),),
        measured=_measured,
    )
)
