"""Time the PyTorch ops of a demo-sized training step on this CPU, against the naive form in the same run; prints JSON.

    python benchmarks/reference_ops.py [--threads 2] [--repeats 7] [--out benchmarks/results/reference_ops-DATE.json]

Naive: insert the zeros, filter at the full rate (a separable filter in two depthwise passes), drop the samples, and
leave the gradient to autograd. All take turns, so that a disturbance of the machine hits all; the least times count.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe, publish, result_file

from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

UPSAMPLE = {"up": 2, "down": 2, "padding": [11, 10, 11, 10], "clamp": 256}
UPSAMPLE_4 = {"up": 4, "down": 2, "padding": [-2, -5, -2, -5], "clamp": 256}
CRITICAL = {"up": 2, "down": 2, "padding": [-9, -10, -9, -10], "clamp": 256}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: the shape of x, the shapes of the filters (up, down; or one), and the other arguments."""

    name: str
    shape: tuple[int, int, int, int]
    filters: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any]


CASES = [
    Case("filtered_lrelu 36 radial", (8, 64, 36, 36), ((12,), (12, 12)), UPSAMPLE),
    Case("filtered_lrelu 52 radial", (8, 64, 52, 52), ((12,), (12, 12)), UPSAMPLE),
    Case("filtered_lrelu 52 separable", (8, 64, 52, 52), ((12,), (12,)), UPSAMPLE),
    Case("filtered_lrelu 84 radial", (8, 64, 84, 84), ((12,), (12, 12)), UPSAMPLE),
    Case("filtered_lrelu 84 separable", (8, 64, 84, 84), ((12,), (12,)), UPSAMPLE),
    Case("filtered_lrelu 36 up 4", (8, 64, 36, 36), ((24,), (12, 12)), UPSAMPLE_4),
    Case("filtered_lrelu 84 cropped", (8, 64, 84, 84), ((12,), (12,)), CRITICAL),
    Case("filtered_lrelu 276 radial", (1, 128, 276, 276), ((12,), (12, 12)), UPSAMPLE),
    Case("upfirdn2d 64 blur", (8, 64, 64, 64), ((4,),), {"padding": [2, 1, 2, 1]}),
    Case("upfirdn2d 64 blur dense", (8, 64, 64, 64), ((4, 4),), {"padding": [2, 1, 2, 1]}),
    Case("upfirdn2d 64 blur, half", (8, 64, 64, 64), ((4,),), {"padding": 1, "down": 2}),
    Case("upfirdn2d 32 blur, half", (8, 64, 32, 32), ((4,),), {"padding": 1, "down": 2}),
]


def naive_upfirdn2d(
    x: torch.Tensor, f: torch.Tensor, up: int = 1, down: int = 1, padding: int | list[int] = 0, gain: float = 1
) -> torch.Tensor:
    """The definition, step by step."""
    batch, channels, height, width = x.shape
    x = F.pad(x.reshape(batch, channels, height, 1, width, 1), [0, up - 1, 0, 0, 0, up - 1])
    x = F.pad(
        x.reshape(batch, channels, height * up, width * up), [padding] * 4 if isinstance(padding, int) else padding
    )
    for g in [f.flip(0, 1)] if f.ndim == 2 else [f.flip(0)[None, :], f.flip(0)[:, None]]:
        x = F.conv2d(x, g.expand(channels, 1, *g.shape), groups=channels)
    return x[:, :, ::down, ::down] * gain


def naive_filtered_lrelu(
    x: torch.Tensor, fu: torch.Tensor, fd: torch.Tensor, up: int, down: int, padding: list[int], clamp: float
) -> torch.Tensor:
    """The definition, step by step."""
    x = naive_upfirdn2d(x, fu, up=up, padding=padding, gain=up**2)
    x = (F.leaky_relu(x, 0.2) * 2**0.5).clamp(-clamp, clamp)
    return naive_upfirdn2d(x, fd, down=down)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Milliseconds of the op and of the naive form, forward and both ways; their ratios and differences."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.shape, generator=generator)
    filters = [torch.rand(shape, generator=generator) for shape in case.filters]
    filters = [f / f.sum() for f in filters]
    is_linear = case.name.startswith("upfirdn2d")
    op = functools.partial(upfirdn2d if is_linear else filtered_lrelu, impl="reference")
    naive: Callable[..., torch.Tensor] = naive_upfirdn2d if is_linear else naive_filtered_lrelu
    leaf = x.clone().requires_grad_()
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "forward": lambda: op(x, *filters, **case.arguments),
        "naive_forward": lambda: naive(x, *filters, **case.arguments),
        "both": lambda: gradient(op(leaf, *filters, **case.arguments), leaf),
        "naive_both": lambda: gradient(naive(leaf, *filters, **case.arguments), leaf),
    }
    results = {name: run() for name, run in runs.items()}
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        seconds = {name: min(seconds[name], timed(run)) for name, run in runs.items()}
    return {
        "case": case.name,
        "shape": list(case.shape),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in seconds.items()},
        "forward_ratio": round(seconds["naive_forward"] / seconds["forward"], 2),
        "both_ratio": round(seconds["naive_both"] / seconds["both"], 2),
        "forward_difference": difference(results["forward"], results["naive_forward"]),
        "gradient_difference": difference(results["both"], results["naive_both"]),
    }


def gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gradient of half the sum of squares of ``y``."""
    return torch.autograd.grad(y, x, y.detach())[0]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def timed(run: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure all cases and print them, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--repeats", type=int, default=7, help="turns, of which the fastest counts (default 7)")
    parser.add_argument("--out", type=result_file, help="JSON file to write as well")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {
        "machine": describe(options.threads),
        "cases": [measure(case, options.repeats) for case in CASES],
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
