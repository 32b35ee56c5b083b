"""Time frames of the `moon` generator: all of it, its convolutions alone, and on a GPU as a CUDA graph.

    python benchmarks/generator.py [--device cpu --dtype float32 --batch 1 --threads 4] [--out benchmarks/results/NAME.json]

The convolutions are matrix products of the sizes of the frame's layers. All take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from machine import alternate, as_graph, describe, publish, result_file
from ops import moon

from multiscale.networks import layers
from multiscale.networks.generator import Generator
from multiscale.view import view_transform
from torch_utils.devices import float32_products, keep_freed_memory


def convolutions(frame: Callable[[], object]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights [B, O', I'] and images [B, I', H*W] of the sizes of a frame's modulated convolutions, whose kernels are 1 x 1."""
    operands = []
    original = layers.modulated_conv2d

    def record(maps: Sequence[torch.Tensor], weight: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        dtype, (batch, _, *sides) = options["dtype"], maps[0].shape
        rows, columns = (layers.stored_channels(count, dtype) for count in weight.shape[:2])
        like = {"dtype": dtype, "device": weight.device}
        operands.append(
            (torch.randn(batch, rows, columns, **like), torch.randn(batch, columns, math.prod(sides), **like))
        )
        return original(maps, weight, *rest, **options)

    layers.modulated_conv2d = record  # type: ignore[assignment]
    try:
        frame()
    finally:
        layers.modulated_conv2d = original  # type: ignore[assignment]
    return operands


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype", default="float32", help="of all layers on a GPU: float32 (default), float16, bfloat16"
    )
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--threads", type=int, default=4, help="threads of PyTorch (default 4)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--pytorch", action="store_true", help="time PyTorch's ops too (36 s a frame on 4 cores)")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as generate.py does
    config = moon()
    if options.dtype != "float32":
        config = dataclasses.replace(config, num_half_res=8, half_dtype=options.dtype)
    generator = Generator(config).to(options.device).eval()
    z = torch.randn(options.batch, config.z_dim, device=options.device)
    transform = view_transform([4.0] * options.batch, [[0.1, -0.1]] * options.batch).to(options.device)

    def frame() -> torch.Tensor:
        return generator(z, transform)

    def frame_of_pytorch() -> torch.Tensor:
        os.environ["MULTISCALE_OPS"] = "reference"
        try:
            return frame()
        finally:
            del os.environ["MULTISCALE_OPS"]

    with torch.no_grad(), float32_products():
        operands = convolutions(frame)
        runs: dict[str, Callable[[], object]] = {"frame": frame, "convolutions": lambda: [a @ b for a, b in operands]}
        if options.device != "cpu":
            runs["graph"] = as_graph(frame)
        times = alternate(runs, options.device, options.repeats)
        if options.pytorch:
            times |= alternate({"pytorch": frame_of_pytorch}, options.device, 1)
    report: dict[str, Any] = {
        "machine": describe(options.threads, options.device),
        "dtype": options.dtype,
        "batch": options.batch,
        **{f"{name}_ms": 1e3 * value for name, value in times.items()},
        "frame_over_convolutions": times["frame"] / times["convolutions"],
        "images_per_sec": options.batch / min(times[name] for name in ("frame", "graph") if name in times),
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
