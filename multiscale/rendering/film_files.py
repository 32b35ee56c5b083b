"""What a film is written to, by its name's ending: MP4, WebM, GIF, WebP, or a folder of PNG frames.

Pictures come one at a time and are encoded as they come, so that memory does not grow with the length of a film. The same
pictures give the same bytes: the encoders' threads and headers are fixed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_writable
from multiscale.rendering.files import claimed, exif, save_picture

MAX_FRAMES = 100_000
MAX_SIDE_PX = 8192
MIN_SIDE_PX = 16

Picture = Callable[[], np.ndarray]
"""Renders a frame when it is called: uint8 [H, W, 3], or [H, W, 1] of a grey model."""


@dataclass(frozen=True, kw_only=True)
class FilmFile:
    """A film as its file has it.

    Args:
        path: The file, or the folder of frames.
        width, height: In pixels.
        fps: Frames a second.
        frames: How many there are.
        facts: What the film shows, as JSON values; kept in the file.
    """

    path: Path
    width: int
    height: int
    fps: int
    frames: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a :class:`UserError` if :meth:`write` would refuse the size, the speed, the length or the ending."""
        kind, step = kind_of_film(self.path), 1
        if isinstance(kind, Encoding):
            step = kind.step_px
            if self.fps > kind.max_fps:
                raise UserError(
                    f"A {kind.name} of {self.fps} frames a second is not possible; give at most {kind.max_fps}, or write a "
                    "film that ends in .mp4."
                )
        if any(side % step or not MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in (self.width, self.height)):
            raise UserError(
                f"A film of {self.width} x {self.height} pixels is not possible; give {'even ' if step == 2 else ''}sides from "
                f"{MIN_SIDE_PX} to {MAX_SIDE_PX}."
            )
        if not (1 <= self.fps <= 240 and 1 <= self.frames <= MAX_FRAMES):
            raise UserError(
                f"A film of {self.frames} frames at {self.fps} a second is not possible; give up to {MAX_FRAMES:,} at 1 to "
                "240 a second."
            )

    def write(self, pictures: Iterable[Picture]) -> None:
        """Write the film: a file whole or not at all; of frames those that are not there yet.

        Raises:
            UserError: it cannot be written, or the folder holds something else.
        """
        kind_of_film(self.path).write(self, pictures)


