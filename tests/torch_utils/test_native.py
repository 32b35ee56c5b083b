"""The kernels against the PyTorch ops and recorded numbers, and as citizens of PyTorch: on the CPU, and on a GPU if any."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Golden, choose_ops, small_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dnnlib.errors import UserError
from multiscale.networks import layers
from multiscale.networks.filters import design_lowpass_filter
from multiscale.networks.generator import Generator
from torch_utils.devices import float32_products
from torch_utils.ops import build, native, reference
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.reference import FilteredLReLU, Resampling
from torch_utils.ops.upfirdn2d import upfirdn2d

LAYER: dict[str, Any] = {"up": 2, "down": 2, "padding": [11, 10, 11, 10], "clamp": 256.0}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device with kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU and a CUDA build of PyTorch")
        try:
            native.library(torch.device("cuda", 0))
        except build.BuildError as error:
            pytest.skip(str(error))
    choose_ops("auto", monkeypatch)
    with float32_products():
        yield str(request.param)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has warned of nothing yet."""
    monkeypatch.setattr(native, "_warned", set())


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def recorded(golden: Golden, i: int, device: str) -> dict[str, torch.Tensor]:
    """Tensors of a case, by their names; no filter is an array without dimensions, or none."""
    names = [name for name in golden.arrays.files if name.rstrip("0123456789") + str(i) == name]
    return {n.rstrip("0123456789"): golden[n].to(device) for n in names if golden.arrays[n].ndim}


