"""Films: a flight through a world at constant zoom speed, or a walk from world to world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from multiscale.rendering.enlarging import enlarged_image
from multiscale.rendering.film_files import FilmFile, Picture
from multiscale.rendering.flights import Keyframe, zoom_path
from multiscale.rendering.renderer import Cancelled, Renderer
from multiscale.rendering.walks import MAX_WORLDS, walk
from multiscale.rendering.worlds import World
from multiscale.view import Region

FILM_PX = 512
"""Side of a film of a smaller network, unless another is asked for."""


def write_film(
    path: Path,
    renderer: Renderer,
    worlds: World | Sequence[World],
    truncation_psi: float,
    keyframes: Sequence[Keyframe],
    *,
    width: int,
    height: int,
    fps: int,
    seconds: float,
    loop: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[float], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Render a film and write it as the ending of its name says: .mp4, .webm, .gif, .webp; none: a folder of PNG frames.

    A file is written whole or not at all; frames that are in a folder already are kept. Where pixels would be finer than the
    model's finest, those are rendered and enlarged.

    Args:
        path: The file or folder.
        renderer, truncation_psi: What is shown.
        worlds: The world, or several, from one to the next; see :func:`multiscale.rendering.walks.walk`.
        keyframes: Where it is seen from; see :func:`multiscale.rendering.flights.zoom_path`. One is enough with several worlds.
        width, height: In pixels; even in an MP4.
        fps: Frames a second; at most 50 in a GIF.
        seconds: Length.
        loop: Go back to the first world and keyframe in the end, so that after the last frame comes the first.
        facts: Kept as JSON in the file.
        progress: Told the fraction that is done, from 0 to 1, after each frame.
        cancelled: Asked before each layer of each frame; True gives up.

    Raises:
        UserError: a size, length or keyframe that is not allowed, or the file cannot be written.
        Cancelled: ``cancelled`` said so.
    """
    worlds = [worlds] if isinstance(worlds, World) else worlds
    sizes = {"width": width, "height": height, "fps": fps}
    frames = check_film(path, renderer, worlds, keyframes, **sizes, seconds=seconds)

    def pictures() -> Iterator[Picture]:
        shown = walk(worlds, renderer.generator, frames, truncation_psi, loop=loop)
        views = zoom_path(keyframes, frames, loop=loop)
        for i, (world, (zoom, centre)) in enumerate(zip(shown, views, strict=True), start=1):
            if cancelled is not None and cancelled():
                raise Cancelled
            region = Region.of_view(zoom, centre, width, height)
            yield partial(enlarged_image, renderer, world, region, truncation_psi, cancelled)
            if progress is not None:
                progress(i / frames)

    FilmFile(path=path, frames=frames, facts=facts or {}, **sizes).write(pictures())


def film_facts(
    worlds: Sequence[World], truncation_psi: float, keyframes: Sequence[Keyframe], *, loop: bool
) -> dict[str, Any]:
    """What a film says that it shows."""
    names = [str(world) for world in worlds]
    facts = {"world": names if len(names) > 1 else names[0], "truncation_psi": truncation_psi}
    return {
        **facts,
        "flight": [[place.zoom, place.x, place.y] for place in keyframes],
        **({"loop": True} if loop else {}),
    }


def check_film(
    path: Path,
    renderer: Renderer,
    worlds: Sequence[World],
    keyframes: Sequence[Keyframe],
    *,
    width: int,
    height: int,
    fps: int,
    seconds: float,
) -> int:
    """The number of frames of a film; UserError if :func:`write_film` would refuse it."""
    frames = round(seconds * fps)
    FilmFile(path=path, width=width, height=height, fps=fps, frames=frames).check()
    if not keyframes or (len(keyframes) < 2 and len(worlds) < 2):
        raise UserError("A film needs two places or more to fly between, or two worlds or more.")
    if len(worlds) > MAX_WORLDS:
        raise UserError(f"A film through {len(worlds):,} worlds is not possible; give at most {MAX_WORLDS}.")
    renderer.check_worlds(worlds)
    for keyframe in keyframes:
        zoom, most = keyframe.zoom, renderer.max_zoom
        if not 1 <= zoom <= most:
            place = f"({zoom:g}, {keyframe.x:g}, {keyframe.y:g})"
            raise UserError(
                f"Scale {zoom:g} of the place {place} is out of range: this model zooms from 1 to {most:g}, and places are "
                "(zoom, x, y)."
            )
        region = Region.of_view(zoom, (keyframe.x, keyframe.y), width, height)
        renderer.check(region, extrapolate=True)
    return frames
