"""The work of ``calc_metrics.py``: choose networks and measures, estimate the cost, measure, and report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dnnlib.progress import progress_bar
from multiscale.data.patches import PatchDataset
from multiscale.metrics.features import Features, load_features
from multiscale.metrics.measure import Metric
from multiscale.metrics.pools import Patches
from multiscale.metrics.reals import content_digest
from multiscale.metrics.report import Measured, table_lines, trained_apart, write_report
from multiscale.metrics.samples import patch_views, quantised
from multiscale.metrics.scales import Evaluation
from multiscale.networks.generator import Generator
from multiscale.runs.folder import preset_of
from multiscale.runs.snapshots import Snapshot, load_snapshot
from torch_utils import distributed
from torch_utils.devices import choose_devices, float32_products
from torch_utils.distributed import Process, from_first

PICTURES = 64
"""Patches of each octave that a report chooses from."""
TIMED_VIEWS = 32


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line; None for options not given."""

    networks: Sequence[Path]
    """Files."""
    data: str
    metrics: tuple[Metric, ...]
    features: str = "random"
    weights: str | None = None
    gpus: int | None = None
    procs: int = 1
    batch: int | None = None
    seed: int = 0
    out: str = "out/metrics"


@dataclass(frozen=True)
class Job:
    """What each process needs to know."""

    request: Request
    networks: tuple[tuple[str, Path], ...]
    """Labels and snapshots."""


def calc_metrics(request: Request, dataset: PatchDataset, *, dry_run: bool = False) -> None:
    """Measure, print and write the report; with ``dry_run`` only estimate the cost of each measure.

    Args:
        request: The command line.
        dataset: Its ``data``.
        dry_run: Measure nothing.

    Raises:
        UserError: something given is missing, damaged or does not fit; raised before anything is measured.
    """
    devices = choose_devices(request.gpus, request.procs)
    snapshots = [load_snapshot(path) for path in request.networks]
    dataset.check_headers()
    evaluation = _evaluation(request, dataset, Process(devices[0]), digest=None)
    for snapshot in snapshots:
        evaluation.check(snapshot.generator)
    job = Job(request, tuple(zip(labels_of(snapshots), (s.path for s in snapshots), strict=True)))
    if dry_run:
        cached = _evaluation(request, dataset, Process(devices[0]), digest=content_digest(request.data))
        _print_cost(job, cached, snapshots[0].generator, devices)
        return
    distributed.run(_work, devices, job)


def labels_of(snapshots: Sequence[Snapshot]) -> list[str]:
    """Short names, all different: thousands of images, with the run's name where there are several runs."""
    several = len({snapshot.path.resolve().parent for snapshot in snapshots}) > 1
    labels = []
    for snapshot in snapshots:
        kimg = snapshot.kimg
        short = snapshot.path.stem if kimg is None else f"{kimg:g} kimg"
        labels.append(f"{snapshot.path.resolve().parent.name} {short}" if several else short)
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({snapshot.path})" for label, snapshot in zip(labels, snapshots, strict=True)]
    return labels


def training_of(snapshot: Snapshot) -> str:
    """How long, on what data and with which preset a network was trained, as far as its file and its run's folder say."""
    info = snapshot.info
    kimg, data, patches, preset = *map(info.get, ("kimg", "data", "patches")), preset_of(snapshot.path.resolve().parent)
    length = f"{kimg:g} kimg" if isinstance(kimg, int | float) else "unknown length"
    on = f"on {data}" if isinstance(data, str) else "on unknown data"
    of = f" ({patches:,} patches)" if isinstance(patches, int) else ""
    return f"{length} {on}{of}{'' if preset is None else f', preset {preset}'}"


def _evaluation(request: Request, dataset: PatchDataset, process: Process, digest: str | None) -> Evaluation:
    weights = None if request.weights is None else Path(request.weights)
    features = load_features(request.features, dataset.resolution, process.device, weights)
    return Evaluation(
        request.metrics,
        dataset,
        features,
        process,
        seed=request.seed,
        batch=request.batch,
        digest=digest,
        pictures=PICTURES,
    )


