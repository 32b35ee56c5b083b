"""What ``generate.py`` does: which pictures, pyramids and films are made, and what each says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.pictures import grid
from dnnlib.progress import progress_bar
from dnnlib.signals import RESUMES, says_when_ended
from multiscale.rendering.enlarging import enlarged_view
from multiscale.rendering.files import check_size, save_picture
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.pyramid import TILE_PX, Pyramid, check_tiff, claim, tiff_tiles, write_deep_zoom, write_tiff
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.request import MAX_PICTURE_PX, Request, grid_path, picture_kind, picture_paths
from multiscale.rendering.sheets import zoom_strip
from multiscale.rendering.video import FILM_PX, check_film, film_facts, write_film
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import load_snapshot
from multiscale.view import Region
from torch_utils.devices import default_device, keep_freed_memory

T = TypeVar("T")

LONG_SEC = 2.0
"""From when on a single picture has a bar of progress."""
NOTHING_KEPT = "Nothing of it is kept; frames in a folder (--video FOLDER) resume."
PERCENT = "{desc} {percentage:3.0f}% {remaining}"
BEYOND = "with --enlarge a scale of at most {:g}, or have it invent finer ones (--extrapolate)"
ENLARGE = "or enlarge its finest pixels (--enlarge), or have it invent finer ones (--extrapolate)"


def generate(request: Request, network: Path) -> list[Path]:
    """Make what is asked for; returns the paths of the files that hold it.

    Args:
        request: One that :func:`multiscale.rendering.request.check` does not refuse.
        network: The file.

    Raises:
        UserError: the network cannot be read, something is out of its range, or a file cannot be written.
    """
    snapshot = load_snapshot(network)
    keep_freed_memory()
    renderer = Renderer(snapshot.generator, default_device())
    maker = _Maker(request, renderer, provenance(snapshot))
    if request.video is not None:
        return maker.film(Path(request.video))
    if request.pyramid is not None:
        return maker.deep_zoom(Path(request.pyramid))
    if request.tiff is not None:
        return maker.tiff(Path(request.tiff))
    return maker.grid() if request.grid else maker.pictures()


class _Maker:
    """The makers of each kind of result."""

    def __init__(self, request: Request, renderer: Renderer, network: dict[str, Any]) -> None:
        self.request, self.renderer, self.network = request, renderer, network
        self.scale = 1.0 if request.scale is None else request.scale
        if not 1 <= self.scale < float("inf"):
            raise UserError(f"Scale {self.scale:g} is out of range: this model zooms from 1 to {renderer.max_zoom:g}.")

    def pictures(self) -> list[Path]:
        """A picture for each world."""
        paths = picture_paths(self.request)
        self._check_views()
        for world, path in zip(self.request.worlds, self._each(paths), strict=True):
            save_picture(path, self._picture(world), self._facts(world))
        return paths

    def grid(self) -> list[Path]:
        """All worlds on one sheet, about as wide as high."""
        path = grid_path(self.request)
        worlds = self.request.worlds
        self._check_views()
        cells = [self._picture(world) for world in self._each(worlds)]
        columns = int(np.ceil(np.sqrt(len(cells))))
        starts = range(0, len(cells), columns)
        rows = [cells[i : i + columns] for i in starts]
        captions = [[f"world {world}" for world in worlds[i : i + columns]] for i in starts]
        facts = self._facts(worlds[0])
        save_picture(path, grid(rows, captions=captions), facts | {"world": [str(world) for world in worlds]})
        return [path]

    def _each(self, things: Sequence[T]) -> Iterator[T]:
        """The things to render, with a bar of progress over their tiles if they are several, or one takes long."""
        views = self.renderer.generator.config.octaves + 1 if self.request.strip else 1
        delay = 0.0 if len(things) > 1 else LONG_SEC
        with progress_bar(
            total=float(len(things)),
            desc=f"{len(things)} image{'s' * (len(things) > 1)}",
            bar_format=PERCENT,
            delay=delay,
        ) as bar:
            self.renderer.on_tile = lambda tiles: bar.update(1 / (views * tiles))
            try:
                for done, thing in enumerate(things, start=1):
                    yield thing
                    bar.update(done - bar.n)
            finally:
                self.renderer.on_tile = None

    def film(self, path: Path) -> list[Path]:
        """A flight, or a walk through worlds."""
        request = self.request
        width, height = request.size or (max(self.renderer.resolution, FILM_PX),) * 2
        flight = request.flight or [Keyframe(self.scale, *request.centre)]
        film: dict[str, Any] = {"width": width, "height": height, "fps": request.fps, "seconds": request.seconds}
        check_film(path, self.renderer, request.worlds, flight, **film)
        facts = film_facts(request.worlds, request.truncation_psi, flight, loop=request.loop) | self.network
        with (
            says_when_ended(NOTHING_KEPT if path.suffix else RESUMES),
            progress_bar(total=1.0, unit="film", desc=path.name, bar_format=PERCENT) as bar,
        ):
            write_film(
                path,
                self.renderer,
                request.worlds,
                request.truncation_psi,
                flight,
                **film,
                loop=request.loop,
                facts=facts,
                progress=lambda fraction: bar.update(fraction - bar.n),
            )
        finest = self.renderer.world_px / max(width, height)
        if max(place.zoom for place in flight) > finest:
            print(
                f"From {finest:.3g}x on the film enlarges the model's finest pixels; a smaller --size is sharp for longer."
            )
        return [path]

    def deep_zoom(self, path: Path) -> list[Path]:
        """The whole world as a pyramid of PNG tiles."""
        pyramid = Pyramid(self.renderer, self.request.worlds[0], self.request.truncation_psi)
        facts = self._world(self.request.worlds[0])
        claim(path, pyramid, facts)
        with says_when_ended(), progress_bar(total=pyramid.tiles, unit="tile", desc=path.name) as bar:
            write_deep_zoom(path, pyramid, facts, bar.update)
        return [path]

    def tiff(self, path: Path) -> list[Path]:
        """A view, or the whole world, as a pyramidal TIFF."""
        request, side = self.request, self.renderer.world_px
        region = Region.of_view(self.scale, request.centre, *(request.size or (int(side / self.scale),) * 2))
        world = request.worlds[0]
        check_tiff(self.renderer, region, **self._beyond())
        decoded = tiff_tiles(region) * TILE_PX**2 * self.renderer.generator.config.img_channels * request.bits // 8
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
        if decoded > free:  # compressed it may be a tenth of that, which is known in the end
            say(f"{path} may take up to {decoded / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free.")
        with progress_bar(total=tiff_tiles(region), unit="tile", desc=path.name) as bar:
            write_tiff(
                path,
                self.renderer,
                world,
                region,
                request.truncation_psi,
                self._facts(world),
                bits=request.bits,
                extrapolate=request.extrapolate,
                enlarge=request.enlarge,
                advance=bar.update,
            )
        return [path]

    def _check_views(self) -> None:
        """Refuse what cannot be rendered, before a bar of progress appears."""
        request, renderer = self.request, self.renderer
        width, height = request.size or (renderer.resolution,) * 2
        views = renderer.generator.config.octaves + 1 if request.strip else len(request.worlds) if request.grid else 1
        if views * width * height > MAX_PICTURE_PX:
            raise UserError(
                f"{views} views of {width} x {height} pixels are too many for one {picture_kind(request)}; give a "
                f"smaller --size{' or fewer --seeds' * request.grid}."
            )
        if not (request.strip or request.grid):
            check_size(picture_paths(request)[0], width, height)
        if not request.strip:
            renderer.check_view(self.scale, request.centre, request.size, **self._beyond())
        renderer.check_worlds(request.worlds)

    def _beyond(self) -> dict[str, Any]:
        """What the renderer's checks are to allow where pixels are finer than the model, and to advise."""
        can_enlarge = self.scale <= self.renderer.max_zoom
        return {
            "extrapolate": self.request.extrapolate or (self.request.enlarge and can_enlarge),
            "otherwise": ENLARGE if can_enlarge else BEYOND.format(self.renderer.max_zoom),
        }

    def _picture(self, world: World) -> np.ndarray:
        request = self.request
        if request.strip:
            side = None if request.size is None else request.size[0]
            return zoom_strip(self.renderer, world, request.centre, request.truncation_psi, side)
        view = (world, self.scale, request.centre, request.size, request.truncation_psi)
        if request.enlarge:
            return enlarged_view(self.renderer, *view, bits=request.bits)
        return self.renderer.view(*view, bits=request.bits, extrapolate=request.extrapolate)

    def _world(self, world: World) -> dict[str, Any]:
        return {"world": str(world), "truncation_psi": self.request.truncation_psi, **self.network}

    def _facts(self, world: World) -> dict[str, Any]:
        view = {"strip_to_scale": self.renderer.max_zoom} if self.request.strip else {"scale": self.scale}
        print_size = {} if self.request.dpi is None else {"dpi": self.request.dpi}
        return {**view, "centre": list(self.request.centre), **print_size, **self._world(world)}
