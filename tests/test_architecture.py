"""The layers of the code go one way, and importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(path.stem for path in ROOT.glob("*.py"))
ALLOWED = {
    "dnnlib": {"dnnlib"},
    "torch_utils": {"dnnlib", "torch_utils"},
    "multiscale": {"dnnlib", "torch_utils", "multiscale"},
}
OURS = {*ALLOWED, *COMMANDS}


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_is_below_them(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        used = imports(path)
        assert used & OURS <= ALLOWED[package], path
        if package == "dnnlib":
            assert "torch" not in used, path


def test_commands_are_thin():
    for name in COMMANDS:
        path = ROOT / f"{name}.py"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 150, path
        assert imports(path) & set(COMMANDS) == set(), "nothing imports a command"


def test_importing_everything_draws_nothing_and_touches_no_gpu():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ALLOWED
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    program = f"""
import importlib, os, random, numpy, torch
before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ)
for name in {modules!r}:
    importlib.import_module(name)
assert torch.equal(before[0], torch.get_rng_state())
assert before[1:] == (numpy.random.get_state()[1].tolist(), random.getstate(), dict(os.environ))
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
