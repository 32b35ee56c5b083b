"""Pictures of every kind that people have: what they look like to a patch, how much memory they take, what is refused."""

import contextlib
import itertools
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
from click.testing import CliRunner
from PIL import Image, ImageCms

from dnnlib.errors import UserError
from multiscale.cli.dataset_tool import main
from multiscale.data import pictures
from multiscale.data.cutting import Box, cut_square
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import HeldPicture, StoredPicture, examine, forget_sources
from multiscale.data.prepare import make_from_photographs
from multiscale.data.vips import NotAPicture, Reading, Unreadable, library

ASTRONAUT = skimage.data.astronaut()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MULTISCALE_CACHE", str(folder))
    forget_sources()
    return folder


def opened(path, held_bytes=1 << 30, **options):
    reading = Reading(**options)
    picture = examine(Path(path), reading, held_bytes)
    return picture, picture.open(reading)


def read_all(path, **options):
    """uint8 [H, W, C], emptiness last if there may be any."""
    picture, source = opened(path, **options)
    return source.read(Box(0, 0, picture.width, picture.height), 0)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return result.output.splitlines()[-1]


@pytest.mark.parametrize(
    "size, resolution, said",
    [
        ((400, 300), 256, "--resolution 64 or less, or larger"),
        ((400, 300), 128, "gives 1 octave at 128 x 128 pixels, a zoom of 2x; --resolution 32 gives 3."),
        ((100, 70), 32, "gives 1 octave at 32 x 32 pixels, a zoom of 2x; --resolution 16 gives 2."),
        ((40, 40), 16, None),
        ((300, 300), 32, None),
    ],
)
def test_a_small_picture_is_answered_with_the_resolution_that_gives_octaves(tmp_path, size, resolution, said):
    path, dest = tmp_path / "a.png", tmp_path / "d.zip"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)
    options = ["make", "--source", path, "--dest", dest, "--workers", 1, "--resolution", resolution]
    if "or less" in (said or ""):
        assert f"give fewer --octaves, {said}" in refusal(*options, "--octaves", 2)
        for more in (("--octaves", 1), ()):
            *before, last = invoke(*options, *more).output.splitlines()
            assert "has 0; give --resolution 128 or less (32 gives 3 octaves), or larger images." in last
            assert not any("gives 1 octave" in line for line in before)
        return
    printed = invoke(*options, "--dry-run").output
    assert said in printed if said else "--resolution" not in printed
    suggested = re.search(r"--resolution (\d+) gives (\d)", printed)
    if suggested:
        assert f"--resolution {suggested[1]}" in said
        again = invoke(*options[:-1], suggested[1], "--dry-run", "--octaves", suggested[2])
        assert again.exit_code == 0
        assert "--resolution" not in again.output


def test_a_dry_run_writes_nothing_whatever_stands_there_and_says_what_a_run_says(tmp_path):
    path, dest = tmp_path / "a.png", tmp_path / "d.zip"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 700, 3), np.uint8)).save(path)
    options = ["make", "--source", path, "--dest", dest, "--workers", 1, "--resolution", 32, "--counts", "3,4"]
    assert invoke(*options).exit_code == 0
    before = dest.read_bytes()
    done = invoke(*options, "--dry-run", "--seed", 1)
    plan = "2 octaves of the 4 that the picture reaches, as --counts has 2 numbers.\n"
    plan += f"{dest} would hold 7 patches, by octave 3, 4: 2 octaves, up to 21.5 kB\n"
    assert (done.exit_code, plan in done.output) == (0, True), done.output
    assert "empty areas" not in done.output
    assert dest.read_bytes() == before
    assert "d.zip exists; pass --force" in refusal(*options)
    assert plan.replace("would", "will") in invoke(*options, "--force").output
    said = invoke(*options[:-1], "3,3,3,3", "--dry-run").output
    assert "as --counts has" not in said
    assert "would hold 12 patches, by octave 3, 3, 3, 3: 4 octaves" in said


