"""A data set is a bag of square PNG patches, each with one number: the log2 of its zoom.

The container is a ZIP or a folder that holds the PNG files and one ``dataset.json``::

    {"labels": [["00000/img00000000.png", 3.2718], ...]}

A large set may be several of these, named by a pattern such as ``patches-*.zip``. Opening reads only the directory of each
ZIP, its JSON and the header of its first patch: a million patches take 3 to 4 seconds and 500 MB, of which 75 MB stay.
Patches are read one by one when they are asked for.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import gc
import io
import itertools
import math
import shlex
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dnnlib.errors import UserError
from dnnlib.names import typed_path
from multiscale.data.archive import ZipSource
from multiscale.data.container import open_sources
from multiscale.data.process_pool import in_order
from multiscale.data.source import READ_ERRORS, Names, PatchSource, check_labels, counted, listed, reason_of

MAX_OCTAVES = 10
"""Deepest data set: 1024x."""

_HEADER_BYTES = 33
"""Of a PNG file: signature and first chunk."""
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3}
_COLOUR_TYPE_NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}
PATCH_BYTES = 1 << 20
"""Of a patch in a ZIP beyond its pixels, at most: captions and profiles."""


class PatchFormat(NamedTuple):
    """What the header of a PNG says, and what all patches of a set share."""

    width: int
    height: int
    bits: int
    colour_type: int

    def __str__(self) -> str:
        kind = _COLOUR_TYPE_NAMES.get(self.colour_type, f"colour type {self.colour_type}")
        return f"{self.width} x {self.height} {self.bits}-bit {kind}"


def count_octaves(labels: np.ndarray) -> int:
    """Octaves S spanned by labels (float [n], n >= 1, log2 zoom >= 0): max(1, ceil(largest label))."""
    return max(1, math.ceil(float(np.max(labels))))


def octave_of(labels: np.ndarray, octaves: int) -> np.ndarray:
    """Octave of each label, int64 [n]: floor(label), the top label counted into the octave below it."""
    return np.minimum(np.floor(labels).astype(np.int64), octaves - 1)


class PatchDataset:
    """Patches and their scales, from a ZIP, a folder or several; picklable, and safe in threads and loader workers.

    Attributes:
        path: What was opened, a pattern as it was given.
        names: Names of the patches: of one container those inside it, sorted; of several each with its container's name in
            front, container by container. Index i everywhere refers to this order.
        labels: float64 [n], log2 of the zoom of each patch, 0 = the whole scene.
        resolution: Side N of a patch in pixels, a power of two.
        num_channels: 1 (grey) or 3 (RGB).
        octaves: S = max(1, ceil(largest label)).
        patch_octaves: int64 [n], octave of each patch, 0 ... S - 1.
        spans: Labels, lowest and highest, that each picture has which patches were cut from, as far as the set says.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the set and check everything that can be known without decoding patches.

        Args:
            path: A ZIP, a folder, or a pattern with ``*``, ``?`` or ``[...]`` that matches one or more of them, each
                complete with its own labels.

        Raises:
            UserError: missing or empty; a pattern that matches nothing; neither ZIP nor folder; a damaged ZIP;
                ``dataset.json`` missing or broken; patches without a label or labels without a patch; labels that are
                NaN, infinite or below 0; a first patch that is not an 8-bit grey or RGB PNG, square, with a power-of-two
                side; containers whose first patches differ in size or mode.
        """
        self.path = typed_path(path)
        with _collector_paused():
            self._sources = open_sources(path)
            parts = [source.listing() for source in self._sources]
        self.spans = [span for source in self._sources for span in source.spans]
        for source, (names, labels) in zip(self._sources, parts, strict=True):
            check_labels(source.path, names, labels)
        self._starts = [0, *itertools.accumulate(len(names) for names, _ in parts)]
        first = parts[0][0]
        self.names = first if isinstance(first, Names) else Names(first)
        if len(parts) > 1:
            self.names = Names(
                f"{short}/{name}"
                for short, (names, _) in zip(self._short_names(), parts, strict=True)
                for name in names
            )
        self.labels = np.concatenate([labels for _, labels in parts])
        self.octaves = count_octaves(self.labels)
        if self.octaves > MAX_OCTAVES:
            raise UserError(
                f"The labels of {self.path} reach {self.labels.max():g}, {self.octaves} octaves; at most {MAX_OCTAVES} are "
                "allowed (a label is log2 of the zoom factor): leave out what is deeper."
            )
        self.patch_octaves = octave_of(self.labels, self.octaves)
        self._format = self._common_format()
        self.resolution = self._format.width
        self.num_channels = _CHANNELS_OF_COLOUR_TYPE[self._format.colour_type]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, float]:
        """Decode one patch.

        Args:
            index: -n <= index < n.

        Returns:
            The patch, uint8 [C, N, N], and its label s.

        Raises:
            UserError: the file is broken, or of another size or mode than the first.
        """
        index = range(len(self.names))[index]
        try:
            pixels = _decode_png(self._read(index), self._format)
        except READ_ERRORS as error:
            raise UserError(
                f"Patch {self.names[index]} in {self.path} cannot be used: it {reason_of(error)} "
                f"('python dataset_tool.py inspect {shlex.quote(str(self.path))}' lists all that are bad)."
            ) from error
        return pixels, float(self.labels[index])

    def counts(self) -> np.ndarray:
        """Patches in each octave, int64 [octaves]."""
        return np.bincount(self.patch_octaves, minlength=self.octaves)

    @functools.cached_property
    def content_crc32(self) -> int:
        """A number for the contents of all patches' files in their order; reads all files of a folder, once."""
        parts = zip(self._sources, itertools.pairwise(self._starts), strict=True)
        return zlib.crc32(b"".join(source.checksums(stop - start).tobytes() for source, (start, stop) in parts))

    def check_headers(self) -> None:
        """Look at the header and the end of every patch without decoding any; 2 to 3 microseconds a patch.

        Raises:
            UserError: names the patches (the first 100) that are truncated, not PNG, or of another size or mode than the first.
        """
        begin = _PNG_START + struct.pack(">IIBB", *self._format)
        suspects = [
            start + i
            for (start, stop), source in zip(itertools.pairwise(self._starts), self._sources, strict=True)
            for i in source.unlike(stop - start, begin, _PNG_END)
        ]
        found = ((i, self._header_problem(i)) for i in suspects)
        problems = [f"{self.names[i]} {problem}" for i, problem in found if problem is not None]
        if problems:
            raise UserError(
                f"{counted(len(problems), 'patch')} of {len(self)} in {self.path} cannot be used: {listed(problems, '; ', 100)}"
                f" (the first, {self.names[0]}, is {self._format}, and so must be all)."
            )

    def problem_of(self, index: int) -> str | None:
        """Decode one patch in full and say what is wrong with it (``"is truncated"``), or ``None``."""
        problem = self._header_problem(index)
        if problem is None:
            try:
                _decode_png(self._read(index), self._format)
            except READ_ERRORS as error:
                problem = reason_of(error)
        return problem

    def _header_problem(self, index: int) -> str | None:
        try:
            head, tail = self._ends(index)
            found = _png_format(head)
            if found != self._format:
                return f"is {found}"
            if tail != _PNG_END and _PNG_END not in self._read(index):
                return "is truncated"
        except READ_ERRORS as error:
            return reason_of(error)
        return None

    def _place(self, index: int) -> tuple[PatchSource, int]:
        """The container of a patch, and its index there."""
        part = bisect.bisect_right(self._starts, index) - 1
        return self._sources[part], index - self._starts[part]

    def _read(self, index: int) -> bytes:
        source, place = self._place(index)
        return source.read(place)

    def _ends(self, index: int) -> tuple[bytes, bytes]:
        source, place = self._place(index)
        return source.ends(place, _HEADER_BYTES, len(_PNG_END))

    def _short_names(self) -> list[str]:
        """What to call each container: the name of its file, or its path where two are called the same."""
        short = [source.path.name for source in self._sources]
        return short if len(set(short)) == len(short) else [source.path.as_posix() for source in self._sources]

    def _common_format(self) -> PatchFormat:
        """The format of the first patch of every container, or a UserError."""
        firsts = [self._format_of(start) for start in self._starts[:-1]]
        for source, found in zip(self._sources, firsts, strict=True):
            if found != firsts[0]:
                raise UserError(
                    f"{source.path} holds patches of {found}, but {self._sources[0].path} of {firsts[0]}; all that {self.path} "
                    "matches must agree: make them again with one --resolution, or name fewer."
                )
        first = firsts[0]
        for source in self._sources:
            if isinstance(source, ZipSource):
                source.largest = PATCH_BYTES + 2 * first.height * (first.width * first.bits * 3 // 8 + 1)
        return first

    def _format_of(self, index: int) -> PatchFormat:
        where = f"Patch {self.names[index]} in {self.path}"
        try:
            found = _png_format(self._ends(index)[0])
        except READ_ERRORS as error:
            raise UserError(f"{where} cannot be used: it {reason_of(error)}.") from error
        side = found.width
        if found.height != side:
            raise UserError(f"{where} is {found.width} x {found.height} pixels; patches must be square.")
        if not 16 <= side <= 1024 or side & (side - 1):
            raise UserError(f"{where} is {side} x {side} pixels; the side must be a power of two from 16 to 1024.")
        if found.bits != 8 or found.colour_type not in _CHANNELS_OF_COLOUR_TYPE:
            raise UserError(f"{where} is {found}; patches must be 8-bit grey or 8-bit RGB.")
        return found


class Mirrored:
    """A set with each of its n patches also mirrored left to right: 2n patches, picklable as the set itself.

    Attributes:
        dataset: The set, of which the first n patches are, and n + i is patch i mirrored.
        labels: float64 [2n].
        patch_octaves: int64 [2n].
        octaves, resolution, num_channels: Those of the set.
    """

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset
        self.labels, self.patch_octaves = np.tile(dataset.labels, 2), np.tile(dataset.patch_octaves, 2)
        self.octaves, self.resolution, self.num_channels = dataset.octaves, dataset.resolution, dataset.num_channels

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, float]:
        """Decode one patch.

        Args:
            index: -2n <= index < 2n.

        Returns:
            The patch, uint8 [C, N, N], and its label s.

        Raises:
            UserError: as the set does.
        """
        is_mirrored, place = divmod(range(len(self))[index], len(self.dataset))
        pixels, label = self.dataset[place]
        return np.ascontiguousarray(pixels[..., ::-1]) if is_mirrored else pixels, label


