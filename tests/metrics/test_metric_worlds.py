"""Measures of whole worlds: seams, the scene itself, and bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches
from PIL import Image

from dnnlib.errors import UserError
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_demo
from multiscale.data.procedural import render
from multiscale.metrics.measures.compression import pyramid_pixels, tile_bytes
from multiscale.metrics.measures.seam import seam_steps
from multiscale.metrics.measures.truth import scene_patches, scene_seed
from multiscale.rendering.renderer import Renderer, to_uint8
from multiscale.view import Region, view_transform


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    torch.manual_seed(0)
    config = small_config(img_resolution=16, octaves=3, channel_max=16, channel_base=256)
    return Renderer(calibrated_generator(config), torch.device("cpu"))


def test_tiles_of_the_renderer_have_no_seams_and_those_of_another_have(renderer, monkeypatch):
    assert seam_steps(renderer, 1, 0, [0, 1]).max() < 1.5

    def uneven(world, region, **_):
        image = Renderer.image(renderer, world, region)
        return image + 0.1 * float(np.random.default_rng(int(1e6 * (region.left + 1))).random())

    monkeypatch.setattr(renderer, "image", uneven)
    assert seam_steps(renderer, 1, 0, [0, 1]).max() > 2


def test_seams_are_looked_for_inside_the_world_at_every_octave(renderer, monkeypatch):
    seen: list[Region] = []

    def look(_, region, **__):
        seen.append(region)
        return torch.zeros(3, region.height, region.width)

    monkeypatch.setattr(renderer, "image", look)
    for octave in range(3):
        assert (seam_steps(renderer, octave, 0, range(20)) == 0).all()
    assert all(region.inside for region in seen)
    assert {(region.width, region.height) for region in seen} == {(32, 32), (16, 16)}


@pytest.mark.parametrize("seed", [0, 7])
def test_the_scene_of_demo_patches_is_recognised_and_drawn(tmp_path, seed):
    make_demo(tmp_path / "p.zip", resolution=16, octaves=2, counts=[3, 3], seed=seed, workers=1)
    assert scene_seed(PatchDataset(tmp_path / "p.zip")) == seed
    image = scene_patches(view_transform([3.0], [[0.1, -0.2]]), 16, seed)[0]
    np.testing.assert_array_equal(image, render((0.1, -0.2), 3.0, 16, seed).transpose(2, 0, 1))


def test_other_patches_have_no_scene(tmp_path):
    for channels in (1, 3):
        with pytest.raises(UserError, match="'truth' needs a scene that is known"):
            scene_seed(PatchDataset(small_patches(tmp_path / f"{channels}.zip", channels=channels)))


def test_bytes_are_those_of_encoded_tiles(renderer, monkeypatch):
    assert pyramid_pixels(16, 3) == [256, 1024, 4096, 16384]
    seen: list[np.ndarray] = []
    image = renderer.image

    def look(world, region):
        seen.append(to_uint8(image(world, region)))
        return image(world, region)

    monkeypatch.setattr(renderer, "image", look)
    found = tile_bytes(renderer, 2, 0, [4])
    stream = io.BytesIO()
    Image.fromarray(seen[0]).save(stream, "png", optimize=True)
    assert found[4]["png"] == stream.tell() / 256
    assert found[4].keys() == {"png", "jpeg", "webp"}
