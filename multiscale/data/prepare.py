"""Make patch sets, from the procedural scene or from photographs, and look into them.

Every patch draws from a random stream of its own, named by (seed, octave, index), and patches are written in a fixed
order: the same request gives the same bytes whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import stat
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, cache_folder
from dnnlib.pictures import grid
from dnnlib.progress import progress_bar
from dnnlib.reading import regular_size
from multiscale.data.charts import scale_chart
from multiscale.data.container import PatchWriter, check_dest, encode_png
from multiscale.data.cutting import Box, Source, cut_square, plan_cut
from multiscale.data.fetching import Web
from multiscale.data.patches import MAX_OCTAVES, PatchDataset, check_patches
from multiscale.data.pictures import (
    Picture,
    Place,
    depth_of,
    examine,
    forget_sources,
    octaves_at,
    open_source,
    shorter_side,
)
from multiscale.data.procedural import render_batch
from multiscale.data.remote import RemotePicture, fetch_tiles, is_remote, open_remote, tiles_of
from multiscale.data.source import counted, listed
from multiscale.data.tilings import is_template, parse_bounds, parse_zooms
from multiscale.data.vips import NotAPicture, Reading, Unreadable
from multiscale.view import uniform_centres
from torch_utils.random import stream

DEFAULT_OCTAVES = 6
MAX_PATCHES = 10_000_000
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
        ".mrxs",
        ".ndpi",
        ".pgm",
        ".png",
    }
    | {".ppm", ".svs", ".tga", ".tif", ".tiff", ".webp"}
)
"""Names that promise a picture: a file of such a name that holds none is an error, of another name it is passed over."""
PART_OF_AN_OCTAVE = 0.75
"""Of the finest octave, that a picture must have for it to be one, where the number of octaves is given."""
EMPTY_DRAWS = 200
"""Places to try for a patch, where a picture is empty in parts."""
KINDS = {"ushort": "16 bits", "short": "16 bits with a sign", "uint": "32 bits", "int": "32 bits with a sign"}
KINDS |= {"float": "floating point", "double": "floating point", "char": "8 bits with a sign"}

SHEET_COLUMNS = 8
CROPS_A_JOB = 16
_SCENE_PIXELS_A_JOB = 1 << 17

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
Patches = list[tuple[bytes, float]]
"""PNG files with their labels."""


def demo_counts(octaves: int) -> tuple[int, ...]:
    """Patches of each octave of a small demo: 400, 600, 800, 1000, then 1200 for every further octave."""
    return tuple(min(400 + 200 * octave, 1200) for octave in range(octaves))


def paper_counts(octaves: int) -> tuple[int, ...]:
    """The paper's proportions: 500, 1500, 4000, then 30,000 for every further octave (96,000 over 6, 156,000 over 8)."""
    return tuple((500, 1500, 4000)[octave] if octave < 3 else 30_000 for octave in range(octaves))


