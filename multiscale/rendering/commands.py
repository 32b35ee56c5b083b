"""What ``generate.py`` does: which pictures, pyramids and films are made, where they go, and what each says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dnnlib.console import say
from dnnlib.errors import UserError
from dnnlib.files import check_writable
from dnnlib.pictures import grid
from dnnlib.progress import progress_bar
from dnnlib.reading import each_once
from multiscale.rendering.files import save_png
from multiscale.rendering.pyramid import Pyramid, check_tiff, claim, tiff_tiles, write_deep_zoom, write_tiff
from multiscale.rendering.renderer import EXTRAPOLATE, Renderer, provenance, to_uint16
from multiscale.rendering.sheets import zoom_strip
from multiscale.rendering.video import Keyframe, check_film, enlarged_view, write_film
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import find_network, load_snapshot
from multiscale.view import Region
from torch_utils.devices import default_device, keep_freed_memory

T = TypeVar("T")

LONG_SEC = 2.0
"""From when on a single picture has a bar of progress."""
PERCENT = "{desc} {percentage:3.0f}% {remaining}"
MAX_SEEDS = 100_000
MAX_PNG_PX = 1 << 28
ENLARGE = "or enlarge its finest pixels (--enlarge), or have it invent finer ones (--extrapolate)"
OTHER_IMAGES = {".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".mp4", ".dzi"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; None where nothing was said."""

    worlds: Sequence[World]
    truncation_psi: float = 1.0
    scale: float | None = None
    centre: tuple[float, float] = (0.0, 0.0)
    size: tuple[int, int] | None = None
    """Width and height in pixels; None: the generator's own."""
    extrapolate: bool = False
    enlarge: bool = False
    bits: int = 8
    strip: bool = False
    grid: bool = False
    video: str | None = None
    flight: Sequence[Keyframe] = ()
    seconds: float = 20.0
    fps: int = 30
    pyramid: str | None = None
    tiff: str | None = None
    network: str | None = None
    out: str = "out"


def generate(request: Request) -> list[Path]:
    """Make what is asked for; returns the paths of the files that hold it.

    Raises:
        UserError: options that contradict each other, something out of range, or a file that cannot be written.
    """
    _check(request)
    _check_place(request)
    snapshot = load_snapshot(find_network(request.network, say))
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
        """A PNG for each world."""
        paths = _paths(self.request)
        self._check_views()
        for world, path in zip(self.request.worlds, self._each(paths), strict=True):
            save_png(path, self._picture(world), self._facts(world))
        return paths

    def grid(self) -> list[Path]:
        """All worlds on one sheet, about as wide as high."""
        path = _grid_path(self.request)
        worlds = self.request.worlds
        self._check_views()
        cells = [self._picture(world) for world in self._each(worlds)]
        columns = int(np.ceil(np.sqrt(len(cells))))
        starts = range(0, len(cells), columns)
        rows = [cells[i : i + columns] for i in starts]
        captions = [[f"world {world}" for world in worlds[i : i + columns]] for i in starts]
        facts = self._facts(worlds[0])
        save_png(path, grid(rows, captions=captions), facts | {"world": [str(world) for world in worlds]})
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
        """A flight as MP4."""
        request = self.request
        width, height = request.size or (max(self.renderer.resolution, 512),) * 2
        check_film(self.renderer, request.flight, width=width, height=height, fps=request.fps, seconds=request.seconds)
        facts = {"world": str(request.worlds[0]), "truncation_psi": request.truncation_psi}
        facts |= {"flight": [[k.zoom, k.x, k.y] for k in request.flight], **self.network}
        with progress_bar(total=1.0, unit="film", desc=path.name, bar_format=PERCENT) as bar:
            write_film(
                path,
                self.renderer,
                request.worlds[0],
                request.truncation_psi,
                request.flight,
                width=width,
                height=height,
                fps=request.fps,
                seconds=request.seconds,
                facts=facts,
                progress=lambda fraction: bar.update(fraction - bar.n),
            )
        finest = self.renderer.world_px / max(width, height)
        if max(place.zoom for place in request.flight) > finest:
            print(
                f"From {finest:.3g}x on the film enlarges the model's finest pixels; a smaller --size is sharp for longer."
            )
        return [path]

    def deep_zoom(self, path: Path) -> list[Path]:
        """The whole world as a pyramid of PNG tiles."""
        pyramid = Pyramid(self.renderer, self.request.worlds[0], self.request.truncation_psi)
        facts = self._world(self.request.worlds[0])
        claim(path, pyramid, facts)
        with progress_bar(total=len(pyramid.addresses()), unit="tile", desc=path.name) as bar:
            write_deep_zoom(path, pyramid, facts, bar.update)
        return [path]

    def tiff(self, path: Path) -> list[Path]:
        """A view, or the whole world, as a pyramidal TIFF."""
        request, side = self.request, self.renderer.world_px
        region = Region.of_view(self.scale, request.centre, *(request.size or (int(side / self.scale),) * 2))
        world = request.worlds[0]
        check_tiff(self.renderer, region, extrapolate=request.extrapolate)
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
                advance=bar.update,
            )
        return [path]

    def _check_views(self) -> None:
        """Refuse what cannot be rendered, before a bar of progress appears."""
        request, renderer = self.request, self.renderer
        width, height = request.size or (renderer.resolution,) * 2
        views = renderer.generator.config.octaves + 1 if request.strip else len(request.worlds) if request.grid else 1
        if views * width * height > MAX_PNG_PX:
            raise UserError(
                f"{views} views of {width} x {height} pixels are too many for one PNG; give a smaller --size"
                f"{' or fewer --seeds' * request.grid}."
            )
        if not request.strip:
            is_zoom = self.scale <= renderer.max_zoom
            renderer.check_view(
                self.scale,
                request.centre,
                request.size,
                extrapolate=request.extrapolate or (request.enlarge and is_zoom),
                otherwise=ENLARGE if is_zoom and request.bits == 8 else EXTRAPOLATE,
            )
        for world in request.worlds:
            if world.styles:  # of layers that the network may not have
                renderer.styles(world, request.truncation_psi)

    def _picture(self, world: World) -> np.ndarray:
        request = self.request
        if request.strip:
            side = None if request.size is None else request.size[0]
            return zoom_strip(self.renderer, world, request.centre, request.truncation_psi, side)
        psi, extrapolate = request.truncation_psi, request.extrapolate
        if request.enlarge:
            return enlarged_view(self.renderer, world, self.scale, request.centre, request.size, psi)
        if request.bits == 8:
            return self.renderer.view(world, self.scale, request.centre, request.size, psi, extrapolate=extrapolate)
        region = Region.of_view(self.scale, request.centre, *(request.size or (self.renderer.resolution,) * 2))
        return to_uint16(self.renderer.image(world, region, psi, extrapolate=extrapolate))

    def _world(self, world: World) -> dict[str, Any]:
        return {"world": str(world), "truncation_psi": self.request.truncation_psi, **self.network}

    def _facts(self, world: World) -> dict[str, Any]:
        view = {"strip_to_scale": self.renderer.max_zoom} if self.request.strip else {"scale": self.scale}
        return {**view, "centre": list(self.request.centre), **self._world(world)}


