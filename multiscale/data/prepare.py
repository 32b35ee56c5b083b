"""Make patch sets, from the procedural scene or from photographs, and look into them.

Every patch draws from a random stream of its own, named by (seed, octave, index), and patches are written in a fixed
order: the same request gives the same bytes whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from dnnlib.pictures import grid
from dnnlib.progress import progress_bar
from dnnlib.reading import regular_size
from multiscale.data.container import PatchWriter, check_dest, encode_png
from multiscale.data.cutting import Pyramid, cut_patch
from multiscale.data.patches import MAX_OCTAVES, PatchDataset, check_patches
from multiscale.data.procedural import render_batch
from multiscale.data.source import listed
from multiscale.view import uniform_centres
from torch_utils.random import stream

DEFAULT_OCTAVES = 6
MAX_PATCHES = 10_000_000
PHOTOGRAPH_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
"""What counts as a photograph in a folder; files of other kinds are passed over."""

SMALL_NAMED = 10
"""Images with too few octaves that are named; the others are counted."""
SHEET_COLUMNS = 8
_CROPS_A_JOB = 16
_SCENE_PIXELS_A_JOB = 1 << 17

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
_Patches = list[tuple[bytes, float]]
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
    _check_resolution(resolution)
    counts = _resolved_counts(counts, octaves or len(counts or ()) or DEFAULT_OCTAVES, demo_counts)
    block = min(max(_SCENE_PIXELS_A_JOB // resolution**2, 1), 64)
    jobs = [
        _SceneJob(resolution, seed, octave, start, min(start + block, count))
        for octave, count in enumerate(counts)
        for start in range(0, count, block)
    ]
    _write_patches(Path(dest), _draw_scene, jobs, counts, workers=_process_count(workers), force=force)


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
) -> None:
    """Sample one image, or each photograph below a folder as a scale space of its own.

    In octave j a patch has s uniform in [j, j + 1) and shows a square of side L/2^s, L the image's shorter side, at a
    uniform place; it is reduced to N x N and never enlarged. All files are decoded once before anything is written.

    Args:
        source: Image or folder (searched to any depth).
        dest: ZIP or folder to write.
        resolution: Side N of a patch, a power of two, 16 ... 1024 pixels.
        octaves: 1 <= S <= log2(L/N) of every photograph; None: as many as there are ``counts``, else as all
            photographs have, at most 6.
        counts: Patches of each octave, coarse to fine, over all photographs; None: ``default_counts``.
        seed: Of scales and places.
        workers: Processes; None: one a core.
        force: Replace an existing set.
        default_counts: Patches of each of S octaves where none are given.

    Raises:
        UserError: photographs that cannot be read (all are named) or have too few octaves; as ``make_demo``.
    """
    source, dest, processes = Path(source), Path(dest), _process_count(workers)
    _photograph.cache_clear()  # files may have changed since
    check_dest(dest, force=force)
    _check_resolution(resolution)
    photographs = _verified_photographs(source, processes)
    if octaves is None:
        available = min(photograph.octaves_at(resolution) for photograph in photographs)
        octaves = len(counts) if counts is not None else min(max(available, 1), DEFAULT_OCTAVES)
    _check_depth(photographs, octaves, resolution)
    counts = _resolved_counts(counts, octaves, default_counts)
    mode = "L" if all(photograph.grey for photograph in photographs) else "RGB"
    jobs = _crop_jobs(photographs, mode, resolution, seed, counts)
    if len(photographs) == 1:
        # Decoded and halved here, so that forked processes share it.
        _photograph(photographs[0].path).level(photographs[0].shorter_side / resolution)
    _write_patches(dest, _cut_patches, jobs, counts, workers=processes, force=force)
    _photograph.cache_clear()


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
    with progress_bar(total=len(dataset), unit="patch", desc="checking") as bar:
        bad = check_patches(dataset, workers=_process_count(workers), progress=bar.update)
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


def _check_resolution(resolution: int) -> None:
    if not 16 <= resolution <= 1024 or resolution & (resolution - 1):
        raise UserError(f"--resolution {resolution} is not allowed; give a power of two from 16 to 1024.")


def _resolved_counts(
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


def _process_count(workers: int | None) -> int:
    if workers is not None:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_patches(
    dest: Path,
    draw: Callable[[_Job], _Patches],
    jobs: Sequence[_Job],
    counts: Sequence[int],
    *,
    workers: int,
    force: bool,
) -> None:
    with (
        PatchWriter(dest, force=force) as writer,
        progress_bar(total=sum(counts), unit="patch", desc=dest.name) as bar,
        contextlib.closing(_in_order(draw, jobs, workers)) as drawn,
    ):
        for patches in drawn:
            for png, label in patches:
                writer.add(png, label)
            bar.update(len(patches))
    print(f"{dest}: {sum(counts):,} patches, by octave {', '.join(f'{count:,}' for count in counts)}")


def _in_order(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int
) -> Generator[_Result, None, None]:
    """``map`` over processes that yields in order and keeps only a few results waiting; close it to stop early."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    # Forked processes share what this one has decoded; elsewhere than on Linux, forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
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


