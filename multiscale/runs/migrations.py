"""Files of other versions: a missing setting has its default, and what has changed its meaning is migrated.

A new setting needs nothing here: its default must be what earlier versions did. When a setting or a tensor is renamed,
removed or changes its meaning, ``FORMAT_VERSION`` goes up by one, ``MIGRATIONS`` gets the step from the version before, and
``tests/golden`` keeps files of that version.

Snapshots, training states and run folders are read as the same nested contents: ``config`` (sections of settings, all or
some), and, where the file has them, weights by tensor name in ``G``, ``D`` and ``G_ema``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dnnlib.errors import UserError
from multiscale.config import RunConfig, build

FORMAT_VERSION = 3
"""Of all files that a run writes. Version 2: states of version 1 cannot be read, its snapshots and folders mean the same.
Version 3: ``training.metrics`` names the measure of ``training.swd_patches``, which is gone."""


def measured_by_name(training: Mapping[str, Any], below: str | None = None) -> dict[str, Any]:
    """Training settings with ``swd_patches``, which was removed in format 3, turned into ``swd`` among the ``metrics``.

    Args:
        training: Some settings; returned unchanged if they have no ``swd_patches``.
        below: The ``metrics`` that apply if these settings name none.
    """
    values = dict(training)
    count, metrics = values.pop("swd_patches", None), values.get("metrics", below)
    if type(count) is not int or count < 0 or not isinstance(metrics, str | None):
        return dict(training)  # what is wrong with them is said where settings are checked
    names = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    if "metrics" not in values:
        names = [name for name in names if not re.fullmatch(r"swd\d*k?", name)]
    if count and not any(re.fullmatch(r"swd\d*k?", name) for name in names):
        names.append(f"swd{count}")
    return values | {"metrics": ",".join(names) or None}


def _distances_by_name(contents: dict[str, Any]) -> dict[str, Any]:
    sections = contents.get("config")
    before = sections.get("training") if isinstance(sections, Mapping) else None
    if not isinstance(sections, Mapping) or not isinstance(before, Mapping):
        return contents
    training = measured_by_name(before)
    if before.get("metrics") is None and training.get("metrics") is not None:
        training["metrics_every"] = 1  # the distance was taken of every snapshot
    return contents | {"config": {**sections, "training": training}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: dict, 2: _distances_by_name}
"""By version: contents in that version -> contents in the next."""


def check_version(version: int, *, kind: str, source: str, oldest: int = 1) -> None:
    """Refuse a file that this version cannot read.

    Args:
        version: Of the file.
        kind: Of file, for messages: ``snapshot``, ``state`` or ``run``.
        source: Its path.
        oldest: Version of the oldest files of this kind that can be read.

    Raises:
        UserError: it is of a newer format, or too old.
    """
    if oldest <= version <= FORMAT_VERSION:
        return
    newer = version > FORMAT_VERSION
    raise UserError(
        f"{source} has {kind} format {version}, {'newer' if newer else 'older'} than the format {FORMAT_VERSION} that this "
        f"version reads; {'update the program' if newer else 'finish the run with the version that began it'}."
    )


def read_stored(contents: Mapping[str, Any], *, version: int, source: str) -> tuple[RunConfig, dict[str, Any]]:
    """The settings of a file, completed by defaults, and its contents, both in today's terms.

    Args:
        contents: As described for this module.
        version: Of the file; one that can be read.
        source: Its path, for messages.

    Raises:
        UserError: it holds a setting that this version does not know or allow.
    """
    upgraded = dict(contents)
    for step in range(version, FORMAT_VERSION):
        upgraded = MIGRATIONS[step](upgraded)
    settings: Any = upgraded.get("config")
    return build(RunConfig, settings, source=source), upgraded
