"""Patches of photographs: their scales, their filter, what they are made from, and that workers change nothing."""

import re

import numpy as np
import pytest
import skimage.data
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.cutting import Box, cut_patch
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import HeldPicture, examine, open_source
from multiscale.data.prepare import (
    demo_counts,
    inspect_patches,
    make_demo,
    make_from_photographs,
    paper_counts,
    parse_counts,
)
from multiscale.data.vips import Reading


def pixels_of(path, reading=None):
    """uint8 [H, W, C] of a file."""
    reading = reading or Reading()
    picture = examine(path, reading, 1 << 30)
    pixels = open_source(picture, reading).read(Box(0, 0, picture.width, picture.height), 0)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.png")
    Image.fromarray(skimage.data.coffee()).save(folder / "coffee.jpg")
    (folder / "notes.txt").write_text("not a photograph")
    return folder


def test_default_counts_are_the_papers():
    assert paper_counts(6) == (500, 1500, 4000, 30000, 30000, 30000)
    assert sum(paper_counts(8)) == 156_000
    assert list(demo_counts(6)) == sorted(demo_counts(6))


@pytest.mark.parametrize("text", ["", "1,,2", "0,5", "-3", "a", "1.5"])
def test_counts_that_are_no_counts_are_refused(text):
    with pytest.raises(UserError, match="--counts"):
        parse_counts(text)


def test_the_demo_is_the_same_for_any_number_of_workers(tmp_path):
    made = []
    for workers in (1, 2):
        make_demo(tmp_path / f"{workers}.zip", resolution=16, counts=(70, 65, 3), seed=4, workers=workers)
        made.append((tmp_path / f"{workers}.zip").read_bytes())
    assert made[0] == made[1]
    make_demo(tmp_path / "other.zip", resolution=16, counts=(70, 65, 3), seed=5, workers=1)
    assert (tmp_path / "other.zip").read_bytes() != made[0]
    dataset = PatchDataset(tmp_path / "1.zip")
    assert dataset.counts().tolist() == [70, 65, 3]
    assert (dataset.resolution, dataset.num_channels) == (16, 3)
    fractions = dataset.labels[:135] % 1
    assert abs(fractions.mean() - 0.5) < 0.1


def test_a_demo_of_ten_octaves_reaches_1024x(tmp_path):
    make_demo(tmp_path / "deep.zip", resolution=16, octaves=10, counts=(2,) * 10, workers=1)
    dataset = PatchDataset(tmp_path / "deep.zip")
    assert dataset.octaves == 10
    assert all(dataset[i][0].std() > 3 for i in range(20))


def test_photographs_give_the_same_patches_for_any_number_of_workers(tmp_path, photographs):
    made = []
    for workers in (1, 2):
        dest = tmp_path / f"{workers}.zip"
        make_from_photographs(photographs, dest, resolution=32, counts=(9, 20, 30), seed=1, workers=workers)
        made.append(dest.read_bytes())
    assert made[0] == made[1]
    dataset = PatchDataset(tmp_path / "1.zip")
    assert dataset.counts().tolist() == [9, 20, 30]
    assert (dataset.resolution, dataset.num_channels) == (32, 3)


def test_the_octaves_chosen_are_those_that_all_photographs_have(tmp_path, photographs):
    make_from_photographs(photographs, tmp_path / "a.zip", resolution=128, workers=1, counts=None, octaves=1)
    assert PatchDataset(tmp_path / "a.zip").counts().tolist() == [500]
    with pytest.raises(UserError, match=r"1 of 2 images .*coffee.jpg \(600 x 400\) has 1;"):
        make_from_photographs(photographs, tmp_path / "b.zip", resolution=128, octaves=2)
    with pytest.raises(UserError, match=r"2 of 2 images .*astronaut.png \(512 x 512\) has 0; .*coffee.jpg .* has 0;"):
        make_from_photographs(photographs, tmp_path / "b.zip", resolution=1024)
    assert not (tmp_path / "b.zip").exists()


