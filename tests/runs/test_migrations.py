"""Files of earlier versions open and go on; what they do not know has its default, what changed its meaning migrates."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import GOLDEN, calibrated_generator, small_config, small_patches

from dnnlib.errors import UserError
from multiscale.config import RunConfig, build, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.runs import migrations
from multiscale.runs.folder import began_with
from multiscale.runs.headers import find_network, read_header
from multiscale.runs.journal import read_metrics, read_stats
from multiscale.runs.migrations import FORMAT_VERSION, measured_by_name, read_stored
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import load_newest_state, load_state, save_state, states_of
from multiscale.training import launch
from multiscale.training.resume import choose_folder
from multiscale.training.trainer import Trainer
from multiscale.view import view_transform
from torch_utils.distributed import Process

OLD_RUN = GOLDEN / "run_9d2a32f"


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy of the old run, and its patches, in the current folder."""
    monkeypatch.chdir(tmp_path)
    small_patches(tmp_path / "patches.zip")
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "00000-patches")
    return Path("runs", "00000-patches")


def test_a_snapshot_of_before_shows_what_it_showed():
    kept = np.load(OLD_RUN / "views.npz")
    snapshot = load_snapshot(find_network(OLD_RUN))
    with torch.no_grad():
        images = snapshot.generator(torch.from_numpy(kept["z"]), view_transform(kept["zoom"], kept["centre"]))
    torch.testing.assert_close(images, torch.from_numpy(kept["images"]), atol=1e-5, rtol=0)
    assert snapshot.info["kimg"] == 0.02


def test_a_run_of_before_is_found_and_goes_on_as_it_would_have(old):
    dataset = PatchDataset("patches.zip")
    config, data = began_with(old)
    assert data["patches"] == len(dataset)
    assert choose_folder(None, "patches", config, dataset, is_new=False) == (old, {})
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, kimg=0.04))
    assert choose_folder(str(old), "x", longer, dataset, is_new=False) == (old, {"training.kimg": (0.02, 0.04)})
    trainer = Trainer(longer, dataset, old, Process(torch.device("cpu")))
    trainer.load_state_dict(load_newest_state(old))
    trainer.run()
    expected = [json.loads(line) for line in (OLD_RUN / "went_on.jsonl").read_text().splitlines()]
    lines = [line for line in read_stats(old) if line["kimg"] > 0.02 and "loss/D" in line]
    assert len(lines) == len(expected)
    for line, values in zip(lines, expected, strict=True):
        assert {key: line[key] for key in values} == pytest.approx(values, rel=2e-3)
    assert load_newest_state(old)["images"] == 40

    distances = [(line["kimg"], *line["results"]) for line in read_metrics(old)]
    assert distances == [(0, "swd"), (0.02, "swd"), (0.02, "swd4"), (0.04, "swd4")]
    before, now = (line["results"] for line in read_metrics(old)[1:3])
    assert now["swd4"]["octaves"] == pytest.approx(before["swd"]["octaves"], rel=0.3)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"swd_patches": 0, "metrics": None}, {"metrics": None}),
        ({"swd_patches": 128, "metrics": None, "metrics_every": 5}, {"metrics": "swd128", "metrics_every": 1}),
        (
            {"swd_patches": 128, "metrics": "msfid1k", "metrics_every": 5},
            {"metrics": "msfid1k,swd128", "metrics_every": 5},
        ),
        ({"swd_patches": 128, "metrics": "msfid1k,swd"}, {"metrics": "msfid1k,swd"}),
        ({"swd_patches": 0, "metrics": "swd2k"}, {"metrics": "swd2k"}),
        ({"kimg": 3.0}, {"kimg": 3.0}),
    ],
)
def test_patches_of_the_distance_are_a_measure_by_name_since_format_3(before, now):
    config, _ = read_stored({"config": {"training": before}}, version=2, source="x")
    assert config == build(RunConfig, {"training": now})


@pytest.mark.parametrize("wrong", [{"swd_patches": -1}, {"swd_patches": "many"}, {"swd_patches": 1, "metrics": 5}])
def test_what_was_wrong_before_format_3_is_refused_in_one_sentence(wrong):
    with pytest.raises(UserError, match=r"training\.(swd_patches|metrics)"):
        read_stored({"config": {"training": wrong}}, version=2, source="x")
    for damaged in ({"config": None}, {"config": {"training": 5}}, {}):
        with pytest.raises(UserError, match="must be a section of keys"):
            read_stored(damaged, version=2, source="x")


def test_what_is_typed_for_the_distance_holds_over_what_a_preset_measures():
    assert measured_by_name({"swd_patches": 0}, "swd128") == {"metrics": None}
    assert measured_by_name({"swd_patches": 64}, "msfid1k,swd128") == {"metrics": "msfid1k,swd64"}
    assert measured_by_name({"kimg": 1}, "swd128") == {"kimg": 1}


