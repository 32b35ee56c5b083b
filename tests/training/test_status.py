"""Where a run stands, told from its folder, whatever wrote it and whether or not it trains now."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image

from dnnlib.errors import UserError
from multiscale.cli import train
from multiscale.config import RunConfig
from multiscale.runs.folder import launcher
from multiscale.runs.history import write_start
from multiscale.training.resume import report_end
from multiscale.training.status import command_to_resume, find_run, is_training, report_status, save_plot

ROOT = Path(__file__).parents[2]


def tick(kimg: float, **values: object) -> dict[str, object]:
    """A line of statistics as the trainer writes it."""
    line = {
        "kimg": kimg,
        "loss/D": 1.25,
        "loss/G": 1.5,
        "loss/consistency": 0.05,
        "loss/r1": 0.01,
        "logits/real": 0.5,
        "logits/fake": -0.5,
        "logits/real by octave": [0.5, 0.6, None],
        "logits/fake by octave": [-0.5, None, None],
        "gradients/D norm": 3.0,
        "gradients/G norm": 2.0,
        "gradients/D not finite": 0.0,
        "gradients/G not finite": 0.0,
        "augment/p": 0.125,
        "octave mix": [0.5, 0.3, 0.2],
        "seconds/step": 2.0,
        "seconds/data": 0.1,
        "img/s": 8.0,
        "memory/peak GiB": 1.5,
    }
    return line | values


def make_run(folder: Path, lines: list[dict[str, object]], *, kimg: float = 100) -> Path:
    folder.mkdir(parents=True)
    words = ["train.py", "--data", "my patches.zip", "--fresh"]
    environment = {"command": words, "data": "my patches.zip", "preset": "moon", "devices": ["H100", "H100"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "config.yaml").write_text(yaml.safe_dump({"training": {"kimg": kimg, "batch": 16}}))
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """As before format 3, with distances among the statistics."""
    lines = [{"kimg": 0.0, "swd": [0.8, 0.9, 1.0], "swd mean": 0.9}, tick(8), tick(16)]
    lines += [{"kimg": 16, "swd": [0.2, 0.3, 0.4], "swd mean": 0.3}, tick(24)]
    lines += [{"kimg": 24, "swd": [0.4, 0.3, 0.2], "swd mean": 0.31}]
    folder = make_run(tmp_path / "runs" / "00003-moon", lines)
    for images in (16000, 24000):
        for name in (f"generator-{images:09d}.safetensors", f"state-{images:09d}.pt"):
            (folder / name).write_bytes(b"")
            os.utime(folder / name, (time.time() - 600,) * 2)
    return folder


def printed(folder: Path, capsys) -> str:
    report_status(folder)
    return capsys.readouterr().out


def test_a_stopped_run_says_how_far_it_came_and_how_it_goes_on(run, capsys):
    text = printed(run, capsys)
    for expected in (
        r"run +moon on 2 x H100\n",
        r"images +24 of 100 kimg \(24\.0%\), not training now\n",
        r"speed +8 img/s\n",
        r"data wait +5\.0% of a step of 2 s\n",
        r"memory +1\.5 GiB at most\n",
        r"losses +D 1\.25, G 1\.5, consistency 0\.05, r1 0\.01\n",
        r"gradients +norms D 3, G 2; not finite D 0, G 0\n",
        r"augment +p 0\.125\n",
        r"snapshot +generator-000024000\.safetensors, 10 min old\n",
        r"state +state-000024000\.pt, 10 min old\n",
        r"measures +swd +0\.9 -> 0\.3 \(at 16 kimg\) -> 0\.31\n",
        r"by octave +0\.8 0\.9 1 -> 0\.4 0\.3 0\.2\n",
        rf"to resume +python train\.py --data 'my patches\.zip' --outdir {run}\n",
        rf"plot +{run / 'plot.png'}\n",
    ):
        assert re.search(expected, text), expected


def test_a_measure_that_was_taken_once_is_listed_once(tmp_path, capsys):
    lines = [{"kimg": 0.0, "swd": [0.5, 0.65], "swd mean": 0.57571}, tick(0.064)]
    text = printed(make_run(tmp_path / "run", lines), capsys)
    assert re.search(r"\n  measures +swd +0\.5757 at 0 kimg, measured once\n +by octave +0\.5 0\.65\n", text), text


def test_starts_and_the_settings_that_they_changed_are_listed(run, capsys):
    assert "started" not in printed(run, capsys)  # a run of an earlier version
    for kimg, changed in (
        (0, {}),
        (8, {"training.r1_gamma": (1.0, 2.0)}),
        (16, {}),
        (24, {"training.kimg": (50, 100)}),
    ):
        write_start(run, kimg=kimg, changed=changed, begins_with=None, facts={})
    text = printed(run, capsys)
    assert re.search(r"started +4 times, last on \d{4}-\d\d-\d\dT\S+ at 24 kimg\n", text)
    assert re.search(
        r"changed +at 8 kimg: training.r1_gamma: 1.0 -> 2.0\n +at 24 kimg: training.kimg: 50 -> 100\n", text
    )


def test_a_run_that_trains_says_so_and_goes_on_undisturbed(run, capsys):
    with FileLock(run / ".lock", fallback_to_soft=False):
        text = printed(run, capsys)
        assert is_training(run)
    assert "training now\n" in text
    assert "8 img/s, 2 h 38 min left" in text  # 76,000 images
    assert "to resume" not in text
    assert is_training(run) is False
    with FileLock(run / ".lock", blocking=False):
        pass


def test_a_lock_of_another_process_is_seen(run):
    program = f"""
