"""The ops in plain PyTorch: resampling as banded matrices and polyphase convolutions, differentiable to any order.

Shapes: images ``[B, C, H, W]``; maps ``[M, H, W]`` with M = B*C. Along one axis, with the filter read backwards (g[k] = f[T-1-k];
g = f if it is to be correlated), upsampling by u, padding p0 and downsampling by d amount to

    y[m] = sum_j g[j u + p0 - m d] x[j]        (g is 0 outside 0 ... T-1)

which is one banded matrix: no zeros are inserted, no sample is computed and dropped. Its transpose has the same form, with
u and d exchanged, the filter reversed and p0' = T - 1 - p0; so the gradient of a resampling is a resampling, to any order.
Sources: StyleGAN3 (Karras et al. 2021), section 3.2 and appendix; polyphase filters: any text on multirate processing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


@dataclasses.dataclass(frozen=True)
class Axis:
    """Resampling of one axis: ``n_in`` samples to ``n_out``, by ``up / down``, ``pad0`` zeros before the upsampled ones."""

    n_in: int
    n_out: int
    up: int
    down: int
    pad0: int

    def transposed(self, taps: int) -> Axis:
        """The axis of the transposed resampling, whose filter (``taps`` long) is reversed."""
        return Axis(self.n_out, self.n_in, self.down, self.up, taps - 1 - self.pad0)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """A linear resampling of images but for its filter: both axes, the direction the filter is read in, the gain."""

    y: Axis
    x: Axis
    flip_filter: bool
    gain: float

    def transposed(self, f: torch.Tensor | None) -> Resampling:
        """The adjoint: takes images of this one's output size to its input size."""
        taps_y, taps_x = filter_taps(f)
        return Resampling(self.y.transposed(taps_y), self.x.transposed(taps_x), not self.flip_filter, self.gain)


def filter_taps(f: torch.Tensor | None) -> tuple[int, int]:
    """Taps of a filter along y and x; no filter is one tap."""
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


def resample(x: torch.Tensor, f: torch.Tensor | None, r: Resampling) -> torch.Tensor:
    """Apply a resampling to ``x`` [..., H, W], outside of autograd."""
    if f is None and r.y.up == r.y.down == r.x.up == r.x.down == 1:
        return pad_or_crop(x, r.y, r.x) * r.gain
    if f is None:
        f = x.new_ones([1])
    f = f.to(x.dtype) if r.flip_filter else f.to(x.dtype).flip(tuple(range(f.ndim)))
    if f.ndim == 1:
        f = f * math.sqrt(r.gain)
        return banded_matrix(f, r.y) @ (x @ banded_matrix(f, r.x).T)
    return polyphase_convolution(x, f * r.gain, r.y, r.x)


