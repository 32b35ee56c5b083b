"""Documents name what is there: links and anchors, files, options of the commands, settings."""

import dataclasses
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from multiscale.config import RunConfig

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "configs", "dnnlib", "docs", "multiscale", "tests", "torch_utils")
COMMANDS = ("train", "generate", "zoom", "calc_metrics", "dataset_tool")
FOREIGN = {
    *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--standalone"),  # torchrun
    "--signals-to-handle",
    *("--shutdown-timeout", "--dependency", "--cpus-per-task", "--logdir", "--check"),  # and SLURM, TensorBoard, ruff
}
"""Options of other programs."""


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests/golden/README.md"]
    assert len(found) > 8
    return sorted(found)


each_document = pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())


def without_code(text: str) -> str:
    """Fenced and indented blocks and code spans left out."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]+`", "", re.sub(r"(?<=\n\n)(?: {4}.*\n|\n)+", "", text))


def code_of(text: str) -> list[str]:
    """Lines of blocks, joined where they end in a backslash, and code spans."""
    fenced = re.findall(r"^```.*?\n(.*?)^```$", text, flags=re.M | re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?<=\n\n)(?: {4}.*\n)+", text)
    spans = re.findall(r"`([^`\n]+)`", text)
    return [*re.sub(r"\\\n\s*", "", "\n".join([*fenced, *indented])).splitlines(), *spans]


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a document to files or headings that are not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@each_document
def test_links_lead_somewhere(path):
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One thing, and another\n")
    text = "[a](page.md#one-thing-and-another) [b](page.md#two) [c](gone.md) [d](https://e.org) `[e](no.md)`\n"
    assert broken_links(page, text) == ["page.md#two", "gone.md"]


def uneven_tables(text: str) -> list[str]:
    """Rows of tables that have another number of cells than the rule below the head, where no table is shown."""
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    cells = [[(row, len(re.findall(r"(?<!\\)\|", row))) for row in table.splitlines()] for table in tables]
    return [row for rows in cells if len(rows) > 1 for row, count in rows if count != rows[1][1]]


@each_document
def test_tables_have_as_many_cells_in_each_row(path):
    assert not uneven_tables(path.read_text(encoding="utf-8"))
    assert uneven_tables("| a | b |\n|---|\n| 1 |\n") == ["| a | b |"]


@each_document
def test_files_that_are_named_exist(path):
    for code in code_of(path.read_text(encoding="utf-8")):
        for name in re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*", code):
            if "NAME" not in name:
                assert any(ROOT.glob(name.rstrip("./"))), name


def test_pictures_are_used():
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents())
    for picture in (ROOT / "docs").rglob("images/*"):
        assert f"images/{picture.name}" in text, picture


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def all_options() -> dict[str, set[str]]:
    """Options by the command that has them, such as ``dataset_tool.py make``."""
    found = {}
    for name in COMMANDS:
        main = importlib.import_module(name).main
        if isinstance(main, click.Group):
            found |= {f"{name}.py {sub}": options_of(command) for sub, command in main.commands.items()}
        else:
            found[f"{name}.py"] = options_of(main)
    for module, name in {
        "multiscale.cli.pack": "multiscale.cli.pack",
        "torch_utils.ops": "torch_utils.ops.__main__",
    }.items():
        found[module] = options_of(importlib.import_module(name).main)
    share = importlib.import_module("multiscale.share.__main__").main
    found |= {f"multiscale.share {sub}": options_of(command) for sub, command in share.commands.items()}
    for script in [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests/training/golden_run.py"]:
        relative = script.relative_to(ROOT).as_posix()
        found[relative] = set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    return found


@each_document
def test_options_that_are_named_exist(path):
    ours = all_options()
    known = {"--help", *FOREIGN}.union(*ours.values())
    for code in code_of(path.read_text(encoding="utf-8")):
        if re.search(r"#SBATCH|docker |\bgit |\bpip ", code):
            continue
        command = re.sub(r"\s# .*|\s?&&.*", "", code)
        allowed = next(
            (ours[name] | FOREIGN for name in ours if re.search(rf"(?<!\S){re.escape(name)}\b", command)), known
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", command):
            assert option in allowed, f"{option} in: {code}"


@each_document
def test_settings_that_are_named_exist(path):
    sections = {section.name: section.default_factory for section in dataclasses.fields(RunConfig)}
    fields = {name: {field.name for field in dataclasses.fields(schema)} for name, schema in sections.items()}
    for code in code_of(path.read_text(encoding="utf-8")):
        for section, name in re.findall(rf"(?<![\w./])({'|'.join(fields)})\.([a-z]\w+)", code):
            assert name in fields[section] | {"py"}, f"{section}.{name} in: {code}"


def test_examples_are_shell_commands():
    for path in documents():
        for code in code_of(path.read_text(encoding="utf-8")):
            if code.strip().startswith(("python ", "$ python ", "torchrun ", "$ torchrun ")):
                assert shlex.split(code, comments=True)


def test_no_document_is_left_out():
    done = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("needs a git checkout")
    assert set(done.stdout.split()) <= {path.relative_to(ROOT).as_posix() for path in documents()}
