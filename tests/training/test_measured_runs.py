"""Runs that measure their snapshots: what is written, what is kept, and that nothing else changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import small_patches
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import stats, tiny_run

from dnnlib.errors import UserError
from multiscale.cli import train
from multiscale.config import RunConfig, build, load_preset, load_yaml, merge
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_demo
from multiscale.metrics import reals
from multiscale.metrics.features import load_features
from multiscale.metrics.parse import parse_metrics
from multiscale.metrics.scales import Evaluation
from multiscale.runs.headers import find_network, snapshots_of
from multiscale.runs.journal import Journal, metrics_line, read_metrics
from multiscale.runs.snapshots import load_snapshot
from multiscale.training.evaluation import is_best
from multiscale.training.launch import data_layer
from multiscale.training.status import report_status
from multiscale.training.trainer import Trainer
from torch_utils import distributed
from torch_utils.distributed import Process

CPU = Process(torch.device("cpu"))
MEASURES = "mskid_octave8,swd8,consistency2"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is known of real patches; compiled kernels stay where they are."""
    monkeypatch.setattr(reals, "_folder", lambda: tmp_path / "cache")


def test_snapshots_are_measured_and_the_best_is_kept(tmp_path, capsys):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    folder = tmp_path / "run"
    folder.mkdir()
    config = tiny_run(dataset, snapshot_kimg=0.004, metrics=MEASURES, metrics_every=2)
    Trainer(config, dataset, folder, CPU).run()
    lines = read_metrics(folder)
    assert [line["kimg"] for line in lines] == [0, 0.008, 0.016, 0.02]
    assert all(list(line["results"]) == MEASURES.split(",") for line in lines)

    first = [line["results"]["mskid_octave8"]["value"] for line in lines]
    best = load_snapshot(folder / "best.safetensors")
    assert best.info["kimg"] == lines[int(np.argmin(first))]["kimg"]
    assert best.info["best"] == {"mskid_octave8": min(first)}
    weights = [safetensors.torch.load_file(path) for path in snapshots_of(folder)]
    kept = safetensors.torch.load_file(folder / "best.safetensors")
    assert sum(all(torch.equal(w[name], kept[name]) for name in kept) for w in weights) == 1
    assert find_network(folder) == snapshots_of(folder)[-1]

    events = EventAccumulator(str(folder)).Reload()
    assert [e.value for e in events.Scalars("metrics/mskid_octave8")] == pytest.approx(first)
    assert events.Scalars("metrics/swd8/octave 1")[-1].value == pytest.approx(
        lines[-1]["results"]["swd8"]["octaves"][1]
    )
    report_status(folder)
    shown = capsys.readouterr().out
    assert f"mskid_octave8     {first[0]:.4g} -> {min(first):.4g}" in shown

    evaluation = Evaluation(
        parse_metrics(MEASURES), dataset, load_features("random", dataset.resolution, CPU.device), CPU, seed=0
    )
    evaluation.prepare()
    again, _ = evaluation.measure(load_snapshot(snapshots_of(folder)[-1]).generator)
    assert again["mskid_octave8"]["value"] == pytest.approx(first[-1], rel=1e-4)  # as calc_metrics.py finds later


