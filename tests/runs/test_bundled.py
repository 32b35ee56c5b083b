"""The bundled model: small, whole, says how it was trained, and shows something at every zoom; packing another."""

import json

import pytest
import safetensors
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config

import multiscale
from dnnlib.errors import UserError
from multiscale.cli.pack import main as pack
from multiscale.explorer.networks import header_facts
from multiscale.metrics.commands import labels_of
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.runs.headers import BUNDLED, find_network, find_networks
from multiscale.runs.remote import bundled_networks, existing_path
from multiscale.runs.snapshots import load_snapshot, save_snapshot


@pytest.fixture(scope="module")
def bundled():
    return load_snapshot(BUNDLED)


def test_it_is_small_and_in_half_precision():
    assert BUNDLED.stat().st_size < 6e6
    with safetensors.safe_open(BUNDLED, framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - not a dict
    assert {kind for name, kind in kinds.items() if name.endswith(("weight", "bias"))} == {torch.float16}
    assert kinds["synthesis.input.omega"] == torch.float32


def test_it_says_how_it_was_trained(bundled):
    assert bundled.generator.config.octaves >= 5
    assert bundled.info["kimg"] > 0
    for name in ("msfid_octave300", "swd256"):
        assert len(bundled.info["measures"][name]["octaves"]) == bundled.generator.config.octaves
    assert {"schedule", "training", "discriminator"} <= set(bundled.info["trained with"])


def test_it_shows_something_at_every_zoom(bundled):
    renderer = Renderer(bundled.generator, torch.device("cpu"))
    for octave in range(bundled.generator.config.octaves + 1):
        pixels = renderer.render([0, 1, 4, 9], [2.0**octave] * 4, [(0.1, -0.07) if octave > 2 else (0, 0)] * 4)
        assert pixels.std() > 15
        assert (pixels == 255).mean() < 0.05


def test_it_has_a_name_wherever_a_network_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundled_networks() == {"earth": BUNDLED, "earth64": BUNDLED}
    for name in ("earth", "earth64", "Earth", "EARTH64", "earth/"):
        assert find_network(name) == find_networks([name])[0] == multiscale.load(name).path == BUNDLED
    with pytest.raises(
        UserError, match=r"There is no network mars; give .*, or a bundled one by name \(earth, earth64\)"
    ):
        find_network("mars")
    with pytest.raises(UserError, match=r"There is no network earth; give a \.pkl of the published code\.$"):
        existing_path("earth", "a .pkl of the published code", bundled=False)
    own = tmp_path / "earth" / "generator-000000001.safetensors"
    own.parent.mkdir()
    own.touch()
    for name in ("earth", "earth/"):
        assert find_network(name).absolute() == own, "what lies there comes first"


def test_packing_keeps_the_pictures(tmp_path):
    torch.manual_seed(0)
    generator = calibrated_generator(small_config(octaves=3))
    save_snapshot(tmp_path / "run" / "generator-000001000.safetensors", generator, {"kimg": 1.0})
    (tmp_path / "run" / "config.yaml").write_text("training: {kimg: 1}\ngenerator: {octaves: 3}\n")
    (tmp_path / "run" / "stats.jsonl").write_text(json.dumps({"kimg": 1.0, "swd": [0.5], "swd mean": 0.5}) + "\n")
    packed_file = tmp_path / "packed.safetensors"
    options = ["--info", "title=Earth = Terra", "--info", "after_kimg=104"]
    done = CliRunner().invoke(pack, [str(tmp_path / "run"), str(packed_file), *options])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(pack, [str(tmp_path), str(tmp_path / "again.safetensors"), *options])
    assert f"run/generator-000001000.safetensors (1 kimg), the snapshot written last in {tmp_path}" in again.stderr
    assert load_snapshot(tmp_path / "again.safetensors").info == load_snapshot(packed_file).info, "of a folder of runs"
    packed = load_snapshot(tmp_path / "packed.safetensors")
    assert packed.info == {
        "kimg": 1.0,
        "measures": {"swd": {"value": 0.5, "octaves": [0.5], "better": "lower"}},
        "trained with": {"training": {"kimg": 1}},
        "title": "Earth = Terra",
        "after_kimg": 104.0,
    }
    z, region = torch.randn(1, 16), torch.eye(3, dtype=torch.float64)[None]
    torch.testing.assert_close(packed.generator(z, region), generator(z, region).detach(), atol=0.02, rtol=0)
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.7 * (
        tmp_path / "run" / "generator-000001000.safetensors"
    ).stat().st_size


def test_packing_without_a_name_leaves_the_bundled_model_alone(tmp_path):
    before = BUNDLED.read_bytes()
    save_snapshot(tmp_path / "generator-000000000.safetensors", calibrated_generator(small_config(octaves=3)), {})
    refused = CliRunner().invoke(pack, [str(tmp_path)])
    assert refused.exit_code == 2
    assert "Missing argument 'FILE'" in refused.stderr
    assert BUNDLED.read_bytes() == before


@pytest.mark.parametrize(
    "words, said",
    [
        ("title", "not KEY=VALUE"),
        ("=Earth", "not KEY=VALUE"),
        ("title=", "not KEY=VALUE"),
        ("kimg=many", "not a number of thousands of images"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(tmp_path, words, said):
    refused = CliRunner().invoke(pack, [str(tmp_path), str(tmp_path / "x.safetensors"), "--info", words])
    assert refused.exit_code == 2
    assert f"--info {words} is {said}" in refused.stderr


@pytest.mark.parametrize("kimg", ["many", None, [3], float("inf")])
def test_a_snapshot_that_says_nothing_sensible_of_its_training_is_measured_and_described_all_the_same(tmp_path, kimg):
    info = {} if kimg is None else {"kimg": kimg}
    save_snapshot(tmp_path / "x.safetensors", calibrated_generator(small_config(octaves=3)), info)
    snapshot = load_snapshot(tmp_path / "x.safetensors")
    assert snapshot.kimg is None
    assert labels_of([snapshot]) == ["x"]
    assert provenance(snapshot)["kimg"] is None
    assert header_facts(snapshot.path)["kimg"] is None
