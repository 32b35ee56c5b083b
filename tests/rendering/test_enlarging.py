"""Enlarged pictures: the right place, Lanczos' values, and parts that fit the whole."""

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config

from multiscale.rendering.enlarging import enlarged_image, enlarged_view
from multiscale.rendering.renderer import Renderer, to_uint8
from multiscale.rendering.worlds import World
from multiscale.view import Region

WORLD = World.parse(3)


@pytest.fixture(scope="module")
def renderer():
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=3, num_layers=8)), torch.device("cpu"))  # 256 a side


def test_enlarged_images_show_the_same_place(renderer):
    place = (0.203, 0.131)
    large = enlarged_image(renderer, WORLD, Region.of_view(8, place, 96, 96), 1.0).astype(float)
    own = to_uint8(renderer.image(WORLD, Region.of_view(8, place, 32, 32))).astype(float)
    averages = large.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    shifted = np.corrcoef(averages[1:].ravel(), own[:-1].ravel())[0, 1]
    assert np.corrcoef(averages.ravel(), own.ravel())[0, 1] > max(0.9, shifted)


def lanczos(low: float, high: float, count: int, size: int) -> np.ndarray:
    """Weights [count, size] of the model's pixels, of which number i is at i + 1/2, by the filter's formula."""
    places = low + (np.arange(count) + 0.5) * (high - low) / count
    distance = places[:, None] - (np.arange(size) + 0.5)
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("centre", [(0.1, -0.2), (0.4, -0.4)])  # the second in a corner of the world
def test_values_are_those_of_the_filter_up_to_the_edges(renderer, centre):
    region = Region.of_view(5, centre, 128, 100)  # 2.5 times finer
    finest = renderer.image(WORLD, Region(left=-0.5, top=-0.5, pitch=1 / 256, width=256, height=256)).clamp(-1, 1)
    across, down = (
        lanczos((low + 0.5) * 256, (low + 0.5 + region.pitch * count) * 256, count, 256)
        for low, count in ((region.left, 128), (region.top, 100))
    )
    exact = np.einsum("yj,cji,xi->yxc", down, finest.numpy().astype(float), across, optimize=True).clip(-1, 1)
    image = enlarged_image(renderer, WORLD, region, 1.0, bits=16)
    assert image.dtype == np.uint16
    assert np.abs(image / 65535 * 2 - 1 - exact).max() < 1e-3
    image = enlarged_view(renderer, WORLD, 5, centre, (128, 100))
    assert image.dtype == np.uint8
    assert np.abs(image / 255 * 2 - 1 - exact).mean() < 2 / 255  # Pillow also clips between rows and columns


@pytest.mark.parametrize("bits, most", [(8, 2), (16, 16)])
def test_a_part_of_an_enlarged_picture_is_as_in_the_whole(renderer, bits, most):
    region = Region.of_view(6, (0.31, 0.05), 160, 120)
    whole = enlarged_image(renderer, WORLD, region, 1.0, bits=bits).astype(int)
    part = enlarged_image(renderer, WORLD, region.part(37, 21, 50, 40), 1.0, bits=bits)
    assert np.abs(part - whole[21:61, 37:87]).max() <= most