def test_patches_are_spread_evenly_over_photographs_and_over_each_one(tmp_path):
    for i, level in enumerate((40, 120, 200)):
        Image.new("RGB", (64, 128), (level, level, i)).save(tmp_path / f"{i}.png")
    make_from_photographs(tmp_path, tmp_path / "set.zip", resolution=16, counts=(7, 30), workers=1)
    dataset = PatchDataset(tmp_path / "set.zip")
    owners = np.array([int(dataset[i][0][2, 0, 0]) for i in range(len(dataset))])
    for octave, count in enumerate((7, 30)):
        shares = np.bincount(owners[dataset.patch_octaves == octave], minlength=3)
        assert shares.sum() == count
        assert shares.max() - shares.min() <= 1


def test_a_patch_shows_the_square_that_its_label_says_anywhere_in_the_rectangle():
    """On a ramp, a patch's first and last pixels tell its side; none is below N source pixels."""
    across, down = np.meshgrid(np.arange(200, dtype=np.float32), np.arange(100, dtype=np.float32))
    image = HeldPicture(np.stack([across, down, 0 * down], axis=2).astype(np.uint8))
    for label in (0.0, 0.4, 1.3, 2.6438):
        for place in ((0, 0), (1, 1), (0.3, 0.8)):
            patch = cut_patch(image, label, *place, 16).astype(float)
            side = max(100 / 2**label, 16)
            middle = (patch[8, :, 0][[7, 8]].mean() + 0.5, patch[:, 8, 1][[7, 8]].mean() + 0.5)
            assert middle[0] == pytest.approx(place[0] * (200 - side) + side / 2, abs=0.8)
            assert middle[1] == pytest.approx(place[1] * (100 - side) + side / 2, abs=0.8)
            step = (patch[8, 12, 0] - patch[8, 4, 0]) / 8
            assert step == pytest.approx(side / 16, abs=0.2)
            assert step >= 1 - 0.13  # whole grey values


@pytest.mark.parametrize("octave, bound_db", [(2, -26), (3, -31)])
def test_reduction_does_not_alias(octave, bound_db):
    """A zone plate, whose frequency grows with the radius to 0.5 at its border, reduced to N.

    Energy from 1.25 times the new Nyquist frequency on, against the plate's own. Measured at 4x (8x): Lanczos -27.7
    (-32.6) dB, bicubic -25.9, Hamming -19.3, box -15.7, none 0. Loss below 0.7 Nyquist: Lanczos 0.05 (0.1), box 0.9 dB.
    """
    size = 1024
    y, x = np.mgrid[:size, :size] - size / 2
    plate = HeldPicture((127.5 + 127 * np.cos(np.pi * (x**2 + y**2) / size)).round().astype(np.uint8))
    n = size >> octave
    patch = cut_patch(plate, 0.0, 0, 0, n).astype(float) - 127.5
    radius = np.hypot(*(np.mgrid[:n, :n] + 0.5 - n / 2)) / (n / 2) * 2**octave  # 1: Nyquist of the patch

    def level(zone):
        return 20 * np.log10(patch[zone].std() / (127 / np.sqrt(2)))

    assert level((radius > 1.25) & (radius < 2**octave)) < bound_db
    assert level(radius < 0.7) > -0.2


@pytest.mark.parametrize("name", ["grey.png", "grey16.png", "bits.png", "alpha_grey.png"])
def test_grey_photographs_give_grey_patches(tmp_path, name):
    camera = skimage.data.camera()[:64, :64]
    images = {
        "grey.png": Image.fromarray(camera),
        "grey16.png": Image.fromarray(camera.astype(np.uint16) * 257),
        "bits.png": Image.fromarray(camera).convert("1"),
        "alpha_grey.png": Image.merge("LA", [Image.fromarray(camera), Image.new("L", (64, 64), 255)]),
    }
    images[name].save(tmp_path / name)
    reading = Reading()
    assert examine(tmp_path / name, reading, 0).grey
    if name != "bits.png":
        np.testing.assert_array_equal(pixels_of(tmp_path / name)[:64, :64].reshape(64, 64, -1)[..., 0], camera)
    make_from_photographs(tmp_path / name, tmp_path / "set.zip", resolution=16, counts=(3,), workers=1)
    assert PatchDataset(tmp_path / "set.zip")[0][0].shape == (1, 16, 16)


