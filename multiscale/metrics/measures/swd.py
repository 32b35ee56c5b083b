"""Sliced Wasserstein distance on Laplacian pyramids, in each octave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multiscale.metrics.compare import Comparison, PatchKind, beside_halves, over_octaves
from multiscale.metrics.measure import KINDS, Result


def _distances(real: Sequence[np.ndarray], fake: Sequence[np.ndarray]) -> Result:
    from multiscale.metrics.sliced_wasserstein import sliced_wasserstein  # here: PyTorch takes seconds

    levels = [sliced_wasserstein(*pair) for pair in zip(real, fake, strict=True)]
    return over_octaves([level["mean"] for level in levels]) | {
        "levels": {side: [level[side] for level in levels] for side in levels[0] if side != "mean"}
    }


def _measured(patches: Comparison) -> Result:
    return beside_halves(_distances, *patches.images(patches.octaves))


KINDS.add(
    PatchKind(
        name="swd",
        description="sliced Wasserstein distance on Laplacian pyramids",
        count=256,
        per="octave",
        needs=frozenset({"images"}),
        measured=_measured,
    )
)
