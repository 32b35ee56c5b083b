"""The layer plan: rates, cutoffs, sizes, filters and widths of every synthesis layer, from the config alone.

Follows StyleGAN3 section 3.2 (Karras et al. 2021), with Fourier features distributed over the layers (Wolski et al. 2024,
section 4.2). Rates and cutoffs are in samples or cycles per view (the image's side is 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multiscale.config import GeneratorConfig

FIRST_CUTOFF = 2.0
FIRST_STOPBAND = 2.0**2.1
LAST_STOPBAND_OVER_CUTOFF = 2.0**0.3
BAND_LIMIT = 2 * 2**0.5
"""kappa: features stay below rate/kappa, a factor sqrt 2 under Nyquist."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One synthesis layer: modulated convolution, then upsampling, leaky ReLU and downsampling, then appended features."""

    index: int
    is_torgb: bool
    in_channels: int
    conv_channels: int  # what the convolution gives
    features: int  # channels of Fourier features appended behind it
    waves: int  # Fourier features that these are mixed from; as many as channels where they are not mixed
    in_size: int
    out_size: int
    in_rate: int
    out_rate: int
    in_cutoff: float
    out_cutoff: float
    in_half_width: float
    out_half_width: float
    up: int
    down: int
    up_taps: int
    down_taps: int
    radial: bool
    padding: tuple[int, int, int, int]  # x0, x1, y0, y1 of filtered_lrelu
    half: bool  # half precision on a GPU

    @property
    def out_channels(self) -> int:
        """Channels that the next layer sees."""
        return self.conv_channels + self.features

    @property
    def temporary_rate(self) -> int:
        """Sampling rate at which the nonlinearity is applied."""
        return self.in_rate * self.up


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The input's features and the layers behind it."""

    input_features: int  # channels of the input
    input_waves: int  # Fourier features that they are mixed from
    input_size: int
    input_rate: int
    step: int  # pixels of the image to a sample of the input
    layers: tuple[LayerPlan, ...]

    @property
    def num_ws(self) -> int:
        """Copies of w: one for the input (kept for interchange; it has no style) and one for each layer."""
        return len(self.layers) + 1


def feature_radii(config: GeneratorConfig) -> list[float]:
    """Radii rho_k = (k/K) rho_max of the K features in cycles across a padded grid, k = 1 ... K.

    By default rho_max is N/4 as published, where the finest layers get few features of their own; mixed features reach as far
    as the last injecting layer passes them at full amplitude, (N + 2 margin)/kappa.
    """
    side = config.img_resolution
    widest = side / 4 if config.fourier_features is None else (side + 2 * config.margin) / BAND_LIMIT
    rho_max = config.rho_max or widest
    count = config.fourier_features or config.channel_max
    return [k / count * rho_max for k in range(1, count + 1)]


