"""Picture files that were read wrongly, passed over, or refused for a wrong reason, as they are given to ``make``."""

import io
import os
import re

import numpy as np
import pytest
import pyvips
import tifffile
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from multiscale.cli.dataset_tool import main
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import examine, forget_sources
from multiscale.data.vips import Reading, Unreadable, decode

HEIGHT, WIDTH = 128, 160


def drawn():
    """uint8 [128, 160, 3], no two rows or columns alike."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = 128 + 100 * np.sin(x / 7) * np.cos(y / 9)
    rgb = np.stack([x * 255 / (WIDTH - 1), y * 255 / (HEIGHT - 1), waves], -1)
    rgb[:32, :32] = [250, 20, 30]
    rgb[-21:, -53:] = [10, 240, 60]
    return rgb.round().astype(np.uint8)


RGB = drawn()
GREY = np.asarray(Image.fromarray(RGB).convert("L"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path_factory.mktemp("cache")))
    forget_sources()


def make(source, *words, counts="12,12,12"):
    """What ``make`` says, and its patches [36, C, 16, 16]; None if it refuses."""
    dest = source.parent / "made.zip"
    options = ["--dest", dest, "--force", "--resolution", 16, "--octaves", 3, "--counts", counts, "--workers", 1]
    result = CliRunner().invoke(main, [str(word) for word in ("make", "--source", source, *options, *words)])
    if result.exit_code:
        assert result.exit_code == 2, result.output
        return result.output, None
    dataset = PatchDataset(dest)
    return result.output, np.stack([dataset[i][0] for i in range(len(dataset))]).astype(int)


def patches_of(pixels, folder):
    """Those of the same picture as a PNG."""
    Image.fromarray(pixels).save(folder / "reference.png")
    return make(folder / "reference.png")[1]


def test_planes_that_lie_apart_are_put_together(tmp_path):
    planes = np.ascontiguousarray(RGB.astype(np.uint16).transpose(2, 0, 1) * 257)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(make(tmp_path / "a.tif")[1], patches_of(RGB, tmp_path))


@pytest.mark.parametrize("bits", [8, 16])
def test_where_white_is_zero_white_is_white(tmp_path, bits):
    pixels = 255 - GREY if bits == 8 else 65535 - GREY.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert np.array_equal(make(tmp_path / "a.tif")[1], patches_of(GREY, tmp_path))


def jpeg(**options):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def damaged(data):
    """400 zeros in the middle: the decoder finds its way through them, and all that follows is wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes(400) + data[middle + 400 :]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("held", [True, False])
def test_a_jpeg_that_is_damaged_inside_is_named(tmp_path, monkeypatch, progressive, held):
    if not held:  # by way of levels on disk
        monkeypatch.setattr("multiscale.data.pictures.ALWAYS_HELD_BYTES", 0)
    (tmp_path / "a.jpg").write_bytes(damaged(jpeg(progressive=progressive)))
    with pytest.raises(Unreadable, match="Corrupt JPEG data"):
        examine(tmp_path / "a.jpg", Reading(), 0)


def test_a_damaged_jpeg_is_left_out_with_skip_bad(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(damaged(jpeg()))
    Image.fromarray(RGB).save(folder / "good.png")
    said, patches = make(folder)
    assert patches is None
    assert "1 of 2 files" in said
    assert "bad.jpg cannot be decoded" in said
    said, patches = make(folder, "--skip-bad")
    assert "bad.jpg cannot be decoded" in said
    assert np.array_equal(patches, patches_of(RGB, tmp_path))


def test_a_damaged_tile_is_no_tile():
    assert decode(jpeg()).shape == (HEIGHT, WIDTH, 4)
    with pytest.raises(Unreadable, match="Corrupt JPEG data"):
        decode(damaged(jpeg()))


@pytest.mark.parametrize("held", [True, False])
def test_what_cameras_write_into_jpegs_does_no_harm(tmp_path, monkeypatch, held):
    """Bytes between two segments, of which the decoder warns."""
    if not held:
        monkeypatch.setattr("multiscale.data.pictures.ALWAYS_HELD_BYTES", 0)
    whole = jpeg()
    at = whole.index(b"\xff\xdb")
    odd = whole[:at] + bytes(7) + whole[at:]
    with pytest.raises(pyvips.Error, match="7 extraneous bytes"):
        pyvips.Image.new_from_buffer(odd, "", fail_on="warning").avg()
    assert np.array_equal(decode(odd), decode(whole))
    (tmp_path / "odd.jpg").write_bytes(odd)
    (tmp_path / "whole.jpg").write_bytes(whole)
    assert np.array_equal(make(tmp_path / "odd.jpg")[1], make(tmp_path / "whole.jpg")[1])


def test_a_long_text_in_a_png_is_no_fault(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 3_000_000)
    info.add_text("packed", "x" * 3_000_000, zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(make(tmp_path / "a.png")[1], patches_of(RGB, tmp_path))


@pytest.mark.parametrize(
    "name, format", [("camera.jfif", "JPEG"), ("no_suffix", "PNG"), ("UPPER.JPEG", "JPEG"), ("film.apng", "PNG")]
)
def test_a_picture_is_one_by_what_it_holds(tmp_path, name, format):
    folder = tmp_path / "photographs"
    folder.mkdir()
    film = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]} if name == "film.apng" else {}
    Image.fromarray(RGB).save(folder / name, format, **({"quality": 98} if format == "JPEG" else film))
    _, patches = make(folder)
    assert np.abs(patches - patches_of(RGB, tmp_path)).mean() < (1 if format == "JPEG" else 1e-9)


