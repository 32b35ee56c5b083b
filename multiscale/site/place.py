"""Where an exported page goes: a folder that is new, empty or an earlier export; any other is refused without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.files import atomic_folder, check_writable
from dnnlib.reading import from_json, parsed, read_text

FORMAT = "multiscale-site"
FACTS = "model.json"


def made(folder: Path, write: Callable[[Path], None], *, replaces: bool) -> Path:
    """Have a folder written beside its place and moved there when it is whole.

    Args:
        folder: Its place.
        write: Is given the folder to fill.
        replaces: Whether an earlier export was there from the beginning; what has come since is left as it is.
    """
    with atomic_folder(folder, may_replace=(lambda old: _check_ours(old, folder)) if replaces else None) as place:
        write(place)
    return folder


def check_place(folder: Path) -> bool:
    """Whether the folder holds an earlier export; UserError if it holds anything else, or cannot be written."""
    check_writable(folder, folder="replaced")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    _check_ours(folder, folder)
    return True


def _check_ours(folder: Path, place: Path) -> None:
    """UserError unless a folder, which stands or stood at ``place``, is an earlier export."""
    facts: Any = None
    if folder.is_dir() and (folder / FACTS).is_file():
        facts = parsed(lambda: from_json(read_text(folder / FACTS, "the facts")), f"{place / FACTS} cannot be read.")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{place} holds something else than an earlier export; give an empty folder, or a new name.")
