"""Building blocks: equalised linear and convolution layers, the mapping network, the alias-free synthesis layer.

Shapes: B images, I and O input and output channels, H and W rows and columns, D size of w. I' and O' are as many channels as
maps have in memory (:func:`stored_channels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from multiscale.config import GeneratorConfig
from multiscale.networks.filters import design_lowpass_filter
from multiscale.networks.plan import LayerPlan
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.filtered_lrelu import filtered_lrelu
from torch_utils.ops.upfirdn2d import upfirdn2d

SQRT2 = math.sqrt(2)
CHANNEL_STEP = 8
"""Numbers of two bytes to the 16 bytes that tensor cores load at a time."""


def check_shape(name: str, value: object, dims: str, *sizes: int | None) -> None:
    """Refuse what is not a tensor of one shape; only the shape is looked at, never a number.

    Args:
        name: Of the argument.
        value: The argument.
        dims: Names of the dimensions, for the message.
        sizes: Of the dimensions; None: any but 0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, torch.Tensor):
        if value.ndim == len(sizes) and all(
            m == n or (n is None and m) for m, n in zip(value.shape, sizes, strict=True)
        ):
            return
        given = f"has shape {list(value.shape)}{', with nothing in it' * (not value.numel())}"
    else:
        given = f"is of type {type(value).__name__}"
    wanted = ", ".join("B" if size is None else str(size) for size in sizes)
    here = "" if wanted == dims else f", here [{wanted}]"
    raise ValueError(f"{name} {given}; give a tensor [{dims}]{here}.")


