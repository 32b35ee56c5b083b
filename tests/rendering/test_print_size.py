"""What pictures' files state of themselves."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from multiscale.rendering.files import ENCODERS, encode_jpeg, srgb_profile


def stated_inch(data: bytes, ending: str) -> tuple[float, float] | None:
    """Pixels an inch across and down, as a file states them; None if it does not."""
    with Image.open(io.BytesIO(data)) as image:
        if ending == "png":
            return image.info.get("dpi")
        tags = image.tag_v2 if ending == "tif" else image.getexif()
        inch = (float(tags[282]), float(tags[283])) if tags.get(296) == 2 else None
        if ending == "jpg":  # JFIF, which comes before EXIF, says the same
            assert (image.info["jfif_density"] if image.info["jfif_unit"] == 1 else None) == inch
        return inch


@pytest.mark.parametrize("ending, dtype", [("jpg", "u1"), ("webp", "u1"), ("tif", "u2"), ("png", "u1"), ("png", "u2")])
def test_a_picture_states_its_pixels_an_inch_if_they_are_given(ending, dtype):
    pixels = np.full((8, 16, 3), 100, dtype)
    encode = ENCODERS[f".{ending}"]
    assert stated_inch(encode(pixels, {"world": "3"}), ending) is None
    assert stated_inch(encode(pixels, {"world": "3", "dpi": 300}), ending) == pytest.approx((300, 300), abs=0.02)


def test_a_picture_of_16_bits_that_states_them_is_the_same_picture():
    pixels = np.arange(8 * 16 * 3, dtype=np.uint16).reshape(8, 16, 3)
    plain, stating = (ENCODERS[".png"](pixels, facts) for facts in ({}, {"dpi": 72}))
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(stating)) as other:
        np.testing.assert_array_equal(one, other)
        assert json.loads(other.text["multiscale"]) == {"dpi": 72}


@pytest.mark.parametrize("ending, dtype", [("jpg", "u1"), ("webp", "u1"), ("tif", "u1"), ("tif", "u2")])
def test_a_picture_in_colour_has_the_profile_of_srgb_and_the_same_bytes_at_any_time(ending, dtype):
    encode = ENCODERS[f".{ending}"]
    pixels = np.full((8, 16, 3), 100, dtype)
    data = encode(pixels, {"world": "3"})
    with Image.open(io.BytesIO(data)) as image:
        found = image.info["icc_profile"]
    profile = ImageCms.ImageCmsProfile(io.BytesIO(found))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    ramp = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    shown = ImageCms.profileToProfile(Image.fromarray(ramp), profile, ImageCms.createProfile("sRGB"))
    np.testing.assert_allclose(np.asarray(shown, int), ramp, atol=1)
    srgb_profile.cache_clear()
    time.sleep(1.1)  # what was made a second later would say so
    assert encode(pixels, {"world": "3"}) == data


@pytest.mark.parametrize("ending", sorted(ENCODERS))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_has_the_pixels(ending, channels):
    row = np.arange(16, dtype=np.uint8)[None, :, None] * 8
    pixels = np.repeat(row + np.arange(8, dtype=np.uint8)[:, None, None] * 10, channels, axis=2)
    with Image.open(io.BytesIO(ENCODERS[ending](pixels, {"world": "3"}))) as image:
        assert image.mode == ("L" if channels == 1 and ending != ".webp" else "RGB")
        found = np.asarray(image.convert("L" if channels == 1 else "RGB"), int).reshape(pixels.shape)
    np.testing.assert_allclose(found, pixels, atol=0 if ending in (".png", ".tif", ".tiff") else 4)


def test_a_picture_in_grey_and_a_tile_have_no_profile():
    grey = np.full((8, 16, 1), 100, np.uint8)
    files = [ENCODERS[ending](grey, {}) for ending in (".jpg", ".tif")] + [encode_jpeg(np.full((8, 8, 3), 9, np.uint8))]
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            assert not image.info.get("icc_profile")
