"""What ``generate.py`` is asked for: read, refused where no network is needed to tell, and where the results go.

Needs no PyTorch, which takes seconds to load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.files import check_writable
from dnnlib.names import ends_in_separator, is_file_name
from dnnlib.reading import each_once
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.worlds import World

MAX_SEEDS = 100_000
MAX_PICTURE_PX = 1 << 28
"""Of a picture that is held as a whole; larger ones are written in parts, as TIFF and pyramids."""
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF"}
"""Names of pictures' formats by their endings, but for PNG, which others are written as."""
PICTURES = {".png": 16, ".jpg": 8, ".jpeg": 8, ".webp": 8, ".tif": 16, ".tiff": 16}
"""Endings of a picture's name, and the bits a channel that such a file can hold."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; None where nothing was said."""

    worlds: Sequence[World]
    truncation_psi: float = 1.0
    scale: float | None = None
    centre: tuple[float, float] = (0.0, 0.0)
    size: tuple[int, int] | None = None
    """Width and height in pixels; None: the generator's own, of films at least 512 a side."""
    extrapolate: bool = False
    enlarge: bool = False
    bits: int = 8
    dpi: int | None = None
    """Pixels an inch in print, which picture files then state; the pixels do not depend on it."""
    strip: bool = False
    grid: bool = False
    video: str | None = None
    flight: Sequence[Keyframe] = ()
    seconds: float = 20.0
    fps: int = 30
    loop: bool = False
    pyramid: str | None = None
    tiff: str | None = None
    out: str = "out"


def parse_worlds(text: str, *, once: bool = True) -> list[World]:
    """``"3"``, ``"0-15"``, ``"1,4~7:0.5,8-10"`` -> the worlds meant, in their order, each once or as often as it is named.

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
    return each_once(worlds) if once else worlds


def parse_world(text: str) -> World:
    """``--seed``, of one world.

    Raises:
        UserError: it cannot be read, or is several worlds as ``--seeds`` has them.
    """
    world, *others = parse_worlds(text, once=False)
    if others:
        raise UserError(f"--seed {text} is more than one world; give --seeds {text}.")
    return world


def parse_factor(text: str) -> float:
    """``"4"``, or ``"4x"`` as files are called -> a zoom factor, of any value; ValueError for what is no number."""
    return float(re.sub(r"(?<=[\d.])\s*[xX]\s*$", "", text))


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
    """``"64,0.1,-0.2"`` or ``"64x,0.1,-0.2"`` -> zoom factor and centre.

    Raises:
        UserError: it is not three finite numbers, or the first is below 1.
    """
    zoom, *centre = text.split(",")
    try:
        place = Keyframe(*_numbers(",".join([str(parse_factor(zoom)), *centre]), 3))
    except ValueError:
        raise UserError(f"Place {text!r} cannot be read; write zoom,x,y such as 64,0.1,-0.2.") from None
    if place.zoom < 1:
        raise UserError(
            f"Place {text!r} has the zoom {place.zoom:g}, and 1 is the whole world; write zoom,x,y in this order, such as "
            "64,0.1,-0.2."
        )
    return place


def _numbers(text: str, count: int) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError
    return values


def check(request: Request) -> None:
    """Refuse what cannot be meant or written, before a network is loaded.

    Raises:
        UserError: options that contradict each other, something that no network allows, or a file that cannot be written.
    """
    _check_options(request)
    _check_place(request)


def _check_options(request: Request) -> None:
    """Refuse what cannot be meant."""
    if not math.isfinite(request.truncation_psi):
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
        "--loop": request.loop,
        "--seconds": request.seconds != Request.seconds,
        "--fps": request.fps != Request.fps,
    }
    useless = {
        "--strip": ("--scale", "--bits 16", "--extrapolate", "--enlarge"),
        "--grid": ("--bits 16",),
        "--video": ("--bits 16", "--extrapolate", "--enlarge"),
        "--pyramid": ("--scale", "--size", "--centre", "--bits 16", "--extrapolate", "--enlarge"),
    }.get(kind, ())
    if wrong := [name for name in useless if options[name]]:
        reason = {
            "--strip": "shows every zoom",
            "--grid": "is a sheet of 8 bits",
            "--video": "has 8 bits, and enlarges the model's finest pixels where it has no finer ones",
        }
        raise UserError(f"{kind} {reason.get(kind, 'holds the whole world at every zoom')}; leave out {wrong[0]}.")
    if request.dpi is not None and kind in ("--video", "--pyramid"):
        raise UserError(f"--dpi is for pictures to print, and {kind} makes none; leave out --dpi.")
    if request.enlarge and request.extrapolate:
        raise UserError(
            "--enlarge takes the model's finest pixels, and --extrapolate has the model invent finer ones; give one of them."
        )
    if request.strip and request.size is not None and request.size[0] != request.size[1]:
        raise UserError(
            f"--strip shows square views, not of {request.size[0]} x {request.size[1]} pixels; give one side, such as "
            f"--size {max(request.size)}."
        )
    if kind == "--video":
        if wrong := [name for name in ("--scale", "--centre") if options[name] and request.flight]:
            raise UserError(f"--video flies from --from to --to; leave out {wrong[0]}.")
        if len(request.flight) < 2 and len(request.worlds) < 2:
            raise UserError(
                "A film needs a place to fly to, or worlds to pass through; give --to zoom,x,y such as --to 64,0.1,-0.2, or "
                "--seeds such as --seeds 3-5."
            )
    elif wrong := [name for name in ("--from or --to", "--loop", "--seconds", "--fps") if options[name]]:
        verb = "belong" if wrong[0] == "--from or --to" else "belongs"
        raise UserError(f"{wrong[0]} {verb} to a film; give --video FILE.mp4 with it.")
    if kind in ("--video", "--pyramid", "--tiff") and request.out != Request.out:
        raise UserError(f"{kind} names the file itself; leave out --out {request.out}.")
    if kind in ("--pyramid", "--tiff") and len(request.worlds) > 1:
        raise UserError(
            f"{kind} shows one world and {len(request.worlds)} were given; give one, and run it once for each."
        )
    if request.strip and max(map(abs, request.centre)) > 0.5:
        x, y = request.centre
        raise UserError(f"Centre ({x:g}, {y:g}) is outside the world; both coordinates must lie in [-0.5, 0.5].")
    if kind in ("", "--grid") and request.size is not None and request.size[0] * request.size[1] > MAX_PICTURE_PX:
        raise UserError(_too_large(request, *request.size))


def _too_large(request: Request, width: int, height: int) -> str:
    """What is said of a picture or of a sheet's views of more than ``MAX_PICTURE_PX``."""
    size, kind = f"{width} x {height} pixels", picture_kind(request)
    if request.grid:
        return f"Views of {size} are too large for a {kind}; give a smaller --size."
    option = f"--tiff {request.out}" if kind == "TIFF" else "--tiff FILE.tif"
    return (
        f"An image of {size} is too large to be held as a whole, as a {kind} is (up to {MAX_PICTURE_PX:,} pixels); give "
        f"{option} in place of --out, which is written part by part (with --enlarge, if that is finer than the model), or for "
        "the whole world as fine as the model goes --pyramid FILE.dzi without --size."
    )


