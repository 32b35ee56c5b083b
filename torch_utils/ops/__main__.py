"""``python -m torch_utils.ops``: which kernels this machine can have, which it has, and whether they are right.

With ``--build`` kernels are only compiled, for machines that share the cache and have no compiler.
"""

from __future__ import annotations

import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch

from dnnlib.cli import reports_user_errors
from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from torch_utils.ops import build, native, slopes
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-3
"""Of the self-check in float32, and on tensor cores in float16; relative to the norm of the result."""


@click.command()
@click.option(
    "--build",
    "wanted",
    multiple=True,
    metavar="KERNELS",
    help="Only compile these into the cache: cpu (for processors as this machine's), or cuda:9.0 (for GPUs of that compute "
    "capability, of which none need be here). May be repeated.",
)
@reports_user_errors
def main(wanted: tuple[str, ...]) -> None:
    """Which kernels this machine can have, which it has, and whether they are right; exit code 1 if not."""
    if wanted:
        for library in [compiled(*kernels(text)) for text in wanted]:
            print(library)
        return
    print(
        f"Python {platform.python_version()}, PyTorch {torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"
    )
    print(
        f"MULTISCALE_OPS: {native.preference()}   (auto: kernels where they can run; scalar: these without tensor cores; "
        "reference, native: those or none)"
    )
    print(f"Cache: {cache_folder() / 'kernels'}   (MULTISCALE_CACHE sets another)")
    for kind, compiler in build.compilers().items():
        print(f"Compiler for {kind}: {' '.join(compiler) if compiler else 'none found'}")
    fine = [report(device) for device in devices()]
    sys.exit(0 if all(fine) else 1)


def kernels(text: str) -> tuple[str, tuple[int, int] | None]:
    """Kind and compute capability of what ``--build`` names."""
    if text == "cpu":
        return "cpu", None
    if found := re.fullmatch(r"cuda:(\d+)\.(\d)", text):
        return "cuda", (int(found[1]), int(found[2]))
    raise UserError(f"--build {text} names no kernels; give cpu, or cuda: and a compute capability such as cuda:9.0.")


def compiled(kind: str, arch: tuple[int, int] | None) -> Path:
    """Where in the cache the kernels are, compiled if need be."""
    try:
        build.library(kind, arch)
        return build.plan(kind, arch).library
    except build.BuildError as error:
        raise UserError(str(error)) from error


def devices() -> Iterator[torch.device]:
    """The CPU and all GPUs."""
    yield torch.device("cpu")
    for i in range(torch.cuda.device_count()):
        yield torch.device("cuda", i)


def report(device: torch.device) -> bool:
    """Print what there is for a device, building it if need be; False if its kernels are wrong."""
    if device.type == "cpu":
        print(f"\ncpu: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
        arch = None
    else:
        arch = torch.cuda.get_device_capability(device)
        print(f"\n{device}: {torch.cuda.get_device_name(device)}, compute capability {arch[0]}.{arch[1]}")
    try:
        planned = build.plan(device.type, arch)
        print(f"  {planned.library} ({'built' if planned.is_built else 'not built yet'})")
        start = time.perf_counter()
        native.library(device)
        print(f"  ready after {time.perf_counter() - start:.2f} s")
    except build.BuildError as error:
        print(f"  PyTorch's ops serve instead, which are slower: {error}")
        return True
    results = [check(name, device) for name in CHECKS]
    if device.type == "cuda":
        if not native.has_tensor_cores(device):
            print(
                "  tensor cores are not used: the kernels for them need compute capability 8.0 and an nvcc that knows it"
            )
        elif native.preference() == "scalar":
            print("  tensor cores are not used, as MULTISCALE_OPS asks for")
        else:
            results.append(check("filtered_lrelu", device, torch.float16))
    return all(results)


def check(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Compare one op with PyTorch in float64, time it against PyTorch in the same type, and print both."""
    op = CHECKS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 64, 64, generator=generator).to(device, dtype)
    f = torch.hann_window(12, periodic=False, device=device)
    f = f / f.sum()

    def layer(impl: str, dtype: torch.dtype = dtype) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.to(dtype).requires_grad_()
        return leaf, op(leaf, f if dtype == torch.float16 else f.to(dtype), impl)

    def run(impl: str) -> None:
        leaf, y = layer(impl)
        torch.autograd.grad(y, leaf, dy)

    dy = torch.randn(op(x, f, "reference").shape, generator=generator).to(device, dtype)
    (leaf, y), (exact_leaf, exact) = layer("native"), layer("reference", torch.float64)
    if dtype == torch.float16:  # samples closer to 0 than rounding have either slope, rightly so
        expected = slopes.gradient(exact, slopes.slopes_taken(y), dy)
    else:
        expected = torch.autograd.grad(exact, exact_leaf, dy.double())[0]
    results = ((y.detach(), exact.detach()), (torch.autograd.grad(y, leaf, dy)[0], expected))
    errors = [float((got.double() - right).norm() / right.norm()) for got, right in results]
    native_sec, pytorch_sec = (seconds(lambda impl=impl: run(impl), device) for impl in ("native", "reference"))  # type: ignore[misc]
    right = max(errors) < (HALF_TOLERANCE if dtype == torch.float16 else TOLERANCE)
    verdict = "right" if right else "WRONG"
    label = name + (", tensor cores" if dtype == torch.float16 else "")
    print(
        f"  {label:<14} {verdict}: off by {errors[0]:.1e}, gradient {errors[1]:.1e};"
        f" {pytorch_sec / native_sec:.1f} times as fast as PyTorch's ops ({1e3 * native_sec:.2f} ms, both ways)"
    )
    return right


CHECKS: dict[str, Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]] = {
    "upfirdn2d": lambda x, f, impl: upfirdn2d(x, f, down=2, padding=5, impl=impl),
    "filtered_lrelu": lambda x, f, impl: filtered_lrelu(
        x, f, f[:, None] * f, up=2, down=2, padding=[11, 10, 11, 10], clamp=256, impl=impl
    ),
    "bias_act": lambda x, f, impl: bias_act(x, act="lrelu", clamp=256, impl=impl),
}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of a few times."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(5))


if __name__ == "__main__":
    main()
