"""Pyramids: tiles fit each other and the levels each other; independent readers see the right pixels; interruption."""

import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from dnnlib.signals import Ended
from multiscale.cli.generate import main as generate
from multiscale.rendering import commands
from multiscale.rendering import pyramid as module
from multiscale.rendering import renderer as renderer_module
from multiscale.rendering.enlarging import enlarged_image
from multiscale.rendering.pyramid import Pyramid, tiff_levels, tiff_tiles, write_deep_zoom, write_tiff
from multiscale.rendering.renderer import Renderer, to_uint8
from multiscale.rendering.worlds import World
from multiscale.view import Region

WORLD = World.parse(3)
FACTS = {"world": "3", "truncation_psi": 1.0, "sha256": "ab"}


@pytest.fixture(scope="module")
def renderer():
    torch.manual_seed(0)
    return Renderer(calibrated_generator(small_config(octaves=4, num_layers=8)), torch.device("cpu"))


@pytest.fixture
def pyramid(renderer, monkeypatch):
    monkeypatch.setattr(module, "TILE_PX", 128)  # 512 a side: levels 0 to 9
    monkeypatch.setitem(renderer_module.TILE_PX, "cpu", 256)  # four blocks of four tiles on the last one
    return Pyramid(renderer, WORLD)


def whole(renderer, level):
    side = 2**level
    return renderer.image(WORLD, Region(left=-0.5, top=-0.5, pitch=1 / side, width=side, height=side))


def psnr(a, b):
    return 10 * math.log10(4 / (a - b).square().mean().item())


def test_levels_and_tiles(pyramid):
    assert (pyramid.side, pyramid.tile_px, pyramid.finest, pyramid.max_level) == (512, 128, 9, 2)
    assert pyramid.tiles == 8 + 4 + 16
    blocks = list(pyramid.blocks())
    assert [len(block.rows) * len(block.columns) for block in blocks] == [1] * 8 + [4] + [4] * 4
    rendered = sum(block.region.width * block.region.height for block in blocks if block.level == 9)
    assert 512**2 < rendered < 1.1 * 512**2, "once, with borders"
    assert pyramid.tile(0, 0, 0).shape == (128, 128, 3)


@pytest.mark.parametrize("address", [(3, 0, 0), (-1, 0, 0), (0, 1, 0), (2, 0, 4), (2, -1, 0)])
def test_tiles_that_are_not_there(pyramid, address):
    with pytest.raises(UserError, match=r"There is no tile {}/{}/{}; z goes from 0 to 2, ".format(*address)):
        pyramid.tile(*address)


def test_levels_that_are_not_there(pyramid):
    with pytest.raises(UserError, match=r"There is no tile 0, 0 on level 10; levels go from 0 to 9, "):
        pyramid.region(10, 0, 0)


def test_tiles_are_parts_of_one_image_without_seams(pyramid, renderer):
    image = whole(renderer, 8)
    for x in range(2):
        for y in range(2):
            part = renderer.image(WORLD, pyramid.region(8, x, y))
            assert psnr(part, image[:, 128 * y : 128 * y + 128, 128 * x : 128 * x + 128]) > 80
            expected = to_uint8(image)[128 * y : 128 * y + 128, 128 * x : 128 * x + 128]
            assert np.abs(pyramid.tile(1, x, y).astype(int) - expected).max() <= 1


def test_a_tile_is_close_to_the_four_below_it(pyramid, renderer, capsys):
    """The measure of cross-scale consistency; an untrained network has only its features in common."""
    coarse, fine = whole(renderer, 8), whole(renderer, 9)
    reduced = torch.nn.functional.avg_pool2d(fine, 2)
    with capsys.disabled():
        print(f" [{psnr(coarse, reduced):.1f} dB]", end="")
    unrelated = renderer.image(4, Region(left=-0.5, top=-0.5, pitch=1 / 256, width=256, height=256))
    assert psnr(coarse, reduced) > psnr(coarse, unrelated) + 3


def test_a_small_world_has_one_small_tile():
    torch.manual_seed(0)
    small = Pyramid(Renderer(calibrated_generator(small_config(octaves=2, num_layers=8)), torch.device("cpu")), WORLD)
    assert (small.side, small.tile_px, small.max_level) == (128, 128, 0)


