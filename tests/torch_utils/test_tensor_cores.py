"""Filters as fragments for tensor cores: what they are, when they are read, and who hands them over.

The kernels that use them: test_cuda_kernels.py.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import choose_ops

from torch_utils.ops import native, tensor_cores
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been read."""
    monkeypatch.setattr(tensor_cores, "_contents", type(tensor_cores._contents)())
    monkeypatch.setattr(tensor_cores, "_fragments", {})


def layer(fu: torch.Tensor, fd: torch.Tensor, n: int = 20) -> FilteredLReLU:
    """One that upsamples by 2 and downsamples by 2, and keeps the size."""
    ups, downs = Axis(n, 2 * n + 10, 2, 1, 11), Axis(2 * n + 10, n, 1, 2, 0)
    return FilteredLReLU(Resampling(fu, ups, ups, False, 4.0), Resampling(fd, downs, downs, False, 1.0), 0.2, 256.0)


def filters(terms: int = 1) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    yield torch.rand(12, generator=generator) / 6
    if terms == 1:
        yield torch.rand(12, generator=generator) / 6
    else:
        yield sum(torch.outer(*torch.rand(2, 12, generator=generator)) * 0.1**k for k in range(terms)) / 36


def test_the_filters_of_moon_take_at_most_three_terms() -> None:
    """Two, but for two layers; and their error is as stated."""
    from ops import layer_calls, moon

    dense = [a["fd"] for _, a in layer_calls(moon()) if a["fd"] is not None and a["fd"].ndim == 2]
    counts = []
    for f in dense:
        g = f.double().numpy()
        terms = tensor_cores.separable_terms(g)
        assert terms is not None
        error = np.linalg.norm(g - sum(np.outer(*pair) for pair in terms)) / np.linalg.norm(g)
        assert error <= tensor_cores.LARGEST_ERROR
        counts.append(len(terms))
    assert counts == [2] * 9 + [3, 2, 3]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_rounded_taps_keep_the_sum_of_each_phase(factor: int) -> None:
    g = np.random.default_rng(0).standard_normal(24) * np.hanning(26)[1:-1]
    rounded = tensor_cores._rounded(g, factor)
    assert np.array_equal(rounded, rounded.astype(np.float16))
    assert np.abs(rounded - g).max() < 2**-11 * np.abs(g).max() * 2
    sums = [
        np.abs((taps.reshape(-1, factor) - g.reshape(-1, factor)).sum(0)) for taps in (rounded, g.astype(np.float16))
    ]
    assert sums[0].max() < 0.2 * sums[1].max()


@pytest.mark.parametrize(
    "f", [torch.zeros(12), torch.full([12], torch.nan), torch.eye(12), torch.ones(11), torch.ones(12, 24)]
)
def test_filters_that_have_no_fragments(f: torch.Tensor) -> None:
    assert tensor_cores.fragments(layer(next(filters()), f)) is None


def test_a_filter_is_read_once_and_again_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = tensor_cores.make
    monkeypatch.setattr(tensor_cores, "make", lambda *arguments: made.append(1) or make(*arguments))
    fu, fd = filters(2)
    first = tensor_cores.fragments(layer(fu, fd))
    again = tensor_cores.fragments(layer(fu, fd))
    assert first is not None
    assert again is not None
    assert [f.terms for f in first] == [1, 2]
    assert all(a.registers is b.registers for a, b in zip(first, again, strict=True))
    assert len(made) == 2
    copied = tensor_cores.fragments(layer(fu.clone(), fd))
    assert copied is not None
    assert copied[0].registers is first[0].registers, "the contents count"
    fd.mul_(2)
    changed = tensor_cores.fragments(layer(fu, fd))
    assert changed is not None
    assert len(made) == 3
    assert changed[1].unit == pytest.approx(first[1].unit / 2)


def test_nothing_is_read_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the capture. What was read before serves."""
    known, new = (layer(*filters(terms)) for terms in (1, 2))
    expected = tensor_cores.fragments(known)
    monkeypatch.setattr(tensor_cores, "is_capturing", lambda _: True)
    assert tensor_cores.fragments(new) is None
    assert tensor_cores.fragments(known) == expected


def test_fragments_outlive_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph may hold their addresses."""
    monkeypatch.setattr(tensor_cores, "FILTERS_WATCHED", 2)
    one = layer(*filters())
    first = tensor_cores.fragments(one)
    for _ in range(3):
        tensor_cores.fragments(layer(*(f.clone() * 2 for f in filters())))
    again = tensor_cores.fragments(one)
    assert len(tensor_cores._contents) <= 2
    assert first is not None
    assert again is not None
    assert first[0].registers is again[0].registers


@pytest.mark.parametrize("asked, dtype, expected", [
    ("auto", torch.float16, True),
    ("native", torch.bfloat16, True),
    ("scalar", torch.float16, False),
    ("auto", torch.float32, False),
])  # fmt: skip
def test_who_has_tensor_cores(asked: str, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_ops(asked, monkeypatch)
    calls: list[ctypes.Structure] = []
    monkeypatch.setattr(native, "has_tensor_cores", lambda _: True)
    monkeypatch.setattr(native, "_run", lambda name, x, call: calls.append(call))
    one = layer(*filters(2))
    x = torch.ones(1, 1, 20, 20, dtype=dtype).requires_grad_()
    y = native.filtered_lrelu(x, None, one)
    torch.autograd.grad(y.sum(), x)
    forward, backward = calls
    assert bool(forward.up_registers) == bool(backward.up_registers) == expected
    if expected:
        assert (forward.up_terms, forward.down_terms, backward.up_terms, backward.down_terms) == (1, 2, 2, 1)


def test_scalar_is_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fu, fd = filters(2)
    x = torch.randn(1, 2, 20, 20)
    choose_ops("native", monkeypatch)
    expected = filtered_lrelu(x, fu, fd, up=2, down=2, padding=11)
    choose_ops("scalar", monkeypatch)
    assert torch.equal(filtered_lrelu(x, fu, fd, up=2, down=2, padding=11), expected)
    assert not native.has_tensor_cores(x.device)
