"""The pictures of a file or folder, judged by what they hold: all that can be used, or the names of all that cannot."""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from dnnlib.progress import progress_bar
from dnnlib.reading import regular_size
from multiscale.data.pictures import Picture, examine, remove_broken_levels
from multiscale.data.process_pool import in_order
from multiscale.data.source import counted, listed
from multiscale.data.vips import RAW_SUFFIXES, SLIDE_SUFFIXES, NotAPicture, Reading, Unreadable, way_out

PHOTOGRAPH_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".fits",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
    }
    | {".jxl", ".ppm", ".tga", ".tif", ".tiff", ".webp", *SLIDE_SUFFIXES}
)
"""Names that promise a picture: a file of such a name that holds none is an error, of another name it is passed over."""
KINDS_NAMED = 10
"""Kinds of what is passed over, that are counted one by one."""
KINDS = {"ushort": "16 bits", "short": "16 bits with a sign", "uint": "32 bits", "int": "32 bits with a sign"}
KINDS |= {"float": "floating point", "double": "floating point", "char": "8 bits with a sign"}


DARK = 65535 / 4 + 257 / 2
"""Where what was seen of 16 bits ends below this, the numbers have fewer bits; rounded as it is seen through 8."""


def make_reading(memory: float, cache: float, page: int | None, value_range: str | None) -> Reading:
    """How pictures are read, from the options of the commands.

    Args:
        memory: GB of pictures that may be decoded at a time.
        cache: GB to keep of levels and tiles.
        page: Of a file with several; None: see :class:`Reading`.
        value_range: ``"0,4095"``, what becomes black and white; None: see :class:`Reading`.

    Raises:
        UserError: the range is not two finite numbers, the first below the second.
    """
    limits = None
    if value_range is not None:
        try:
            low, high = (float(part) for part in value_range.split(","))
        except ValueError:
            low = high = 0.0
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(
                f"--range {value_range} is not allowed; give two numbers, the first below the second, such as 0,4095."
            )
        limits = low, high
    return Reading(int(memory * 1e9), page, limits, cache_bytes=int(cache * 1e9))


class _ExamineJob(NamedTuple):
    """A file to look at; whether its name says that it is a picture, and whether there is no other."""

    path: Path
    sure: bool
    alone: bool
    reading: Reading
    held_bytes: int
    least_px: int


def _examine(job: _ExamineJob) -> Picture | str | None:
    """What a file is, why it cannot be used, or None if it neither is a picture nor claims to be one."""
    try:
        regular_size(job.path, "the image")
    except UserError as error:
        if job.alone:
            raise
        return f"cannot be read ({str(error).rpartition(': ')[2].rstrip('.')})"
    try:
        return examine(job.path, job.reading, job.held_bytes, job.least_px)
    except NotAPicture as error:
        return str(error) if job.sure else None
    except Unreadable as error:
        return str(error)


def find_pictures(
    source: Path, reading: Reading, workers: int, *, skip_bad: bool = False, least_px: int = 0
) -> tuple[list[Picture], Reading]:
    """All pictures of a file or folder, in the order of their names, and how processes shall read them.

    Every file is judged by what it holds: one whose name says nothing of pictures and that holds none is passed over. All are
    decoded but those whose shorter side is below ``least_px``.

    Raises:
        UserError: names all files that cannot be used (unless ``skip_bad``, which prints them); there is nothing.
    """
    files, passed, problems = _find_files(source)
    alone = len(files) < workers
    reading = replace(reading, threads=0 if alone else 1, cache=reading.cache or cache_folder())
    held = 0 if alone else reading.memory // (2 * workers)
    jobs = [_ExamineJob(path, sure, source == path, reading, held, least_px) for path, sure in files]
    pictures: list[Picture] = []
    looked_at = len(files) + len(problems)
    try:
        with (
            progress_bar(total=len(jobs), unit="file", desc="reading") as bar,
            contextlib.closing(in_order(_examine, jobs, workers)) as examined,
        ):
            for job, found in zip(jobs, examined, strict=True):
                if isinstance(found, str):
                    problems.append(f"{job.path if job.path == source else job.path.relative_to(source)} {found}")
                elif found is not None:
                    pictures.append(found)
                else:
                    passed[job.path.suffix.lower()] += 1
                bar.update()
    except BaseException:
        remove_broken_levels(reading)
        raise
    _print_passed(passed)
    if problems:
        which = "Image" if source.is_file() else f"{len(problems)} of {looked_at} files in {source} cannot be used:"
        if not skip_bad or not pictures:
            hint = "; --skip-bad goes on without them" if pictures else ""
            raise UserError(f"{which} {listed(problems, '; ', 100)}{hint}.")
        print(f"{which} {'; '.join(problems)}; they are left out.")
    if not pictures:
        raise UserError(f"Folder {source} holds no pictures; give --source another, or an image.")
    _print_raw(pictures)
    _print_pages(pictures)
    _print_dropped(pictures)
    _print_ranges(pictures)
    return pictures, reading


def _print_passed(passed: Counter[str]) -> None:
    """Say what of a folder is not used and no error either, by kind."""
    if passed:
        kinds = [f"{kind or 'no suffix'} ({count})" for kind, count in passed.most_common()]
        print(f"Passed over as no pictures: {listed(kinds, ', ', KINDS_NAMED)}.")
    by_way: dict[str, list[str]] = {}
    for kind in sorted(passed):
        if way := way_out(kind):
            by_way.setdefault(way, []).append(kind)
    if by_way:
        print(f"To use them, {' and '.join(way.format(', '.join(kinds)) for way, kinds in by_way.items())} first.")


