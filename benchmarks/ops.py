"""Time filtered_lrelu on every layer of the `moon` generator: the kernels, PyTorch's ops, and the machine's floor.

    python benchmarks/ops.py [--device cpu --dtype float32 --batch 1 --layers 3,8] [--out benchmarks/results/ops-NAME.json]

Floor of a forward pass: the larger of its bytes (images read and written once) over the bandwidth of a copy and its
operations over the rate of a matrix product, both measured in the same run. The contestants take turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import alternate, copy_bandwidth, describe, matrix_rate, peak_bytes

from multiscale.config import GeneratorConfig, RunConfig, build, load_preset
from multiscale.networks import layers
from multiscale.networks.generator import Generator
from multiscale.view import view_transform
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.reference import filter_taps

Call = tuple[torch.Size, dict[str, Any]]


def moon() -> GeneratorConfig:
    """The generator of the preset `moon`."""
    return build(RunConfig, load_preset("moon")).generator


def layer_calls(config: GeneratorConfig) -> list[Call]:
    """Shape of the images and other arguments of each layer's filtered_lrelu in one frame, by running it on nothing."""
    calls: list[Call] = []

    def record(x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        calls.append((x.shape, {name: value for name, value in arguments.items() if name != "b"}))
        return filtered_lrelu(x, **arguments)

    original, layers.filtered_lrelu = layers.filtered_lrelu, record  # type: ignore[assignment]
    try:
        with torch.no_grad():
            Generator(config)(torch.randn(1, config.z_dim), view_transform([1.0], [[0.0, 0.0]]))
    finally:
        layers.filtered_lrelu = original  # type: ignore[assignment]
    return calls


def operations(shape: torch.Size, arguments: dict[str, Any], out: torch.Size) -> int:
    """Multiplications and additions of a forward pass with the filters as they are: separable ones in two passes."""
    up, down = arguments["up"], arguments["down"]
    (taps_u, _), (taps_d, _) = filter_taps(arguments["fu"]), filter_taps(arguments["fd"])
    maps, height, (out_height, out_width) = shape[0] * shape[1], shape[2], out[2:]
    upsampled = out_width * down + taps_d - 1  # a side
    products = height * upsampled * taps_u // up + upsampled**2 * taps_u // up
    if arguments["fd"] is not None and arguments["fd"].ndim == 2:
        products += out_height * out_width * taps_d**2
    else:
        products += out_height * upsampled * taps_d + out_height * out_width * taps_d
    return 2 * maps * products


def measure(call: Call, options: argparse.Namespace, bandwidth: float, rate: float) -> dict[str, Any]:
    """Seconds of forward and of both ways, floor, memory, difference from PyTorch's ops."""
    shape, arguments = torch.Size([options.batch, *call[0][1:]]), dict(call[1])
    device, dtype = options.device, getattr(torch, options.dtype)
    arguments |= {n: None if arguments[n] is None else arguments[n].to(device) for n in ("fu", "fd")}
    x = torch.randn(shape, device=device).to(dtype)
    leaf = x.clone().requires_grad_()
    contestants = {"native": "native", "pytorch": "reference"}
    compiled = torch.compile(filtered_lrelu) if device != "cpu" else None

    def forward(impl: str, x: torch.Tensor, op: Callable[..., torch.Tensor] = filtered_lrelu) -> torch.Tensor:
        return op(x, **arguments, impl=impl)

    runs: dict[str, Callable[[], object]] = {}
    y = forward("native", x)
    dy = torch.randn_like(y)
    for name, impl in contestants.items():
        runs[name] = lambda impl=impl: forward(impl, x)
        runs[f"{name}_both"] = lambda impl=impl: torch.autograd.grad(forward(impl, leaf), leaf, dy)
    if compiled is not None:
        runs["compiled"] = lambda: forward("reference", x, compiled)
    operations_forward = operations(shape, arguments, y.shape)
    bytes_forward = (x.numel() + y.numel()) * x.element_size()
    times = alternate(runs, device, options.repeats)
    floor = max(bytes_forward / bandwidth, operations_forward / rate)
    memory = {name: peak_bytes(lambda impl=impl: forward(impl, leaf), device) for name, impl in contestants.items()}
    expected = forward("reference", x).double()
    return {
        "shape": list(shape),
        "out": list(y.shape),
        "filters": [None if arguments[n] is None else list(arguments[n].shape) for n in ("fu", "fd")],
        "up": arguments["up"],
        "down": arguments["down"],
        "gigabytes": bytes_forward / 1e9,
        "gigaoperations": operations_forward / 1e9,
        "floor_ms": 1e3 * floor,
        **{f"{name}_ms": 1e3 * value for name, value in times.items()},
        "of_floor": times["native"] / floor,
        "speedup": times["pytorch"] / times["native"],
        "speedup_both": times["pytorch_both"] / times["native_both"],
        **{f"{name}_peak_mb": value / 1e6 for name, value in memory.items()},
        "difference": float((y.double() - expected).norm() / expected.norm()),
    }


def table(results: list[dict[str, Any]]) -> str:
    """A line for each layer, and the sums."""
    columns = ("floor_ms", "native_ms", "pytorch_ms", "compiled_ms", "native_both_ms", "pytorch_both_ms")
    columns = tuple(c for c in columns if c in results[0])
    lines = [f"{'images':>22} {'up':>2} {'down':>4} {'filter':>7} " + " ".join(f"{c:>15}" for c in columns)]
    for r in results:
        dense = "none" if r["filters"][1] is None else "x".join(map(str, r["filters"][1]))
        head = f"{'x'.join(map(str, r['shape'])):>22} {r['up']:>2} {r['down']:>4} {dense:>7} "
        lines.append(head + " ".join(f"{r[c]:>15.3f}" for c in columns))
    total = {c: sum(r[c] for r in results) for c in columns}
    lines.append(f"{'all':>38} " + " ".join(f"{total[c]:>15.3f}" for c in columns))
    ratios = {"forward": total["pytorch_ms"] / total["native_ms"]}
    ratios["both ways"] = total["pytorch_both_ms"] / total["native_both_ms"]
    peaks = [sum(r[f"{name}_peak_mb"] for r in results) for name in ("native", "pytorch")]
    lines.append(f"Forward: {total['native_ms'] / total['floor_ms']:.2f} x the floor.")
    lines.append(
        "Faster than PyTorch's ops: " + ", ".join(f"{name} {value:.1f} x" for name, value in ratios.items()) + "."
    )
    lines.append(
        f"Memory of a forward pass with gradient, result included: {peaks[0] / peaks[1]:.2f} of PyTorch's ops."
    )
    return "\n".join(lines)


def main() -> None:
    """Measure the layers, print the table, write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float16, bfloat16, float64")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--threads", type=int, default=4, help="threads of PyTorch (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--layers", help="only these, numbers from 0, separated by commas")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    calls = layer_calls(moon())
    chosen = range(len(calls)) if options.layers is None else map(int, options.layers.split(","))
    bandwidth = copy_bandwidth(options.device)
    rate = matrix_rate(options.device, getattr(torch, options.dtype))
    results = []
    for i in chosen:
        results.append(measure(calls[i], options, bandwidth, rate))
        print(json.dumps({"layer": i, **results[-1]}), flush=True)
    report = {
        "machine": describe(options.threads, options.device),
        "dtype": options.dtype,
        "copy_gigabytes_per_sec": bandwidth / 1e9,
        "matrix_gigaoperations_per_sec": rate / 1e9,
        "layers": results,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
