"""Looks at a run from outside the objective: measures of its snapshots, and a sheet of real patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.pictures import grid
from multiscale.config import TrainingConfig
from multiscale.data.patches import PatchDataset
from multiscale.metrics.features import load_features
from multiscale.metrics.names import parse_metrics
from multiscale.metrics.scales import Evaluation
from multiscale.metrics.sliced_wasserstein import swd_per_octave
from multiscale.networks.generator import Generator
from multiscale.view import unchecked_transform, uniform_centres
from torch_utils.distributed import Process
from torch_utils.random import normal, stream

EVALUATION_BATCH = 32


@torch.no_grad()
def patch_distance(
    generator: Generator, dataset: PatchDataset, per_octave: int, device: torch.device, seed: int
) -> tuple[list[float], float]:
    """Sliced Wasserstein distance on Laplacian pyramids between real and generated patches, octave by octave.

    Args:
        generator: In evaluation mode, on ``device``.
        dataset: The real patches.
        per_octave: Patches drawn from each octave (all, where there are fewer); as many are generated, with the same zooms.
        device: Where the generator is.
        seed: Of the draws; the same seed gives the same patches and latents.

    Returns:
        The distance in each octave, and their mean.
    """
    rng = stream(seed, "evaluation")
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(dataset.patch_octaves == j))[:per_octave] for j in range(dataset.octaves)]
    )
    real = np.stack([dataset[int(i)][0] for i in chosen])
    zoom = torch.exp2(torch.from_numpy(dataset.labels[chosen]))
    transform = unchecked_transform(zoom, uniform_centres(zoom, rng))
    z = normal(rng, len(chosen), generator.config.z_dim)
    fake = torch.cat(
        [
            generator(z[i : i + EVALUATION_BATCH].to(device), transform[i : i + EVALUATION_BATCH]).cpu()
            for i in range(0, len(chosen), EVALUATION_BATCH)
        ]
    )
    octaves = dataset.patch_octaves[chosen]
    per_octave_distance, mean = swd_per_octave(real, octaves, fake.clamp(-1, 1), octaves)
    return [float(d) for d in per_octave_distance], float(mean)


def snapshot_evaluation(
    training: TrainingConfig, dataset: PatchDataset, process: Process, digest: str | None
) -> Evaluation | None:
    """What measures the snapshots of a run; None if no measures are asked for.

    Args:
        training: Names the measures, their features and the seed.
        dataset: The real patches.
        process: This process; all of them make the same calls.
        digest: Of the data's content, for the cache; None: no cache.

    Raises:
        UserError: an unknown measure, a weight file is missing or another one, or the data do not have what a measure needs.
    """
    if training.metrics is None:
        return None
    try:
        metrics = parse_metrics(training.metrics)
    except UserError as error:
        raise UserError(
            f"training.metrics={training.metrics!r} in the run's configuration is not allowed: {error}"
        ) from error
    weights = None if training.metrics_weights is None else Path(training.metrics_weights)
    features = load_features(training.metrics_features, dataset.resolution, process.device, weights)
    return Evaluation(metrics, dataset, features, process, seed=training.seed, digest=digest)


def is_best(evaluation: Evaluation, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last line of a run's ``metrics.jsonl`` is the best of all that it can be compared with."""
    metric = evaluation.metrics[0]
    values = [
        line["results"][metric.name]["value"]
        for line in lines
        if metric.name in line["results"] and all(line.get(key) == value for key, value in evaluation.facts.items())
    ]
    return values[-1] == (max if metric.kind.higher_is_better else min)(values)


def real_sheet(dataset: PatchDataset, rows: int) -> np.ndarray:
    """Real patches, one column an octave, coarse to fine: uint8 [H, W, 3]."""
    columns = []
    for j in range(dataset.octaves):
        members = stream(0, "real sheet", j).permutation(np.flatnonzero(dataset.patch_octaves == j))
        columns.append([dataset[int(members[i % len(members)])][0].transpose(1, 2, 0) for i in range(rows)])
    titles = [f"{2**j}x - {2 ** (j + 1)}x" for j in range(dataset.octaves)]
    return grid([[column[i] for column in columns] for i in range(rows)], titles)
