"""Patches cut from a pyramid are those cut from the whole image, however many halvings lie between."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from multiscale.data.cutting import Box, Level, cut_patch, cut_square, plan_cut
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import HeldPicture
from multiscale.data.prepare import make_from_photographs


def held(image):
    return HeldPicture(np.asarray(image))


def direct(image, *arguments):
    """A patch reduced from all of the image's pixels."""
    source = held(image)
    source.levels = source.levels[:1]
    return cut_patch(source, *arguments)


def zone_plate(size):
    y, x = np.mgrid[:size, :size] - size / 2
    return Image.fromarray((127.5 + 127 * np.cos(np.pi * (x**2 + y**2) / size)).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(2048, 1024), (1537, 1023)])
@pytest.mark.parametrize("contrast, most", [(0.6, 1), (1.0, 8)])
def test_patches_are_those_of_the_whole_image(size, contrast, most):
    """Two independent roundings to 8 bits differ by 55.9 dB, by 1 at most; more only where overshoot is clipped.

    At full contrast the photograph has edges between black and white, at which few pixels of a patch differ more.
    """
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(skimage.data.astronaut()).resize(size, Image.Resampling.BICUBIC), dtype=float)
    noisy = 127.5 + contrast * (image - 127.5 + rng.normal(0, 15, image.shape))
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    source = held(image)
    for label in (0.0, 0.3, 0.9, 1.5, 2.2, 3.1, 4.4):
        across, down = rng.random(2)
        error = cut_patch(source, label, across, down, 32).astype(float)
        error -= direct(image, label, across, down, 32)
        assert np.abs(error).max() <= most
        assert (np.abs(error) > 1).mean() < 0.01
        assert (error**2).mean() < 255**2 / 10**5.4


@pytest.mark.parametrize("octave", [3, 4])
def test_halvings_alias_no_more_than_one_reduction(octave):
    """Energy beyond 1.25 times the patch's Nyquist frequency, and below 0.7 times; one and two halvings."""
    plate = zone_plate(2048)
    n = 2048 >> octave
    radius = np.hypot(*(np.mgrid[:n, :n] + 0.5 - n / 2)) / (n / 2) * 2**octave  # 1: Nyquist of the patch
    levels = []
    for patch in (cut_patch(held(plate), 0.0, 0, 0, n), direct(plate, 0.0, 0, 0, n)):
        patch = patch.astype(float) - 127.5
        zones = (radius > 1.25) & (radius < 2**octave), radius < 0.7
        levels.append([20 * np.log10(patch[zone].std() / (127 / np.sqrt(2))) for zone in zones])
    (alias, kept), (alias_before, kept_before) = levels
    assert alias < alias_before + 0.2
    assert kept == pytest.approx(kept_before, abs=0.05)


def test_a_patch_reads_the_coarsest_level_that_is_fine_enough():
    levels = held(Image.new("RGB", (1001, 640))).levels
    assert [level[:2] for level in levels] == [(1001, 640), (501, 320), (251, 160), (126, 80)]
    for side, shrink in ((64, 0), (383, 0), (385, 1), (639, 1)):
        assert plan_cut(levels, side, 0.5, 0.5, 64).shrink == shrink
    assert plan_cut(levels, 640, 0.5, 0.5, 16).shrink == 3
    foreign = [Level(1001, 640, 1, 0), Level(501, 320, 2, 6.0)]
    assert [plan_cut(foreign, side, 0, 0, 32).shrink for side in (383, 385)] == [0, 1]


def test_a_patch_reads_no_more_than_its_filter_sees():
    read = []

    class Watched(HeldPicture):
        def read(self, box, shrink):
            read.append((box, shrink))
            return super().read(box, shrink)

    image = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    patch = cut_square(Watched(image), 100, 0.5, 0.5, 50)
    assert read == [(Box(942, 692, 1058, 808), 0)]
    assert patch.empty == 0
    whole = Image.fromarray(image).resize((50, 50), Image.Resampling.LANCZOS, box=(950, 700, 1050, 800))
    np.testing.assert_array_equal(patch.pixels, np.asarray(whole))


def test_grey_photographs_among_coloured_ones_become_rgb_patches(tmp_path):
    Image.new("L", (64, 64), 50).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (90, 90, 0)).save(tmp_path / "b.png")
    make_from_photographs(tmp_path, tmp_path / "set.zip", resolution=16, counts=(6,), workers=1)
    dataset = PatchDataset(tmp_path / "set.zip")
    colours = {tuple(dataset[i][0][:, 3, 3].tolist()) for i in range(6)}
    assert colours == {(50, 50, 50), (90, 90, 0)}
