"""A run seen from outside its objective: measures of its snapshots, and a sheet of real patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from dnnlib.names import typed_path
from dnnlib.pictures import grid
from multiscale.config import TrainingConfig
from multiscale.data.patches import PatchDataset
from multiscale.metrics.features import Options, load_features
from multiscale.metrics.measure import distance_from_best
from multiscale.metrics.parse import parse_metrics
from multiscale.metrics.scales import Evaluation
from torch_utils.distributed import Process
from torch_utils.random import stream

OPTIONS = Options(features="--set training.metrics_features=", weights="--set training.metrics_weights=")


def snapshot_evaluation(
    training: TrainingConfig, dataset: PatchDataset, process: Process, digest: str | None
) -> Evaluation | None:
    """The evaluation of a run's snapshots; None without ``training.metrics``.

    Args:
        training: Names the measures, their features and the seed.
        dataset: The real patches.
        process: This process; all of them make the same calls.
        digest: Of the data's content, for the cache; None: no cache.

    Raises:
        UserError: a measure is unknown, a weight file is missing or wrong, or the data lack what a measure needs.
    """
    if training.metrics is None:
        return None
    try:
        metrics = parse_metrics(training.metrics)
    except UserError as error:
        raise UserError(
            f"training.metrics={training.metrics!r} in the run's configuration is not allowed: {error}"
        ) from error
    weights = None if training.metrics_weights is None else typed_path(training.metrics_weights)
    features = load_features(training.metrics_features, dataset.resolution, process.device, weights, OPTIONS)
    return Evaluation(metrics, dataset, features, process, seed=training.seed, digest=digest)


def is_best(evaluation: Evaluation, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last line of a run's ``metrics.jsonl`` is the best of those comparable with it."""
    metric = evaluation.metrics[0]
    values = [
        line["results"][metric.name]["value"]
        for line in lines
        if metric.name in line["results"] and all(line.get(key) == value for key, value in evaluation.facts.items())
    ]
    distances = [distance_from_best(value, metric.kind.better) for value in values]
    return distances[-1] == min(distances)


def measured_lines(evaluation: Evaluation, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The last line of a run's ``metrics.jsonl`` as text: each measure, its first value before the present one."""
    last = lines[-1]
    for metric in evaluation.metrics:
        name, result = metric.name, last["results"][metric.name]
        first = next(line for line in lines if name in line["results"])
        values = [f"{line['results'][name]['value']:.4g}" for line in ([first, last] if first is not last else [last])]
        octaves = " ".join(f"{value:.3g}" for value in result.get("octaves", ()))
        facts = f"{metric.kind.description}, {metric.kind.better} is better" + (
            f"; by octave {octaves}" if octaves else ""
        )
        yield f"{name} after {last['kimg']:g} kimg: {' -> '.join(values)} ({facts})"


def real_sheet(dataset: PatchDataset, rows: int) -> np.ndarray:
    """Real patches, one column per octave, coarse to fine: uint8 [H, W, 3]."""
    columns = []
    for j in range(dataset.octaves):
        members = stream(0, "real sheet", j).permutation(np.flatnonzero(dataset.patch_octaves == j))
        columns.append([dataset[int(members[i % len(members)])][0].transpose(1, 2, 0) for i in range(rows)])
    titles = [f"{2**j}x - {2 ** (j + 1)}x" for j in range(dataset.octaves)]
    return grid([[column[i] for column in columns] for i in range(rows)], titles)
