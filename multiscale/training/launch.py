"""From the command line to a run: choose and print devices, preset, config and folder, then start the processes."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.machine import available_cores
from dnnlib.names import typed_path
from dnnlib.signals import Ended
from multiscale.config import RunConfig, build, check_keys, load_preset, merge, parse_assignment
from multiscale.data.patches import PatchDataset
from multiscale.data.sampling import patches_by_octave
from multiscale.runs.folder import held, holds_run, load_settings, write_beside
from multiscale.runs.headers import PATTERN as SNAPSHOTS
from multiscale.runs.headers import written_last
from multiscale.runs.migrations import measured_by_name
from multiscale.runs.remote import existing_path
from multiscale.runs.states import PATTERN as STATES
from multiscale.runs.states import identity_of, load_newest_state, load_state, states_of
from multiscale.training.estimate import (
    chooses_replays,
    describe_run,
    describe_settings,
    device_capacity,
    fit_batch_gpu,
)
from multiscale.training.evaluation import snapshot_evaluation
from multiscale.training.perceptual import SMALLEST_SIDE_PX, load_lpips, missing_files
from multiscale.training.resume import Changes, check_resumed, choose_folder, described, report_end, report_start
from multiscale.training.trainer import Trainer
from multiscale.training.transfer import Learned, load_learned
from torch_utils import distributed
from torch_utils.devices import choose_devices
from torch_utils.weights import MissingWeights

LPIPS_MIN_RESOLUTION = 2 ** math.ceil(math.log2(SMALLEST_SIDE_PX))
"""Smallest patch side, a power of two, that survives AlexNet's pooling."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line; None for options not given."""

    data: str
    gpus: int | None = None
    config: str | None = None
    assignments: Sequence[str] = ()
    outdir: str | None = None
    kimg: float | None = None
    batch: int | None = None
    batch_gpu: int | None = None
    seed: int | None = None
    procs: int = 1
    resume: str | None = None
    transfer: str | None = None
    fresh: bool = False


LEARNED = (
    f"the folder of a run (its newest {STATES}), a {STATES} or {SNAPSHOTS} file, a .pkl of the published code, "
    "https://... or hf://owner/repo"
)
"""What ``--transfer`` takes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each process of a run needs to know."""

    config: RunConfig
    folder: Path
    batch_gpu: int
    """Images that a process computes at a time; by default as many as its memory holds."""
    resumed: Path | None
    """State of another run to start from."""
    transfer: Path | None
    """State or snapshot whose networks to start from."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved request, ready to start."""

    job: Job
    preset: str
    dataset: PatchDataset
    devices: list[torch.device]
    """Of all processes."""
    goes_on: bool
    """Whether the folder holds a run to resume."""
    changes: Changes
    """Settings changed since the run's last start, or since the run whose state it starts from."""
    missing: list[MissingWeights]
    """Weight files without which it cannot start."""

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return self.job.config

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.job.folder


def train(request: Request, *, dry_run: bool = False) -> None:
    """Resolve the request, print it, and (unless ``dry_run``) start or resume training.

    Under torchrun this is one process of several, on one or more machines: the first one resolves and prints.

    Raises:
        UserError: something is wrong with the data, the config, the devices or the folder; the message says what to do.
        Ended: a signal stopped the run before its end; its state is saved.
    """
    if not distributed.under_torchrun():
        with _prepared(request, None, dry_run) as (run, job):
            if job is not None:
                stopped_by = distributed.run(_work, run.devices, job, run.dataset)
                report_end(job.folder, job.config)
                if stopped_by:
                    raise Ended(stopped_by)
        return
    with distributed.joined(on_cpu=request.gpus == 0) as process, contextlib.ExitStack() as stack:
        runs = []

        def prepare() -> Job | None:
            if request.procs > 1 or request.gpus:
                raise UserError(
                    "torchrun says how many processes there are: leave out --procs and --gpus (--gpus 0 means CPUs)."
                )
            devices = [process.device] * process.world_size
            run, job = stack.enter_context(_prepared(request, devices, dry_run))
            runs.append(run)
            return job

        job = distributed.from_first(process, prepare)
        if job is not None:
            stopped_by = _work(process, job, runs[0].dataset if runs else PatchDataset(request.data))
            if process.is_first:
                report_end(job.folder, job.config)
            # The others wait here until the first has written all: torchrun ends all once one has ended.
            if distributed.largest(stopped_by, process):
                raise Ended(stopped_by)


