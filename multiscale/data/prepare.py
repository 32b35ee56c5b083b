"""Make patch sets, from the procedural scene or from photographs, and look into them.

Every patch draws from a random stream of its own, named by (seed, octave, index), and patches are written in a fixed
order: the same request gives the same bytes whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_writable
from dnnlib.pictures import grid
from dnnlib.progress import progress_bar
from multiscale.data.charts import scale_chart
from multiscale.data.container import PatchWriter, check_dest, encode_png
from multiscale.data.cropping import CROPS_A_JOB, Crop, CropJob, Patches, cut_patches, parts_of
from multiscale.data.finding import find_pictures
from multiscale.data.patches import MAX_OCTAVES, PatchDataset, check_patches
from multiscale.data.pictures import Place, depth_of, forget_sources, octaves_at, shorter_side
from multiscale.data.process_pool import in_order, process_count
from multiscale.data.remote import Tiles, check_no_tiles, fetch_tiles, is_remote, open_tiles, tiles_of
from multiscale.data.source import counted, listed
from multiscale.data.vips import Reading
from torch_utils.random import stream

DEFAULT_OCTAVES = 6
FEW_OCTAVES = 3
"""Fewer are hardly a scale space: where nobody asked for them, smaller patches are suggested."""
RESOLUTIONS = (16, 32, 64, 128, 256, 512, 1024)
"""Sides of patches in pixels."""
MAX_PATCHES = 10_000_000
PART_OF_AN_OCTAVE = 0.75
"""Of the finest octave, that a picture must have for it to be one, where the number of octaves is given."""

LEAST_CONTRAST = 48
"""Of 255, between the 0.1 and 99.9 percentiles of a sample of a set: 12 bits of 16 that are shown as they are have 16."""
SMALL_NAMED = 10
"""Images with too few octaves that are named; the others are counted."""
SHEET_COLUMNS = 8
_SCENE_PIXELS_A_JOB = 1 << 17

Encoder = Callable[[np.ndarray, Mapping[str, Any]], bytes]
"""Of pixels, uint8 [H, W, 3], with JSON values that the file shall say of itself, as far as it can."""
PNG_ALONE: Mapping[str, Encoder] = {".png": lambda pixels, _: encode_png(pixels)}

_Job = TypeVar("_Job")


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
    dry_run: bool = False,
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
        dry_run: Say what would be drawn, and write nothing.

    Raises:
        UserError: ``dest`` exists or cannot be written, a resolution or counts that are not allowed.
    """
    if not dry_run:
        check_dest(Path(dest), force=force)
    check_resolution(resolution)
    counts = resolved_counts(counts, octaves or len(counts or ()) or DEFAULT_OCTAVES, demo_counts)
    if dry_run:
        say_plan(Path(dest), counts, resolution, "RGB", dry_run=True)
        return
    from multiscale.data.procedural import render_batch  # loads SciPy, which takes a second

    block = min(max(_SCENE_PIXELS_A_JOB // resolution**2, 1), 64)
    jobs = [
        _SceneJob(resolution, seed, octave, start, min(start + block, count))
        for octave, count in enumerate(counts)
        for start in range(0, count, block)
    ]
    draw = functools.partial(_draw_scene, render_batch)
    write_patches(Path(dest), draw, jobs, counts, workers=process_count(workers), force=force)


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
    dry_run: bool = False,
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
        dry_run: Say what would be cut, and of tiles how much would be fetched (of which a sample is), and write nothing.

    Raises:
        UserError: photographs that cannot be read (all are named) or have too few octaves; no place for a patch that is not
            empty; tiles that are not given; as ``make_demo``.
    """
    dest, processes = Path(dest), process_count(workers)
    reading, tiles = reading or Reading(), tiles or Tiles()
    forget_sources()
    if not dry_run:
        check_dest(dest, force=force)
    check_resolution(resolution)
    wanted = min(octaves or len(counts or ()), MAX_OCTAVES)
    least_px = int(resolution * 2 ** (wanted - 1 + PART_OF_AN_OCTAVE)) if wanted else 0
    pictures: Sequence[Place]
    remote = open_tiles(str(source), reading, tiles) if is_remote(str(source)) else None
    if remote is None:
        check_no_tiles(Path(source))
        pictures, reading = find_pictures(Path(source), reading, processes, skip_bad=skip_bad, least_px=least_px)
    else:
        pictures = [remote]
    if octaves is None:
        available = min(octaves_at(picture, resolution) for picture in pictures)
        octaves = len(counts) if counts is not None else min(max(available, 1), DEFAULT_OCTAVES)
        _check_depth(pictures, octaves, resolution)  # before anything is said of octaves that there are not
        if (
            counts is None
            and available < FEW_OCTAVES
            and (finer := finer_resolution(pictures, FEW_OCTAVES, resolution))
        ):
            smallest = min(pictures, key=shorter_side)
            print(
                f"{smallest.name} ({smallest.width} x {smallest.height}) gives {counted(octaves, 'octave')} at {resolution} x "
                f"{resolution} pixels, a zoom of {2**octaves}x; --resolution {finer} gives "
                f"{min(octaves_at(smallest, finer), DEFAULT_OCTAVES)}."
            )
        elif counts is not None:
            say_fewer(counts, available, "the picture reaches" if len(pictures) == 1 else "all pictures reach")
    else:
        _check_depth(pictures, octaves, resolution)
    counts = resolved_counts(counts, octaves, default_counts)
    mode = "L" if all(picture.grey for picture in pictures) else "RGB"
    jobs = [
        CropJob(picture, 0.0, reading, mode, resolution, seed, allow_empty, crops)
        for picture, crops in _crop_jobs(pictures, counts, seed, resolution)
    ]
    if remote is not None:
        remote = fetch_tiles(remote, tiles_of(remote, parts_of(remote, jobs)), dry_run=dry_run)
        jobs = [job._replace(place=remote, mode="L" if remote.grey else "RGB") for job in jobs]
    say_plan(dest, counts, resolution, jobs[0].mode, dry_run=dry_run)
    if dry_run:
        say_empty(pictures, allow_empty)
        return
    write_patches(dest, cut_patches, jobs, counts, workers=processes, force=force)
    forget_sources()


def inspect_patches(
    path: str | Path,
    *,
    sheet: str | Path | None = None,
    workers: int | None = None,
    encoders: Mapping[str, Encoder] = PNG_ALONE,
) -> None:
    """Print what a set holds, decode every patch, and draw a contact sheet with one row an octave.

    Args:
        path: ZIP or folder.
        sheet: Picture to write, in the format of its ending; None: none.
        workers: Processes; None: one a core.
        encoders: Of pictures, by the endings that ``sheet`` may have, as :data:`multiscale.rendering.files.ENCODERS`.

    Raises:
        UserError: the set cannot be opened, or has problems, which have been printed.
    """
    if sheet is not None and Path(sheet).suffix.lower() not in encoders:
        raise UserError(f"--sheet {sheet} is not allowed; give a name that ends in {', '.join(encoders)}.")
    if sheet is not None:
        check_writable(sheet)
    dataset = PatchDataset(path)
    side, kind = dataset.resolution, "RGB" if dataset.num_channels == 3 else "grey"
    low, high = dataset.labels.min(), dataset.labels.max()
    print(f"{dataset.path}: {len(dataset):,} {kind} patches of {side} x {side} pixels")
    print(f"labels s = log2 of the zoom: {low:.4f} ... {high:.4f}, {counted(dataset.octaves, 'octave')}")
    print("octave         zoom   patches   share")
    for octave, count in enumerate(dataset.counts()):
        print(f"{octave:6d} {_zooms(octave):>12} {count:9,d} {count / len(dataset):7.1%}")
    print("\n".join(scale_chart(dataset.labels, dataset.octaves, dataset.spans)))
    with progress_bar(total=len(dataset), unit="patch", desc="checking") as bar:
        bad = check_patches(dataset, workers=process_count(workers), progress=bar.update)
    problems = [f"octave {octave} holds no patch" for octave in np.flatnonzero(dataset.counts() == 0)]
    problems += [f"{name} {problem}" for name, problem in bad]
    print("\n".join(problems) if problems else "no problems")
    broken = {name for name, _ in bad}
    _print_contrast(dataset, broken)
    if sheet is not None:
        _write_sheet(dataset, broken, Path(sheet), encoders[Path(sheet).suffix.lower()])
        print(f"contact sheet: {sheet}")
    if problems:
        raise UserError(f"{dataset.path} has {len(problems)} problem{'s' * (len(problems) > 1)} (listed above).")


def _zooms(octave: int) -> str:
    return f"{2**octave}x - {2 ** (octave + 1)}x"


def _sample(dataset: PatchDataset, bad: set[str]) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Of each octave a few patches that are whole, spread evenly over its scales."""
    for octave in range(dataset.octaves):
        members = [int(i) for i in np.flatnonzero(dataset.patch_octaves == octave) if dataset.names[i] not in bad]
        if members:
            members.sort(key=lambda i: dataset.labels[i])
            places = np.linspace(0, len(members) - 1, min(SHEET_COLUMNS, len(members))).round().astype(int)
            yield octave, [dataset[members[place]][0] for place in places]


def _print_contrast(dataset: PatchDataset, bad: set[str]) -> None:
    """Say so where nearly all of a sample has the same brightness."""
    images = [image for _, sampled in _sample(dataset, bad) for image in sampled]
    if not images:
        return
    low, high = np.percentile(np.concatenate([image.ravel() for image in images]), (0.1, 99.9))
    if high - low < LEAST_CONTRAST:
        print(
            f"very low contrast: of {counted(len(images), 'patch')} nearly all numbers lie between {low:.0f} and "
            f"{high:.0f} of 255; were the pictures of more than 8 bits, make it anew with --range LOW,HIGH"
        )


def _write_sheet(dataset: PatchDataset, bad: set[str], sheet: Path, encode: Encoder) -> None:
    """One row an octave: patches spread evenly over its scales."""
    rows, titles = [], []
    for octave, images in _sample(dataset, bad):
        rows.append([image.transpose(1, 2, 0) for image in images])
        titles.append(_zooms(octave))
    if not rows:
        raise UserError(f"No patch of {dataset.path} can be shown on a sheet.")
    with atomic_write(sheet) as file:
        file.write(encode(grid(rows, titles=[], row_titles=titles), {}))


def check_resolution(resolution: int) -> None:
    if resolution not in RESOLUTIONS:
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


def say_fewer(counts: Sequence[int], available: int, whose: str) -> None:
    """Say where ``counts`` alone make fewer octaves than ``whose``, such as "the picture reaches"."""
    if len(counts) < available:
        print(
            f"{counted(len(counts), 'octave')} of the {available} that {whose}, as --counts has "
            f"{counted(len(counts), 'number')}."
        )


def say_plan(dest: Path, counts: Sequence[int], resolution: int, mode: str, *, dry_run: bool = False) -> None:
    """Say what will be cut, before it is, and the bytes that it takes at most: those of its pixels (PNG takes less)."""
    size = sum(counts) * resolution**2 * len(mode)
    unit, name = next(pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= pair[0] or pair[1] == "kB")
    print(
        f"{dest} {'would' if dry_run else 'will'} hold {sum(counts):,} patches, by octave "
        f"{', '.join(f'{count:,}' for count in counts)}: {counted(len(counts), 'octave')}, up to {size / unit:,.1f} {name}"
    )


def say_empty(pictures: Sequence[Place], allow_empty: float) -> None:
    """Say that a dry run does not look for empty areas, where there may be some that matter: it would read every patch."""
    names = [picture.name for picture in pictures if picture.with_empty]
    if names and allow_empty < 1:
        which = names[0] if len(names) == 1 else counted(len(names), "picture")
        print(
            f"{which} may have empty areas (transparent or without data). A dry run does not look at them; the run itself ends "
            f"where it finds no patch with at most {allow_empty:.0%} of them, and says what to allow."
        )


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


class _SceneJob(NamedTuple):
    """Patches start ... stop - 1 of one octave of the procedural scene."""

    resolution: int
    seed: int
    octave: int
    start: int
    stop: int


def _draw_scene(render: Callable[..., np.ndarray], job: _SceneJob) -> Patches:
    import torch  # here: it takes seconds, and pictures are cut without it

    from multiscale.view import uniform_centres

    labels, centres = [], []
    for index in range(job.start, job.stop):
        rng = stream(job.seed, "demo", job.octave, index)
        labels.append(job.octave + rng.random())
        centres.append(uniform_centres(torch.tensor([2.0 ** labels[-1]], dtype=torch.float64), rng)[0].numpy())
    images = render(np.stack(centres), np.exp2(labels), job.resolution, job.seed)
    return [(encode_png(image), label) for image, label in zip(images, labels, strict=True)]


def _check_depth(pictures: Sequence[Place], octaves: int, resolution: int) -> None:
    least = octaves - 1 + PART_OF_AN_OCTAVE
    shallow = [picture for picture in pictures if depth_of(picture, resolution) < least]
    if not shallow:
        return
    found = [f"{p.name} ({p.width} x {p.height}) has {octaves_at(p, resolution)}" for p in shallow]
    ways = ["give fewer --octaves"] if octaves > 1 else []
    sides = [side for side in RESOLUTIONS if side < resolution and all(depth_of(p, side) >= least for p in shallow)]
    finer = finer_resolution(shallow, FEW_OCTAVES, resolution) if octaves == 1 else None
    deeper = f" ({finer} gives {counted(min(octaves_at(p, finer) for p in shallow), 'octave')})" if finer else ""
    ways += [f"{'' if ways else 'give '}--resolution {sides[-1]} or less{deeper}"] if sides else []
    raise UserError(
        f"{len(shallow)} of {len(pictures)} images have fewer than {counted(octaves, 'octave')} at {resolution} x {resolution} "
        f"pixels, log2(shorter side/{resolution}) rounded down: {listed(found, '; ', SMALL_NAMED)}; "
        f"{', '.join([*ways, 'or larger images' if ways else 'give larger images'])}."
    )


def finer_resolution(pictures: Sequence[Place], octaves: int, resolution: int) -> int | None:
    """The largest side of patches below ``resolution`` at which all pictures have ``octaves``, else the smallest there is.

    None if there is none at which they have more than now.
    """
    shortest = min(pictures, key=shorter_side)
    sides = [side for side in RESOLUTIONS if side < resolution]
    enough = [side for side in sides if octaves_at(shortest, side) >= octaves]
    side = enough[-1] if enough else sides[0] if sides else None
    more = side is not None and octaves_at(shortest, side) > max(octaves_at(shortest, resolution), 1)
    return side if more else None


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
