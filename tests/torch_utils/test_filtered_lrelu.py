"""filtered_lrelu against recorded numbers, its definition by parts, and finite differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from conftest import choose_ops
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_utils.ops import reference
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "filtered_lrelu.npz")
GOLDEN_CASES: list[dict[str, Any]] = json.loads(bytes(GOLDEN["__meta__"]))
SETTINGS = ("up", "down", "padding", "gain", "slope", "clamp", "flip_filter")


@pytest.fixture(params=["matrices", "convolutions", "one map at a time", "native"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of applying a separable filter, and chunks that do not divide the maps; the kernels, where they can."""
    choose_ops("auto" if request.param == "native" else "reference", monkeypatch)
    monkeypatch.setattr(reference, "LARGEST_MATRIX_SIDE", 0 if request.param == "convolutions" else 192)
    if request.param == "one map at a time":
        monkeypatch.setattr(reference, "CHUNK_BYTES_CPU", 1)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lowpass(*taps: int) -> torch.Tensor:
    f = torch.rand(taps, generator=torch.Generator().manual_seed(len(taps)))
    return f / f.sum()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("i", range(len(GOLDEN_CASES)))
def test_output_and_gradients_equal_the_recorded_ones(i: int) -> None:
    tensors = {
        name: torch.from_numpy(GOLDEN[f"{name}{i}"])
        for name in ("x", "b", "fu", "fd", "y", "dy", "dx", "db")
        if f"{name}{i}" in GOLDEN.files and (name == "db" or GOLDEN[f"{name}{i}"].ndim)
    }
    x, b = tensors["x"].requires_grad_(), tensors["b"].requires_grad_()
    arguments = {name: GOLDEN_CASES[i][name] for name in SETTINGS}
    y = filtered_lrelu(x, tensors.get("fu"), tensors.get("fd"), b, **arguments)
    dx, db = torch.autograd.grad(y, [x, b], tensors["dy"])
    assert y.shape == tensors["y"].shape
    assert relative(y.detach(), tensors["y"]) < 1e-5
    assert relative(dx, tensors["dx"]) < 1e-5
    assert relative(db, tensors["db"]) < 1e-5


