"""Measure what a set costs that is cut from a picture much larger than the memory.

    python benchmarks/gigapixel.py [--size 100000x60000] [--patches 2000] [--pyramid] [--out benchmarks/results/NAME.json]

The picture is a tiled BigTIFF made by libvips: a soft pattern on a plain ground and one detailed corner. It is cut as
``first``, when its levels are made, and ``again``, when they are there; with --pyramid the file has levels of its own.
peak_mb is of all processes together, what they share counted once (proportional set size, 20 times a second; the system's own
cache of files does not count).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, publish, result_file

from dnnlib.cli import reports_user_errors

ROOT = Path(__file__).resolve().parents[1]


def make_picture(path: Path, width: int, height: int, pyramid: bool) -> None:
    """A plain ground with rings about the middle and one detailed corner."""
    import pyvips

    rings = pyvips.Image.sines(width // 100, height // 100, hfreq=5, vfreq=3, uchar=True).resize(100, kernel="nearest")
    rings = rings.gravity("centre", width, height, extend="copy")
    detail = pyvips.Image.perlin(4096, 4096, uchar=True)
    image = rings.insert(detail, width // 3, height // 3)
    image = image.bandjoin([image.invert(), image.linear(0.5, 60, uchar=True)]).copy(interpretation="srgb")
    image.tiffsave(
        str(path),
        tile=True,
        tile_width=256,
        tile_height=256,
        bigtiff=True,
        compression="deflate",
        predictor="horizontal",
        pyramid=pyramid,
    )


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for process in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def held_bytes(process: int) -> int:
    """Proportional set size of a process, 0 if it has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return 0


def measure(source: Path, cache: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds, CPU seconds of all processes with Python's start, and memory at the peak, that a set of 8 octaves takes."""
    count = options.patches // 8
    dest = cache.parent / "set.zip"
    command = [sys.executable, str(ROOT / "dataset_tool.py"), "make", "--source", str(source), "--dest", str(dest)]
    command += ["--octaves", "8", "--counts", ",".join([str(count)] * 8), "--workers", str(options.workers), "--force"]
    start, before, peak = time.perf_counter(), os.times(), 0
    process = subprocess.Popen(command, env=os.environ | {"MULTISCALE_CACHE": str(cache)}, cwd=ROOT)
    try:
        while process.poll() is None:
            peak = max(peak, sum(held_bytes(one) for one in tree(process.pid)))
            time.sleep(0.05)
    finally:  # also where a signal ends this
        process.terminate()
        process.wait()
    if process.returncode:
        raise SystemExit("Making the set failed.")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_sec": time.perf_counter() - start, "cpu_sec": cpu, "peak_mb": peak / 1e6}


@reports_user_errors
def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="100000x60000", help="pixels of the picture (default 100000x60000)")
    parser.add_argument("--patches", type=int, default=2000, help="of 256 x 256, over 8 octaves (default 2000)")
    parser.add_argument("--workers", type=int, default=2, help="processes that cut (default 2)")
    parser.add_argument("--pyramid", action="store_true", help="the file has levels of its own")
    parser.add_argument("--folder", type=Path, help="for the pictures and levels, 10 GB (default: a temporary one)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    report: dict[str, Any] = {
        "machine": describe(options.workers),
        "picture": [width, height],
        "pyramid": options.pyramid,
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = folder / "picture.tif"
        make_picture(source, width, height, options.pyramid)
        report["file_mb"] = source.stat().st_size / 1e6
        for way in ("first", "again"):
            report[way] = measure(source, folder / "cache", options)
            print(way, report[way], file=sys.stderr)
        report["levels_mb"] = sum(path.stat().st_size for path in (folder / "cache").rglob("*.tif")) / 1e6
    publish(report, options.out)


if __name__ == "__main__":
    main()