# The same patches by every way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, alpha",
    [("a.jpg", False)] + [(name, alpha) for name in ("a.png", "strips.tif", "tiles.tif") for alpha in (False, True)],
)
def test_a_picture_on_disk_gives_what_one_in_memory_gives(tmp_path, monkeypatch, name, alpha):
    pixels = np.asarray(Image.fromarray(ASTRONAUT).resize((611, 407)))
    if alpha:
        pixels = np.dstack([pixels, 255 * (np.arange(611) > 30).astype(np.uint8)[None].repeat(407, 0)])
    image = library().Image.new_from_array(pixels)
    options = {"tile": True, "tile_width": 128, "tile_height": 128} if name == "tiles.tif" else {}
    image.write_to_file(str(tmp_path / name), **options)
    monkeypatch.setattr(pictures, "ALWAYS_HELD_BYTES", 0)
    (_, held), (_, stored) = (opened(tmp_path / name, held_bytes) for held_bytes in (1 << 30, 0))
    assert isinstance(held, HeldPicture)
    assert isinstance(stored, StoredPicture)
    assert held.levels == stored.levels
    assert held.with_empty == stored.with_empty == alpha
    for shrink, level in enumerate(held.levels):
        boxes = [Box(0, 0, *level[:2]), Box(level.width // 3, level.height // 2, level.width // 2, level.height - 1)]
        for box in boxes:
            np.testing.assert_array_equal(held.read(box, shrink), stored.read(box, shrink))


def test_levels_are_made_once_kept_within_a_bound_and_made_again_for_another_file(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(pictures, "ALWAYS_HELD_BYTES", 0)
    made = []
    original = pictures._write_levels
    monkeypatch.setattr(pictures, "_write_levels", lambda *a: (made.append(a[0].path.name), original(*a)))

    def use(name, **options):
        forget_sources()
        opened(tmp_path / name, 0, **options)

    for i in range(3):
        Image.fromarray(np.roll(ASTRONAUT, i, axis=1)).save(tmp_path / f"{i}.png")
    for name in ("0.png", "0.png", "1.png", "0.png"):
        use(name)
    assert made == ["0.png", "1.png"]
    Image.fromarray(ASTRONAUT[::-1]).save(tmp_path / "1.png")
    use("1.png")
    assert made == ["0.png", "1.png", "1.png"]
    assert len(list((cache / "levels").iterdir())) == 3
    for folder in (cache / "levels").iterdir():
        os.utime(folder, (0, 0))
    use("0.png")  # touched
    use("2.png", cache_bytes=6_000_000)
    assert len(list((cache / "levels").iterdir())) == 2
    use("0.png")
    assert made[3:] == ["2.png"], "the longest unused went first"


def test_a_full_disk_is_one_sentence_and_a_break_leaves_nothing(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(pictures, "ALWAYS_HELD_BYTES", 0)
    Image.fromarray(ASTRONAUT).save(tmp_path / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(UserError, match=r"0\.0 GB for the levels .* set MULTISCALE_CACHE"):
            opened(tmp_path / "a.png", 0)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(Unreadable, match="cannot be decoded"):
        opened(tmp_path / "a.png", 0)
    assert list((cache / "levels").iterdir()) == []


@pytest.mark.parametrize("subifd", [False, True])
def test_levels_of_a_pyramid_are_those_of_the_file(tmp_path, cache, subifd):
    """Each level has a colour of its own."""
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        sizes = [(640, 448), (320, 224), (160, 112), (80, 56)]
        for i, (width, height) in enumerate(sizes):
            options = {"subifds": len(sizes) - 1} if subifd and not i else {"subfiletype": 1} if i else {}
            level = np.full((height, width, 3), 60 * i + 10, np.uint8)
            writer.write(level, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, **options)
        if not subifd:
            writer.write(np.full((640, 448, 3), 250, np.uint8), tile=(64, 64), photometric="rgb")  # not a level
    _, source = opened(path)
    assert isinstance(source, StoredPicture)
    assert [(level.width, level.scale) for level in source.levels] == [(640, 1), (320, 2), (160, 4), (80, 8)]
    for side, colour in ((190, 10), (194, 70), (400, 130)):
        assert (cut_square(source, side, 0.3, 0.6, 16).pixels == colour).all()
    (kept,) = (cache / "levels").iterdir()
    assert {path.name for path in kept.iterdir()} == {"0.tif", "1.tif", "2.tif"}, "the finest is read where it lies"
    make_from_photographs(path, tmp_path / "set.zip", resolution=16, counts=(2, 2), workers=2)
    colours = {int(PatchDataset(tmp_path / "set.zip")[i][0].mean()) for i in range(4)}
    assert {70} <= colours <= {10, 70, 130}


def test_a_pyramid_that_ends_early_goes_on_in_the_cache(tmp_path, cache):
    image = library().Image.new_from_array(np.tile(ASTRONAUT, (4, 4, 1)))
    levels = [image, image.shrink(2, 2)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for level in levels:
            writer.write(level.numpy(), tile=(256, 256), photometric="rgb")
    _, source = opened(tmp_path / "a.tif")
    assert [(level.width, level.oversampling) for level in source.levels[:4]] == [
        (2048, 0.0),
        (1024, 6.0),
        (512, 3.0),
        (256, 3.0),
    ]
    assert {path.name for path in next((cache / "levels").iterdir()).iterdir()} == {f"{i}.tif" for i in range(5)}


@pytest.mark.parametrize("octave", [3, 4])
def test_levels_of_others_alias_hardly_more_than_one_reduction(tmp_path, octave):
    """A pyramid of averages, as most programs write it, at six pixels of a level for one of a patch."""
    size, n = 2048, 2048 >> octave
    y, x = np.mgrid[:size, :size] - size / 2
    plate = (127.5 + 127 * np.cos(np.pi * (x**2 + y**2) / size)).round().astype(np.uint8)
    image = library().Image.new_from_array(plate)
    image.tiffsave(str(tmp_path / "a.tif"), tile=True, pyramid=True, tile_width=256, tile_height=256)
    _, source = opened(tmp_path / "a.tif")
    assert source.levels[1].oversampling == 6
    radius = np.hypot(*(np.mgrid[:n, :n] + 0.5 - n / 2)) / (n / 2) * 2**octave
    levels = []
    for patch in (
        cut_square(source, size, 0, 0, n).pixels,
        np.asarray(Image.fromarray(plate).resize((n, n), Image.Resampling.LANCZOS)),
    ):
        zones = (radius > 1.25) & (radius < 2**octave), radius < 0.7
        levels.append([20 * np.log10((patch - 127.5)[zone].std() / (127 / np.sqrt(2))) for zone in zones])
    assert levels[0][0] < levels[1][0] + 0.5
    assert levels[0][1] == pytest.approx(levels[1][1], abs=0.06)


# Colour ---------------------------------------------------------------------------------------------------------------


def test_colour_profiles_are_applied_and_srgb_stays_as_it_is(tmp_path):
    image = Image.fromarray(ASTRONAUT)
    lab = ImageCms.createProfile("LAB")
    del lab
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image.save(tmp_path / "srgb.png", icc_profile=srgb.tobytes())
    np.testing.assert_array_equal(read_all(tmp_path / "srgb.png"), ASTRONAUT)
    p3 = library().Image.new_from_array(ASTRONAUT).icc_export(output_profile="p3")
    p3.write_to_file(str(tmp_path / "p3.png"))
    stored = np.asarray(Image.open(tmp_path / "p3.png")).astype(int)
    assert np.abs(stored - ASTRONAUT).mean() > 2, "other numbers"
    assert np.abs(read_all(tmp_path / "p3.png") - ASTRONAUT.astype(int)).mean() < 1, "of the same colours"
    cmyk = library().Image.new_from_array(ASTRONAUT).icc_export(output_profile="cmyk")
    cmyk.jpegsave(str(tmp_path / "cmyk.jpg"), Q=95)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    assert np.abs(read_all(tmp_path / "cmyk.jpg") - ASTRONAUT.astype(int)).mean() < 8
    (tmp_path / "bad.png").write_bytes(b"")
    image.save(tmp_path / "bad.png", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(read_all(tmp_path / "bad.png"), ASTRONAUT)


def test_deep_pictures_take_a_range(tmp_path, capsys):
    ramp = np.linspace(0, 65535, 128 * 128).reshape(128, 128)
    tifffile.imwrite(tmp_path / "u16.tif", ramp.astype(np.uint16))
    tifffile.imwrite(tmp_path / "i16.tif", (ramp - 32768).astype(np.int16))
    tifffile.imwrite(tmp_path / "f32.tif", (ramp / 65535 * 8 - 3).astype(np.float32))
    expected = np.rint(ramp.astype(np.uint16) / 257)
    for name in ("u16.tif", "i16.tif"):
        assert np.abs(read_all(tmp_path / name)[..., 0] - expected).max() <= 1
    clipped = read_all(tmp_path / "u16.tif", value_range=(16384.0, 49152.0))[..., 0]
    assert np.abs(clipped - np.clip((ramp - 16384) / 32768 * 255, 0, 255)).max() <= 0.51
    float_pixels = read_all(tmp_path / "f32.tif")
    assert float_pixels.shape[2] == 2
    assert np.abs(float_pixels[..., 0] - np.clip((ramp / 65535 - 0.001) / 0.998 * 255, 0, 255)).max() <= 1
    make_from_photographs(tmp_path / "f32.tif", tmp_path / "s.zip", resolution=16, counts=(2,), workers=1)
    assert "f32.tif: floating point, -2.992 becomes black and 4.992 white (--range)." in capsys.readouterr().out
    for text in ("1", "a,b", "3,2", "0,inf", "nan,1"):
        assert "--range" in refusal("make", "--source", tmp_path, "--dest", tmp_path / "x.zip", "--range", text)
    for option in ("--memory", "--cache", "--allow-empty", "--rate"):
        assert option in refusal("make", "--source", tmp_path, "--dest", tmp_path / "x.zip", option, "nan")


def test_what_cannot_be_shown_is_said(tmp_path):
    tifffile.imwrite(tmp_path / "seven.tif", np.zeros((40, 40, 7), np.uint8), planarconfig="contig")
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((40, 40), np.complex64))
    tifffile.imwrite(tmp_path / "nan.tif", np.full((40, 40), np.nan, np.float32))
    for name, words in (("seven", "7 bands"), ("complex", "out of range"), ("nan", "no number that is finite")):
        with pytest.raises(Unreadable, match=words):
            opened(tmp_path / f"{name}.tif")


# What is empty --------------------------------------------------------------------------------------------------------


def test_patches_that_touch_what_is_empty_are_not_taken(tmp_path):
    """No data in the left third, by an alpha, a NaN and GDAL's tag; the rest is grey 100."""
    values = np.full((300, 600), 100, np.float32)
    alpha = np.full((300, 600), 255, np.uint8)
    alpha[:, :200] = 0
    Image.merge("LA", [Image.fromarray(values.astype(np.uint8)), Image.fromarray(alpha)]).save(tmp_path / "alpha.png")
    values[:, :200] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values, tile=(64, 64))
    tag = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "gdal.tif", np.nan_to_num(values, nan=-9999), extratags=tag)
    for name in ("alpha.png", "nan.tif", "gdal.tif"):
        dest = tmp_path / "set.zip"
        options = ["make", "--source", tmp_path / name, "--dest", dest, "--resolution", 32, "--workers", 1, "--force"]
        options += ["--range", "0,255"]
        result = invoke(*options, "--counts", "20,40,60")
        assert result.exit_code == 0, result.output
        dataset = PatchDataset(dest)
        assert all((dataset[i][0] == 100).all() for i in range(len(dataset))), name
        assert 0.3 < np.mean(dataset.labels[:20]) < 0.7
        result = invoke(*options, "--counts", "20,40,60", "--allow-empty", 0.5)
        dataset = PatchDataset(dest)
        shares = np.array([(dataset[i][0] > 150).mean() for i in range(len(dataset))])
        if name == "alpha.png":  # white there
            assert 0.1 < shares.max() <= 0.52
    Image.merge("LA", [Image.new("L", (300, 300)), Image.new("L", (300, 300))]).save(tmp_path / "clear.png")
    options[2], dest = tmp_path / "clear.png", tmp_path / "none.zip"
    options[4] = dest
    assert "none has at most 0% of empty area; all are empty; crop the image." in refusal(*options, "--counts", "5")
    assert not dest.exists()


def test_the_least_empty_patch_says_which_allow_empty_will_do(tmp_path):
    """A checkerboard is half empty wherever it is cut. A dry run says that it does not look."""
    squares = (np.add.outer(np.arange(128) // 8, np.arange(128) // 8) % 2).astype(np.uint8) * 255
    path, dest = tmp_path / "board.png", tmp_path / "set.zip"
    Image.merge("LA", [Image.new("L", (128, 128)), Image.fromarray(squares)]).save(path)
    options = ["make", "--source", path, "--dest", dest, "--resolution", 64, "--workers", 1, "--counts", "1"]
    sentence = refusal(*options)
    found = re.search(
        r"the least empty has (\d+)%; raise --allow-empty to (0\.\d+) or more, or crop the image\.", sentence
    )
    assert found, sentence
    assert int(found[1]) / 100 == float(found[2])
    assert 0.45 <= float(found[2]) <= 0.51
    lower = refusal(*options, "--allow-empty", float(found[2]) - 0.01)
    assert lower.split("; ")[1:] == sentence.split("; ")[1:]
    assert not dest.exists()
    assert f"{path} may have empty areas" in invoke(*options, "--dry-run").output
    assert "may have empty areas" not in invoke(*options, "--dry-run", "--allow-empty", 1).output
    assert invoke(*options, "--allow-empty", found[2]).exit_code == 0
    assert len(PatchDataset(dest)) == 1


def test_one_empty_pixel_is_seen_from_every_level(tmp_path):
    pixels = np.full((1024, 1024, 2), 255, np.uint8)
    pixels[700, 300, 1] = 0
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    _, source = opened(tmp_path / "a.png")
    for side in (1024, 700, 300, 100):
        empty = cut_square(source, side, (300 - side / 2) / max(1024 - side, 1) if side < 600 else 0, 0.9, 16).empty
        assert (empty > 0) == (abs((1024 - side) * 0.9 + side / 2 - 700) < side / 2 + 3 * side / 16)


# What people have in folders ------------------------------------------------------------------------------------------


def test_pictures_are_found_by_what_they_hold(tmp_path, capsys):
    folder = tmp_path / "pictures"
    for name in ("sub/深い", "__MACOSX", ".hidden"):
        (folder / name).mkdir(parents=True)
    image = Image.new("RGB", (64, 64), (10, 10, 10))

    def save(name, format, grey):
        Image.new("RGB", (64, 64), (grey, grey, grey)).save(folder / name, format)

    save("UPPER.PNG", "PNG", 10)
    save("no_suffix", "JPEG", 20)
    save("wrong.jpg", "PNG", 30)
    save("sub/深い/写真 ä.webp", "WEBP", 40)
    save("odd[page=3].png", "PNG", 50)
    save("bits.xyz", "BMP", 60)
    save("scan.pgm", "PPM", 70)
    Image.new("1", (64, 64), 1).save(folder / "one_bit.png")
    for name in ("__MACOSX/._a.png", ".hidden/b.png", ".c.png"):
        (folder / name).write_bytes(b"junk")
    (folder / "notes.txt").write_text("hello")
    (folder / "table.csv").write_text("1,2,3\n4,5,6\n")
    (folder / "draw").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')
    (folder / "linked.png").symlink_to(folder / "UPPER.PNG")
    (folder / "sub" / "circle").symlink_to(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image.save(elsewhere / "far.png")
    (folder / "link").symlink_to(elsewhere)
    if sys.platform == "linux":
        Image.new("RGB", (64, 64), (90, 90, 90)).save(os.fsencode(folder) + b"/latin-\xe9.png", "PNG")
    make_from_photographs(folder, tmp_path / "set.zip", resolution=16, counts=(30,), workers=2)
    dataset = PatchDataset(tmp_path / "set.zip")
    found = {round(float(dataset[i][0].mean())) for i in range(30)}
    assert found == {10, 20, 30, 40, 50, 60, 70, 255} | ({90} if sys.platform == "linux" else set())


def test_bad_files_are_named_or_left_out(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(ASTRONAUT).save(folder / "good.png")
    data = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(data[:5000])
    (folder / "cut_too").write_bytes(data[:9000])
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    arguments = ["make", "--source", folder, "--dest", tmp_path / "s.zip", "--resolution", 32, "--counts", "5"]
    sentence = refusal(*arguments)
    assert "3 of 4 files" in sentence
    assert all(name in sentence for name in ("cut.png", "cut_too", "gone.jpg", "--skip-bad"))
    result = invoke(*arguments, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("cut.png", "cut_too", "gone.jpg", "are left out"))
    (folder / "good.png").unlink()
    assert "cannot be used" in refusal(*arguments, "--skip-bad", "--force")


def test_pages_frames_orientation_palettes_and_interlacing(tmp_path):
    frames = [Image.new("RGB", (40, 30), (i * 50, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    for name in ("a.gif", "a.tif", "a.webp"):
        for page in range(3):
            pixels = read_all(tmp_path / name, page=page)
            assert pixels.shape[:2] == (30, 40)
            assert abs(int(pixels[5, 5, 0]) - 50 * page) <= 2
        with pytest.raises(Unreadable, match=r"has 3 pages, and page 3 is asked for"):
            read_all(tmp_path / name, page=3)
    with pytest.raises(Unreadable, match="has 1 page"):
        Image.new("L", (40, 30)).save(tmp_path / "a.png")
        read_all(tmp_path / "a.png", page=1)
    small = Image.fromarray(ASTRONAUT).resize((48, 32))
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        small.save(tmp_path / "turned.png", exif=exif)
        np.testing.assert_array_equal(read_all(tmp_path / "turned.png"), np.asarray(small.transpose(turn)))
    png = library().Image.new_from_array(np.asarray(small))
    png.pngsave(str(tmp_path / "interlaced.png"), interlace=True)
    np.testing.assert_array_equal(read_all(tmp_path / "interlaced.png"), np.asarray(small))
    palette = small.quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    pixels = read_all(tmp_path / "palette.png")
    index = np.asarray(palette)
    np.testing.assert_array_equal(pixels[..., 3] == 255, index == 3)
    np.testing.assert_array_equal(pixels[index != 3][:, :3], np.asarray(palette.convert("RGB"))[index != 3])


# Hostile input --------------------------------------------------------------------------------------------------------


def claiming(path, width, height, *, interlaced):
    """A PNG of zeros that is what it claims, and small."""
    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(width + 1) * height) + packer.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)),
        (b"IDAT", rows),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


def test_what_must_be_decoded_at_a_time_is_bounded(tmp_path):
    claiming(tmp_path / "interlaced.png", 12_000, 10_000, interlaced=True)
    with pytest.raises(Unreadable, match=r"12000 x 10000 pixels, which its format decodes at a time, 0\.1 GB; raise"):
        opened(tmp_path / "interlaced.png", memory=10**8)
    Image.new("RGB", (6000, 6000)).save(tmp_path / "a.webp")
    with pytest.raises(Unreadable, match="at a time"):
        opened(tmp_path / "a.webp", memory=10**8)
    Image.new("L", (8000, 8000)).save(tmp_path / "a.ppm")
    with pytest.raises(Unreadable, match="at a time"):
        opened(tmp_path / "a.ppm", memory=10**8)
    shape = (8192, 8192, 3)
    tifffile.imwrite(tmp_path / "tile.tif", shape=shape, dtype="uint16", tile=shape[:2], photometric="rgb")
    with pytest.raises(Unreadable, match="tile size out of range"):
        opened(tmp_path / "tile.tif")


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="200" height="200"/>',
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        b"push graphic-context\nviewbox 0 0 640 480\n",
        b"1 2 3\n4 5 6\n",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".svg", ".png", ".csv", ".mat"])
def test_documents_and_scripts_are_not_opened(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(NotAPicture, match=r"is of no known format|is a PDF, not a picture"):
        opened(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.gif", "a.avif", "a.jp2"])
def test_damaged_files_are_one_line(tmp_path, name):
    rng = np.random.default_rng(0)
    path = tmp_path / name
    Image.fromarray(ASTRONAUT[:120, :100]).save(path)
    data = path.read_bytes()
    for i in range(12):
        damaged = bytearray(data)
        if i % 2:
            del damaged[rng.integers(len(data)) :]
        else:
            for place in rng.integers(len(data), size=12):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        forget_sources()
        with contextlib.suppress(Unreadable):
            opened(path)
            continue
        with pytest.raises(Unreadable) as caught:
            opened(path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert len(str(caught.value)) < 400


# Memory ---------------------------------------------------------------------------------------------------------------

MEASURED = """
import sys
import time
from pathlib import Path
import numpy as np
from multiscale.data.cutting import cut_patch
from multiscale.data.pictures import examine, open_source
from multiscale.data.vips import Reading
reading = Reading(threads=2, cache=Path(sys.argv[2]))
source = open_source(examine(Path(sys.argv[1]), reading, 0), reading)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
rng = np.random.default_rng(0)
for i in range(60):
    cut_patch(source, rng.random() * 6, rng.random(), rng.random(), 64)
print(len(source.levels), before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; run it on Linux")
@pytest.mark.parametrize("tile", [True, False])
def test_memory_does_not_grow_with_the_picture(tmp_path, tile):
    """A picture of 430 MB decoded; a process with libvips and NumPy alone takes 50 MB."""
    image = library().Image.black(16_000, 9_000, bands=3).copy(interpretation="srgb")
    image.tiffsave(str(tmp_path / "a.tif"), tile=tile, compression="deflate", bigtiff=True)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "a.tif"), str(tmp_path / "cache")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    levels, built, cut = map(int, done.stdout.split())
    assert levels == 8
    assert built < 150_000
    assert cut < 200_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to a session; run it on Linux")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_levels_are_made_ends_at_once_and_leaves_nothing(tmp_path, workers):
    tile = zlib.compress(bytes(512 * 512 * 3))  # once for all tiles: 3 MB on disk, of which levels of 900 MB are made
    tifffile.imwrite(
        tmp_path / "a.tif",
        itertools.repeat(tile, math.ceil(30_000 / 512) ** 2),
        shape=(30_000, 30_000, 3),
        dtype="uint8",
        tile=(512, 512),
        photometric="rgb",
        compression="zlib",
    )
    command = [sys.executable, "dataset_tool.py", "make", "--source", str(tmp_path / "a.tif")]
    command += ["--dest", str(tmp_path / "s.zip"), "--workers", str(workers)]
    environment = os.environ | {"MULTISCALE_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size > 1_000_000 for path in (tmp_path / "cache").rglob("*.tif")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert list((tmp_path / "cache" / "levels").iterdir()) == []
    assert not (tmp_path / "s.zip").exists()
