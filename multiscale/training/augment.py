"""Adaptive augmentation: random changes of the images that the discriminator sees, as often as it needs them.

"Training Generative Adversarial Networks with Limited Data" (Karras et al., NeurIPS 2020, "ADA"), section 2 and
appendix B, with the pipeline "bgc": pixel blitting, geometry, colour. The geometry of an image is one affine map and
its colour one matrix; both are drawn on the CPU in float64 and applied to the whole batch at once. Everything is
differentiable to any order with respect to the images.

Shapes: B batch, C channels (3, or 1 for grey), N image side in pixels. Geometric maps [B, 3, 3] take input to output
positions in pixels from the image's centre, x to the right, y down; colour maps [B, 4, 4] act on (r, g, b, 1).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erfinv

from multiscale.config import RunConfig
from torch_utils.devices import Arriving, full_precision, to_device
from torch_utils.distributed import Process, average
from torch_utils.ops.upfirdn2d import upfirdn2d

Floats: TypeAlias = NDArray[np.float64]


class RandomSource(Protocol):
    """What the draws come from: these methods of ``np.random.Generator``. The last axis of what they give is the images."""

    def integers(self, below: int, /, *, size: int) -> Any:
        """0 ... below - 1, int64."""

    def uniform(self, low: float, high: float, *, size: tuple[int, ...]) -> Any:
        """From low to high, float64."""

    def standard_normal(self, size: tuple[int, ...], /) -> Any:
        """Of mean 0 and deviation 1, float64."""

    def random(self, size: int, /) -> Any:
        """From 0 to 1, float64."""


# Decomposition low-pass filter of the least asymmetric Daubechies wavelet with 6 vanishing moments (Daubechies 1992,
# "Ten Lectures on Wavelets", section 8.1.1). It is orthonormal to its shifts by two, so that upsampling and
# downsampling with it give back the image.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
TAPS = len(SYM6)
REACH = TAPS // 2 - 1  # samples of the doubled image, before its first and after its last, that the filter down takes


@dataclass(frozen=True)
class Drawn:
    """What a batch of images [B, C, N, N] is to undergo: arguments of :func:`apply`."""

    pad: tuple[int, int]
    """Pixels that the images are continued by left and right, above and below."""
    tensors: tuple[torch.Tensor, ...]
    """Colour matrices [B, C, C + 1] and, if the geometry of any image changes, positions [B, 2, 3]."""


class AugmentPipe(torch.nn.Module):
    """Augment each image of a batch by operations that are each applied with probability ``p``.

    The defaults are the paper's "bgc" pipeline; False or 0 leaves an operation out. ``p`` is a buffer: set it with
    ``pipe.p.fill_(...)`` or let ``AdaController`` do so. Leave the module on the CPU: then no call waits for a device.

    Args:
        p: Initial probability of each operation, 0 to 1.
        groups: Kinds of images with a probability each: ``p`` is [groups]; 0: one for all, ``p`` is a scalar.
        flip: Mirror left and right, with even odds.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        integer_shift: Largest shift by whole pixels, as a part of the side.
        scale_log2_std: Standard deviation of log2 of the isotropic scale.
        rotation: Largest rotation, as a part of 180 degrees; before and after the anisotropic scale.
        anisotropy_log2_std: Standard deviation of log2 a for the anisotropic scale (a, 1/a).
        fractional_shift_std: Standard deviation of the shift, as a part of the side.
        brightness_std: Standard deviation of what is added to all channels.
        contrast_log2_std: Standard deviation of log2 of the factor of all channels.
        luma_flip: Reverse the luma and keep the chroma, with even odds.
        hue: Largest rotation of the colours about the grey axis, as a part of 180 degrees.
        saturation_log2_std: Standard deviation of log2 of the factor of the chroma.
    """

    p: torch.Tensor

    def __init__(
        self,
        *,
        p: float = 0.0,
        groups: int = 0,
        flip: bool = True,
        quarter_turns: bool = True,
        integer_shift: float = 0.125,
        scale_log2_std: float = 0.2,
        rotation: float = 1.0,
        anisotropy_log2_std: float = 0.2,
        fractional_shift_std: float = 0.125,
        brightness_std: float = 0.2,
        contrast_log2_std: float = 0.5,
        luma_flip: bool = True,
        hue: float = 1.0,
        saturation_log2_std: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}, but a probability is from 0 to 1.")
        self.register_buffer("p", torch.full([groups] if groups else [], float(p)))
        self.flip = flip
        self.quarter_turns = quarter_turns
        self.integer_shift = integer_shift
        self.scale_log2_std = scale_log2_std
        self.rotation = rotation
        self.anisotropy_log2_std = anisotropy_log2_std
        self.fractional_shift_std = fractional_shift_std
        self.brightness_std = brightness_std
        self.contrast_log2_std = contrast_log2_std
        self.luma_flip = luma_flip
        self.hue = hue
        self.saturation_log2_std = saturation_log2_std

    def forward(
        self,
        images: torch.Tensor,
        percentile: float | None = None,
        generator: RandomSource | None = None,
        group: NDArray[np.integer[Any]] | None = None,
    ) -> torch.Tensor:
        """Augment a batch: see :meth:`draw`; half precision is computed and returned in float32.

        Returns:
            [B, C, N, N].
        """
        drawn = self.draw(images, percentile, generator, group)
        return apply(images, drawn.pad, *drawn.tensors)

    def draw(
        self,
        images: torch.Tensor,
        percentile: float | None = None,
        generator: RandomSource | None = None,
        group: NDArray[np.integer[Any]] | None = None,
        pad_step: int = 1,
    ) -> Drawn:
        """Draw what each image of a batch undergoes.

        Args:
            images: [B, C, N, N], C 1 or 3, floating point.
            percentile: None draws at random; a number in (0, 1) applies every operation, whatever ``p`` is, with each
                draw replaced by that percentile (see ``Draws``): a mode for tests.
            generator: Source of randomness, such as ``torch_utils.random.stream(...)`` or a ``BatchRows`` of one; None: a
                fresh, unseeded one. How many numbers it gives depends on B only.
            group: Which of the groups each image belongs to, [B]; needed if there are any.
            pad_step: 1 pads as far as is needed; more, alike on all sides and by multiples of it, so that many batches
                are padded alike.

        Raises:
            ValueError: the images are neither grey nor RGB, or not square, percentile is out of range, or ``group`` is missing.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
            raise ValueError(f"Images of shape {list(images.shape)} cannot be augmented; [B, 1 or 3, N, N] is needed.")
        if percentile is not None and not 0 < percentile < 1:
            raise ValueError(f"percentile is {percentile}, but it must be greater than 0 and less than 1.")
        if self.p.ndim and group is None:
            raise ValueError(
                f"There are {len(self.p)} groups, each with a p of its own: group must say which each image belongs to."
            )
        p: float | Floats = float(self.p) if self.p.ndim == 0 else self.p.double().numpy()[group]
        draws = Draws(len(images), p, percentile, generator or np.random.default_rng())
        geometry, colour = self.draw_geometry(draws, images.shape[-1]), self.draw_colour(draws)
        dtype = torch.promote_types(images.dtype, torch.float32)
        pad, positions = warp_positions(geometry, images.shape[-1], pad_step)
        values = [colour_matrices(colour, images.shape[1]), *([] if positions is None else [positions])]
        return Drawn(pad, tuple(to_device(torch.from_numpy(v).to(dtype), images.device) for v in values))

    def draw_geometry(self, draws: Draws, size: int) -> Floats:
        """Affine maps [B, 3, 3]; the operation drawn first acts first (ADA appendix B)."""
        half_turn = math.pi * self.rotation
        rotation_p = 1 - np.sqrt(1 - draws.p)  # the chance that at least one of the two rotations is applied is p
        flips, turns = draws.whole_number(2), draws.whole_number(4)
        return chain(
            diagonal(draws.count, 1.0 - 2 * flips * self.flip, 1.0),
            rotation(turns * self.quarter_turns * (-math.pi / 2)),
            translation(*np.round(draws.uniform(self.integer_shift, 2) * size)),
            scaling(2 ** draws.normal(self.scale_log2_std)),
            rotation(-draws.uniform(half_turn, probability=rotation_p)),
            anisotropic_scaling(2 ** draws.normal(self.anisotropy_log2_std)),
            rotation(-draws.uniform(half_turn, probability=rotation_p, percentile=0.5)),
            translation(*(draws.normal(self.fractional_shift_std, 2) * size)),
        )

    def draw_colour(self, draws: Draws) -> Floats:
        """Colour maps [B, 4, 4]; the operation drawn first acts first (ADA appendix B)."""
        brightness, contrast = draws.normal(self.brightness_std), 2 ** draws.normal(self.contrast_log2_std)
        flips, turns = draws.whole_number(2), draws.uniform(math.pi * self.hue)
        saturation = 2 ** draws.normal(self.saturation_log2_std)
        return chain(
            translation(brightness, brightness, brightness),
            diagonal(draws.count, contrast, contrast, contrast),
            luma_flip(flips * self.luma_flip),
            hue_rotation(turns),
            chroma_scaling(saturation),
        )


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch, 0 where an operation is not applied to an image.

    With a percentile q every operation is applied, and each number is the same for all images: floor(n q) for a whole
    number below n, (2q - 1) of the limit for a uniform one, erfinv(2q - 1) deviations for a normal one.
    """

    count: int
    p: float | Floats
    """Of all images, or of each [B]."""
    percentile: float | None
    generator: RandomSource

    def whole_number(self, below: int) -> Floats:
        """0 ... below - 1 [B], equally likely."""
        values = self.generator.integers(below, size=self.count).astype(np.float64)
        return self._gated(values, math.floor(below * self._percentile), self.p)

    def uniform(
        self, limit: float, *columns: int, probability: float | Floats | None = None, percentile: float | None = None
    ) -> Floats:
        """Uniform from -limit to limit [*columns, B]; with a probability or a percentile of its own."""
        values = self.generator.uniform(-1, 1, size=(*columns, self.count)) * limit
        q = self._percentile if percentile is None else percentile
        return self._gated(values, (2 * q - 1) * limit, self.p if probability is None else probability)

    def normal(self, std: float, *columns: int) -> Floats:
        """Normal of mean 0 [*columns, B]."""
        values = self.generator.standard_normal((*columns, self.count)) * std
        return self._gated(values, erfinv(2 * self._percentile - 1) * std, self.p)

    @property
    def _percentile(self) -> float:
        return 0.5 if self.percentile is None else self.percentile

    def _gated(self, values: Floats, at_percentile: float, probability: float | Floats) -> Floats:
        applied = self.generator.random(self.count) < probability
        if self.percentile is not None:
            return np.full_like(values, at_percentile)
        return np.where(applied, values, 0.0)


def chain(*maps: Floats) -> Floats:
    """One map [B, n, n] that does the given ones in turn, the first first."""
    result = maps[0]
    for following in maps[1:]:
        result = following @ result
    return result


def identity(axes: int, count: int) -> Floats:
    """Maps that change nothing (homogeneous): [count, axes + 1, axes + 1]."""
    return np.repeat(np.eye(axes + 1)[None], count, axis=0)


def diagonal(count: int, *factors: Floats | float) -> Floats:
    """Scale each axis by its own factor, a number or [count] (homogeneous)."""
    maps = identity(len(factors), count)
    for axis, factor in enumerate(factors):
        maps[:, axis, axis] = factor
    return maps


def scaling(factor: Floats) -> Floats:
    """Scale the plane by a factor [B]."""
    return diagonal(len(factor), factor, factor)


def anisotropic_scaling(factor: Floats) -> Floats:
    """Scale x by a factor [B] and y by its inverse."""
    return diagonal(len(factor), factor, 1 / factor)


def translation(*offsets: Floats) -> Floats:
    """Add an offset [B] to each axis (homogeneous)."""
    maps = identity(len(offsets), len(offsets[0]))
    for axis, offset in enumerate(offsets):
        maps[:, axis, -1] = offset
    return maps


def rotation(angle: Floats) -> Floats:
    """Turn the plane by an angle [B] in radians, from x towards y."""
    maps = identity(2, len(angle))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(angle)
    maps[:, 1, 0] = np.sin(angle)
    maps[:, 0, 1] = -np.sin(angle)
    return maps


# Luma is the part of a colour along the grey axis, chroma the rest; both as projections of (r, g, b, 1).
LUMA = np.pad(np.full((3, 3), 1 / 3), (0, 1))
CHROMA = np.diag([1.0, 1, 1, 0]) - LUMA
CONSTANT = np.diag([0.0, 0, 0, 1])
GREY_AXIS_CROSS = np.pad(np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3), (0, 1))  # axis x colour


def luma_flip(flips: Floats) -> Floats:
    """Reverse the luma where flips [B] is 1."""
    return CONSTANT + CHROMA + (1 - 2 * flips)[:, None, None] * LUMA


def hue_rotation(angle: Floats) -> Floats:
    """Turn the chroma about the grey axis by an angle [B] in radians (Rodrigues' formula)."""
    angle = angle[:, None, None]
    return CONSTANT + LUMA + np.cos(angle) * CHROMA + np.sin(angle) * GREY_AXIS_CROSS


def chroma_scaling(factor: Floats) -> Floats:
    """Scale the chroma by a factor [B]."""
    return CONSTANT + LUMA + factor[:, None, None] * CHROMA


def apply(
    images: torch.Tensor, pad: tuple[int, int], colour: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """Images [B, C, N, N] after what was ``Drawn`` for them; half precision in float32. Differentiable to any order."""
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    with full_precision(images.device):
        return transform_colours(images if positions is None else warp(images, pad, positions), colour)


def colour_matrices(colour: Floats, channels: int) -> Floats:
    """Colour maps [B, 4, 4] of images of 3 channels or 1: [B, C, C + 1]; grey ones are luma without chroma."""
    if channels == 1:
        return np.stack([colour[:, :3, :3].sum(axis=(1, 2)) / 3, colour[:, :3, 3].mean(axis=1)], axis=-1)[:, None]
    return colour[:, :channels]


def transform_colours(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply colour matrices [B, C, C + 1] to images [B, C, N, N]."""
    pixels = matrix[..., :-1] @ images.flatten(2) + matrix[..., -1:]  # [B, C, N*N]
    return pixels.view_as(images)


def warp_positions(geometry: Floats, size: int, pad_step: int = 1) -> tuple[tuple[int, int], Floats | None]:
    """What :func:`warp` needs for affine maps [B, 3, 3] of images of a size: padding, and positions [B, 2, 3].

    The padding is in pixels (x, y): as large as is needed, or with a ``pad_step`` above 1 alike and a multiple of that.
    Positions are in samples of the padded, doubled image, of output positions in pixels from the centre; None if every
    map is the identity.
    """
    if np.array_equal(geometry, np.broadcast_to(np.eye(3), geometry.shape)):
        return (0, 0), None
    to_input = np.linalg.inv(geometry)[:, :2].astype(np.float64)  # [B, 2, 3]
    farthest = (size + REACH) / 2  # sample from the centre
    extent = np.abs(to_input) @ np.array([farthest, farthest, 1.0])  # [B, 2]
    pad_x, pad_y = (max(math.ceil(extent[:, axis].max() - size / 2) + TAPS // 4 + 1, 0) for axis in (0, 1))
    if pad_step > 1:
        pad_x = pad_y = math.ceil(max(pad_x, pad_y) / pad_step) * pad_step
    to_input[:, :, 2] += [(size - 1) / 2 + pad_x, (size - 1) / 2 + pad_y]  # from the first pixel of the padded image
    return (pad_x, pad_y), 2 * to_input


@functools.lru_cache
def wavelet(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """SYM6 with a sum of 1: a constant that recordings of :func:`warp` refer to."""
    with torch.inference_mode(False):
        taps = torch.tensor(SYM6, dtype=dtype)
        return to_device(taps / taps.sum(), device)


def warp(images: torch.Tensor, pad: tuple[int, int], positions: torch.Tensor) -> torch.Tensor:
    """Sample images [B, C, N, N], mirrored beyond their borders, at :func:`warp_positions`.

    Twofold upsampling, bilinear sampling and twofold downsampling, with one orthonormal filter there and back (ADA
    appendix B): shifts by whole pixels are exact.
    """
    size, taps = images.shape[-1], wavelet(images.dtype, images.device)
    images = mirror_pad(images, *pad)
    images = upfirdn2d(images, taps, up=2, padding=[REACH + 1, REACH, REACH + 1, REACH], gain=4)
    maps = positions[..., None, None]  # [B, 2, 3, 1, 1]
    # The largest tap lies on the pixel: twofold sample n belongs to pixel position n/2, before and after the sampling.
    along = torch.arange(-REACH, 2 * size + REACH, dtype=images.dtype, device=images.device) / 2 - (size - 1) / 2  # [S]
    x, y = (maps[:, :, 0] * along + maps[:, :, 1] * along[:, None] + maps[:, :, 2]).unbind(1)  # [B, S, S] each
    return upfirdn2d(sample_bilinear(images, x, y), taps, down=2, flip_filter=True)


def mirror_pad(images: torch.Tensor, pad_x: int, pad_y: int) -> torch.Tensor:
    """Continue images by any number of pixels on each side, mirrored about the centres of their border pixels."""
    for axis, pad in ((3, pad_x), (2, pad_y)):
        size = images.shape[axis]
        index = torch.arange(-pad, size + pad, device=images.device) % (2 * size - 2)
        images = images.index_select(axis, torch.minimum(index, 2 * size - 2 - index))
    return images


def sample_bilinear(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values [B, C, S, T] of images [B, C, H, W] at positions x, y [B, S, T] in pixels from the first one's centre.

    Built on ``gather``, unlike ``grid_sample``, so that gradients of every order exist on every device. Positions
    beyond the border take the border's value; there is no gradient with respect to positions.
    """
    channels, height, width = images.shape[1:]
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.floor().clamp(max=width - 2), y.floor().clamp(max=height - 2)
    right_part, lower_part = (x - left)[:, None], (y - top)[:, None]  # [B, 1, S, T]
    first = (top.long() * width + left.long()).flatten(1)[:, None].expand(-1, channels, -1)  # [B, C, S*T]
    flat = images.flatten(2)

    def neighbour(offset: int) -> torch.Tensor:
        return flat.gather(2, first + offset).unflatten(2, x.shape[1:])

    upper = torch.lerp(neighbour(0), neighbour(1), right_part)
    lower = torch.lerp(neighbour(width), neighbour(width + 1), right_part)
    return torch.lerp(upper, lower, lower_part)


def adjusted_probability(p: float, sign_mean: float, *, target: float, images: float, images_to_one: float) -> float:
    """ADA section 3.1: p goes up by images/images_to_one when E[sign D(x)] is above the target, down when below."""
    return min(max(p + float(np.sign(sign_mean - target)) * images / images_to_one, 0.0), 1.0)


class AdaController:
    """Steers ``p`` of a pipeline so that the discriminator's sign on real images has the mean ``target``.

    The host does not wait for the device: the copy of an interval's observations starts when the interval ends, and ``p`` is
    adjusted one step later, on every kind of device alike.

    Args:
        target: Wanted E[sign D(x)] over real images; more is taken as overfitting.
        interval: Steps between adjustments.
        images_to_one: Real images over which p can go from 0 to 1.
        groups: As of the pipeline: each has a mean of its own, and its p moves by the images of the group that were seen, as
            fast as one p for all where groups are seen alike often.
    """

    def __init__(
        self, *, target: float = 0.6, interval: int = 4, images_to_one: float = 500_000, groups: int = 0
    ) -> None:
        self.target = target
        self.interval = interval
        self.images_to_one = images_to_one
        self.groups = groups
        self.steps = 0
        self._signs = self._nothing()  # sums of the signs of real logits, their numbers; in this interval
        self._arriving: Arriving | None = None  # the same of the interval before, over all processes, until it is used

    def _nothing(self) -> torch.Tensor:
        return torch.zeros(2, max(self.groups, 1))  # [2, groups or 1]

    def observe(self, real_logits: torch.Tensor, members: torch.Tensor | None = None) -> None:
        """Take note of D's logits for augmented real images; does not wait for the device.

        Args:
            real_logits: Any shape, NaN left out; [B] or [B, 1] if there are groups. Of pairs, real less generated.
            members: Float [B, groups] with a 1 where each image belongs.
        """
        logits = real_logits.detach().flatten()
        known = ~logits.isnan()
        signs = torch.stack([torch.where(known, logits.sign(), 0).float(), known.float()])  # [2, B]
        if self._signs.device != signs.device:
            self._signs = to_device(self._signs, signs.device)
        self._signs = self._signs + (signs @ members if members is not None else signs.sum(dim=1, keepdim=True))

    def step(self, pipe: AugmentPipe, batch: int, process: Process | None = None) -> None:
        """End a training step: adjust ``pipe.p`` if an interval ended with the step before, alike on all processes.

        Args:
            pipe: Its buffer ``p``, on the CPU, is changed in place.
            batch: Real images that a step takes, on all processes together.
            process: This process among all, whose observations are averaged; None: it is alone.
        """
        if self._arriving is not None:
            self._adjust(pipe, batch, *self._arriving.read().tolist())
            self._arriving = None
        self.steps += 1
        if self.steps % self.interval == 0:
            if process is not None:
                average([self._signs], process)
            self._arriving = Arriving(self._signs)
            self._signs = torch.zeros_like(self._signs)

    def _adjust(self, pipe: AugmentPipe, batch: int, totals: list[float], numbers: list[float]) -> None:
        """Move each ``p`` by one interval's images, given the sums of the signs and their numbers."""
        images = batch * self.interval
        p = pipe.p.view(-1)  # of a scalar too
        for i, (total, number) in enumerate(zip(totals, numbers, strict=True)):
            if number > 0:
                p[i] = adjusted_probability(
                    float(p[i]),
                    total / number,
                    target=self.target,
                    images=images * number / sum(numbers) * len(numbers),
                    images_to_one=self.images_to_one,
                )

    def pool(self, process: Process) -> None:
        """Replace each process's sums by their mean over all processes, so that the state of one serves all."""
        average([self._signs], process)

    def state_dict(self) -> dict[str, Any]:
        """Progress since the last adjustment (waits for the device); ``p`` itself is in the pipeline's state."""
        arriving = None if self._arriving is None else self._arriving.read().tolist()
        return {"steps": self.steps, "signs": self._signs.tolist(), "arriving": arriving}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``; what has been counted of other groups than these is forgotten."""

        def counted(values: Any) -> torch.Tensor:
            signs = torch.tensor(values, dtype=torch.float32).reshape(2, -1)  # states of before: two numbers
            return signs if signs.shape == self._nothing().shape else self._nothing()

        self.steps = int(state["steps"])
        self._signs = counted(state["signs"])
        arriving = state.get("arriving")
        self._arriving = None if arriving is None else Arriving(counted(arriving))


def augmentation(config: RunConfig) -> tuple[AugmentPipe | None, AdaController | None]:
    """The pipeline of a run and its controller, as configured."""
    training = config.training
    if training.augment == "none":
        return None, None
    is_adaptive = training.augment == "ada"
    groups = config.generator.octaves if is_adaptive and training.ada_by_octave else 0
    pipe = AugmentPipe(p=training.augment_p, groups=groups)
    if not is_adaptive:
        return pipe, None
    return pipe, AdaController(target=training.ada_target, images_to_one=1000 * training.ada_kimg, groups=groups)
