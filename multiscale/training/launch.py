"""From what the user typed to a run: devices, preset, resolved config and folder, chosen and printed; then the processes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from multiscale.config import RunConfig, build, check_keys, load_preset, load_yaml, merge, parse_assignment
from multiscale.data.patches import PatchDataset
from multiscale.data.sampling import patches_by_octave
from multiscale.training.estimate import describe_run, describe_settings
from multiscale.training.folder import (
    check_resumed,
    choose_folder,
    held,
    holds_run,
    report_end,
    report_start,
    write_beside,
)
from multiscale.training.perceptual import SMALLEST_SIDE_PX, load_lpips, missing_files
from multiscale.training.state import load_newest_state, load_state
from multiscale.training.trainer import Trainer
from torch_utils import distributed
from torch_utils.devices import default_device

LPIPS_MIN_RESOLUTION = 2 ** math.ceil(math.log2(SMALLEST_SIDE_PX))
"""Smallest patch side, a power of two, that AlexNet's pooling leaves something of."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user typed; None where nothing was."""

    data: str
    gpus: int | None = None
    config: str | None = None
    assignments: Sequence[str] = ()
    outdir: str | None = None
    kimg: float | None = None
    batch: int | None = None
    seed: int | None = None
    procs: int = 1
    resume: str | None = None
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved request, ready to start."""

    config: RunConfig
    preset: str
    dataset: PatchDataset
    devices: list[torch.device]
    folder: Path
    goes_on: bool
    """Whether there is a run in the folder, to go on with."""
    changes: list[str]
    """Settings that are not as they were when the run began."""


def train(request: Request, *, dry_run: bool = False) -> Path:
    """Resolve the request, print it, and (unless ``dry_run``) train or go on training; returns the run's folder.

    Raises:
        UserError: the data, the config, the devices or the folder are not as they must be; the message says what to do.
    """
    run = resolve(request)
    print(describe_run(run.config, preset=run.preset, data=run.dataset, devices=run.devices, folder=run.folder))
    if dry_run:
        print(describe_settings(run.config))
        return run.folder
    with held(run.folder):
        if holds_run(run.folder) and not run.goes_on:
            raise UserError(f"{run.folder} has just been taken by another run; start this one again.")
        state = None if request.resume is None else Path(request.resume)
        if run.changes:
            print("Changed since the run began: " + "; ".join(run.changes))
        write_beside(run)
        start = report_start(run.folder, state, run.config)
        if start < run.config.training.kimg * 1000:
            distributed.run(_work, run.devices, run.config, run.dataset, run.folder, state)
            report_end(run.folder, run.config)
    return run.folder


def resolve(request: Request) -> Run:
    """Choose what was not given. Later layers win: defaults, what the data are, preset, --config, --set, own options."""
    dataset = PatchDataset(request.data)
    dataset.check_headers()
    patches_by_octave(dataset.patch_octaves, dataset.octaves)
    devices = choose_devices(request.gpus, request.procs)
    named, given = _given_settings(request)
    _refuse_other_data(given, dataset)
    preset = named or choose_preset(dataset)
    values = merge(data_layer(dataset), load_preset(preset), {} if named else _metric_layer(dataset, given), given)
    config = build(RunConfig, values, source="the run's configuration")
    _check_perceptual(config)
    if config.training.batch % len(devices):
        raise UserError(
            f"Batch {config.training.batch} cannot be shared by {len(devices)} devices; give a multiple of {len(devices)}."
        )
    stem = re.sub(r"[*?\[\]]+", "", Path(request.data).stem).strip("-") or "patches"
    is_new = request.fresh or request.resume is not None
    folder, changes = choose_folder(request.outdir, f"{stem}-{preset}", config, dataset, is_new=is_new)
    if request.resume is not None:
        changes = check_resumed(Path(request.resume), config, dataset)
    return Run(
        config=config,
        preset=preset,
        dataset=dataset,
        devices=devices,
        folder=folder,
        goes_on=holds_run(folder),
        changes=changes,
    )


def choose_devices(gpus: int | None, procs: int = 1) -> list[torch.device]:
    """Devices to train on: ``gpus`` CUDA devices, the CPU for 0; None: one CUDA device, else MPS, else the CPU.

    ``procs`` processes share the CPU.

    Raises:
        UserError: the machine has fewer CUDA devices, or several processes are asked for but not the CPU.
    """
    if procs > 1:
        if gpus != 0:
            raise UserError(f"--procs {procs} is for the CPU; give --gpus 0 with it, or --gpus {procs} instead.")
        return [torch.device("cpu")] * procs
    if gpus is None:
        return [default_device()]
    available = torch.cuda.device_count()
    if gpus == 0:
        return [torch.device("cpu")]
    if gpus > available:
        raise UserError(
            f"--gpus {gpus} was given but this machine has {available} CUDA device{'s' * (available != 1)}; "
            f"give --gpus {available}{'' if available == 0 else ' or fewer'}{' to train on the CPU' if available == 0 else ''}."
        )
    return [torch.device("cuda", i) for i in range(gpus)]


def choose_preset(dataset: PatchDataset) -> str:
    """Small patches train with ``demo``; from 128 pixels on, up to 6 octaves with ``moon`` and more with ``spain``."""
    if dataset.resolution < 128:
        return "demo"
    return "moon" if dataset.octaves <= 6 else "spain"


def data_layer(dataset: PatchDataset) -> dict[str, Any]:
    """What the data decide: image size and channels, octaves, and the bins of Fourier features that these need.

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
    """The preset that was named, if any, and all settings that were given; each source's own mistakes are named as its."""
    preset, layers = None, []
    if request.config is not None:
        if Path(request.config).is_file() or Path(request.config).suffix:
            layers.append((request.config, load_yaml(request.config)))
        else:
            load_preset(request.config)
            preset = request.config
    layers += [(f"--set {text}", parse_assignment(text)) for text in request.assignments]
    for source, values in layers:
        check_keys(RunConfig, values, source)
    own = {k: v for k in ("kimg", "batch", "seed") if (v := getattr(request, k)) is not None}
    return preset, merge(*(values for _, values in layers), {"training": own} if own else {})


