"""Snapshots of before: what their configuration does not know yet has its default."""

import hashlib
import json

import pytest
import safetensors
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config

from dnnlib.errors import UserError
from multiscale.cli.generate import main as generate
from multiscale.runs.snapshots import checksum, load_snapshot, save_snapshot
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


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, calibrated_generator(small_config()), {"kimg": 0})
    return path


def contents(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_snapshot_holds_the_checksum_of_its_tensors(saved):
    metadata, tensors = contents(saved)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        shape = ", ".join(map(str, tensors[name].shape))
        digest.update(f'["{name}", "torch.float32", [{shape}]]'.encode() + tensors[name].numpy().tobytes())
    assert metadata["sha256"] == digest.hexdigest()


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_of_the_weights_is_one_sentence(saved, place):
    data = bytearray(saved.read_bytes())
    first = 8 + int.from_bytes(data[:8], "little")
    data[first + round(place * (len(data) - 1 - first))] ^= 1
    saved.write_bytes(data)
    result = CliRunner().invoke(generate, ["--network", str(saved), "--out", str(saved.parent / "out")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {saved} is damaged: its weights are not those that were saved (SHA-256); get it anew from where it came "
        "from, or use another snapshot of the run.\n"
    )


def test_weights_under_each_others_names_are_damage(saved):
    metadata, tensors = contents(saved)
    a, b = "synthesis.layers.0.bias", "synthesis.layers.1.bias"
    tensors[a] = tensors[a] + 1
    safetensors.torch.save_file(tensors, saved, metadata | {"sha256": checksum(tensors)})
    load_snapshot(saved)
    safetensors.torch.save_file(
        {**tensors, a: tensors[b], b: tensors[a]}, saved, metadata | {"sha256": checksum(tensors)}
    )
    with pytest.raises(UserError, match="is damaged"):
        load_snapshot(saved)


def test_what_a_snapshot_says_of_itself_may_be_edited_and_the_checksum_be_missing(saved):
    metadata, tensors = contents(saved)
    safetensors.torch.save_file(tensors, saved, metadata | {"info": json.dumps({"title": "Moon"})})
    assert load_snapshot(saved).info == {"title": "Moon"}
    del metadata["sha256"]
    tensors["synthesis.layers.0.bias"] += 1
    safetensors.torch.save_file(tensors, saved, metadata)
    assert load_snapshot(saved).info == {"kimg": 0}


def test_loading_costs_the_caller_no_random_numbers(tmp_path):
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, calibrated_generator(small_config()), {"kimg": 0})
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_snapshot(path)
    assert torch.equal(torch.rand(3), expected)
