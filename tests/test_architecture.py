"""The layers of the code go one way, and importing does nothing."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = [
    *ROOT.glob("*.py"),
    *(p for name in ("multiscale", "torch_utils", "dnnlib") for p in (ROOT / name).rglob("*.py")),
]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def readme_rows() -> list[list[str]]:
    """The places of each row of README's map, top down: ``multiscale/config.py`` or ``multiscale/cli/``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Map of the code")[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table[0].splitlines()[2:]]


def place_of(path: Path, rows: list[list[str]]) -> tuple[int, str]:
    """Row and place that a file belongs to: the longest that its path begins with."""
    name = path.relative_to(ROOT).as_posix()
    found = [(i, place) for i, row in enumerate(rows) for place in row if name == place or name.startswith(place)]
    assert found, f"README's map does not have {name}"
    return max(found, key=lambda pair: len(pair[1]))


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours that a file imports, lazily or not, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name in MODULES)


def test_imports_go_down_the_map_of_the_readme():
    rows = readme_rows()
    assert len(rows) > 10
    wrong = []
    for path in FILES:
        row, place = place_of(path, rows) if list(imported(path)) else (0, "")
        for name, line in imported(path):
            its_row, its_place = place_of(MODULES[name], rows)
            if its_row < row or (its_row == row and its_place != place):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_map_of_the_readme_has_all_places_and_no_others():
    rows = readme_rows()
    places = [place for row in rows for place in row]
    assert all((ROOT / place).exists() for place in places)
    assert len(set(places)) == len(places)
    empty = [path for path in FILES if path.name == "__init__.py" and not list(imported(path))]
    assert {place_of(path, rows)[1] for path in FILES if path not in empty} == set(places)


def test_no_two_modules_import_each_other():
    """Not by way of others either."""
    below = {name: {other for other, _ in imported(path)} - {name} for name, path in MODULES.items()}
    while leaves := [name for name, others in below.items() if not others]:
        below = {name: others.difference(leaves) for name, others in below.items() if name not in leaves}
    assert not below, f"among {sorted(below)} there is a circle"


def test_dnnlib_knows_nothing_of_pytorch():
    for path in (ROOT / "dnnlib").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torch\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_thin(name):
    shell, command = MODULES[name], MODULES[f"multiscale.cli.{name}"]
    assert len(shell.read_text(encoding="utf-8").splitlines()) <= 8
    assert [module for module, _ in imported(shell)] == [f"multiscale.cli.{name}"]
    assert len(command.read_text(encoding="utf-8").splitlines()) <= 150


def test_importing_everything_draws_nothing_touches_no_gpu_and_loads_no_compiler():
    libraries = (
        name for name in MODULES if "." in name and not name.startswith("multiscale.cli.")
    )  # click groups draw
    modules = {name for name in libraries if not name.endswith("__main__")}
    modules.remove("torch_utils.ops.constants")  # of graphs that are compiled, when PyTorch's compiler is loaded anyway
    program = f"""
import importlib, os, random, sys, numpy, torch
before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)
for name in {sorted(modules)!r}:
    importlib.import_module(name)
assert torch.equal(before[0], torch.get_rng_state())
assert before[1:] == (numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ))
assert not torch.cuda.is_initialized()
assert "torch._dynamo" not in sys.modules
"""
    environment = {
        name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"
    }  # it sets that
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
