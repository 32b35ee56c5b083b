"""Options that several commands of ``dataset_tool.py`` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from multiscale.data.finding import make_reading
from multiscale.data.remote import Tiles

workers_option = click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per CPU core]")


def making_options(resolution: int, octaves: str, counts: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that all commands that make a set share, with their own defaults."""
    options = [
        click.option("--dest", required=True, metavar="ZIP|FOLDER", help="Where to write; a .zip name makes a ZIP."),
        click.option(
            "--resolution",
            type=click.IntRange(16, 1024),
            default=resolution,
            help="Side of a patch in pixels, a power of two.",
        ),
        click.option("--octaves", type=click.IntRange(1, 10), help=f"Doublings of the zoom.  [default: {octaves}]"),
        click.option(
            "--counts",
            metavar="N,N,...",
            help=f"Patches of each octave, coarse to fine; without --octaves, one number makes one octave.  "
            f"[default: {counts}]",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, help="Seed of every draw."),
        workers_option,
        click.option("--force", is_flag=True, help="Replace an existing patch set."),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Print how many patches and bytes it would be, and how many tiles would be fetched; write nothing, exit.",
        ),
    ]
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how pictures are read, given to the command as ``reading``, ``skip_bad`` and ``allow_empty``."""

    @functools.wraps(command)
    def with_reading(*, memory: float, cache: float, page: int | None, value_range: str | None, **options: Any) -> Any:
        reading = make_reading(memory, cache, page, value_range)
        return command(reading=reading, **options)

    options = [
        click.option(
            "--memory",
            type=click.FloatRange(0.1, 1e6),
            default=1.0,
            help="GB of pictures that may be decoded at a time.",
        ),
        click.option(
            "--cache", type=click.FloatRange(0, 1e6), default=50.0, help="GB to keep of levels made or tiles fetched."
        ),
        click.option(
            "--page",
            type=click.IntRange(0),
            help="Which page or frame of a file with several, from 0.  [default: the largest of a TIFF's, else the first]",
        ),
        click.option(
            "--range",
            "value_range",
            metavar="LOW,HIGH",
            help="Numbers that become black and white.  [default: all that 8 or 16 bits can be; of integers with a sign or of "
            "32 bits the least and the largest there is; of floating-point numbers the 0.1 and 99.9 percentiles]",
        ),
        click.option("--skip-bad", is_flag=True, help="Name files that cannot be used, and go on without them."),
        click.option(
            "--allow-empty",
            type=click.FloatRange(0, 1),
            default=0.0,
            help="Fraction of a patch that may be transparent or without data.",
        ),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), with_reading)


def tile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of pictures that a server has as tiles, given to the command as ``tiles``."""

    @functools.wraps(command)
    def with_tiles(*, connections: int, rate: float, zooms: str | None, bounds: str | None, **options: Any) -> Any:
        return command(tiles=Tiles(connections, rate, zooms, bounds), **options)

    options = [
        click.option("--connections", type=click.IntRange(1, 64), default=4, help="Tiles requested at a time."),
        click.option("--rate", type=click.FloatRange(0, 1e6), default=20.0, help="Most tiles per second; 0: no limit."),
        click.option("--zooms", metavar="LOW-HIGH", help="For XYZ tiles: the z to use, such as 0-12."),
        click.option(
            "--bounds", metavar="W,S,E,N", help="For XYZ tiles: degrees of longitude and latitude.  [default: all]"
        ),
    ]
    return functools.reduce(lambda inner, option: option(inner), reversed(options), with_tiles)