def parse_worlds(text: str) -> list[World]:
    """``"3"``, ``"0-15"``, ``"1,4~7:0.5,8-10"`` -> the worlds meant, in their order, each once.

    Raises:
        UserError: anything else, a range that runs backwards, or more than 100,000 worlds.
    """
    worlds: list[World] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})-(\d{1,10})\s*", part, re.ASCII)
        if match is None:
            worlds.append(World.parse(part))
            continue
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise UserError(f"Seeds {part.strip()!r} run backwards; write a range such as 0-15, the lower seed first.")
        if len(worlds) + last - first + 1 > MAX_SEEDS:
            raise UserError(f"Seeds {text!r} are more than {MAX_SEEDS:,} images; ask for fewer at once.")
        worlds.extend(World.parse(seed) for seed in range(first, last + 1))
    return each_once(worlds)


def parse_centre(text: str) -> tuple[float, float]:
    """``"0.1,-0.2"`` -> world coordinates (x, y).

    Raises:
        UserError: it is not two finite numbers.
    """
    try:
        x, y = _numbers(text, 2)
    except ValueError:
        raise UserError(
            f"Centre {text!r} cannot be read; write two numbers x,y such as 0.1,-0.2 (the world is [-0.5, 0.5])."
        ) from None
    return x, y


