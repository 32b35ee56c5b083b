"""Time filtered_lrelu on every layer of the `moon` generator: the kernels, PyTorch's ops, and the machine's floor.

    python benchmarks/ops.py [--device cpu --dtype float32 --batch 1 --layers 3,8] [--out benchmarks/results/ops-NAME.json]

Floor of a forward pass: the larger of its bytes (images read and written once) over the bandwidth of a copy and its
operations over the rate of a matrix product, both measured in the same run. The contestants take turns. On a GPU a forward
pass is timed as a CUDA graph, which leaves out what Python takes to launch it; both ways are timed as they are. PyTorch's ops
insert no zeros either; ``--definition`` also times the op as it is defined, zeros and all, as usual in plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from machine import alternate, as_graph, copy_bandwidth, describe, matrix_rate, peak_bytes, result_file
from reference_ops import naive_filtered_lrelu

from dnnlib.reading import each_once
from multiscale.config import GeneratorConfig, RunConfig, build, load_preset
from multiscale.networks import layers
from multiscale.networks.generator import Generator
from multiscale.view import view_transform
from torch_utils.devices import float32_products, keep_freed_memory
from torch_utils.ops import native
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.reference import filter_taps

Call = tuple[torch.Size, dict[str, Any]]
Op = Callable[[torch.Tensor], torch.Tensor]


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


def called(name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """What runs a contestant: with MULTISCALE_OPS=scalar, if that is its name."""
    if name != "scalar":
        return run

    def run_scalar() -> Any:
        before = os.environ.get("MULTISCALE_OPS", "")  # empty is as good as unset
        os.environ["MULTISCALE_OPS"] = "scalar"
        try:
            return run()
        finally:
            os.environ["MULTISCALE_OPS"] = before

    return run_scalar


def prepare(call: Call, options: argparse.Namespace) -> tuple[torch.Tensor, dict[str, Any], dict[str, Op]]:
    """Images, arguments and contestants of a layer."""
    device, arguments = options.device, dict(call[1])
    arguments |= {n: None if arguments[n] is None else arguments[n].to(device) for n in ("fu", "fd")}
    x = torch.randn([options.batch, *call[0][1:]], device=device).to(getattr(torch, options.dtype))
    contestants: dict[str, Op] = {
        "native": lambda x: filtered_lrelu(x, **arguments, impl="native"),
        "pytorch": lambda x: filtered_lrelu(x, **arguments, impl="reference"),
    }
    if device != "cpu" and x.dtype in native.HALF_TYPES and native.has_tensor_cores(x.device):
        contestants["scalar"] = contestants["native"]  # but without tensor cores: called()
    if options.compile:
        torch._dynamo.reset()  # each layer is compiled for itself: more of them than dynamo keeps for one function
        compiled = torch.compile(filtered_lrelu)
        contestants["compiled"] = lambda x: compiled(x, **arguments, impl="reference")
    if options.definition and arguments["fu"] is not None:
        names = ("fu", "fd", "up", "down", "padding", "clamp")
        contestants["definition"] = lambda x: naive_filtered_lrelu(x, **{n: arguments[n] for n in names})
    return x, arguments, contestants


def compile_ahead(runs: dict[str, Callable[[], object]]) -> None:
    """Call once what is compiled: what that takes is not to be timed, however few the turns."""
    for name, run in runs.items():
        if name.startswith("compiled"):
            run()


def measure_memory(call: Call, options: argparse.Namespace) -> dict[str, float]:
    """Megabytes at the peak of a forward pass with gradient, beyond its result."""
    x, _, contestants = prepare(call, options)
    size = contestants["native"](x).nbytes
    x.requires_grad_()
    peaks = {name: peak_bytes(lambda op=op: op(x), options.device) for name, op in contestants.items()}
    return {f"{name}_peak_mb": (peak - size) / 1e6 for name, peak in peaks.items()}


def measure_time(call: Call, options: argparse.Namespace, bandwidth: float, rate: float) -> dict[str, Any]:
    """Milliseconds of forward and of both ways, floor, difference from PyTorch's ops."""
    x, arguments, contestants = prepare(call, options)
    device, leaf = options.device, x.clone().requires_grad_()
    y, expected = contestants["native"](x), contestants["pytorch"](x).double()
    dy = torch.randn_like(y)
    runs: dict[str, Callable[[], object]] = {}
    for name, op in contestants.items():
        runs[name] = called(name, lambda op=op: op(x))
        runs[f"{name}_both"] = called(name, lambda op=op: torch.autograd.grad(op(leaf), leaf, dy))
    operations_forward = operations(x.shape, arguments, y.shape)
    bytes_forward = (x.numel() + y.numel()) * x.element_size()
    with torch.no_grad():
        forward = {name: run for name, run in runs.items() if "both" not in name}
        compile_ahead(forward)
        if device != "cpu":
            forward = {name: as_graph(run) for name, run in forward.items()}
        times = alternate(forward, device, options.repeats)
    both = {name: run for name, run in runs.items() if "both" in name}
    compile_ahead(both)
    times |= alternate(both, device, options.repeats)
    floor = max(bytes_forward / bandwidth, operations_forward / rate)
    return {
        "shape": list(x.shape),
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
        "difference": float((y.double() - expected).norm() / expected.norm()),
    }


