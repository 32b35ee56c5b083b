"""The commands as users call them: exit codes, one sentence for each mistake, nothing left behind by a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner
from PIL import Image

from multiscale.cli.dataset_tool import main
from multiscale.data.patches import PatchDataset

ROOT = Path(__file__).parents[2]
PATIENCE_SEC = 300


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_sentence(result, *expected):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output
    for text in expected:
        assert text in lines[0]


@pytest.fixture(scope="module")
def demo_zip(tmp_path_factory):
    dest = tmp_path_factory.mktemp("demo") / "patches.zip"
    assert invoke("demo", "--dest", dest, "--resolution", 16, "--counts", "5,6,7", "--workers", 1).exit_code == 0
    return dest


def test_demo_makes_what_inspect_describes(demo_zip, tmp_path):
    result = invoke("inspect", demo_zip, "--sheet", tmp_path / "sheet.png", "--workers", 1)
    assert result.exit_code == 0, result.output
    for text in ("18 RGB patches of 16 x 16", "3 octaves", "4x - 8x         7   38.9%", "no problems"):
        assert text in result.output
    assert Image.open(tmp_path / "sheet.png").format == "PNG"


@pytest.mark.parametrize("name", ["c.jpg", "c.JPEG", "c.webp", "c.tif", "c.png"])
def test_a_sheet_is_of_the_format_that_its_name_says(demo_zip, tmp_path, name):
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".png": "PNG"}
    for sheet in (tmp_path / "as.png", tmp_path / name):
        result = invoke("inspect", demo_zip, "--sheet", sheet, "--workers", 1)
        assert result.exit_code == 0, result.output
        assert f"contact sheet: {sheet}" in result.output
    with Image.open(tmp_path / name) as drawn, Image.open(tmp_path / "as.png") as expected:
        assert drawn.format == formats[Path(name).suffix.lower()]
        difference = np.asarray(drawn).astype(float) - np.asarray(expected)
    assert np.abs(difference).mean() < (4 if drawn.format in ("JPEG", "WEBP") else 1e-9)


def test_a_sheet_of_another_format_is_one_sentence_before_anything_is_read(demo_zip, tmp_path):
    result = invoke("inspect", demo_zip, "--sheet", tmp_path / "c.bmp")
    assert_one_sentence(result, "c.bmp is not allowed; give a name that ends in .png, .jpg, .jpeg, .webp, .tif, .tiff.")
    assert "patches of" not in result.output


def test_a_bundled_photograph_goes_through_make_and_inspect(tmp_path):
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "astronaut.png")
    arguments = ["make", "--source", tmp_path / "astronaut.png", "--dest", tmp_path / "set.zip", "--resolution", 64]
    assert invoke(*arguments, "--counts", "5,10,15", "--workers", 1).exit_code == 0
    assert PatchDataset(tmp_path / "set.zip").counts().tolist() == [5, 10, 15]
    assert invoke("inspect", tmp_path / "set.zip").exit_code == 0
    assert_one_sentence(invoke(*arguments, "--force", "--octaves", 4), "astronaut.png (512 x 512) has 3", "--octaves")


def test_an_existing_dest_is_refused_and_force_replaces_it(demo_zip, tmp_path):
    dest = tmp_path / "patches.zip"
    dest.write_bytes(demo_zip.read_bytes())
    again = ["demo", "--dest", dest, "--resolution", 16, "--counts", "4", "--workers", 1]
    assert_one_sentence(invoke(*again), "--force")
    assert dest.read_bytes() == demo_zip.read_bytes()
    assert invoke(*again, "--force").exit_code == 0
    assert len(PatchDataset(dest)) == 4


def test_a_dry_run_of_the_demo_draws_nothing(tmp_path):
    dest = tmp_path / "patches.zip"
    result = invoke("demo", "--dest", dest, "--resolution", 16, "--counts", "5,6,7", "--dry-run")
    assert result.output == f"{dest} would hold 18 patches, by octave 5, 6, 7: 3 octaves, up to 13.8 kB\n"
    assert not dest.exists()


def test_a_name_of_another_file_is_refused_unless_it_is_a_folders(tmp_path):
    small = ["--resolution", 16, "--counts", "4", "--workers", 1]
    assert_one_sentence(invoke("demo", "--dest", tmp_path / "set.tar", *small), "set.tar ends in .tar", "set.zip")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set.tar").mkdir()
    for name in ("set.tar", "v1.5"):
        assert invoke("demo", "--dest", tmp_path / name, *small).exit_code == 0
        assert len(PatchDataset(tmp_path / name)) == 4


def test_a_set_is_found_below_the_home(demo_zip, monkeypatch):
    monkeypatch.setenv("HOME", str(demo_zip.parent))
    assert len(PatchDataset("~/patches.zip")) == 18


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--resolution", "48"], "power of two"),
        (["--counts", "5,0"], "at least 1"),
        (["--counts", "5,6", "--octaves", "3"], "one for each octave"),
    ],
)
def test_values_that_are_not_allowed_are_one_sentence(tmp_path, arguments, expected):
    assert_one_sentence(invoke("demo", "--dest", tmp_path / "a.zip", *arguments), expected)
    assert list(tmp_path.iterdir()) == []


def test_inspect_lists_all_problems_and_fails(demo_zip, tmp_path):
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(demo_zip) as source, zipfile.ZipFile(bad, "w") as archive:
        names = source.namelist()[:18]
        for i, name in enumerate(names):
            data = source.read(name)
            archive.writestr(name, data[:-20] if i in (3, 7) else data)
        labels = [[name, 0.5 if i < 9 else 2.5] for i, name in enumerate(names)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    result = invoke("inspect", bad, "--sheet", tmp_path / "sheet.png", "--workers", 1)
    assert_one_sentence(result, "3 problems")
    assert "octave 1 holds no patch" in result.output
    assert all(f"{names[i]} is truncated" in result.output for i in (3, 7))
    assert (tmp_path / "sheet.png").exists()
    assert_one_sentence(invoke("inspect", tmp_path / "none.zip"), "There is no")


@pytest.mark.parametrize("command", ["demo", "make", "inspect"])
def test_help_shows_units_and_ranges(command):
    text = invoke(command, "--help").output
    assert "--workers" in text
    if command != "inspect":
        for expected in ("pixels", "16<=x<=1024", "1<=x<=10", "coarse to fine", "[default:"):
            assert expected in text


def start_demo(folder):
    program = [sys.executable, "dataset_tool.py", "demo", "--dest", str(folder / "set.zip"), "--workers", "2"]
    process = subprocess.Popen(
        [*program, "--resolution", "64", "--counts", "100000"], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_SEC
    while not any(path.stat().st_size > 50_000 for path in folder.iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def group_is_gone(group, seconds=60):
    """Whether every process of a session has ended (zombies count as ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        states = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    states.append(fields[0])
        if all(state == "Z" for state in states):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc; run it on Linux")
def test_a_kill_leaves_no_dest_and_no_workers(tmp_path):
    process = start_demo(tmp_path)
    process.kill()
    process.communicate()
    assert group_is_gone(process.pid)
    assert not (tmp_path / "set.zip").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc; run it on Linux")
def test_ctrl_c_leaves_nothing_behind_and_no_traceback(tmp_path):
    process = start_demo(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=PATIENCE_SEC)[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert group_is_gone(process.pid)
    assert list(tmp_path.iterdir()) == []
