"""A run has begun when its first state is whole: ended before, nothing is in the way; ended after, the rest is made up."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches
from training.test_state import assert_equal, begin
from training.test_trainer import CPU, stats

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.data.patches import PatchDataset
from multiscale.rendering import files as rendered
from multiscale.rendering.pyramid import Pyramid, write_deep_zoom
from multiscale.rendering.renderer import Renderer
from multiscale.rendering.worlds import World
from multiscale.runs.folder import held, write_beside
from multiscale.runs.states import load_newest_state, states_of
from multiscale.training import trainer as trainer_module
from multiscale.training.launch import Request, resolve

OPTIONS = {"kimg": 0.016, "snapshot_kimg": 0.008, "metrics": "swd4", "metrics_features": "random"}


class Killed(BaseException):
    """Where the process ends."""


def go_on(dataset, folder):
    trainer = begin(dataset, folder, **OPTIONS)
    state = load_newest_state(folder)
    if state is not None:
        trainer.load_state_dict(state)
    trainer.run()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if "tfevents" not in path.name)


def measures(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    dataset = PatchDataset(small_patches(folder / "p.zip"))
    go_on(dataset, folder / "run")
    return dataset, folder / "run"


PLACES = ["save_state", "real_sheet", "sample_sheet", "is_best"]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_anywhere_before_its_first_step_goes_on_and_ends_the_same(
    tmp_path, monkeypatch, whole, place
):
    dataset, undisturbed = whole

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, place, kill)
        with pytest.raises(Killed):
            go_on(dataset, tmp_path / "run")
    assert bool(states_of(tmp_path / "run")) == (place != "save_state")
    go_on(dataset, tmp_path / "run")
    assert files(tmp_path / "run") == files(undisturbed)
    assert stats(tmp_path / "run") == stats(undisturbed)
    assert measures(tmp_path / "run") == measures(undisturbed)
    assert_equal(load_newest_state(tmp_path / "run"), load_newest_state(undisturbed))


@pytest.mark.parametrize("place", ["real_sheet", "sample_sheet"])
def test_a_signal_before_the_first_step_is_heard_and_what_is_left_out_is_made_up(tmp_path, monkeypatch, whole, place):
    dataset, undisturbed = whole
    work = getattr(trainer_module, place)

    def asked(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, place, asked)
        go_on(dataset, tmp_path / "run")
    assert load_newest_state(tmp_path / "run")["step"] == 0
    assert (tmp_path / "run" / "generator-000000000.safetensors").exists() == (place == "sample_sheet")
    go_on(dataset, tmp_path / "run")
    assert files(tmp_path / "run") == files(undisturbed)
    assert stats(tmp_path / "run") == stats(undisturbed)
    assert measures(tmp_path / "run") == measures(undisturbed)


def test_a_signal_at_the_step_of_a_snapshot_does_not_lose_its_measures(tmp_path, monkeypatch, whole):
    dataset, undisturbed = whole
    trainer = begin(dataset, tmp_path / "run", **OPTIONS)
    monkeypatch.setattr(trainer, "_asked_to_stop", lambda _: signal.SIGTERM if trainer.step == 2 else 0)
    trainer.run()
    assert load_newest_state(tmp_path / "run")["step"] == 2
    go_on(dataset, tmp_path / "run")
    assert stats(tmp_path / "run") == stats(undisturbed)
    assert measures(tmp_path / "run") == measures(undisturbed)


def test_what_an_unbegun_run_left_is_not_taken_for_the_next_ones(tmp_path, whole):
    dataset, undisturbed = whole
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("generator-000000000.safetensors", "samples-000000000.png", "reals.png"):
        (folder / name).write_text("of another model")
    (folder / "stats.jsonl").write_text('{"kimg": 0.0, "swd": [9], "swd mean": 9}\n')
    (folder / "metrics.jsonl").write_text('{"kimg": 0.0, "results": {}}\n')
    go_on(dataset, folder)
    assert files(folder) == files(undisturbed)
    assert stats(folder) == stats(undisturbed)
    assert measures(folder) == measures(undisturbed)
    assert (folder / "generator-000000000.safetensors").stat().st_size > 1000


def choose(data, *assignments, **options):
    sets = ["generator.channel_max=16", "generator.channel_base=32", *assignments]
    return resolve(Request(data=str(data), gpus=0, batch=4, assignments=sets, **options), [CPU])


def test_a_folder_whose_run_never_began_is_taken_by_the_next_with_whatever_settings(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    data = whole[0].path
    first = choose(data)
    with held(first.folder):  # killed before it wrote anything
        assert choose(data, "training.seed=5").folder == Path("runs/00001-p-demo")
    assert choose(data, "training.seed=5").folder == first.folder
    write_beside(first.folder, first.config, first.dataset, preset="demo", devices=[CPU])
    (first.folder / "generator-000000000.safetensors").write_text("of the version before")
    for options in ({}, {"fresh": True}, {"outdir": str(first.folder)}, {"outdir": str(first.folder), "fresh": True}):
        run = choose(data, "generator.channel_max=32", **options)
        assert (run.folder, run.goes_on, run.changes) == (first.folder, False, {})


def test_a_run_whose_states_were_removed_is_not_written_over(tmp_path, whole):
    (tmp_path / "generator-000000016.safetensors").write_text("precious")
    with pytest.raises(UserError, match="without a training state"):
        choose(whole[0].path, outdir=str(tmp_path))
    (tmp_path / "generator-000000016.safetensors").unlink()
    (tmp_path / "stats.jsonl").write_text('{"kimg": 1}\n')
    with pytest.raises(UserError, match="without a training state"):
        choose(whole[0].path, outdir=str(tmp_path))


def test_a_pyramid_begun_on_a_full_disk_goes_on(tmp_path, monkeypatch):
    torch.manual_seed(0)
    pyramid = Pyramid(Renderer(calibrated_generator(small_config(octaves=2, num_layers=8)), CPU), World.parse(3))
    path, facts = tmp_path / "w.dzi", {"world": "3"}

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            write_deep_zoom(path, pyramid, facts, lambda _: None)
    write_deep_zoom(path, pyramid, facts, lambda _: None)
    assert path.exists()
    with pytest.raises(UserError, match="other tiles"):
        write_deep_zoom(path, pyramid, {"world": "4"}, lambda _: None)
    with monkeypatch.context() as patch:  # of two that begin at once the second does not mix its tiles with the first's
        other, begun = tmp_path / "o.dzi", []

        def overtaken(*arguments, **options):
            if not begun:
                begun.append(True)
                write_deep_zoom(other, pyramid, facts, lambda _: None)
            return atomic_write(*arguments, **options)

        patch.setattr(rendered, "atomic_write", overtaken)
        with pytest.raises(UserError, match="other tiles"):
            write_deep_zoom(other, pyramid, {"world": "4"}, lambda _: None)
        assert begun
        assert '"world": "3"' in (tmp_path / "o_files" / "made-of.json").read_text()
    (tmp_path / "w_files" / "made-of.json").unlink()
    with pytest.raises(UserError, match="other tiles"):
        write_deep_zoom(path, pyramid, facts, lambda _: None)
