"""How different worlds are: distances between patches of the coarsest octave, generated over real."""

from __future__ import annotations

import numpy as np

from multiscale.metrics.compare import Comparison, PatchKind
from multiscale.metrics.measure import KINDS, Column, Result

LEAST_DISTANCE = 1e-6
"""Of real patches, that a ratio is taken over."""


def _measured(patches: Comparison) -> Result:
    """Mean distance between generated patches over that between real ones; ``layout``: each without its mean colour."""
    (real,), (fake,) = patches.images([0])
    distances = {"real": pairwise_distances(real[: patches.count]), "fake": pairwise_distances(fake)}
    whole, layout = (ours / max(theirs, LEAST_DISTANCE) for theirs, ours in zip(*distances.values(), strict=True))
    return {"value": whole, "layout": layout, **{name: list(pair) for name, pair in distances.items()}}


def pairwise_distances(images: np.ndarray) -> tuple[float, float]:
    """Mean root mean square difference of all pairs of two or more patches uint8 [n, C, N, N], in [-1, 1].

    Returns:
        As they are, and each freed of its mean colour.
    """
    import torch  # here: it takes seconds

    x = torch.from_numpy(images).double() / 127.5 - 1
    size = x[0].numel()
    found = (torch.pdist(y.flatten(1)).mean() / size**0.5 for y in (x, x - x.mean(dim=(2, 3), keepdim=True)))
    whole, layout = (float(distance) for distance in found)
    return whole, layout


KINDS.add(
    PatchKind(
        name="diversity",
        description="distance between worlds in the coarsest octave, fake over real",
        count=64,
        per="coarsest",
        needs=frozenset({"images"}),
        better="nearer 1",
        least=2,
        columns=(Column(), Column("layout", "of layout")),
        measured=_measured,
    )
)
