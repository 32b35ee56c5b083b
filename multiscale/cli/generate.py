"""Render views of a trained model: ``python generate.py --seed 3 --scale 64``."""

from __future__ import annotations

import contextlib
from typing import Any

import click
from click_option_group import optgroup

from dnnlib.cli import Command, reports_user_errors
from dnnlib.console import say
from dnnlib.errors import UserError
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.request import (
    Request,
    check,
    parse_centre,
    parse_factor,
    parse_keyframe,
    parse_size,
    parse_world,
    parse_worlds,
)
from multiscale.runs.headers import find_network


class _Factor(click.types.FloatParamType):
    """A zoom factor, as :func:`parse_factor` reads it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click converts a number."""
        with contextlib.suppress(ValueError):
            value = parse_factor(str(value))
        return super().convert(value, param, ctx)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("World")
@optgroup.option("--seed", metavar="WORLD", help="A seed, or a world such as 3~7:0.25 or 3_7@4-6.  [default: 0]")
@optgroup.option("--seeds", metavar="WORLDS", help="Several: 0-15 or 1,4~7:0.5,8-10; one file each, or a film.")
@optgroup.option("--trunc", type=click.FloatRange(-2, 2), default=1.0, help="Truncation psi: 1 as trained, 0 the mean.")
@optgroup.group("View")
@optgroup.option(
    "--scale", type=_Factor(), help="Zoom, 4 or 4x, up to the model's 2^octaves.  [default: 1, the whole world]"
)
@optgroup.option("--centre", metavar="X,Y", default="0,0", help="In the world [-0.5, 0.5], x right, y down.")
@optgroup.option(
    "--size",
    metavar="WxH",
    help="Pixels, such as 2048x1024; the longer side spans 1/scale of the world. Of a strip: the side of each view.  "
    "[default: the model's own]",
)
@optgroup.option("--extrapolate", is_flag=True, help="Allow pixels finer than any that the model has learned.")
@optgroup.option(
    "--enlarge", is_flag=True, help="Enlarge the model's finest pixels (Lanczos) where it has no finer ones."
)
@optgroup.group("Several views")
@optgroup.option("--strip", is_flag=True, help="1x, 2x, ... to the model's zoom, each view outlined in the one before.")
@optgroup.option("--grid", is_flag=True, help="All worlds on one sheet.")
@optgroup.group("Film")
@optgroup.option(
    "--video",
    metavar="FILM",
    help="Fly through the world, or with --seeds walk from world to world: .mp4, .webm, .gif, .webp; a name without an ending "
    "is a folder of PNG frames, in which an unfinished film resumes.",
)
@optgroup.option("--from", "start", metavar="Z,X,Y", default="1,0,0", help="Where the film begins: zoom and centre.")
@optgroup.option(
    "--to", "ends", metavar="Z,X,Y", multiple=True, help="Where it goes; may be repeated, for several in turn."
)
@optgroup.option("--loop", is_flag=True, help="Go back to the beginning, so that after the last frame comes the first.")
@optgroup.option("--seconds", type=click.FloatRange(0, min_open=True), default=20.0, help="Its length.")
@optgroup.option("--fps", type=click.IntRange(1, 240), default=30, help="Frames per second.")
@optgroup.group("Large files")
@optgroup.option("--pyramid", metavar="DZI", help="The whole world as Deep Zoom tiles; resumes an unfinished one.")
@optgroup.option(
    "--tiff",
    metavar="TIF",
    help="The whole world, or a part by --scale, --centre and --size, as a pyramidal BigTIFF, written part by part.",
)
@optgroup.group("Files")
@optgroup.option("--bits", type=click.Choice(["8", "16"]), default="8", help="Per channel, in PNG and TIFF.")
@optgroup.option(
    "--dpi", type=click.IntRange(1, 10_000), help="Pixels an inch in print, which the file states.  [default: none]"
)
@optgroup.option(
    "--network",
    metavar="RUN|FILE|NAME",
    help="A run's folder, a folder of runs (of which the snapshot written last), a snapshot, a published .pkl, https://..., "
    "hf://owner/repo, or earth, the bundled model.  "
    "[default: the snapshot written last in runs/, else the bundled model]",
)
@optgroup.option(
    "--out",
    metavar="FILE|FOLDER",
    default="out",
    help="A .png, .jpg, .webp or .tif file, or a folder for one .png per seed; a folder's name that ends as other files' do "
    "(.pdf, .heic) takes a / at the end.",
)
@reports_user_errors
def main(
    *,
    seed: str | None,
    seeds: str | None,
    trunc: float,
    centre: str,
    size: str | None,
    start: str,
    ends: tuple[str, ...],
    bits: str,
    network: str | None,
    **options: Any,
) -> None:
    """Render images, pyramids and films; each file holds its world, view and the network's hash in its metadata.

    Pictures and films replace files of the same name; unfinished pyramids and folders of frames are finished.
    """
    if seed is not None and seeds is not None:
        raise UserError("Both --seed and --seeds were given; give one of them.")
    flight: list[Keyframe] = [parse_keyframe(place) for place in (start, *ends)] if ends or start != "1,0,0" else []
    request = Request(
        worlds=parse_worlds(seeds, once=options["video"] is None) if seeds is not None else [parse_world(seed or "0")],
        truncation_psi=trunc,
        centre=parse_centre(centre),
        size=None if size is None else parse_size(size),
        flight=flight,
        bits=int(bits),
        **options,
    )
    check(request)
    file = find_network(network, say)
    from multiscale.rendering.commands import generate  # here: PyTorch takes seconds

    for path in generate(request, file):
        print(path)


if __name__ == "__main__":
    main()
