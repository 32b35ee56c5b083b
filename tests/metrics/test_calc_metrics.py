"""``calc_metrics.py`` and its report: what is printed and written, and what is refused before any work."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import calibrated_generator, small_config, small_patches
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli import calc_metrics
from multiscale.data.patches import PatchDataset
from multiscale.metrics import plots, reals
from multiscale.metrics.commands import labels_of, training_of
from multiscale.metrics.compare import real_images
from multiscale.metrics.features import load_features
from multiscale.metrics.parse import parse_metrics
from multiscale.metrics.pools import Patches
from multiscale.metrics.report import Measured, histories, neighbours_of, trained_apart
from multiscale.metrics.scales import Evaluation
from multiscale.runs.headers import find_networks
from multiscale.runs.journal import METRICS, metrics_line
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from torch_utils.distributed import Process

CPU = Process(torch.device("cpu"))
MEASURES = "msfid20,swd8,precision_recall8,spectrum8,consistency2"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is known of real patches; compiled kernels stay where they are."""
    monkeypatch.setattr(reals, "_folder", lambda: tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches, and a run with two snapshots and another file."""
    folder = tmp_path_factory.mktemp("calc")
    small_patches(folder / "p.zip")
    for kimg, name in ((1, "generator-000001000"), (2, "generator-000002000"), (None, "best")):
        torch.manual_seed(kimg or 3)
        generator = calibrated_generator(
            small_config(img_resolution=16, octaves=3, channel_max=16, channel_base=128, num_layers=6, margin=4)
        )
        save_snapshot(folder / "run" / f"{name}.safetensors", generator, {} if kimg is None else {"kimg": kimg})
    return folder


def command(*words: object) -> Result:
    return CliRunner().invoke(calc_metrics.main, [str(word) for word in words])


def test_how_networks_were_trained_is_said(tmp_path):
    generator = calibrated_generator(small_config(img_resolution=16, octaves=3, num_layers=6, margin=4))
    measured = []
    for name in ("moon", "earth"):
        path = tmp_path / name / "generator-000002000.safetensors"
        save_snapshot(path, generator, {"kimg": 2.0, "data": f"{name}.zip", "patches": 1234})
        (path.parent / "environment.json").write_text(json.dumps({"preset": "small"}) if name == "moon" else "damaged")
        measured.append(Measured(name, path, "", 2.0, f"{name}.zip", training_of(load_snapshot(path)), {}, {}, 0.0))
    assert [m.training for m in measured] == [
        "2 kimg on moon.zip (1,234 patches), preset small",
        "2 kimg on earth.zip (1,234 patches)",
    ]
    assert trained_apart(measured[:1]) is None
    assert "different data (moon.zip, earth.zip)" in trained_apart(measured)


def test_two_snapshots_are_measured_and_reported(place, tmp_path):
    run, out = place / "run", tmp_path / "out"
    (run / METRICS).write_text(metrics_line(0.5, {"swd8": {"value": 9.0}}, {"features": "other"}))
    words = ("--data", place / "p.zip", "--network", run / "generator-*", "--metrics", MEASURES, "--gpus", 0)
    result = command(*words, "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("1 kimg", "2 kimg", "msfid20", "higher is better", "by octave", str(out / "report.html")):
        assert text in result.stdout

    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [1, 2]
    assert all(list(line["results"]) == MEASURES.split(",") for line in lines)
    assert lines[0]["sha256"] != lines[1]["sha256"]
    assert {line["features"] for line in lines} == {"random1-16"}

    assert lines[0]["training"] == "1 kimg on unknown data"
    page = (out / "report.html").read_text("utf-8")
    assert "1 kimg on unknown data" in page
    assert "different data" not in page
    assert not re.search(r"(src|href)=['\"]?(?!data:)\w", page), "nothing outside of the page"
    assert "must not be reported as FID" in page
    pictures = {path.stem: path.read_bytes() for path in out.glob("*.png")}
    titles = {
        "octaves",
        "spectrum8",
        "consistency2",
        "training",
        "samples-0",
        "neighbours-0",
        "samples-1",
        "neighbours-1",
    }
    assert set(pictures) == titles
    for name, png in pictures.items():
        assert np.asarray(Image.open(io.BytesIO(png))).std() > 5, name
    assert page.count("data:image/webp;base64,") == len(titles)
    numbers = json.loads(re.search(r"id=numbers>(.*?)</script>", page, re.DOTALL)[1])
    assert numbers["2 kimg"] == lines[1]["results"]

    again = command(*words, "--out", tmp_path / "again", "--batch", 3)
    assert "real patches" not in again.stderr  # known by now
    value = json.loads((tmp_path / "again" / METRICS).read_text().splitlines()[0])["results"]["msfid20"]["value"]
    assert value == pytest.approx(lines[0]["results"]["msfid20"]["value"], rel=1e-3)


def test_the_cost_of_each_measure_is_printed_and_nothing_is_written(place, tmp_path):
    words = ("--network", place / "run", "--data", place / "p.zip", "--out", tmp_path / "out", "--metrics", MEASURES)
    result = command(*words, "--gpus", 0, "--dry-run")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line[:1].isalpha()}
    assert rows["msfid20"][:2] == ["20", "24"]
    assert rows["precision_recall8"][:2] == ["24", "24"]
    assert rows["consistency2"][:2] == ["8", "0"]
    assert rows["together"][0] == str(20 + 3 * 64 + 8)  # 64 of each octave for the pictures
    assert "2 kimg" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "nowhere"), "There is no network nowhere"),
        (("--network", "nothing-*.safetensors"), "No file matches --network 'nothing-\\*.safetensors'"),
        (("--metrics", "fid10k"), "There is no measure 'fid10k'"),
        (("--features", "inception"), "'inception' need pt_inception-2015-12-05-6726825d.pth"),
        (("--features", "dinov2", "--weights", "DATA"), "is not the published file"),
        (("--weights", "DATA"), "have no weight file"),
        (("--out", "DATA"), "is a file; give a folder"),
        (("--gpus", 0, "--data", "OTHER"), "makes patches of 16 pixels and .* has patches of 32 pixels"),
        (("--metrics", "truth"), "not those of 'python dataset_tool.py demo'"),
        (("--procs", 2, "--gpus", 1), "--procs 2 is for the CPU; give --gpus 0 with it"),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(place, tmp_path, words, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTISCALE_CACHE", str(tmp_path / "empty"))
    names = {"DATA": place / "p.zip", "OTHER": small_patches(tmp_path / "other.zip", side=32)}
    base = {"--network": place / "run", "--data": place / "p.zip"}
    given = [names.get(word, word) for word in words]
    result = command(*(word for pair in base.items() if pair[0] not in given for word in pair), *given)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_networks_are_found_by_file_folder_and_pattern(place, monkeypatch):
    run = place / "run"
    first, second = sorted(run.glob("generator-*"))
    assert find_networks([str(run)]) == [second]
    assert find_networks([f"{run}/generator-*", str(run)]) == [first, second]
    assert find_networks([f"{run}/*.safetensors"]) == [first, second, run / "best.safetensors"]
    monkeypatch.chdir(run)
    assert find_networks([first.name, str(first), ".", str(run)]) == [Path(first.name), Path(second.name)]
    assert find_networks([str(place)]) == [second], "of a folder of runs"
    (run / "empty").mkdir()
    with pytest.raises(UserError, match="holds no snapshot"):
        find_networks([str(run / "empty")])
    snapshots = [load_snapshot(path) for path in find_networks([f"{run}/*.safetensors"])]
    assert labels_of(snapshots) == ["1 kimg", "2 kimg", "best"]
    assert len(set(labels_of([snapshots[0], snapshots[0]]))) == 1  # the same file; --network drops repetitions


def test_curves_over_training_take_what_can_be_compared(place, tmp_path):
    class Seen:
        label, kimg, path = "2 kimg", 2.0, tmp_path / "generator-000002000.safetensors"
        results = {"swd": {"value": 1.0}}  # noqa: RUF012

    facts = {"seed": 0, "features": "random1-16"}
    lines = [
        metrics_line(1.0, {"swd": {"value": 2.0}, "msfid": {"value": 5.0}}, facts),
        metrics_line(1.5, {"swd": {"value": 7.0}}, facts | {"seed": 1}),
        metrics_line(2.0, {"msfid": {"value": 4.0}}, facts),
    ]
    (tmp_path / METRICS).write_text("".join(lines))
    found = histories([Seen()], facts)[tmp_path.name]  # type: ignore[list-item]
    assert found == [
        (1.0, {"swd": {"value": 2.0}, "msfid": {"value": 5.0}}),
        (2.0, {"swd": {"value": 1.0}, "msfid": {"value": 4.0}}),
    ]
    assert plots.training_curves({"run": found}) is not None
    assert plots.training_curves({"run": found[:1]}) is None


def test_plots_leave_out_what_has_no_points(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "as_png", lambda figure: drawn.append(figure) or b"")
    plots.training_curves(
        {
            "whole": [(1.0, {"swd": {"value": 2.0}}), (2.0, {"swd": {"value": 1.0}, "msfid": {"value": 3.0}})],
            "none": [],
            "other": [(1.0, {"kid": {"value": 1.0}})],
            "late": [(1.0, {}), (2.0, {"msfid": {"value": 3.0}}), (3.0, {"msfid": {"value": 1.0}})],
        }
    )
    axes = {ax.get_title(loc="left"): ax for ax in drawn[0].axes if ax.get_visible()}
    assert list(axes) == ["swd", "msfid"]
    assert [line.get_label() for line in axes["swd"].lines] == ["whole"]
    assert [list(line.get_xdata()) for line in axes["msfid"].lines] == [[2.0], [2.0, 3.0]]
    for ax in axes.values():
        assert all(0 < low < high < 4 for low, high in (ax.get_xlim(), ax.get_ylim())), "an axis of names counts from 0"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["whole", "late"]
    nothing = [[float("nan")] * 2] * 2
    plots.consistency_matrices({"broken": {"consistency": {"value": float("nan"), "psnr": nothing}}}, "consistency")
    assert plots.octave_curves({"n": {"swd": {"value": 1.0, "octaves": []}}}, {"swd": {"octaves": ""}}) is None


def test_copies_of_real_patches_are_found_out(place):
    dataset = PatchDataset(place / "p.zip")
    features = load_features("random", dataset.resolution, CPU.device)
    evaluation = Evaluation(parse_metrics("swd8"), dataset, features, CPU, pictures=6)
    evaluation.prepare()
    copies = real_images(dataset, 1, 6)
    noise = np.random.default_rng(0).integers(0, 256, copies.shape, dtype=np.uint8)

    def judge(images: np.ndarray):
        return neighbours_of(Patches({}, features(torch.from_numpy(images)), images), 1, evaluation)

    copied = judge(copies)
    assert copied.closeness == 0
    for fake, index in zip(copied.fake, copied.real, strict=True):
        np.testing.assert_array_equal(fake, dataset[int(index)][0])
    assert judge(noise).closeness > 2
    mixed = judge(np.concatenate([noise[:3], copies[:3]]))
    assert (mixed.distance[:3] == 0).all()
    assert (np.diff(mixed.distance) >= 0).all()
