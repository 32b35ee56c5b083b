"""A data set is a bag of square PNG patches, each with one number: the log2 of its zoom.

The container is a ZIP or a folder that holds the PNG files and one ``dataset.json``::

    {"labels": [["00000/img00000000.png", 3.2718], ...]}

Opening reads only the directory of the ZIP, that JSON and the header of the first patch, so that a set of 150,000
patches opens in a second or two; patches are read one by one when they are asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.container import (
    HEADER_BYTES,
    LABELS_FILE,
    MAX_LABEL,
    PNG_END,
    FolderSource,
    ZipSource,
    counted,
    is_hidden,
    listed,
    open_source,
    reason_of,
)

MAX_OCTAVES = 10
"""Deepest data set: 1024x."""

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_CHANNELS_OF_COLOUR_TYPE = {0: 1, 2: 3}
_COLOUR_TYPE_NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey + alpha", 6: "RGBA"}
_READ_ERRORS = (OSError, ValueError, OverflowError, SyntaxError, EOFError, struct.error, zlib.error)


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
    """Patches and their scales, from a ZIP or a folder; picklable, and safe in forked or spawned loader workers.

    Attributes:
        path: Where it was opened.
        names: Names of the patches inside the container, sorted; index i everywhere refers to this order.
        labels: float64 [n], log2 of the zoom of each patch, 0 = the whole scene.
        resolution: Side N of a patch in pixels, a power of two.
        num_channels: 1 (grey) or 3 (RGB).
        octaves: S = max(1, ceil(largest label)).
        patch_octaves: int64 [n], octave of each patch, 0 ... S - 1.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the container and check everything that can be known without decoding patches.

        Raises:
            UserError: missing or empty; neither ZIP nor folder; ``dataset.json`` missing or broken; patches without a
                label or labels without a patch; labels that are NaN, infinite or below 0; a first patch that is not
                an 8-bit grey or RGB PNG, square, with a power-of-two side.
        """
        self.path = Path(path)
        self._source = open_source(self.path)
        table = _read_labels(self._source, self.path)
        self.names: list[str] = sorted(table)
        self._source.keep(self.names)
        self.labels = np.array([table[name] for name in self.names], dtype=np.float64)
        self.octaves = count_octaves(self.labels)
        if self.octaves > MAX_OCTAVES:
            raise UserError(
                f"The labels of {self.path} reach {self.labels.max():g}, {self.octaves} octaves; at most {MAX_OCTAVES} are "
                "allowed (a label is log2 of the zoom factor): leave out what is deeper."
            )
        self.patch_octaves = octave_of(self.labels, self.octaves)
        self._format = self._format_of_first()
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
            pixels = _decode_png(self._source.read(index), self._format)
        except _READ_ERRORS as error:
            raise UserError(
                f"Patch {self.names[index]} in {self.path} cannot be used: {reason_of(error)} "
                f"('python dataset_tool.py inspect {self.path}' lists all that are bad)."
            ) from error
        return pixels, float(self.labels[index])

    def counts(self) -> np.ndarray:
        """Patches in each octave, int64 [octaves]."""
        return np.bincount(self.patch_octaves, minlength=self.octaves)

    def check_headers(self) -> None:
        """Look at the header and the end of every patch without decoding any; some 10 microseconds a patch.

        Raises:
            UserError: names the patches (the first 100) that are truncated, not PNG, or of another size or mode than the first.
        """
        found = ((name, self._header_problem(i)) for i, name in enumerate(self.names))
        problems = [f"{name} {problem}" for name, problem in found if problem is not None]
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
                _decode_png(self._source.read(index, verify=True), self._format)
            except _READ_ERRORS as error:
                problem = reason_of(error)
        return problem

    def _header_problem(self, index: int) -> str | None:
        try:
            head, tail = self._source.ends(index)
            found = _png_format(head)
            if found != self._format:
                return f"is {found}"
            if tail != PNG_END and PNG_END not in self._source.read(index):
                return "is truncated"
        except _READ_ERRORS as error:
            return reason_of(error)
        return None

    def _format_of_first(self) -> PatchFormat:
        where = f"Patch {self.names[0]} in {self.path}"
        try:
            found = _png_format(self._source.ends(0)[0])
        except _READ_ERRORS as error:
            raise UserError(f"{where} cannot be used: {reason_of(error)}.") from error
        side = found.width
        if found.height != side:
            raise UserError(f"{where} is {found.width} x {found.height} pixels; patches must be square.")
        if not 16 <= side <= 1024 or side & (side - 1):
            raise UserError(f"{where} is {side} x {side} pixels; the side must be a power of two from 16 to 1024.")
        if found.bits != 8 or found.colour_type not in _CHANNELS_OF_COLOUR_TYPE:
            raise UserError(f"{where} is {found}; patches must be 8-bit grey or 8-bit RGB.")
        return found


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
    with contextlib.ExitStack() as stack:
        mapped: Iterable[list[tuple[str, str]]]
        if workers > 1 and len(ranges) > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, initializer=_set_worker_dataset, initargs=(dataset,))
            )
            mapped = pool.map(_check_range_in_worker, ranges)
        else:
            mapped = (_check_range(dataset, span) for span in ranges)
        for (start, stop), found in zip(ranges, mapped, strict=True):
            problems += found
            if progress is not None:
                progress(stop - start)
    return problems


def _read_labels(source: FolderSource | ZipSource, path: Path) -> dict[str, float]:
    """Labels by name, complete and valid, or a UserError."""
    patches = {name for name in source.files if name.lower().endswith(".png") and not is_hidden(name)}
    if not source.files:
        raise UserError(f"{path} is empty: it holds neither patches nor {LABELS_FILE}.")
    if LABELS_FILE not in source.files:
        inner = [name for name in source.files if name.endswith("/" + LABELS_FILE)]
        hint = f"; it stands at {inner[0]}, but must be at the top level" if inner else ""
        raise UserError(f"{path} holds no {LABELS_FILE}, which gives each patch its scale{hint}.")
    try:
        pairs = json.loads(source.read_name(LABELS_FILE))["labels"]
        table = {str(name): _as_label(value) for name, value in pairs}
    except (*_READ_ERRORS, KeyError, TypeError, zipfile.BadZipFile) as error:
        form = '{"labels": [["00000/img00000000.png", 3.27], ...]}'
        raise UserError(
            f"{LABELS_FILE} in {path} is not of the form {form} ({type(error).__name__}: {error})."
        ) from error
    if not patches and not table:
        raise UserError(f"{path} holds no patches.")
    unlabelled, absent = sorted(patches - set(table)), sorted(set(table) - source.files)
    if unlabelled:
        raise UserError(f"{counted(len(unlabelled), 'patch')} in {path} without a label: {listed(unlabelled)}.")
    if absent:
        raise UserError(
            f"{LABELS_FILE} in {path} names {counted(len(absent), 'patch')} that {path} lacks: {listed(absent)}."
        )
    if len(pairs) != len(table):
        raise UserError(f"{LABELS_FILE} in {path} names {counted(len(pairs) - len(table), 'patch')} twice.")
    wrong = [f"{name} = {value:g}" for name, value in sorted(table.items()) if not 0 <= value <= MAX_LABEL]
    if wrong:
        raise UserError(
            f"{counted(len(wrong), 'label')} in {path} outside 0 ... {MAX_LABEL:g}: {listed(wrong)}; "
            "a label is log2 of the zoom, 0 for the whole scene."
        )
    return table


def _as_label(value: Any) -> float:
    """A label is a number, or a list that holds one number, as some tools write it."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a label is {value!r}, not a number")
    return float(value)


