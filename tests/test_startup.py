"""Commands start fast: mistakes are answered without PyTorch, and pictures made without its compiler."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MISTAKES = {
    "generate": {
        "--seeds x": "World 'x' cannot be read",
        "--seed 1 --seeds 2": "Both --seed and --seeds",
        "--centre 1": "Centre '1' cannot be read",
        "--size 0x0": "Size '0x0' cannot be read",
        "--video x.mp4 --to 2": "Place '2' cannot be read",
        "--strip --scale 4": "--strip shows every zoom",
        "--trunc 9": "--trunc '9' is not allowed",
        "--out x.gif": "asks for a format that pictures cannot have here",
        "--video x.avi --to 2,0,0": "does not end in .mp4",
        "--network none.safetensors": "There is no network none.safetensors",
        "--network hf://a": "The name 'hf://a' cannot be read",
    },
    "zoom": {
        "--scale 999": "No such option '--scale'",
        "--port 0": "--port '0' is not allowed",
        "--token short": "A --token must have",
        "--allow-origin x": "is not an origin",
        "--public-url x": "is not a URL",
        "--tiles": "--tiles goes with --export",
        "--export . --network none": "holds something else than an earlier export",
        "--export new --tiles --world x": "World 'x' cannot be read",
        "--export new --network none": "There is no network none",
        "--network none": "There is no network none",
    },
    "calc_metrics": {
        "": "Missing option '--data'",
        "--data x --features y": "'y' is not one of 'random'",
        "--data none": "There is no none",
        "--data none --network none": "There is no network none",
        "--data none --network *.none": "No file matches --network '*.none'",
        "--data none --metrics swb": "There is no measure 'swb', did you mean 'swd'?",
        "--data none --metrics msfid1": "Measure 'msfid1' asks for",
    },
    "pack": {"none x": "There is no network none", ". x --info title": "--info title is not KEY=VALUE"},
}
HELP = ("generate", "zoom", "pack", "train", "calc_metrics", "dataset_tool")


def run(program: str, folder: Path, *arguments: str) -> str:
    words = [sys.executable, "-c", program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mistakes_and_help_need_no_pytorch(tmp_path):
    (tmp_path / "in the way").touch()
    program = f"""
import importlib, sys
from click.testing import CliRunner

def said(module, words):
    result = CliRunner().invoke(importlib.import_module(module).main, words)
    assert "torch" not in sys.modules, f"{{module}} {{words}} imports PyTorch"
    return result

for name, mistakes in {MISTAKES!r}.items():
    for words, sentence in mistakes.items():
        result = said("multiscale.cli." + name, words.split())
        assert (result.exit_code, sentence in result.stderr) == (2, True), (words, result.output, result.exception)
for module, words in (("share", "push none hf://a/b"), ("share", "push . hf://"), ("interop", "none.pkl x.safetensors")):
    assert said(f"multiscale.{{module}}.__main__", words.split()).exit_code == 2
for name in {HELP!r}:
    assert said("multiscale.cli." + name, ["--help"]).exit_code == 0
print("done")
"""
    assert run(program, tmp_path) == "done\n"


def test_pictures_are_made_without_the_compiler(tmp_path):
    """It takes a second to load, and some calls of PyTorch load it: ops of torch.library.custom_op, sums on the device meta."""
    program = """
import importlib, sys
from click.testing import CliRunner

for module, words in (
    ("multiscale.cli.generate", ["--seeds", "3,4_7@4-5", "--scale", "8", "--grid"]),
    ("multiscale.share.__main__", ["push", sys.argv[1], "hf://a/b", "--folder", "shared"]),
):
    result = CliRunner().invoke(importlib.import_module(module).main, words)
    assert result.exit_code == 0, result.output
import multiscale.explorer.server, multiscale.metrics.commands

multiscale.metrics.measure.KINDS["swd"]
assert "torch" in sys.modules
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor"))]
print("done")
"""
    assert run(program, tmp_path, str(ROOT / "multiscale/runs/bundled/earth64.safetensors")) == "done\n"
    assert (tmp_path / "shared" / "README.md").is_file()
