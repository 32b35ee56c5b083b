"""EQ-T of Karras et al. 2021 under shifts by fractions of a pixel, in each octave."""

from __future__ import annotations

from typing import Any

import numpy as np

from multiscale.metrics.measure import KINDS, Column, Result
from multiscale.metrics.render import Model, ViewKind
from torch_utils.random import stream


def _measured(model: Model) -> Result:
    from multiscale.metrics.consistency import psnr, shift_errors  # here: PyTorch takes seconds

    def work(octave: int, indices: list[int]) -> list[Any]:
        seeds = [stream(model.seed, "measure shift", octave, i) for i in indices]
        return list(shift_errors(model.generator, *model.octave_views("shift", octave, indices), seeds, model.device))

    means = [float(np.mean(errors)) for errors in model.shared_by_octave(work, 2)]
    value = float(psnr(float(np.mean(means))))
    return {"value": value, "octaves": [float(psnr(mean)) for mean in means]}


KINDS.add(
    ViewKind(
        name="equivariance",
        description="EQ-T under shifts by fractions of a pixel",
        count=32,
        per="octave",
        better="higher",
        rendered=lambda count, octaves: 2 * count * octaves,  # a view and the same moved
        columns=(Column(in_decibels=True),),
        measured=_measured,
    )
)