def test_linked_folders_are_searched_and_what_is_passed_over_is_counted(tmp_path):
    folder, elsewhere = tmp_path / "photographs", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    Image.fromarray(RGB).save(elsewhere / "a.png")
    (folder / "link").symlink_to(elsewhere)
    (folder / "again.png").symlink_to(elsewhere / "a.png")
    for name in ("a.txt", "b.txt", "README", ".hidden.png"):
        (folder / name).write_text("words")
    os.mkfifo(folder / "pipe")
    said, patches = make(folder)
    passed = next(line for line in said.splitlines() if line.startswith("Passed over"))
    kinds = passed.removeprefix("Passed over as no pictures: ").removesuffix(".").split(", ")
    assert set(kinds) == {".txt (2)", "no suffix (1)", "hidden (1)", "pipe or device (1)", "another link (1)"}
    assert np.array_equal(patches, patches_of(RGB, tmp_path))
    assert "Passed over" not in make(elsewhere)[0]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "photographs"
    (folder / "shut").mkdir(parents=True)
    Image.fromarray(RGB).save(folder / "a.png")
    scandir = os.scandir

    def refusing(path="."):
        if str(path).endswith("shut"):  # pytest removes folders by descriptors
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    said, patches = make(folder)
    assert patches is None
    assert "1 of 2 files" in said
    assert "shut cannot be read (Permission denied); --skip-bad goes on without them." in said
    said, patches = make(folder, "--skip-bad")
    assert "shut cannot be read" in said
    assert np.array_equal(patches, patches_of(RGB, tmp_path))


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "u4"])
def test_integers_that_are_measurements_have_their_own_range(tmp_path, kind):
    step = 20 if kind[1] != "1" else 1
    values = ((GREY // (1 if step == 20 else 4)).astype(np.int64) * step - (0 if kind[0] == "u" else 30)).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values)
    low, high = int(values.min()), int(values.max())
    said, patches = make(tmp_path / "a.tif")
    assert f"{low} becomes black and {high} white (--range)" in said
    shown = np.rint((values.astype(float) - low) * 255 / (high - low)).astype(np.uint8)
    assert np.array_equal(patches, patches_of(shown, tmp_path))
    said, given = make(tmp_path / "a.tif", f"--range=-{step * 10},{step * 290}")
    assert f"-{step * 10} becomes black" in said
    assert given.max() < patches.max()


def test_the_number_for_none_is_not_in_the_range(tmp_path):
    values = GREY.astype(np.int16) * 20 - 400
    low, high = values.min(), values.max()
    values[:8, :8] = -32768
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-32768", True)])
    said, _ = make(tmp_path / "a.tif")
    assert f"{low} becomes black and {high} white" in said
    tifffile.imwrite(tmp_path / "b.tif", np.full((64, 64), -9, "i2"), extratags=[(42113, "s", 0, "-9", True)])
    assert "holds no number that is not its own sign for none" in make(tmp_path / "b.tif")[0]
    tifffile.imwrite(tmp_path / "c.tif", np.full((HEIGHT, WIDTH), -9, "i2"))
    assert "-9 becomes black and -8 white" in make(tmp_path / "c.tif")[0]


def test_floating_point_numbers_have_the_range_of_nearly_all(tmp_path):
    values = GREY.astype(np.float32) * 3.7 - 11
    tifffile.imwrite(tmp_path / "a.tif", values)
    said, patches = make(tmp_path / "a.tif")
    low, high = np.percentile(values, (0.1, 99.9))
    assert f"{low:g} becomes black and {high:g} white (--range)" in said
    shown = np.rint((values - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8)
    assert np.abs(patches - patches_of(shown, tmp_path)).max() <= 1


@pytest.mark.parametrize(
    "most, suggested",
    [(255, 255), (1023, 1023), (4095, 4095), (3000, 4095), (16383, 16383), (17000, None), (65535, None)],
)
def test_16_bits_of_which_few_are_used_are_answered_with_their_range(tmp_path, most, suggested):
    values = np.linspace(0, most, GREY.size).round().astype(np.uint16).reshape(GREY.shape)
    tifffile.imwrite(tmp_path / "a.tif", values)
    said = make(tmp_path / "a.tif")[0]
    assert (f"--range 0,{suggested} makes that white" in said) == (suggested is not None), said
    assert ("almost black" in said) == (suggested is not None)


def test_a_large_picture_is_looked_at_in_parts_and_a_bright_one_beside_it_says_that_all_bits_are_used(tmp_path):
    values = np.zeros((3000, 4000), np.uint16)
    values[2900:, 3900:] = 4095
    (tmp_path / "set").mkdir()
    tifffile.imwrite(tmp_path / "set" / "a.tif", values, tile=(256, 256))
    assert "0,4095 makes that white" in make(tmp_path / "set")[0]
    tifffile.imwrite(tmp_path / "set" / "b.tif", np.full((200, 200), 60000, np.uint16))
    assert "almost black" not in make(tmp_path / "set")[0]


def test_the_range_of_16_bits_is_said_and_can_be_given(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.uint16) * 16)
    said, patches = make(tmp_path / "a.tif")
    assert "a.tif: 16 bits, 0 becomes black and 65535 white (--range)." in said
    assert patches.max() <= 16
    assert "is above about 4095, so that patches will be almost black; --range 0,4095 makes that white." in said
    said, patches = make(tmp_path / "a.tif", "--range", "0,4080")
    assert "almost black" not in said
    assert "0 becomes black and 4080 white" in said
    assert np.array_equal(patches, patches_of(GREY, tmp_path))


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("subfiletype", [0, 1])
def test_of_several_pages_the_largest_is_read(tmp_path, tile, subfiletype):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB[::4, ::4], photometric="rgb", subfiletype=subfiletype)
        file.write(RGB, photometric="rgb", tile=tile)
        file.write(255 - RGB, photometric="rgb")
    said, patches = make(tmp_path / "a.tif")
    assert "a.tif: page 1 is read, where the first is 0 (--page)." in said
    assert np.array_equal(patches, patches_of(RGB, tmp_path))
    assert "a.tif: the first of 2 pages of its size is read (--page)" in said
    said, patches = make(tmp_path / "a.tif", "--page", 2)
    assert "page 2 is read" in said
    assert "of its size" not in said
    assert np.array_equal(patches, patches_of(255 - RGB, tmp_path))
    said, patches = make(tmp_path / "a.tif", "--page", 0)
    assert re.search(r"\(40 x 32\) has 1; ", said)


def test_channels_that_are_pages_are_counted(tmp_path):
    (tmp_path / "slides").mkdir()
    for name in ("a.ome.tif", "b.ome.tif"):
        tifffile.imwrite(tmp_path / "slides" / name, np.stack([GREY, 255 - GREY, GREY]), metadata={"axes": "CYX"})
    said, patches = make(tmp_path / "slides" / "a.ome.tif")
    assert "a.ome.tif: the first of 3 pages of its size is read (--page), be they channels or frames." in said
    assert np.array_equal(patches, patches_of(GREY, tmp_path))
    assert "2 pictures, such as a.ome.tif: the first of 3 pages" in make(tmp_path / "slides")[0]
    Image.fromarray(RGB).save(tmp_path / "one.tif")
    assert "(--page)" not in make(tmp_path / "one.tif")[0]


def test_a_pyramid_whose_coarsest_level_comes_first_is_read_by_its_levels(tmp_path):
    large = np.kron(RGB, np.ones((4, 4, 1), np.uint8))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for step in (4, 2, 1):
            file.write(large[::step, ::step], photometric="rgb", tile=(64, 64))
    picture = examine(tmp_path / "a.tif", Reading(), 1 << 30)
    assert (picture.width, picture.height, picture.page) == (4 * WIDTH, 4 * HEIGHT, 2)
    assert [(dict(level.options)["page"], level.halvings) for level in picture.own] == [(2, 0), (1, 1), (0, 2)]


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(
    "tags",
    [{"description": "said twice"}, {"extratags": [(305, "B", 3, b"abc", True)], "software": False, "metadata": None}],
)
def test_a_tiff_with_an_untidy_directory_is_read(tmp_path, tags, tile):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=tile, **tags)
    _, patches = make(tmp_path / "a.tif")
    assert np.array_equal(patches, patches_of(RGB, tmp_path))
