"""Coordinates: one convention, checked ranges."""

import numpy as np
import pytest
import torch

from dnnlib.errors import UserError
from multiscale.view import (
    centre_limit,
    sample_positions,
    unchecked_transform,
    uniform_centres,
    view_transform,
    zoom_log2,
    zoom_out,
)


def test_transform_maps_the_view_to_its_square_of_the_world():
    t = view_transform([4.0], [[0.1, -0.2]])[0]
    assert t.dtype == torch.float64
    corner = t @ torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(corner[:2], torch.tensor([0.1 + 0.125, -0.2 - 0.125], dtype=torch.float64))


def test_pixels_sit_at_half_integers_of_the_view():
    n = 8
    expected = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    torch.testing.assert_close(sample_positions(n, n), expected)
    torch.testing.assert_close(sample_positions(n + 6, n)[3:-3], expected)


def test_zoom_out_keeps_the_centre():
    t = view_transform([8.0, 2.0], [[0.1, 0.2], [0.0, 0.25]])
    wider = zoom_out(t, torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(zoom_log2(wider), torch.tensor([1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(wider[:, :2, 2], t[:, :2, 2])


def test_numbers_and_lists_make_a_batch_of_one():
    assert view_transform(2.0, [0.1, 0.1]).shape == (1, 3, 3)


def test_uniform_centres_fill_the_legal_range():
    zoom = torch.full([4000], 4.0)
    centres = uniform_centres(zoom, np.random.default_rng(0))
    view_transform(zoom, centres)
    limit = centre_limit(zoom)[0]
    assert centres.abs().max() > 0.99 * limit
    assert centres.mean(dim=0).abs().max() < 0.02


@pytest.mark.parametrize(
    "zoom, centre, message",
    [
        (0.5, (0, 0), "Zoom factor 0.5"),
        (float("nan"), (0, 0), "Zoom factor nan"),
        (float("inf"), (0, 0), "Zoom factor inf"),
        (2.0, (0.26, 0), r"\[-0.25, 0.25\]"),
        (2.0, (0, float("nan")), "outside the world"),
        (1.0, (0.01, 0), "at 1x both coordinates must be 0"),
    ],
)
def test_illegal_views_are_refused_with_the_range(zoom, centre, message):
    with pytest.raises(ValueError, match=message):
        view_transform([zoom], [centre])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 zoom factors but 1 centres"):
        view_transform([1.0, 2.0], [[0, 0]])


@pytest.mark.parametrize("zoom, centre", [(2, (0, 0, 0)), ([2, 2], (0, 0, 0, 0)), ([[2, 2]], [(0, 0)] * 2), (2, 0)])
def test_shapes_are_not_guessed(zoom, centre):
    with pytest.raises(UserError, match=r"give \[B\] and \[B, 2\]: \(x, y\) for each zoom"):
        view_transform(zoom, centre)


def test_no_views_are_none():
    assert view_transform([], []).shape == (0, 3, 3)


def test_unchecked_transform_takes_views_beyond_the_world():
    assert unchecked_transform(torch.tensor([1.0]), torch.tensor([[3.0, 0.0]]))[0, 0, 2] == 3
