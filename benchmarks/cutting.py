"""Measure how fast patches are cut from one large picture, and how near they come to reducing each from all of its pixels.

    python benchmarks/cutting.py [--source PICTURE] [--workers 2] [--out benchmarks/results/NAME.json]

Times are of whole sets, from decoding and making the levels to the ZIP, on top of Python's start; cpu_sec is of all processes.
``--command`` measures all of ``dataset_tool.py earth``, Python's start included, with the code that Python finds (PYTHONPATH).
The picture is the Earth of ``dataset_tool.py earth`` unless another is named. psnr_db compares patches with such as are reduced
at once, octave by octave: two independent roundings to 8 bits differ by 55.9 dB.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, peak_bytes, publish, result_file

from dnnlib.cli import reports_user_errors
from multiscale.data.cutting import Box, cut_patch
from multiscale.data.earth import earth_counts, find_picture
from multiscale.data.pictures import HeldPicture, examine
from multiscale.data.prepare import make_from_photographs
from multiscale.data.vips import Reading

SETS = {"64px": (64, earth_counts(6)), "32px": (32, (300, 500, 800, 1000, 1200, 1200))}


def make_set(source: Path, dest: Path, resolution: int, counts: tuple[int, ...], workers: int) -> None:
    """Make a set with no levels kept from before."""
    reading = Reading(cache=dest.parent / "cache")
    make_from_photographs(source, dest, resolution=resolution, counts=counts, workers=workers, reading=reading)


def measure_set(source: Path, *request: Any) -> dict[str, float]:
    """Seconds, and CPU seconds of all processes, that ``make_set`` takes; ``request``: all it is given after ``dest``."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = source, Path(folder) / "set.zip", *request
        process = multiprocessing.get_context("fork").Process(target=make_set, args=arguments)
        start, before = time.perf_counter(), os.times()
        process.start()
        process.join()
        wall, after = time.perf_counter() - start, os.times()
    if process.exitcode:
        raise SystemExit("Making the set failed.")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_sec": wall, "cpu_sec": cpu}


def measure_command(workers: int) -> dict[str, float]:
    """Seconds, and CPU seconds of all processes, of ``dataset_tool.py earth`` as it is typed, with nothing kept from before."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "multiscale.cli.dataset_tool", "earth", "--dest", f"{folder}/set.zip"]
        environment = os.environ | {"MULTISCALE_CACHE": f"{folder}/cache"}
        start, before = time.perf_counter(), os.times()
        done = subprocess.run([*command, "--workers", str(workers)], env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - start, os.times()
        if done.returncode:
            raise SystemExit(done.stderr)
        size_mb = Path(folder, "set.zip").stat().st_size / 1e6
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_sec": wall, "cpu_sec": cpu, "set_mb": size_mb}


def measure_parts(source: Path) -> dict[str, float]:
    """CPU seconds in one thread to decode the picture and to make its levels, in memory and on disk; memory at the peak."""
    with tempfile.TemporaryDirectory() as folder:
        reading = Reading(threads=1, cache=Path(folder))
        start = time.process_time()
        picture = examine(source, reading, 1 << 40)
        decoded = time.process_time()
        held = picture.open(reading)
        again = time.process_time()
        held.read(Box(0, 0, 1, 1), len(held.levels) - 1)
        halved = time.process_time()
        stored_bytes = peak_bytes(lambda: picture._replace(held=False).open(reading), "cpu")
        stored = time.process_time()
    return {
        "decode_cpu_sec": decoded - start,
        "halve_cpu_sec": halved - again,
        "decode_and_store_cpu_sec": stored - halved,
        "decode_and_store_peak_mb": stored_bytes / 1e6,
    }


def compare(source: Path, resolution: int, octaves: int, samples: int) -> list[float]:
    """PSNR in dB, an octave each, of patches from the pyramid against patches from the whole picture (99: equal)."""
    reading, rng = Reading(), np.random.default_rng(0)
    held = examine(source, reading, 1 << 40).open(reading)
    assert isinstance(held, HeldPicture)
    views = [(octave + rng.random(), rng.random(), rng.random()) for octave in range(octaves) for _ in range(samples)]
    made = [np.array([cut_patch(held, *view, resolution) for view in views], dtype=float)]
    held.levels = held.levels[:1]
    made.append(np.array([cut_patch(held, *view, resolution) for view in views], dtype=float))
    errors = ((made[0] - made[1]) ** 2).reshape(octaves, -1).mean(axis=1)
    return [min(10 * math.log10(255**2 / max(error, 1e-12)), 99.0) for error in errors]


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="picture of at least 4096 x 4096 pixels (default: the Earth)")
    parser.add_argument("--workers", type=int, default=2, help="processes that cut (default 2)")
    parser.add_argument("--samples", type=int, default=20, help="patches an octave to compare (default 20)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    parser.add_argument(
        "--command", action="store_true", help="measure the command earth as it is typed, and nothing else"
    )
    options = parser.parse_args()
    if options.command:
        publish({"machine": describe(options.workers), "command": measure_command(options.workers)}, options.out)
        return
    source = options.source or find_picture()
    sets: dict[str, Any] = {}
    for name, (resolution, counts) in SETS.items():  # before libvips is loaded here, for the sake of forks
        sets[name] = {"patches": sum(counts), **measure_set(source, resolution, counts, options.workers)}
    for name, (resolution, counts) in SETS.items():
        sets[name]["psnr_db"] = compare(source, resolution, len(counts), options.samples)
    picture = examine(source, Reading(), 1 << 40)
    report: dict[str, Any] = {
        "machine": describe(options.workers),
        "picture": [source.name, picture.width, picture.height],
        "parts": measure_parts(source),
        **sets,
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
