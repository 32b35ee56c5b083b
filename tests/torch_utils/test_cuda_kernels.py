"""The CUDA kernels without a GPU: compiled as plain C++ they run thread by thread, next to the reference in float64.

Every result is poisoned first, shared memory begins as NaN and a block's threads take turns in changing orders, so that a
wrong index, a sample that nobody wrote or a missing barrier shows. What this cannot show: speed, and whether nvcc compiles
the same files rightly.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from torch_utils.ops import build as builder
from torch_utils.ops import native, reference, slopes, tensor_cores
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import layers

SOURCES = Path(native.__file__).parent / "csrc" / "cuda"
EMULATION = Path(__file__).parent / "cuda_emulation"
H100_BYTES, TURING_BYTES = 228 * 1024, 64 * 1024
"""Shared memory of a multiprocessor."""

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.float16: 4.9e-4, torch.bfloat16: 3.95e-3}
"""Largest error relative to the largest result: a few roundings of float32, or one of the half types."""

MMA_TOLERANCE = {torch.float16: 1.1e-3, torch.bfloat16: 4.6e-3}
"""The same of the tensor cores, which take float16 in each of four passes; where slopes of 0 leave little of the upsampled
samples, relative to a fifth of the largest of these."""


# ----- building and calling -----------------------------------------------------------------------------------------


def build(folder: Path, *flags: str) -> Path:
    """Compile all kernels as plain C++ into a library."""
    sources = [*sorted(SOURCES.glob("*.cu")), EMULATION / "controls.cpp"]

    def compile_one(source: Path) -> Path:
        result = folder / f"{source.stem}.o"
        command = [
            "g++",
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-fPIC",
            f"-I{EMULATION}",
        ]
        subprocess.run([*command, *flags, "-c", "-x", "c++", str(source), "-o", str(result)], check=True)
        return result

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "emulated.so"
    subprocess.run(["g++", "-shared", *flags, *map(str, objects), "-o", str(library)], check=True)
    return library


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("emulating the kernels needs g++")
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("cuda_emulation"), "-O2")))


def run_upfirdn2d(kernels: ctypes.CDLL, x: torch.Tensor, r: Resampling) -> torch.Tensor:
    y = poisoned([x.shape[0], r.y.n_out, r.x.n_out], x.dtype)
    f = native._constant(r.f, x)
    resampling = native._resampling(f, native._numbers(r), r.gain)
    call = native._Upfirdn2d(x.data_ptr(), y.data_ptr(), x.shape[0], native.TYPES[x.dtype], resampling)
    assert kernels.upfirdn2d_cuda(ctypes.byref(call), None) == 0
    return y


def run_filtered_lrelu(
    kernels: ctypes.CDLL,
    x: torch.Tensor,
    b: torch.Tensor | None,
    codes: torch.Tensor | None,
    mode: int,
    layer: FilteredLReLU,
    *,
    mma: bool = False,
) -> torch.Tensor:
    y = poisoned([x.shape[0], layer.down.y.n_out, layer.down.x.n_out], x.dtype)
    fu, fd, b = (native._constant(t, x) for t in (layer.up.f, layer.down.f, b))
    stages = (native._resampling(f, native._numbers(r), r.gain) for f, r in ((fu, layer.up), (fd, layer.down)))
    clamp = float("inf") if layer.clamp is None else layer.clamp
    call = native._FilteredLReLU(
        *(native._pointer(t) for t in (x, y, b, codes)),
        *(x.shape[0], 1 if b is None else len(b), 0 if codes is None else codes.shape[2]),
        *(native.TYPES[x.dtype], mode, layer.slope, clamp),
        *stages,
    )
    if mma:
        native._add_fragments(call, layer)
        assert None not in (call.up_registers, call.down_registers)
    assert kernels.filtered_lrelu_cuda(ctypes.byref(call), None) == 0
    return y


def poisoned(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


# ----- what is compared ---------------------------------------------------------------------------------------------


def check_upfirdn2d(
    kernels: ctypes.CDLL, rng: np.random.Generator, r: Resampling, dtype: torch.dtype, maps: int
) -> None:
    x = normal(rng, maps, r.y.n_in, r.x.n_in).to(dtype)
    close(run_upfirdn2d(kernels, x, r), in_float64(r)(x.double()))


def check_filtered_lrelu(
    kernels: ctypes.CDLL,
    rng: np.random.Generator,
    layer: FilteredLReLU,
    dtype: torch.dtype,
    maps: int,
    channels: int | None,
    *,
    mma: bool = False,
    size: float = 1.0,
) -> None:
    """All three modes of a layer: plain, writing codes, and multiplying by other codes; of images of a size."""
    x = (normal(rng, maps, layer.up.y.n_in, layer.up.x.n_in) * size).to(dtype)
    b = None if channels is None else native._constant(normal(rng, channels) * size, x)
    exact = dataclasses.replace(layer, up=in_float64(layer.up), down=in_float64(layer.down))
    expanded = None if b is None else b.double()[torch.arange(maps) % channels]
    patterns = torch.empty([maps, layer.up.y.n_out, layer.up.x.n_out], dtype=torch.int8)
    expected = exact.activate(x.double(), expanded, patterns)
    plain = run_filtered_lrelu(kernels, x, b, None, native.ACTIVATE, layer, mma=mma)
    biased = x.double() if b is None else x.double() + expanded[:, None, None]
    largest = min(float(exact.up(biased).abs().max()), layer.clamp or float("inf"))
    close(plain, expected, largest if mma else None)
    width = patterns.shape[2]
    code_bytes = native._code_bytes(width, ([], []), "cuda") if mma else -(-width // 4)
    codes = torch.full([*patterns.shape[:2], code_bytes], 0xFF, dtype=torch.uint8)
    assert torch.equal(run_filtered_lrelu(kernels, x, b, codes, native.REMEMBER, layer, mma=mma), plain)
    check_codes(codes, exact, biased, margin=MMA_TOLERANCE[torch.float16] if mma else 1e-5)
    check_multiplication(kernels, rng, layer, x, mma=mma)


def check_codes(codes: torch.Tensor, layer: FilteredLReLU, x: torch.Tensor, margin: float) -> None:
    """Codes that outputs depend on are right, but for samples at a threshold; the others are right or zero."""
    u = layer.up(x)
    v = torch.where(u > 0, u, u * layer.slope)
    clamp = float("inf") if layer.clamp is None else layer.clamp
    right = torch.where(v.abs() >= clamp, 2, torch.where(u > 0, 0, 1))
    got = slopes.unpacked(codes, v.shape[2])
    margin *= float(u.abs().max())
    doubtful = (u.abs() <= margin) | ((v.abs() - clamp).abs() <= margin)
    used = used_samples(layer)
    assert torch.all((got == right) | doubtful | (~used & (got == 0)))


def used_samples(layer: FilteredLReLU) -> torch.Tensor:
    """Which upsampled samples some output depends on: [H, W]."""
    marks = []
    for axis, taps in zip((layer.down.y, layer.down.x), reference.filter_taps(layer.down.f), strict=True):
        first = torch.arange(axis.n_out)[:, None] * axis.down - axis.pad0 + torch.arange(taps)
        marks.append(torch.isin(torch.arange(axis.n_in), first))
    return marks[0][:, None] & marks[1]


def check_multiplication(
    kernels: ctypes.CDLL, rng: np.random.Generator, layer: FilteredLReLU, x: torch.Tensor, *, mma: bool = False
) -> None:
    width = layer.up.x.n_out
    shape = [x.shape[0], layer.up.y.n_out, native._code_bytes(width, ([], []), "cuda") if mma else -(-width // 4)]
    numbers = rng.integers(0, 3, [*shape, 4])
    codes = torch.from_numpy((numbers << np.array([0, 2, 4, 6])).sum(-1).astype(np.uint8))
    patterns = torch.tensor([1, -1, 0], dtype=torch.int8)[slopes.unpacked(codes, width)]
    exact = dataclasses.replace(layer, up=in_float64(layer.up), down=in_float64(layer.down))
    expected = exact.multiply(x.double(), patterns)
    y = run_filtered_lrelu(kernels, x, None, codes, native.MULTIPLY, layer, mma=mma)
    close(y, expected, float(exact.up(x.double()).abs().max()) if mma else None)


def close(got: torch.Tensor, expected: torch.Tensor, upsampled: float | None = None) -> None:
    """``upsampled``: the largest upsampled sample; given for results of tensor cores."""
    assert not torch.isnan(got).any(), "an output was not written"
    tiny = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps  # a subnormal number's rounding
    if upsampled is None:
        allowed = TOLERANCE[got.dtype] * expected.abs().max() + tiny
    else:
        allowed = MMA_TOLERANCE[got.dtype] * max(float(expected.abs().max()), upsampled / 5) + tiny
    assert (got.double() - expected).abs().max() <= allowed


def in_float64(r: Resampling) -> Resampling:
    return dataclasses.replace(r, f=None if r.f is None else r.f.double())


# ----- cases --------------------------------------------------------------------------------------------------------


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def a_filter(rng: np.random.Generator, *taps: int) -> torch.Tensor:
    f = torch.from_numpy(rng.random(taps)).float()
    return f / f.sum()


def generator_layer(
    rng: np.random.Generator, up: int, down: int, dense: bool, sides: tuple[int, int], pads: tuple[int, int, int]
) -> FilteredLReLU:
    """A layer as the generator has them, six taps for each phase; pads: y0, x0, and what there is too much at the end."""
    fu, fd = a_filter(rng, 6 * up), a_filter(rng, *[6 * down] * (1 + dense))
    axes = []
    for side, pad in zip(sides, pads, strict=False):
        n_in = -(-((side - 1) * down + 6 * (up + down) - 1 - pad - pads[2]) // up)
        n_up = n_in * up + pad + pads[2] - (6 * up - 1)
        n_out = (n_up - (6 * down - 1) + down - 1) // down
        axes += [Axis(n_in, n_up, up, 1, pad), Axis(n_up, n_out, 1, down, 0)]
    flip = bool(rng.integers(2))
    up_stage = Resampling(fu, axes[0], axes[2], flip, float(rng.uniform(0.5, 8)))
    return FilteredLReLU(up_stage, Resampling(fd, axes[1], axes[3], flip, 1.0), 0.2, float(rng.choice([0.7, 256])))


def random_resampling(rng: np.random.Generator, stage: str = "both") -> Resampling:
    """Any factors, filter, padding and sizes. ``stage``: "up" and "down" have a factor of 1 in the other direction."""
    kind = rng.choice(["none", "separable", "dense"], p=[0.15, 0.45, 0.4])
    taps_y, taps_x = (int(n) for n in rng.integers(1, rng.choice([4, 13, 33]), 2))
    f = {
        "none": lambda: None,
        "separable": lambda: a_filter(rng, taps_y),
        "dense": lambda: a_filter(rng, taps_y, taps_x),
    }[kind]()
    axes = []
    for _ in range(2):
        up, down = (int(rng.choice([1, 2, 4])) for _ in range(2))
        up, down = (1 if stage == "down" else up), (1 if stage == "up" else down)
        n_in, n_out = (int(rng.integers(1, rng.choice([3, 24, 40]))) for _ in range(2))
        axes.append(Axis(n_in, n_out, up, down, int(rng.integers(-12, 40))))
    return Resampling(f, axes[0], axes[1], bool(rng.integers(2)), float(rng.uniform(0.5, 4)))


def random_layer(rng: np.random.Generator) -> FilteredLReLU:
    up, down = random_resampling(rng, "up"), random_resampling(rng, "down")
    y, x = (dataclasses.replace(d, n_in=u.n_out) for u, d in ((up.y, down.y), (up.x, down.x)))
    slope, clamp = float(rng.choice([0.0, 0.2, 1.0])), rng.choice([None, 0.1])
    return FilteredLReLU(up, dataclasses.replace(down, y=y, x=x), slope, clamp)


def random_case(kernels: ctypes.CDLL, seed: int) -> None:
    """One case of either op."""
    rng = np.random.default_rng(seed)
    kernels.emulate_order(int(rng.integers(64)) * 2 + 1)
    dtype = list(TOLERANCE)[seed % 4]
    if seed % 3 == 0:
        check_upfirdn2d(kernels, rng, random_resampling(rng), dtype, int(rng.integers(1, 4)))
    else:
        channels = None if seed % 5 == 0 else int(rng.integers(1, 3))
        check_filtered_lrelu(kernels, rng, random_layer(rng), dtype, int(rng.integers(1, 4)), channels)


HOT = [(2, 2, True), (2, 2, False), (4, 2, True), (4, 2, False)]
"""The generator's layers: upsampling, downsampling, whether the downsampling filter is dense."""