def _work(process: Process, job: Job) -> None:
    """One of the processes that share the work; the first one prints and writes."""
    request = job.request
    dataset = PatchDataset(request.data)
    digest = from_first(process, lambda: content_digest(request.data))
    evaluation = _evaluation(request, dataset, process, digest)
    quiet = not process.is_first
    reals = from_first(process, evaluation.reals_to_prepare)
    with progress_bar(total=reals, unit="patch", desc="real patches", disable=quiet or not reals) as bar:
        evaluation.prepare(bar.update)
    measured = []
    for label, path in job.networks:
        snapshot = load_snapshot(path)
        start = time.perf_counter()
        with progress_bar(total=evaluation.total_views(), unit="view", desc=label, disable=quiet) as bar:
            results, patches = evaluation.measure(snapshot.generator.to(process.device), bar.update)
        if process.is_first:
            seconds = time.perf_counter() - start
            kimg = snapshot.kimg
            pictured = {
                octave: Patches({}, kept.bank[:PICTURES].copy(), kept.images[:PICTURES].copy())
                for octave, kept in patches.items()
                if octave is not None
            }
            measured.append(
                Measured(
                    label,
                    path,
                    snapshot.digest,
                    kimg,
                    snapshot.info.get("data"),
                    training_of(snapshot),
                    results,
                    pictured,
                    seconds,
                )
            )
            print("\n".join(table_lines(measured[-1], request.metrics)), flush=True)
    if process.is_first:
        if (remark := trained_apart(measured)) is not None:
            print(remark)
        print(write_report(Path(request.out), measured, evaluation))


def _print_cost(job: Job, evaluation: Evaluation, generator: Generator, devices: Sequence[torch.device]) -> None:
    """Print the cost of each measure and of all together, extrapolated from a few views timed here and now."""
    dataset, reals = evaluation.dataset, evaluation.reals
    assert reals is not None
    views_sec, features_sec, reals_sec = _timed(evaluation, generator.to(devices[0]), reals.features)
    together = len(devices) if devices[0].type == "cuda" else 1  # processes on a CPU share its cores
    print(f"Data      {dataset.path}: {len(dataset):,} patches")
    print(f"Features  {reals.features.identity}, {reals.features.dimension} numbers a patch")
    print(f"Networks  {', '.join(label for label, _ in job.networks)}")
    print(f"Devices   {len(devices)} x {devices[0].type}; one view {1000 * views_sec:.3g} ms, its features")
    print(f"          {1000 * features_sec:.3g} ms, those of a real patch with reading it {1000 * reals_sec:.3g} ms")
    print(f"{'measure':<20}{'views':>10}{'real patches':>14}{'a network':>12}{'first time':>12}")

    def row(name: str, views: int, real: int, featured: int) -> None:
        seconds = (views * views_sec + featured * features_sec) / together
        first = real * reals_sec / together
        print(f"{name:<20}{views:>10,}{real:>14,}{_duration(seconds):>12}{'+ ' + _duration(first):>12}")

    counts = dataset.counts()
    for metric in job.request.metrics:
        views = metric.kind.views(metric.count, dataset.octaves)
        needs_features = bool(metric.kind.needs & {"moments", "bank"})
        every = len(dataset) if "moments" in metric.kind.needs else 0
        taken = [len(dataset)] if metric.kind.per == "mixture" else counts.tolist()
        some = sum(min(int(count), metric.count) for count in taken) if "bank" in metric.kind.needs else 0
        row(metric.name, views, max(every, some), views if needs_features else 0)
    featured = sum(max([pool.bank, *pool.moments]) for pool in evaluation.pools)
    row("together", evaluation.total_views(), evaluation.reals_to_prepare(), featured)
    print(
        f"Together: measures share patches, and the report's pictures take {PICTURES} of each octave. Features of real "
        "patches are kept for the next time. Comparing comes on top: seconds, but minutes for 50,000 patches."
    )


def _timed(evaluation: Evaluation, generator: Generator, features: Features) -> tuple[float, float, float]:
    """Seconds of a view, of its features, and of a real patch with its features."""
    dataset = evaluation.dataset
    count = min(evaluation.batch, TIMED_VIEWS)
    z, transform = patch_views(0, "timing", range(count), dataset.labels, generator.config.z_dim)
    with torch.no_grad(), float32_products():
        times = []
        for _ in range(2):  # the first is a warm-up
            marks = [time.perf_counter()]
            made = quantised(generator(z.to(features.device), transform)).cpu()
            marks.append(time.perf_counter())
            features(made)
            marks.append(time.perf_counter())
            real = np.stack([dataset[i % len(dataset)][0] for i in range(count)])
            features(torch.from_numpy(real))
            marks.append(time.perf_counter())
            times = [float(d) / count for d in np.diff(marks)]
    return times[0], times[1], times[2]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{math.ceil(seconds / 60)} min"