def test_iiif_is_level_0_and_every_tile_it_lists_is_there(pyramid):
    info = pyramid.iiif_info("http://host/iiif/3")
    assert (info["type"], info["profile"], info["width"], info["height"]) == ("ImageService3", "level0", 512, 512)
    side, factors = info["tiles"][0]["width"], info["tiles"][0]["scaleFactors"]
    assert factors == [1, 2, 4]
    listed = set()
    for factor in factors:  # as the specification has it, section 5.5 of the Image API 3
        across = side * factor
        for x in range(0, 512, across):
            for y in range(0, 512, across):
                region = pyramid.iiif_region(f"{x},{y},{across},{across}", f"{side},{side}")
                listed.add((region.left, region.top, region.pitch))
    assert len(listed) == 16 + 4 + 1
    for size in info["sizes"]:
        assert pyramid.iiif_region("full", f"{size['width']},{size['height']}").width == size["width"]


NOT_LISTED = [
    *[
        "0,0,384,384/max",
        "1,0,128,128/128,128",
        "0,0,128,128/64,64",
        "0,0,384,384/128,128",
        "full/256,256",
        "square/1,1",
    ],
    *["0,0,128,64/128,64", "0,0,0,0/0,0", "0,0,128,128/0,0", "512,0,128,128/128,128", "-1,0,1,1/1,1"],
    f"{'9' * 99},0,1,1/1,1",
]


@pytest.mark.parametrize("request_", NOT_LISTED)
def test_iiif_requests_that_level_0_does_not_have(pyramid, request_):
    with pytest.raises(UserError, match="There is no"):
        pyramid.iiif_region(*request_.split("/"))


def test_deep_zoom_is_read_by_an_independent_program(pyramid, renderer, tmp_path):
    pyvips = pytest.importorskip("pyvips")
    done = []
    write_deep_zoom(tmp_path / "w.dzi", pyramid, FACTS, done.append)
    assert sum(done) == 28
    described = ET.parse(tmp_path / "w.dzi").getroot()
    assert described.attrib == {"Format": "png", "Overlap": "1", "TileSize": "128"}
    assert described[0].attrib == {"Width": "512", "Height": "512"}
    pictures = {level: to_uint8(whole(renderer, level)).astype(int) for level in (3, 8, 9)}
    tiles = {}
    for file in [file for level in pictures for file in (tmp_path / "w_files" / str(level)).iterdir()]:
        level, x, y = int(file.parent.name), *map(int, file.stem.split("_"))
        tile = pyvips.Image.new_from_file(str(file)).numpy().astype(int)
        left, top = max(128 * x - 1, 0), max(128 * y - 1, 0)
        expected = pictures[level][top : 128 * y + 129, left : 128 * x + 129]  # as the format has it; less at the edges
        assert tile.shape == expected.shape
        assert np.abs(tile - expected).max() <= 1
        tiles[level, x, y] = tile
    assert tiles[9, 2, 1].shape == (130, 130, 3)
    assert tiles[9, 3, 0].shape == (129, 129, 3)
    assert tiles[3, 0, 0].shape == (8, 8, 3)
    np.testing.assert_array_equal(tiles[9, 2, 0][:, -2:], tiles[9, 3, 0][:, :2])  # both from one picture
    assert np.abs(tiles[9, 1, 0][:, -2:] - tiles[9, 2, 0][:, :2]).max() <= 1


def test_a_pyramid_of_an_earlier_version_is_not_mixed_with_this_one(pyramid, tmp_path):
    facts = FACTS | {"side": 512, "tile": 128}
    (tmp_path / "w_files" / "0").mkdir(parents=True)
    (tmp_path / "w_files" / "0" / "0_0.png").write_bytes(b"of an earlier version")
    (tmp_path / "w_files" / "made-of.json").write_text(json.dumps(facts, indent=1))
    with pytest.raises(UserError, match="holds tiles without overlap, as an earlier version wrote them"):
        write_deep_zoom(tmp_path / "w.dzi", pyramid, FACTS, lambda _: None)
    with pytest.raises(UserError, match="holds other tiles than these"):
        write_deep_zoom(tmp_path / "w.dzi", pyramid, FACTS | {"world": "4"}, lambda _: None)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["w_files", "0", "0_0.png", "made-of.json"]


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Ended(15), 143)])
@pytest.mark.parametrize(("name", "resumes"), [("w.dzi", True), ("frames", True), ("film.mp4", False)])
def test_what_is_interrupted_says_whether_the_same_command_resumes(tmp_path, monkeypatch, stop, code, name, resumes):
    def stopped(*_, **__):
        raise stop

    for writer in ("write_deep_zoom", "write_film"):
        monkeypatch.setattr(commands, writer, stopped)
    words = ["--pyramid"] if name.endswith(".dzi") else ["--to", "4,0,0", "--video"]
    done = CliRunner().invoke(generate, ["--network", "earth", *words, str(tmp_path / name)])
    assert done.exit_code == code
    assert ("What is done is kept: the same command resumes.\n" in done.stderr) == resumes
    assert ("Nothing of it is kept; frames in a folder (--video FOLDER) resume.\n" in done.stderr) != resumes