def check_patches(
    dataset: PatchDataset, *, workers: int = 1, progress: Callable[[int], Any] | None = None
) -> list[tuple[str, str]]:
    """Decode every patch and list all that cannot be used.

    Args:
        dataset: The opened set.
        workers: Processes, >= 1.
        progress: Called with the number of patches done since its last call.

    Returns:
        (name, what is wrong) of each bad patch, in the order of ``dataset.names``; empty if all are well.
    """
    block = 256
    ranges = [(start, min(start + block, len(dataset))) for start in range(0, len(dataset), block)]
    problems: list[tuple[str, str]] = []
    check = functools.partial(_check_range, dataset)
    with contextlib.closing(in_order(check, ranges, workers)) as checked:
        for (start, stop), found in zip(ranges, checked, strict=True):
            problems += found
            if progress is not None:
                progress(stop - start)
    return problems


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking, again and again, a million lists of JSON that are none: half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _png_format(head: bytes) -> PatchFormat:
    if head[: len(_PNG_START)] != _PNG_START or len(head) < _HEADER_BYTES:
        raise ValueError("is not a PNG file" if len(head) >= len(_PNG_START) else "is truncated")
    return PatchFormat(*struct.unpack_from(">IIBB", head, len(_PNG_START)))


def _decode_png(data: bytes, expected: PatchFormat) -> np.ndarray:
    """uint8 [C, N, N] of a PNG of the expected format, or ValueError / OSError / SyntaxError."""
    found = _png_format(data[:_HEADER_BYTES])
    if found != expected:
        raise ValueError(f"is {found}, but the first patch is {expected}")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _check_range(dataset: PatchDataset, span: tuple[int, int]) -> list[tuple[str, str]]:
    found = [(dataset.names[i], dataset.problem_of(i)) for i in range(*span)]
    return [(name, problem) for name, problem in found if problem is not None]