@contextlib.contextmanager
def _prepared(request: Request, devices: list[torch.device] | None, dry_run: bool) -> Iterator[tuple[Run, Job | None]]:
    """Hold the run's folder, prepared, for the duration of the block; no job if there is nothing to train."""
    run = resolve(request, devices)
    if run.missing and not dry_run:
        raise run.missing[0]
    plan = describe_run(
        run.config,
        preset=run.preset,
        data=run.dataset,
        devices=run.devices,
        folder=run.folder,
        batch_gpu=run.job.batch_gpu,
        processes_here=processes_here(run.devices),
    )
    if dry_run:
        print(describe_settings(run.config))  # first: what is longer than a screen scrolls the rest off it
    print(plan)
    for remark in remarks(run.config):
        print(remark)
    if dry_run:
        for lack in run.missing:
            print(f"Missing before this run can start: {lack}")
        yield run, None
        return
    with held(run.folder):
        if holds_run(run.folder) and not run.goes_on:
            raise UserError(f"{run.folder} has just been taken by another run; start this one again.")
        start = report_start(run.folder, run.job.resumed, run.config)
        if start >= run.config.training.kimg * 1000:
            yield run, None  # its files go on saying how it was trained
            return
        if run.changes:
            print("Changed settings: " + "; ".join(described(run.changes)))
        if run.devices[0].type == "cpu" and (advice := busy_advice()) is not None:
            print(advice)
        source = None if run.goes_on else run.job.resumed or run.job.transfer
        write_beside(
            run.folder,
            run.config,
            run.dataset,
            preset=run.preset,
            devices=run.devices,
            images=start,
            changed=run.changes,
            begins_with=None if source is None else str(source),
        )
        yield run, run.job


def resolve(request: Request, devices: list[torch.device] | None = None) -> Run:
    """Choose what was not given. Later layers win: defaults, the data, preset, --config, then --set and other options.

    ``devices``: of all processes, if another program has started them; None: as requested.
    """
    devices = choose_devices(request.gpus, request.procs) if devices is None else devices
    dataset = PatchDataset(request.data)
    dataset.check_headers()
    patches_by_octave(dataset.patch_octaves, dataset.octaves)
    named, given = _given_settings(request)
    _refuse_other_data(given, dataset, "The settings say")
    preset = named or choose_preset(dataset)
    if request.resume is not None and request.transfer is not None:
        raise UserError(
            "Both --resume and --transfer were given; --resume goes on with a run, --transfer takes its networks."
        )
    source = None if request.transfer is None else existing_path(request.transfer, LEARNED)
    learned = None if source is None else _learned(source)
    if learned is not None:
        _refuse_other_data(learned.config, dataset, f"The networks of {learned.path} have")
    values = merge(
        data_layer(dataset),
        load_preset(preset),
        {} if named else _metric_layer(dataset, given),
        {} if learned is None else learned.config,
        given,
    )
    config = build(RunConfig, values, source="the run's configuration")
    missing = list(_missing_weights(config, dataset))
    stem = re.sub(r"[*?\[\]]+", "", Path(request.data).stem).strip("-") or "patches"
    if learned is not None:
        learned.check(config)
    is_new = request.fresh or request.resume is not None
    folder, changes = choose_folder(request.outdir, f"{stem}-{preset}", config, dataset, is_new=is_new, transfer=source)
    resumed = None if request.resume is None else Path(request.resume)
    if resumed is not None:
        changes = check_resumed(resumed, config, dataset)
    batch_gpu = choose_batch_gpu(config, devices)
    transfer = None if learned is None else learned.path
    return Run(
        job=Job(config=config, folder=folder, batch_gpu=batch_gpu, resumed=resumed, transfer=transfer),
        preset=preset,
        dataset=dataset,
        devices=devices,
        goes_on=holds_run(folder),
        changes=changes,
        missing=missing,
    )


