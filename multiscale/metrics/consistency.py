"""Coherence of one world: between its scales, and under shifts by parts of a pixel.

Shapes: B worlds, C channels, N side of a view in pixels, S octaves; levels 0 ... S are the zooms 1, 2, 4, ... 2^S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from multiscale.metrics.samples import Shape, Views
from multiscale.view import unchecked_transform
from torch_utils.devices import full_precision
from torch_utils.random import stream

PEAK = 2.0
"""Range of images in [-1, 1]."""
LEAST_ERROR = 1e-20
"""Mean square below which PSNR is not larger any more: 206 dB."""
SSIM_WINDOW_PX = 7
SSIM_LEAST_SIDE_PX = 8
"""Below this side structural similarity is not given."""


def psnr(mean_square: np.ndarray | float) -> np.ndarray:
    """Peak signal to noise ratio in dB of images in [-1, 1] that differ by this mean square."""
    return 10 * np.log10(PEAK**2 / np.maximum(mean_square, LEAST_ERROR))


def nested_corners(seed: int, index: int, shape: Shape) -> list[tuple[float, float]]:
    """Upper left corners of the views of levels 0 ... S of one world, each inside the one before, at random.

    Each view begins at a corner of a pixel of all coarser views that it is compared with, so that every coarse pixel is the
    average of whole fine ones.
    """
    rng = stream(seed, "measure consistency places", index)
    corner = np.array([-0.5, -0.5])
    corners = [(-0.5, -0.5)]
    for level in range(1, shape.octaves + 1):
        coarsest = max(level - int(math.log2(shape.resolution)), 0)  # the view is one of its pixels at least
        unit = 2.0**-coarsest / shape.resolution
        room = round(2.0**-level / unit)  # the view before is twice as wide
        corner = corner + rng.integers(0, room + 1, size=2) * unit
        corners.append((float(corner[0]), float(corner[1])))
    return corners


@torch.no_grad()
def scale_errors(views: Views, shape: Shape, seed: int, indices: Sequence[int], device: torch.device) -> np.ndarray:
    """How views reduced by 2, 4, ... 2^S differ from the coarser views of the same world and place.

    Args:
        views: The generator, on ``device``.
        shape: Of the model.
        seed: Of worlds and places.
        indices: Which worlds, [B].
        device: Where the generator is.

    Returns:
        float64 [B, S + 1, S + 1, 3]: mean square, mean |difference| and structural similarity of the view of the first
        level, reduced, against that part of the view of the second; NaN where the first is not the finer one, where a
        view would be less than a pixel, and (similarity) where it is less than 8.
    """
    count, size = shape.octaves + 1, shape.resolution
    z = torch.from_numpy(np.stack([stream(seed, "measure worlds", i).standard_normal(shape.z_dim) for i in indices]))
    corners = np.array([nested_corners(seed, i, shape) for i in indices])  # [B, S + 1, 2]
    images = []
    for level in range(count):
        zoom = torch.full((len(indices),), 2.0**level, dtype=torch.float64)
        centre = torch.from_numpy(corners[:, level] + 2.0**-level / 2)
        images.append(views(z.float().to(device), unchecked_transform(zoom, centre).to(_place(device))).double().cpu())
    errors = np.full((len(indices), count, count, 3), np.nan)
    for fine in range(1, count):
        for coarse in range(max(fine - int(math.log2(size)), 0), fine):
            factor = 2 ** (fine - coarse)
            reduced = F.avg_pool2d(images[fine], factor)
            side = size // factor
            offset = np.rint((corners[:, fine] - corners[:, coarse]) * size * 2**coarse).astype(int)
            parts = [image[:, y : y + side, x : x + side] for image, (x, y) in zip(images[coarse], offset, strict=True)]
            target = torch.stack(parts)
            difference = reduced - target
            errors[:, fine, coarse, 0] = difference.square().mean(dim=(1, 2, 3)).numpy()
            errors[:, fine, coarse, 1] = difference.abs().mean(dim=(1, 2, 3)).numpy()
            if side >= SSIM_LEAST_SIDE_PX:
                errors[:, fine, coarse, 2] = structural_similarity(reduced, target).numpy()
    return errors


def structural_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004) of images [B, C, n, n] in [-1, 1], n >= 7: [B], the mean over uniform 7 x 7 windows."""
    samples = SSIM_WINDOW_PX**2
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, SSIM_WINDOW_PX, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    unbiased = samples / (samples - 1)
    variance_a = unbiased * (mean(a * a) - mean_a.square())
    variance_b = unbiased * (mean(b * b) - mean_b.square())
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))
    return similarity.mean(dim=(1, 2, 3))


def shift_margin(resolution: int) -> int:
    """Pixels at each border that a shift by parts of a pixel leaves out: half of its filter's taps."""
    return min(resolution // 4, 16)


def shifted(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Images moved by parts of a pixel, by sinc interpolation under a Kaiser window, without the borders.

    Args:
        images: [B, C, N, N].
        shift: [B, 2], (x, y) in pixels, at most 1/2 in size: what stood at p comes to stand at p + shift.

    Returns:
        float64 [B, C, N - 2m, N - 2m], m = ``shift_margin(N)``.
    """
    size, margin = images.shape[-1], shift_margin(images.shape[-1])
    inner = size - 2 * margin
    taps = torch.arange(-margin, margin + 1, dtype=torch.float64)
    matrices = []
    for axis in (0, 1):
        distance = taps + shift[:, axis, None].double()  # [B, taps]
        window = torch.special.i0(6 * (1 - (distance / (margin + 0.5)).square()).clamp(min=0).sqrt())
        weights = torch.sinc(distance) * window
        weights = weights / weights.sum(dim=1, keepdim=True)
        matrix = torch.zeros(len(images), inner, size, dtype=torch.float64)
        for j in range(2 * margin + 1):
            row = torch.arange(inner)
            matrix[:, row, row + j] = weights[:, j, None]
        matrices.append(matrix[:, None])
    across, down = matrices
    return down @ images.double().cpu() @ across.mT


@torch.no_grad()
def shift_errors(
    views: Views, z: torch.Tensor, transform: torch.Tensor, seeds: Sequence[np.random.Generator], device: torch.device
) -> np.ndarray:
    """Mean square difference of a view moved by parts of a pixel and its image moved likewise, [B].

    EQ-T of Karras et al. 2021 (equation 3) is its PSNR over many samples; here the shift is below a pixel.

    Args:
        views: The generator, on ``device``.
        z: Latents [B, z_dim].
        transform: Views [B, 3, 3], on the CPU.
        seeds: One source of randomness a sample.
        device: Where the generator is.
    """
    shift = torch.from_numpy(np.stack([rng.uniform(-0.5, 0.5, size=2) for rng in seeds]))
    with full_precision(device):
        here = views(z.to(device), transform.to(_place(device)))
        size = here.shape[-1]
        moved_view = transform.clone()
        moved_view[:, :2, 2] -= shift / size * transform[:, 0, 0, None]  # the window goes back, so the image goes on
        there = views(z.to(device), moved_view.to(_place(device)))
    margin = shift_margin(size)
    expected = shifted(here, shift)
    found = there.double().cpu()[:, :, margin : size - margin, margin : size - margin]
    return (found - expected).square().mean(dim=(1, 2, 3)).numpy()


def _place(device: torch.device) -> torch.device:
    """Where transforms are kept beside a device: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
