"""Agreement with a scene that is known: PSNR and sliced Wasserstein distance against the procedural planet itself.

Shapes: B samples, N side of a view in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.metrics.measure import KINDS, Column, Result
from multiscale.metrics.render import Model, ViewKind
from torch_utils.random import stream

if TYPE_CHECKING:
    import torch

SCENE_SEEDS = 1000
"""Planets that labels are tried against."""


def scene_seed(dataset: PatchDataset) -> int:
    """Which planet of ``dataset_tool.py demo`` the patches show, recognised by the label of its first patch.

    Raises:
        UserError: the patches are of something else.
    """
    label = dataset.labels[0]
    for seed in range(SCENE_SEEDS if dataset.num_channels == 3 else 0):
        if abs(stream(seed, "demo", 0, 0).random() - label) < 1e-6:
            return seed
    raise UserError(
        f"The measure 'truth' needs a scene that is known, and the labels of {dataset.path} are not those of "
        "'python dataset_tool.py demo'; leave the measure out."
    )


def scene_patches(transform: torch.Tensor, size: int, seed: int) -> np.ndarray:
    """The planet itself in these views [B, 3, 3]: uint8 [B, 3, N, N]."""
    from multiscale.data.procedural import render_batch  # here: SciPy takes a second

    centres, zooms = transform[:, :2, 2].numpy(), 1 / transform[:, 0, 0].numpy()
    images = render_batch(centres, zooms, size, seed)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _measured(model: Model) -> Result:
    from multiscale.metrics.samples import quantised  # here: PyTorch takes seconds
    from multiscale.metrics.sliced_wasserstein import sliced_wasserstein

    scene = scene_seed(model.dataset)
    rows = []
    for octave in model.octaves:

        def work(indices: list[int], octave: int = octave) -> list[tuple[np.ndarray, np.ndarray]]:
            z, transform = model.octave_views("truth", octave, indices)
            fake = quantised(model.generator(z.to(model.device), transform)).cpu().numpy()
            true = scene_patches(transform, model.shape.resolution, scene)
            return list(zip(true, fake, strict=True))

        pairs = model.shared(work, 1)
        true, fake = (np.stack([pair[k] for pair in pairs]) for k in (0, 1))
        rows.append(
            {
                "psnr": _mean_psnr(true, fake),
                "psnr_by_chance": _mean_psnr(true, np.roll(true, 1, axis=0)),
                "swd": sliced_wasserstein(true, fake)["mean"],
            }
        )
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    means = {f"{name}_mean": float(np.mean(values)) for name, values in columns.items()}
    return {"value": means["psnr_mean"], "octaves": columns["psnr"], "scene_seed": scene, **columns, **means}


def _mean_psnr(a: np.ndarray, b: np.ndarray) -> float:
    from multiscale.metrics.consistency import psnr  # here: PyTorch takes seconds

    difference = (a.astype(np.float64) - b) / 127.5
    return float(psnr(np.square(difference).mean(axis=(1, 2, 3))).mean())


KINDS.add(
    ViewKind(
        name="truth",
        description="PSNR and SWD against the procedural scene itself",
        count=128,
        per="octave",
        better="higher",
        least=2,
        curves={"octaves": "", "swd": ", sliced Wasserstein distance"},
        rendered=lambda count, octaves: count * octaves,
        check=scene_seed,
        columns=(Column(in_decibels=True),),
        measured=_measured,
    )
)
