"""TIFFs whose pages say different things: what belongs to the picture, what to one of its levels, what to neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tifffile
from click.testing import CliRunner
from PIL import Image, ImageCms

from multiscale.cli.dataset_tool import main
from multiscale.data import extents
from multiscale.data.cutting import Box, Source
from multiscale.data.pictures import Picture, examine, forget_sources
from multiscale.data.vips import Reading, Unreadable, library

ASTRONAUT = skimage.data.astronaut()
TILED: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path_factory.mktemp("cache")))
    forget_sources()


def opened(path: Path, **options: Any) -> tuple[Picture, Source]:
    picture = examine(path, Reading(**options), 1 << 30)
    return picture, picture.open(Reading(**options))


def level(source: Source, i: int) -> np.ndarray:
    """A whole level, as int."""
    width, height = source.levels[i][:2]
    return source.read(Box(0, 0, width, height), i).astype(int)


def distance(source: Source, i: int, upright: np.ndarray = ASTRONAUT) -> float:
    """How far a level is from the picture, on average, in levels of 255."""
    width, height = source.levels[i][:2]
    expected = Image.fromarray(upright).resize((width, height), Image.Resampling.BOX)
    return float(np.abs(level(source, i) - np.asarray(expected).astype(int)).mean())


def write(path: Path, subifds: bool, first: dict[str, Any], pixels: np.ndarray = ASTRONAUT) -> Path:
    """A pyramid of three levels, of which only the first has more than it must."""
    with tifffile.TiffWriter(path) as writer:
        levels = [np.asarray(Image.fromarray(pixels).reduce(2**i)) for i in range(3)]
        writer.write(levels[0], **TILED, **first, **({"subifds": 2} if subifds else {}))
        for small in levels[1:]:
            writer.write(small, subfiletype=1, **TILED)
    return path


@pytest.mark.parametrize("subifds", [False, True])
def test_levels_are_turned_as_the_whole_picture(tmp_path: Path, subifds: bool) -> None:
    turned = np.ascontiguousarray(ASTRONAUT[::-1, ::-1])
    path = write(tmp_path / "a.tif", subifds, {"extratags": [(274, 3, 1, 3, True)]}, turned)
    _, source = opened(path)
    assert max(distance(source, i) for i in range(4)) < 4


@pytest.mark.parametrize("subifds", [False, True])
def test_levels_have_the_profile_of_the_whole_picture(tmp_path: Path, subifds: bool) -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = plain.index(b"rXYZ"), plain.index(b"gXYZ")  # entries of the table of tags: name, place, size
    swapped = bytearray(plain)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    path = write(tmp_path / "a.tif", subifds, {"iccprofile": bytes(swapped)})
    _, source = opened(path)
    assert max(distance(source, i, ASTRONAUT[..., [1, 0, 2]]) for i in range(4)) < 4


@pytest.mark.parametrize("marked", [False, True])
def test_another_picture_is_no_level(tmp_path: Path, marked: bool) -> None:
    """Unless the file says that it is one."""
    small = ASTRONAUT[::2, ::2]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(ASTRONAUT, **TILED)
        writer.write(255 - small, subfiletype=1 if marked else 0, **TILED)
    picture, source = opened(tmp_path / "a.tif")
    assert len(picture.own) == 1 + marked
    assert (distance(source, 1) < 6) is not marked
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(ASTRONAUT, **TILED)
        writer.write(small, **TILED)
    assert len(opened(tmp_path / "b.tif")[0].own) == 2, "which leaves out pixels and shows the same"
    assert len(opened(tmp_path / "b.tif", page=0)[0].own) == 1, "that page was asked for"


@pytest.mark.parametrize("kind, is_dropped", [("unspecified", True), ("unassalpha", False)])
def test_a_channel_is_transparency_if_the_file_says_so(tmp_path: Path, kind: str, is_dropped: bool) -> None:
    infrared = np.dstack([ASTRONAUT, np.full(ASTRONAUT.shape[:2], 85, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", infrared, photometric="rgb", extrasamples=[kind])
    picture, source = opened(tmp_path / "a.tif")
    assert (picture.dropped, picture.with_empty) == (is_dropped, not is_dropped)
    expected = ASTRONAUT if is_dropped else np.round(170 + ASTRONAUT / 3)
    np.testing.assert_allclose(level(source, 0)[..., :3], expected, atol=1)
    run = CliRunner().invoke(
        main, ["make", "--source", str(tmp_path / "a.tif"), "--dest", str(tmp_path / "a.zip"), "--dry-run"]
    )
    said = "a.tif: the last channel is left out, as the file does not say that it is transparency."
    assert (said in run.output) is is_dropped


@pytest.mark.parametrize("space", ["lab", "labs", "labq"])
def test_lab_becomes_srgb_or_is_refused(tmp_path: Path, space: str) -> None:
    path = tmp_path / "a.tif"
    library().Image.new_from_array(ASTRONAUT).colourspace(space).tiffsave(str(path))
    if space == "labq":  # 8 bits
        with pytest.raises(Unreadable, match="save it as RGB, or as Lab of 16 bits"):
            opened(path)
        return
    np.testing.assert_allclose(level(opened(path)[1], 0)[..., :3], ASTRONAUT, atol=1)


def test_a_profile_is_what_it_does_not_what_it_is_called(tmp_path: Path) -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert str(plain.profile.profile_description).startswith("sRGB")
    data = bytearray(plain.tobytes())
    red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    for name, profile, expected in (
        ("plain", plain.tobytes(), ASTRONAUT),
        ("swapped", bytes(data), ASTRONAUT[..., [1, 0, 2]]),
    ):
        Image.fromarray(ASTRONAUT).save(tmp_path / f"{name}.png", icc_profile=profile)
        np.testing.assert_allclose(level(opened(tmp_path / f"{name}.png")[1], 0), expected, atol=2)


def test_a_pixel_size_is_that_of_the_page_that_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:  # a thumbnail before the picture
        for pixels, dpi in ((ASTRONAUT[::8, ::8], 30), (ASTRONAUT, 300)):
            writer.write(pixels, photometric="rgb", metadata=None, resolution=(dpi, dpi), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "b.tif", ASTRONAUT, photometric="rgb", resolution=(300, 300), resolutionunit="INCH")
    sizes = [extents._by_pixel_size(opened(tmp_path / name)[0]) for name in ("a.tif", "b.tif")]
    assert sizes[0] == sizes[1]


def test_what_libvips_does_not_read_has_a_way_out(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(ASTRONAUT.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", tile=(128, 128))
    with pytest.raises(Unreadable, match="save it with the colours of a pixel together"):
        opened(tmp_path / "a.tif")