class Linear(nn.Module):
    """Fully connected layer with equalised learning rate (PGGAN section 4.1): weights N(0, 1)/lr_mult, scaled when used."""

    def __init__(
        self, in_features: int, out_features: int, *, act: str = "linear", lr_mult: float = 1.0, bias_init: float = 0.0
    ) -> None:
        super().__init__()
        self.act = act
        self.weight_gain = lr_mult / math.sqrt(in_features)
        self.bias_gain = lr_mult
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mult)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_mult))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_features] -> [B, out_features], in the type of ``x`` and where it is."""
        weight, bias = self.weight.to(x), self.bias.to(x)
        if x.device.type == "cuda":  # fewer launches
            y = torch.addmm(bias, x, weight.t(), beta=self.bias_gain, alpha=self.weight_gain)
            return bias_act(y, act=self.act)
        return bias_act(x @ (weight * self.weight_gain).t(), bias * self.bias_gain, act=self.act)


class Conv2d(nn.Module):
    """Convolution with equalised learning rate, optional blur-downsampling by 2, bias, activation, gain and clamp."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        act: str = "lrelu",
        down: int = 1,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.act, self.down = act, down
        self.gain = gain * (SQRT2 if act == "lrelu" else 1.0)
        self.clamp = None if clamp is None else clamp * gain
        self.kernel = kernel
        self.weight_gain = 1 / math.sqrt(in_channels * kernel**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, I, H, W] -> [B, O, H/down, W/down]."""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        pad = self.kernel // 2
        if self.down == 1:
            x = F.conv2d(x, weight, padding=pad)
        elif self.kernel == 1:  # keep only the samples that the 1x1 convolution will use
            x = F.conv2d(upfirdn2d(x, self.resample_filter, down=self.down, padding=1), weight)
        else:
            x = F.conv2d(upfirdn2d(x, self.resample_filter, padding=pad + 1), weight, stride=self.down)
        return bias_act(x, self.bias, act=self.act, gain=self.gain, clamp=self.clamp)


class MappingNetwork(nn.Module):
    """z -> w, with a running mean of w for truncation (StyleGAN3 section 3.1)."""

    w_avg: torch.Tensor
    w_seen: torch.Tensor

    def __init__(self, config: GeneratorConfig, num_ws: int) -> None:
        super().__init__()
        self.num_ws, self.z_dim = num_ws, config.z_dim
        widths = [config.z_dim] + [config.w_dim] * config.mapping_layers
        self.layers = nn.ModuleList(
            Linear(a, b, act="lrelu", lr_mult=0.01) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.register_buffer("w_avg", torch.zeros(config.w_dim))
        self.register_buffer("w_seen", torch.zeros(config.w_dim), persistent=False)
        self.layout = nn.Parameter(torch.randn(config.w_dim, config.z_dim)) if config.feature_style else None

    def forward(self, z: torch.Tensor, truncation_psi: float = 1.0, *, observe: bool = False) -> torch.Tensor:
        """z [B, z_dim] -> ws [B, num_ws, w_dim]; truncation: w_avg + psi (w - w_avg). ``observe``: add mean w to ``w_seen``.

        With ``feature_style`` the first of the ws, which the features follow, is linear in z and not truncated: its mean over
        worlds is 0, so that what is laid out by it is laid out anew in every world.

        Raises:
            ValueError: z has another shape.
        """
        check_shape("z", z, "B, z_dim", None, self.z_dim)
        x = z.float()
        code = x = x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            x = layer(x)
        if observe:
            self.w_seen += x.detach().mean(dim=0)
        if truncation_psi != 1:
            x = self.w_avg.lerp(x, truncation_psi)
        if self.layout is None:
            return x[:, None].expand(-1, self.num_ws, -1)
        layout = code @ (self.layout / math.sqrt(code.shape[1])).t()
        return torch.cat([layout[:, None], x[:, None].expand(-1, self.num_ws - 1, -1)], dim=1)

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything
        __call__ = forward


class SynthesisLayer(nn.Module):
    """Modulated convolution and alias-free leaky ReLU (StyleGAN3 sections 3.1 and 3.2)."""

    magnitude_ema: torch.Tensor
    magnitude_seen: torch.Tensor
    up_filter: torch.Tensor | None
    down_filter: torch.Tensor | None

    def __init__(self, config: GeneratorConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.clamp = config.conv_clamp
        self.half_dtype = getattr(torch, config.half_dtype)
        kernel = 1 if plan.is_torgb else config.conv_kernel
        self.affine = Linear(config.w_dim, plan.in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(plan.conv_channels, plan.in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(plan.conv_channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        self.register_buffer("magnitude_seen", torch.zeros([]), persistent=False)
        rate = plan.temporary_rate
        up = design_lowpass_filter(plan.up_taps, plan.in_cutoff, 2 * plan.in_half_width, rate)
        down = design_lowpass_filter(plan.down_taps, plan.out_cutoff, 2 * plan.out_half_width, rate, plan.radial)
        self.register_buffer("up_filter", up, persistent=False)
        self.register_buffer("down_filter", down, persistent=False)

    def forward(
        self, x: torch.Tensor, w: torch.Tensor, features: torch.Tensor | None = None, *, observe: bool = False
    ) -> torch.Tensor:
        """x [B, I', in_size, in_size], w [B, D] -> [B, O', out_size, out_size]; ``features`` are the last of the I maps.

        Where there are features, x has the other channels. ``observe``: add the mean square of the input to
        ``magnitude_seen``.
        """
        maps = [x] if features is None else [x, features]
        if observe:
            self.magnitude_seen += mean_square(maps, self.plan.in_channels * x[:, 0].numel())
        gain = self.magnitude_ema.rsqrt()
        style = self.affine(w)
        if self.plan.is_torgb:
            style = style / math.sqrt(self.weight[0].numel())
        dtype = self.dtype_on(x.device)
        x = modulated_conv2d(maps, self.weight, style, gain, demodulate=not self.plan.is_torgb, dtype=dtype)
        return filtered_lrelu(
            x,
            fu=self.up_filter,
            fd=self.down_filter,
            b=_stored(self.bias, self.bias.dtype, [x.shape[1]]),
            up=self.plan.up,
            down=self.plan.down,
            padding=list(self.plan.padding),
            gain=1.0 if self.plan.is_torgb else SQRT2,
            slope=1.0 if self.plan.is_torgb else 0.2,
            clamp=self.clamp,
        )

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Type of the layer's maps on a device."""
        return self.half_dtype if self.plan.half and device.type in ("cuda", "meta") else torch.float32


def stored_channels(channels: int, dtype: torch.dtype) -> int:
    """As how many channels maps are stored: in half precision a multiple of ``CHANNEL_STEP``, and those behind are zeros.

    Matrices of other sides are multiplied several times more slowly by GPUs, whichever way they lie in memory.
    """
    return math.ceil(channels / CHANNEL_STEP) * CHANNEL_STEP if dtype.itemsize == 2 else channels