def test_grey_and_colour_together_give_rgb(tmp_path, photographs):
    Image.fromarray(skimage.data.camera()).save(tmp_path / "camera.png")
    Image.open(photographs / "astronaut.png").save(tmp_path / "astronaut.png")
    make_from_photographs(tmp_path, tmp_path / "set.zip", resolution=32, counts=(4,), workers=1)
    assert PatchDataset(tmp_path / "set.zip").num_channels == 3


def test_colour_models_transparency_and_orientation_are_understood(tmp_path):
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    red.convert("P").save(tmp_path / "palette.png")
    Image.new("RGBA", (40, 20), (0, 0, 255, 0)).save(tmp_path / "clear.png")
    red.save(tmp_path / "turned.jpg", exif=exif)
    for name in ("cmyk.jpg", "palette.png"):
        pixels = pixels_of(tmp_path / name)
        assert pixels.shape == (20, 40, 3)
        assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3
    assert (pixels_of(tmp_path / "clear.png") == 255).all(), "white, and 255 parts of 255 are empty"
    assert pixels_of(tmp_path / "turned.jpg").shape == (40, 20, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_photographs_are_named_before_anything_is_written(tmp_path, photographs, workers):
    source = tmp_path / "source"
    source.mkdir()
    whole = (photographs / "coffee.jpg").read_bytes()
    (source / "good.jpg").write_bytes(whole)
    (source / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "text.png").write_text("hello")
    (source / "empty.tif").write_bytes(b"")
    with pytest.raises(UserError, match="3 of 4 files") as caught:
        make_from_photographs(source, tmp_path / "set.zip", resolution=16, workers=workers)
    assert all(name in str(caught.value) for name in ("cut.jpg", "text.png", "empty.tif"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sources_without_photographs_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no"):
        make_from_photographs(tmp_path / "absent", tmp_path / "set.zip")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="holds no pictures"):
        make_from_photographs(tmp_path, tmp_path / "set.zip")
    with pytest.raises(UserError, match=r"Image .*notes.txt is of no known format"):
        make_from_photographs(tmp_path / "notes.txt", tmp_path / "set.zip")
    (tmp_path / "patches.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(UserError, match=r"Image .*patches.zip is a ZIP, not a picture; unpack it"):
        make_from_photographs(tmp_path / "patches.zip", tmp_path / "set.zip")


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("multiscale.data.prepare.PatchWriter.add", interrupted)
    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            make_demo(tmp_path / "set.zip", resolution=16, counts=(200, 200), workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_set_with_hardly_any_contrast_is_called_so(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(3, 17, (64, 64), np.uint8)).save(tmp_path / "dark.png")
    make_from_photographs(tmp_path / "dark.png", tmp_path / "set.zip", resolution=16, counts=(4, 4), workers=1)
    inspect_patches(tmp_path / "set.zip", workers=1)
    assert re.search(
        r"very low contrast: of 8 patches nearly all numbers lie between \d+ and 1\d of 255", capsys.readouterr().out
    )


def test_the_contact_sheet_has_a_row_for_each_octave(tmp_path, capsys):
    make_demo(tmp_path / "set.zip", resolution=16, counts=(9, 3, 12), workers=1)
    inspect_patches(tmp_path / "set.zip", sheet=tmp_path / "sheet.png", workers=1)
    said = capsys.readouterr().out
    assert "no problems" in said
    assert "low contrast" not in said
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 3 * 128 <= sheet.height < 4 * 128
        assert 8 * 128 <= sheet.width < 9 * 128
