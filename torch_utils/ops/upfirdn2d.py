"""Upsample, filter and downsample images in one step (upfirdn), the linear part of alias-free layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch

from torch_utils.ops import native, reference
from torch_utils.ops.reference import Axis, Resampling


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "auto",
) -> torch.Tensor:
    """Pad, upsample, filter and downsample a batch of images.

    The steps, for each channel by itself:

    1. Upsample: insert ``up - 1`` zeros after each sample, along each axis.
    2. Pad with zeros by ``padding`` (of upsampled samples); negative numbers crop.
    3. Convolve with ``f`` where it fits wholly (correlate if ``flip_filter``), and scale by ``gain``.
    4. Downsample: keep every ``down``-th sample, beginning with the first.

    Output side: ``floor((in * up + pad0 + pad1 - (taps - 1) + down - 1) / down)``. The implementation does the steps at
    once: it neither inserts zeros nor computes samples that step 4 drops.

    Args:
        x: Images [B, C, H, W]; float64, float32, float16 or bfloat16.
        f: Low-pass filter: [T], applied along both axes; [TH, TW], dense; None: no filter. It is cast to the type of
            ``x`` and must be on its device; it is a constant, no gradient flows to it.
        up: Upsampling factor, 1 or more; one integer or [x, y].
        down: Downsampling factor, 1 or more; one integer or [x, y].
        padding: Upsampled samples to add around the image: one integer, [x, y] or [x0, x1, y0, y1].
        flip_filter: False: convolution; True: correlation.
        gain: Factor of the result; with a separable filter each of the two passes carries its square root.
        impl: "auto", "reference" (plain PyTorch) or "native" (compiled kernels).

    Returns:
        Images [B, C, H', W'] of the type of ``x``; differentiable to any order with respect to ``x``.

    Raises:
        ValueError: an argument is out of range, or nothing is left of the image.
        RuntimeError: ``impl="native"`` cannot run.

    Source: StyleGAN2 (Karras et al. 2020), appendix; StyleGAN3 (Karras et al. 2021), section 3.2.
    """
    check_images(x)
    check_filter("f", f, x)
    native.check_implementation(impl)
    up_x, up_y = parse_factor("up", up)
    down_x, down_y = parse_factor("down", down)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(padding)
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(f"gain is {gain}, but it must be finite and 0 or more.")
    taps_y, taps_x = reference.filter_taps(f)
    resampling = Resampling(
        f,
        y=plan_axis("height", x.shape[2], taps_y, up_y, down_y, pad_y0, pad_y1),
        x=plan_axis("width", x.shape[3], taps_x, up_x, down_x, pad_x0, pad_x1),
        flip_filter=bool(flip_filter),
        gain=float(gain),
    )
    return (native if native.is_chosen("upfirdn2d", impl, x, resampling) else reference).upfirdn2d(x, resampling)


def plan_axis(name: str, n_in: int, taps: int, up: int, down: int, pad0: int, pad1: int) -> Axis:
    """Resampling of one axis; ValueError if no output sample is left."""
    n_out = (n_in * up + pad0 + pad1 - (taps - 1) + down - 1) // down
    if n_out < 1:
        raise ValueError(
            f"Nothing is left of the image's {name}: {n_in} samples, upsampled by {up}, padded by {pad0} and {pad1}, "
            f"are {n_in * up + pad0 + pad1}, but the filter has {taps} taps; use a larger image or more padding."
        )
    return Axis(n_in, n_out, up, down, pad0)


def check_images(x: torch.Tensor) -> None:
    """ValueError unless ``x`` is [B, C, H, W] in a floating-point type, with samples along both axes."""
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape[2:]:
        raise ValueError(
            f"x is {list(x.shape)} of {x.dtype}; images must be [B, C, H, W], non-empty, in floating point."
        )


def check_filter(name: str, f: torch.Tensor | None, x: torch.Tensor) -> None:
    """ValueError unless ``f`` is None or a constant floating-point filter [T] or [TH, TW] on the device of ``x``."""
    if f is None:
        return
    if f.ndim not in (1, 2) or f.numel() == 0 or not f.is_floating_point():
        raise ValueError(f"{name} is {list(f.shape)} of {f.dtype}; a filter must be [T] or [TH, TW] in floating point.")
    if f.device != x.device:
        raise ValueError(f"{name} is on {f.device} but x is on {x.device}; move the filter there.")
    if f.requires_grad:
        raise ValueError(f"{name} requires a gradient, but filters are constants; pass {name}.detach().")


def parse_factor(name: str, factor: int | Sequence[int]) -> tuple[int, int]:
    """Factors along x and y of an integer or [x, y]."""
    factors = tuple(factor) if isinstance(factor, Sequence) else (factor, factor)
    if len(factors) != 2 or not all(isinstance(n, Integral) and n >= 1 for n in factors):
        raise ValueError(f"{name} is {factor}, but it must be an integer of at least 1, or two of them [x, y].")
    return int(factors[0]), int(factors[1])


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding as (x0, x1, y0, y1) of an integer, [x, y] or [x0, x1, y0, y1]."""
    sides = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    if len(sides) not in (2, 4) or not all(isinstance(n, Integral) for n in sides):
        raise ValueError(f"padding is {padding}, but it must be an integer, [x, y] or [x0, x1, y0, y1], of integers.")
    x0, x1, y0, y1 = map(int, sides if len(sides) == 4 else (sides[0], sides[0], sides[1], sides[1]))
    return x0, x1, y0, y1