def test_commands_and_files_of_before_format_3_still_say_what_is_measured(old, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("training: {swd_patches: 64, metrics: msfid20}")

    def metrics(config, *assignments):
        run = launch.resolve(launch.Request(data="patches.zip", gpus=0, config=config, assignments=assignments))
        return run.config.training.metrics

    assert metrics("demo") == "swd128"
    assert metrics("demo", "training.swd_patches=0") is None
    assert metrics("mine.yaml") == "msfid20,swd64"
    assert metrics("mine.yaml", "training.swd_patches=0") == "msfid20"
    assert "In mine.yaml: training.swd_patches is training.metrics=msfid20,swd64 now." in capsys.readouterr().out


def test_a_config_that_is_given_back_means_what_the_run_had_whatever_presets_say_now(old, monkeypatch):
    monkeypatch.setattr(launch, "load_preset", lambda _: {"generator": {"feature_style": True, "fourier_features": 99}})
    settings = {"data": "patches.zip", "outdir": str(old), "gpus": 0, "kimg": 0.04}
    run = launch.resolve(launch.Request(config=str(old / "config.yaml"), **settings))
    assert run.changes == {"training.kimg": (0.02, 0.04)}
    with pytest.raises(UserError, match="has another model"):
        launch.resolve(launch.Request(**settings))


def test_a_setting_that_files_do_not_know_has_its_default_in_all_three_of_them(old):
    state, settings = load_state(states_of(old)[0]), yaml.safe_load((old / "config.yaml").read_text())
    snapshot, _ = read_header(find_network(old))
    assert "feature_style" not in settings["generator"]
    assert settings["training"].pop("swd_patches") == 4  # of before format 3, and no default
    assert state["config"].training.metrics == "swd4"
    settings["training"]["metrics"] = "swd4"
    assert snapshot == state["config"].generator == began_with(old)[0].generator
    assert state["config"] == began_with(old)[0]
    defaults = to_dict(RunConfig())
    for section, values in to_dict(state["config"]).items():
        unknown = values.keys() - settings[section].keys()
        assert {key: values[key] for key in unknown} == {key: defaults[section][key] for key in unknown}


def test_a_setting_that_this_version_does_not_know_is_refused(old):
    state = torch.load(states_of(old)[0], weights_only=True)
    state["config"]["training"]["r1_gama"] = 1.0
    save_state(old, 24, state | {"images": 24})
    with pytest.raises(UserError, match=r"Unknown key training\.r1_gama in .*state-000000024\.pt, did you mean"):
        load_state(states_of(old)[-1])


def test_what_is_renamed_migrates_in_snapshots_states_and_folders(old, monkeypatch):
    """As it would be if what is ``margin`` had been ``border`` up to now, and a tensor had another name too."""
    tensor = "synthesis.input.omega"

    def migrate(contents):
        sections = contents["config"]
        generator = {"margin" if key == "border" else key: value for key, value in sections["generator"].items()}
        weights = {
            name: {tensor if key == "omega" else key: value for key, value in contents[name].items()}
            for name in ("G", "G_ema")
            if name in contents
        }
        return contents | weights | {"config": sections | {"generator": generator}}

    def of_before(values, name):
        return {name[1] if key == name[0] else key: value for key, value in values.items()}

    names = ("margin", "border"), (tensor, "omega")
    generator = calibrated_generator(small_config(margin=7))
    before = torch.load(states_of(old)[0], weights_only=True)
    before["config"]["generator"] = of_before(before["config"]["generator"] | {"margin": 7}, names[0])
    before["G"], before["G_ema"] = (of_before(before[name], names[1]) for name in ("G", "G_ema"))
    save_state(old, 24, before | {"format_version": 2, "images": 24})
    settings = yaml.safe_load((old / "config.yaml").read_text())
    settings["generator"] = of_before(settings["generator"] | {"margin": 7}, names[0])
    (old / "config.yaml").write_text(yaml.safe_dump(settings))
    path = Path("generator-000000024.safetensors")
    with monkeypatch.context() as patch:
        weights = generator.state_dict()
        patch.setattr(generator, "state_dict", lambda: of_before(weights, names[1]))
        patch.setattr("multiscale.runs.snapshots.to_dict", lambda config: of_before(to_dict(config), names[0]))
        save_snapshot(path, generator, {})
    with pytest.raises(UserError, match=r"Unknown key generator\.border"):
        load_snapshot(path)
    assert began_with(old) is None

    monkeypatch.setattr(migrations, "FORMAT_VERSION", FORMAT_VERSION + 1)
    monkeypatch.setitem(migrations.MIGRATIONS, FORMAT_VERSION, migrate)
    assert load_snapshot(path).generator.config.margin == 7
    state = load_state(states_of(old)[-1])
    assert state["config"].generator.margin == began_with(old)[0].generator.margin == 7
    assert tensor in state["G"]
    assert tensor in state["G_ema"]


@pytest.mark.parametrize("file", ["snapshot", "state", "run"])
def test_a_file_of_a_newer_format_is_refused(old, monkeypatch, file):
    monkeypatch.setattr(migrations, "FORMAT_VERSION", 0)
    if file == "run":
        assert began_with(old) is None
        return
    with pytest.raises(UserError, match=rf"has {file} format \d, newer than the format 0 .* update the program"):
        load_snapshot(find_network(old)) if file == "snapshot" else load_state(states_of(old)[0])
