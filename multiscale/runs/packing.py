"""Small snapshots: half precision, with the run's settings and last distances beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from multiscale.config import load_yaml
from multiscale.runs.snapshots import find_network, load_snapshot, save_snapshot


def pack(run: Path, file: Path) -> None:
    """Write the newest generator of a run to a file; its parameters become float16, all else stays in float32.

    Args:
        run: A folder with snapshots, ``config.yaml`` and ``stats.jsonl``.
        file: Where to; replaced if it is there.

    Raises:
        UserError: the run holds no snapshot or no config, or the file cannot be written.
    """
    snapshot = load_snapshot(find_network(run))
    for parameter in snapshot.generator.parameters():
        parameter.data = parameter.data.to(torch.float16)
    lines = (run / "stats.jsonl").read_text().splitlines() if (run / "stats.jsonl").exists() else []
    measured = [values for values in map(json.loads, lines) if values.get("swd")]
    distance = {"swd by octave": measured[-1]["swd"], "swd mean": measured[-1]["swd mean"]} if measured else {}
    settings = {section: values for section, values in load_yaml(run / "config.yaml").items() if section != "generator"}
    save_snapshot(file, snapshot.generator, {**snapshot.info, **distance, "trained with": settings})