def parse_counts(text: str | None) -> tuple[int, ...] | None:
    """``"500,1500"`` -> (500, 1500), patches of each octave from coarse to fine; None stays None.

    Raises:
        UserError: not whole numbers of at least 1; an octave without patches could not be trained on.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"--counts {text} is not allowed; give whole numbers of at least 1, such as 500,1500,4000.")
    return tuple(int(part) for part in parts)


def make_reading(memory: float, cache: float, page: int, value_range: str | None) -> Reading:
    """How pictures are read, from the options of the commands.

    Args:
        memory: GB of pictures that may be decoded at a time.
        cache: GB to keep of levels and tiles.
        page: Of a file with several.
        value_range: ``"0,4095"``, what becomes black and white; None: see :class:`Reading`.

    Raises:
        UserError: not a number; the range is not two finite numbers, the first below the second.
    """
    if not (math.isfinite(memory) and math.isfinite(cache)):
        raise UserError(f"--memory {memory:g} and --cache {cache:g} are not allowed together; give numbers of GB.")
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


def make_demo(
    dest: str | Path,
    *,
    resolution: int = 64,
    octaves: int | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
) -> None:
    """Sample the procedural scene: in octave j, s uniform in [j, j + 1) and the centre uniform over the world.

    Args:
        dest: ZIP or folder to write.
        resolution: Side N of a patch, a power of two, 16 ... 1024 pixels.
        octaves: S >= 1; None: as many as there are ``counts``, else 6.
        counts: Patches of each octave, coarse to fine; None: ``demo_counts``.
        seed: Of the scene and of the views.
        workers: Processes; None: one a core.
        force: Replace an existing set.

    Raises:
        UserError: ``dest`` exists or cannot be written, a resolution or counts that are not allowed.
    """
    check_dest(Path(dest), force=force)
    check_resolution(resolution)
    counts = resolved_counts(counts, octaves or len(counts or ()) or DEFAULT_OCTAVES, demo_counts)
    block = min(max(_SCENE_PIXELS_A_JOB // resolution**2, 1), 64)
    jobs = [
        _SceneJob(resolution, seed, octave, start, min(start + block, count))
        for octave, count in enumerate(counts)
        for start in range(0, count, block)
    ]
    write_patches(Path(dest), _draw_scene, jobs, counts, workers=process_count(workers), force=force)


def make_from_photographs(
    source: str | Path,
    dest: str | Path,
    *,
    resolution: int = 256,
    octaves: int | None = None,
    counts: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    default_counts: Callable[[int], tuple[int, ...]] = paper_counts,
    reading: Reading | None = None,
    skip_bad: bool = False,
    allow_empty: float = 0.0,
    tiles: Tiles | None = None,
) -> None:
    """Sample one image, or each photograph below a folder as a scale space of its own.

    In octave j a patch has s uniform in [j, j + 1) and shows a square of side L/2^s, L the image's shorter side, at a
    uniform place; it is reduced to N x N and never enlarged. All files are decoded once before anything is written.

    Args:
        source: Image or folder (searched to any depth), or a picture as tiles (:func:`multiscale.data.remote.open_remote`).
        dest: ZIP or folder to write.
        resolution: Side N of a patch, a power of two, 16 ... 1024 pixels.
        octaves: S of which every photograph has all, but of the finest three quarters will do: S <= log2(L/N) + 1/4, and its
            labels end there. None: as many as there are ``counts``, else as all photographs have whole, at most 6.
        counts: Patches of each octave, coarse to fine, over all photographs; None: ``default_counts``.
        seed: Of scales and places.
        workers: Processes; None: one a core.
        force: Replace an existing set.
        default_counts: Patches of each of S octaves where none are given.
        reading: Memory, page and range; None: the defaults.
        skip_bad: Leave out files that cannot be used, and say so, in place of an error.
        allow_empty: Share of a patch, 0 ... 1, that may be empty: transparent or without data. 0: none of what its filter sees.
        tiles: Of a picture as tiles: how they are fetched; None: the defaults.

    Raises:
        UserError: photographs that cannot be read (all are named) or have too few octaves; no place for a patch that is not
            empty; tiles that are not given; as ``make_demo``.
    """
    dest, processes = Path(dest), process_count(workers)
    reading, tiles = reading or Reading(), tiles or Tiles()
    forget_sources()
    check_dest(dest, force=force)
    check_resolution(resolution)
    wanted = min(octaves or len(counts or ()), MAX_OCTAVES)
    least_px = int(resolution * 2 ** (wanted - 1 + PART_OF_AN_OCTAVE)) if wanted else 0
    pictures: Sequence[Place]
    remote = open_tiles(str(source), reading, tiles) if is_remote(str(source)) else None
    if remote is None:
        pictures, reading = find_pictures(Path(source), reading, processes, skip_bad=skip_bad, least_px=least_px)
    else:
        pictures = [remote]
    if octaves is None:
        available = min(octaves_at(picture, resolution) for picture in pictures)
        octaves = len(counts) if counts is not None else min(max(available, 1), DEFAULT_OCTAVES)
    _check_depth(pictures, octaves, resolution)
    counts = resolved_counts(counts, octaves, default_counts)
    mode = "L" if all(picture.grey for picture in pictures) else "RGB"
    jobs = [
        CropJob(picture, 0.0, reading, mode, resolution, seed, allow_empty, crops)
        for picture, crops in _crop_jobs(pictures, counts, seed, resolution)
    ]
    if remote is not None:
        remote = fetch_tiles(remote, tiles_of(remote, _parts(remote, jobs)), dry_run=tiles.dry_run)
        jobs = [job._replace(place=remote, mode="L" if remote.grey else "RGB") for job in jobs]
    if tiles.dry_run:
        print(f"{dest} would hold {sum(counts):,} patches, by octave {', '.join(f'{count:,}' for count in counts)}")
        return
    write_patches(dest, cut_patches, jobs, counts, workers=processes, force=force)
    forget_sources()


def inspect_patches(path: str | Path, *, sheet: str | Path | None = None, workers: int | None = None) -> None:
    """Print what a set holds, decode every patch, and draw a contact sheet with one row an octave.

    Args:
        path: ZIP or folder.
        sheet: PNG to write; None: none.
        workers: Processes; None: one a core.

    Raises:
        UserError: the set cannot be opened, or has problems, which have been printed.
    """
    if sheet is not None and Path(sheet).suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet} is not a PNG; give a name that ends in .png.")
    dataset = PatchDataset(path)
    side, kind = dataset.resolution, "RGB" if dataset.num_channels == 3 else "grey"
    low, high = dataset.labels.min(), dataset.labels.max()
    print(f"{dataset.path}: {len(dataset):,} {kind} patches of {side} x {side} pixels")
    print(f"labels s = log2 of the zoom: {low:.4f} ... {high:.4f}, {dataset.octaves} octaves")
    print("octave         zoom   patches   share")
    for octave, count in enumerate(dataset.counts()):
        print(f"{octave:6d} {_zooms(octave):>12} {count:9,d} {count / len(dataset):7.1%}")
    print("\n".join(scale_chart(dataset.labels, dataset.octaves, dataset.spans)))
    with progress_bar(total=len(dataset), unit="patch", desc="checking") as bar:
        bad = check_patches(dataset, workers=process_count(workers), progress=bar.update)
    problems = [f"octave {octave} holds no patch" for octave in np.flatnonzero(dataset.counts() == 0)]
    problems += [f"{name} {problem}" for name, problem in bad]
    print("\n".join(problems) if problems else "no problems")
    if sheet is not None:
        _write_sheet(dataset, {name for name, _ in bad}, Path(sheet))
        print(f"contact sheet: {sheet}")
    if problems:
        raise UserError(f"{dataset.path} has {len(problems)} problem{'s' * (len(problems) > 1)} (listed above).")


def _zooms(octave: int) -> str:
    return f"{2**octave}x - {2 ** (octave + 1)}x"


def _write_sheet(dataset: PatchDataset, bad: set[str], sheet: Path) -> None:
    """One row an octave: patches spread evenly over its scales."""
    rows, titles = [], []
    for octave in range(dataset.octaves):
        members = [int(i) for i in np.flatnonzero(dataset.patch_octaves == octave) if dataset.names[i] not in bad]
        if not members:
            continue
        members.sort(key=lambda i: dataset.labels[i])
        places = np.linspace(0, len(members) - 1, min(SHEET_COLUMNS, len(members))).round().astype(int)
        rows.append([dataset[members[place]][0].transpose(1, 2, 0) for place in places])
        titles.append(_zooms(octave))
    if not rows:
        raise UserError(f"No patch of {dataset.path} can be shown on a sheet.")
    with atomic_write(sheet) as file:
        file.write(encode_png(grid(rows, titles=[], row_titles=titles)))


def check_resolution(resolution: int) -> None:
    if not 16 <= resolution <= 1024 or resolution & (resolution - 1):
        raise UserError(f"--resolution {resolution} is not allowed; give a power of two from 16 to 1024.")


def resolved_counts(
    counts: Sequence[int] | None, octaves: int, rule: Callable[[int], tuple[int, ...]]
) -> tuple[int, ...]:
    if counts is None:
        return rule(octaves)
    if octaves > MAX_OCTAVES or sum(counts) > MAX_PATCHES:
        raise UserError(
            f"{sum(counts):,} patches over {octaves} octaves were asked for; at most {MAX_PATCHES:,} patches and "
            f"{MAX_OCTAVES} octaves are allowed."
        )
    if len(counts) != octaves:
        given = ",".join(map(str, counts))
        raise UserError(f"--counts {given} has {len(counts)} numbers for {octaves} octaves; give one for each octave.")
    return tuple(counts)


def process_count(workers: int | None) -> int:
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_patches(
    dest: Path,
    draw: Callable[[_Job], Patches],
    jobs: Sequence[_Job],
    counts: Sequence[int],
    *,
    workers: int,
    force: bool,
    facts: dict[str, Any] | None = None,
) -> None:
    """Write what ``draw`` makes of each job, in their order, and print what is there.

    Args:
        dest: ZIP or folder.
        draw: Makes PNG files with their labels; a function of a module, for processes.
        jobs: What it is given.
        counts: Patches of each octave.
        workers: Processes.
        force: Replace an existing set.
        facts: Of the set, written beside the labels.
    """
    with (
        PatchWriter(dest, force=force, facts=facts) as writer,
        progress_bar(total=sum(counts), unit="patch", desc=dest.name) as bar,
        contextlib.closing(in_order(draw, jobs, workers)) as drawn,
    ):
        for patches in drawn:
            for png, label in patches:
                writer.add(png, label)
            bar.update(len(patches))
    print(f"{dest}: {sum(counts):,} patches, by octave {', '.join(f'{count:,}' for count in counts)}")


def in_order(function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int) -> Generator[_Result, None, None]:
    """``map`` over processes that yields in order and keeps only a few results waiting; close it to stop early."""
    if workers <= 1 or not jobs:
        yield from map(function, jobs)
        return
    context = _process_context()
    processes = min(workers, len(jobs))
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    try:
        todo = iter(jobs)
        waiting: deque[Future[_Result]] = deque(
            pool.submit(function, job) for job in itertools.islice(todo, 4 * processes)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, job) for job in itertools.islice(todo, 1))
            yield result
    except BrokenProcessPool as error:
        raise UserError("A worker process was killed, perhaps for lack of memory; pass a smaller --workers.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _process_context() -> multiprocessing.context.BaseContext:
    """How to start processes: by forking, where that is safe; not once libvips has run, whose threads the fork would miss."""
    if sys.platform == "linux" and "pyvips" not in sys.modules:
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


class _SceneJob(NamedTuple):
    """Patches start ... stop - 1 of one octave of the procedural scene."""

    resolution: int
    seed: int
    octave: int
    start: int
    stop: int


def _draw_scene(job: _SceneJob) -> Patches:
    labels, centres = [], []
    for index in range(job.start, job.stop):
        rng = stream(job.seed, "demo", job.octave, index)
        labels.append(job.octave + rng.random())
        centres.append(uniform_centres(torch.tensor([2.0 ** labels[-1]], dtype=torch.float64), rng)[0].numpy())
    images = render_batch(np.stack(centres), np.exp2(labels), job.resolution, job.seed)
    return [(encode_png(image), label) for image, label in zip(images, labels, strict=True)]


class _ExamineJob(NamedTuple):
    """A file to look at; whether its name says that it is a picture, and whether there is no other."""

    path: Path
    sure: bool
    alone: bool
    reading: Reading
    held_bytes: int
    least_px: int


def _examine(job: _ExamineJob) -> Picture | str | None:
    """What a file is, why it cannot be used, or None if it is no picture and does not say so."""
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
    files = _find_files(source)
    alone = len(files) < workers
    reading = replace(reading, threads=0 if alone else 1, cache=reading.cache or cache_folder())
    held = 0 if alone else reading.memory // (2 * workers)
    jobs = [_ExamineJob(path, sure, source == path, reading, held, least_px) for path, sure in files]
    pictures: list[Picture] = []
    problems: list[str] = []
    with (
        progress_bar(total=len(jobs), unit="file", desc="verifying") as bar,
        contextlib.closing(in_order(_examine, jobs, workers)) as examined,
    ):
        for job, found in zip(jobs, examined, strict=True):
            if isinstance(found, str):
                problems.append(f"{job.path if job.path == source else job.path.relative_to(source)} {found}")
            elif found is not None:
                pictures.append(found)
            bar.update()
    if problems:
        which = "Image" if source.is_file() else f"{len(problems)} of {len(files)} files in {source} cannot be used:"
        if not skip_bad or not pictures:
            hint = "; --skip-bad goes on without them" if pictures else ""
            raise UserError(f"{which} {listed(problems, '; ', 100)}{hint}.")
        print(f"{which} {'; '.join(problems)}; they are left out.")
    if not pictures:
        raise UserError(f"Folder {source} holds no pictures; give --source another, or an image.")
    _print_ranges(pictures)
    return pictures, reading


def _print_ranges(pictures: Sequence[Picture]) -> None:
    """Say what becomes black and white where the numbers are not 8 bits."""
    ranges = Counter((p.kind, p.colours.value_range) for p in pictures if p.colours.value_range)
    for (kind, limits), count in list(ranges.items())[:5]:
        assert limits is not None
        which = pictures[0].path.name if len(pictures) == 1 else counted(count, "picture")
        print(f"{which}: {KINDS.get(kind, kind)}, {limits[0]:g} becomes black and {limits[1]:g} white (--range).")
    if len(ranges) > 5:
        print(f"and {len(ranges) - 5} other ranges, each picture's own; --range LOW,HIGH gives all the same.")


def _find_files(source: Path) -> list[tuple[Path, bool]]:
    """Files that may be pictures, each once, and whether their names say that they are; links are followed."""
    if source.is_file():
        return [(source, True)]
    if not source.is_dir():
        if source.exists():
            regular_size(source, "the image")
        raise UserError(f"There is no {source}; give --source an image or a folder of photographs.")
    paths, folders = [], set()
    for name, below, files in os.walk(source, followlinks=True):
        facts = os.stat(name)
        if (facts.st_dev, facts.st_ino) in folders:  # a link in a circle
            below.clear()
            continue
        folders.add((facts.st_dev, facts.st_ino))
        below[:] = [folder for folder in below if not folder.startswith(".") and folder != "__MACOSX"]
        paths += [Path(name, file) for file in files if not file.startswith(".")]
    seen: set[tuple[int, int]] = set()
    found: list[tuple[Path, bool]] = []
    for path in sorted(paths):
        sure = path.suffix.lower() in PHOTOGRAPH_SUFFIXES
        try:
            facts = os.stat(path)
        except OSError:  # a link that leads nowhere, which opening will say
            found += [(path, sure)] if sure else []
            continue
        if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            found.append((path, sure))
    if not found:
        raise UserError(f"Folder {source} holds no pictures; give --source another, or an image.")
    return found


def _check_depth(pictures: Sequence[Place], octaves: int, resolution: int) -> None:
    least = octaves - 1 + PART_OF_AN_OCTAVE
    shallow = [picture for picture in pictures if depth_of(picture, resolution) < least]
    if not shallow:
        return
    found = [f"{p.name} ({p.width} x {p.height}) has {octaves_at(p, resolution)}" for p in shallow]
    raise UserError(
        f"{len(shallow)} of {len(pictures)} images have fewer than {octaves} octaves at {resolution} x {resolution} "
        f"pixels, log2(shorter side/{resolution}) rounded down: {listed(found, '; ', 20)}; "
        "give fewer --octaves, a smaller --resolution, or larger images."
    )


class Crop(NamedTuple):
    """A patch to cut: its random stream is named by octave and number, its label is drawn between two ends."""

    octave: int
    number: int
    low: float
    high: float


@dataclass(frozen=True)
class Tiles:
    """How the tiles of a picture are fetched.

    Attributes:
        connections: Requests at a time.
        rate: Requests a second, at most; 0: no bound.
        zooms: Of XYZ: lowest and highest z, such as ``"0-12"``.
        bounds: Of XYZ: ``"west,south,east,north"`` in degrees; None: all.
        dry_run: Fetch a sample, say how much there is, and make nothing.
    """

    connections: int = 4
    rate: float = 20.0
    zooms: str | None = None
    bounds: str | None = None
    dry_run: bool = False


def open_tiles(source: str, reading: Reading, tiles: Tiles) -> RemotePicture:
    """Read a description of tiles; UserError as :func:`multiscale.data.remote.open_remote`, or for an option that is wrong."""
    zooms = parse_zooms(tiles.zooms) if is_template(source) else None
    web = Web(tiles.connections, tiles.rate, reading.cache or cache_folder(), reading.cache_bytes)
    return open_remote(source, web, zooms, parse_bounds(tiles.bounds))


class CropJob(NamedTuple):
    """Patches of one picture.

    Attributes:
        place: The picture.
        base: Label of all of it, as far as its shorter side shows it: 0 where it is a world of its own.
        reading: How it is read.
        mode: ``L`` or ``RGB``, of the patches.
        resolution: N.
        seed: Of the draws.
        allow_empty: Share of a patch that may be empty.
        crops: Its patches.
    """

    place: Place
    base: float
    reading: Reading
    mode: str
    resolution: int
    seed: int
    allow_empty: float
    crops: tuple[Crop, ...]


def _crop_jobs(
    pictures: Sequence[Place], counts: Sequence[int], seed: int, resolution: int
) -> Iterator[tuple[Place, tuple[Crop, ...]]]:
    """Deal the patches of each octave evenly to the pictures, in an order drawn for the octave."""
    depths = [depth_of(picture, resolution) for picture in pictures]
    dealt: list[list[Crop]] = [[] for _ in pictures]
    for octave, count in enumerate(counts):
        order = stream(seed, "photographs", octave).permutation(len(pictures))
        for index in range(count):
            owner = order[index % len(order)]
            dealt[owner].append(Crop(octave, index, octave, min(octave + 1, depths[owner])))
    for picture, crops in zip(pictures, dealt, strict=True):
        for start in range(0, len(crops), CROPS_A_JOB):
            yield picture, tuple(crops[start : start + CROPS_A_JOB])


def _parts(picture: RemotePicture, jobs: Sequence[CropJob]) -> Iterator[tuple[Box, int]]:
    """What patches need of a picture, as they are drawn first."""
    levels = picture.tiling.levels()
    for job in jobs:
        for crop in job.crops:
            cut = plan_cut(levels, *next(_views(job, crop))[1], job.resolution)
            yield cut.box, cut.shrink


def cut_patches(job: CropJob) -> Patches:
    """Cut and encode; UserError if the picture is damaged, or has no place for a patch that is not empty."""
    try:
        source = open_source(job.place, job.reading)
        return [_cut_crop(source, job, crop) for crop in job.crops]
    except Unreadable as error:
        raise UserError(f"Image {job.place.name} {error}.") from error


def _views(job: CropJob, crop: Crop) -> Iterator[tuple[float, tuple[float, float, float]]]:
    """Label, side in pixels and place of a patch, as it is drawn first, and if that is empty then, and so on."""
    rng = stream(job.seed, "make", crop.octave, crop.number)
    shown = shorter_side(job.place)
    while True:
        label = crop.low + rng.random() * (crop.high - crop.low)
        side = min(max(shown / 2 ** (label - job.base), job.resolution), shown)
        yield label, (side, rng.random(), rng.random())


def _cut_crop(source: Source, job: CropJob, crop: Crop) -> tuple[bytes, float]:
    for label, view in itertools.islice(_views(job, crop), EMPTY_DRAWS):
        pixels, empty = cut_square(source, *view, job.resolution)
        if empty <= job.allow_empty:
            if pixels.ndim == 2 and job.mode == "RGB":
                pixels = np.repeat(pixels[..., None], 3, axis=2)
            return encode_png(pixels), label
    raise UserError(
        f"Of {EMPTY_DRAWS} patches of octave {crop.octave} in {source.describe()} none has at most "
        f"{job.allow_empty:.0%} of empty area; raise --allow-empty, or crop the image."
    )
