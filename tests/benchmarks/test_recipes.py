"""The benchmark of recipes: trains and measures variants, keeps what is done, goes on after a stop and past failures."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from conftest import small_patches
from PIL import Image

from dnnlib.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {
    "generator": {
        "channel_base": 64,
        "channel_max": 16,
        "z_dim": 8,
        "w_dim": 8,
        "num_layers": 4,
        "num_critical": 1,
        "margin": 2,
    },
    "discriminator": {"channel_base": 64, "channel_max": 16},
    "training": {"batch": 4, "snapshot_kimg": 1, "sample_seeds": 1},
}
VARIANTS = {
    "base": None,
    "wide": {"generator": {"channel_base": 128}},
    "broken": {"training": {"consistency_metric": "l1+lpips"}},  # needs larger patches, as train.py says
}
METRICS = "msfid_octave8,consistency2,lattice16,precision_recall8,diversity4"


@pytest.fixture(scope="module")
def recipes() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    import recipes

    yield recipes
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    small_patches(tmp_path / "p.zip", octaves=2, per_octave=16)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False))
    return tmp_path


@pytest.fixture
def command(recipes: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The benchmark in this process; what it starts are processes of their own."""
    threads = torch.get_num_threads()

    def run(*words: object) -> int:
        files = ["--data", place / "p.zip", "--base", place / "tiny.yaml", "--variants", place / "variants.yaml"]
        monkeypatch.setattr(sys, "argv", ["recipes.py", *map(str, [*files, "--out", place / "out", *words])])
        try:
            recipes.main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    yield run
    torch.set_num_threads(threads)


def test_variants_are_trained_measured_and_tabled_and_a_failure_does_not_stop_the_others(command, place, capsys):
    words = ["--kimg", "0.016", "--metrics", METRICS, "--jobs", "3"]
    assert command(*words) == 1
    said = capsys.readouterr()
    assert "FAILED broken-seed0: Error: LPIPS needs images" in said.err
    found = json.loads((place / "out" / "table.json").read_text())
    assert list(found["summaries"]) == ["base", "wide"]
    assert set(found["runs"]) == {"base-seed0", "wide-seed0"}
    wide, base = (found["runs"][f"{name}-seed0"] for name in ("wide", "base"))
    assert wide["g_parameters"] > base["g_parameters"]
    assert wide["d_parameters"] == base["d_parameters"]
    assert wide["kimg"] == 0.016
    assert wide["images_per_sec"] > 0 < wide["cpu_seconds_an_image"]
    assert len(found["summaries"]["wide"]["lattice16_octaves"]["mean"]) == 2
    table = (place / "out" / "table.md").read_text()
    assert table.strip() == said.out.strip()
    assert "| wide | 1 |" in table
    assert "| over base | msfid_octave8 |" in table
    assert Image.open(place / "out" / "sheet.png").height > 2 * 128

    measures = place / "out" / "base-seed0.json"
    before = measures.stat().st_mtime_ns
    assert command(*words, "--only", "wide,base") == 0
    assert measures.stat().st_mtime_ns == before
    assert "| over wide |" in capsys.readouterr().out


def test_equal_time_gives_each_run_a_length_of_its_own(recipes, place, monkeypatch):
    trained = []
    monkeypatch.setattr(recipes, "train", lambda run, options, kimg, workers, *more: trained.append((kimg, *more)))
    lines = [
        {"kimg": 0.004 * i, "seconds/cpu": 8.0 if i < 10 else 0.8, "seconds/step": 0.5, "img/s": 8.0}
        for i in range(1, 49)
    ]
    monkeypatch.setattr(recipes, "read_stats", lambda folder: lines)
    config = SimpleNamespace(training=SimpleNamespace(batch=4))
    run = recipes.Run("base", 0, config, place / "base-seed0")
    options = SimpleNamespace(kimg=None, cpu_seconds=100.0, data="p.zip")
    assert recipes.kimg_of(run, options, None) == 0.5  # at 0.2 s an image, without the warm-up
    assert trained == [(0.192, "--set", "training.lr_end=1")]  # in the first half of the run rates do not fall
    assert recipes.kimg_of(run, options, None) == 0.5
    assert len(trained) == 1  # decided once
    assert recipes.kimg_of(run, SimpleNamespace(kimg=3.0), None) == 3.0


def test_a_run_whose_rates_fall_keeps_its_length(recipes, place, monkeypatch):
    run = recipes.Run("base", 0, SimpleNamespace(training=SimpleNamespace(batch=4)), place / "base-seed0")
    asked = []
    workers = SimpleNamespace(run=lambda words, log: asked.append(words))
    for lr_end, kimg, message in (
        (0.1, 3.0, "a length of 2 kimg, .* rates fall; give that and not 3"),
        (0.1, 2.0, "no snapshot"),
        (1.0, 3.0, "no snapshot"),
    ):
        began = SimpleNamespace(training=SimpleNamespace(lr_end=lr_end, kimg=2.0))
        monkeypatch.setattr(recipes, "began_with", lambda folder, began=began: (began, {}))
        with pytest.raises(RuntimeError, match=message):
            recipes.train(run, SimpleNamespace(data="p.zip", gpus=0), kimg, workers)
    assert len(asked) == 2