def hot_case(kernels: ctypes.CDLL, up: int, down: int, dense: bool, seed: int, largest: int = 60) -> None:
    """One of the generator's layers and its gradient, at random sizes and paddings."""
    rng = np.random.default_rng([seed, up, down, dense])
    kernels.emulate_order(int(rng.integers(64)) * 2 + 1)
    kernels.emulate_shared_memory(H100_BYTES if seed % 2 == 0 else TURING_BYTES)
    dtype = [torch.float32, torch.float16, torch.bfloat16][seed % 3]
    height, width = (int(n) for n in rng.integers(1, largest, 2))
    pads = (*(int(n) for n in rng.integers(-10, 12, 2)), int(rng.integers(-4, 6)))
    layer = generator_layer(rng, up, down, dense, (height, width), pads)
    check_filtered_lrelu(kernels, rng, layer, dtype, 2, 2)
    back = layer.transposed()
    check_multiplication(kernels, rng, back, normal(rng, 1, back.up.y.n_in, back.up.x.n_in).to(dtype))


MMA = [(2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3)]
"""Layers that have kernels for tensor cores: upsampling; separable terms of the downsampling filter."""


def mma_layer(
    rng: np.random.Generator, up: int, terms: int, sides: tuple[int, int], pads: tuple[int, int, int]
) -> FilteredLReLU:
    """A layer whose downsampling filter is a sum of so many separable ones, of falling weight."""
    layer = generator_layer(rng, up, 2, terms > 1, sides, pads)
    if terms > 1:
        f = sum(0.15**k * torch.outer(*rng_filters(rng, k > 0)) for k in range(terms))
        layer = dataclasses.replace(layer, down=dataclasses.replace(layer.down, f=f))
    return layer


