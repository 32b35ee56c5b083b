"""The journal of a run: lines of JSON for programs and people, and the same for TensorBoard.

All files are in the run's folder: ``stats.jsonl``, ``metrics.jsonl`` (how good its snapshots are), and event files that
``tensorboard --logdir runs`` shows by the run's name. TensorBoard's steps are images seen. Each call writes
at once, without a thread, so that no error is lost in one.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.errors import UserError, cannot_write
from dnnlib.files import atomic_write
from dnnlib.reading import from_json, parsed, regular_size

STATS, METRICS = "stats.jsonl", "metrics.jsonl"
EVENTS = "events.out.tfevents.*"
SHEET_WIDTH_PX = 1024
"""Greatest width of sample sheets in TensorBoard; the run's folder has them in full size."""
JPEG_QUALITY = 90


class Journal:
    """The journal that a run writes, opened in its first process only.

    Lines and events of steps that will be repeated are dropped, and so are truncated ones.

    Args:
        folder: Of the run; it exists.
        images: Images seen so far; -1 for a new run, before which nothing counts.

    Raises:
        UserError: the folder cannot be written or the disk is full. All methods raise it; earlier lines stay readable.
    """

    def __init__(self, folder: Path, images: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # here: it takes half a second
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._stats = folder / STATS
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._metrics = folder / METRICS
        for path in (self._stats, self._metrics):
            drop_lines_after(path, images)
        older = list(folder.glob(EVENTS))
        for path in older:
            _cut_events_after(path, images)
        name = f"{int(time.time())}.{len(older):04d}"  # the number puts files of one second in order
        self._path = folder / EVENTS.replace("*", name)
        with _writing(self._path):
            self._records = RecordWriter(open(self._path, "wb"))  # noqa: SIM115 - closed by close()
        self._add(file_version="brain.Event:2")
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(
            step=max(images, 0) + 1, session_log=session
        )  # one that shows older files now forgets them from there on

    def write(self, images: int, values: Mapping[str, float | Sequence[float | None]]) -> None:
        """Append one line, ``{"kimg": images / 1000, **values}``, and the same numbers for TensorBoard.

        Args:
            images: Images seen.
            values: Numbers by name; a list has one for each octave, or None, and is ``name/octave i`` in TensorBoard.
        """
        _append(self._stats, json.dumps({"kimg": images / 1000, **values}) + "\n")
        self._plot(images, values)

    def measure(self, images: int, results: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Append measures of a snapshot to ``metrics.jsonl``, and their values, also by octave, for TensorBoard.

        Args:
            images: Images seen.
            results: JSON values by the measures' names: ``value``, and ``octaves`` where there are any.
            facts: What results must have in common to be comparable.
        """
        _append(self._metrics, metrics_line(images / 1000, results, facts))
        values = {f"metrics/{name}": result["value"] for name, result in results.items()}
        octaves = {f"metrics/{name}": r["octaves"] for name, r in results.items() if "octaves" in r}
        self._plot(images, values)
        self._plot(images, octaves)

    def _plot(self, images: int, values: Mapping[str, float | Sequence[float | None]]) -> None:
        """Numbers for TensorBoard, as :meth:`write` says."""
        scalars = [
            self._summary.Value(tag=tag, simple_value=number)
            for name, value in values.items()
            for tag, number in _scalars(name, value)
        ]
        self._add(step=images, summary=self._summary(value=scalars))

    def show(self, images: int, name: str, sheet: np.ndarray) -> None:
        """Add an image, uint8 [H, W, 3], to TensorBoard, downsampled if it is wide."""
        picture = Image.fromarray(sheet)
        if picture.width > SHEET_WIDTH_PX:
            height = max(round(picture.height * SHEET_WIDTH_PX / picture.width), 1)
            picture = picture.resize((SHEET_WIDTH_PX, height), Image.Resampling.LANCZOS)
        encoded = io.BytesIO()
        picture.save(encoded, "jpeg", quality=JPEG_QUALITY)
        image = self._summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=encoded.getvalue()
        )
        self._add(step=images, summary=self._summary(value=[self._summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the event file; everything is on disk already."""
        with contextlib.suppress(OSError):  # the call that could not write has said so
            self._records.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, **content: Any) -> None:
        """Append an event; if that fails the file is closed, because later events would be unreadable."""
        try:
            with _writing(self._path):
                self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
                self._records.flush()
        except UserError:
            self.close()
            raise


def read_stats(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``stats.jsonl``, oldest first, without truncated ones; only numbers, and lists of numbers and None,
    are kept. None if there is no file.

    Raises:
        UserError: the file cannot be read.
    """
    return [
        {name: value for name, value in values.items() if _is_statistic(value)}
        for _, values in _whole_lines(folder / STATS)
    ]


def _is_statistic(value: Any) -> bool:
    """Whether a value is what :meth:`Journal.write` takes: a number, or one or none for each octave."""
    if isinstance(value, list):
        return all(number is None or type(number) in (int, float) for number in value)
    return value is None or type(value) in (int, float)


def metrics_line(kimg: float | None, results: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """A line of ``metrics.jsonl``."""
    return json.dumps({"kimg": kimg, **facts, "results": results}) + "\n"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, oldest first; none if there is no file.

    Runs before format 3 wrote sliced Wasserstein distances to ``stats.jsonl``: these are lines with the measure ``swd``, unless
    the file has one of that name.

    Raises:
        UserError: the file cannot be read.
    """
    lines = [values for _, values in _whole_lines(folder / METRICS) if isinstance(values.get("results"), dict)]
    for line in lines:
        line["results"] = {name: result for name, result in line["results"].items() if _is_measured(result)}
    if any("swd" in line["results"] for line in lines):
        return lines
    older = []
    for line in read_stats(folder):
        result = {"value": line.get("swd mean"), "octaves": line.get("swd"), "better": "lower"}
        if _is_measured(result):
            older.append({"kimg": line["kimg"], "results": {"swd": result}})
    return sorted([*older, *lines], key=lambda line: line["kimg"])


def _is_measured(result: Any) -> bool:
    return isinstance(result, dict) and type(result.get("value")) in (int, float)


def drop_lines_after(path: Path, images: int) -> None:
    """Drop the lines written after ``images`` images, whose steps will be repeated, and truncated ones.

    The file is replaced atomically, or left alone if there is nothing to drop.

    Raises:
        UserError: the file cannot be read or written.
    """
    kept = b"".join(line + b"\n" for line, values in _whole_lines(path) if values["kimg"] * 1000 <= images + 0.5)
    if path.exists() and path.stat().st_size != len(kept):
        with atomic_write(path) as stream:
            stream.write(kept)


def _cut_events_after(path: Path, images: int) -> None:
    """Truncate an event file before the first event after ``images`` images, or the first incomplete one.

    An event is its length (uint64), a checksum (4 bytes), a protocol buffer, another checksum.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    with _writing(path), open(path, "r+b") as stream:
        total, end = os.fstat(stream.fileno()).st_size, 0
        while end < total:
            size = int.from_bytes(stream.read(12)[:8], "little")
            if end + 16 + size > total:
                break
            try:
                event = Event.FromString(stream.read(size + 4)[:-4])
            except DecodeError:
                break
            if event.HasField("summary") and event.step > images:
                break
            end += 16 + size
        if end < total:
            stream.truncate(end)


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each complete line and its values."""
    try:
        lines = path.read_bytes().splitlines() if path.exists() and regular_size(path, "the lines") else []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    for line in lines:
        with contextlib.suppress(UserError):
            values = parsed(functools.partial(from_json, line), "{reason}")
            if isinstance(values, dict) and type(values.get("kimg")) in (int, float) and math.isfinite(values["kimg"]):
                yield line, values


def _append(path: Path, line: str) -> None:
    with _writing(path), open(path, "a", encoding="utf-8") as stream:
        stream.write(line)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _scalars(name: str, value: float | Sequence[float | None]) -> Iterator[tuple[str, float]]:
    if isinstance(value, Sequence):
        yield from ((f"{name}/octave {i}", number) for i, number in enumerate(value) if number is not None)
    else:
        yield name, value
