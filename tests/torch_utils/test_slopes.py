"""The slopes that a layer took, and the gradient that belongs to them."""

from __future__ import annotations

import pytest
import torch

from torch_utils.ops import slopes
from torch_utils.ops.filtered_lrelu import filtered_lrelu


def layers(clamp: float | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer in float16 and in float64, by PyTorch: images, bias, the images again in float64, both results."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn([2, 4, 30, 40], generator=random).half().requires_grad_()
    b = torch.randn([4], generator=random).half()
    f = torch.rand([12], generator=random)
    arguments = {
        "fu": f / f.sum(),
        "fd": f / f.sum(),
        "up": 2,
        "down": 2,
        "padding": 11,
        "clamp": clamp,
        "impl": "reference",
    }
    exact_x = x.detach().double().requires_grad_()
    y, exact = filtered_lrelu(x, b=b, **arguments), filtered_lrelu(exact_x, b=b.double(), **arguments)
    return x, b, exact_x, y, exact


@pytest.mark.parametrize("clamp", [None, 1.0])
def test_gradient_for_the_slopes_taken(clamp: float | None) -> None:
    x, b, exact_x, y, exact = layers(clamp)
    taken, right = slopes.slopes_taken(y), slopes.slopes_taken(exact)
    assert taken.dtype == torch.int8
    assert 0 < (taken != right).sum() < 100, "nothing is tested"
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).half()
    for_taken, for_right = (slopes.gradient(exact, codes, dy) for codes in (taken, right))
    assert slopes.farthest_from_threshold(exact, taken, x.detach().double(), b.double()) < 1e-3
    assert slopes.farthest_from_threshold(exact, right, x.detach().double(), b.double()) == 0
    got = torch.autograd.grad(y, x, dy)[0].double()
    assert (got - for_taken).norm() < 1.5e-3 * for_taken.norm()
    assert (got - for_taken).norm() < (got - for_right).norm()
    assert torch.allclose(for_right, torch.autograd.grad(exact, exact_x, dy.double())[0])


def test_a_wrong_slope_is_far_from_a_threshold() -> None:
    x, b, _, y, exact = layers(None)
    taken = slopes.slopes_taken(y)
    wrong = taken.clone()
    wrong[0, 20, 20:40] *= -1
    assert slopes.farthest_from_threshold(exact, wrong, x.detach().double(), b.double()) > 0.1
    wrong = taken.clone()
    wrong[3, 30, 30] = 0
    assert slopes.farthest_from_threshold(exact, wrong, x.detach().double(), b.double()) > 1e-3


def test_no_slopes() -> None:
    with pytest.raises(ValueError, match="no filtered leaky ReLU"):
        slopes.slopes_taken(torch.ones(2, 2, 3, 3, requires_grad=True) * 2)
