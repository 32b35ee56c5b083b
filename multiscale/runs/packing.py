"""Small files of a run: its generator in half precision, with settings and last measures; and networks for transfer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.config import to_dict
from multiscale.runs.folder import CONFIG, load_settings
from multiscale.runs.headers import find_network
from multiscale.runs.journal import read_metrics
from multiscale.runs.migrations import FORMAT_VERSION
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import FORMAT, load_newest_state


def pack(run: Path, file: Path, info: Mapping[str, Any] | None = None) -> None:
    """Write the newest generator of a run to a file, its parameters as float16, everything else as float32.

    Args:
        run: A folder with snapshots, ``config.yaml`` and, where it was measured, ``metrics.jsonl``.
        file: Where to; replaced if it is there.
        info: More metadata, such as ``title`` and ``licence``; it takes precedence.

    Raises:
        UserError: the run holds no snapshot or no config, or the file cannot be written.
    """
    snapshot = load_snapshot(find_network(run))
    for parameter in snapshot.generator.parameters():
        parameter.data = parameter.data.to(torch.float16)
    lines = read_metrics(run)
    measured = {"measures": lines[-1]["results"]} if lines else {}
    settings = {section: values for section, values in load_settings(run / CONFIG).items() if section != "generator"}
    save_snapshot(file, snapshot.generator, {**snapshot.info, **measured, "trained with": settings, **(info or {})})


def pack_networks(run: Path, file: Path) -> None:
    """Write both networks and the averaged generator of a run's newest state to a file for ``--transfer``.

    A sixth of a state: weights become float16 and the optimisers' moments are left out, so it starts a new run and cannot
    resume the old one.

    Raises:
        UserError: the run has no state, or the file cannot be written.
    """
    state = load_newest_state(run)
    if state is None:
        raise UserError(f"{run} holds no training state (state-*.pt); give the folder of a run.")
    kept = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "images": state["images"],
        "config": to_dict(state["config"]),
    }
    for name in ("G", "D", "G_ema"):
        # Frequencies and phases need float32 at deep zooms, as do running means.
        exact = (".omega", ".phase", "magnitude_ema", "w_avg")
        kept[name] = {key: t if key.endswith(exact) else t.half() for key, t in state[name].items()}
    with atomic_write(file) as stream:
        torch.save(kept, stream)
