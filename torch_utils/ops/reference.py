"""The ops in plain PyTorch: resampling without wasted samples, differentiable to any order.

Shapes: images ``[B, C, H, W]``; maps ``[M, H, W]``, M = B*C. Let g be the filter read backwards, g[k] = f[T-1-k] (g = f
where it is to be correlated). Upsampling by u, padding by p0, filtering and downsampling by d are, along one axis,

    y[m] = sum_j g[j u + p0 - m d] x[j]        with g[k] = 0 outside 0 <= k < T,

a banded matrix. Its transpose has the same form, with u and d exchanged, the filter reversed and p0' = T - 1 - p0: the
gradient of a resampling is a resampling. Two ways to apply it, neither of which inserts zeros or computes samples to be
dropped: as that matrix (separable filters, small maps), or as depthwise convolutions, one for each phase of the output.
Source: StyleGAN3 (Karras et al. 2021), section 3.2 and appendix; polyphase filters are textbook multirate processing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.devices import full_precision

LARGEST_MATRIX_SIDE = 192
"""Separable filters run as matrices on maps up to this side (measured on a CPU); the cost grows with its cube."""

CHUNK_BYTES_CPU, CHUNK_BYTES_GPU = 4 << 20, 512 << 20
"""Upsampled maps that ``filtered_lrelu`` makes at a time: what the caches of a CPU hold; what keeps a GPU busy."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """Resampling of one axis from ``n_in`` to ``n_out`` samples by ``up / down``, after ``pad0`` zeros (< 0: crop)."""

    n_in: int
    n_out: int
    up: int
    down: int
    pad0: int

    def transposed(self, taps: int) -> Axis:
        """The axis of the transposed resampling, whose filter (``taps`` long) is reversed."""
        return Axis(self.n_out, self.n_in, self.down, self.up, taps - 1 - self.pad0)


@dataclasses.dataclass(frozen=True, eq=False)  # it holds a tensor; and Dynamo of PyTorch 2.11 asks for a hash too early
class Resampling:
    """A linear resampling of maps: filter [T], [TH, TW] or None; axes; direction of reading the filter; gain."""

    f: torch.Tensor | None
    y: Axis
    x: Axis
    flip_filter: bool
    gain: float

    def transposed(self) -> Resampling:
        """The adjoint, which takes maps of this one's output size to its input size."""
        y, x = self.y.transposed(filter_taps(self.f)[0]), self.x.transposed(filter_taps(self.f)[1])
        return Resampling(self.f, y, x, not self.flip_filter, self.gain)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Resample maps [M, H, W] into new memory of their type, outside of autograd."""
        with full_precision(x.device):
            return self._apply(x)

    def _apply(self, x: torch.Tensor) -> torch.Tensor:
        axes = (self.y, self.x)
        if self.f is None and all(a.up == a.down == 1 for a in axes):
            y0, x0 = -self.y.pad0, -self.x.pad0
            return _window(x, y0, self.y.n_out, x0, self.x.n_out) * self.gain
        f = x.new_ones([1]) if self.f is None else self.f.to(x.dtype)
        g = f if self.flip_filter else f.flip(list(range(f.ndim)))
        if g.ndim == 2:
            return _convolve(x, g * self.gain, self.y, self.x)
        g = g * math.sqrt(self.gain)
        if max(n for a in axes for n in (a.n_in, a.n_out)) <= LARGEST_MATRIX_SIDE:
            return banded_matrix(g, self.y) @ (x @ banded_matrix(g, self.x).T)
        height = Axis(self.y.n_in, self.y.n_in, 1, 1, 0)
        width = Axis(self.x.n_out, self.x.n_out, 1, 1, 0)
        return _convolve(_convolve(x, g[None, :], height, self.x), g[:, None], self.y, width)


def filter_taps(f: torch.Tensor | None) -> tuple[int, int]:
    """Taps of a filter along y and x; no filter is one tap."""
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])


def banded_matrix(g: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The matrix [n_out, n_in] of g[j u + p0 - m d]: a strided window onto the zero-extended filter."""
    smallest = axis.pad0 - (axis.n_out - 1) * axis.down  # index at j = 0, m = n_out - 1
    largest = axis.pad0 + (axis.n_in - 1) * axis.up
    line = _window(g[None], 0, 1, smallest, largest + 1 - smallest)
    return line.as_strided([axis.n_out, axis.n_in], [axis.down, axis.up]).flip(0)


