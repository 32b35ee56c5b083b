"""``pip install`` of the project into an empty place, used from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "multiscale-train": "--data",
    "multiscale-generate": "--seed",
    "multiscale-zoom": "--port",
    "multiscale-dataset": "inspect",
    "multiscale-metrics": "--metrics",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with the project as users install it; what it depends on is lent by the one of the tests."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77' builds the wheel")
    folder = tmp_path_factory.mktemp("installation")
    source = folder / "source"
    for name in ("multiscale", "torch_utils", "dnnlib", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]:
        shutil.copy(path, source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip())
    words = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    lent = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}  # setuptools, for the build
    done = subprocess.run([*words, source], capture_output=True, text=True, env=lent, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return python


def run(python: Path, *words: str | Path) -> str:
    """What a command prints, run beside nothing of the checkout."""
    folder = python.parent.parent.parent
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, *words], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_installs_three_packages_and_no_module_at_the_top(installed):
    program = "import importlib.metadata as m; print(m.distribution('multiscale-gan').read_text('top_level.txt'))"
    assert run(installed, "-c", program).split() == ["dnnlib", "multiscale", "torch_utils"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_its_commands_run_from_any_folder(installed, name):
    assert COMMANDS[name] in run(installed, installed.with_name(name), "--help")


@pytest.mark.slow
def test_it_finds_its_presets_its_model_and_its_files(installed):
    program = """
from pathlib import Path
import multiscale.explorer, multiscale.site, torch_utils.ops
from multiscale.config import load_preset, preset_names
from multiscale.runs.headers import find_network
from multiscale.runs.snapshots import load_snapshot
print("site-packages" in multiscale.__file__, *preset_names(), sep="\\n")
assert load_preset("demo")
assert load_snapshot(find_network(None)).generator.config.octaves == 6
assert (Path(multiscale.explorer.__file__).parent / "static" / "index.html").exists()
assert (Path(multiscale.site.__file__).parent / "static" / "main.js").exists()
assert list((Path(torch_utils.ops.__file__).parent / "csrc").glob("*.cpp"))
"""
    first, *presets = run(installed, "-c", program).split()
    assert first == "True"
    assert presets == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
