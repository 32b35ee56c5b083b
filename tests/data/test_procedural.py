"""The demo scene: one world at all zooms, band-limited at the scale of each view."""

import numpy as np
import pytest

from multiscale.data.procedural import render, render_batch

VIEWS = [(1.0, (0.0, 0.0)), (3.3, (0.2, -0.1)), (20.0, (-0.31, 0.4)), (60.0, (0.11, 0.07)), (1000.0, (0.3, 0.2))]


def area_reduced(image, factor):
    n = image.shape[0] // factor
    return image.reshape(n, factor, n, factor, 3).mean(axis=(1, 3))


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


@pytest.mark.parametrize("zoom, centre", VIEWS)
def test_a_patch_is_the_average_of_a_finer_drawing(zoom, centre):
    """Measured: 32.9 to 34.6 dB (area averages are no sharp filter), 42 to 52 dB over 4 pixels, 45 to 60 over 8."""
    patch = render(centre, zoom, 64, as_float=True)
    fine = area_reduced(render(centre, zoom, 256, as_float=True), 4)
    assert psnr(patch, fine) > 31
    assert psnr(area_reduced(patch, 4), area_reduced(fine, 4)) > 39
    assert psnr(area_reduced(patch, 8), area_reduced(fine, 8)) > 42


@pytest.mark.parametrize("zoom, centre", VIEWS)
def test_zooming_in_shows_the_same_world(zoom, centre):
    """Measured: 31.2 to 36.1 dB; a different place of the world is far below."""
    patch = render(centre, zoom, 64, as_float=True)[16:48, 16:48]
    finer = area_reduced(render(centre, 2 * zoom, 64, as_float=True), 2)
    assert psnr(patch, finer) > 29
    elsewhere = render((centre[0] + 1 / zoom, centre[1]), zoom, 64, as_float=True)[16:48, 16:48]
    assert psnr(elsewhere, finer) < psnr(patch, finer) - 6


@pytest.mark.parametrize("zoom, centre", VIEWS)
def test_little_energy_is_near_the_nyquist_frequency(zoom, centre):
    """Measured: -37 to -48 dB of the variance lies above 0.9 of the Nyquist frequency."""
    grey = render(centre, zoom, 64, as_float=True).mean(axis=-1)
    spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(64) * np.hanning(64)[:, None])) ** 2
    frequency = np.abs(np.fft.fftfreq(64))
    high = np.maximum(frequency, frequency[:, None]) > 0.45
    assert 10 * np.log10(spectrum[high].sum() / spectrum.sum()) < -35


@pytest.mark.parametrize("zoom", [1, 64, 2**10])
def test_every_zoom_has_contrast(zoom):
    image = render((0.1 * (1 - 1 / zoom), -0.07), zoom, 64, as_float=True)
    assert image.std() > 0.04
    assert -0.1 < image.min() < image.max() < 1.1


def test_a_view_depends_on_neither_its_batch_nor_the_time():
    zooms = np.array([zoom for zoom, _ in VIEWS])
    centres = np.array([centre for _, centre in VIEWS])
    together = render_batch(centres, zooms, 32, 5)
    for view, zoom, centre in zip(together, zooms, centres, strict=True):
        np.testing.assert_array_equal(view, render(tuple(centre), zoom, 32, 5))
    assert (together != render_batch(centres, zooms, 32, 6)).mean() > 0.9


def test_zooms_below_1_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        render((0, 0), 0.5, 32)