def remarks(config: RunConfig) -> Iterator[str]:
    """On settings that are allowed but hardly meant: penalties that ``pairs`` does not have, and what has no effect."""
    training = config.training
    if training.adversarial == "pairs" and training.r1_gamma != training.r2_gamma:
        yield (
            f"Remark: training.adversarial=pairs is meant for equal penalties, and here training.r1_gamma is "
            f"{training.r1_gamma:g} and training.r2_gamma {training.r2_gamma:g}; give both the same with --set."
        )
    if training.augment == "none" and training.augment_p:
        yield (
            f"Remark: training.augment_p={training.augment_p:g} has no effect while training.augment is none; "
            "give --set training.augment=fixed or ada too."
        )


def busy_advice() -> str | None:
    """What to do on a machine that other programs keep busy, for a run on its CPU; None: nothing, or threads were chosen."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = available_cores()
    if load <= cores or "OMP_NUM_THREADS" in os.environ:
        return None
    return (
        f"This machine is busy (load {load:.1f} on {cores} core{'s' * (cores != 1)}): threads wait for each other there, and "
        "OMP_NUM_THREADS=1 in front of the command can make it many times faster."
    )


def processes_here(devices: list[torch.device]) -> int:
    """How many of the processes of a run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", len(devices)))


def choose_batch_gpu(config: RunConfig, devices: list[torch.device]) -> int:
    """Images that each device computes at a time: as configured, else as many as fit its memory.

    Raises:
        UserError: the devices cannot share the batch evenly, or ``batch_gpu`` does not divide the images of a device.
    """
    training, number = config.training, len(devices)
    if training.batch % number:
        raise UserError(
            f"Batch {training.batch} cannot be shared by {number} devices; give another number of them (--gpus, --procs), or a "
            f"--batch that is a multiple of {number}."
        )
    device_batch = training.batch // number
    if training.batch_gpu is None:
        return fit_batch_gpu(
            config, device_batch, device_capacity(devices[0], processes_here(devices)), devices[0].type
        )
    if device_batch % training.batch_gpu:
        divisors = [str(n) for n in range(1, device_batch + 1) if device_batch % n == 0]
        raise UserError(
            f"--batch-gpu {training.batch_gpu} does not divide the {device_batch} images of a device (batch {training.batch} "
            f"on {number} device{'s' * (number != 1)}); give one of {', '.join(divisors)}."
        )
    return training.batch_gpu


def choose_preset(dataset: PatchDataset) -> str:
    """Below 64 pixels ``demo``, below 256 ``small``; from there up to 6 octaves ``zoom64`` and for more ``zoom256``."""
    if dataset.resolution < 256:
        return "demo" if dataset.resolution < 64 else "small"
    return "zoom64" if dataset.octaves <= 6 else "zoom256"


def data_layer(dataset: PatchDataset) -> dict[str, Any]:
    """Settings that follow from the data: image size and channels, octaves, and the number of feature bins.

    Bin b reaches 2^(o b) N/4 cycles across the world, o = 3 octaves; there are as many bins as leave a view at the deepest
    zoom 4 cycles (2 for 6 octaves of 256 pixels, 3 for 8, as published), at most 4.
    """
    missing_octaves = dataset.octaves - math.log2(dataset.resolution / 16)
    return {
        "generator": {
            "img_resolution": dataset.resolution,
            "img_channels": dataset.num_channels,
            "octaves": dataset.octaves,
            "n_bins": min(1 + math.ceil(max(missing_octaves, 0) / 3), 4),
        }
    }


