"""Render views of a trained model: ``python generate.py --seed 3 --scale 64``."""

from __future__ import annotations

import click
from click_option_group import optgroup

from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError
from multiscale.rendering.commands import ImageRequest, generate_images, parse_centre, parse_seeds


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@optgroup.group("World")
@optgroup.option("--seed", type=click.IntRange(0), help="Seed of the world.  [default: 0]")
@optgroup.option("--seeds", metavar="RANGE", help="Several seeds: 0-15 or 1,4,8-10; one file each.")
@optgroup.option("--trunc", type=click.FloatRange(-2, 2), default=1.0, help="Truncation psi: 1 as trained, 0 the mean.")
@optgroup.group("View")
@optgroup.option("--scale", type=float, default=1.0, help="Zoom FACTOR, from 1 (whole world) to the model's 2^octaves.")
@optgroup.option("--centre", metavar="X,Y", default="0,0", help="In the world [-0.5, 0.5], x right, y down.")
@optgroup.option("--strip", is_flag=True, help="1x, 2x, ... to the model's zoom, each view outlined in the one before.")
@optgroup.group("Files")
@optgroup.option("--network", metavar="RUN|FILE", help="A run's folder or a snapshot.  [default: the newest run]")
@optgroup.option("--out", metavar="FILE|FOLDER", default="out", help="A .png file, or a folder for one file a seed.")
@reports_user_errors
def main(
    seed: int | None,
    seeds: str | None,
    scale: float,
    centre: str,
    strip: bool,
    trunc: float,
    network: str | None,
    out: str,
) -> None:
    """Render PNG images; each holds its seed, view and the network's hash in its metadata."""
    if seed is not None and seeds is not None:
        raise UserError("Both --seed and --seeds were given; give one of them.")
    chosen = parse_seeds(seeds) if seeds is not None else [seed or 0]
    request = ImageRequest(
        seeds=chosen,
        scale=scale,
        centre=parse_centre(centre),
        truncation_psi=trunc,
        strip=strip,
        network=network,
        out=out,
    )
    for path in generate_images(request):
        print(path)


if __name__ == "__main__":
    main()
