"""What ``make demo`` chooses to train on; pip and the programs are stood in for."""

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

    def output(pip):
        done = subprocess.run(
            ["make", "demo", f"PIP={pip}", "RUN=echo ran"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout

    first = output(pip)
    assert f"ran train.py --data demo/{scene}.zip --config demo\n" in first
    assert f"ran dataset_tool.py {scene.replace('planet', 'demo')} --dest demo/{scene}.zip --resolution 32" in first
    assert f"{other}.zip" not in first
    assert first.count("procedural planet") == (scene == "planet")
    again = output("false")
    assert f"ran train.py --data demo/{scene}.zip --config demo\n" in again, "the choice is kept"
    assert "procedural planet" not in again