CASES: list[tuple[tuple[int, ...] | None, tuple[int, ...] | None, dict[str, Any]]] = [
    ((6,), (6, 6), {"up": 2, "down": 2, "padding": [5, 4, 5, 4], "clamp": 0.5}),
    ((5,), (4,), {"up": 2, "down": 2, "padding": [-1, 3, 4, -2], "flip_filter": True}),
    ((4, 3), (3, 2), {"up": [2, 3], "down": [3, 2], "padding": [4, 3, -1, 6], "clamp": 0.3, "flip_filter": True}),
    ((8,), None, {"up": 4, "padding": [3, 2, 1, 0], "slope": 0.0, "gain": 1.0}),
    (None, (3, 4), {"down": 2, "padding": 2, "slope": 1.0, "clamp": 0.4}),
    (None, None, {"padding": [1, -1, -1, 2]}),
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("taps_u, taps_d, arguments", CASES)
def test_gradients_of_first_and_second_order_equal_finite_differences(
    taps_u: tuple[int, ...] | None, taps_d: tuple[int, ...] | None, arguments: dict[str, Any]
) -> None:
    x, b = randn(1, 2, 5, 4).requires_grad_(), randn(2, seed=1).requires_grad_()
    fu, fd = (None if taps is None else lowpass(*taps) for taps in (taps_u, taps_d))

    def op(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return filtered_lrelu(x, fu, fd, b, **arguments)

    assert torch.autograd.gradcheck(op, [x, b])
    assert torch.autograd.gradgradcheck(lambda x, b: op(x, b).square(), [x, b])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("taps_u, taps_d, arguments", CASES)
def test_it_is_upsampling_then_leaky_relu_then_downsampling(
    taps_u: tuple[int, ...] | None, taps_d: tuple[int, ...] | None, arguments: dict[str, Any]
) -> None:
    x, b, dy_seed = randn(3, 7, 9, 8).requires_grad_(), randn(7, seed=1).requires_grad_(), 2
    fu, fd = (None if taps is None else lowpass(*taps) for taps in (taps_u, taps_d))
    options = {"up": 1, "down": 1, "padding": 0, "gain": 2**0.5, "slope": 0.2, "clamp": None, "flip_filter": False}
    options |= arguments
    y = filtered_lrelu(x, fu, fd, b, **arguments)
    gain = np.prod(np.broadcast_to(options["up"], 2))
    u = upfirdn2d(x + b[:, None, None], fu, options["up"], 1, options["padding"], options["flip_filter"], float(gain))
    v = F.leaky_relu(u, options["slope"]) * options["gain"]
    v = v if options["clamp"] is None else v.clamp(-options["clamp"], options["clamp"])
    expected = upfirdn2d(v, fd, 1, options["down"], 0, options["flip_filter"])
    torch.testing.assert_close(y, expected)
    dy = randn(*y.shape, seed=dy_seed)
    torch.testing.assert_close(torch.autograd.grad(y, [x, b], dy), torch.autograd.grad(expected, [x, b], dy))


def test_it_equals_scipy() -> None:
    x, fu, fd = randn(1, 1, 9, 9), lowpass(6).double(), lowpass(6, 6).double()
    u = scipy.signal.upfirdn(fu.numpy(), scipy.signal.upfirdn(fu.numpy(), x[0, 0].numpy(), 2, 1, 0), 2, 1, 1) * 4
    v = np.where(u > 0, u, 0.2 * u) * 2**0.5
    expected = scipy.signal.convolve2d(v, fd.numpy(), mode="valid")[::2, ::2]
    y = filtered_lrelu(x, fu, fd, up=2, down=2, padding=[5, 4, 5, 4])  # SciPy: no zero after the last sample
    np.testing.assert_allclose(y[0, 0], expected, atol=1e-12)


@settings(max_examples=100)
@given(
    size=st.integers(1, 20),
    up=st.integers(1, 4),
    down=st.integers(1, 4),
    padding=st.tuples(*[st.integers(-9, 20)] * 2),
    taps_u=st.integers(1, 12),
    taps_d=st.integers(1, 12),
    dense=st.booleans(),
)
def test_output_size_is_the_formulas(
    size: int, up: int, down: int, padding: tuple[int, int], taps_u: int, taps_d: int, dense: bool
) -> None:
    x, fu, fd = torch.ones(1, 1, size, size), torch.ones(taps_u), torch.ones([taps_d] * (2 if dense else 1))
    upsampled = size * up + sum(padding) - (taps_u - 1)
    expected = (size * up + sum(padding) - (taps_u - 1) - (taps_d - 1) + down - 1) // down
    if upsampled < 1 or expected < 1:
        with pytest.raises(ValueError, match="Nothing is left"):
            filtered_lrelu(x, fu, fd, up=up, down=down, padding=[*padding, *padding])
    else:
        y = filtered_lrelu(x, fu, fd, up=up, down=down, padding=[*padding, *padding])
        assert y.shape == (1, 1, expected, expected)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("taps_d", [(12,), (12, 12)])
def test_half_precision_is_close_to_float64(taps_d: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x, b, fu, fd = randn(2, 3, 20, 20), randn(3, seed=1), lowpass(12), lowpass(*taps_d)
    arguments: dict[str, Any] = {"up": 2, "down": 2, "padding": [11, 10, 11, 10], "clamp": 256}
    low = x.to(dtype).requires_grad_()
    y = filtered_lrelu(low, fu, fd, b.to(dtype), **arguments)
    expected = filtered_lrelu(x.requires_grad_(), fu, fd, b, **arguments)
    dy = torch.ones_like(y)
    (dx,), (expected_dx,) = torch.autograd.grad(y, low, dy), torch.autograd.grad(expected, x, dy.double())
    assert y.dtype == dx.dtype == dtype
    assert relative(y.detach(), expected.detach()) < tolerance
    # A sample near 0 may change its sign and so its slope: bound the mean, not the largest error.
    assert float((dx - expected_dx).abs().mean() / expected_dx.abs().max()) < tolerance


def test_memory_layout_and_gradient_mode_do_not_matter() -> None:
    x, b, fu, fd = randn(2, 3, 8, 9), randn(3, seed=1), lowpass(6), lowpass(6, 6)
    arguments: dict[str, Any] = {"up": 2, "down": 2, "padding": 5, "clamp": 0.7}
    expected = filtered_lrelu(x, fu, fd, b, **arguments)
    last = x.to(memory_format=torch.channels_last)
    strided = torch.empty(2, 3, 8, 18, dtype=x.dtype)[..., ::2].copy_(x)
    for layout in (last, strided, x.clone().requires_grad_()):
        before = layout.detach().clone()
        torch.testing.assert_close(filtered_lrelu(layout, fu, fd, b, **arguments), expected, check_stride=False)
        assert torch.equal(layout, before)
    with torch.no_grad():
        torch.testing.assert_close(filtered_lrelu(x.requires_grad_(), fu, fd, b, **arguments), expected)


def test_the_input_survives_a_layer_without_filters() -> None:
    x = randn(1, 2, 3, 3)
    before = x.clone()
    filtered_lrelu(x, clamp=0.1)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("taps_d", [(12,), (12, 12)])
def test_it_compiles_in_one_piece(taps_d: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    opaque = torch.compiler.disable(torch.amp.is_autocast_available)  # as to Dynamo of PyTorch 2.11
    monkeypatch.setattr(torch.amp, "is_autocast_available", opaque)
    torch._dynamo.reset()
    compiled = torch.compile(filtered_lrelu, fullgraph=True, backend="eager")
    x, b = randn(2, 3, 7, 8).requires_grad_(), randn(3, seed=1).requires_grad_()
    arguments = {"fu": lowpass(12), "fd": lowpass(*taps_d), "b": b, "up": 2, "down": 2, "padding": 11, "clamp": 1.0}
    results = [op(x, **arguments) for op in (filtered_lrelu, compiled)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), (x, b)) for y in results))


def test_gradients_are_those_of_each_input_alone() -> None:
    x, b, fu = randn(1, 2, 6, 6), randn(2, seed=1), lowpass(4)
    both = x.clone().requires_grad_(), b.clone().requires_grad_()
    dx, db = torch.autograd.grad(filtered_lrelu(both[0], fu, fu, both[1], 2, 2, 3).sum(), both)
    only_x, only_b = x.clone().requires_grad_(), b.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(filtered_lrelu(only_x, fu, fu, b, 2, 2, 3).sum(), only_x)[0], dx)
    torch.testing.assert_close(torch.autograd.grad(filtered_lrelu(x, fu, fu, only_b, 2, 2, 3).sum(), only_b)[0], db)


