"""upfirdn2d against recorded numbers, SciPy, finite differences and its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from conftest import choose_ops
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_utils.ops import reference
from torch_utils.ops.upfirdn2d import upfirdn2d

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "upfirdn2d.npz")
GOLDEN_CASES: list[dict[str, Any]] = json.loads(bytes(GOLDEN["__meta__"]))


@pytest.fixture(params=["matrices", "convolutions", "native"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of applying a separable filter, whatever the size; the kernels, where they can."""
    choose_ops("auto" if request.param == "native" else "reference", monkeypatch)
    monkeypatch.setattr(reference, "LARGEST_MATRIX_SIDE", 192 if request.param == "matrices" else 0)


def golden(name: str) -> torch.Tensor | None:
    return torch.from_numpy(GOLDEN[name]) if GOLDEN[name].ndim else None


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("i", range(len(GOLDEN_CASES)))
def test_output_and_gradient_equal_the_recorded_ones(i: int) -> None:
    case = GOLDEN_CASES[i]
    f = golden(f"f{i}") if f"f{i}" in GOLDEN.files else None
    x, y, dx = (torch.from_numpy(GOLDEN[f"{name}{i}"]) for name in ("x", "y", "dx"))
    x.requires_grad_()
    arguments = {name: case[name] for name in ("up", "down", "padding", "flip_filter", "gain")}
    out = upfirdn2d(x, f, **arguments)
    (grad,) = torch.autograd.grad(out, x, torch.from_numpy(GOLDEN[f"dy{i}"]))
    assert out.shape == y.shape
    assert relative(out.detach(), y) < 1e-5
    assert relative(grad, dx) < 1e-5


GRADIENT_CASES = [
    ((5,), 1, 1, 2, False),
    ((4,), 2, 1, [2, 1, -1, 3], True),
    ((3, 5), 1, 2, [3, -2, 1, 2], False),
    ((6, 4), [2, 3], 1, [-3, 4, 2, 0], True),
    ((6,), [2, 3], [3, 2], [5, 1, -2, 4], False),
    ((5, 4), [3, 2], [2, 4], [4, 3, 5, -1], True),
    ((2, 1), 3, 2, [1, 2], False),  # fewer taps than phases
    (None, 2, 3, [1, -1, 2, 0], False),
    (None, 1, 1, [1, -2, -1, 3], False),
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("taps, up, down, padding, flip", GRADIENT_CASES)
def test_gradients_of_first_and_second_order_equal_finite_differences(
    taps: tuple[int, ...] | None, up: Any, down: Any, padding: Any, flip: bool
) -> None:
    x = randn(2, 1, 5, 7).requires_grad_()
    f = None if taps is None else randn(*taps, seed=1)

    def op(x: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(x, f, up, down, padding, flip, gain=1.7)

    assert torch.autograd.gradcheck(op, [x])
    assert torch.autograd.gradgradcheck(lambda x: op(x).square(), [x])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 3), (3, 2), (2, 4)])
