"""Images of any size: no seams, the same world as the generator's own views, legal ranges, giving up."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from multiscale.rendering import renderer as module
from multiscale.rendering.renderer import Cancelled, Renderer, to_uint8, to_uint16
from multiscale.view import Region


@pytest.fixture(scope="module")
def renderer():
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=4)), torch.device("cpu"))


@pytest.fixture(scope="module")
def narrow():
    """A generator whose layers have small margins, so that its tiles need a halo."""
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=4, margin=4, num_layers=8)), torch.device("cpu"))


@pytest.fixture(scope="module")
def deep():
    """A generator of ten octaves with mixed features, their styles and frames, whose tiles need a halo."""
    torch.manual_seed(0)
    options = {"fourier_features": 100, "feature_style": True, "world_frame": True}
    generator = calibrated_generator(small_config(octaves=10, n_bins=4, margin=4, num_layers=8, **options))
    with torch.no_grad():
        generator.synthesis.frame.weight.normal_(std=0.3)  # a new one shows all worlds alike
    return Renderer(generator, torch.device("cpu"))


def psnr(a, b):
    """dB for a range of 2."""
    return 10 * math.log10(4 / (a - b).square().mean().item())


def with_tiles(monkeypatch, renderer, side):
    monkeypatch.setitem(module.TILE_PX, "cpu", side + 2 * renderer.halo)


@pytest.mark.parametrize("which, zoom", [("renderer", 2.5), ("narrow", 2.5), ("deep", 2.5), ("deep", 230.0)])
@pytest.mark.parametrize("size", [(96, 96), (130, 50), (64, 33)])
def test_shifting_the_grid_of_tiles_changes_nothing(which, zoom, size, request, monkeypatch):
    renderer = request.getfixturevalue(which)
    region = Region.of_view(zoom, (0.13, -0.1), *size)
    with_tiles(monkeypatch, renderer, 32)
    tiles = [(tile.x, tile.y) for tile in renderer.tiles(3, region)]
    assert len(tiles) > 1
    tiled = renderer.image(3, region)
    shifted = renderer.image(3, region.part(16, 16, region.width - 16, region.height - 16))  # half a tile
    assert psnr(tiled[:, 16:, 16:], shifted) > 80
    with_tiles(monkeypatch, renderer, 512)
    assert psnr(tiled, renderer.image(3, region)) > 80


def test_steps_across_tile_borders_are_no_larger_than_inside(narrow, monkeypatch):
    with_tiles(monkeypatch, narrow, 32)
    image = narrow.image(3, Region.of_view(1, (0, 0), 256, 256))
    steps = image.diff(dim=2).abs().amax(dim=(0, 1))
    borders = steps[31::32]
    inside = torch.cat([steps[i : i + 31] for i in range(0, 224, 32)])
    assert borders.max() <= inside.max() * 1.05


@pytest.mark.parametrize("margin", [0, 4, 7, 10])
def test_views_are_those_of_images_up_to_their_borders(margin):
    """A bare view of a generator of margin 4 is 51 dB from the image, and up to 8 levels off at its borders."""
    torch.manual_seed(0)
    config = small_config(octaves=4, margin=margin, num_layers=8)
    renderer = Renderer(calibrated_generator(config), torch.device("cpu"))
    zooms, centres = [4.0, 1.0, 2.5], [(0.2, 0.1), (0.0, 0.0), (0.13, -0.1)]
    views = renderer.render([3, 4, 3], zooms, centres)
    for view, world, zoom, centre in zip(views, (3, 4, 3), zooms, centres, strict=True):
        image = renderer.image(world, Region.of_view(zoom, centre, 32, 32))
        assert np.abs(view.astype(int) - to_uint8(image)).max() <= 1  # of 255, by rounding


def test_a_tile_is_the_generators_own_view(renderer):
    own = renderer.render([3], [4.0], [(0.2, 0.1)])[0]
    image = to_uint8(renderer.image(3, Region.of_view(4, (0.2, 0.1), 32, 32)))
    assert np.abs(own.astype(int) - image).max() <= 1


def test_part_of_a_large_image_is_the_view_of_that_part(renderer):
    large = renderer.image(3, Region.of_view(1, (0, 0), 128, 128))
    view = renderer.image(3, Region.of_view(4, (-0.125, 0.125), 32, 32))
    assert psnr(large[:, 64:96, 32:64], view) > 80


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (31, 32)])
def test_images_smaller_than_the_network_are_averages_of_its_coarsest_view(renderer, size):
    image = renderer.image(3, Region.of_view(1, (0, 0), *size))
    assert image.shape == (3, size[1], size[0])
    assert image.isfinite().all()
    if size == (16, 16):
        own = renderer.image(3, Region.of_view(1, (0, 0), 32, 32))
        torch.testing.assert_close(image, torch.nn.functional.avg_pool2d(own, 2))


def test_pixels_finer_than_the_model_are_refused_or_said_to_be(renderer):
    region = Region.of_view(16, (0, 0), 64, 64)
    assert renderer.extrapolation(region) == 2
    assert renderer.extrapolation(Region.of_view(16, (0, 0), 32, 32)) == 1
    with pytest.raises(UserError, match=r"64 pixels at 16x are 2 times finer.*at most 32 pixels.*at most 8"):
        renderer.image(3, region)
    assert renderer.image(3, region, extrapolate=True).shape == (3, 64, 64)


@pytest.mark.parametrize("zoom, side", [(3, 343), (1.5, 1000), (1, 2048), (300, 3), (700, 600)])
def test_what_the_refusal_of_too_fine_pixels_names_is_allowed(renderer, zoom, side):
    with pytest.raises(UserError, match=r"or allow extrapolation \(--extrapolate") as refused:
        renderer.check(Region.of_view(zoom, (0, 0), side, side))
    pixels = re.search(r"give at most (\d+) pixels", str(refused.value))
    scale = re.search(r"a scale of at most ([\d.]+),", str(refused.value))
    assert (pixels is not None, scale is not None) == (zoom <= 512, side <= 512)
    if pixels:
        renderer.check(Region.of_view(zoom, (0, 0), *(int(pixels[1]),) * 2))
    if scale:
        renderer.check(Region.of_view(float(scale[1]), (0, 0), side, side))
    renderer.check(Region.of_view(zoom, (0, 0), side, side), extrapolate=True)


@pytest.mark.parametrize(
    "zoom,centre,size", [(1, (0.1, 0), (32, 32)), (2, (0, 0.26), (32, 32)), (0.9, (0, 0), (64, 8))]
)
def test_regions_that_leave_the_world_are_refused(renderer, zoom, centre, size):
    with pytest.raises(UserError, match="outside the world"):
        renderer.image(3, Region.of_view(zoom, centre, *size))


def test_the_shorter_side_leaves_room_to_move(renderer):
    assert renderer.image(3, Region.of_view(1, (0, 0.25), 64, 32)).shape == (3, 32, 64)


def test_empty_images_are_refused(renderer):
    with pytest.raises(UserError, match="0 x 5 pixels"):
        renderer.image(3, Region(left=0, top=0, pitch=0.01, width=0, height=5))


def test_a_render_is_given_up_between_layers(renderer):
    asked = []

    def cancelled():
        asked.append(None)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        renderer.image(3, Region.of_view(1, (0, 0), 64, 64), cancelled=cancelled)
    assert len(asked) == 3


def test_truncation_and_kept_styles(renderer):
    region = Region.of_view(1, (0, 0), 32, 32)
    mean = renderer.image(3, region, 0.0)
    torch.testing.assert_close(mean, renderer.image(4, region, 0.0))
    assert not torch.allclose(mean, renderer.image(3, region))
    for seed in range(module.STYLES_KEPT + 5):
        renderer.styles(seed)
    assert len(renderer._styles) == module.STYLES_KEPT


def test_sixteen_bits_cover_the_range_evenly():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 5)
    assert to_uint16(values).flatten().tolist() == [0, 0, 32768, 65535, 65535]


def test_odd_sizes_that_the_network_cannot_give_are_refused(renderer):
    synthesis, ws = renderer.generator.synthesis, renderer.styles(3)
    region = Region.of_view(1, (0, 0), 32, 32)
    with pytest.raises(ValueError, match="multiples of 2"):
        synthesis(ws, region.transform(32), size=(33, 32))
