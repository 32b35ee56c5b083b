"""Derivatives in forward mode and those of ``torch.func``: the same as by ordinary backpropagation and by differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

F = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

Op = Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]

OPS: dict[str, Op] = {
    "upfirdn2d": lambda x, b, impl: upfirdn2d(x, F, up=2, padding=[2, 1], gain=4, impl=impl) * b.sum(),
    "filtered_lrelu": lambda x, b, impl: filtered_lrelu(x, F, F, b, 2, 2, [2, 1, 2, 1], clamp=0.7, impl=impl),
    "bias_act": lambda x, b, impl: bias_act(x, b, act="lrelu", clamp=0.7, impl=impl),
}


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> Op:
    return OPS[request.param]


@pytest.fixture
def point() -> tuple[torch.Tensor, ...]:
    """x, b and a direction of each."""
    generator = torch.Generator().manual_seed(0)
    shapes = [2, 3, 6, 6], [3], [2, 3, 6, 6], [3]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_tangents_are_those_of_differences(op: Op, point: tuple[torch.Tensor, ...], impl: str) -> None:
    x, b, dx, db = point
    _, both = torch.func.jvp(lambda x, b: op(x, b, impl), (x, b), (dx, db))
    _, of_b = torch.func.jvp(lambda b: op(x, b, impl), (b,), (db,))
    with torch.autograd.forward_ad.dual_level():
        dual = op(torch.autograd.forward_ad.make_dual(x, dx), b, impl)
        of_x = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert of_x is not None
    step = 1e-6
    for tangent, u, v in ((both, dx, db), (of_x, dx, 0 * db), (of_b, 0 * dx, db)):
        ahead, behind = (op(x + s * u, b + s * v, impl) for s in (step, -step))
        assert tangent.abs().max() > 0.1
        torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=0, atol=1e-7)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_are_those_of_backpropagation(op: Op, point: tuple[torch.Tensor, ...], impl: str) -> None:
    x, b, dx, _ = point
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(op(leaf, b, impl).pow(3).sum(), leaf)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: op(x, b, impl).pow(3).sum())(x)

    torch.testing.assert_close(gradient(x), expected)
    each = torch.vmap(torch.func.grad(lambda x, b: op(x[None], b, impl).pow(3).sum()))(x, b.expand(2, -1))
    torch.testing.assert_close(each, expected)
    by_image = torch.vmap(torch.func.grad(lambda b, x: op(x[None], b, impl).pow(3).sum()), (None, 0))(b, x)
    torch.testing.assert_close(by_image.sum(0), torch.func.grad(lambda b: op(x, b, impl).pow(3).sum())(b))
    _, second = torch.func.jvp(gradient, (x,), (dx,))
    differences = (gradient(x + 1e-6 * dx) - gradient(x - 1e-6 * dx)) / 2e-6
    assert second.abs().max() > 0.1
    torch.testing.assert_close(second, differences, rtol=0, atol=1e-6)


def test_jacobians_agree_in_both_modes(op: Op, point: tuple[torch.Tensor, ...]) -> None:
    x, b, *_ = point
    forwards, backwards = (
        mode(lambda x: op(x, b, "auto"))(x[:1, :, :4, :4]) for mode in (torch.func.jacfwd, torch.func.jacrev)
    )
    torch.testing.assert_close(forwards, backwards)


def test_the_kernels_refuse_what_they_have_not(op: Op, point: tuple[torch.Tensor, ...]) -> None:
    x, b, dx, _ = point
    with pytest.raises(RuntimeError, match="have no derivatives in forward mode"):
        torch.func.jvp(lambda x: op(x, b, "native"), (x,), (dx,))
    with pytest.raises(RuntimeError, match="have no derivatives in forward mode"):
        torch.func.grad(lambda x: op(x, b, "native").sum())(x)