def table(results: list[dict[str, Any]]) -> str:
    """A line for each layer, and the sums."""
    columns = ["floor_ms", *(key for key in results[0] if key.endswith("_ms") and key != "floor_ms")]
    lines = [f"{'images':>22} {'up':>2} {'down':>4} {'filter':>7} " + " ".join(f"{c:>18}" for c in columns)]
    for r in results:
        dense = "none" if r["filters"][1] is None else "x".join(map(str, r["filters"][1]))
        head = f"{'x'.join(map(str, r['shape'])):>22} {r['up']:>2} {r['down']:>4} {dense:>7} "
        lines.append(head + " ".join(f"{r.get(c, 0):>18.3f}" for c in columns))
    total = {c: sum(r.get(c, 0) for r in results) for c in columns}
    lines.append(f"{'all':>38} " + " ".join(f"{total[c]:>18.3f}" for c in columns))
    lines.append(f"Forward: {total['native_ms'] / total['floor_ms']:.2f} x the floor.")
    for name in (c.removesuffix("_both_ms") for c in columns if c.endswith("_both_ms") and c != "native_both_ms"):
        with_it = [r for r in results if f"{name}_ms" in r]
        sums = [sum(r[f"{n}_{which}"] for r in with_it) for which in ("ms", "both_ms") for n in (name, "native")]
        lines.append(f"Faster than {name}: forward {sums[0] / sums[1]:.1f} x, both ways {sums[2] / sums[3]:.1f} x.")
    peaks = [sum(r[f"{name}_peak_mb"] for r in results) for name in ("native", "pytorch")]
    lines.append(
        f"Memory of a forward pass with gradient, beyond its result: {peaks[0] / peaks[1]:.2f} of PyTorch's ops."
    )
    return "\n".join(lines)


@float32_products()
def main() -> None:
    """Measure the layers, print the table, write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float16, bfloat16, float64")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--threads", type=int, default=4, help="threads of PyTorch (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--definition", action="store_true", help="time the definition, zeros inserted, as well")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of PyTorch's ops as well")
    parser.add_argument("--layers", help="only these, numbers from 0, separated by commas")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls = layer_calls(moon())
    if options.layers is not None:
        calls = [calls[i] for i in each_once(map(int, options.layers.split(",")))]
    bandwidth = copy_bandwidth(options.device)
    rate = matrix_rate(options.device, getattr(torch, options.dtype))
    results = []
    memory = [measure_memory(call, options) for call in calls]
    keep_freed_memory()  # as generate.py does
    for call, peaks in zip(calls, memory, strict=True):
        results.append(measure_time(call, options, bandwidth, rate) | peaks)
        print(json.dumps(results[-1]), flush=True)
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
