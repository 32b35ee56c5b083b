"""What keeping freed memory is worth: the same training step of the demo preset with and without it, in turns.

Prints JSON; each turn is a process of its own because the allocator cannot be set back. ``--out FILE`` also writes it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import torch
from machine import describe

from multiscale.config import RunConfig, build, load_preset, merge
from multiscale.networks.generator import Generator
from multiscale.view import view_transform
from torch_utils.memory import keep_freed_memory

STEPS, WARMUP = 30, 5


def step_ms(keep: bool, threads: int) -> float:
    """Median time of a forward and backward pass of the demo generator, in milliseconds."""
    torch.set_num_threads(threads)
    if keep and not keep_freed_memory():
        raise SystemExit("this system's allocator cannot be told to keep freed memory")
    values = merge(load_preset("demo"), {"generator": {"img_resolution": 32, "octaves": 6}})
    config = build(RunConfig, values)
    generator = Generator(config.generator)
    batch = config.training.batch
    z, transform = torch.randn(batch, config.generator.z_dim), view_transform([2.0] * batch, [[0, 0]] * batch)
    times = []
    for _ in range(WARMUP + STEPS):
        start = time.perf_counter()
        generator(z, transform).square().mean().backward()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[WARMUP:])


@click.command(context_settings={"show_default": True})
@click.option("--threads", default=2, help="Threads of PyTorch.")
@click.option("--turns", default=3, help="Turns of each kind.")
@click.option("--out", type=click.Path(dir_okay=False), help="Also write the JSON here.")
@click.option("--single", type=click.Choice(["keep", "default"]), hidden=True)
def main(threads: int, turns: int, out: str | None, single: str | None) -> None:
    """Measure, in turns, and print the ratio."""
    if single:
        print(step_ms(single == "keep", threads))
        return
    times: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(turns):
        for kind, measured in times.items():
            command = [sys.executable, __file__, "--single", kind, "--threads", str(threads)]
            measured.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    best = {kind: min(measured) for kind, measured in times.items()}
    result = {
        "what": "demo generator, forward and backward, ms; least of the turns' medians",
        "machine": describe(threads),
        "ms": {kind: round(value, 1) for kind, value in best.items()},
        "ratio": round(best["default"] / best["keep"], 2),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if out:
        Path(out).write_text(text + "\n")


if __name__ == "__main__":
    main()