def _stored(x: torch.Tensor, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A tensor in a type, with zeros behind its own numbers where the shape is larger."""
    if x.shape == torch.Size(shape):
        return x.to(dtype)
    stored = x.new_zeros(shape, dtype=dtype)
    stored[tuple(map(slice, x.shape))] = x
    return stored


@torch.no_grad()
def mean_square(maps: Sequence[torch.Tensor], count: int | None = None) -> torch.Tensor:
    """Mean square of all values, a float32 scalar; ``count``: how many there are, if some maps are zeros stored behind."""
    count = sum(t.numel() for t in maps) if count is None else count
    return sum(map(_sum_of_squares, maps)) / count  # type: ignore[return-value]


def _sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):  # converted as they are summed, without copies in float32
        return torch.linalg.vector_norm(x, dtype=torch.float32).square()
    return x.float().square().sum()


def modulated_conv2d(
    maps: Sequence[torch.Tensor],
    weight: torch.Tensor,
    style: torch.Tensor,
    input_gain: torch.Tensor,
    *,
    demodulate: bool,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Convolve each sample with its own modulated weights (StyleGAN2 section 2.2, StyleGAN3 appendix D).

    Weights are brought to unit second moment per output channel and styles over the batch, then W' = W y, each output
    channel of W' is brought to unit norm (``demodulate``), and the input gain multiplies the result.

    Args:
        maps: The input, in parts of its channels, which need not be put together: those behind the first have as many
            channels as they say, [B, c, H, W]; the first has the rest of the I, and may be stored as more.
        weight: [O, I, k, k], k odd; the output grows by k - 1.
        style: y, [B, I].
        input_gain: 1/sqrt(running mean square of the input), a scalar.
        demodulate: Off for toRGB, which takes weights and style as they are.
        dtype: In which to multiply; None: the type of the first of ``maps``.

    Returns:
        [B, O', H + k - 1, W + k - 1] in ``dtype``.
    """
    dtype = dtype or maps[0].dtype
    modulate = modulated_weight if dtype.itemsize != 2 else modulated_weight_in_fewer_passes
    counts = [x.shape[1] for x in maps[1:]]
    counts.insert(0, weight.shape[1] - sum(counts))
    parts = modulate(weight, style, input_gain, demodulate=demodulate).split(counts, dim=2)
    y: torch.Tensor | None = None
    for x, part in zip(maps, parts, strict=True):
        channels = stored_channels(part.shape[2], dtype)
        x = _stored(x, dtype, [len(x), channels, *x.shape[2:]])
        part = _stored(part, dtype, [len(part), stored_channels(part.shape[1], dtype), channels, *part.shape[3:]])
        if y is None:
            y = _conv2d_of_each(x, part)
        elif part.shape[-1] == 1:
            y.flatten(2).baddbmm_(part.flatten(2), x.flatten(2))
        else:
            y = y + _conv2d_of_each(x, part)
    assert y is not None
    return y


def modulated_weight(
    weight: torch.Tensor, style: torch.Tensor, input_gain: torch.Tensor, *, demodulate: bool
) -> torch.Tensor:
    """The weights [B, O, I, k, k] of each sample, as :func:`modulated_conv2d` says."""
    if demodulate:
        weight = weight * weight.square().mean(dim=[1, 2, 3], keepdim=True).rsqrt()
        style = style * style.square().mean().rsqrt()
    modulated = weight[None] * style[:, None, :, None, None]  # [B, O, I, k, k]
    if demodulate:
        modulated = modulated * (modulated.square().sum(dim=[2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    return modulated * input_gain


def modulated_weight_in_fewer_passes(
    weight: torch.Tensor, style: torch.Tensor, input_gain: torch.Tensor, *, demodulate: bool
) -> torch.Tensor:
    """:func:`modulated_weight` but for the rounding of float32, where launches take longer than the arithmetic.

    What brings weights and styles to unit second moment is the same for all of an output channel, and cancels when that is
    brought to unit norm.
    """
    modulated = weight[None] * style[:, None, :, None, None]
    if demodulate:
        norm = torch.linalg.vector_norm(modulated, dim=[2, 3, 4], keepdim=True)
        input_gain = input_gain / (norm + 1e-8)
    return modulated * input_gain


def _conv2d_of_each(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolve x [B, I, H, W] with each sample's own weight [B, O, I, k, k], padded by k - 1."""
    batch, kernel = len(x), weight.shape[-1]
    if kernel == 1:  # a matrix product a sample
        return torch.bmm(weight.flatten(2), x.flatten(2)).unflatten(2, x.shape[2:])
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=kernel - 1, groups=batch)
    return y.reshape(batch, -1, *y.shape[2:])