def rng_filters(rng: np.random.Generator, has_signs: bool) -> tuple[torch.Tensor, torch.Tensor]:
    signs = (torch.from_numpy(rng.choice([-1.0, 1.0], 12)).float() if has_signs else torch.ones(12) for _ in range(2))
    first, second = (a_filter(rng, 12) * sign for sign in signs)
    return first, second


def mma_case(kernels: ctypes.CDLL, up: int, terms: int, seed: int, largest: int = 60) -> None:
    """A layer and its gradient on tensor cores, at random sizes, paddings and magnitudes."""
    rng = np.random.default_rng([seed, up, terms])
    kernels.emulate_order(int(rng.integers(64)) * 2 + 1)
    kernels.emulate_shared_memory(H100_BYTES)
    dtype = [torch.float16, torch.bfloat16][seed % 2]
    height, width = (int(n) for n in rng.integers(1, largest, 2))
    pads = (*(int(n) for n in rng.integers(-10, 12, 2)), int(rng.integers(-4, 6)))
    if seed // 2 % 2 == 0:  # rows of inputs and outputs in whole words of 8 bytes
        width = -(-width // 4) * 4
        layers = (mma_layer(rng, up, terms, (height, width), (pads[0], pad, pads[2])) for pad in range(-8, 12))
        layer = next(layer for layer in layers if layer.up.x.n_in % 4 == 0)
    else:
        layer = mma_layer(rng, up, terms, (height, width), pads)
    size = float(rng.choice([1e-3, 1, 100] if dtype == torch.float16 else [1e-20, 1, 1e20]))
    slope, clamp = float(rng.choice([0.0, 0.2, 1.0])), rng.choice([None, 0.3 * size, 256 * size])
    layer = dataclasses.replace(layer, slope=slope, clamp=clamp)
    check_filtered_lrelu(
        kernels, rng, layer, dtype, 2, int(rng.integers(1, 3)) if seed % 3 else None, mma=True, size=size
    )
    back = layer.transposed()
    x = (normal(rng, 1, back.up.y.n_in, back.up.x.n_in) * size).to(dtype)
    check_multiplication(kernels, rng, back, x, mma=True)


# ----- tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("up,down,dense", HOT)
def test_generator_layers_and_their_gradients(kernels: ctypes.CDLL, up: int, down: int, dense: bool, seed: int) -> None:
    hot_case(kernels, up, down, dense, seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("up,terms", MMA)
def test_tensor_cores(kernels: ctypes.CDLL, up: int, terms: int, seed: int) -> None:
    mma_case(kernels, up, terms, seed)


@pytest.mark.parametrize("pad", [-(2**31) + 40, -5000, 5000, 2**31 - 40])
@pytest.mark.parametrize("up,terms", [(2, 3), (4, 2)])
def test_tensor_cores_where_paddings_leave_nothing(kernels: ctypes.CDLL, up: int, terms: int, pad: int) -> None:
    rng = np.random.default_rng(0)
    layer = mma_layer(rng, up, terms, (9, 40), (0, 0, 0))
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).half()
    code_bytes = native._code_bytes(layer.up.x.n_out, ([], []), "cuda")
    codes = torch.full([1, layer.up.y.n_out, code_bytes], 0xFF, dtype=torch.uint8)
    moved = dataclasses.replace(layer, up=dataclasses.replace(layer.up, x=dataclasses.replace(layer.up.x, pad0=pad)))
    assert torch.all(run_filtered_lrelu(kernels, x, None, codes, native.REMEMBER, moved, mma=True) == 0)
    assert torch.all((slopes.unpacked(codes, layer.up.x.n_out) == 1) | ~used_samples(layer))
    back = layer.transposed()
    y = dataclasses.replace(back.down.y, pad0=pad)
    moved = dataclasses.replace(back, down=dataclasses.replace(back.down, y=y))
    x = normal(rng, 1, back.up.y.n_in, back.up.x.n_in).half()
    codes = torch.zeros([1, back.up.y.n_out, native._code_bytes(back.up.x.n_out, ([], []), "cuda")], dtype=torch.uint8)
    assert torch.all(run_filtered_lrelu(kernels, x, None, codes, native.MULTIPLY, moved, mma=True) == 0)


@pytest.mark.parametrize("dtype", MMA_TOLERANCE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("up,terms", [(2, 3), (4, 2), (2, 1)])
def test_tensor_cores_see_a_sample_that_is_not_finite_where_it_belongs(
    kernels: ctypes.CDLL, up: int, terms: int, value: float, dtype: torch.dtype
) -> None:
    """Tiles are multiples of 16 outputs: what does not depend on it may be not finite for a block around it."""
    rng = np.random.default_rng(0)
    layer = dataclasses.replace(mma_layer(rng, up, terms, (60, 90), (3, 3, 0)), clamp=None)
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).to(dtype)
    clean = run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer, mma=True)
    mark = torch.zeros_like(x, dtype=torch.float32)
    mark[0, x.shape[1] // 2, x.shape[2] // 2] = 1
    touched = layer.down(layer.up(mark)) != 0
    y = run_filtered_lrelu(kernels, torch.where(mark > 0, value, x), None, None, native.ACTIVATE, layer, mma=True)
    assert not torch.isfinite(y[touched]).any()
    harmed = torch.nn.functional.max_pool2d(touched.float(), 49, 1, 24) > 0
    assert torch.equal(y[~harmed], clean[~harmed])
    assert (~harmed).any()


@pytest.mark.parametrize("dtype", MMA_TOLERANCE)
def test_tensor_cores_take_any_magnitude(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """The largest and the smallest numbers that a type has, nothing, a bias alone, and a clamp far below the inputs."""
    rng = np.random.default_rng(0)
    layer = dataclasses.replace(mma_layer(rng, 2, 2, (30, 40), (3, 3, 0)), clamp=None)
    layer = dataclasses.replace(layer, up=dataclasses.replace(layer.up, gain=0.9))
    info = torch.finfo(dtype)
    for size in (info.max / 2, info.tiny * 64, 0.0):
        x = (torch.rand(2, layer.up.y.n_in, layer.up.x.n_in, generator=torch.Generator().manual_seed(0)) * size).to(
            dtype
        )
        for b in (None, torch.tensor([0.5 * size, -2.0 if size == 0 else 0.0])):
            exact = dataclasses.replace(layer, up=in_float64(layer.up), down=in_float64(layer.down))
            expected = exact.activate(x.double(), None if b is None else b.double(), None)
            close(run_filtered_lrelu(kernels, x, b, None, native.ACTIVATE, layer, mma=True), expected, 0.0)
    clamped = dataclasses.replace(layer, clamp=1e-3)
    x = torch.full_like(x, info.max / 2)
    y = run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, clamped, mma=True)
    expected = run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, clamped)
    close(y, expected.double(), 0.0)