def test_a_dense_filter_equals_scipy_convolution_of_the_stuffed_image(up: int, down: int, flip: bool) -> None:
    x, f = randn(1, 1, 7, 9), randn(4, 3, seed=1)
    stuffed = np.zeros([7 * up, 9 * up])
    stuffed[::up, ::up] = x[0, 0]
    padded = np.pad(stuffed, [(3, 1), (2, 4)])[:, 1:]
    apply = scipy.signal.correlate2d if flip else scipy.signal.convolve2d
    expected = apply(padded, f.numpy(), mode="valid")[::down, ::down]
    y = upfirdn2d(x, f, up, down, [1, 4, 3, 1], flip)
    np.testing.assert_allclose(y[0, 0], expected, atol=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("up, down", [(1, 1), (2, 1), (1, 2), (3, 2), (2, 3), (4, 2)])
def test_a_separable_filter_equals_scipy_upfirdn_along_both_axes(up: int, down: int) -> None:
    x, f = randn(2, 3, 8, 11), randn(6, seed=1)
    expected = scipy.signal.upfirdn(f.numpy(), scipy.signal.upfirdn(f.numpy(), x.numpy(), up, down, -1), up, down, -2)
    # SciPy stops after the last sample: (n - 1) u + 1 of them, convolved in full.
    y = upfirdn2d(x, f, up, down, [5, 5 + 1 - up, 5, 5 + 1 - up])
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_long_maps_equal_scipy() -> None:
    x, f = randn(1, 2, 3, 300), randn(12, seed=1)
    expected = scipy.signal.upfirdn(f.numpy(), x.numpy(), 4, 2, -1)
    y = upfirdn2d(x, f[None, :], [4, 1], [2, 1], [11, 11 - 3, 0, 0])
    np.testing.assert_allclose(y, expected, atol=1e-12)
    y = upfirdn2d(x.mT.contiguous(), f[:, None], [1, 4], [1, 2], [0, 0, 11, 11 - 3]).mT
    np.testing.assert_allclose(y, expected, atol=1e-12)


@settings(max_examples=150)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    down=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.integers(-6, 14)] * 4),
    taps=st.one_of(st.none(), st.tuples(st.integers(1, 9)), st.tuples(st.integers(1, 7), st.integers(1, 7))),
    largest_matrix=st.sampled_from([0, 192]),
)
def test_output_size_is_the_formulas_and_matrices_agree_with_their_definition(
    height: int, width: int, up: Any, down: Any, padding: Any, taps: tuple[int, ...] | None, largest_matrix: int
) -> None:
    x, f = randn(1, 2, height, width), None if taps is None else randn(*taps, seed=1)
    taps_y, taps_x = (1, 1) if taps is None else (taps[0], taps[-1])
    sizes = [
        (n * u + p0 + p1 - (t - 1) + d - 1) // d
        for n, u, d, t, p0, p1 in (
            (height, up[1], down[1], taps_y, *padding[2:]),
            (width, up[0], down[0], taps_x, *padding[:2]),
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "LARGEST_MATRIX_SIDE", largest_matrix)
        if min(sizes) < 1:
            with pytest.raises(ValueError, match="Nothing is left"):
                upfirdn2d(x, f, up, down, padding)
            return
        y = upfirdn2d(x, f, up, down, padding)
    assert list(y.shape) == [1, 2, *sizes]
    g = torch.ones(1, dtype=torch.float64) if f is None else f
    g = g.outer(g) if g.ndim == 1 else g
    expected = torch.zeros_like(y)
    for k in range(taps_y):  # y[m] += f[T - 1 - k] z[m d + k], z the stuffed and padded image
        for j in range(taps_x):
            rows = sample(x, 2, up[1], down[1], padding[2] - k, sizes[0])
            expected += g[taps_y - 1 - k, taps_x - 1 - j] * sample(rows, 3, up[0], down[0], padding[0] - j, sizes[1])
    torch.testing.assert_close(y, expected)


def sample(x: torch.Tensor, dim: int, up: int, down: int, offset: int, count: int) -> torch.Tensor:
    """Every ``down``-th sample of the stuffed axis, zero where there is none."""
    index = torch.arange(count) * down - offset
    inside = (index % up == 0) & (index >= 0) & (index < x.shape[dim] * up)
    picked = x.index_select(dim, (index // up).clamp(0, x.shape[dim] - 1))
    return picked * inside.reshape([-1 if d == dim else 1 for d in range(4)])


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("taps", [(12,), (12, 12)])
def test_half_precision_is_close_to_float64(taps: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    f = torch.rand(taps, generator=torch.Generator().manual_seed(1))
    f, x = f / f.sum(), randn(2, 3, 20, 20)
    y = upfirdn2d(x.to(dtype), f, up=2, down=1, padding=[11, 10, 11, 10], gain=4)
    assert y.dtype == dtype
    assert relative(y, upfirdn2d(x, f, up=2, down=1, padding=[11, 10, 11, 10], gain=4)) < tolerance


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("taps", [(4,), (4, 3)])
def test_memory_layout_does_not_matter(taps: tuple[int, ...]) -> None:
    x, f = randn(2, 3, 8, 9), randn(*taps, seed=1)
    expected = upfirdn2d(x, f, 2, 1, 2)
    last = x.to(memory_format=torch.channels_last)
    strided = torch.empty(2, 3, 16, 9, dtype=x.dtype)[:, :, ::2].copy_(x)
    expanded = x[:1, :1].expand(2, 3, -1, -1)
    torch.testing.assert_close(upfirdn2d(last, f, 2, 1, 2), expected)
    torch.testing.assert_close(upfirdn2d(strided, f, 2, 1, 2), expected)
    torch.testing.assert_close(upfirdn2d(expanded, f, 2, 1, 2), expected[:1, :1].expand(2, 3, -1, -1))


def test_autocast_leaves_the_type_and_the_precision_alone() -> None:
    x, f = randn(1, 2, 8, 8, dtype=torch.float32), randn(4, dtype=torch.float32, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = upfirdn2d(x, f)
    torch.testing.assert_close(y, upfirdn2d(x, f), atol=0, rtol=0)


def test_shapes_are_known_without_data() -> None:
    x, f = torch.empty(2, 3, 20, 20, device="meta"), torch.empty(12, device="meta")
    assert upfirdn2d(x, f, up=2, padding=[11, 10, 11, 10]).shape == (2, 3, 50, 50)
    assert upfirdn2d(torch.empty(0, 3, 8, 8), torch.ones(3)).shape == (0, 3, 6, 6)


X, FILTER = torch.zeros(1, 1, 4, 4), torch.ones(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"x": torch.zeros(4, 4)}, "images"),
        ({"x": torch.zeros(1, 1, 4, 4, dtype=torch.int32)}, "floating"),
        ({"x": torch.zeros(1, 1, 0, 4)}, "non-empty"),
        ({"f": torch.ones(1, 2, 3)}, "filter"),
        ({"f": torch.ones(0)}, "filter"),
        ({"f": torch.ones(3, dtype=torch.int64)}, "floating"),
        ({"f": torch.ones(3, device="meta")}, "meta"),
        ({"f": torch.ones(3, requires_grad=True)}, "constant"),
        ({"up": 0}, "up is 0"),
        ({"down": [1, 2, 3]}, "down is"),
        ({"up": 1.5}, "up is 1.5"),
        ({"padding": [1, 2, 3]}, "padding is"),
        ({"padding": 0.5}, "padding is"),
        ({"padding": -3}, "Nothing is left"),
        ({"f": torch.ones(6)}, "6 taps"),
        ({"gain": float("nan")}, "gain is nan"),
        ({"impl": "cuda"}, "'native'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**{"x": X, "f": FILTER, **arguments})
