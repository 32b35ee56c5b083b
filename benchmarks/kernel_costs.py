"""Estimate the time of filtered_lrelu in each layer of the `moon` generator on a GPU, by counting; needs none.

    python benchmarks/kernel_costs.py [--gpu h100 --direction forward|backward]

For three ways: multiply-adds with the filter as it is ("scalar"), the same with the filter as two or three separable ones
("terms"), and tensor cores. Each multiprocessor starts four instructions of a warp per cycle, moves 128 bytes of shared memory,
and multiplies matrices at a rate of its own; none of these waits for another, and the device's memory is the fourth. A way's
time is the largest of its four. What a real kernel loses on top (waiting, the last blocks, the start) is not in it, so compare
ways with each other, and layers with what benchmarks/ops.py measures.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from ops import layer_calls, moon

from torch_utils.ops import tensor_cores
from torch_utils.ops.filtered_lrelu import filtered_lrelu


@dataclasses.dataclass(frozen=True)
class GPU:
    """Multiprocessors, their clock in GHz, memory in GB/s, multiply-adds of ``mma.sync`` in float16 per cycle of each.

    From the data sheets; ``mma.sync`` reaches about 62% of the H100's rate, which only ``wgmma`` reaches (Luo et al. 2024,
    "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", table on tensor cores).
    """

    multiprocessors: int
    gigahertz: float
    bandwidth: float
    products: float


GPUS = {"h100": GPU(132, 1.755, 3350, 1270), "a100": GPU(108, 1.41, 1555, 1024)}

ISSUES = 4
"""Instructions of a warp that a multiprocessor starts in a cycle."""

PRODUCT = 16 * 8 * 16
"""Multiply-adds of one ``mma.m16n8k16``."""


@dataclasses.dataclass
class Cost:
    """Work for one map: instructions of a warp, ``mma`` among them, bytes of shared memory."""

    instructions: float = 0
    products: float = 0
    shared: float = 0

    def milliseconds(self, gpu: GPU, maps: int, memory: float) -> tuple[float, str]:
        """Time of so many maps and bytes, and what it is due to."""
        cycles = {
            "instructions": self.instructions / ISSUES,
            "products": self.products * PRODUCT / gpu.products,
            "shared memory": self.shared / 128,
        }
        times = {name: 1e-6 * n * maps / gpu.multiprocessors / gpu.gigahertz for name, n in cycles.items()}
        times["memory"] = 1e-6 * memory / gpu.bandwidth
        return max((time, name) for name, time in times.items())


def scalar_cost(out: int, up: int, dense: bool, terms: int) -> Cost:
    """The tiles of filtered_lrelu_tiles.cuh, 36 x 40 outputs or 56 x 40, with down 2; ``terms``: separable filters down."""
    height, width = (36 if dense else 56, 40)
    tiles = (out / height) * (out / width)
    rows, groups = 2 * height + 11, (2 * width + 11) / (4 * up)
    columns = 4 * groups + 8
    cost = Cost()
    inputs = (rows / up + 6) * columns
    cost.instructions += inputs * 12 / 32
    cost.shared += inputs * 4
    vertical = rows * columns  # sums of seven inputs each
    cost.instructions += vertical * 9 / 32
    cost.shared += vertical * 4 * (1 + (4 + 6) / (4 * up))
    upsampled = rows * groups * 4 * up
    cost.instructions += upsampled * 18 / 32
    cost.shared += upsampled * 4 * (1 + 12 / (4 * up))
    outputs = height * width
    if dense:  # 4 x 4 outputs from 4 phases of 10 rows of 12 samples, and 36 weights
        cost.instructions += outputs / 16 * 2600 / 32
        cost.shared += outputs / 16 * 4 * (10 * 12 + 36) * 4
    else:
        for _ in range(terms):
            between = height * 2 * (width + 8)
            cost.instructions += between * (12 + 2) / 32 + outputs * (12 + 5) / 32
            cost.shared += between * 4 * (1 + 26 / 8) + outputs * 4 * 6
    return Cost(*(n * tiles for n in dataclasses.astuple(cost)))


def tensor_core_cost(out: int, up: int, down: int, up_terms: int, down_terms: int) -> Cost:
    """The bands of filtered_lrelu_mma.cuh: 16 upsampled rows for 16 output columns; tiles of 64 x 128 outputs."""
    steps = 3 if down == 2 else 6
    tiles, in_tiles = 2 * steps, -(-2 * steps // up) + 1
    horizontal = 8 * (down_terms // 2) + 2 * steps * (down_terms % 2)
    products = up_terms * (in_tiles + tiles) + horizontal + 2 * down_terms
    # As counted in the machine code: activation and packing; packing between passes; copies, loads, results, the loop.
    per_band = products + tiles * (6 if down == 2 else 10) + 2 * up_terms * in_tiles + 4 * down_terms + 45
    strips, bands = -(-out // 16), (out / 8 + out / 128) * down / 2
    inputs = (64 * down / up + 16) * (128 * down / up + 16) * (out / 64) * (out / 128)
    cost = Cost(strips * bands * per_band, strips * bands * products, strips * bands * in_tiles * 256)
    cost.instructions += inputs * 6 / 32 + (out / 64) * (out / 128) * 1000
    cost.shared += inputs * 6
    return cost


def table(gpu: GPU, direction: str) -> str:
    """A line for each layer that has filters, and the sums."""
    lines = [f"{'images':>20} {'up':>2} {'terms':>5} {'memory':>8}  scalar, terms, tensor cores: ms"]
    totals = [0.0] * 4
    for shape, a in layer_calls(moon()):
        if a["fd"] is None:
            continue
        maps, out = shape[0] * shape[1], output_side(shape, a)
        dense = a["fd"].ndim == 2
        terms = len(tensor_cores.separable_terms(a["fd"].double().numpy()) or [])
        memory = 2.0 * maps * (shape[2] * shape[3] + out * out)
        up = a["up"]
        if direction == "forward":
            ways = [
                scalar_cost(out, up, dense, 1),
                scalar_cost(out, up, False, terms),
                tensor_core_cost(out, up, 2, 1, terms),
            ]
        else:  # the other way round, and codes of two bits
            memory += maps * (2 * out + 10) ** 2 / 4
            ways = [tensor_core_cost(shape[2], 2, up, terms, 1)]
        times = [way.milliseconds(gpu, maps, memory) for way in ways]
        floor = 1e-6 * memory / gpu.bandwidth
        totals = [total + time for total, time in zip(totals, [floor, *(t for t, _ in times)], strict=False)]
        cells = "  ".join(f"{time:.3f} ({why})" for time, why in times)
        lines.append(f"{'x'.join(map(str, shape)):>20} {up:>2} {terms:>5} {floor:>8.3f}  {cells}")
    lines.append(f"{'all':>29} {totals[0]:>8.3f}  " + "  ".join(f"{t:.3f}" for t in totals[1 : 1 + len(ways)]))
    return "\n".join(lines)


def output_side(shape: torch.Size, arguments: dict[str, Any]) -> int:
    """Of a layer, from its shapes alone."""
    x = torch.empty([1, 1, *shape[2:]], device="meta")
    on_meta = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    return int(filtered_lrelu(x, **on_meta, impl="reference").shape[2])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="default: h100")
    parser.add_argument("--direction", choices=("forward", "backward"), default="forward", help="default: forward")
    options = parser.parse_args()
    print(table(GPUS[options.gpu], options.direction))


if __name__ == "__main__":
    main()