def test_tensor_cores_leave_to_others_what_they_have_no_kernel_for(kernels: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    radial = generator_layer(rng, 2, 2, True, (20, 20), (3, 3, 0))  # of full rank
    assert tensor_cores.fragments(radial) is None
    twice = mma_layer(rng, 2, 3, (20, 20), (3, 3, 0))  # as a gradient of a gradient has it
    x = normal(rng, 1, twice.up.y.n_in, twice.up.x.n_in).half()
    check_multiplication(kernels, rng, twice, x, mma=True)
    steep = dataclasses.replace(twice, slope=1.5)
    same = [run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, steep, mma=mma) for mma in (False, True)]
    assert torch.equal(*same)
    check_filtered_lrelu(kernels, rng, twice, torch.float32, 1, None, mma=False)


@pytest.fixture
def calls(kernels: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[ctypes.Structure]:
    """PyTorch's ops on the CPU call the emulation as they would call a GPU's kernels; the calls."""

    def run(name: str, x: torch.Tensor, call: ctypes.Structure) -> None:
        made.append(call)
        assert getattr(kernels, f"{name}_cuda")(ctypes.byref(call), None) == 0

    made: list[ctypes.Structure] = []
    code_bytes = native._code_bytes
    monkeypatch.setattr(native, "_run", run)
    monkeypatch.setattr(native, "_code_bytes", lambda width, resamplings, _: code_bytes(width, resamplings, "cuda"))
    monkeypatch.setattr(native, "has_tensor_cores", lambda _: True)
    monkeypatch.setattr(native, "_library_obstacle", lambda _: None)
    monkeypatch.setitem(native.DEVICE_TYPES, "cpu", native.DEVICE_TYPES["cuda"])
    kernels.emulate_shared_memory(H100_BYTES)
    return made


@pytest.mark.parametrize("asked", ["auto", "scalar"])
@pytest.mark.parametrize("up,terms", [(2, 3), (4, 2)])
def test_pytorch_calls_them_as_it_would_on_a_gpu(
    calls: list[ctypes.Structure], up: int, terms: int, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The op and its gradient, with the emulation in the GPU's place: codes, fragments and structures fit together."""
    monkeypatch.setenv("MULTISCALE_OPS", asked)
    rng = np.random.default_rng(3)
    layer = mma_layer(rng, up, terms, (20, 37), (2, 3, 1))
    x = normal(rng, 2, 3, layer.up.y.n_in, layer.up.x.n_in).half()
    b, dy = normal(rng, 3).float(), normal(rng, 2, 3, layer.down.y.n_out, layer.down.x.n_out).half()
    results, gradients = [], []
    for op, dtype in ((native, torch.float16), (reference, torch.float64)):
        leaves = [x.to(dtype).requires_grad_(), b.to(torch.float32 if op is native else dtype).requires_grad_()]
        one = (
            layer if op is native else dataclasses.replace(layer, up=in_float64(layer.up), down=in_float64(layer.down))
        )
        results.append(op.filtered_lrelu(*leaves, one))
        gradients.append(leaves)
    y, exact = results
    taken = slopes.slopes_taken(y)
    dx = slopes.gradient(exact, taken, dy)
    got = torch.autograd.grad(y, gradients[0], dy)
    for one, expected, allowed in ((y, exact, 5e-4), (got[0], dx, 6e-4), (got[1], dx.sum([0, 2, 3]), 1e-3)):
        assert (one.double() - expected).norm() < allowed * expected.norm()
    assert slopes.farthest_from_threshold(exact, taken, x.double(), b.double()) < 5e-4
    assert [bool(call.up_registers) for call in calls] == [asked == "auto"] * 2


@pytest.mark.parametrize("seed", [1, 16, 46])
def test_gradients_in_half_precision_are_as_exact_as_images(calls: list[ctypes.Structure], seed: int) -> None:
    """For the slopes that the layer took: in 16 and 46 samples next to 0 took others than the exact ones (layers.py)."""
    dtype, found = layers.errors(seed, "cpu")
    assert dtype == torch.float16
    assert all(kernels < 6e-4 for kernels, _ in found.values())
    assert found["gradient of the image"][0] < found["gradient of the image"][1], "PyTorch's own float16 is better"
    assert any(call.up_registers for call in calls)


@pytest.mark.parametrize("terms", [2, 3])
def test_results_of_tensor_cores_do_not_depend_on_the_order_of_threads(kernels: ctypes.CDLL, terms: int) -> None:
    rng = np.random.default_rng(1)
    layer = mma_layer(rng, 2, terms, (30, 70), (2, 3, 1))
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).half()
    results = []
    for stride in (1, 3, 77):
        kernels.emulate_order(stride)
        results.append(run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer, mma=True))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("down", [1, 2])