def test_measuring_changes_nothing_of_the_run(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    logged = []
    for name, metrics in (("with", MEASURES), ("without", None)):
        folder = tmp_path / name
        folder.mkdir()
        Trainer(tiny_run(dataset, snapshot_kimg=0.008, metrics=metrics), dataset, folder, CPU).run()
        logged.append(stats(folder))
        assert (folder / "best.safetensors").exists() == (folder / "metrics.jsonl").exists() == (metrics is not None)
    assert logged[0] == logged[1]


def _run(process: Process, path: Path, folder: Path) -> None:
    reals._folder = lambda: folder / "cache"
    dataset = PatchDataset(path)
    Trainer(tiny_run(dataset, kimg=0.008, metrics=MEASURES), dataset, folder, process).run()


def test_two_processes_measure_together(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, found = small_patches(tmp_path / "p.zip"), []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        distributed.run(_run, [torch.device("cpu")] * number, path, folder)
        found.append(read_metrics(folder)[0]["results"])
    assert found[0]["mskid_octave8"]["value"] == pytest.approx(found[1]["mskid_octave8"]["value"], rel=1e-3)
    assert found[0]["consistency2"]["value"] == pytest.approx(found[1]["consistency2"]["value"], abs=0.01)


def test_the_best_is_looked_for_among_lines_that_can_be_compared(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    features = load_features("random", dataset.resolution, CPU.device)

    def line(value: float, name: str = "swd8", **changed) -> dict:
        facts = evaluation.facts | changed
        return json.loads(metrics_line(0.1, {name: {"value": value}}, facts))

    evaluation = Evaluation(parse_metrics("swd8,consistency"), dataset, features, CPU)
    assert is_best(evaluation, [line(3), line(2)])
    assert not is_best(evaluation, [line(1), line(2)])
    assert is_best(evaluation, [line(1, seed=5), line(1, features="other"), line(1, "swd9"), line(2)])
    evaluation = Evaluation(parse_metrics("consistency,swd8"), dataset, features, CPU)
    assert is_best(evaluation, [line(1, "consistency"), line(2, "consistency")])  # dB: higher is better
    evaluation = Evaluation(parse_metrics("diversity8"), dataset, features, CPU)
    ratios = [line(value, "diversity8") for value in (2.6, 1.2, 0.9, 0.5)]  # noise is more diverse than any data
    assert [is_best(evaluation, ratios[: n + 1]) for n in range(4)] == [True, True, True, False]


def test_measures_of_steps_that_are_taken_again_are_dropped(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for images in (0, 100, 200):
            journal.measure(images, {"swd": {"value": images, "octaves": [1.0]}}, {"seed": 0})
    Journal(tmp_path, 100).close()
    assert [line["kimg"] for line in read_metrics(tmp_path)] == [0, 0.1]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kimg": 0.2, "resul')  # cut off
    assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.metrics=msfdi"], "training.metrics='msfdi' .*did you mean 'msfid'"),
        (["training.metrics=msfid", "training.metrics_features=inception"], "'inception' need pt_inception"),
        (
            ["training.metrics=msfid", "training.metrics_features=dinov2", "training.metrics_weights=nowhere"],
            "give --set training.metrics_weights=FILE; --set training.metrics_features=random does without",
        ),
        (
            ["training.metrics=msfid", "training.metrics_weights=x"],
            "leave out --set training.metrics_weights, or give --set training.metrics_features=inception",
        ),
        (["training.metrics=precision_recall"], "have|has 4 patches and precision_recall need at least 8"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "empty"))
    path = small_patches(tmp_path / "p.zip", per_octave=4)
    words = ["--data", str(path), "--gpus", "0", "--outdir", str(tmp_path / "run")]
    result = CliRunner().invoke(train.main, [*words, *(word for s in settings for word in ("--set", s))])
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=message):
        raise UserError(result.stderr)
    named = set(re.findall(r"--[a-z-]+", result.stderr))
    assert named <= {option for parameter in train.main.params for option in parameter.opts}


def test_measures_with_random_features_put_snapshots_in_the_order_of_their_training(tmp_path):
    """A small logistic GAN on the demo's planet at 16 pixels, which learns steadily from its first steps on."""
    make_demo(tmp_path / "p.zip", resolution=16, octaves=3, counts=(80, 80, 80), workers=1)
    dataset = PatchDataset(tmp_path / "p.zip")
    measures = "msfid200,mskid200,msfid_octave60,mskid_octave60"
    training = {"kimg": 0.072, "snapshot_kimg": 0.024, "metrics": measures}
    steady = load_yaml(Path(__file__).parents[2] / "benchmarks" / "recipes" / "before.yaml")
    values = merge(data_layer(dataset), load_preset("demo"), steady, {"training": training})
    folder = tmp_path / "run"
    folder.mkdir()
    Trainer(build(RunConfig, values), dataset, folder, CPU).run()
    lines = read_metrics(folder)
    assert [line["kimg"] for line in lines] == pytest.approx([0, 0.024, 0.048, 0.072])
    for name in measures.split(","):
        found = [line["results"][name]["value"] for line in lines]
        assert found == sorted(found, reverse=True), (name, found)
