"""Training states on disk: everything a run needs to resume bit for bit, in files that run no code when loaded."""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from dnnlib.reading import kind_of_file, parsed, regular_size
from multiscale.data.patches import PatchDataset
from multiscale.runs.migrations import FORMAT_VERSION, check_version, read_stored

FORMAT = "multiscale-training-state"
OLDEST_VERSION = 2
"""The oldest format of states that can be read."""
PATTERN = "state-*.pt"
FIELDS: dict[str, Any] = {
    "images": int,
    "step": int,
    "batch_gpu": int,
    "data": dict,
    "G": dict,
    "D": dict,
    "G_ema": dict,
    "g_optimiser": dict,
    "d_optimiser": dict,
    "augment_p": (float, list, type(None)),
    "ada": (dict, type(None)),
    "drawn": list,
    "means": dict,
}
"""Names and types of a state's contents."""
KEPT = 2
"""States of a run that are kept: the newest, and the one before in case the newest is damaged."""


def save_state(folder: Path, images: int, state: dict[str, Any]) -> Path:
    """Write a state atomically, then remove all but the newest two.

    Args:
        folder: Of the run.
        images: Real images shown so far; they name the file.
        state: Tensors, numbers, strings, lists and dicts.

    Raises:
        UserError: the file cannot be written; earlier states are untouched.
    """
    path = folder / f"state-{images:09d}.pt"
    try:
        with atomic_write(path) as stream:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, "images": images, **state}, stream)
    except RuntimeError as error:  # PyTorch's writer found that less was written than it gave
        raise UserError(
            f"Cannot write {path}: the disk is full, or does not keep what is written; free some space and repeat "
            "the command."
        ) from error
    for old in states_of(folder)[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


NETWORKS = ("G", "D", "G_ema")
"""Fields of ``FIELDS`` that hold weights; a packed run has these alone."""


def load_state(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Read a state onto the CPU; nothing in the file is executed.

    Args:
        path: Of the file.
        needed: Names of ``FIELDS`` without which it is of no use.

    Returns:
        What was saved; ``config`` is a whole ``RunConfig``.

    Raises:
        UserError: the file is missing, damaged, not ours, of a format that cannot be read, or has unknown settings.
    """
    if path.is_dir() and (states := states_of(path)):
        raise UserError(f"{path} is a folder, not a training state; give a file in it, such as {states[-1]}.")
    regular_size(path, "the training state")
    damaged = f"{path} is not a whole training state; it may be truncated or damaged: use an older one."
    try:
        _refuse_other_kinds(path)
        state = parsed(lambda: _load(path), damaged)
    except OSError as error:
        raise UserError(f"Cannot read the training state {path}: {error.strerror or error}.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a training state of this program; give a {PATTERN} file of a run.")
    version = state.get("format_version")
    if type(version) is not int:
        raise UserError(damaged)
    check_version(version, kind="state", source=str(path), oldest=OLDEST_VERSION)
    config, state = parsed(lambda: read_stored(state, version=version, source=str(path)), damaged)
    if missing := [name for name in needed if name not in state]:
        raise UserError(f"{path} holds no {missing[0]}, which a whole training state does; use another one.")
    wrong = [name for name, kind in FIELDS.items() if name in state and not isinstance(state[name], kind)]
    wrong += [name for name in NETWORKS if name in state and not wrong and not _is_table(state[name])]
    if wrong:
        raise UserError(f"{path} holds another {wrong[0]} than a training state does; it is damaged: use an older one.")
    return state | {"config": config}


def _refuse_other_kinds(path: Path) -> None:
    """UserError for a snapshot, which holds the generator alone, or a picture or anything else that says what it is."""
    kind = kind_of_file(path)
    if path.suffix == ".safetensors":
        beside = states_of(path.parent)
        better = f"{beside[-1]}, the state beside it" if beside else f"a {PATTERN} file of a run"
        raise UserError(f"{path} is a snapshot of a generator, not a training state; give {better}.")
    if kind not in (None, "a ZIP"):
        raise UserError(f"{path} is {kind}, not a training state; give a {PATTERN} file of a run.")


def _load(path: Path) -> Any:
    """Load with PyTorch, but refuse damage, and compressed files, which may unpack to any size; PyTorch writes none."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is packed")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("it claims more than it holds")
        if archive.testzip() is not None:  # PyTorch writes these checksums, but does not look at them
            raise ValueError("a checksum in it is another")
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_table(weights: dict[Any, Any]) -> bool:
    """Whether something is a state dict: tensors by name, each as long as its numbers in the file."""
    return all(
        isinstance(name, str) and isinstance(t, torch.Tensor) and t.nbytes <= t.untyped_storage().nbytes()
        for name, t in weights.items()
    )


def load_newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged state of a run; None if it has none yet. Prints a line if a newer one is damaged.

    Raises:
        UserError: there are states, but all are damaged.
    """
    paths = states_of(folder)
    for path in reversed(paths):
        try:
            return load_state(path)
        except UserError as error:
            if path == paths[0]:
                raise
            print(f"{error} Resuming from the one before.")
    return None


def states_of(run: Path) -> list[Path]:
    """Training states of a run's folder, oldest first."""
    found = [(images_of(path), path) for path in run.glob(PATTERN)]
    return [path for images, path in sorted(found) if images >= 0]


def identity_of(dataset: PatchDataset) -> dict[str, int]:
    """What identifies a set of patches wherever it lies: a state is valid for the same patches in the same order only."""
    labels = zlib.crc32(dataset.labels.tobytes())
    return {"patches": len(dataset), "labels_crc32": labels, "content_crc32": dataset.content_crc32}


def is_same_data(facts: Mapping[str, Any], dataset: PatchDataset) -> bool:
    """Whether facts (of :func:`identity_of`) match a set; those that earlier versions did not write are not compared."""
    now = identity_of(dataset)
    return all(facts[name] == value for name, value in now.items() if name in facts or name != "content_crc32")


def images_of(path: Path) -> int:
    """Real images shown before a state was written, from its name; -1 for other files."""
    match = re.fullmatch(r"state-(\d+)\.pt", path.name)
    return int(match[1]) if match else -1