def test_four_separable_taps(kernels: ctypes.CDLL, down: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(down)
    y, x = Axis(37, 38 // down, 1, down, 2), Axis(70, 71 // down, 1, down, 2)
    check_upfirdn2d(kernels, rng, Resampling(a_filter(rng, 4), y, x, bool(down - 1), 1.5), dtype, 2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("taps", [[61], [64], [64, 33], [64, 64]])
def test_long_filters_are_upfirdn2ds(kernels: ctypes.CDLL, taps: list[int], dtype: torch.dtype) -> None:
    """The blur at the start of a training has 61 taps. The most take no more memory than the smallest GPU has."""
    rng = np.random.default_rng(0)
    kernels.emulate_shared_memory(TURING_BYTES)
    pad = 30
    y, x = (Axis(n, n + 2 * pad - (t - 1), 1, 1, pad) for n, t in zip((9, 40), (taps * 2)[:2], strict=True))
    check_upfirdn2d(kernels, rng, Resampling(a_filter(rng, *taps), y, x, False, 1.0), dtype, 2)
    for up, down in ((4, 1), (1, 4)):
        y, x = (Axis(n, 5, up, down, 7) for n in (9, 40))
        check_upfirdn2d(kernels, rng, Resampling(a_filter(rng, *taps), y, x, True, 1.0), dtype, 1)


def test_kernels_are_allowed_all_the_shared_memory_of_the_device(kernels: ctypes.CDLL) -> None:
    """Not what one launch needs: another thread may launch the same kernel with larger tiles at the same time."""
    kernels.emulate_shared_memory(H100_BYTES)
    rng = np.random.default_rng(0)
    for side in (60, 28):
        layer = generator_layer(rng, 2, 2, False, (side, side), (3, 3, 0))
        x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).float()
        run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer)
        assert kernels.emulated_least_allowance() == H100_BYTES - 1024


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 5, 8), (5, 3, 7), (6, 1, 1), (2, 4, 256)])
def test_leaky_relu_without_filters(kernels: ctypes.CDLL, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    y, x = (Axis(n, n, 1, 1, 0) for n in shape[1:])
    layer = FilteredLReLU(Resampling(None, y, x, False, 1.4), Resampling(None, y, x, False, 0.7), 0.2, 0.8)
    check_filtered_lrelu(kernels, np.random.default_rng(0), layer, dtype, shape[0], 2)


@pytest.mark.parametrize("seeds", range(0, 240, 24))
def test_everything_else(kernels: ctypes.CDLL, seeds: int) -> None:
    for seed in range(seeds, seeds + 24):
        random_case(kernels, seed)


@pytest.mark.parametrize("pad", [-(2**31) + 40, -5000, 5000, 2**31 - 40])
@pytest.mark.parametrize("up,down,dense", [*HOT, (1, 4, False)])
def test_paddings_that_leave_nothing_of_the_image(
    kernels: ctypes.CDLL, up: int, down: int, dense: bool, pad: int
) -> None:
    rng = np.random.default_rng(0)
    layer = generator_layer(rng, up, down, dense, (9, 13), (0, 0, 0)) if up > 1 else random_layer(rng)
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).float()
    codes = torch.full([1, layer.up.y.n_out, -(-layer.up.x.n_out // 4)], 0xFF, dtype=torch.uint8)
    moved = dataclasses.replace(layer.up, x=dataclasses.replace(layer.up.x, pad0=pad))
    y = run_filtered_lrelu(kernels, x, None, codes, native.REMEMBER, dataclasses.replace(layer, up=moved))
    assert torch.all(y == 0)
    assert torch.all((slopes.unpacked(codes, layer.up.x.n_out) == 1) | ~used_samples(layer))
    moved = dataclasses.replace(layer.down, y=dataclasses.replace(layer.down.y, pad0=pad))
    y = run_filtered_lrelu(kernels, x, None, codes, native.MULTIPLY, dataclasses.replace(layer, down=moved))
    assert torch.all(y == 0)
    assert torch.all(
        run_upfirdn2d(kernels, x, dataclasses.replace(layer.up, y=dataclasses.replace(layer.up.y, pad0=pad))) == 0
    )


def test_many_small_maps(kernels: ctypes.CDLL) -> None:
    """More than a grid's second dimension has."""
    rng = np.random.default_rng(0)
    one = Axis(1, 1, 1, 1, 0)
    layer = FilteredLReLU(Resampling(None, one, one, False, 1.0), Resampling(None, one, one, False, 1.0), 0.2, None)
    check_filtered_lrelu(kernels, rng, layer, torch.float32, 2**16 + 3, 5)


@pytest.mark.parametrize("up,down,dense", HOT)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_is_seen_where_it_belongs(
    kernels: ctypes.CDLL, up: int, down: int, dense: bool, value: float
) -> None:
    """Every output that depends on it is not finite (without a clamp); those farther than a few samples are unharmed."""
    rng = np.random.default_rng(0)
    layer = dataclasses.replace(generator_layer(rng, up, down, dense, (20, 50), (3, 3, 0)), clamp=None)
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).float()
    clean = run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer)
    mark = torch.zeros_like(x)
    mark[0, x.shape[1] // 2, x.shape[2] // 2] = 1
    touched = layer.down(layer.up(mark)) > 0
    y = run_filtered_lrelu(kernels, torch.where(mark > 0, value, x), None, None, native.ACTIVATE, layer)
    assert not torch.isfinite(y[touched]).any()
    harmed = torch.nn.functional.max_pool2d(touched.float(), 9, 1, 4) > 0
    assert torch.equal(y[~harmed], clean[~harmed])


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_not_a_number_passes_the_clamp(kernels: ctypes.CDLL, clamp: float | None) -> None:
    axis = Axis(4, 4, 1, 1, 0)
    layer = FilteredLReLU(
        Resampling(None, axis, axis, False, 1.0), Resampling(None, axis, axis, False, 1.0), 0.2, clamp
    )
    x = torch.full([1, 4, 4], torch.nan)
    assert torch.isnan(run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer)).all()


def test_no_maps_are_no_error(kernels: ctypes.CDLL) -> None:
    layer = generator_layer(np.random.default_rng(0), 2, 2, True, (4, 4), (0, 0, 0))
    x = torch.empty([0, layer.up.y.n_in, layer.up.x.n_in])
    run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer)
    run_upfirdn2d(kernels, x, layer.up)