def lowpass(dense: bool = True, taps: int = 12) -> torch.Tensor:
    f = design_lowpass_filter(taps, 16.0, 10.0, 128.0, radial=dense)
    assert f is not None
    return f


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference of ``a`` from ``b``, relative to that of ``b``."""
    return float((a.double().cpu() - b.double().cpu()).norm() / b.double().cpu().norm().clamp(min=1e-6))


# ----- the numbers --------------------------------------------------------------------------------------------------


def cases(name: str) -> list[int]:
    """Indices of the recorded cases that the kernels can do."""
    factors = [np.hstack([case["up"], case["down"]]) for case in Golden(name).meta]
    return [i for i, f in enumerate(factors) if np.isin(f, native.FACTORS).all()]


@pytest.mark.parametrize("i", cases("filtered_lrelu"))
def test_filtered_lrelu_equals_the_recorded_numbers(i: int, device: str) -> None:
    golden = Golden("filtered_lrelu")
    case = golden.meta[i]
    t = recorded(golden, i, device)
    x, b = t["x"].requires_grad_(), t["b"].requires_grad_()
    names = ("up", "down", "padding", "gain", "slope", "clamp", "flip_filter")
    y = filtered_lrelu(x, t.get("fu"), t.get("fd"), b, **{n: case[n] for n in names}, impl="native")
    dx, db = torch.autograd.grad(y, [x, b], t["dy"])
    for result, expected in ((y, t["y"]), (dx, t["dx"]), (db, t["db"])):
        assert result.shape == expected.shape
        assert (result - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("i", cases("upfirdn2d"))
def test_upfirdn2d_equals_the_recorded_numbers(i: int, device: str) -> None:
    golden = Golden("upfirdn2d")
    case = golden.meta[i]
    t = recorded(golden, i, device)
    x = t["x"].requires_grad_()
    arguments = {n: case[n] for n in ("up", "down", "padding", "flip_filter", "gain")}
    y = upfirdn2d(x, t.get("f"), **arguments, impl="native")
    (dx,) = torch.autograd.grad(y, x, t["dy"])
    for result, expected in ((y, t["y"]), (dx, t["dx"])):
        assert result.shape == expected.shape
        assert (result - expected).abs().max() < 1e-5 * expected.abs().max()


def draw_filter(rng: random.Random) -> torch.Tensor | None:
    kind = rng.choice(["none", "separable", "dense", "mirrored"])
    if kind == "none":
        return None
    shape = [rng.randint(1, 32) for _ in range(1 if kind == "separable" else 2)]
    f = randn(*shape, dtype=torch.float64, seed=rng.randint(0, 999)) / shape[0]
    return f + f.flip(-1) if kind == "mirrored" else f


def draw_arguments(rng: random.Random) -> dict[str, Any]:
    return {
        "up": [rng.choice(native.FACTORS) for _ in range(2)],
        "down": [rng.choice(native.FACTORS) for _ in range(2)],
        "padding": [rng.randint(-5, 40) for _ in range(4)],
        "flip_filter": rng.random() < 0.5,
    }


@pytest.mark.parametrize("seed", range(40))
def test_any_arguments_give_what_pytorch_gives(seed: int, device: str) -> None:
    rng = random.Random(seed)
    x = randn(rng.randint(1, 3), 2, rng.randint(1, 40), rng.randint(1, 40), dtype=torch.float64).to(device)
    b = randn(2, dtype=torch.float64, seed=1).to(device)
    fu, fd = (None if f is None else f.to(device) for f in (draw_filter(rng), draw_filter(rng)))
    arguments = draw_arguments(rng)

    def results(dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, b)]
        y = upfirdn2d(leaves[0], fu, **arguments, gain=1.3, impl=impl)
        out = [y, *torch.autograd.grad(y.square().sum(), leaves[0])]
        y = filtered_lrelu(leaves[0], fu, fd, leaves[1], **arguments, clamp=0.8, impl=impl)
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        return [*out, y, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    try:
        expected = results(torch.float64, "reference")
    except ValueError:
        pytest.skip("these arguments leave nothing of the image")
    for result, reference_result in zip(results(torch.float64, "native"), expected, strict=True):
        torch.testing.assert_close(result, reference_result, rtol=1e-9, atol=1e-9)
    for result, reference_result in zip(results(torch.float32, "native")[:3], expected[:3], strict=True):
        assert relative(result, reference_result) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("up, taps_u, padding", [(2, 12, [11, 10, 11, 10]), (4, 24, [18, 15, 18, 15])])
def test_the_error_is_at_most_twice_that_of_pytorch(
    up: int, taps_u: int, padding: list[int], dense: bool, dtype: torch.dtype, device: str
) -> None:
    if dtype not in native.DEVICE_TYPES[device]:
        pytest.skip(f"there are no kernels for {dtype} on a {device}")
    fu, fd = lowpass(False, taps_u).to(device), lowpass(dense).to(device)
    # Values that the type holds exactly, so that the error is the op's.
    x, b = randn(2, 4, 36, 52, dtype=dtype).to(device), randn(4, dtype=dtype, seed=1).to(device)
    arguments = {"up": up, "down": 2, "padding": padding, "clamp": 256.0}

    def result(dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
        leaf = x.to(dtype).requires_grad_()
        y = filtered_lrelu(leaf, fu, fd, b.to(dtype), **arguments, impl=impl)
        return [y, *torch.autograd.grad(y.sum(), leaf), upfirdn2d(leaf, fd, impl=impl)]

    exact = result(torch.float64, "reference")
    for kernel, pytorch, truth in zip(result(dtype, "native"), result(dtype, "reference"), exact, strict=True):
        assert relative(kernel, truth) <= 2 * relative(pytorch, truth)


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_bias_act_with_a_kernel_is_the_same(act: str, device: str) -> None:
    x, b = randn(2, 3, 17, 40).to(device), randn(3, seed=1).to(device)
    results = []
    for impl in ("native", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, b)]
        y = bias_act(*leaves, act=act, alpha=0.3, clamp=0.9, impl=impl)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*results)
    large = randn(1, 2, 800, 800).to(device)
    torch.testing.assert_close(bias_act(large, b[:2], act), bias_act(large, b[:2], act, impl="reference"))


@pytest.mark.parametrize("shape", [[61], [64], [64, 50]])
def test_filters_as_long_as_the_blur_at_the_start_of_a_training(shape: list[int], device: str) -> None:
    x, f = randn(2, 3, 70, 33).to(device).requires_grad_(), randn(*shape, seed=1).square().to(device)
    f = f / f.sum()
    results = []
    for impl in ("native", "reference"):
        y = upfirdn2d(x, f, padding=30, impl=impl)
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [filtered_lrelu, bias_act])
@pytest.mark.parametrize("x_device, b_device", [("meta", "cpu"), ("cpu", "meta")])
def test_a_bias_on_another_device_is_an_error(op: Callable[..., torch.Tensor], x_device: str, b_device: str) -> None:
    x, b = torch.ones(1, 2, 8, 8, device=x_device), torch.ones(2, device=b_device)
    with pytest.raises(ValueError, match=f"b is on {b_device} but x is on {x_device}; move the bias there"):
        op(x, b=b)


class Recorder(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device_type, name", [("cuda", "aten::new_empty"), ("cpu", "aten::new_zeros")])
def test_codes_are_cleared_only_for_a_cpu(device_type: str, name: str) -> None:
    """The CUDA kernels write all codes: test_cuda_kernels.py begins with bytes that they do not write."""
    f = lowpass(False)
    layer = layer_of(torch.empty(1, 2, 10, 10), f)
    with FakeTensorMode():
        x = torch.empty(1, 2, 10, 10, device=device_type)
        with Recorder() as recorder:
            native._filtered_lrelu_fake(x, None, *native._filters(layer), 0.2, 1.0, True)
    assert recorder.names == ["aten::new_empty", name]


def test_a_gpu_has_the_kernel_of_bias_act_from_small_sizes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(native, "is_chosen", lambda op, impl, x, *_, bias=None: bool(asked.append(x.numel())))
    for device_type, sizes in (("cpu", [2**20]), ("cuda", [2**16, 2**20])):
        asked.clear()
        with FakeTensorMode():
            for side in (2**4, 2**8, 2**10):
                bias_act(torch.empty(1, 1, side, side, device=device_type), act="lrelu")
        assert asked == sizes


def test_bias_act_says_what_its_kernel_cannot_do() -> None:
    with pytest.raises(RuntimeError, match="act is tanh"):
        bias_act(torch.ones(1, 1, 2, 2), act="tanh", impl="native")


def test_not_a_number_stays_one(device: str) -> None:
    x = randn(1, 1, 16, 16).to(device)
    x[0, 0, 8, 8] = float("nan")
    f = lowpass().to(device)
    y = filtered_lrelu(x, f, f, **LAYER, impl="native")
    torch.testing.assert_close(
        y, filtered_lrelu(x, f, f, **LAYER, impl="reference"), equal_nan=True, rtol=1e-4, atol=1e-4
    )
    assert y.isnan().any()


# ----- the same every time, however it is called --------------------------------------------------------------------


def both_ways(x: torch.Tensor, dense: bool = True) -> list[torch.Tensor]:
    """Result and gradient of a layer."""
    leaf = x.detach().requires_grad_()
    y = filtered_lrelu(leaf, lowpass(False).to(x.device), lowpass(dense).to(x.device), **LAYER, impl="native")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]


@pytest.mark.parametrize("shape", [(2, 5, 30, 33), (1, 1, 90, 20)])
def test_repeats_are_equal_to_the_bit(shape: tuple[int, ...], device: str) -> None:
    x = randn(*shape).to(device)
    expected = both_ways(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 3, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, both_ways(x), expected))
    finally:
        torch.set_num_threads(threads)
    for one, whole in zip(both_ways(x[:, :1]), expected, strict=True):  # nor does it matter what else is in the batch
        assert torch.equal(one, whole[:, :1])


def test_memory_layout_does_not_matter(device: str) -> None:
    x = randn(2, 3, 20, 21).to(device)
    strided = torch.empty(2, 3, 20, 42, device=device)[..., ::2].copy_(x)
    for layout in (x.to(memory_format=torch.channels_last), strided, x[:1].expand(2, -1, -1, -1)):
        for result, expected in zip(both_ways(layout), both_ways(layout.contiguous()), strict=True):
            assert torch.equal(result, expected)


def test_empty_batches_are_fine(device: str) -> None:
    x = torch.empty(0, 3, 20, 20, device=device)
    assert both_ways(x)[0].shape == (0, 3, 20, 20)


def test_two_bits_a_sample_are_kept_for_the_gradient(device: str) -> None:
    x, f = randn(1, 2, 246, 246).to(device).requires_grad_(), lowpass(False).to(device)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        filtered_lrelu(x, f, f, **LAYER, impl="native")
    (codes,) = (t for t in kept if t.data_ptr() != f.data_ptr())
    upsampled = 2 * (2 * 246 + 10) ** 2
    assert codes.dtype == torch.uint8
    assert upsampled / 4 <= codes.nbytes < 1.25 * upsampled / 4
    with torch.no_grad():
        assert native._filtered_lrelu(x, None, *native._filters(layer_of(x, f)), 0.2, 1.0, False)[1].numel() == 0


def layer_of(x: torch.Tensor, f: torch.Tensor) -> FilteredLReLU:
    """A layer that keeps the size."""
    n, up = x.shape[2], 2 * x.shape[2] + 21 - 11
    ups, downs = reference.Axis(n, up, 2, 1, 11), reference.Axis(up, (up - 11 + 1) // 2, 1, 2, 0)
    return FilteredLReLU(Resampling(f, ups, ups, False, 4.0), Resampling(f, downs, downs, False, 1.0), 0.2, 1.0)


# ----- PyTorch's machinery ------------------------------------------------------------------------------------------


def test_pytorch_finds_no_fault_with_the_ops(device: str) -> None:
    x, f = randn(2, 2, 10, 10).to(device).requires_grad_(), lowpass(False).to(device)
    layer = layer_of(x, f)
    b = randn(2, seed=1).to(device).requires_grad_()
    torch.library.opcheck(native._upfirdn2d, (x, layer.up.f, native._numbers(layer.up), 4.0))
    for remember in (False, True):
        leaves = (x, b) if remember else (x.detach(), b.detach())
        arguments = (*leaves, *native._filters(layer), 0.2, 1.0, remember)
        torch.library.opcheck(native._filtered_lrelu, arguments)
    _, codes = native._filtered_lrelu(x, b, *native._filters(layer), 0.2, 1.0, True)
    dy = randn(2, 2, 10, 10, seed=2).to(device).requires_grad_()
    torch.library.opcheck(native._multiply, (dy, codes, *native._filters(layer.transposed()), 0.2))


def test_a_synthesis_layer_compiles_in_one_piece(device: str) -> None:
    layer = Generator(small_config()).synthesis.layers[0].to(device)
    x, w = randn(2, layer.plan.in_channels, layer.plan.in_size, layer.plan.in_size).to(device), randn(2, 16).to(device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, result = layer(leaves[0], w), compiled(leaves[1], w)
    torch.testing.assert_close(result, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), leaf)[0] for y, leaf in zip((expected, result), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_biases_of_half_layers_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels add them in float32: a cast to a half type and back would only lose digits."""
    biases: list[torch.Tensor] = []
    monkeypatch.setattr(layers, "filtered_lrelu", lambda x, **arguments: biases.append(arguments["b"]) or x)
    monkeypatch.setattr(layers, "bias_act", lambda x, b, **_: biases.append(b) or x)
    for layer in Generator(small_config()).synthesis.layers.to("meta"):
        layer.plan = dataclasses.replace(layer.plan, half=True)
        size = layer.plan.in_size
        y = layer(torch.empty(1, layer.plan.in_channels, size, size, device="meta"), torch.empty(1, 16, device="meta"))
        assert y.dtype == layer.half_dtype
    layers.Conv2d(2, 3, 3)(torch.ones(1, 2, 8, 8, dtype=torch.bfloat16))
    assert {b.dtype for b in biases} == {torch.float32}