def _window(x: torch.Tensor, y0: int, height: int, x0: int, width: int) -> torch.Tensor:
    """The window of maps that begins at (y0, x0), zero where it leaves them; ``x`` itself if that is all of it."""
    if x0 >= x.shape[-1] or x0 + width <= 0 or y0 >= x.shape[-2] or y0 + height <= 0:
        return x.new_zeros([*x.shape[:-2], height, width])
    sides = [-x0, x0 + width - x.shape[-1], -y0, y0 + height - x.shape[-2]]
    return F.pad(x, sides) if any(sides) else x


def _convolve(x: torch.Tensor, g: torch.Tensor, y_axis: Axis, x_axis: Axis) -> torch.Tensor:
    """Resample maps with the dense filter ``g`` [TH, TW] as depthwise convolutions."""
    if y_axis.down == x_axis.down == 1 and (y_axis.up > 1 or x_axis.up > 1):
        return _convolve_transposed(x, g, y_axis, x_axis)
    rows, columns = list(_phases(y_axis, g.shape[0])), list(_phases(x_axis, g.shape[1]))
    if len(rows) == len(columns) == 1:
        return _convolve_phase(x, g, rows[0], columns[0])
    y = x.new_empty([x.shape[0], y_axis.n_out, x_axis.n_out])
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            y[:, r :: len(rows), c :: len(columns)] = _convolve_phase(x, g, row, column)
    return y


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Output samples y[q P + r], q < ``count``: the taps [first :: every] over x from ``start`` on, with a stride."""

    first: int
    every: int
    taps: int
    start: int
    stride: int
    count: int


def _phases(axis: Axis, taps: int) -> Iterator[_Phase]:
    """Split an axis by m = q P + r, P = u / gcd(u, d): then j = q s + i, s = d / gcd, meets tap k = i u + p0 - r d."""
    common = math.gcd(axis.up, axis.down)
    phases = axis.up // common
    for r in range(phases):
        start = -((axis.pad0 - r * axis.down) // axis.up)  # smallest i with k >= 0
        first = start * axis.up + axis.pad0 - r * axis.down
        count = len(range(r, axis.n_out, phases))
        yield _Phase(first, axis.up, len(range(first, taps, axis.up)), start, axis.down // common, count)


def _convolve_phase(x: torch.Tensor, g: torch.Tensor, row: _Phase, column: _Phase) -> torch.Tensor:
    """One phase of the output, as a correlation."""
    if 0 in (row.taps, column.taps, row.count, column.count):  # fewer taps than phases: no sample meets any
        return x.new_zeros([x.shape[0], row.count, column.count])
    height, width = ((p.count - 1) * p.stride + p.taps for p in (row, column))
    weight = _depthwise(g[row.first :: row.every, column.first :: column.every], x.shape[0])
    x = _window(x, row.start, height, column.start, width)
    return F.conv2d(x[None], weight, stride=(row.stride, column.stride), groups=x.shape[0])[0]


def _convolve_transposed(x: torch.Tensor, g: torch.Tensor, y_axis: Axis, x_axis: Axis) -> torch.Tensor:
    """Upsampling: y[m] = sum_j h[m + s - j u] x[j], h the filter read forwards, s = T - 1 - p0."""
    shift_y, start_y, count_y = _transposed_window(y_axis, g.shape[0])
    shift_x, start_x, count_x = _transposed_window(x_axis, g.shape[1])
    x = _window(x, start_y, count_y, start_x, count_x)
    weight = _depthwise(g.flip(0, 1), x.shape[0])
    y = F.conv_transpose2d(x[None], weight, stride=(y_axis.up, x_axis.up), groups=x.shape[0])[0]
    return _window(y, shift_y, y_axis.n_out, shift_x, x_axis.n_out)


def _transposed_window(axis: Axis, taps: int) -> tuple[int, int, int]:
    """(first sample to keep of a transposed convolution, first sample and number of samples of x that it takes)."""
    shift = taps - 1 - axis.pad0
    start = shift // axis.up if shift < 0 else max(0, -((taps - 1 - shift) // axis.up))
    stop = (axis.n_out - 1 + shift) // axis.up + 1
    return shift - start * axis.up, start, max(stop - start, 1)


def _depthwise(g: torch.Tensor, maps: int) -> torch.Tensor:
    """One filter as the weight of a convolution that treats every map alike."""
    return g.expand(maps, 1, *g.shape).contiguous()


def _folded(count: int, dim: int | None, tensor: torch.Tensor) -> torch.Tensor:
    """What ``torch.vmap`` maps over (``dim``; None: the same for all) as more maps: [count M, ...]."""
    batched = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return batched.flatten(0, 1)


def _resample(*arguments: Any) -> Any:
    return (_Resample if torch.compiler.is_compiling() else _ResampleInAllModes).apply(*arguments)


def _activate(*arguments: Any) -> Any:
    return (_FilteredLReLU if torch.compiler.is_compiling() else _FilteredLReLUInAllModes).apply(*arguments)


def _linearise(*arguments: Any) -> Any:
    return (_Linearised if torch.compiler.is_compiling() else _LinearisedInAllModes).apply(*arguments)


class _Resample(torch.autograd.Function):
    """A resampling, whose gradient is the transposed one; keeps no samples."""

    @staticmethod
    def forward(x: torch.Tensor, resampling: Resampling) -> torch.Tensor:
        return resampling(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, ctx.resampling = inputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _resample(grads[0], ctx.resampling.transposed()), None


class _ResampleInAllModes(_Resample):
    """The same with tangents, and mapped: what Dynamo does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return _resample(tangents[0], ctx.resampling)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], x: torch.Tensor, resampling: Resampling) -> tuple[Any, int]:
        y = _resample(_folded(info.batch_size, dims[0], x), resampling)
        return y.unflatten(0, (info.batch_size, -1)), 0


