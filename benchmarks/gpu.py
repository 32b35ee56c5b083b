"""Prove and measure a GPU in one command of under five minutes: ``make gpu``.

    python -m benchmarks.gpu [--out FILE.jsonl] [--only doctor,frame] [--limit 300]

Parts run one after the other, each in a process of its own with a time limit. When a part ends, a line of JSON with its
result is appended to the file, so that nothing is lost if the machine goes away; the last line sums up. Exit code 0 if all
parts went well, 1 if one did not, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import environment_of_checkout
from dnnlib.cli import reports_user_errors

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ("--resolution", "32", "--octaves", "6", "--counts", "64,64,64,64,64,64")
TESTS = ("tests/test_cuda.py", "tests/torch_utils")
"""Where the tests are that need a GPU."""

TAIL = 2000
"""Characters of a failed part's output that its line keeps."""


@dataclass(frozen=True)
class Part:
    """A command and how its result is found."""

    name: str
    command: list[str]
    limit: float
    """Seconds, at most."""
    result: Callable[[str, Path], Any]
    """From the output and the part's folder."""
    optional: bool = False
    """Whether a missing program only leaves it out."""


def report_of(_: str, folder: Path) -> Any:
    """The JSON that a benchmark wrote."""
    return json.loads((folder / "result.json").read_text())


def lines_of(output: str, _: Path) -> list[str]:
    """The output as it is."""
    return output.strip().splitlines()


def tests_of(output: str, _: Path) -> dict[str, int]:
    """Counts of pytest's last line."""
    last = output.strip().splitlines()[-1]
    return {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|error|errors)\b", last)}


def training_of(_: str, folder: Path) -> dict[str, Any]:
    """What a run says of itself at its end."""
    stats = [json.loads(line) for line in (folder / "run" / "stats.jsonl").read_text().splitlines()]
    return {name: value for line in stats for name, value in line.items() if isinstance(value, int | float)}


def parts(folder: Path) -> list[Part]:
    """All parts, in their order; each writes below ``folder``, under its name."""
    python = sys.executable

    def script(name: str, limit: float, *arguments: str, title: str | None = None, optional: bool = False) -> Part:
        title = title or name
        out = str(folder / title / "result.json")
        command = [python, f"benchmarks/{name}.py", "--device", "cuda", *arguments, "--out", out]
        return Part(title, command, limit, report_of, optional)

    cuda_tests = ["-m", "pytest", "-q", "-m", "cuda and not slow", "-p", "no:cacheprovider", *TESTS]
    patches, run = str(folder / "patches.zip"), str(folder / "training/run")
    train = ["train.py", "--data", patches, "--config", "demo", "--kimg", "2", "--gpus", "1", "--outdir", run]
    moon = ("--config", "moon", "--resolution", "256", "--brief", "2", "--set", "training.batch=32")
    small = ("--config", "small", "--resolution", "64", "--brief", "20", "--set", "training.batch=32")
    checked = script("layers", 60, "--count", "16", title="sanitizer", optional=True)
    checked.command[:0] = ["compute-sanitizer", "--error-exitcode", "9", "--tool", "memcheck"]
    return [
        Part("doctor", [python, "-m", "torch_utils.ops"], 120, lines_of),
        script("layers", 60, "--count", "200"),
        checked,
        Part("tests", [python, *cuda_tests], 90, tests_of),
        script("generator", 40, "--dtype", "float16", title="frame"),
        script("ops", 60, "--dtype", "float16"),
        script("steps", 90, *moon, "--parts", "2", title="step"),
        script("steps", 40, *small, title="small"),
        Part("patches", [python, "dataset_tool.py", "demo", "--dest", patches, *PATCHES], 60, lines_of),
        Part("training", [python, *train], 60, training_of),
    ]


def run(part: Part, folder: Path, limit: float) -> dict[str, Any]:
    """The part's line."""
    (folder / part.name).mkdir()
    begun = time.perf_counter()
    line: dict[str, Any] = {"part": part.name, "ok": False}
    try:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment_of_checkout(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children end with it
        )
    except FileNotFoundError:
        return line | {"ok": part.optional, "left_out": f"there is no program {part.command[0]}"}
    try:
        output, _ = process.communicate(timeout=limit)
    except BaseException as error:  # or a signal, which a session of its own does not hear
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        line["seconds"] = round(time.perf_counter() - begun, 1)
        return line | {"error": f"stopped after its {limit:.0f} s", "output": output[-TAIL:]}
    line["seconds"] = round(time.perf_counter() - begun, 1)
    line["ok"] = process.returncode == 0
    if not line["ok"]:
        line |= {"exit_code": process.returncode, "output": output[-TAIL:]}
    try:
        line["result"] = part.result(output, folder / part.name)
    except (OSError, ValueError, IndexError) as error:
        line |= {"ok": False, "error": f"no result: {error}", "output": output[-TAIL:]}
    return line


def summary(line: dict[str, Any]) -> str:
    """A line for people."""
    if "left_out" in line:
        return f"{line['part']:<10} left out: {line['left_out']}"
    how = "good" if line["ok"] else f"BAD: {line.get('error', line.get('exit_code'))}"
    return f"{line['part']:<10} {line.get('seconds', 0):>6.1f} s  {how}"


@reports_user_errors
def main() -> None:
    """Run the parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file of results (default benchmarks/results/gpu-NAME-DATE.jsonl)")
    parser.add_argument("--only", help="these parts only, separated by commas")
    parser.add_argument("--limit", type=float, default=300, help="seconds, in all (default 300)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no NVIDIA GPU"
        print(f"There is no GPU to measure: {why}.", file=sys.stderr)
        sys.exit(2)
    card = torch.cuda.get_device_name()
    name = re.sub(r"\W+", "-", card.removeprefix("NVIDIA ")).lower()
    out = options.out or ROOT / f"benchmarks/results/gpu-{name}-{time.strftime('%Y-%m-%d')}.jsonl"
    begun, lines = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as place, out.open("w") as file:
        folder = Path(place)
        chosen = parts(folder)
        if options.only:
            names = options.only.split(",")
            if unknown := set(names) - {part.name for part in chosen}:
                parser.error(
                    f"--only: no part {', '.join(sorted(unknown))}; parts: {', '.join(p.name for p in chosen)}"
                )
            chosen = [part for part in chosen if part.name in names]
        for part in chosen:
            left = options.limit - (time.perf_counter() - begun)
            line = run(part, folder, min(part.limit, left)) if left > 0 else {"part": part.name, "ok": False}
            if left <= 0:
                line["error"] = f"no time left of {options.limit:.0f} s"
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(summary(line), flush=True)
        seconds = round(time.perf_counter() - begun, 1)
        fine = all(line["ok"] for line in lines)
        machine = {
            "gpu": card,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "date": time.strftime("%Y-%m-%d"),
        }
        file.write(json.dumps({"part": "all", "ok": fine, "seconds": seconds, "machine": machine}) + "\n")
    print(f"{seconds:.0f} s in all; {out}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
