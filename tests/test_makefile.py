"""What ``make demo`` chooses to train on; pip and the programs are stood in for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("pip, scene, other", [("true", "earth", "planet"), ("false", "planet", "earth")])
def test_the_demo_trains_on_earth_where_pip_can_get_it_else_on_the_planet_and_says_so(tmp_path, pip, scene, other):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in (".venv/bin/python", ".venv/.run"):
        (tmp_path / name).touch()

    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # of make test

    def output(pip):
        words = ["make", "demo", f"PIP={pip}", "RUN=echo ran"]
        done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    first = output(pip)
    assert f"ran train.py --data demo/{scene}.zip --config demo\n" in first
    assert f"ran dataset_tool.py {scene.replace('planet', 'demo')} --dest demo/{scene}.zip --resolution 32" in first
    assert f"{other}.zip" not in first
    assert first.count("procedural planet") == (scene == "planet")
    assert recipe_says(tmp_path, "MULTISCALE_COMMAND='make demo'"), "what resumes it is what was typed"
    again = output("false")
    assert f"ran train.py --data demo/{scene}.zip --config demo\n" in again, "the choice is kept"
    assert "procedural planet" not in again


def recipe_says(folder, text):
    dry = subprocess.run(["make", "demo", "--dry-run"], cwd=folder, capture_output=True, text=True, check=True)
    return text in dry.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("browser, user, installs", [("1", 0, True), ("0", 0, False), ("1", 1000, False)])
def test_chromium_is_installed_for_root_only_and_never_unsaid_or_unwanted(tmp_path, browser, user, installs):
    for name, script in (("id", f"echo {user}"), ("apt-get", f"echo apt-get >>{tmp_path}/calls; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("make"), "browser", f"BROWSER={browser}"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "calls").exists() == installs
    assert ("system-wide" in done.stdout) == installs
    assert done.stdout.endswith("the tests of the page will be skipped.\n")
