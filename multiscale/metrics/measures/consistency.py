"""Agreement of the scales of one world: PSNR, SSIM and L1 between a view, reduced, and a coarser one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from multiscale.metrics import plots
from multiscale.metrics.measure import KINDS, Column, Picture, Result
from multiscale.metrics.render import Model, ViewKind


def _measured(model: Model) -> Result:
    from multiscale.metrics.consistency import psnr, scale_errors  # here: PyTorch takes seconds

    def work(indices: list[int]) -> list[Any]:
        return list(scale_errors(model.generator, model.shape, model.seed, indices, model.device))

    errors = np.mean(model.shared(work, model.shape.octaves + 1), axis=0)  # [S + 1, S + 1, 3]
    decibels = psnr(errors[..., 0])
    return {
        "value": float(np.nanmean(decibels)),
        "psnr": _listed(decibels),
        "l1": _listed(errors[..., 1]),
        "ssim": _listed(errors[..., 2]),
        "l1_mean": float(np.nanmean(errors[..., 1])),
        "ssim_mean": float(np.nanmean(errors[..., 2])) if np.isfinite(errors[..., 2]).any() else None,
    }


def _listed(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(v) else float(v) for v in row] for row in matrix]


KINDS.add(
    ViewKind(
        name="consistency",
        description="PSNR, SSIM and L1 between scales",
        count=64,
        per="world",
        better="higher",
        rendered=lambda count, octaves: count * (octaves + 1),
        picture=Picture(
            "Scale consistency",
            "PSNR in dB between a view (row), reduced by averaging whole pixels, and the same part of a coarser view "
            "(column) of the same world. The mean is over all pairs.",
            plots.consistency_matrices,
        ),
        columns=(Column(in_decibels=True),),
        measured=_measured,
    )
)
