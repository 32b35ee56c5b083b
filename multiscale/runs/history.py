"""The history of a run: one line of JSON for each of its starts, appended to ``history.jsonl`` and never rewritten."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError, cannot_write
from dnnlib.reading import from_json, parsed, regular_size

HISTORY = "history.jsonl"
ROOT = Path(__file__).parents[2]
"""Of the checkout, if the program runs from one."""
GIT_SEC = 10


def write_start(
    folder: Path, *, kimg: float, changed: Mapping[str, Any], begins_with: str | None, facts: Mapping[str, Any]
) -> None:
    """Append one start of a run, on disk when this returns.

    Args:
        folder: Of the run.
        kimg: Thousands of images seen so far.
        changed: Settings that this start changes: old and new value by name.
        begins_with: State or network of another run that a new one begins with.
        facts: Further facts, JSON values: command, versions, devices.

    Raises:
        UserError: the file cannot be written.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    other = {} if begins_with is None else {"begins_with": begins_with}
    line = json.dumps({"time": now, "kimg": kimg, "changed": dict(changed), **other, **facts}) + "\n"
    path = folder / HISTORY
    try:
        with open(path, "a+b") as stream:
            if stream.tell():  # a line that was cut off, as by a full disk, stays by itself
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else "\n" + line
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first, without lines that are damaged; none for runs of earlier versions.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / HISTORY
    try:
        lines = path.read_bytes().splitlines() if path.exists() and regular_size(path, "the history") else []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    starts = []
    for line in lines:
        with contextlib.suppress(UserError):
            starts.append(parsed(functools.partial(_start, line), "{reason}"))
    return starts


def _start(line: bytes) -> dict[str, Any]:
    values = from_json(line)
    if not (isinstance(values["time"], str) and isinstance(values["changed"], dict)):
        raise ValueError("it is no start")
    return {**values, "kimg": float(values["kimg"])}


def git_commit() -> str | None:
    """The commit that the program runs from, with ``-dirty`` behind it if files were changed; None outside of a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SEC, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
