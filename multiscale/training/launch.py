"""From what the user typed to a run: devices, preset, resolved config and folder, chosen and printed; then the processes."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.config import RunConfig, build, check_keys, load_preset, load_yaml, merge, parse_assignment, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.data.sampling import patches_by_octave
from multiscale.training.checkpoint import snapshots_of
from multiscale.training.estimate import describe_run, describe_settings
from multiscale.training.perceptual import SMALLEST_SIDE_PX, load_lpips, missing_files
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved request, ready to start."""

    config: RunConfig
    preset: str
    dataset: PatchDataset
    devices: list[torch.device]
    folder: Path


def train(request: Request, *, dry_run: bool = False) -> Path:
    """Resolve the request, print it, and (unless ``dry_run``) train; returns the run's folder.

    Raises:
        UserError: the data, the config or the devices are not as they must be; the message says what to do.
    """
    run = resolve(request)
    print(describe_run(run.config, preset=run.preset, data=run.dataset, devices=run.devices, folder=run.folder))
    if dry_run:
        print(describe_settings(run.config))
        return run.folder
    _claim(run.folder)
    _write_beside(run)
    distributed.run(_work, run.devices, run.config, run.dataset, run.folder)
    return run.folder


def resolve(request: Request) -> Run:
    """Choose what was not given. Later layers win: defaults, what the data are, preset, --config, --set, own options."""
    dataset = PatchDataset(request.data)
    dataset.check_headers()
    patches_by_octave(dataset.patch_octaves, dataset.octaves)
    devices = choose_devices(request.gpus)
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
    folder = choose_folder(request.outdir, f"{Path(request.data).stem}-{preset}")
    return Run(config=config, preset=preset, dataset=dataset, devices=devices, folder=folder)


def choose_devices(gpus: int | None) -> list[torch.device]:
    """Devices to train on: ``gpus`` CUDA devices, the CPU for 0; None: one CUDA device, else MPS, else the CPU.

    Raises:
        UserError: the machine has fewer CUDA devices.
    """
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


def choose_folder(outdir: str | None, name: str) -> Path:
    """The run's folder: ``outdir`` itself if given, else a new numbered one under ``runs/``.

    Raises:
        UserError: ``outdir`` already holds a run, or is a file.
    """
    if outdir is not None:
        folder = Path(outdir)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--outdir {folder} is a file; give a folder.")
        if (folder / "config.yaml").exists() or snapshots_of(folder):
            raise UserError(f"--outdir {folder} already holds a run; give another folder, or move that one away.")
        return folder
    runs = Path("runs")
    numbers = [int(m[1]) for path in runs.glob("*") if (m := re.match(r"(\d{5})-", path.name))]
    return runs / f"{max(numbers, default=-1) + 1:05d}-{name}"


def _claim(folder: Path) -> None:
    """Make the run's folder ours: of two runs that start at once in one folder, the second is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch(exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{folder} has just been taken by another run; start this one again.") from error
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}.") from error


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


def _write_beside(run: Run) -> None:
    """Write the resolved config and the versions into the run's folder."""
    with atomic_write(run.folder / "config.yaml", "w") as stream:
        yaml.safe_dump(to_dict(run.config), stream, sort_keys=False)
    packages = ("torch", "numpy", "scipy", "pillow", "safetensors", "pydantic")
    environment = {
        "command": sys.argv,
        "data": str(run.dataset.path),
        "patches": len(run.dataset),
        "preset": run.preset,
        "devices": [_device_name(device) for device in run.devices],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    with atomic_write(run.folder / "environment.json", "w") as stream:
        json.dump(environment, stream, indent=1)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _work(process: distributed.Process, config: RunConfig, dataset: PatchDataset, folder: Path) -> None:
    """One process of the run."""
    Trainer(config, dataset, folder, process).run()
