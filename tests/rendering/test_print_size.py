"""What pictures' files state of themselves."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from multiscale.rendering.files import ENCODERS


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