def _metric_layer(dataset: PatchDataset, given: Mapping[str, Any]) -> dict[str, Any]:
    """A run whose metric nobody chose does with L1 where LPIPS cannot run: no weight files, or patches too small."""
    folder = given.get("training", {}).get("lpips_folder")
    if dataset.resolution >= LPIPS_MIN_RESOLUTION and not missing_files(None if folder is None else Path(folder)):
        return {}
    return {"training": {"consistency_metric": "l1"}}


def _check_perceptual(config: RunConfig) -> None:
    """Refuse a run that would need LPIPS and has no weights for it, before anything is written."""
    training = config.training
    if training.consistency_weight and training.consistency_metric == "l1+lpips":
        if config.generator.img_resolution < LPIPS_MIN_RESOLUTION:
            raise UserError(
                f"LPIPS needs images of {LPIPS_MIN_RESOLUTION} pixels or more and the patches have "
                f"{config.generator.img_resolution}; give --set training.consistency_metric=l1."
            )
        load_lpips(None if training.lpips_folder is None else Path(training.lpips_folder))


def _refuse_other_data(given: Mapping[str, Any], dataset: PatchDataset) -> None:
    """A config that asks for other images than the data hold is a mistake, not a preference."""
    asked = given.get("generator")
    for key, actual in data_layer(dataset)["generator"].items():
        if key != "n_bins" and isinstance(asked, Mapping) and key in asked and asked[key] != actual:
            raise UserError(
                f"generator.{key}={asked[key]} was given but the patches of {dataset.path} have {actual}; "
                "leave the key out or give other data."
            )


def _work(
    process: distributed.Process, config: RunConfig, dataset: PatchDataset, folder: Path, resumed: Path | None
) -> None:
    """One process of the run, from its newest state, or at its start from ``resumed``."""
    trainer = Trainer(config, dataset, folder, process)
    state = load_newest_state(folder)
    if state is None and resumed is not None:
        state = load_state(resumed)
    if state is not None:
        trainer.load_state_dict(state)
    trainer.run()
