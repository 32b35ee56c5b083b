"""Pack a run's newest snapshot as the bundled model: ``python -m multiscale.bundled RUN [FILE]``."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from dnnlib.cli import reports_user_errors
from multiscale.bundled import MODEL
from multiscale.config import load_yaml
from multiscale.training.checkpoint import find_network, load_snapshot, save_snapshot


@click.command()
@click.argument("run")
@click.argument("file", default=str(MODEL))
@reports_user_errors
def main(run: str, file: str) -> None:
    """Write the newest generator of the folder RUN to FILE, with the run's settings and last distances beside it.

    Parameters become float16; frequencies, phases and running means stay in float32, which deep zooms need.
    """
    pack(Path(run), Path(file))
    print(f"{file}: {Path(file).stat().st_size / 1e6:.2f} MB")


def pack(run: Path, file: Path) -> None:
    """As the command; ``run`` is a folder with snapshots, ``config.yaml`` and ``stats.jsonl``."""
    snapshot = load_snapshot(find_network(run))
    for parameter in snapshot.generator.parameters():
        parameter.data = parameter.data.to(torch.float16)
    lines = (run / "stats.jsonl").read_text().splitlines() if (run / "stats.jsonl").exists() else []
    measured = [values for values in map(json.loads, lines) if values.get("swd")]
    distance = {"swd by octave": measured[-1]["swd"], "swd mean": measured[-1]["swd mean"]} if measured else {}
    settings = {section: values for section, values in load_yaml(run / "config.yaml").items() if section != "generator"}
    save_snapshot(file, snapshot.generator, {**snapshot.info, **distance, "trained with": settings})


if __name__ == "__main__":
    main()
