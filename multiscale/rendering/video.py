"""Films: a flight through a world at constant zoom speed, as H.264.

The same command gives the same bytes: frames are rendered one at a time, and the encoder's threads and headers are fixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import Colorspace

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.rendering.enlarging import enlarged_image
from multiscale.rendering.flights import Keyframe, zoom_path
from multiscale.rendering.renderer import Cancelled, Renderer
from multiscale.rendering.worlds import World
from multiscale.view import Region

ENCODER = {"crf": "16", "preset": "medium", "threads": "4", "flags": "+bitexact", "x264-params": "mbtree=0"}
"""Without x264's macroblock tree, whose AVX-512 code reads memory that it has not written: other bytes at each run."""
MAX_FRAMES = 100_000
MAX_SIDE_PX = 8192


def write_film(
    path: Path,
    renderer: Renderer,
    world: World,
    truncation_psi: float,
    keyframes: Sequence[Keyframe],
    *,
    width: int,
    height: int,
    fps: int,
    seconds: float,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[float], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Render a flight and write it as MP4 (H.264, 4:2:0), whole or not at all.

    Where pixels would be finer than the model's finest, those are rendered and enlarged.

    Args:
        path: The file.
        renderer, world, truncation_psi: What is shown.
        keyframes: Two or more; see :func:`multiscale.rendering.flights.zoom_path`.
        width, height: In pixels, even.
        fps: Frames a second.
        seconds: Length.
        facts: Kept as JSON in the file's comment.
        progress: Told the fraction that is done, from 0 to 1, after each frame.
        cancelled: Asked before each layer of each frame; True gives up.

    Raises:
        UserError: a size, length or keyframe that is not allowed, or the file cannot be written.
        Cancelled: ``cancelled`` said so.
    """
    frames = check_film(renderer, keyframes, width=width, height=height, fps=fps, seconds=seconds)
    with (
        atomic_write(path, "w+b") as file,
        av.open(file, "w", format="mp4", options=_MUXER, io_open=lambda *_: _Again(file)) as film,
    ):
        stream = film.add_stream("libx264", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.color_range, stream.codec_context.colorspace = _VIDEO_RANGE, _BT709
        stream.codec_context.color_primaries = stream.codec_context.color_trc = _BT709
        film.metadata["comment"] = json.dumps(facts or {})
        for i, (zoom, centre) in enumerate(zoom_path(keyframes, frames)):
            region = Region.of_view(zoom, centre, width, height)
            if cancelled is not None and cancelled():
                raise Cancelled
            pixels = enlarged_image(renderer, world, region, truncation_psi, cancelled)
            frame = av.VideoFrame.from_ndarray(np.broadcast_to(pixels, (height, width, 3)).copy(), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts = i
            film.mux(stream.encode(frame))
            if progress is not None:
                progress((i + 1) / frames)
        film.mux(stream.encode())


class _Again:
    """An open file read from a place of its own: the muxer reads what it has written, to put the index in front."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._place = file, 0

    def read(self, size: int) -> bytes:
        written = self._file.tell()
        self._file.seek(self._place)
        data = self._file.read(size)
        self._place += len(data)
        self._file.seek(written)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        ends = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: os.fstat(self._file.fileno()).st_size}
        self._place = ends[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place


_MUXER = {"movflags": "+faststart", "fflags": "+bitexact"}
_VIDEO_RANGE = 1  # AVCOL_RANGE_MPEG
_BT709 = 1


def check_film(
    renderer: Renderer, keyframes: Sequence[Keyframe], *, width: int, height: int, fps: int, seconds: float
) -> int:
    """The number of frames of a film; UserError if :func:`write_film` would refuse it."""
    frames = round(seconds * fps)
    if width % 2 or height % 2 or not (16 <= width <= MAX_SIDE_PX and 16 <= height <= MAX_SIDE_PX):
        raise UserError(
            f"A film of {width} x {height} pixels is not possible; give even sides from 16 to {MAX_SIDE_PX}."
        )
    if not (1 <= fps <= 240 and 1 <= frames <= MAX_FRAMES):
        raise UserError(
            f"A film of {frames} frames at {fps} a second is not possible; give up to {MAX_FRAMES:,} at 1 to 240 a second."
        )
    if len(keyframes) < 2:
        raise UserError("A film needs two places or more to fly between.")
    for keyframe in keyframes:
        zoom, most = keyframe.zoom, renderer.max_zoom
        if not 1 <= zoom <= most:
            raise UserError(f"Scale {zoom:g} is out of range: this model zooms from 1 to {most:g}.")
        region = Region.of_view(zoom, (keyframe.x, keyframe.y), width, height)
        renderer.check(region, extrapolate=True)
    return frames