def _check_place(request: Request) -> None:
    """Refuse names and places to which the result could not be written."""
    if request.video is not None:
        from multiscale.rendering.film_files import kind_of_film  # here: PyAV takes a while

        film = Path(request.video)
        kind_of_film(film).check_place(film)
        return
    named = {"--pyramid": (request.pyramid, (".dzi",)), "--tiff": (request.tiff, (".tif", ".tiff"))}
    for option, (name, suffixes) in named.items():
        if name is None:
            continue
        path = Path(name)
        if path.suffix.lower() not in suffixes:
            raise UserError(f"{option} {path} does not end in {' or '.join(suffixes)}; give a name that does.")
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; give the name of a file.")
        check_writable(path)
        return
    for path in [grid_path(request)] if request.grid else picture_paths(request)[:1]:
        check_writable(path)


def grid_path(request: Request) -> Path:
    """The file of ``--grid``."""
    out = _checked_out(request)
    return out if _is_picture(request.out) else out / "grid.png"


def picture_paths(request: Request) -> list[Path]:
    """A file for each world."""
    out, scale = _checked_out(request), 1.0 if request.scale is None else request.scale
    if _is_picture(request.out):
        if len(request.worlds) > 1:
            raise UserError(
                f"{len(request.worlds)} seeds cannot be written to the one file {out}; give a folder as --out"
                f"{'' if request.strip else ', or --grid for one sheet of all'}."
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


def _is_picture(out: str) -> bool:
    """Whether ``--out`` names one picture, not a folder."""
    return Path(out).suffix.lower() in PICTURES and not ends_in_separator(out)


def picture_kind(request: Request) -> str:
    """The format in which ``--out`` has pictures written, such as ``"PNG"``."""
    return KINDS.get(Path(request.out).suffix.lower(), "PNG") if _is_picture(request.out) else "PNG"


def _checked_out(request: Request) -> Path:
    out = Path(request.out)
    if _is_picture(request.out):
        if PICTURES[out.suffix.lower()] < request.bits:
            raise UserError(
                f"--out {out} cannot hold {request.bits} bits a channel; give a name that ends in .png or .tif."
            )
    elif is_file_name(request.out):
        raise UserError(
            f"--out {out} asks for a format that pictures cannot have here; give a name that ends in {', '.join(PICTURES)}, or "
            f"a folder (if it is to have that name: {out}/), or --video or --pyramid."
        )
    elif out.is_file():
        raise UserError(
            f"--out {out} is a file that does not end in {', '.join(PICTURES)}; give such a name, or a folder."
        )
    return out


def _file_name(world: World) -> str:
    """Seeds with four digits or more, so that files are listed in order; no colons, which some file systems refuse."""
    text = str(world)
    return f"{int(text):04d}" if text.isdigit() else text.replace(":", "=")