class Frames:
    """PNG files ``frame-00000.png``, ...; what they follow from is in ``made-of.json``, so that a stopped film goes on."""

    name = "folder of PNG frames"

    def check_place(self, path: Path) -> None:
        """UserError if nothing could be written there."""
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file; a film without an ending is a folder of PNG frames: give another name.")
        check_writable(path, folder="filled")

    def write(self, film: FilmFile, pictures: Iterable[Picture]) -> None:
        """As :meth:`FilmFile.write`."""
        shape = {"width": film.width, "height": film.height, "fps": film.fps, "frames": film.frames}
        text = json.dumps({**film.facts, **shape}, indent=1)
        if claimed(film.path, text) != text:
            raise UserError(
                f"{film.path} holds something else than the frames of this film (of another flight, world, size or network); "
                "give another name, or remove it."
            )
        for i, picture in enumerate(pictures):
            file = film.path / f"frame-{i:05d}.png"
            if not file.exists():
                save_picture(file, picture(), {**film.facts, "frame": i})


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A file that an encoder of FFmpeg makes.

    Args:
        name: What it is called.
        container, muxer: FFmpeg's name of the format, and its options.
        codec, options: FFmpeg's name of the encoder, and its options.
        pixels: As the encoder takes them: ``yuv420p``, or ``pal8`` with a palette of 256 colours for each frame.
        colours: Of ITU-R BT.709, as the file then says; else those that the format has.
        step_px: What both sides must be multiples of.
        max_fps: Frames a second that players show.
        label: Puts the facts, as JSON, into the written file; None: the container keeps them as its comment.
    """

    name: str
    container: str
    codec: str
    muxer: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    bt709: bool = False
    step_px: int = 1
    max_fps: int = 240
    label: Callable[[IO[bytes], str, FilmFile], object] | None = None

    def check_place(self, path: Path) -> None:
        """UserError if nothing could be written there, or this build of PyAV lacks the encoder."""
        try:
            av.codec.Codec(self.codec, "w")
        except av.codec.codec.UnknownCodecError:
            raise UserError(
                f"This build of PyAV has no encoder {self.codec} for {path.name}; give a name that ends in .mp4, or install "
                "PyAV with pip, whose builds have it."
            ) from None
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file, or one without an ending for PNG frames.")
        check_writable(path)

    def write(self, film: FilmFile, pictures: Iterable[Picture]) -> None:
        """As :meth:`FilmFile.write`."""
        facts = json.dumps(dict(film.facts))
        with atomic_write(film.path, "w+b") as file:
            options = {"fflags": "+bitexact", **self.muxer}
            with av.open(
                file, "w", format=self.container, options=options, io_open=lambda *_: _Again(file)
            ) as container:
                stream = container.add_stream(self.codec, rate=film.fps, options=dict(self.options))
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = film.width, film.height, self.pixels
                if self.bt709:
                    context = stream.codec_context
                    context.color_range, context.colorspace = _VIDEO_RANGE, _BT709
                    context.color_primaries = context.color_trc = _BT709
                container.metadata["comment"] = facts
                for i, picture in enumerate(pictures):
                    frame = self._frame(np.broadcast_to(picture(), (film.height, film.width, 3)).copy())
                    frame.pts = i
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            if self.label is not None:
                self.label(file, facts, film)

    def _frame(self, pixels: np.ndarray) -> av.VideoFrame:
        if self.pixels == "pal8":
            image = Image.fromarray(pixels).quantize(256)
            colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = np.full((256, 4), 255, np.uint8)  # ARGB
            palette[: len(colours), 1:] = colours
            indexed: Any = (np.asarray(image), palette)  # as its documentation has it, not its types
            return av.VideoFrame.from_ndarray(indexed, format="pal8")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        return frame.reformat(format=self.pixels, dst_colorspace=Colorspace.ITU709 if self.bt709 else None)


def _label_gif(file: IO[bytes], text: str, film: FilmFile) -> None:
    """A comment (GIF89a, section 24) before the trailer."""
    data = text.encode()
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    file.seek(-1, os.SEEK_END)
    file.write(b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0\x3b")


def _label_webp(file: IO[bytes], text: str, film: FilmFile) -> None:
    """An EXIF chunk at the end (WebP container specification), which the extended header announces."""
    file.seek(12)
    if file.read(4) != b"VP8X":  # one picture, or the same all the time, has no such header
        file.seek(12)
        image = file.read()
        sides = b"".join((side - 1).to_bytes(3, "little") for side in (film.width, film.height))
        file.seek(12)
        file.write(b"VP8X" + struct.pack("<II", 10, 0) + sides + image)
    data = exif(text).removeprefix(b"Exif\0\0")
    file.seek(0, os.SEEK_END)
    file.write(b"EXIF" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2))
    size = file.tell()
    file.seek(4)
    file.write(struct.pack("<I", size - 8))
    file.seek(20)
    flags = file.read(1)[0]
    file.seek(20)
    file.write(bytes([flags | 0x08]))


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


_VIDEO_RANGE = 1  # AVCOL_RANGE_MPEG
_BT709 = 1

FILM_KINDS: Mapping[str, Encoding | Frames] = {
    ".mp4": Encoding(
        name="MP4",
        container="mp4",
        codec="libx264",
        muxer={"movflags": "+faststart"},
        # without x264's macroblock tree, whose AVX-512 code reads memory that it has not written: other bytes at each run
        options={"crf": "16", "preset": "medium", "threads": "4", "flags": "+bitexact", "x264-params": "mbtree=0"},
        bt709=True,
        step_px=2,
    ),
    ".webm": Encoding(
        name="WebM",
        container="webm",
        codec="libvpx-vp9",
        options={"crf": "20", "b": "0", "threads": "4", "row-mt": "1", "cpu-used": "2", "flags": "+bitexact"},
        bt709=True,
    ),
    ".gif": Encoding(
        name="GIF",
        container="gif",
        codec="gif",
        muxer={"loop": "0"},
        pixels="pal8",
        max_fps=50,  # browsers slow down frames of less than 2/100 s
        label=_label_gif,
    ),
    ".webp": Encoding(
        name="WebP",
        container="webp",
        codec="libwebp_anim",
        muxer={"loop": "0"},
        options={"quality": "90", "threads": "1"},
        label=_label_webp,
    ),
    "": Frames(),
}
"""By ending; GIF and WebP repeat for ever."""


def kind_of_film(path: Path) -> Encoding | Frames:
    """How a film of this name is written; :class:`UserError` if its ending is none of ``FILM_KINDS``."""
    kind = FILM_KINDS.get(path.suffix.lower())
    if kind is None:
        endings = ", ".join(ending for ending in FILM_KINDS if ending)
        raise UserError(
            f"Film {path} does not end in {endings}; give such a name, or one without an ending for a folder of PNG frames."
        )
    return kind