from filelock import FileLock
with FileLock({str(run / ".lock")!r}):
    print("held", flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert is_training(run)
    other.communicate("\n")
    assert is_training(run) is False


def test_looking_writes_nothing_but_the_plot(run):
    before = {path.name for path in run.iterdir()}
    report_status(run)
    assert {path.name for path in run.iterdir()} == before | {"plot.png"}


def test_where_the_plot_cannot_be_written_the_rest_is_said_all_the_same(run, capsys):
    (run / "plot.png").mkdir()  # as on a folder that may only be read, for root as well
    report_status(run)
    said = capsys.readouterr()
    assert "  to resume" in said.out
    assert "plot.png" not in said.out
    assert re.fullmatch(r"No plot was written\. .*plot\.png.*\.\n", said.err)


def test_a_finished_run_is_finished(tmp_path, capsys):
    text = printed(make_run(tmp_path / "run", [tick(8)], kimg=8), capsys)
    assert "8 of 8 kimg (100.0%), finished\n" in text
    assert "to resume" not in text
    assert "left" not in text


def test_gradients_that_were_not_finite_are_counted_over_all_steps(tmp_path, capsys):
    lines = [tick(8), tick(16, **{"gradients/D not finite": 0.5, "loss/D": float("nan")}), tick(24)]
    text = printed(make_run(tmp_path / "run", lines), capsys)
    assert "not finite D 250 (last at 16 kimg), G 0\n" in text  # 0.5 a step, 500 steps a line


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"kimg": 1.0}],
        [{"kimg": 0.0, "swd": [0.5], "swd mean": 0.5}],
        [{"kimg": 0.24, "loss/D": 1.2, "octave mix": [1.0]}],
        [{"kimg": 0.24, "loss/r1": 0.0, "swd": [None, None], "img/s": None}],
        [{"kimg": 1.0, "loss/G": float("nan")}, {"kimg": 2.0, "loss/G": float("inf"), "octave mix": [0.5, None]}],
    ],
)
@pytest.mark.filterwarnings("error")
def test_runs_that_lack_much_are_reported_all_the_same(tmp_path, capsys, lines):
    folder = make_run(tmp_path / "run", lines)
    (folder / "environment.json").unlink()
    (folder / "config.yaml").write_text("")
    text = printed(folder, capsys)
    assert "unknown preset on unknown device" in text
    assert f"images      {lines[-1]['kimg'] if lines else 0:g} kimg, not training now\n" in text


def test_the_newest_run_of_a_folder_is_meant(run):
    older = make_run(run.parent / "00004-older", [tick(8)])
    for path in older.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    (run.parent / "notes.txt").write_text("")
    assert find_run(run.parent) == run
    assert find_run(older) == older


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    for path, words in ((tmp_path / "none", "There is no folder"), (tmp_path, "holds no run")):
        with pytest.raises(UserError, match=words):
            report_status(path)
        result = CliRunner().invoke(train.main, ["--status", str(path)])
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1


def test_damaged_files_beside_a_run_are_named(run):
    (run / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"Cannot read .*environment\.json"):
        report_status(run)


def test_the_command_reports_without_data_and_without_pytorch(run):
    program = f"""
import sys
from multiscale.cli import train
train.main(["--status", {str(run.parent)!r}], standalone_mode=False)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{run}\n")
    assert done.stderr == ""


def test_training_without_data_is_refused():
    result = CliRunner().invoke(train.main, [])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: Missing option '--data'."


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.py", "--data", "a b.zip"], "python train.py --data 'a b.zip' --outdir run"),
        (["train.py", "--data=a", "--outdir", "x", "--fresh"], "python train.py --data=a --outdir x"),
        (["train.py", "--outdir=x", "--resume", "state-1.pt", "--data", "a"], "python train.py --outdir=x --data a"),
        (["train.py", "--resume=state-1.pt", "--data", "a"], "python train.py --data a --outdir run"),
    ],
)
def test_the_command_that_goes_on_leaves_out_what_would_begin_another_run(words, expected):
    assert command_to_resume(words, Path("run")) == expected


def test_a_command_that_resumes_names_the_python_that_has_the_packages(tmp_path, monkeypatch):
    own = tmp_path / "my venv" / "bin"
    for folder in (own, tmp_path / "system"):
        folder.mkdir(parents=True)
        (folder / "python").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(own / "python3"))
    monkeypatch.setenv("PATH", str(own))
    assert launcher() == "python"
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    assert launcher() == f"'{own}/python3'"
    monkeypatch.chdir(tmp_path)
    assert launcher() == "'my venv/bin/python3'"


def test_what_resumes_a_run_is_what_was_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", "p.zip"])
    report_end(tmp_path, RunConfig())
    assert f"To resume: {launcher()} train.py --data p.zip --outdir {tmp_path}\n" in capsys.readouterr().out
    monkeypatch.setenv("MULTISCALE_COMMAND", "make demo")
    report_end(tmp_path, RunConfig())
    assert "To resume: make demo\n" in capsys.readouterr().out


def test_the_plot_has_a_panel_for_what_there_is(run, tmp_path):
    heights = []
    for lines in ([tick(8), tick(16)], [{"kimg": 1.0, "loss/D": 1.0}, {"kimg": 2.0, "loss/D": 0.9}]):
        save_plot(tmp_path / "plot.png", lines, "title")
        image = Image.open(tmp_path / "plot.png").convert("RGB")
        heights.append(image.height)
        assert len(image.getcolors(1 << 24)) > 10
    assert heights[0] > 2 * heights[1]


@pytest.mark.parametrize(
    "name, text",
    [("config.yaml", "training: {kimg: abc}"), ("environment.json", '{"devices": 3}'), ("config.yaml", "training: 5")],
)
def test_a_damaged_file_is_one_sentence(tmp_path, name, text):
    folder = make_run(tmp_path / "run", [{"kimg": 1.0, "loss/D": 1.0}])
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        report_status(folder)
