"""Measure how fast patches are cut from one large picture, against reducing each from all of the picture's pixels.

    python benchmarks/cutting.py [--source PICTURE] [--workers 2] [--out benchmarks/results/NAME.json]

``pyramid`` is what ``dataset_tool.py make`` does; ``direct`` is the same with no halving, which was its way before. Times
are of whole sets, from decoding to the ZIP, on top of Python's start; cpu_sec is of all processes. The picture is the Earth
of ``dataset_tool.py earth`` unless another is named. psnr_db compares patches of the two ways, octave by octave: two
independent roundings to 8 bits differ by 55.9 dB.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, publish

from multiscale.data import cutting
from multiscale.data.earth import earth_counts, find_picture
from multiscale.data.prepare import make_from_photographs, read_photograph

SETS = {"64px": (64, earth_counts(6)), "32px": (32, (300, 500, 800, 1000, 1200, 1200))}
WAYS = {"direct": math.inf, "pyramid": cutting.OVERSAMPLING}


def measure_set(
    source: Path, resolution: int, counts: tuple[int, ...], workers: int, oversampling: float
) -> dict[str, float]:
    """Seconds, CPU seconds of all processes and peak memory of the largest, to make a set in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), os.times()
        child = os.fork()
        if not child:
            cutting.OVERSAMPLING = oversampling
            make_from_photographs(
                source, Path(folder) / "set.zip", resolution=resolution, counts=counts, workers=workers
            )
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        if status:
            raise SystemExit("Making the set failed.")
        after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_sec": time.perf_counter() - start, "cpu_sec": cpu, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def measure_parts(source: Path) -> dict[str, float]:
    """CPU seconds, in one thread, to decode the picture and to halve it until nothing is left."""
    start = time.process_time()
    image = read_photograph(source)
    decoded = time.process_time()
    cutting.Pyramid(image).level(min(image.size))
    return {"decode_cpu_sec": decoded - start, "halve_cpu_sec": time.process_time() - decoded}


def compare(source: Path, resolution: int, octaves: int, samples: int) -> list[float]:
    """PSNR in dB, an octave each, of patches from the pyramid against patches from the whole picture (99: equal)."""
    image, rng = read_photograph(source), np.random.default_rng(0)
    views = [(octave + rng.random(), rng.random(), rng.random()) for octave in range(octaves) for _ in range(samples)]
    made = []
    for oversampling in WAYS.values():
        cutting.OVERSAMPLING = oversampling
        pyramid = cutting.Pyramid(image)
        made.append(np.array([cutting.cut_patch(pyramid, *view, resolution) for view in views], dtype=float))
    errors = ((made[0] - made[1]) ** 2).reshape(octaves, -1).mean(axis=1)
    return [min(10 * math.log10(255**2 / max(error, 1e-12)), 99.0) for error in errors]


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="picture of at least 4096 x 4096 pixels (default: the Earth)")
    parser.add_argument("--workers", type=int, default=2, help="processes that cut (default 2)")
    parser.add_argument("--samples", type=int, default=20, help="patches an octave to compare (default 20)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    source = options.source or find_picture()
    width, height = read_photograph(source).size
    report: dict[str, Any] = {
        "machine": describe(options.workers),
        "picture": [source.name, width, height],
        "parts": measure_parts(source),
    }
    for name, (resolution, counts) in SETS.items():
        report[name] = {"patches": sum(counts)}
        for way, oversampling in WAYS.items():
            report[name][way] = measure_set(source, resolution, counts, options.workers, oversampling)
        report[name]["psnr_db"] = compare(source, resolution, len(counts), options.samples)
    publish(report, options.out)


if __name__ == "__main__":
    main()