def _given_settings(request: Request) -> tuple[str | None, dict[str, Any]]:
    """The preset that was named, if any, and all given settings; an error names the source it is in."""
    preset: str | None = None
    layers: list[tuple[str, dict[str, Any]]] = []
    if request.config is not None:
        if Path(request.config).is_file() or Path(request.config).suffix:
            layers.append((request.config, load_settings(request.config)))
        else:
            load_preset(request.config)
            preset = request.config
    layers += [(f"--set {text}", parse_assignment(text)) for text in request.assignments]
    given: dict[str, Any] = {}
    own = {k: v for k in ("kimg", "batch", "batch_gpu", "seed") if (v := getattr(request, k)) is not None}
    for source, values in layers:
        if isinstance(before := values.get("training"), Mapping) and "swd_patches" in before:
            training = measured_by_name(before, given.get("training", {}).get("metrics"))
            if training != before:
                print(f"In {source}: training.swd_patches is training.metrics={training['metrics']} now.")
            values["training"] = training
        check_keys(RunConfig, values, source)
        if source != request.config and (twice := [k for k in own if k in values.get("training", {})]):
            option = f"--{twice[0].replace('_', '-')} {own[twice[0]]}"
            raise UserError(f"{option} and {source} are the same setting; give one of them.")
        given = merge(given, values)
    return preset, merge(given, {"training": own} if own else {})


def _metric_layer(dataset: PatchDataset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fall back to L1, where no metric was chosen, if LPIPS cannot run: no weight files, or patches too small."""
    folder = given.get("training", {}).get("lpips_folder")
    if dataset.resolution >= LPIPS_MIN_RESOLUTION and not missing_files(None if folder is None else typed_path(folder)):
        return {}
    return {"training": {"consistency_metric": "l1"}}


def _missing_weights(config: RunConfig, dataset: PatchDataset) -> Iterator[MissingWeights]:
    """Weight files of LPIPS and of the measures that are not there; UserError if what is there does not fit."""
    training = config.training
    if training.consistency_weight and training.consistency_metric == "l1+lpips":
        if config.generator.img_resolution < LPIPS_MIN_RESOLUTION:
            raise UserError(
                f"LPIPS needs images of {LPIPS_MIN_RESOLUTION} pixels or more and the patches have "
                f"{config.generator.img_resolution}; give --set training.consistency_metric=l1."
            )
        try:
            load_lpips(None if training.lpips_folder is None else typed_path(training.lpips_folder))
        except MissingWeights as error:
            yield error
    try:
        snapshot_evaluation(training, dataset, distributed.Process(torch.device("cpu")), digest=None)
    except MissingWeights as error:
        yield error


def _learned(path: Path) -> Learned:
    if path.is_dir():
        own = states_of(path)
        state = own[-1] if own else written_last(path, states_of)
        if state is None:
            raise UserError(
                f"The folder {path} holds no training state ({STATES}), nor does a folder in it; give {LEARNED}."
            )
        path = state
    return load_learned(path)


def _refuse_other_data(given: Mapping[str, Any], dataset: PatchDataset, whose: str) -> None:
    """A config that contradicts the data is a mistake, not a preference."""
    asked = given.get("generator")
    for key, actual in data_layer(dataset)["generator"].items():
        if key != "n_bins" and isinstance(asked, Mapping) and key in asked and asked[key] != actual:
            raise UserError(
                f"{whose} generator.{key}={asked[key]} but the patches of {dataset.path} have {actual}; "
                "give what fits together."
            )


def _work(process: distributed.Process, job: Job, dataset: PatchDataset) -> int:
    """One process of the run: resume its newest state, or start, perhaps from another run; as :meth:`Trainer.run`."""
    torch.backends.cudnn.benchmark = True  # all batches have one size
    device_batch = job.config.training.batch // process.world_size
    replay = chooses_replays(job.config, job.batch_gpu, device_batch, process.device)
    trainer = Trainer(job.config, dataset, job.folder, process, job.batch_gpu, replay=replay)
    state = load_newest_state(job.folder)
    if state is None and job.resumed is not None:
        state = load_state(job.resumed)
    if state is None and job.transfer is not None:
        learned = load_learned(job.transfer)
        trainer.begin_with(learned.weights_for(job.config))
        if process.rank == 0:
            print(learned, flush=True)
    if state is not None:
        trainer.load_state_dict(state)
    shared = "--data and the run's folder must be the same files on all machines, on a disk that they share"
    facts = {
        "data set": identity_of(dataset),
        "point to resume from": trainer.images_seen,
        "PyTorch": torch.__version__,
    }
    advice = dict.fromkeys(facts, shared) | {"PyTorch": "install one version on all machines"}
    distributed.check_alike(process, facts, advice)
    return trainer.run()