@pytest.mark.parametrize("order", [1, 3, 77])
def test_results_do_not_depend_on_the_order_of_threads(kernels: ctypes.CDLL, order: int) -> None:
    rng = np.random.default_rng(1)
    layer = generator_layer(rng, 2, 2, True, (30, 44), (2, 3, 1))
    x = normal(rng, 1, layer.up.y.n_in, layer.up.x.n_in).float()
    results = []
    for stride in (1, order):
        kernels.emulate_order(stride)
        results.append(run_filtered_lrelu(kernels, x, None, None, native.ACTIVATE, layer))
    assert torch.equal(*results)


@pytest.mark.slow
def test_memory_is_accessed_within_bounds(tmp_path: Path) -> None:
    """The same under the address and undefined-behaviour sanitizers; launches split up as if grids were small."""
    if shutil.which("g++") is None:
        pytest.skip("emulating the kernels needs g++")
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTEST_LARGEST_GRID=5"]
    library = build(tmp_path, *flags)
    runtime = [
        subprocess.check_output(["g++", f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    if not all(Path(path).is_absolute() for path in runtime):
        pytest.skip("needs the sanitizers' libraries of g++")
    environment = os.environ | {
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": ":".join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run([sys.executable, __file__, str(library)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]


def sanitized_cases(library: str) -> None:
    kernels = ctypes.CDLL(library)
    for seed in range(60):
        random_case(kernels, seed)
    for case, seed in itertools.product(HOT, range(2)):
        hot_case(kernels, *case, seed, largest=45)
    for case, seed in itertools.product(MMA, range(2)):
        mma_case(kernels, *case, seed, largest=45)


# ----- what nvcc says -----------------------------------------------------------------------------------------------

Compiler = Callable[[list[Path], int], list[tuple[Path, str]]]

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (the CUDA toolkit)")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """Compiles sources for an architecture: the cubin of each and what ptxas says of it.

    Each is compiled once, whichever tests and processes of pytest-xdist ask for it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def compile_one(source: Path, arch: int) -> tuple[Path, str]:
        cubin, report = (folder / f"{source.stem}_{arch}.{kind}" for kind in ("cubin", "txt"))
        with FileLock(f"{cubin}.lock"):
            if not report.exists():
                target = f"arch=compute_{arch},code=sm_{arch}"
                command = ["nvcc", "-O3", "-std=c++17", "-gencode", target, "-Xptxas", "-v", "-cubin"]
                run = subprocess.run([*command, "-o", cubin, source], capture_output=True, text=True)
                assert run.returncode == 0, run.stderr
                report.write_text(run.stderr)
        return cubin, report.read_text()

    def compile_all(sources: list[Path], arch: int) -> list[tuple[Path, str]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_one, sources, itertools.repeat(arch)))

    return compile_all


@pytest.mark.slow
@needs_nvcc
def test_no_kernel_spills_registers(compiled: Compiler) -> None:
    """On the architectures without tensor cores for us and with them; nor is an array kept in local memory."""
    sources = sorted(SOURCES.glob("*.cu"))
    reports = "".join(report for arch in (75, 90) for _, report in compiled(sources, arch))
    assert "warning" not in reports
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", reports)
    assert len(frames) >= 2 * 33
    assert set(frames) == {("0", "0", "0")}


def disassembler() -> str | None:
    """nvdisasm: of the toolkit, or of the Python package nvidia-cuda-nvdisasm."""
    packaged = (str(path) for folder in sys.path for path in Path(folder, "nvidia").glob("*/bin/nvdisasm"))
    return shutil.which("nvdisasm") or next(packaged, None)


def instructions(cubin: Path) -> dict[str, list[str]]:
    """The machine code of kernels, by their names: the names of the instructions."""
    tool = disassembler()
    assert tool
    text = subprocess.check_output([tool, "-c", str(cubin)], text=True)
    kernels = {}
    for function in re.split(r"\n\.text\.", text)[1:]:
        code = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_]+)", function)
        kernels[function.partition(":")[0]] = code
    return kernels


def most_loads_in_flight(code: list[str]) -> int:
    """The most loads from global memory between two stores to shared memory."""
    return max(run.split().count("LDG") for run in " ".join(code).split("STS"))


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(disassembler() is None, reason="needs nvdisasm (pip install nvidia-cuda-nvdisasm)")
@pytest.mark.parametrize("arch", [80, 90])
def test_machine_code_multiplies_matrices_and_keeps_loads_in_flight(arch: int, compiled: Compiler) -> None:
    names = ["activate", "remember", "multiply"]
    cubins = compiled([SOURCES / f"filtered_lrelu_mma_{name}.cu" for name in names], arch)
    for name, (cubin, _) in zip(names, cubins, strict=True):
        kernels = instructions(cubin)
        assert len(kernels) == 6
        for kernel, code in kernels.items():
            numbers = re.search(r"mma_kernelILi(\d)ELi(\d)ELi(\d)ELi(\d)ELi(\d)E", kernel)
            assert numbers
            up, up_terms, down, down_terms, _ = map(int, numbers.groups())
            steps, bands = (3, 1) if down == 2 else (6, 2)
            inputs = -(-2 * steps // up) + 1
            horizontal = 8 * (down_terms // 2) + 2 * steps * (down_terms % 2)
            products = bands * (up_terms * (inputs + 2 * steps) + horizontal + 2 * down_terms)
            variants = 1 if name == "multiply" else 2  # without and with a clamp
            assert code.count("HMMA") == variants * products
            first, last = code.index("HMMA"), len(code) - code[::-1].index("HMMA")
            share = variants * products / (last - first)
            assert share > {"activate": 0.14, "remember": 0.06, "multiply": 0.11}[name]
            if name == "activate":
                assert last - first < 2 * 150
            # Four outputs together, or one by one where rows are not aligned; codes of two rows.
            assert code.count("STG") == variants * (5 + 2 * (name == "remember"))
            assert "LDL" not in code
            assert most_loads_in_flight(code[:first]) >= 8
    others = ("upfirdn2d", "filtered_lrelu_down_dense", "filtered_lrelu_up_dense", "filtered_lrelu_generic")
    for cubin, _ in compiled([SOURCES / f"{other}.cu" for other in others], arch):
        for code in instructions(cubin).values():
            assert most_loads_in_flight(code) >= 6  # of eight: the code of two may stand apart


@pytest.mark.slow
@needs_nvcc
def test_the_built_library_has_its_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path))
    library = builder.library("cuda", (9, 0))
    for name in ("upfirdn2d_cuda", "filtered_lrelu_cuda", "cuda_probe", "cuda_error", "cuda_tensor_cores"):
        assert getattr(library, name)


if __name__ == "__main__":
    sanitized_cases(sys.argv[1])
