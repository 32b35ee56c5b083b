"""Pack a run's newest snapshot, small and with what it says of itself: ``python -m multiscale.cli.pack RUN FILE``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dnnlib.cli import Command, reports_user_errors
from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.files import check_writable
from multiscale.runs.headers import find_network


@click.command(cls=Command)
@click.argument("run")
@click.argument("file")
@click.option("--networks", metavar="FILE", help="Also write both networks, for train.py --transfer.")
@click.option(
    "--info",
    metavar="KEY=VALUE",
    multiple=True,
    help="Of its metadata, such as title=Earth, licence=cc-by-4.0; may be repeated.",
)
@reports_user_errors
def main(run: str, file: str, networks: str | None, info: tuple[str, ...]) -> None:
    """Write the newest generator of the folder RUN to FILE, with the run's settings and last measurements.

    Parameters become float16; frequencies, phases and running means stay in float32, which deep zooms need.
    """
    for path in (file, *([] if networks is None else [networks])):
        check_writable(path)
    entries = dict(map(entry, info))
    found = find_network(run, say)
    folder = found.parent if Path(run).is_dir() else Path(run)
    from multiscale.runs.packing import pack, pack_networks  # here: PyTorch takes seconds

    pack(folder, Path(file), entries)
    print(f"{file}: {Path(file).stat().st_size / 1e6:.2f} MB")
    if networks is not None:
        pack_networks(folder, Path(networks))
        print(f"{networks}: {Path(networks).stat().st_size / 1e6:.2f} MB")


def entry(text: str) -> tuple[str, str | float]:
    """``key=value``; what reads as a number is one."""
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise UserError(f"--info {text} is not KEY=VALUE; write --info title=Earth, for example.")
    is_number = re.fullmatch(r"-?\d+(\.\d+)?", value) is not None
    if key == "kimg" and not is_number:
        raise UserError(f"--info {text} is not a number of thousands of images; write --info kimg=400, for example.")
    return key, float(value) if is_number else value


if __name__ == "__main__":
    main()
