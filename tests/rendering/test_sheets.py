"""Sheets and strips: layout, outlines where the next view is, legal centres."""

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from dnnlib.pictures import GAP_PX, TITLE_PX, enlarge, grid
from multiscale.rendering.renderer import Renderer, nearest_centre, to_uint8
from multiscale.rendering.sheets import sample_sheet, zoom_strip
from multiscale.view import view_transform


@pytest.fixture(scope="module")
def renderer():
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=3)), torch.device("cpu"))


def test_render_is_the_generator_rounded(renderer):
    from torch_utils.random import latents

    pixels = renderer.render([5, 6], [1.0, 4.0], [(0, 0), (0.2, 0.1)])
    assert pixels.shape == (2, 32, 32, 3)
    assert pixels.dtype == np.uint8
    z = torch.cat([latents(5, 16), latents(6, 16)])
    with torch.no_grad():
        image = renderer.generator(z, view_transform([1.0, 4.0], [[0, 0], [0.2, 0.1]]))
    np.testing.assert_array_equal(pixels, to_uint8(image))


def test_bytes_cover_the_range_evenly():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("zoom", [0.99, 8.01, float("nan"), float("inf")])
def test_zooms_beyond_the_model_are_refused(renderer, zoom):
    with pytest.raises(UserError, match="from 1 to 8"):
        renderer.render([0], [zoom], [(0, 0)])


def test_centres_are_moved_into_the_world():
    assert nearest_centre((0.4, -0.1), 1) == (0, 0)
    assert nearest_centre((0.4, -0.1), 2) == (0.25, -0.1)
    assert nearest_centre((0.4, -0.1), 64) == (0.4, -0.1)


def test_small_images_are_enlarged_by_whole_factors():
    assert enlarge(np.zeros((16, 16, 3), np.uint8)).shape == (128, 128, 3)
    assert enlarge(np.zeros((256, 256, 3), np.uint8)).shape == (256, 256, 3)


def test_a_sheet_has_a_row_a_seed_and_a_column_a_zoom(renderer):
    sheet = sample_sheet(renderer, [0, 1])
    assert sheet.shape == (TITLE_PX + 2 * (128 + GAP_PX), 4 * (128 + GAP_PX) + GAP_PX, 3)
    cells = grid([[np.full((128, 128, 3), 9, np.uint8)]], titles=["a"])
    assert (cells[TITLE_PX : TITLE_PX + 128, GAP_PX : GAP_PX + 128] == 9).all()


def test_each_view_of_a_strip_is_outlined_in_the_one_before(renderer):
    strip = zoom_strip(renderer, 0, (0.3, -0.05))
    first = strip[TITLE_PX : TITLE_PX + 128, GAP_PX : GAP_PX + 128]
    centre = nearest_centre((0.3, -0.05), 2)
    left, top = (round((c - 0.25 + 0.5) * 128) for c in centre)
    assert (first[top, left : left + 64] == 255).all()
    assert (first[top : top + 64, left] == 255).all()
    assert (first[top + 63, left : left + 64] == 255).all()
    last = strip[TITLE_PX : TITLE_PX + 128, -(128 + GAP_PX) : -GAP_PX]
    assert not (last == 255).all(axis=-1).any()