def banded_matrix(g: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The matrix [n_out, n_in] with entries g[j u + p0 - m d]: a strided window onto the zero-extended filter."""
    first = axis.pad0 - (axis.n_out - 1) * axis.down  # index of the filter at j = 0, m = n_out - 1: the smallest
    last = axis.pad0 + (axis.n_in - 1) * axis.up
    line = F.pad(g, [-first, last + 1 - g.shape[0]])
    return line.as_strided([axis.n_out, axis.n_in], [axis.down, axis.up]).flip(0)


def pad_or_crop(x: torch.Tensor, y_axis: Axis, x_axis: Axis) -> torch.Tensor:
    """Shift by ``pad0`` and bring to the output size with zeros (or by cropping)."""
    sides = [(a.pad0, a.n_out - a.n_in - a.pad0) for a in (x_axis, y_axis)]
    return F.pad(x, [*sides[0], *sides[1]])


def polyphase_convolution(x: torch.Tensor, g: torch.Tensor, y_axis: Axis, x_axis: Axis) -> torch.Tensor:
    """Resample with a dense filter: each output phase is a strided correlation with its own subset of the taps."""
    rows, columns = phases(y_axis, g.shape[0]), phases(x_axis, g.shape[1])
    g = F.pad(g, [0, 1, 0, 1])  # a zero that taps outside of the filter point at
    weight = g[rows.taps.to(g.device)[:, None, :, None], columns.taps.to(g.device)[None, :, None, :]]
    maps = F.pad(x.reshape(-1, 1, y_axis.n_in, x_axis.n_in), [*columns.padding, *rows.padding])
    y = F.conv2d(maps, weight.flatten(0, 1).unsqueeze(1), stride=(rows.stride, columns.stride))
    y = y.unflatten(1, weight.shape[:2]).permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)
    return y[:, : y_axis.n_out, : x_axis.n_out].reshape(*x.shape[:-2], y_axis.n_out, x_axis.n_out)


@dataclasses.dataclass(frozen=True)
class Phases:
    """Output sample m = q P + r of phase r < P is a correlation of stride ``stride`` with the taps ``taps[r]`` [P, K]."""

    taps: torch.Tensor
    stride: int
    padding: tuple[int, int]


def phases(axis: Axis, taps: int) -> Phases:
    """Split y[q P + r] = sum_j g[j u + p0 - (q P + r) d] x[j] by phase: P d = s u, j = q s + i, k = i u + p0 - r d."""
    common = math.gcd(axis.up, axis.down)
    count, stride = axis.up // common, axis.down // common
    first = min(-((axis.pad0 - r * axis.down) // axis.up) for r in range(count))  # smallest i with k >= 0
    last = max((taps - 1 - axis.pad0 + r * axis.down) // axis.up for r in range(count))
    i = torch.arange(first, max(last, first) + 1)
    k = i * axis.up + axis.pad0 - torch.arange(count)[:, None] * axis.down
    k = torch.where((k >= 0) & (k < taps), k, taps)
    blocks = -(-axis.n_out // count)
    return Phases(k, stride, (-first, (blocks - 1) * stride + first + len(i) - axis.n_in))


class _Resample(torch.autograd.Function):
    """A resampling, whose gradient is the transposed one; keeps nothing but the filter."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, f: torch.Tensor | None, r: Resampling) -> torch.Tensor:
        ctx.f, ctx.r = f, r
        return resample(x, f, r)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        return _Resample.apply(grads[0], ctx.f, ctx.r.transposed(ctx.f)), None, None


def upfirdn2d(x: torch.Tensor, f: torch.Tensor | None, r: Resampling) -> torch.Tensor:
    """Differentiable ``resample``."""
    return _Resample.apply(x, f, r)


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    b: torch.Tensor | None,
    up: Resampling,
    down: Resampling,
    gain: float,
    slope: float,
    clamp: float | None,
) -> torch.Tensor:
    """Bias, upsampling, leaky ReLU with gain and clamp, downsampling."""
    if b is not None:
        x = x + b.to(x.dtype)[:, None, None]
    x = F.leaky_relu(upfirdn2d(x, fu, up), slope) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return upfirdn2d(x, fd, down)


ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], float]] = {
    "linear": (lambda x, _: x, 1.0),
    "relu": (lambda x, _: F.relu(x), math.sqrt(2)),
    "lrelu": (lambda x, alpha: F.leaky_relu(x, alpha), math.sqrt(2)),
    "tanh": (lambda x, _: torch.tanh(x), 1.0),
    "sigmoid": (lambda x, _: torch.sigmoid(x), 1.0),
    "elu": (lambda x, _: F.elu(x), 1.0),
    "selu": (lambda x, _: F.selu(x), 1.0),
    "softplus": (lambda x, _: F.softplus(x), 1.0),
    "swish": (lambda x, _: F.silu(x), math.sqrt(2)),
}
"""Each activation as a function of (x, alpha), and the gain that it has by default."""


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    act: str,
    alpha: float | None,
    gain: float | None,
    clamp: float | None,
) -> torch.Tensor:
    """Bias, activation, gain, clamp."""
    function, default_gain = ACTIVATIONS[act]
    gain = default_gain if gain is None else gain
    if b is not None:
        x = x + b.to(x.dtype).reshape([1, -1] + [1] * (x.ndim - 2))
    x = function(x, 0.2 if alpha is None else alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