def test_autocast_leaves_the_type_and_the_precision_alone(device: str) -> None:
    x = randn(1, 2, 20, 20).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = both_ways(x)
    assert all(map(torch.equal, result, both_ways(x)))


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
class TestOnAGPU:
    def test_a_generator_is_captured_as_a_graph(self, device: str) -> None:
        generator = Generator(small_config(img_resolution=32)).to(device).eval()
        z, transform = randn(1, 16).to(device), torch.eye(3, dtype=torch.float64, device=device)[None]
        with torch.no_grad():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    expected = generator(z, transform)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                image = generator(z, transform)
            image.zero_()
            graph.replay()
        assert torch.equal(image, expected)

    def test_other_streams_are_right(self, device: str) -> None:
        x = randn(4, 64, 128, 128).to(device)
        expected = both_ways(x)
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(4)]
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(10_000_000)
                results.append(both_ways(x.clone()))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))

    def test_more_than_2_31_samples_in_all(self, device: str) -> None:
        if torch.cuda.mem_get_info()[0] < 12 << 30:
            pytest.skip("needs 12 GB of free GPU memory")
        x = torch.zeros(1, 8200, 512, 512, dtype=torch.float16, device=device)
        x[0, -1] = randn(512, 512).to(device, torch.float16)
        f = lowpass(False).to(device)
        y = upfirdn2d(x, f, down=2, impl="native")
        assert torch.equal(y[:, -1:], upfirdn2d(x[:, -1:].clone(), f, down=2, impl="native"))
        assert not y[:, :-1].any()

    def test_many_small_maps(self, device: str) -> None:
        x = randn(70000, 1, 4, 4).to(device)
        f = lowpass(False, 4).to(device)
        y = upfirdn2d(x, f, padding=2, impl="native")
        torch.testing.assert_close(y, upfirdn2d(x, f, padding=2, impl="reference"), rtol=1e-4, atol=1e-5)


