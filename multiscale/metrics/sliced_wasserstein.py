"""Sliced Wasserstein distance of two sets of images, level by level of their Laplacian pyramids.

Section 5 of "Progressive Growing of GANs for Improved Quality, Stability, and Variation" (Karras et al., ICLR 2018):
small neighbourhoods of the pyramid's pixels are described by their values, and the two clouds of descriptors are
compared along random directions, where the Wasserstein distance only takes sorting. Nothing learned, no download:
the measure of choice for small runs. Coarse levels tell of large-scale structure, fine ones of texture and sharpness.

Shapes: M images, C channels, N side in pixels (a power of two), P patches of an image, D = C*7*7 values of a patch.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

Images: TypeAlias = torch.Tensor | np.ndarray

PATCH_SIDE_PX = 7
COARSEST_SIDE_PX = 16
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
CHUNK_BYTES = 64 << 20  # images whose pyramids are held at once


def sliced_wasserstein(
    real: Images,
    fake: Images,
    *,
    seed: int = 0,
    patches_per_image: int = 32,
    projections: int = 128,
) -> dict[str, float]:
    """Distance of two sets of images at each level of the Laplacian pyramid.

    The real set's mean and standard deviation of each channel normalise the descriptors of a level, of both sets: wrong
    brightness, contrast or blur count.

    Args:
        real: [M, C, N, N], uint8 in 0..255 or floating point in [-1, 1]; torch (any device) or numpy.
        fake: [M', C, N, N]; M' may differ from M.
        seed: Of the places of the patches and of the directions; equal seeds give equal results.
        patches_per_image: Descriptors that an image gives at each level.
        projections: Random directions over which the one-dimensional distances are averaged.

    Returns:
        ``{"64": ..., "32": ..., "16": ..., "mean": ...}``: the levels by their side in pixels, finest first. Levels go
        down to 16 pixels; images that are no larger have a single one.

    Raises:
        ValueError: a set is empty or not [M, C, N, N], or the two differ in C or N.
    """
    real, fake = _as_images(real, "real"), _as_images(fake, "fake")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"Images of {tuple(real.shape[1:])} cannot be compared with images of {tuple(fake.shape[1:])}."
        )
    real_levels = _descriptors(real, patches_per_image, seed)
    fake_levels = _descriptors(fake, patches_per_image, seed)
    distances: dict[str, float] = {}
    for level, side in enumerate(_level_sides(real.shape[-1])):
        x, y = real_levels[level], fake_levels[level].to(real.device)
        mean, std = _channel_statistics(x)
        y = _normalise(y, mean, std)
        x = _normalise(x, mean, std)
        directions = _unit_directions(x.shape[1], projections, seed, level).to(x)
        distances[str(side)] = float(wasserstein_1d(_project(x, directions), _project(y, directions)).mean())
    distances["mean"] = float(np.mean(list(distances.values())))
    return distances


def laplacian_pyramid(images: torch.Tensor) -> list[torch.Tensor]:
    """Levels [M, C, n, n], n = N, N/2, ... 16: each the difference to the blurred next one, the last the rest itself.

    Burt & Adelson 1983: low-pass filter [1 4 6 4 1]/16 in both directions, mirrored at the borders; halving keeps the
    even pixels. Adding up all levels, each enlarged to the size of the one before, gives the image back.
    """
    levels = []
    for _ in _level_sides(images.shape[-1])[1:]:
        smaller = _halve(images)
        levels.append(images - _enlarge(smaller))
        images = smaller
    return [*levels, images]


def wasserstein_1d(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Wasserstein-1 distance of samples x [K, n] and y [K, m] in each of K rows: mean |difference| of sorted values.

    For n != m it is the integral of |difference| of the two empirical quantile functions, which are step functions.
    """
    x, y = _sort_rows(x), _sort_rows(y)
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).abs().mean(dim=1)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # right ends of the steps, in units of 1/(n m)
    width = torch.as_tensor(np.diff(ends, prepend=0) / (n * m)).to(x)
    rank_x = torch.as_tensor((ends - 1) // m, device=x.device)
    rank_y = torch.as_tensor((ends - 1) // n, device=x.device)
    return (x[:, rank_x] - y[:, rank_y]).abs() @ width


def _sort_rows(values: torch.Tensor) -> torch.Tensor:
    if (
        values.device.type == "cpu"
    ):  # numpy's vectorised sort: ten times as fast as torch's, which keeps track of indices
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _as_images(images: Images, name: str) -> torch.Tensor:
    images = torch.as_tensor(images).detach()
    if images.ndim != 4 or images.shape[2] != images.shape[3] or 0 in images.shape:
        raise ValueError(f"The {name} images have shape {tuple(images.shape)}; [M, C, N, N] with M >= 1 is needed.")
    return images


def _level_sides(size: int) -> list[int]:
    sides = [size]
    while sides[-1] >= 2 * COARSEST_SIDE_PX and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


def _blur_matrix(size: int) -> np.ndarray:
    """[n, n]: row i holds the binomial filter about pixel i, mirrored about the border pixels."""
    matrix = np.zeros((size, size))
    pixel = np.arange(size)
    for tap, weight in zip(range(-2, 3), BINOMIAL, strict=True):
        neighbour = np.abs(pixel + tap)
        matrix[pixel, np.minimum(neighbour, 2 * (size - 1) - neighbour)] += weight
    return matrix


def _halve(images: torch.Tensor) -> torch.Tensor:
    """Blur, then keep the even pixels of both axes."""
    matrix = torch.as_tensor(_blur_matrix(images.shape[-1])[::2]).to(images)
    return matrix @ images @ matrix.mT


def _enlarge(images: torch.Tensor) -> torch.Tensor:
    """Insert zeros after each pixel of both axes, then blur with the gain that keeps the mean."""
    matrix = torch.as_tensor(2 * _blur_matrix(2 * images.shape[-1])[:, ::2]).to(images)
    return matrix @ images @ matrix.mT


def _descriptors(images: torch.Tensor, patches_per_image: int, seed: int) -> list[torch.Tensor]:
    """For each level, the descriptors [M*P, C, 7*7] of P patches at random places of each image."""
    count, size = images.shape[0], images.shape[-1]
    chunk = max(1, CHUNK_BYTES // (4 * images[0].numel()))
    places = [
        torch.as_tensor(_patch_places(count, patches_per_image, side, seed, level)).to(images.device)
        for level, side in enumerate(_level_sides(size))
    ]
    found: list[list[torch.Tensor]] = [[] for _ in places]
    for start in range(0, count, chunk):
        batch = images[start : start + chunk]
        batch = batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch.float()
        for level, pixels in enumerate(laplacian_pyramid(batch)):
            found[level].append(_cut_patches(pixels, places[level][start : start + chunk]))
    return [torch.cat(chunks) for chunks in found]


def _patch_places(count: int, patches: int, side: int, seed: int, level: int) -> np.ndarray:
    """Upper left corners [M, P, 2] (y, x), uniform; image i has the same places in every set of more than i images."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, level, 0]))
    return generator.integers(0, side - min(PATCH_SIDE_PX, side) + 1, size=(count, patches, 2))


def _cut_patches(pixels: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """Patches of pixels [m, C, n, n] at corners [m, P, 2] as [m*P, C, 7*7]."""
    m, c, n, _ = pixels.shape
    step = torch.arange(min(PATCH_SIDE_PX, n), device=pixels.device)
    y = corners[:, :, 0, None, None] + step[:, None]  # [m, P, 7, 1]
    x = corners[:, :, 1, None, None] + step  # [m, P, 1, 7]
    flat = (y * n + x).reshape(m, 1, -1).expand(-1, c, -1)  # [m, C, P*7*7]
    patches = pixels.reshape(m, c, n * n).gather(2, flat).reshape(m, c, corners.shape[1], -1)
    return patches.transpose(1, 2).reshape(m * corners.shape[1], c, -1)


def _channel_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [C] over all descriptors [n, C, 7*7]; a constant channel is left in its own units."""
    mean = patches.mean(dim=(0, 2))
    std = patches.std(dim=(0, 2), correction=0)
    return mean, torch.where(std > 1e-6, std, torch.ones_like(std))


def _normalise(patches: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Descriptors [n, C, 7*7] as normalised vectors [n, D]."""
    return ((patches - mean[:, None]) / std[:, None]).flatten(1)


def _unit_directions(dimension: int, projections: int, seed: int, level: int) -> torch.Tensor:
    """Directions [D, K] uniform on the unit sphere."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, level, 1]))
    directions = generator.standard_normal((dimension, projections))
    return torch.from_numpy(directions / np.linalg.norm(directions, axis=0))


def _project(descriptors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Coordinates [K, n] of descriptors [n, D] along directions [D, K]."""
    return directions.mT @ descriptors.mT
