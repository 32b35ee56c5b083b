"""Resuming runs: which folder a command refers to, what may change there, and where the run stands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from dnnlib.errors import UserError
from dnnlib.names import folder_named
from multiscale.config import RunConfig, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.runs.folder import began_with, holds_run, is_held, launcher
from multiscale.runs.history import read_starts
from multiscale.runs.states import FIELDS, images_of, is_same_data, load_newest_state, load_state, states_of
from multiscale.training.status import command_to_resume

FIXED = re.compile(r"(generator|discriminator)\.(?!num_half_res|half_dtype)|training\.batch:")
"""Settings that a run cannot change: those that shape the networks, and the batch in which its steps count."""

Changes: TypeAlias = dict[str, tuple[Any, Any]]
"""Old and new value of settings, by ``section.key``."""

COMMAND = "MULTISCALE_COMMAND"
"""Environment variable: the command that the user typed, if that is another one than this program's (``make demo``)."""


def choose_folder(
    outdir: str | None,
    name: str,
    config: RunConfig,
    dataset: PatchDataset,
    *,
    is_new: bool,
    transfer: Path | None = None,
) -> tuple[Path, Changes]:
    """The folder that a command refers to, and which settings of the run there it changes.

    ``outdir`` if given, whose run is resumed if it holds one; else the newest run under ``runs/`` with the same settings,
    data (wherever these lie) and beginning; else a folder whose run was abandoned before it began; else a new numbered one.

    Args:
        outdir: As the user typed it.
        name: Of a new run, without its number.
        config: Resolved.
        dataset: The patches.
        is_new: Another run is wanted.
        transfer: File or folder of the networks that it begins with; None: untrained ones.

    Raises:
        UserError: ``outdir`` is a file, or its run has another model or other data, or it holds a run despite ``is_new``, or
            one that did not begin with ``transfer``.
    """
    if outdir is not None:
        folder = folder_named("--outdir", outdir)
        if not holds_run(folder):
            return folder, {}
        if is_new:
            raise UserError(
                f"--outdir {folder} already holds a run; give another folder, or leave out --fresh or --resume."
            )
        began = began_with(folder)
        if began is None and (state := load_newest_state(folder)) is not None:
            began = state["config"], state["data"]
        if began is None or not states_of(folder):
            raise UserError(
                f"--outdir {folder} holds a run without a training state to resume from; give another folder."
            )
        _check_data(began[1], dataset, str(folder))
        if transfer is not None and not _began_from(folder, transfer):
            raise UserError(
                f"The run in {folder} did not begin with the networks of {transfer}; give another folder for one that does, "
                "or leave out --transfer to resume it."
            )
        return folder, check_changes(to_dict(began[0]), to_dict(config), f"The run in {folder}")
    runs = Path("runs")
    others: list[Path] = []
    found = sorted((path for path in runs.glob("*-*") if path.is_dir()), reverse=True)
    for folder in [] if is_new else found:
        began = began_with(folder)
        if began is None or differences(to_dict(began[0]), to_dict(config)):
            continue
        same_path = began[1]["data"] == str(dataset.path)
        if not is_same_data(began[1], dataset):
            if same_path:
                others.append(folder)
            continue
        if not same_path and "content_crc32" not in began[1]:  # an earlier version's, which knows labels only
            continue
        if not _began_from(folder, transfer):
            continue
        if states_of(folder) or not holds_run(folder):
            return folder, {}
    if others and holds_run(others[0]):
        print(
            f"The run in {others[0]} was trained on other patches, which {dataset.path} held then; this is another run."
        )
    for folder in found:  # one that was taken, and given up before a run had begun
        same_name = re.fullmatch(rf"\d{{5}}-{re.escape(name)}", folder.name)
        if same_name and not holds_run(folder) and not is_held(folder):
            return folder, {}
    numbers = [int(m[1]) for path in runs.glob("*") if (m := re.match(r"(\d{5})-", path.name))]
    return runs / f"{max(numbers, default=-1) + 1:05d}-{name}", {}


def check_resumed(path: Path, config: RunConfig, dataset: PatchDataset) -> Changes:
    """Settings that a run started from another's state changes; UserError if the model or the data do not fit."""
    state = load_state(path, needed=FIELDS)
    _check_data(state["data"], dataset, str(path))
    return check_changes(to_dict(state["config"]), to_dict(config), f"The run of {path}")


def check_changes(
    began: Mapping[str, Any],
    now: Mapping[str, Any],
    whose: str,
    advice: str = "give its settings again, or train another run (another --outdir, without --resume)",
) -> Changes:
    """The settings that changed; UserError, with the advice, if they are of the model.

    ``began`` is whole in each section that ``now`` has.
    """
    changed = differences(began, now)
    fixed = [text for text in described(changed) if FIXED.match(text)]
    if fixed:
        raise UserError(f"{whose} has another model or batch ({'; '.join(fixed)}); {advice}.")
    return changed


def described(changes: Changes) -> list[str]:
    """Each change as ``section.key: old -> new``."""
    return [f"{name}: {before} -> {after}" for name, (before, after) in changes.items()]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Settings that differ."""
    return {
        f"{section}.{key}": (old[section][key], value)
        for section, values in new.items()
        for key, value in values.items()
        if old[section][key] != value
    }


def report_start(folder: Path, resumed: Path | None, config: RunConfig) -> int:
    """Print where a run stands that goes on; returns the images that it has seen."""
    states = states_of(folder)
    source = states[-1] if states else resumed
    if source is None:
        return 0
    images = images_of(source) if states else load_state(source)["images"]
    kimg = config.training.kimg
    if states and images >= kimg * 1000:
        print(
            f"{folder} is trained: {images / 1000:g} of {kimg:g} kimg. To train it on: --outdir {folder} and a larger --kimg; "
            "to train another: another --outdir, or --fresh without one."
        )
    else:
        print(f"Resuming from {source}: {images / 1000:g} of {kimg:g} kimg.")
    return images if states else 0


def report_end(folder: Path, config: RunConfig) -> None:
    """Print how a run goes on that was stopped before its end."""
    states = states_of(folder)
    images = images_of(states[-1]) if states else 0
    if images < config.training.kimg * 1000:
        print(
            f"Stopped after {images / 1000:g} of {config.training.kimg:g} kimg. "
            f"To resume: {os.environ.get(COMMAND) or command_to_resume(sys.argv, folder, launcher())}"
        )


def _began_from(folder: Path, transfer: Path | None) -> bool:
    """Whether a run began with networks of this file or folder; None: with none of another run."""
    starts = read_starts(folder)
    if not starts:
        return True  # one of an earlier version, which does not say
    source = starts[0].get("begins_with")
    if source is None or transfer is None:
        return source is transfer
    file, wanted = Path(source).resolve(), transfer.resolve()
    return wanted == file or wanted in file.parents


def _check_data(began: Mapping[str, Any], dataset: PatchDataset, whose: str) -> None:
    if not is_same_data(began, dataset):
        raise UserError(
            f"{whose} was trained on other data ({began['patches']} patches; {dataset.path} has {len(dataset)}, or others); "
            "give the same data, or train another run (another --outdir, without --resume)."
        )
