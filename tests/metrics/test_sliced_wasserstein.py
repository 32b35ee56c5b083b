"""Sliced Wasserstein distance: against a plain numpy twin, and as a measure that orders what it should order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from multiscale.metrics.sliced_wasserstein import (
    _patch_places,
    _unit_directions,
    laplacian_pyramid,
    sliced_wasserstein,
    wasserstein_1d,
)

TAPS = np.array([1.0, 4, 6, 4, 1]) / 16


def smooth_images(count: int, size: int, seed: int, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, channels, size, size))
    fine = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
    coarse = ndimage.gaussian_filter(noise, (0, 0, 4, 4))
    return (np.clip(fine + 4 * coarse, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def numpy_pyramid(image: np.ndarray) -> list[np.ndarray]:
    def blur(plane: np.ndarray, gain: float) -> np.ndarray:
        for axis in (0, 1):
            plane = gain * ndimage.correlate1d(plane, TAPS, axis=axis, mode="mirror")
        return plane

    levels = []
    while image.shape[-1] > 16:
        smaller = np.stack([blur(plane, 1)[::2, ::2] for plane in image])
        stuffed = np.zeros_like(image)
        stuffed[:, ::2, ::2] = smaller
        levels.append(image - np.stack([blur(plane, 2) for plane in stuffed]))
        image = smaller
    return [*levels, image]


def numpy_distance(real: np.ndarray, fake: np.ndarray, patches: int, projections: int, seed: int) -> list[float]:
    """The same quantity with loops, float64 and scipy's Wasserstein distance."""

    def patches_of(images: np.ndarray, level: int) -> np.ndarray:
        pyramid = [numpy_pyramid(image / 127.5 - 1)[level] for image in images]
        places = _patch_places(len(images), patches, pyramid[0].shape[-1], seed, level)
        found = [p[:, y : y + 7, x : x + 7] for p, corners in zip(pyramid, places, strict=True) for y, x in corners]
        return np.stack(found)

    def normalise(stack: np.ndarray, by: np.ndarray) -> np.ndarray:
        mean, std = by.mean((0, 2, 3), keepdims=True), by.std((0, 2, 3), keepdims=True)
        return ((stack - mean) / std).reshape(len(stack), -1)

    distances = []
    for level in range(len(numpy_pyramid(real[0] / 1.0))):
        x, y = patches_of(real, level), patches_of(fake, level)
        x, y = normalise(x, x), normalise(y, x)
        directions = _unit_directions(x.shape[1], projections, seed, level).numpy().T
        distances.append(np.mean([stats.wasserstein_distance(x @ d, y @ d) for d in directions]))
    return distances


@pytest.mark.parametrize("counts", [(6, 6), (6, 4)])
def test_against_plain_numpy(counts: tuple[int, int]) -> None:
    real, fake = smooth_images(counts[0], 64, seed=0), 255 - smooth_images(counts[1], 64, seed=1) // 2
    ours = sliced_wasserstein(real, fake, seed=5, patches_per_image=9, projections=11)
    assert list(ours) == ["64", "32", "16", "mean"]
    expected = numpy_distance(real, fake, 9, 11, seed=5)
    np.testing.assert_allclose([ours["64"], ours["32"], ours["16"]], expected, rtol=1e-4)
    assert ours["mean"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_directions_have_unit_length() -> None:
    torch.testing.assert_close(_unit_directions(147, 8, 0, 0).norm(dim=0), torch.ones(8, dtype=torch.float64))


def test_pyramid_adds_up_to_the_image() -> None:
    image = torch.from_numpy(smooth_images(2, 64, seed=2)).double()
    fine, middle, coarse = laplacian_pyramid(image)
    assert [level.shape[-1] for level in (fine, middle, coarse)] == [64, 32, 16]
    reference = numpy_pyramid(image[1].numpy())
    for level, expected in zip((fine, middle, coarse), reference, strict=True):
        np.testing.assert_allclose(level[1], expected, atol=1e-9)
    assert laplacian_pyramid(torch.full((1, 1, 64, 64), 3.0))[0].abs().max() < 1e-5


def test_one_dimensional_distance_with_unequal_counts_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m in [(7, 7), (6, 4), (1, 5), (13, 29)]:
        x = torch.randn(3, n, generator=generator, dtype=torch.float64)
        y = torch.randn(3, m, generator=generator, dtype=torch.float64) + 0.5
        expected = [stats.wasserstein_distance(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
        np.testing.assert_allclose(wasserstein_1d(x, y), expected, rtol=1e-12)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_identical_sets_have_distance_zero(size: int, channels: int) -> None:
    images = smooth_images(5, size, seed=0, channels=channels)
    levels = {8: ["8"], 16: ["16"], 32: ["32", "16"]}[size]
    assert sliced_wasserstein(images, images) == dict.fromkeys([*levels, "mean"], 0.0)


def test_the_same_seed_gives_the_same_figure_and_bytes_and_floats_agree() -> None:
    real, fake = smooth_images(8, 32, seed=0), smooth_images(8, 32, seed=1)
    first = sliced_wasserstein(real, fake, seed=1)
    assert first == sliced_wasserstein(real, fake, seed=1)
    assert first != sliced_wasserstein(real, fake, seed=2)
    as_float = sliced_wasserstein(torch.from_numpy(real) / 127.5 - 1, torch.from_numpy(fake) / 127.5 - 1, seed=1)
    assert first == pytest.approx(as_float, rel=1e-5)


def test_grows_with_noise_and_with_blur() -> None:
    real, other = (smooth_images(64, 32, seed) / 127.5 - 1 for seed in (0, 1))
    noise = np.random.default_rng(2).normal(size=other.shape)
    by_noise = [other + amount * noise for amount in (0, 0.1, 0.3, 1)]
    by_blur = [other, *(ndimage.gaussian_filter(other, (0, 0, sigma, sigma)) for sigma in (0.7, 1.5, 3))]
    for series in (by_noise, by_blur):
        distances = [sliced_wasserstein(real, fake)["mean"] for fake in series]
        assert distances == sorted(distances)
        assert distances[-1] > 3 * distances[0]


def test_statistics_of_the_real_set_see_contrast() -> None:
    real = smooth_images(16, 32, seed=0) / 127.5 - 1
    assert sliced_wasserstein(real, real * 0.5 + 0.2)["mean"] > 0.2


def test_constant_images_give_a_finite_distance() -> None:
    real, fake = smooth_images(4, 32, seed=0), np.full((4, 3, 32, 32), 90, np.uint8)
    assert np.isfinite(list(sliced_wasserstein(real, fake).values())).all()


def test_images_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        sliced_wasserstein(np.zeros((1, 3, 16, 16)), np.zeros((1, 1, 16, 16)))
    with pytest.raises(ValueError, match="fake images have shape"):
        sliced_wasserstein(np.zeros((1, 3, 16, 16)), np.zeros((0, 3, 16, 16)))
