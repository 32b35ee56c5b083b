"""What ``generate.py`` does: which images are made, where they are written, and what each file says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnlib.errors import UserError
from multiscale.rendering.renderer import Renderer, provenance, save_png
from multiscale.rendering.sheets import zoom_strip
from multiscale.training.checkpoint import find_network, load_snapshot
from torch_utils.devices import default_device, keep_freed_memory

MAX_SEEDS = 100_000
OTHER_IMAGES = {".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What the user asked for."""

    seeds: Sequence[int]
    scale: float
    centre: tuple[float, float]
    truncation_psi: float
    strip: bool
    network: str | None
    out: str


def generate_images(request: ImageRequest) -> list[Path]:
    """Render one PNG for each seed and write them; returns their paths.

    ``out`` is a file if it ends in ``.png``, else a folder. Each file's text chunk ``multiscale`` holds seed, view and the
    network's SHA-256.

    Raises:
        UserError: a scale or centre out of range, no network, or several seeds for one file.
    """
    _check(request)
    paths = _paths(request)
    snapshot = load_snapshot(find_network(request.network))
    keep_freed_memory()
    renderer = Renderer(snapshot.generator, default_device())
    for seed, path in zip(request.seeds, paths, strict=True):
        pixels = _picture(renderer, request, seed)
        view = {"strip_to_scale": renderer.max_zoom} if request.strip else {"scale": request.scale}
        facts = {"seed": seed, **view, "centre": list(request.centre), "truncation_psi": request.truncation_psi}
        save_png(path, pixels, {**facts, **provenance(snapshot)})
    return paths


def parse_seeds(text: str) -> list[int]:
    """``"3"``, ``"0-15"``, ``"1,4,8-10"`` -> the seeds meant.

    Raises:
        UserError: anything else, a range that runs backwards, or more than 100,000 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(
                f"Seeds {text!r} cannot be read; write a number, a range such as 0-15, or a list such as 1,4,8-10."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if len(seeds) + last - first + 1 > MAX_SEEDS:
            raise UserError(f"Seeds {text!r} are more than {MAX_SEEDS:,} images; ask for fewer at once.")
        seeds.extend(range(first, last + 1))
    return seeds


def parse_centre(text: str) -> tuple[float, float]:
    """``"0.1,-0.2"`` -> world coordinates (x, y).

    Raises:
        UserError: it is not two finite numbers.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = float("nan")
    if not np.isfinite([x, y]).all():
        raise UserError(
            f"Centre {text!r} cannot be read; write two numbers x,y such as 0.1,-0.2 (the world is [-0.5, 0.5])."
        )
    return x, y


def _check(request: ImageRequest) -> None:
    if not np.isfinite(request.truncation_psi):
        raise UserError(
            f"--trunc {request.truncation_psi} is not allowed; give a number, 1 as trained, 0 the mean world."
        )
    if request.strip and request.scale != 1:
        raise UserError("--strip shows every zoom and --scale one of them; give one of the two.")
    if request.strip and max(map(abs, request.centre)) > 0.5:
        x, y = request.centre
        raise UserError(f"Centre ({x:g}, {y:g}) is outside the world; both coordinates must lie in [-0.5, 0.5].")


def _picture(renderer: Renderer, request: ImageRequest, seed: int) -> np.ndarray:
    if request.strip:
        return zoom_strip(renderer, seed, request.centre, request.truncation_psi)
    return renderer.render([seed], [request.scale], [request.centre], request.truncation_psi)[0]


def _paths(request: ImageRequest) -> list[Path]:
    out = Path(request.out)
    if out.suffix.lower() == ".png":
        if len(request.seeds) > 1:
            raise UserError(
                f"{len(request.seeds)} seeds cannot be written to the one file {out}; give a folder as --out."
            )
        return [out]
    if out.suffix.lower() in OTHER_IMAGES:
        raise UserError(f"--out {out} asks for another format than PNG; give a .png file or a folder.")
    if out.is_file():
        raise UserError(f"--out {out} is a file that does not end in .png; give a .png file or a folder.")
    name = "strip" if request.strip else f"{request.scale!r}x".replace(".0x", "x")
    if request.centre != (0, 0) and not request.strip:
        name += f"-at{request.centre[0]!r},{request.centre[1]!r}"
    if request.truncation_psi != 1:
        name += f"-trunc{request.truncation_psi!r}"
    return [out / f"seed{seed:04d}-{name}.png" for seed in request.seeds]
