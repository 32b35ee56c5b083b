"""What a measurement was made on, what that machine can do at best, and how long a call takes on it."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_writable
from dnnlib.machine import processor


def describe(threads: int, device: str = "cpu") -> dict[str, object]:
    """Date, processor, GPU, threads and PyTorch's version, for the head of a result."""
    gpu = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if device != "cpu" else {}
    versions = {"threads": threads, "torch": torch.__version__}
    return {"date": time.strftime("%Y-%m-%d"), "cpu": processor(), **gpu, **versions}


def environment_of_checkout() -> dict[str, str]:
    """The environment in which Python finds this checkout's code first, then what it finds now."""
    places = filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")])
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


@contextlib.contextmanager
def served(*command: str, stderr: int | None = None) -> Iterator[tuple[str, int]]:
    """Run a server of Python's in a ``with`` block; the address that it prints, without the last slash, and its process."""
    process = subprocess.Popen([sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"https?://[\w.:]+", line):
                yield found[0], process.pid
                return
        raise UserError(f"{' '.join(command)} did not start.")
    finally:
        process.terminate()
        process.wait()


def result_file(text: str) -> Path:
    """Type of an option that names the file of a result: it can be written, which is looked at before anything is measured."""
    try:
        check_writable(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def publish(report: dict[str, Any], out: Path | None) -> None:
    """Print a report as JSON, and write it where asked."""
    text = json.dumps(report, indent=1)
    if out:
        with atomic_write(out, "w") as stream:
            stream.write(text + "\n")
    print(text)


def seconds(run: Callable[[], object], device: str = "cpu", repeats: int = 5) -> float:
    """Seconds that a call takes: on a CPU the least of some, on a GPU the median between events, after a warm-up."""
    if device == "cpu":
        return min(_timed(run) for _ in range(repeats))
    for _ in range(3):
        run()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)[repeats // 2] / 1e3


def as_graph(run: Callable[[], object]) -> Callable[[], None]:
    """Replay of a CUDA graph of a call without gradients: what the GPU takes, without what Python takes to launch it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def alternate(
    runs: dict[str, Callable[[], object]], device: str, repeats: int, calls_on_gpu: int = 20
) -> dict[str, float]:
    """Seconds of several calls that take turns, so that a disturbance of the machine hits all alike: the least of each.

    In its turn a call is made once on a CPU, and ``calls_on_gpu`` times on a GPU.
    """
    least = dict.fromkeys(runs, math.inf)
    for _ in range(repeats):
        for name, run in runs.items():
            least[name] = min(least[name], seconds(run, device, 1 if device == "cpu" else calls_on_gpu))
    return least


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def copy_bandwidth(device: str) -> float:
    """Bytes that a copy of 1 GiB reads and writes in a second."""
    source = torch.rand(1 << 28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Multiplications and additions a second in a product of large matrices."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device)


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Bytes in use at the peak of a call, beyond those before it (on a CPU: of resident memory; Linux only)."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmHWM")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
