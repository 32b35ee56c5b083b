"""Check filtered_lrelu and its gradients on random layers against float64, in float32, float16 and bfloat16.

    python benchmarks/layers.py [--device cuda --count 200 --seed 0] [--out FILE.json]

Two layers in three are of the generator's kind (six taps a phase, factors 2 and 4, dense or separable); the others have any
factors, filters and paddings. An image counts as right if its error, the norm of the difference over the norm, is below
``ALLOWED`` of its type. So does a gradient; in half precision, where samples closer to 0 than their rounding error take either
slope, against the exact gradient for the slopes that the layer took, and these may differ only that close to a threshold. A
kernel that leaves an output unwritten shows, since memory is filled with NaN before. Exit code 1 if a layer is wrong. Without
kernels for the device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch
from machine import describe, publish, result_file

from torch_utils.devices import float32_products
from torch_utils.ops import build, native, slopes
from torch_utils.ops.filtered_lrelu import filtered_lrelu

ALLOWED = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NAMES = ("image", "gradient of the image", "gradient of the bias", "slopes")


def draw(rng: np.random.Generator) -> tuple[list[int], dict[str, Any]]:
    """Shape of the images [B, C, H, W] and arguments of a layer with filters that sum to 1."""

    def filter_of(*taps: int) -> torch.Tensor:
        f = torch.from_numpy(rng.random(taps))
        return (f / f.sum()).float()

    shape = [int(rng.integers(1, 3)), int(rng.integers(1, 9)), *(int(n) for n in rng.integers(8, 97, 2))]
    if rng.random() < 2 / 3:
        up = int(rng.choice([2, 4]))
        total = 6 * up - 1 + 11 - up + 1
        pads = [total // 2 + int(rng.integers(0, 3)) for _ in range(4)]
        fd = filter_of(*[12] * int(rng.integers(1, 3)))
        return shape, {"fu": filter_of(6 * up), "fd": fd, "up": up, "down": 2, "padding": pads, "clamp": 256.0}
    taps = [int(n) for n in rng.integers(1, 33, 3)]
    factors = {name: [int(rng.choice(native.FACTORS)) for _ in range(2)] for name in ("up", "down")}
    pads = [int(n) for n in rng.integers(30, 40, 4)]
    fu, fd = filter_of(taps[0]), filter_of(*taps[1 : int(rng.integers(2, 4))])
    return shape, {"fu": fu, "fd": fd, **factors, "padding": pads, "clamp": 0.8}


def errors(seed: int, device: str) -> tuple[torch.dtype, dict[str, tuple[float, float]]]:
    """Type of a layer, and the errors of its image, gradients and slopes: the kernels', and that of PyTorch's ops.

    The error of the slopes is how far from a threshold a sample with another slope is, relative to the largest sample.
    """
    rng = np.random.default_rng(seed)
    types = [dtype for dtype in ALLOWED if dtype in native.DEVICE_TYPES[device]]
    dtype = types[seed % len(types)]
    shape, arguments = draw(rng)
    arguments |= {name: arguments[name].to(device) for name in ("fu", "fd")}
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=random).to(device, dtype)
    b = torch.randn(shape[1], generator=random).to(device, dtype)

    def layer(dtype: torch.dtype, impl: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = [x.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()]
        return filtered_lrelu(leaves[0], b=leaves[1], impl=impl, **arguments), leaves

    exact, exact_leaves = layer(torch.float64, "reference")
    dy = torch.randn(exact.shape, generator=random, dtype=torch.float64).to(device).to(dtype)

    def error(got: torch.Tensor, expected: torch.Tensor) -> float:
        return ((got.double() - expected).norm() / expected.norm()).item()

    def errors_of(impl: str) -> list[float]:
        y, leaves = layer(dtype, impl)
        if dtype == torch.float32:
            farthest = 0.0
            dx, db = torch.autograd.grad(exact, exact_leaves, dy.double(), retain_graph=True)
        else:
            taken = slopes.slopes_taken(y)
            farthest = slopes.farthest_from_threshold(exact, taken, x.double(), b.double())
            dx = slopes.gradient(exact, taken, dy)
            db = dx.sum([0, 2, 3])
        got = torch.autograd.grad(y, leaves, dy)
        return [error(y.detach(), exact.detach()), error(got[0], dx), error(got[1], db), farthest]

    rubbish = torch.full([3 * x.numel() * 16], torch.nan, device=device)
    del rubbish  # what the kernels write to is taken from here
    kernels, pytorch = (errors_of(impl) for impl in ("native", "reference"))
    return dtype, dict(zip(NAMES, zip(kernels, pytorch, strict=True), strict=True))


@float32_products()
def main() -> None:
    """Check the layers, print the largest errors, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--count", type=int, default=200, help="layers (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one (default 0)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    try:
        native.library(torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device))
    except (build.BuildError, RuntimeError, AssertionError) as error:
        print(f"No kernels to check on {options.device}: {error}", file=sys.stderr)
        sys.exit(2)
    worst: dict[str, dict[str, list[float]]] = {}
    wrong = []
    for seed in range(options.seed, options.seed + options.count):
        dtype, found = errors(seed, options.device)
        of_type = worst.setdefault(str(dtype).removeprefix("torch."), {name: [0.0, 0.0] for name in NAMES})
        for name, both in found.items():
            of_type[name] = np.maximum(of_type[name], both).tolist()  # NaN stays
            if not both[0] <= max(2 * both[1], ALLOWED[dtype]):
                wrong.append({"seed": seed, "dtype": str(dtype), "what": name, "errors": both})
    device = options.device
    report = {
        "machine": describe(torch.get_num_threads(), device),
        "layers": options.count,
        "worst, and of PyTorch": worst,
    }
    publish(report | {"wrong": wrong}, options.out)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