def upfirdn2d(x: torch.Tensor, resampling: Resampling) -> torch.Tensor:
    """Resample images [B, C, H, W]; differentiable to any order."""
    y = _resample(x.flatten(0, 1), resampling)
    return y.unflatten(0, x.shape[:2])


@dataclasses.dataclass(frozen=True, eq=False)
class FilteredLReLU:
    """Upsampling (its gain includes the activation's), leaky ReLU, clamp, downsampling."""

    up: Resampling
    down: Resampling
    slope: float
    clamp: float | None

    def transposed(self) -> FilteredLReLU:
        """The layer that the gradient goes through: the transposed filters in the opposite order."""
        return FilteredLReLU(self.down.transposed(), self.up.transposed(), self.slope, self.clamp)

    def chunks(self, x: torch.Tensor) -> Iterator[slice]:
        """Slices of the M maps that bound the memory of the upsampled ones."""
        largest = max(self.up.y.n_out * self.up.x.n_out, self.up.y.n_in * self.up.x.n_in)
        budget = CHUNK_BYTES_CPU if x.device.type == "cpu" else CHUNK_BYTES_GPU
        count = budget // (largest * x.element_size())
        count = max(count // 16, 1) * 16  # depthwise convolutions work on vectors of maps
        return (slice(i, i + count) for i in range(0, x.shape[0], count))

    def activate(self, x: torch.Tensor, b: torch.Tensor | None, codes: torch.Tensor | None) -> torch.Tensor:
        """The layer itself; fills ``codes`` [M, H, W], the slope pattern of the upsampled maps in int8."""
        y = x.new_empty([x.shape[0], self.down.y.n_out, self.down.x.n_out])
        for chunk in self.chunks(x):
            u = self.up(x[chunk] if b is None else x[chunk] + b[chunk, None, None])
            F.leaky_relu_(u, self.slope)
            if codes is not None:
                codes[chunk] = _slope_codes(u, self.clamp)
            if self.clamp is not None:
                u.clamp_(-self.clamp, self.clamp)
            y[chunk] = self.down(u)
        return y

    def multiply(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The layer with its activation replaced by the slopes that ``codes`` remembers."""
        y = x.new_empty([x.shape[0], self.down.y.n_out, self.down.x.n_out])
        for chunk in self.chunks(x):
            slopes = F.leaky_relu_(codes[chunk].to(x.dtype), -self.slope)  # 1, -1, 0 -> 1, slope, 0
            y[chunk] = self.down(self.up(x[chunk]).mul_(slopes))
        return y


def _slope_codes(v: torch.Tensor, clamp: float | None) -> torch.Tensor:
    """1 where a leaky ReLU's result is above 0, -1 where it is not, 0 where it is to be clamped.

    Written with gradients of activations: unlike comparisons, they are vectorised on every kind of processor.
    """
    code = torch.ops.aten.leaky_relu_backward(v.new_ones([]).expand_as(v), v, -1.0, False)
    return code if clamp is None else torch.ops.aten.hardtanh_backward(code, v, -clamp, clamp)


class _FilteredLReLU(torch.autograd.Function):
    """The layer and the codes of its slopes: one byte for each upsampled sample, which are kept."""

    @staticmethod
    def forward(x: torch.Tensor, b: torch.Tensor | None, layer: FilteredLReLU) -> tuple[torch.Tensor, torch.Tensor]:
        codes = x.new_empty([x.shape[0], layer.up.y.n_out, layer.up.x.n_out], dtype=torch.int8)
        return layer.activate(x, b, codes), codes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        _, _, ctx.layer = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        dx = _linearise(grads[0], *ctx.saved_tensors, ctx.layer.transposed())
        return dx, dx.sum([1, 2]) if ctx.needs_input_grad[1] else None, None


class _FilteredLReLUInAllModes(_FilteredLReLU):
    """The same with tangents, and mapped: what Dynamo does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[torch.Tensor, None]:
        of_x, of_b, _ = tangents
        (codes,) = ctx.saved_tensors
        if of_b is not None:
            up = ctx.layer.up
            of_b = of_b[:, None, None].expand(-1, up.y.n_in, up.x.n_in)
            of_x = of_b if of_x is None else of_x + of_b
        return _linearise(of_x, codes, ctx.layer), None

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: torch.Tensor, b: torch.Tensor | None, layer: FilteredLReLU
    ) -> tuple[Any, tuple[int, int]]:
        biases = None if b is None else _folded(info.batch_size, dims[1], b)
        both = _activate(_folded(info.batch_size, dims[0], x), biases, layer)
        return tuple(t.unflatten(0, (info.batch_size, -1)) for t in both), (0, 0)


class _Linearised(torch.autograd.Function):
    """The layer about a point where it has the slopes of ``codes``: linear, so that its gradient is its transpose."""

    @staticmethod
    def forward(x: torch.Tensor, codes: torch.Tensor, layer: FilteredLReLU) -> torch.Tensor:
        return layer.multiply(x, codes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, codes, ctx.layer = inputs
        ctx.save_for_backward(codes)
        ctx.save_for_forward(codes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _linearise(grads[0], *ctx.saved_tensors, ctx.layer.transposed()), None, None


class _LinearisedInAllModes(_Linearised):
    """The same with tangents, and mapped: what Dynamo does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        return _linearise(tangents[0], *ctx.saved_tensors, ctx.layer)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], x: torch.Tensor, codes: torch.Tensor, layer: FilteredLReLU
    ) -> tuple[Any, int]:
        x, codes = (_folded(info.batch_size, dim, t) for dim, t in zip(dims, (x, codes), strict=False))
        return _linearise(x, codes, layer).unflatten(0, (info.batch_size, -1)), 0


def filtered_lrelu(x: torch.Tensor, b: torch.Tensor | None, layer: FilteredLReLU) -> torch.Tensor:
    """Filter images [B, C, H, W] with bias [C]; differentiable to any order with respect to both."""
    maps = x.flatten(0, 1)
    if b is not None:
        b = b.to(x.dtype).repeat(x.shape[0])
    if torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)):
        y, _ = _activate(maps, b, layer)
    else:
        y = layer.activate(maps, b, None)
    return y.unflatten(0, x.shape[:2])


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
    x: torch.Tensor, b: torch.Tensor | None, act: str, alpha: float, gain: float, clamp: float | None
) -> torch.Tensor:
    """Bias [C] along dimension 1, activation, gain, clamp."""
    if b is not None:
        x = x + b.to(x.dtype).reshape([1, -1] + [1] * (x.ndim - 2))
    x = ACTIVATIONS[act][0](x, alpha)
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