def _such_as(one: str, count: int, noun: str) -> str:
    """The one that there is, or how many there are and one of them."""
    return one if count == 1 else f"{counted(count, noun)}, such as {one}"


def _print_raw(pictures: Sequence[Picture]) -> None:
    """Say where a camera's raw file is read by the TIFF that it also is."""
    raw = [picture for picture in pictures if picture.path.suffix.lower() in RAW_SUFFIXES]
    if raw:
        one = f"{raw[0].path.name} ({raw[0].width} x {raw[0].height})"
        print(
            f"{_such_as(one, len(raw), 'raw file')}: read as the TIFF that a raw file also is, which may be a preview or the "
            "sensor's bare numbers; export "
            f"{'it' if len(raw) == 1 else 'them'} as TIFF or PNG first."
        )


def _print_pages(pictures: Sequence[Picture]) -> None:
    """Say where another page than the first is read, and where another could be meant."""
    later = [picture for picture in pictures if picture.page]
    if len(later) == 1:
        print(f"{later[0].path.name}: page {later[0].page} is read, where the first is 0 (--page).")
    elif later:
        which = f"{later[0].page} of {later[0].path.name}"
        print(f"{counted(len(later), 'picture')}: another page than the first is read, such as {which} (--page).")
    several = [picture for picture in pictures if picture.alike > 1]
    if several:
        which = _such_as(several[0].path.name, len(several), "picture")
        print(
            f"{which}: the first of {several[0].alike} pages of its size is read (--page), be they channels or frames."
        )


def _print_dropped(pictures: Sequence[Picture]) -> None:
    """Say where a channel is not used."""
    fewer = [picture for picture in pictures if picture.dropped]
    if fewer:
        which = _such_as(fewer[0].path.name, len(fewer), "picture")
        print(f"{which}: the last channel is left out, as the file does not say that it is transparency.")


def _print_ranges(pictures: Sequence[Picture]) -> None:
    """Say what becomes black and white where the numbers are not 8 bits."""
    ranges = Counter((p.kind, p.colours.value_range) for p in pictures if p.colours.value_range)
    for (kind, limits), count in list(ranges.items())[:5]:
        assert limits is not None
        which = pictures[0].path.name if len(pictures) == 1 else counted(count, "picture")
        print(f"{which}: {KINDS.get(kind, kind)}, {limits[0]:g} becomes black and {limits[1]:g} white (--range).")
    dark = [picture for picture in pictures if picture.most is not None]
    most = max((picture.most or 0 for picture in dark), default=None)
    if most is not None and most <= DARK:
        which = "it" if len(dark) == 1 else "all"
        print(
            f"As far as was looked, no number in {which} is above about {_whole_bits(most)}, so that patches will be almost "
            f"black; --range 0,{_whole_bits(most)} makes that white."
        )
    if len(ranges) > 5:
        print(f"and {len(ranges) - 5} other ranges, each picture's own; --range LOW,HIGH gives all the same.")


def _whole_bits(most: float) -> int:
    """The largest number of as few bits as hold one that is known to half a step of 8 bits of 16."""
    return (1 << max(math.ceil(most - 128), 1).bit_length()) - 1


def _find_files(source: Path) -> tuple[list[tuple[Path, bool]], Counter[str], list[str]]:
    """What is in a folder, links followed: files that may be pictures, each once, and whether their names say that they are;
    how many others there are of each kind; and which folders cannot be read.
    """
    passed: Counter[str] = Counter()
    if source.is_file():
        return [(source, True)], passed, []
    if not source.is_dir():
        if source.exists():
            regular_size(source, "the image")
        raise UserError(f"There is no {source}; give --source an image or a folder of photographs.")
    paths, folders, shut = [], set(), []

    def note(error: OSError) -> None:
        path = Path(error.filename)
        name = source if path == source else path.relative_to(source)
        shut.append(f"{name} cannot be read ({error.strerror or error})")

    for name, below, files in os.walk(source, followlinks=True, onerror=note):
        facts = os.stat(name)
        if (facts.st_dev, facts.st_ino) in folders:  # a link in a circle
            below.clear()
            continue
        folders.add((facts.st_dev, facts.st_ino))
        kept = [folder for folder in below if not folder.startswith(".") and folder != "__MACOSX"]
        shown = [file for file in files if not file.startswith(".")]
        passed["hidden"] += len(below) - len(kept) + len(files) - len(shown)
        below[:] = kept
        paths += [Path(name, file) for file in shown]
    seen: set[tuple[int, int]] = set()
    found: list[tuple[Path, bool]] = []
    for path in sorted(paths):
        sure = path.suffix.lower() in PHOTOGRAPH_SUFFIXES
        try:
            facts = os.stat(path)
        except OSError:  # a link that leads nowhere, which opening will say
            found += [(path, sure)] if sure else []
            continue
        if not stat.S_ISREG(facts.st_mode):
            passed["pipe or device"] += 1
        elif (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            found.append((path, sure))
        else:
            passed["another link"] += 1
    if not found and not shut:
        raise UserError(f"Folder {source} holds no pictures; give --source another, or an image.")
    return found, +passed, shut