def _draw_scene(job: _SceneJob) -> _Patches:
    labels, centres = [], []
    for index in range(job.start, job.stop):
        rng = stream(job.seed, "demo", job.octave, index)
        labels.append(job.octave + rng.random())
        centres.append(uniform_centres(torch.tensor([2.0 ** labels[-1]], dtype=torch.float64), rng)[0].numpy())
    images = render_batch(np.stack(centres), np.exp2(labels), job.resolution, job.seed)
    return [(encode_png(image), label) for image, label in zip(images, labels, strict=True)]


class Photograph(NamedTuple):
    """A file that decodes: its size in pixels, upright, and whether it has no colour."""

    path: Path
    width: int
    height: int
    grey: bool

    @property
    def shorter_side(self) -> int:
        """L in pixels."""
        return min(self.width, self.height)

    def octaves_at(self, resolution: int) -> int:
        """Whole octaves: floor(log2(L/N)), at least 0."""
        return max(0, (self.shorter_side // resolution).bit_length() - 1)


DEFLATE_RATIO = 1032
"""Bytes that one byte of a PNG can stand for, at most; of a JPEG it is less. A pixel has a bit or more."""
PACKED_BYTES = 1 << 30
"""Decoded, that a picture of another format may claim whatever its size: WebP and fax codes pack plain areas into nothing."""


def read_photograph(path: Path) -> Image.Image:
    """Decode an image file of any size in full: 8-bit grey (``L``) or ``RGB``, upright.

    EXIF orientation is applied; transparency is laid on white; 16-bit grey is rounded to 8 bits; palettes, CMYK and
    other colour models become RGB. Of several frames the first is read. Colour profiles are not applied.

    Raises:
        Exception: whatever the decoder raises for a broken file; ValueError for pixels of 32 bits.
    """
    size = regular_size(path, "the image")
    with _without_size_limit(), Image.open(path) as opened:
        claimed = opened.width * opened.height * len(opened.getbands())
        if claimed > max(8 * DEFLATE_RATIO * size, 0 if opened.format in ("PNG", "JPEG") else PACKED_BYTES):
            raise ValueError(
                f"has {size} bytes, too few for the {opened.width} x {opened.height} pixels that it claims"
            )
        return _as_8_bit(ImageOps.exif_transpose(opened))


@contextlib.contextmanager
def _without_size_limit() -> Iterator[None]:
    """Pillow refuses images above a size as an attack; the user's own photographs may be larger."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _as_8_bit(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("has pixels of 32 bits; save it with 8 or 16")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if mode == "F":
        raise ValueError("has floating-point pixels; save it with 8 or 16 bits")
    target = "L" if mode in ("1", "L", "LA", "La") else "RGB"
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("LA") if mode == "La" else image
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == target else image.convert(target)


@functools.lru_cache(maxsize=1)
def _photograph(path: Path) -> Pyramid:
    """The photograph at hand: a process keeps one at a time, however many there are."""
    return Pyramid(read_photograph(path))


def _examine(path: Path) -> Photograph | str:
    """Decode a file: what it is, or why it cannot be used."""
    try:
        image = _photograph(path).image
    except Exception as error:  # decoders raise nearly anything for a damaged file
        text = str(error).replace(repr(str(path)), "the file")
        return text if text.startswith("has ") else f"cannot be decoded ({text or type(error).__name__})"
    return Photograph(path, image.width, image.height, image.mode == "L")


def _verified_photographs(source: Path, workers: int) -> list[Photograph]:
    """All photographs of the source in the order of their names, or a UserError that names all that are bad."""
    paths = _find_photographs(source)
    photographs: list[Photograph] = []
    problems: list[str] = []
    with (
        progress_bar(total=len(paths), unit="file", desc="verifying") as bar,
        contextlib.closing(_in_order(_examine, paths, workers)) as examined,
    ):
        for path, found in zip(paths, examined, strict=True):
            if isinstance(found, str):
                problems.append(f"{path if path == source else path.relative_to(source)} {found}")
            else:
                photographs.append(found)
            bar.update()
    if problems:
        which = "Image" if paths == [source] else f"{len(problems)} of {len(paths)} files in {source} cannot be used:"
        raise UserError(f"{which} {'; '.join(problems)}.")
    return photographs


def _find_photographs(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"There is no {source}; give --source an image or a folder of photographs.")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in PHOTOGRAPH_SUFFIXES and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not paths:
        raise UserError(f"Folder {source} holds no photographs ({', '.join(sorted(PHOTOGRAPH_SUFFIXES))}).")
    return paths


def _check_depth(photographs: Sequence[Photograph], octaves: int, resolution: int) -> None:
    shallow = [photograph for photograph in photographs if photograph.octaves_at(resolution) < octaves]
    if not shallow:
        return
    found = listed(
        [f"{p.path} ({p.width} x {p.height}) has {p.octaves_at(resolution)}" for p in shallow], "; ", SMALL_NAMED
    )
    raise UserError(
        f"{len(shallow)} of {len(photographs)} images have fewer than {octaves} octaves at {resolution} x {resolution} "
        f"pixels, log2(shorter side/{resolution}) rounded down: {found}; "
        "give fewer --octaves, a smaller --resolution, or larger images."
    )


class _CropJob(NamedTuple):
    """Patches (octave, index) of one photograph."""

    path: Path
    mode: str
    resolution: int
    seed: int
    patches: tuple[tuple[int, int], ...]


def _crop_jobs(
    photographs: Sequence[Photograph], mode: str, resolution: int, seed: int, counts: Sequence[int]
) -> list[_CropJob]:
    """Deal the patches of each octave evenly to the photographs, in an order drawn for the octave."""
    dealt: list[list[tuple[int, int]]] = [[] for _ in photographs]
    for octave, count in enumerate(counts):
        order = stream(seed, "photographs", octave).permutation(len(photographs))
        for index in range(count):
            dealt[order[index % len(order)]].append((octave, index))
    return [
        _CropJob(photograph.path, mode, resolution, seed, tuple(patches[start : start + _CROPS_A_JOB]))
        for photograph, patches in zip(photographs, dealt, strict=True)
        for start in range(0, len(patches), _CROPS_A_JOB)
    ]


def _cut_patches(job: _CropJob) -> _Patches:
    photograph = _photograph(job.path)
    made = []
    for octave, index in job.patches:
        rng = stream(job.seed, "make", octave, index)
        label = octave + rng.random()
        patch = cut_patch(photograph, label, rng.random(), rng.random(), job.resolution)
        if patch.ndim == 2 and job.mode == "RGB":
            patch = np.repeat(patch[..., None], 3, axis=2)
        made.append((encode_png(patch), label))
    return made
