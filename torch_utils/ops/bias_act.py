"""Bias and activation in one step, with the gain that keeps the signal's variance."""

from __future__ import annotations

import math

import torch

from torch_utils.ops import reference
from torch_utils.ops.upfirdn2d import check_implementation


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Add a bias per channel, apply an activation, scale, clamp.

    The steps: ``x + b`` along dimension 1; the activation ``act``; times ``gain``; clamp to [-clamp, clamp].

    Args:
        x: Activations [B, C, ...]; any floating-point type.
        b: Bias [C], cast to the type of ``x``, or None.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: Slope of "lrelu" below 0; None: 0.2. The other activations take no notice of it.
        gain: Factor of the result; None: sqrt(2) for "relu", "lrelu" and "swish", 1 for the others.
        clamp: Largest magnitude of the result, above 0; None: no limit.
        impl: "auto", "reference" (plain PyTorch) or "native" (compiled kernels).

    Returns:
        Activations of the shape and type of ``x``; differentiable to any order with respect to ``x`` and ``b``.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: ``impl="native"`` cannot run.

    Source: StyleGAN2 (Karras et al. 2020), appendix B.
    """
    if not x.is_floating_point():
        raise ValueError(f"x is of {x.dtype}, but it must be in floating point.")
    if act not in reference.ACTIVATIONS:
        raise ValueError(f"act is {act!r}, but it must be one of {', '.join(map(repr, reference.ACTIVATIONS))}.")
    check_bias(b, x)
    check_clamp(clamp)
    check_implementation(impl, "bias_act")
    for name, value in (("alpha", alpha), ("gain", gain)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, but it must be finite, or None.")
    alpha = 0.2 if alpha is None else alpha
    gain = reference.ACTIVATIONS[act][1] if gain is None else gain
    return reference.bias_act(x, b, act, alpha, gain, clamp)


def check_bias(b: torch.Tensor | None, x: torch.Tensor) -> None:
    """ValueError unless ``b`` is None or one floating-point value for each of x's channels."""
    if b is None:
        return
    if x.ndim < 2 or b.shape != x.shape[1:2] or not b.is_floating_point():
        raise ValueError(
            f"b is {list(b.shape)} of {b.dtype}, but it must be one floating-point value for each channel "
            f"(dimension 1) of x, which is {list(x.shape)}."
        )


def check_clamp(clamp: float | None) -> None:
    """ValueError unless ``clamp`` is None or above 0."""
    if clamp is not None and not (math.isfinite(clamp) and clamp > 0):
        raise ValueError(f"clamp is {clamp}, but it must be finite and above 0, or None.")
