"""bias_act against the definitions of its activations, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from torch_utils.ops.bias_act import bias_act

SQRT2 = math.sqrt(2)
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
DEFINITIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "linear": (lambda x: x, 1),
    "relu": (lambda x: np.maximum(x, 0), SQRT2),
    "lrelu": (lambda x: np.where(x > 0, x, 0.2 * x), SQRT2),
    "tanh": (np.tanh, 1),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 1),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), 1),
    "selu": (lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)), 1),
    "softplus": (lambda x: np.log1p(np.exp(x)), 1),
    "swish": (lambda x: x / (1 + np.exp(-x)), SQRT2),
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("act", DEFINITIONS)
def test_activations_and_their_gains_are_as_defined(act: str) -> None:
    x, b = randn(2, 3, 4, 5) * 3, randn(3, seed=1)
    function, gain = DEFINITIONS[act]
    z = (x + b[:, None, None]).numpy()
    np.testing.assert_allclose(bias_act(x, b, act), function(z) * gain, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        bias_act(x, b, act, gain=0.7, clamp=0.5), np.clip(function(z) * 0.7, -0.5, 0.5), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("act", DEFINITIONS)
def test_gradients_of_first_and_second_order_equal_finite_differences(act: str) -> None:
    x, b = randn(3, 2, 5).requires_grad_(), randn(2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, b: bias_act(x, b, act, clamp=0.9), [x, b])
    assert torch.autograd.gradgradcheck(lambda x, b: bias_act(x, b, act, clamp=0.9).square(), [x, b])


def test_the_bias_runs_along_dimension_1_of_any_shape() -> None:
    b = randn(3)
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        x = randn(*shape, seed=1)
        expected = (x.movedim(1, -1) + b).movedim(-1, 1)
        torch.testing.assert_close(bias_act(x, b), expected)


def test_alpha_is_the_slope_below_zero() -> None:
    x = randn(4, 3)
    torch.testing.assert_close(bias_act(x, act="lrelu", alpha=0.5, gain=1), torch.where(x > 0, x, x / 2))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("act", DEFINITIONS)
def test_half_precision_keeps_its_type_and_is_close(act: str, dtype: torch.dtype, tolerance: float) -> None:
    x, b = randn(2, 3, 4), randn(3, seed=1)
    y, expected = bias_act(x.to(dtype), b.float(), act), bias_act(x, b, act)
    assert y.dtype == dtype
    assert float((y - expected).abs().max() / expected.abs().max()) < tolerance


def test_memory_layout_does_not_matter_and_the_input_survives() -> None:
    x, b = randn(2, 3, 4, 4), randn(3, seed=1)
    last = x.to(memory_format=torch.channels_last)
    y = bias_act(last, b, "lrelu", clamp=1.0)
    torch.testing.assert_close(y, bias_act(x, b, "lrelu", clamp=1.0), check_stride=False)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"act": "gelu"}, "'swish'"),
        ({"b": torch.ones(3)}, "b is \\[3\\]"),
        ({"x": torch.ones(2), "b": torch.ones(2)}, "b is"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "floating"),
        ({"clamp": -1.0}, "clamp is -1.0"),
        ({"gain": float("inf")}, "gain is inf"),
        ({"alpha": float("nan"), "act": "lrelu"}, "alpha is nan"),
        ({"impl": "fast"}, "impl is 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_act(**{"x": torch.ones(2, 2), **arguments})
