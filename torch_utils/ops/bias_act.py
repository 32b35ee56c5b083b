"""Bias and activation in one step, with the gain that keeps the signal's variance."""

from __future__ import annotations

import math

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling

SLOPES = {"relu": 0.0, "lrelu": None, "linear": 1.0}
"""Slope below 0 of the activations that are leaky ReLUs, which the kernel of ``filtered_lrelu`` can do; None: alpha."""

KERNEL_PAYS_FROM = {"cpu": 2**20, "cuda": 2**16}
"""Samples from which on "auto" uses the kernel: one pass over the memory instead of four, but a dearer call.

Measured on a CPU. On a GPU the kernel saves three launches and three passes at any size; only calls so small that the
time of the processor counts, which a graph does not have, are left to PyTorch.
"""


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
        b: Bias [C] on the device of ``x``, or None. The kernel adds it in float32 (float64 to images in float64); PyTorch's
            ops cast it to the type of ``x``.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: Slope of "lrelu" below 0; None: 0.2. The other activations take no notice of it.
        gain: Factor of the result; None: sqrt(2) for "relu", "lrelu" and "swish", 1 for the others.
        clamp: Largest magnitude of the result, above 0; None: no limit.
        impl: "auto", "reference" (plain PyTorch) or "native" (the kernel of ``filtered_lrelu``, without filters: "linear",
            "relu" and "lrelu" of images [B, C, H, W], gain above 0). "auto" takes the kernel where it pays, and never
            warns that it does not.

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
    native.check_implementation(impl)
    for name, value in (("alpha", alpha), ("gain", gain)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, but it must be finite, or None.")
    alpha = 0.2 if alpha is None else alpha
    gain = reference.ACTIVATIONS[act][1] if gain is None else gain
    layer = _as_layer(x, act, alpha, gain, clamp)
    if layer is None and impl == "native":
        raise RuntimeError(
            f"The native kernel of bias_act cannot run: it does {', '.join(SLOPES)} of images [B, C, H, W] with a gain "
            f"above 0, but here act is {act}, x is {list(x.shape)} and gain is {gain}."
        )
    enough = KERNEL_PAYS_FROM["cuda" if x.device.type == "cuda" else "cpu"]  # without data: as on a CPU
    pays = impl == "native" or (act != "linear" and x.numel() >= enough and x.is_contiguous())
    if layer is not None and pays and native.is_chosen("bias_act", impl, x, layer.up, bias=b):
        return native.filtered_lrelu(x, b, layer)
    return reference.bias_act(x, b, act, alpha, gain, clamp)


def _as_layer(x: torch.Tensor, act: str, alpha: float, gain: float, clamp: float | None) -> FilteredLReLU | None:
    """The same as a filtered leaky ReLU that has no filters; None if it is not one."""
    if act not in SLOPES or x.ndim != 4 or not gain > 0 or 0 in x.shape[2:]:
        return None
    slope = SLOPES[act]
    height, width = (Axis(n, n, 1, 1, 0) for n in x.shape[2:])
    up, down = (Resampling(None, height, width, flip_filter=False, gain=float(g)) for g in (gain, 1))
    return FilteredLReLU(up, down, alpha if slope is None else slope, clamp)


def check_bias(b: torch.Tensor | None, x: torch.Tensor) -> None:
    """ValueError unless ``b`` is None or one floating-point value for each of x's channels, on the device of ``x``."""
    if b is None:
        return
    if x.ndim < 2 or b.shape != x.shape[1:2] or not b.is_floating_point():
        raise ValueError(
            f"b is {list(b.shape)} of {b.dtype}, but it must be one floating-point value for each channel "
            f"(dimension 1) of x, which is {list(x.shape)}."
        )
    if b.device != x.device:
        raise ValueError(f"b is on {b.device} but x is on {x.device}; move the bias there.")


def check_clamp(clamp: float | None) -> None:
    """ValueError unless ``clamp`` is None or above 0."""
    if clamp is not None and not (math.isfinite(clamp) and clamp > 0):
        raise ValueError(f"clamp is {clamp}, but it must be finite and above 0, or None.")