def test_an_interrupted_pyramid_goes_on(pyramid, tmp_path):
    path, folder = tmp_path / "w.dzi", tmp_path / "w_files"
    count = 0

    def interrupt(_):
        nonlocal count
        count += 1
        if count == 14:  # in the midst of a block
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_deep_zoom(path, pyramid, FACTS, interrupt)
    assert not path.exists()
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert len(kept) == 14
    write_deep_zoom(path, pyramid, FACTS, lambda _: None)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    tiles = {file: file.read_bytes() for file in folder.rglob("*.png")}
    assert len(tiles) == 28
    (folder / "9" / "0_1.png").unlink()  # its block is rendered again, and gives the same tile
    write_deep_zoom(path, pyramid, FACTS, lambda _: None)
    assert {file: file.read_bytes() for file in folder.rglob("*.png")} == tiles
    with pytest.raises(UserError, match="holds other tiles"):
        write_deep_zoom(path, pyramid, FACTS | {"world": "4"}, lambda _: None)


def test_a_folder_of_somebody_else_is_left_alone(pyramid, tmp_path):
    (tmp_path / "w_files" / "0").mkdir(parents=True)
    with pytest.raises(UserError, match="holds other tiles"):
        write_deep_zoom(tmp_path / "w.dzi", pyramid, FACTS, lambda _: None)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [True, False])
def test_tiff_is_read_as_a_pyramid(renderer, tmp_path, bits, colour):
    pyvips = pytest.importorskip("pyvips")
    if not colour:
        grey = calibrated_generator(small_config(octaves=4, num_layers=8, img_channels=1))
        renderer = Renderer(grey, torch.device("cpu"))
    path, region = tmp_path / "w.tif", Region.of_view(1, (0, 0), 512, 300)
    options = {"bits": bits, "extrapolate": False}
    done = []
    write_tiff(path, renderer, WORLD, region, 1.0, FACTS, **options, advance=done.append)
    assert sum(done) == tiff_tiles(region) == 5
    pages = [pyvips.Image.new_from_file(str(path), page=i) for i in range(2)]
    assert [(page.width, page.height) for page in pages] == [(512, 300), (256, 150)]
    assert json.loads(pages[0].get("image-description")) == FACTS
    assert ("icc-profile-data" in pages[0].get_fields()) == colour
    for page, level in zip(pages, tiff_levels(region), strict=True):
        assert page.bands == (3 if colour else 1)
        pixels = page.numpy().reshape(page.height, page.width, page.bands) / (2**bits - 1) * 2 - 1
        image = renderer.image(WORLD, level).clamp(-1, 1).permute(1, 2, 0).numpy()
        assert np.abs(pixels - image).max() < 3 / 255


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_finer_than_the_model_is_enlarged(renderer, tmp_path, monkeypatch, bits):
    """Tile by tile as the whole picture would be, from as many rows at a time as memory always holds."""
    monkeypatch.setattr(module, "TILE_PX", 64)
    path, region = tmp_path / "w.tif", Region.of_view(8, (0.2, -0.31), 330, 500)  # 7.8 times finer
    rendered, done = [], []
    real = renderer.pixels
    monkeypatch.setattr(renderer, "pixels", lambda *view, **how: rendered.append(view[1]) or real(*view, **how))
    write_tiff(path, renderer, WORLD, region, 1.0, FACTS, bits=bits, enlarge=True, advance=done.append)
    assert sum(done) == tiff_tiles(region) == 6 * 8 + 3 * 4 + 2 * 2 + 1
    assert max(part.height for part in rendered) <= 64 + 2 * 3 + 1 + renderer.generator.plan.step
    with tifffile.TiffFile(path) as file:
        pages = [page.asarray() for page in file.pages]
    levels = tiff_levels(region)
    assert [renderer.extrapolation(level) > 1 for level in levels] == [True, True, True, False]
    for page, level in zip(pages, levels, strict=True):
        expected = enlarged_image(renderer, WORLD, level, 1.0, bits=bits)
        assert page.dtype == expected.dtype
        assert np.abs(page.astype(int) - expected).max() <= (2 if bits == 8 else 16)


def test_a_tiff_finer_than_the_model_leaves_nothing(renderer, tmp_path):
    region = Region.of_view(2, (0, 0), 512, 512)
    with pytest.raises(UserError, match="2 times finer"):
        write_tiff(tmp_path / "w.tif", renderer, WORLD, region, 1.0, FACTS, bits=8, advance=lambda _: None)
    assert list(tmp_path.iterdir()) == []