def parse_size(text: str) -> tuple[int, int]:
    """``"2048x1024"`` or ``"2048"`` -> width and height in pixels.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"([1-9]\d{0,6})(?:x([1-9]\d{0,6}))?", text.strip(), re.ASCII)
    if match is None:
        raise UserError(
            f"Size {text!r} cannot be read; write width x height in pixels such as 2048x1024, or one side such as 2048."
        )
    return int(match[1]), int(match[2] or match[1])


def parse_keyframe(text: str) -> Keyframe:
    """``"64,0.1,-0.2"`` -> zoom factor and centre.

    Raises:
        UserError: it is not three finite numbers.
    """
    try:
        return Keyframe(*_numbers(text, 3))
    except ValueError:
        raise UserError(f"Place {text!r} cannot be read; write zoom,x,y such as 64,0.1,-0.2.") from None


def _numbers(text: str, count: int) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError
    return values


def _check(request: Request) -> None:
    """Refuse what cannot be meant, before a network is loaded."""
    if not np.isfinite(request.truncation_psi):
        raise UserError(
            f"--trunc {request.truncation_psi} is not allowed; give a number, 1 as trained, 0 the mean world."
        )
    kinds = {"--strip": request.strip, "--grid": request.grid, "--video": request.video is not None}
    kinds |= {"--pyramid": request.pyramid is not None, "--tiff": request.tiff is not None}
    kind, *others = [name for name, given in kinds.items() if given] or [""]
    if others:
        raise UserError(f"{kind} and {others[0]} make different things; give one of them.")
    options = {
        "--scale": request.scale is not None,
        "--size": request.size is not None,
        "--centre": request.centre != (0, 0),
    }
    options |= {
        "--bits 16": request.bits == 16,
        "--extrapolate": request.extrapolate,
        "--enlarge": request.enlarge,
        "--from or --to": bool(request.flight),
    }
    useless = {
        "--strip": ("--scale", "--bits 16", "--extrapolate", "--enlarge"),
        "--grid": ("--bits 16",),
        "--video": ("--scale", "--centre", "--bits 16", "--extrapolate", "--enlarge"),
        "--pyramid": ("--scale", "--size", "--centre", "--bits 16", "--extrapolate", "--enlarge"),
        "--tiff": ("--enlarge",),
    }.get(kind, ())
    if wrong := [name for name in useless if options[name]]:
        reason = {
            "--strip": "shows every zoom",
            "--grid": "is a sheet of 8 bits",
            "--video": "flies from --from to --to",
            "--tiff": "holds the model's own pixels",
        }
        raise UserError(f"{kind} {reason.get(kind, 'holds the whole world at every zoom')}; leave out {wrong[0]}.")
    if request.enlarge and (request.extrapolate or request.bits == 16):
        other = "--extrapolate has the model invent finer ones" if request.extrapolate else "makes 8 bits of them"
        raise UserError(
            f"--enlarge takes the model's finest pixels, and {other}; give one of --enlarge and "
            f"{'--extrapolate' if request.extrapolate else '--bits 16'}."
        )
    if request.strip and request.size is not None and request.size[0] != request.size[1]:
        raise UserError(
            f"--strip shows square views, not of {request.size[0]} x {request.size[1]} pixels; give one side, such as "
            f"--size {max(request.size)}."
        )
    if kind == "--video" and len(request.flight) < 2:
        raise UserError("A film needs a place to fly to; give --to zoom,x,y such as --to 64,0.1,-0.2.")
    if kind != "--video" and options["--from or --to"]:
        raise UserError("--from and --to are the flight of a film; give --video FILE.mp4 with them.")
    if kind in ("--video", "--pyramid", "--tiff") and len(request.worlds) > 1:
        raise UserError(f"{kind} shows one world and {len(request.worlds)} were given; give one.")
    if request.strip and max(map(abs, request.centre)) > 0.5:
        x, y = request.centre
        raise UserError(f"Centre ({x:g}, {y:g}) is outside the world; both coordinates must lie in [-0.5, 0.5].")
    if kind in ("", "--grid") and request.size is not None and request.size[0] * request.size[1] > MAX_PNG_PX:
        raise UserError(
            f"An image of {request.size[0]} x {request.size[1]} pixels is too large for a PNG; "
            "give --tiff FILE, or for the whole world as fine as the model goes --pyramid FILE without --size."
        )


def _check_place(request: Request) -> None:
    """Refuse names and places to which the result could not be written, before a network is loaded."""
    named = {
        "--video": (request.video, (".mp4",)),
        "--pyramid": (request.pyramid, (".dzi",)),
        "--tiff": (request.tiff, (".tif", ".tiff")),
    }
    for option, (name, suffixes) in named.items():
        if name is None:
            continue
        path = Path(name)
        if path.suffix.lower() not in suffixes:
            raise UserError(f"{option} {path} does not end in {suffixes[0]}; give a name that does.")
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; give the name of a file.")
        check_writable(path)
        return
    for path in [_grid_path(request)] if request.grid else _paths(request)[:1]:
        check_writable(path)


def _grid_path(request: Request) -> Path:
    out = _checked_out(request)
    return out if out.suffix.lower() == ".png" else out / "grid.png"


def _paths(request: Request) -> list[Path]:
    out, scale = _checked_out(request), 1.0 if request.scale is None else request.scale
    if out.suffix.lower() == ".png":
        if len(request.worlds) > 1:
            raise UserError(
                f"{len(request.worlds)} seeds cannot be written to the one file {out}; give a folder as --out."
            )
        return [out]
    name = "strip" if request.strip else f"{scale!r}x".replace(".0x", "x")
    if request.centre != (0, 0) and not request.strip:
        name += f"-at{request.centre[0]!r},{request.centre[1]!r}"
    if request.size is not None:
        name += f"-{request.size[0]}x{request.size[1]}"
    if request.truncation_psi != 1:
        name += f"-trunc{request.truncation_psi!r}"
    return [out / f"seed{_file_name(world)}-{name}.png" for world in request.worlds]


def _checked_out(request: Request) -> Path:
    out = Path(request.out)
    if out.suffix.lower() in OTHER_IMAGES:
        raise UserError(
            f"--out {out} asks for another format than PNG; give a .png file or a folder, or --tiff, --video, --pyramid."
        )
    if out.suffix.lower() != ".png" and out.is_file():
        raise UserError(f"--out {out} is a file that does not end in .png; give a .png file or a folder.")
    return out


def _file_name(world: World) -> str:
    """Seeds with four digits or more, so that files are listed in order; no colons, which some file systems refuse."""
    text = str(world)
    return f"{int(text):04d}" if text.isdigit() else text.replace(":", "=")
