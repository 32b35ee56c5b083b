"""Snapshots of before: what their configuration does not know yet has its default."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.view import view_transform

VIEWS = view_transform([1.0, 8.0], [[0, 0], [0.2, -0.1]])


def without(path, *keys):
    """Take keys out of the configuration that a snapshot holds."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    for key in keys:
        del config[key]
    path.write_bytes(safetensors.torch.save(tensors, metadata | {"config": json.dumps(config)}))


def test_a_snapshot_that_does_not_know_a_setting_opens_with_its_default(tmp_path):
    generator, z = calibrated_generator(small_config()), torch.randn(2, 16)
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, generator, {"kimg": 0})
    without(path, "fourier_features", "feature_share", "feature_style", "world_frame", "margin")
    again = load_snapshot(path).generator
    assert again.config == generator.config
    with torch.no_grad():
        assert torch.equal(again(z, VIEWS), generator(z, VIEWS))


def test_a_snapshot_of_mixed_features_with_styles_and_a_frame_gives_the_same_images(tmp_path):
    options = {"img_resolution": 64, "fourier_features": 100, "feature_style": True, "world_frame": True}
    generator, z = calibrated_generator(small_config(**options)), torch.randn(2, 16)
    torch.nn.init.normal_(generator.synthesis.frame.weight)
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, generator, {"kimg": 0})
    again = load_snapshot(path).generator
    assert again.config == generator.config
    with torch.no_grad():
        assert torch.equal(again(z, VIEWS), generator(z, VIEWS))


@pytest.mark.parametrize("key", ["channel_base", "fourier_features", "world_frame"])
def test_a_snapshot_that_has_lost_a_setting_of_its_shape_is_refused_in_a_sentence(tmp_path, key):
    options = {"img_resolution": 64, "fourier_features": 100, "feature_style": True, "world_frame": True}
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, calibrated_generator(small_config(**options)), {"kimg": 0})
    without(path, key)
    with pytest.raises(UserError, match="do not fit its config") as caught:
        load_snapshot(path)
    assert "\n" not in str(caught.value)
