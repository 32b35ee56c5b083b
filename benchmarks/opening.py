"""Measure how fast a large patch set opens and is read, and in how much memory.

    python benchmarks/opening.py [--patches 1000000 --side 16 --shards 1] [--out benchmarks/results/NAME.json]

The set is a ZIP, or several, of equal small PNG files, so what is timed is the container; it lies in a temporary folder, about
1 GB for a million, and in the cache of the system, as it has just been written. Opening is timed in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, peak_bytes, publish, result_file

from dnnlib.cli import reports_user_errors
from multiscale.data.container import PatchWriter, encode_png
from multiscale.data.patches import PatchDataset


def write_set(path: Path, patches: int, side: int) -> int:
    """Write ``patches`` equal PNG files of ``side`` x ``side`` random pixels; return the bytes of one."""
    png = encode_png(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    with PatchWriter(path) as writer:
        for i in range(patches):
            writer.add(png, i * 0.6180339887498949 % 6)
    return len(png)


def measure(path: Path, reads: int) -> dict[str, float]:
    """Seconds to open and to look at every header, peak memory of opening, and reads in random order a second."""
    opened: list[PatchDataset] = []
    seconds: list[float] = []

    def open_it() -> None:
        start = time.perf_counter()
        opened.append(PatchDataset(path))
        seconds.append(time.perf_counter() - start)

    peak = peak_bytes(open_it, "cpu")
    dataset = opened[0]
    start = time.perf_counter()
    dataset.check_headers()
    headers = time.perf_counter() - start
    indices = np.random.default_rng(1).integers(0, len(dataset), reads).tolist()
    start = time.perf_counter()
    for index in indices:
        dataset[index]
    return {
        "open_sec": seconds[0],
        "open_peak_mb": peak / 1e6,
        "pickled_mb": len(pickle.dumps(dataset)) / 1e6,
        "check_headers_sec": headers,
        "items_per_sec": reads / (time.perf_counter() - start),
    }


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1_000_000, help="patches in the set (default 1,000,000)")
    parser.add_argument("--shards", type=int, default=1, help="ZIPs that it is split into (default 1)")
    parser.add_argument("--side", type=int, default=16, help="side of a patch in pixels (default 16)")
    parser.add_argument("--reads", type=int, default=50_000, help="patches to read in random order (default 50,000)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="openings, each in a new process; the median (default 3)"
    )
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(options.shards):
            path = Path(folder) / f"set-{shard:05d}.zip"
            png_bytes = write_set(path, options.patches // options.shards, options.side)
        zip_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
        path = Path(folder) / "set-*.zip"
        runs = []
        for _ in range(options.repeats):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                runs.append(pool.submit(measure, path, options.reads).result())
    report: dict[str, Any] = {
        "machine": describe(1),
        "patches": options.patches // options.shards * options.shards,
        "shards": options.shards,
        "png_bytes": png_bytes,
        "zip_bytes": zip_bytes,
        **{key: float(np.median([run[key] for run in runs])) for key in runs[0]},
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