def _png_format(head: bytes) -> PatchFormat:
    if head[: len(_PNG_START)] != _PNG_START or len(head) < HEADER_BYTES:
        raise ValueError("is not a PNG file" if len(head) >= len(_PNG_START) else "is truncated")
    return PatchFormat(*struct.unpack_from(">IIBB", head, len(_PNG_START)))


def _decode_png(data: bytes, expected: PatchFormat) -> np.ndarray:
    """uint8 [C, N, N] of a PNG of the expected format, or ValueError / OSError / SyntaxError."""
    found = _png_format(data[:HEADER_BYTES])
    if found != expected:
        raise ValueError(f"is {found}, but the first patch is {expected}")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pixels = np.array(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


_worker_dataset: PatchDataset | None = None


def _set_worker_dataset(dataset: PatchDataset) -> None:
    global _worker_dataset
    _worker_dataset = dataset


def _check_range(dataset: PatchDataset, span: tuple[int, int]) -> list[tuple[str, str]]:
    found = [(dataset.names[i], dataset.problem_of(i)) for i in range(*span)]
    return [(name, problem) for name, problem in found if problem is not None]


def _check_range_in_worker(span: tuple[int, int]) -> list[tuple[str, str]]:
    assert _worker_dataset is not None
    return _check_range(_worker_dataset, span)
