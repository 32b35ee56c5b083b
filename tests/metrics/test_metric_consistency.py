"""Coherence of scales: perfect for an analytic world, and lower the less coherent the world is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as reference_similarity

from multiscale.metrics.consistency import (
    nested_corners,
    psnr,
    scale_errors,
    shift_errors,
    shift_margin,
    shifted,
    structural_similarity,
)
from multiscale.metrics.samples import Shape
from multiscale.view import unchecked_transform

CPU = torch.device("cpu")
SHAPE = Shape(resolution=16, channels=3, octaves=4, z_dim=4)


class AnalyticWorld:
    """Waves of the world, averaged over each pixel in closed form; a pixel of a coarse view is the mean of the fine ones.

    ``drift`` turns the phases of the waves with the zoom: a world that changes as one zooms in.
    """

    def __init__(self, size: int = 16, drift: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        self.size, self.drift, self.dtype = size, drift, dtype
        rng = np.random.default_rng(0)
        self.omega = torch.from_numpy(rng.normal(size=(12, 2)) * 2.0 ** rng.uniform(0, 6, size=(12, 1)))

    def __call__(self, z: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
        pitch = transform[:, 0, 0] / self.size
        place = ((torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size - 0.5) * transform[:, 0, 0, None]
        x, y = (place + transform[:, axis, 2, None] for axis in (0, 1))  # [B, N] each
        turn = 2 * torch.pi * self.omega
        damping = torch.sinc(self.omega[:, 0] * pitch[:, None]) * torch.sinc(self.omega[:, 1] * pitch[:, None])
        phase = turn[:, 0, None, None] * x[:, None, None] + turn[:, 1, None, None] * y[:, None, :, None]
        phase = phase + z[:, :1, None, None] + self.drift * torch.log2(transform[:, 0, 0])[:, None, None, None]
        waves = torch.sin(phase) * damping[..., None, None] / 12  # [B, 12, N, N]
        return torch.stack([waves.sum(1), waves[:, ::2].sum(1), waves[:, 1::2].sum(1)], dim=1).to(self.dtype)


def matrix(world: AnalyticWorld, count: int = 6) -> np.ndarray:
    return scale_errors(world, SHAPE, 0, range(count), CPU).mean(axis=0)


def test_an_analytic_world_is_consistent_up_to_rounding():
    assert np.nanmin(psnr(matrix(AnalyticWorld())[..., 0])) > 200
    errors = matrix(AnalyticWorld(dtype=torch.float32))
    assert np.nanmin(psnr(errors[..., 0])) > 130
    assert np.nanmin(errors[..., 2]) > 1 - 1e-6


def test_only_pairs_of_a_finer_and_a_coarser_level_are_compared():
    errors = matrix(AnalyticWorld(), count=1)
    known = np.isfinite(errors)
    levels = np.arange(SHAPE.octaves + 1)
    fine, coarse = levels[:, None], levels[None]
    assert (known[..., 0] == (fine > coarse)).all()
    assert (known[..., 2] == ((fine > coarse) & (fine - coarse <= 1))).all()  # 8 pixels and more


def test_consistency_falls_as_the_world_is_made_inconsistent():
    values = [np.nanmean(psnr(matrix(AnalyticWorld(drift=drift))[..., 0])) for drift in (0, 0.01, 0.1, 0.4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[1] + 20 > values[2] + 35
    far = matrix(AnalyticWorld(drift=0.1))
    assert far[1, 0, 0] < far[2, 0, 0] < far[3, 0, 0]  # the drift grows with the distance of the levels


def test_views_lie_inside_each_other_on_the_pixels_of_the_coarser_ones():
    for index in range(20):
        corners = np.array(nested_corners(3, index, SHAPE))
        side = 2.0 ** -np.arange(SHAPE.octaves + 1)
        assert (corners[1:] >= corners[:-1]).all()
        assert (corners[1:] + side[1:, None] <= corners[:-1] + side[:-1, None]).all()
        for level in range(1, len(corners)):
            pixels = (corners[level] - corners[0]) * SHAPE.resolution
            np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-12)
    assert nested_corners(3, 0, SHAPE) != nested_corners(3, 1, SHAPE)


def test_structural_similarity_is_that_of_scikit_image():
    a = torch.rand(3, 3, 20, 20, dtype=torch.float64) * 2 - 1
    b = (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)
    expected = [
        reference_similarity(x.numpy(), y.numpy(), data_range=2, channel_axis=0, win_size=7)
        for x, y in zip(a, b, strict=True)
    ]
    # the reference pads by mirroring and crops the border off again: the same windows
    np.testing.assert_allclose(structural_similarity(a, b).numpy(), expected, rtol=1e-9)


def test_a_shift_by_part_of_a_pixel_moves_the_image_by_it():
    x = torch.arange(64, dtype=torch.float64)
    offset = torch.tensor([[0.3, -0.45]], dtype=torch.float64)

    def wave(dx: float, dy: float) -> torch.Tensor:
        return torch.sin(0.9 * (x - dx))[None] * torch.cos(0.5 * (x - dy))[:, None]

    margin = shift_margin(64)
    moved = shifted(wave(0, 0)[None, None], offset)[0, 0]
    expected = wave(0.3, -0.45)[margin:-margin, margin:-margin]
    assert float((moved - expected).square().mean().sqrt()) < 1e-3


def test_a_world_that_moves_with_its_view_is_equivariant_and_one_that_sticks_to_pixels_is_not():
    world, sticky = AnalyticWorld(32), AnalyticWorld(32)
    world.omega = sticky.omega = world.omega * 4 / 64  # well below the Nyquist limit of 1x to 2x
    pattern = 0.3 * torch.randn(1, 3, 32, 32, dtype=torch.float64)
    zoom = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    views = torch.randn(3, 4), unchecked_transform(zoom, torch.zeros(3, 2, dtype=torch.float64))

    def error(function) -> float:
        rngs = [np.random.default_rng(i) for i in range(3)]
        return float(psnr(shift_errors(function, *views, rngs, CPU).mean()))

    assert error(world) > 50
    assert error(lambda z, t: sticky(z, t) + pattern) < 35


@pytest.mark.parametrize("octaves", [6, 8])
def test_small_patches_are_compared_down_to_a_pixel(octaves):
    shape = Shape(resolution=16, channels=3, octaves=octaves, z_dim=4)
    errors = scale_errors(AnalyticWorld(), shape, 0, [0], CPU)[0, ..., 0]
    levels = np.arange(octaves + 1)
    apart = levels[:, None] - levels
    assert (np.isfinite(errors) == ((apart > 0) & (apart <= 4))).all()
    assert np.nanmin(psnr(errors)) > 190
