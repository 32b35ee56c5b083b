"""Leaky ReLU between an upsampling and a downsampling filter: the nonlinearity of alias-free generators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.bias_act import check_bias, check_clamp
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling
from torch_utils.ops.upfirdn2d import (
    check_filter,
    check_images,
    parse_factor,
    parse_padding,
    plan_axis,
)


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "auto",
) -> torch.Tensor:
    """Leaky ReLU evaluated at a higher sampling rate, so that it does not alias.

    The steps, for each channel by itself:

    1. Add the bias ``b`` of the channel.
    2. Upsample by ``up`` with ``fu`` and a gain of ``up^2``; ``padding`` applies here, to the upsampled samples.
    3. Leaky ReLU: multiply negative samples by ``slope``; multiply all by ``gain``; clamp to [-clamp, clamp].
    4. Filter with ``fd`` and keep every ``down``-th sample.

    Output side: ``floor((in * up + pad0 + pad1 - (taps_u - 1) - (taps_d - 1) + down - 1) / down)``.

    Args:
        x: Images [B, C, H, W]; float64, float32, float16 or bfloat16.
        fu: Upsampling filter: [T], separable; [TH, TW], dense; None: no filter. Cast to the type of ``x``; a constant.
        fd: Downsampling filter, likewise.
        b: Bias [C] on the device of ``x``, or None. The kernels add it in float32 (float64 to images in float64, float16
            to images in float16 on tensor cores); PyTorch's ops cast it to the type of ``x``.
        up: Upsampling factor, 1 or more; one integer or [x, y].
        down: Downsampling factor, 1 or more; one integer or [x, y].
        padding: Upsampled samples to add (negative: to crop): one integer, [x, y] or [x0, x1, y0, y1].
        gain: Factor of the leaky ReLU's result, above 0.
        slope: Slope of the leaky ReLU below 0; 0 or more.
        clamp: Largest magnitude after the gain, above 0; None: no limit.
        flip_filter: False: convolve with both filters; True: correlate.
        impl: "auto", "reference" (plain PyTorch) or "native" (compiled kernels).

    Returns:
        Images [B, C, H', W'] of the type of ``x``; differentiable to any order with respect to ``x`` and ``b``.

    Raises:
        ValueError: an argument is out of range, or nothing is left of the image.
        RuntimeError: ``impl="native"`` cannot run.

    Source: StyleGAN3 (Karras et al. 2021), section 3.2 and appendix.
    """
    check_images(x)
    check_filter("fu", fu, x)
    check_filter("fd", fd, x)
    check_bias(b, x)
    check_clamp(clamp)
    native.check_implementation(impl)
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain is {gain}, but it must be finite and above 0.")
    if not (math.isfinite(slope) and slope >= 0):
        raise ValueError(f"slope is {slope}, but it must be finite and 0 or more.")
    (up_x, up_y), (down_x, down_y) = parse_factor("up", up), parse_factor("down", down)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(padding)
    (taps_uy, taps_ux), (taps_dy, taps_dx) = reference.filter_taps(fu), reference.filter_taps(fd)
    y = _plan_axes("height", x.shape[2], taps_uy, taps_dy, up_y, down_y, pad_y0, pad_y1)
    w = _plan_axes("width", x.shape[3], taps_ux, taps_dx, up_x, down_x, pad_x0, pad_x1)
    layer = FilteredLReLU(
        up=Resampling(fu, y[0], w[0], flip_filter=bool(flip_filter), gain=float(up_x * up_y * gain)),
        down=Resampling(fd, y[1], w[1], flip_filter=bool(flip_filter), gain=1.0),
        slope=float(slope),
        clamp=None if clamp is None else float(clamp),
    )
    return (
        native if native.is_chosen("filtered_lrelu", impl, x, layer.up, layer.down, bias=b) else reference
    ).filtered_lrelu(x, b, layer)


def _plan_axes(
    name: str, n_in: int, taps_u: int, taps_d: int, up: int, down: int, pad0: int, pad1: int
) -> tuple[Axis, Axis]:
    """Upsampling and downsampling of one axis; ValueError if no sample is left by either."""
    upsampled = plan_axis(name, n_in, taps_u, up, 1, pad0, pad1)
    return upsampled, plan_axis(f"{name} after upsampling", upsampled.n_out, taps_d, 1, down, 0, 0)