def test_other_settings_or_patches_in_a_folder_are_refused(recipes, place):
    options = SimpleNamespace(base=str(place / "tiny.yaml"), variants=str(place / "variants.yaml"), only="wide")
    options.out, options.seeds = place / "out", [0, 1]
    dataset = recipes.PatchDataset(place / "p.zip")
    run, other = recipes.plan_runs(options, dataset)
    assert (run.name, other.name, other.config.training.seed) == ("wide-seed0", "wide-seed1", 1)
    recipes.write_config(run)
    run.folder.mkdir()
    recipes.write_config(run)
    (place / "variants.yaml").write_text("wide: {generator: {channel_base: 256}}")
    with pytest.raises(UserError, match=r"begun with other settings \(generator.channel_base: 128 -> 256\)"):
        recipes.write_config(recipes.plan_runs(options, dataset)[0])
    recipes.check_data(options.out, str(place / "p.zip"))
    with pytest.raises(UserError, match="trained on other patches"):
        recipes.check_data(options.out, str(small_patches(place / "q.zip")))


@pytest.mark.parametrize(
    ("text", "only", "message"),
    [
        ("wide: {generator: {chanel_base: 2}}", None, "Unknown key generator.chanel_base in variant wide"),
        ("wide: {}", "wise", "no variant 'wise'.*did you mean 'wide'"),
        ("a/b: {}", None, "becomes a folder"),
        ("", None, "has no variants"),
        ("long: {training: {kimg: 3}}", None, "Variant long in .* has training.kimg.* give --kimg or --cpu-seconds"),
        ("other: {training: {seed: 1}}", None, "training.seed.* give --seeds"),
    ],
)
def test_mistakes_in_the_variants_are_named(recipes, tmp_path, text, only, message):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        recipes.load_variants(str(tmp_path / "v.yaml"), only)


@pytest.mark.parametrize(
    "words", [["--kimg", "nan"], ["--kimg", "inf"], ["--cpu-seconds", "0"], ["--kimg=1", "--jobs", "-1"]]
)
def test_lengths_are_numbers_above_0(command, place, words):
    assert command(*words) == 2
    assert not (place / "out").exists()


def test_seeds_are_read_as_generate_reads_them(recipes):
    assert recipes.parse_seeds("0-2") == [0, 1, 2]
    assert recipes.parse_seeds("5,0-1,5") == [5, 0, 1]
    for text, sentence in (
        ("2-0", "run backwards"),
        ("x", "cannot be read"),
        ("3~7:0.5", "3~7:0.5 is not a seed of a training"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=sentence):
            recipes.parse_seeds(text)


@pytest.mark.parametrize(("jobs", "threads"), [(1, 3), (2, 1), (9, 1)])
def test_jobs_share_the_threads_that_are_allowed(recipes, command, monkeypatch, jobs, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    found = []
    monkeypatch.setattr(recipes, "complete_all", lambda runs, options, workers: (found.append(workers), ({}, []))[1])
    assert command("--kimg", "1", "--jobs", jobs) == 0
    assert found[0].environment["OMP_NUM_THREADS"] == str(threads)


def test_tables_call_equal_what_lies_within_the_scatter(recipes):
    columns = [
        recipes.Column("a", "a", lambda r: r["a"]),
        recipes.Column("b", "b", lambda r: r["b"], as_difference=True),
    ]
    summaries = {
        name: recipes.summarise([{"a": a, "b": b} for a, b in values], columns)
        for name, values in {
            "base": [([1, 10], 20), ([3, 12], 21)],
            "other": [([2, 22], 24), ([4, 22], 24)],
        }.items()
    }
    assert summaries["base"]["a"]["mean"] == [2, 11]
    assert recipes.table(summaries, columns, {"base": 2, "other": 2})[2:] == [
        "| base | 2 | 2.00 11.0 | 20.5 ± 0.50 |",
        "| other | 2 | 3.00 22.0 | 24.0 |",
    ]
    assert recipes.ratio_table(summaries, columns)[2:] == ["| other | = 2.00 | +3.5 dB |"]


def test_numbers_are_short(recipes):
    assert [recipes.short(v, 3) for v in (0, 449.4, 0.01523, 43_884, 1_250_000)] == [
        "0",
        "449",
        "0.0152",
        "43.9 k",
        "1.25 M",
    ]


def test_what_runs_is_asked_to_stop(recipes, tmp_path):
    workers, ends = recipes.Workers(1), []

    def run():
        try:
            workers.run(["-c", "import time; time.sleep(60)"], tmp_path / "log")
        except recipes.Stopped:
            ends.append("stopped")

    thread = threading.Thread(target=run)
    thread.start()
    while not workers._running:
        assert thread.is_alive()
        time.sleep(0.01)
    workers.stop()
    thread.join(timeout=120)
    assert ends == ["stopped"]
    with pytest.raises(recipes.Stopped):
        workers.run(["-c", "pass"], tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"ValueError: no \(exit code 1"):
        recipes.Workers(1).run(["-c", "raise ValueError('no')"], tmp_path / "log")