def test_no_upsampled_map_of_floats_is_kept_for_the_gradient() -> None:
    x, f = randn(1, 4, 16, 16, dtype=torch.float32).requires_grad_(), lowpass(12)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        filtered_lrelu(x, f, f, up=2, down=2, padding=[11, 10, 11, 10], clamp=256, impl="reference")
    assert [t.dtype for t in kept] == [torch.int8]


def test_shapes_are_known_without_data() -> None:
    x, f = torch.empty(2, 3, 20, 20, device="meta", requires_grad=True), torch.empty(12, device="meta")
    y = filtered_lrelu(x, f, f, up=2, down=2, padding=[11, 10, 11, 10])
    assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == (2, 3, 20, 20)


X, FILTER = torch.zeros(1, 2, 4, 4), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.zeros(4, 4)}, "x is"),
        ({"fu": torch.ones(1, 2, 3)}, "fu is"),
        ({"fd": torch.ones(3, dtype=torch.int64)}, "fd is"),
        ({"fd": torch.ones(3, device="meta")}, "meta"),
        ({"b": torch.ones(3)}, "b is"),
        ({"up": 0}, "up is 0"),
        ({"down": -1}, "down is -1"),
        ({"padding": [1]}, "padding is"),
        ({"gain": 0.0}, "gain is 0"),
        ({"slope": -0.1}, "slope is -0.1"),
        ({"clamp": 0}, "clamp is 0"),
        ({"padding": -2}, "Nothing is left of the image's height"),
        ({"fd": torch.ones(9)}, "9 taps"),
        ({"impl": "fast"}, "impl is 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filtered_lrelu(**{"x": X, "fu": FILTER, "fd": FILTER, **arguments})