# ----- where they cannot run ----------------------------------------------------------------------------------------

CANNOT: list[tuple[dict[str, Any], str]] = [
    ({"up": 3}, "factors are 1, 2 or 4, but here up is \\[3, 3\\]"),
    ({"f": torch.ones(65), "padding": 40}, "up to 64 taps, but here one has 65"),
    ({"x": torch.ones(1, 1, 8, 8, dtype=torch.float16)}, "none for torch.float16 on the device cpu"),
]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("arguments, reason", CANNOT)
def test_what_they_cannot_do_pytorch_does_with_one_warning(
    arguments: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_ops("auto", monkeypatch)
    call = {"x": torch.ones(1, 1, 8, 8), "f": torch.ones(3), **arguments}
    with pytest.raises(RuntimeError, match=reason):
        upfirdn2d(**call, impl="native")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [upfirdn2d(**call) for _ in range(3)]
    torch.testing.assert_close(results[0], upfirdn2d(**call, impl="reference"))
    (message,) = (str(w.message) for w in caught)
    assert message.startswith("upfirdn2d will be slower, in plain PyTorch")


@pytest.mark.usefixtures("fresh")
def test_without_kernels_one_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise build.BuildError("no compiler was found.")

    monkeypatch.delenv("MULTISCALE_OPS", raising=False)
    monkeypatch.setattr(build, "library", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            upfirdn2d(torch.ones(1, 1, 8, 8), torch.ones(3))
            y = filtered_lrelu(torch.ones(1, 1, 8, 8), lowpass(), lowpass(), up=2, down=2, padding=11)
    assert y.shape == (1, 1, 8, 8)
    assert [str(w.message) for w in caught] == [
        "Resampling and filtered leaky ReLU will be slower, in plain PyTorch, for want of a kernel: no compiler was found."
    ]
    with pytest.raises(RuntimeError, match="no compiler was found"):
        filtered_lrelu(torch.ones(1, 1, 8, 8), impl="native")


def test_the_environment_chooses_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 1, 8, 8)
    monkeypatch.setattr(native, "_upfirdn2d", lambda *_: "kernel")
    choose_ops("native", monkeypatch)
    assert upfirdn2d(x, None) == "kernel"
    with pytest.raises(RuntimeError, match="factors"):
        upfirdn2d(x, None, up=3)
    choose_ops("reference", monkeypatch)
    assert isinstance(upfirdn2d(x, None), torch.Tensor)
    assert upfirdn2d(x, None, impl="native") == "kernel"
    monkeypatch.setenv("MULTISCALE_OPS", "fast")
    with pytest.raises(UserError, match="'fast', but it must be one of auto, reference, native"):
        upfirdn2d(x, None)


@pytest.mark.slow
def test_a_sanitizer_finds_no_access_outside_of_an_array(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++ with its sanitizers")
    source, program = Path(__file__).with_name("sanitize_cpu.cpp"), tmp_path / "sanitize"
    flags = [
        "-std=c++17",
        "-O0",
        "-march=native",
        "-fopenmp",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    include = Path(native.__file__).with_name("csrc")
    built = subprocess.run(
        [compiler, *flags, "-I", str(include), str(source), "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip("g++ has no sanitizers here")
    assert built.returncode == 0, built.stderr
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[0]) > 300
