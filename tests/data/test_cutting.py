"""Patches cut from a pyramid are those cut from the whole image, however many halvings lie between."""

import math

import numpy as np
import pytest
import skimage.data
from PIL import Image

from multiscale.data import cutting
from multiscale.data.cutting import Pyramid, cut_patch
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_from_photographs


def direct(monkeypatch, *arguments):
    """A patch reduced from all of the image's pixels."""
    with monkeypatch.context() as patched:
        patched.setattr(cutting, "OVERSAMPLING", math.inf)
        return cut_patch(*arguments)


def zone_plate(size):
    y, x = np.mgrid[:size, :size] - size / 2
    return Image.fromarray((127.5 + 127 * np.cos(np.pi * (x**2 + y**2) / size)).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(2048, 1024), (1537, 1023)])
@pytest.mark.parametrize("contrast, most", [(0.6, 1), (1.0, 8)])
def test_patches_are_those_of_the_whole_image(monkeypatch, size, contrast, most):
    """Two independent roundings to 8 bits differ by 55.9 dB, by 1 at most; more only where overshoot is clipped.

    At full contrast the photograph has edges between black and white, at which few pixels of a patch differ more.
    """
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(skimage.data.astronaut()).resize(size, Image.Resampling.BICUBIC), dtype=float)
    noisy = 127.5 + contrast * (image - 127.5 + rng.normal(0, 15, image.shape))
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    pyramid = Pyramid(image)
    for label in (0.0, 0.3, 0.9, 1.5, 2.2, 3.1, 4.4):
        across, down = rng.random(2)
        error = cut_patch(pyramid, label, across, down, 32).astype(float)
        error -= direct(monkeypatch, image, label, across, down, 32)
        assert np.abs(error).max() <= most
        assert (np.abs(error) > 1).mean() < 0.01
        assert (error**2).mean() < 255**2 / 10**5.4


@pytest.mark.parametrize("octave", [3, 4])
def test_halvings_alias_no_more_than_one_reduction(monkeypatch, octave):
    """Energy beyond 1.25 times the patch's Nyquist frequency, and below 0.7 times; one and two halvings."""
    plate = zone_plate(2048)
    n = 2048 >> octave
    radius = np.hypot(*(np.mgrid[:n, :n] + 0.5 - n / 2)) / (n / 2) * 2**octave  # 1: Nyquist of the patch
    levels = []
    for patch in (cut_patch(plate, 0.0, 0, 0, n), direct(monkeypatch, plate, 0.0, 0, 0, n)):
        patch = patch.astype(float) - 127.5
        zones = (radius > 1.25) & (radius < 2**octave), radius < 0.7
        levels.append([20 * np.log10(patch[zone].std() / (127 / np.sqrt(2))) for zone in zones])
    (alias, kept), (alias_before, kept_before) = levels
    assert alias < alias_before + 0.2
    assert kept == pytest.approx(kept_before, abs=0.05)


def test_a_patch_reads_the_coarsest_level_that_is_fine_enough():
    pyramid = Pyramid(Image.new("RGB", (1001, 640)))
    assert pyramid.level(1.0) is pyramid.level(5.9) is pyramid.image
    assert pyramid.level(6.0).size == (501, 320)
    assert pyramid.level(23.9).size == (251, 160)
    assert pyramid.level(24.0).size == (126, 80)
    assert pyramid.level(6.0) is pyramid.level(11.9), "levels are kept"


def test_fine_patches_halve_nothing_and_pyramids_are_few(tmp_path, monkeypatch):
    """A folder's photographs are held one at a time, each with the levels that its patches need."""
    made = []

    class Counted(Pyramid):
        def __init__(self, image):
            super().__init__(image)
            made.append(self)

    monkeypatch.setattr("multiscale.data.prepare.Pyramid", Counted)
    for i in range(3):
        Image.new("RGB", (256, 256), (i, i, i)).save(tmp_path / f"{i}.png")
    make_from_photographs(tmp_path, tmp_path / "set.zip", resolution=64, counts=(40, 40), workers=1)
    assert len(made) <= 2 * 3, "decoded once to be verified and once to be cut"
    assert all(len(pyramid._levels) == 1 for pyramid in made)


def test_grey_photographs_among_coloured_ones_become_rgb_patches(tmp_path):
    Image.new("L", (64, 64), 50).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (90, 90, 0)).save(tmp_path / "b.png")
    make_from_photographs(tmp_path, tmp_path / "set.zip", resolution=16, counts=(6,), workers=1)
    dataset = PatchDataset(tmp_path / "set.zip")
    colours = {tuple(dataset[i][0][:, 3, 3].tolist()) for i in range(6)}
    assert colours == {(50, 50, 50), (90, 90, 0)}