def split_features(radii: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """How many of the ascending ``radii`` go to each injection point of padded size ``sizes``.

    A feature belongs to the first point with rho < size/kappa; the last point takes all that are left. The input takes
    one in any case, so that few features on a large image still leave it something to start from.
    """
    counts: list[int] = []
    taken = 0
    for size in sizes[:-1]:
        below = max(sum(rho < size / BAND_LIMIT for rho in radii), 1)
        counts.append(max(below - taken, 0))
        taken = max(below, taken)
    return [*counts, len(radii) - taken]


def make_plan(config: GeneratorConfig) -> Plan:
    """Lay out the network; the widths come out consistent for every legal configuration."""
    rates, cutoffs, half_widths, sizes = _sampling(config)
    split = _feature_split(config, rates, sizes)
    targets = _target_widths(config, cutoffs, split)
    mixed = config.fourier_features is not None

    layers = []
    width = input_width = targets[0] if mixed else split[0]
    for i in range(config.num_layers + 1):
        before = max(i - 1, 0)
        is_torgb = i == config.num_layers
        if mixed:
            injected = _mixed_channels(config, targets[i]) if split[i + 1] else 0
            conv_channels = max(targets[i] - injected, 1)
        else:
            injected = split[i + 1]
            conv_channels = targets[i] if is_torgb else width if injected else min(targets[i], width)
        # The nonlinearity runs at twice the higher of the two rates; toRGB does not resample at all.
        temporary = max(rates[before], rates[i]) * (1 if is_torgb else 2)
        up, down = temporary // rates[before], temporary // rates[i]
        up_taps = _filter_size(config, cutoffs[before]) * up if up > 1 else 1
        down_taps = _filter_size(config, cutoffs[i]) * down if down > 1 else 1
        critical = i >= config.num_layers - config.num_critical
        layers.append(
            LayerPlan(
                index=i,
                is_torgb=is_torgb,
                in_channels=width,
                conv_channels=conv_channels,
                features=injected,
                waves=split[i + 1],
                in_size=sizes[before],
                out_size=sizes[i],
                in_rate=rates[before],
                out_rate=rates[i],
                in_cutoff=cutoffs[before],
                out_cutoff=cutoffs[i],
                in_half_width=half_widths[before],
                out_half_width=half_widths[i],
                up=up,
                down=down,
                up_taps=up_taps,
                down_taps=down_taps,
                radial=config.radial_filters and not critical,
                padding=_padding(sizes[before], sizes[i], config.conv_kernel, up, down, up_taps, down_taps, is_torgb),
                half=rates[i] * 2**config.num_half_res > config.img_resolution,
            )
        )
        width = conv_channels + injected
    step = config.img_resolution // rates[0]
    return Plan(
        input_features=input_width,
        input_waves=split[0],
        input_size=sizes[0],
        input_rate=rates[0],
        step=step,
        layers=tuple(layers),
    )


def least_weights(config: GeneratorConfig) -> int:
    """Weights of a network of this config, but for the few that are no matrices: told before one is built, of any size."""
    plan = make_plan(config)
    waves = plan.input_waves + sum(layer.waves for layer in plan.layers)
    linear = config.z_dim + (config.mapping_layers - 1) * config.w_dim  # the mapping, and what is linear in w below
    linear += sum(layer.in_channels for layer in plan.layers) + (config.z_dim + 2 * waves) * config.feature_style
    mixed = plan.input_features * plan.input_waves
    for layer in plan.layers:
        mixed += layer.in_channels * layer.conv_channels * (1 if layer.is_torgb else config.conv_kernel**2)
        mixed += layer.features * layer.waves * (config.fourier_features is not None)
        mixed += layer.features * layer.conv_channels * config.feature_gates
    return config.w_dim * linear + mixed


def _mixed_channels(config: GeneratorConfig, width: int) -> int:
    """Channels of a layer of this width that its mixed features take: at least one, as the convolution, which leaves it two
    channels where its width would be one.
    """
    return max(min(round(config.feature_share * width), width - 1), 1)


def _sampling(config: GeneratorConfig) -> tuple[list[int], list[float], list[float], list[int]]:
    """Rates r_i, cutoffs f_c,i, half-widths f_h,i and padded sizes n_i of layers 0 ... L."""
    side, last = config.img_resolution, config.num_layers
    last_cutoff = side / 2
    last_stopband = last_cutoff * LAST_STOPBAND_OVER_CUTOFF
    # A Kaiser window's attenuation follows from (taps - 1) f_h, of filters that resample by 2: it stays as it is.
    narrowed = (2 * config.filter_size - 1) / (2 * _filter_size(config, last_cutoff) - 1)
    rates, cutoffs, half_widths, sizes = [], [], [], []
    for i in range(last + 1):
        exponent = min(i / (last - config.num_critical), 1.0)
        cutoff = FIRST_CUTOFF * (last_cutoff / FIRST_CUTOFF) ** exponent
        stopband = FIRST_STOPBAND * (last_stopband / FIRST_STOPBAND) ** exponent
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, side)))
        rates.append(rate)
        cutoffs.append(cutoff)
        half_widths.append((max(stopband, rate / 2) - cutoff) * (narrowed if cutoff == last_cutoff else 1))
        # The last two have no margin: what leaves them is the view itself.
        sizes.append(rate + 2 * config.margin if i < last - 1 else side)
    return rates, cutoffs, half_widths, sizes


def _filter_size(config: GeneratorConfig, cutoff: float) -> int:
    """Taps for each factor of resampling of a filter with this cutoff."""
    critical = config.critical_filter_size if cutoff == config.img_resolution / 2 else None
    return critical or config.filter_size


def _feature_split(config: GeneratorConfig, rates: list[int], sizes: list[int]) -> list[int]:
    """Features at the input and after each layer; only the input and layers whose rate grows have any."""
    if config.feature_split is not None:
        return list(config.feature_split)
    points = [0, *(i + 1 for i in range(1, len(rates)) if rates[i] > rates[i - 1])]
    point_sizes = [sizes[0], *(sizes[point - 1] for point in points[1:])]
    split = [0] * (len(rates) + 1)
    for point, count in zip(points, split_features(feature_radii(config), point_sizes), strict=True):
        split[point] = count
    return split


def _target_widths(config: GeneratorConfig, cutoffs: list[float], split: list[int]) -> list[int]:
    """C_i = min((channel_base/2)/f_c,i, channel_max).

    Features that are not mixed take channels of their own: there it is channel_max up to the last layer that injects any.
    """
    if config.widths is not None:
        return list(config.widths)
    last_injecting = max((i for i, count in enumerate(split[1:]) if count), default=-1)
    if config.fourier_features is not None:
        last_injecting = -1
    widths = [
        config.channel_max if i <= last_injecting else round(min(config.channel_base / 2 / cutoff, config.channel_max))
        for i, cutoff in enumerate(cutoffs)
    ]
    widths[-1] = config.img_channels
    return [max(width, 1) for width in widths]


def _padding(
    in_size: int, out_size: int, kernel: int, up: int, down: int, up_taps: int, down_taps: int, is_torgb: bool
) -> tuple[int, int, int, int]:
    """Padding of filtered_lrelu that makes the output fall on the layer's centred grid of ``out_size`` samples."""
    kernel = 1 if is_torgb else kernel
    total = (out_size - 1) * down + 1 - (in_size + kernel - 1) * up + up_taps + down_taps - 2
    low = (total + up) // 2
    return low, total - low, low, total - low
