"""Draw README's pictures of a model: worlds side by side, one world from 1x down, and a film of the same flight.

    python benchmarks/pictures.py [--network FILE] [--seed 0] [--centre 0.1,-0.1] [--out docs/images]

Views of one world are 384 x 384 pixels while the model is as fine as that, then the trained number of pixels, enlarged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout's code, whatever else is installed

import numpy as np
import torch
from PIL import Image

from dnnlib.files import atomic_write
from multiscale.rendering.renderer import Renderer, nearest_centre, octave_zooms, to_uint8
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import Region

VIEW_PX, FILM_PX = 384, 256
GAP_PX = 4
WORLDS = (2, 6)
"""Rows and columns of the sheet of worlds."""
WORLD_PX = 256
FRAMES = 96
FRAME_MSEC = 90


def view(renderer: Renderer, seed: int, zoom: float, centre: tuple[float, float], px: int) -> np.ndarray:
    """A view, uint8 [px, px, 3], of no more pixels than the model has there, enlarged if those are fewer."""
    side = min(px, int(renderer.world_px / zoom) // renderer.resolution * renderer.resolution)
    region = Region.of_view(zoom, nearest_centre(centre, zoom), side, side)
    image = Image.fromarray(to_uint8(renderer.image(seed, region)))
    return np.asarray(image.resize((px, px), Image.Resampling.LANCZOS))


def row(images: list[np.ndarray]) -> np.ndarray:
    """Images side by side, with white gaps."""
    gap = np.full((images[0].shape[0], GAP_PX, 3), 255, np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=1)


def stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Rows below each other, with white gaps."""
    return row([part.transpose(1, 0, 2) for part in rows]).transpose(1, 0, 2)


def save(path: Path, pictures: list[np.ndarray], **options: object) -> None:
    """A WebP, animated if there are several pictures."""
    first, *others = (Image.fromarray(picture) for picture in pictures)
    with atomic_write(path) as stream:
        first.save(stream, "WEBP", save_all=bool(others), append_images=others, **options)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="run or snapshot (default: the newest run, else the bundled model)")
    parser.add_argument("--seed", type=int, default=0, help="the world that is flown into (default 0)")
    parser.add_argument("--centre", default="0.1,-0.1", metavar="X,Y", help="where to (default 0.1,-0.1)")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder (default docs/images)")
    options = parser.parse_args()
    x, y = (float(part) for part in options.centre.split(","))
    renderer = Renderer(load_snapshot(find_network(options.network)).generator, torch.device("cpu"))
    rows, columns = WORLDS
    sheet = [row([view(renderer, r * columns + c, 1, (0, 0), WORLD_PX) for c in range(columns)]) for r in range(rows)]
    save(options.out / "earth-worlds.webp", [stacked(sheet)], quality=90)
    zooms = octave_zooms(renderer.generator.config.octaves)
    views = [view(renderer, options.seed, zoom, (x, y), VIEW_PX) for zoom in zooms]
    half = -(-len(views) // 2)
    views += [np.full_like(views[0], 255)] * (2 * half - len(views))
    save(options.out / "earth-strip.webp", [stacked([row(views[:half]), row(views[half:])])], quality=90)
    flight = np.geomspace(1, zooms[-1], FRAMES)
    frames = [view(renderer, options.seed, float(zoom), (x, y), FILM_PX) for zoom in flight]
    save(options.out / "earth-flight.webp", [*frames, *frames[-2:0:-1]], duration=FRAME_MSEC, loop=0, quality=70)


if __name__ == "__main__":
    main()
