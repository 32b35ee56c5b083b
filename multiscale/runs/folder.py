"""A run's folder: whether it holds a run, who may write to it, and the facts kept beside the weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from dnnlib.errors import UserError, cannot_write
from dnnlib.files import atomic_write
from dnnlib.machine import processor
from dnnlib.reading import from_json, parsed, read_text
from multiscale.config import RunConfig, load_yaml, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.runs.headers import snapshots_of
from multiscale.runs.history import git_commit, write_start
from multiscale.runs.journal import read_stats
from multiscale.runs.migrations import FORMAT_VERSION, check_version, read_stored
from multiscale.runs.states import identity_of, states_of
from torch_utils.distributed import under_torchrun

CONFIG, ENVIRONMENT, LOCK = "config.yaml", "environment.json", ".lock"
FIRST_SNAPSHOT = "generator-000000000.safetensors"
LOOK_SECONDS = 1.0
"""How long a lock is waited for: whoever looks whether a process trains in a folder holds it for a moment."""


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in the folder: its first state is complete, or later files exist (and states were removed).

    A run that ended before its first state leaves no run: the next one may start there.
    """
    if states_of(folder) or any(path.name != FIRST_SNAPSHOT for path in snapshots_of(folder)):
        return True
    return any(line["kimg"] > 0 for line in read_stats(folder))


def remove_remains(folder: Path) -> None:
    """Remove the files of a run that ended before its first state; the next run writes its own."""
    for name in (FIRST_SNAPSHOT, "samples-000000000.png", "reals.png"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def is_held(folder: Path) -> bool:
    """Whether a process is training in the folder now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False, fallback_to_soft=False):
            return False
    except (Timeout, OSError):
        return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create the folder and lock it against other trainings; the lock is released however the process ends.

    Temporary files left by killed processes are removed.

    Raises:
        UserError: another process trains there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=LOOK_SECONDS, fallback_to_soft=False)
        lock.acquire()
    except Timeout as error:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks != "1" and not under_torchrun():
            raise UserError(
                f"Another process trains in {folder} now, perhaps another of the {tasks} tasks that srun began, which know "
                "nothing of each other: give srun one task a node, and let it run torchrun ... train.py."
            ) from error
        raise UserError(
            f"Another process trains in {folder} now; wait for it or stop it, or train another run in a folder of its own "
            "(--outdir)."
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        for left in folder.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()
        yield
    finally:
        lock.release()


def launcher() -> str:
    """How this process was launched: ``torchrun`` with options unknown to it, ``python``, or, where that is another one (its
    environment has not been activated), the path of this interpreter."""
    if under_torchrun():
        return "torchrun ..."
    found, own = shutil.which("python"), Path(sys.executable)
    if found is not None and Path(found).absolute().parent == own.parent:
        return "python"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def write_beside(
    folder: Path,
    config: RunConfig,
    dataset: PatchDataset,
    *,
    preset: str,
    devices: Sequence[torch.device],
    images: int = 0,
    changed: Mapping[str, Any] | None = None,
    begins_with: str | None = None,
) -> None:
    """Write the resolved config, and the command and environment of its start, into a run's folder.

    Config and environment are those of the last start; before they are replaced ``history.jsonl`` gets a line.

    Args:
        folder: Of the run.
        config: Resolved.
        dataset: The patches.
        preset: Its name.
        devices: Of all processes.
        images: Seen so far.
        changed, begins_with: As for :func:`multiscale.runs.history.write_start`.

    Raises:
        UserError: a file cannot be written.
    """
    packages = ("torch", "numpy", "scipy", "pillow", "safetensors", "pydantic")
    program = {
        "command": sys.argv,
        "launcher": launcher(),
        "program": sys.modules["multiscale"].__version__,  # not imported: it is above
        "commit": git_commit(),
        "devices": [torch.cuda.get_device_name(d) if d.type == "cuda" else d.type for d in devices],
        "cpu": processor(),
    }
    environment = {
        "format_version": FORMAT_VERSION,
        **program,
        **data_facts(dataset),
        "preset": preset,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    facts = {**program, "data": str(dataset.path), "torch": torch.__version__}
    write_start(folder, kimg=images / 1000, changed=changed or {}, begins_with=begins_with, facts=facts)
    with atomic_write(folder / ENVIRONMENT, "w") as stream:
        json.dump(environment, stream, indent=1)
    with atomic_write(folder / CONFIG, "w") as stream:
        yaml.safe_dump(to_dict(config), stream, sort_keys=False)


def data_facts(dataset: PatchDataset) -> dict[str, Any]:
    """The path of the patches, and what identifies them."""
    return {"data": str(dataset.path), **identity_of(dataset)}


def began_with(folder: Path) -> tuple[RunConfig, dict[str, Any]] | None:
    """Config and data (as :func:`data_facts`) that a run began with; None if the folder does not say."""
    try:
        config, environment = _read(folder)
        facts = {key: environment[key] for key in ("data", "patches", "labels_crc32")}
        return config, facts | {key: environment[key] for key in ("content_crc32",) if key in environment}
    except (UserError, OSError, KeyError, TypeError):
        return None


def preset_of(folder: Path) -> str | None:
    """The preset of the run in a folder; None if the folder does not say."""
    try:
        preset = _environment(folder).get("preset")
    except (UserError, OSError):
        return None
    return preset if isinstance(preset, str) else None


def load_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file: differences, or the complete settings if it is the ``config.yaml`` of a run's folder.

    Raises:
        UserError: the file is missing or not YAML, or belongs to a run of a newer format or with unknown settings.
    """
    path = Path(path)
    if path.name != CONFIG or not path.with_name(ENVIRONMENT).exists():
        return load_yaml(path)
    try:
        version = _environment(path.parent).get("format_version", 1)
    except (UserError, OSError, AttributeError):  # how it was written is not known any more
        return load_yaml(path)
    return to_dict(_stored(path.parent, version))


def _environment(folder: Path) -> dict[str, Any]:
    """The facts beside a run's settings; a UserError for whatever is wrong with them."""
    text = read_text(folder / ENVIRONMENT, "the facts")
    return parsed(lambda: dict(from_json(text)), f"{folder / ENVIRONMENT} is damaged: {{reason}}.")


def _stored(folder: Path, version: int) -> RunConfig:
    """The settings of a run's folder written in format ``version``, in today's terms."""
    check_version(version, kind="run", source=str(folder))
    contents = {"config": load_yaml(folder / CONFIG)}
    return read_stored(contents, version=version, source=str(folder / CONFIG))[0]


def _read(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The settings of a run's folder and its environment."""
    environment = _environment(folder)
    return _stored(folder, environment.get("format_version", 1)), environment
