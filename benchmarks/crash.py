"""Commands killed at random file operations: typed again they must end equal to undisturbed ones, and leave nothing behind.

    python benchmarks/crash.py --kills 300 --out benchmarks/results/crash-DATE.json

A series kills a command (SIGKILL) when it opens a file to write, renames, removes or makes something, up to three times one
after the other, each time at another operation of all that it does; then it is left to end. What it has made is compared with
that of a command which nobody disturbed: bytes, but for the times in a run's journal. A set of patches that was whole when its
command was killed is refused when that is typed again, which is right. Commands run in forks of this process, which has
imported everything. Needs POSIX.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, publish, result_file
from PIL import Image

from multiscale.config import GeneratorConfig
from multiscale.data.procedural import render_batch
from multiscale.networks.generator import Generator
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import load_state, states_of

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
"""Audit events that change a folder; ``open`` is one where it may write."""
TIMED = ("img/s", "seconds/", "memory/")
"""Keys of a run's journal that no two runs share."""
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Command:
    """A command to be killed: its module in ``multiscale.cli``, its words, and what it makes, by relative path.

    ``replaces`` says whether it makes again what is there.
    """

    module: str
    words: tuple[str, ...]
    made: Callable[[Path], dict[str, str]]
    replaces: bool = True


def tree(folder: Path) -> dict[str, str]:
    """Digest of each file below a folder, but for those of other commands, logs and locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_of(folder: Path) -> dict[str, str]:
    """The same of a training run: its state as values, its journal without times, without events for TensorBoard."""
    run = folder / "run"
    found = {f"files {path.name}": "" for path in run.iterdir() if "tfevents" not in path.name and path.name != ".lock"}
    for path in [*run.glob("generator-*"), *run.glob("best.*")]:  # their metadata stand in no certain order
        snapshot = load_snapshot(path)
        found[path.name] = _digest([snapshot.generator.state_dict(), sorted(snapshot.info.items())])
    for pattern in ("samples-*", "reals.png", "config.yaml"):
        found |= {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob(pattern)}
    for name in ("stats.jsonl", "metrics.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()] if (run / name).exists() else []
        kept = [{key: value for key, value in line.items() if not key.startswith(TIMED)} for line in lines]
        found[name] = json.dumps(kept)
    found["state"] = _digest(load_state(states_of(run)[-1]))
    return found


def _digest(value: Any) -> str:
    """Of nested values with tensors."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return hashlib.sha256(repr([(str(key), _digest(each)) for key, each in value.items()]).encode()).hexdigest()
    if isinstance(value, list | tuple):
        return hashlib.sha256(repr([_digest(each) for each in value]).encode()).hexdigest()
    return repr(value)


def commands(shared: Path) -> dict[str, Command]:
    """All commands, small; what they need is written into ``shared``."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        img_resolution=16, octaves=3, num_layers=6, num_critical=1, channel_base=64, channel_max=16, z_dim=16, w_dim=16
    )
    save_snapshot(shared / "g.safetensors", Generator(config), {})
    pixels = render_batch(np.zeros((1, 2)), np.ones(1), 128, 0)[0]
    Image.fromarray(pixels).save(shared / "photograph.png")
    network = ("--network", str(shared / "g.safetensors"), "--seed", "3")
    train = f"--data {shared / 'patches.zip'} --outdir run --gpus 0 --batch 4 --kimg 0.024 --set training.snapshot_kimg=0.008"
    train += " --set generator.channel_max=16 --set generator.channel_base=32 --set training.metrics=swd4"
    train += " --set training.metrics=swd --set training.sample_seeds=1"
    made = {
        "demo": (
            "dataset_tool",
            ["demo", "--dest", "d.zip", "--resolution", "16", "--counts", "8,8", "--workers", "1"],
            tree,
        ),
        "make": (
            "dataset_tool",
            f"make --source {shared / 'photograph.png'} --dest d --resolution 16 --counts 4,4 --workers 1".split(),
            tree,
        ),
        "pyramid": ("generate", [*network, "--pyramid", "w.dzi"], tree),
        "video": (
            "generate",
            [*network, "--video", "w.mp4", "--to", "4,0.1,0.1", "--seconds", "1", "--fps", "4", "--size", "32x32"],
            tree,
        ),
        "tiff": ("generate", [*network, "--tiff", "w.tif"], tree),
        "picture": ("generate", [*network, "--out", "out"], tree),
        "train": ("train", train.split(), run_of),
    }
    return {
        name: Command(module, tuple(words), what, module != "dataset_tool")
        for name, (module, words, what) in made.items()
    }


def typed(command: Command, folder: Path, kill_at: int | None = None) -> tuple[int, int]:
    """Run a command in a folder; its exit status, negative for a signal, and how many operations it did."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _run(command, folder, kill_at, writer)
    os.close(writer)
    deadline = time.monotonic() + LIMIT_SECONDS
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return 124, 0
        time.sleep(0.005)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(ended[1]), int(said or b"0")


def _run(command: Command, folder: Path, kill_at: int | None, writer: int) -> None:
    """In the fork: never returns."""
    count = 0

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR) or arguments[0] == os.devnull:
                return
        elif event not in OPERATIONS:
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    code = 70
    try:
        os.chdir(folder)
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        main = import_module(f"multiscale.cli.{command.module}").main
        sys.argv = [f"{command.module}.py", *command.words]
        sys.addaudithook(note)
        main(list(command.words))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(writer, str(count).encode())
        os._exit(code)


def series(
    command: Command, place: Path, rng: random.Random, wanted: dict[str, str], operations: int
) -> dict[str, Any]:
    """Kill a command up to three times, let it end, and look at what there is."""
    place.mkdir()
    kills, points = 0, []
    for _ in range(rng.randint(1, 3)):
        points.append(rng.randint(1, operations))
        code, _ = typed(command, place, points[-1])
        if code == -signal.SIGKILL:
            kills += 1
        elif code != 0:
            break
        else:
            break  # it had less to do than that
    code, _ = typed(command, place)
    left = [str(path.relative_to(place)) for path in place.rglob(".*.tmp")]
    found = command.made(place) if code == 0 or not command.replaces else {}
    if code == 2 and not command.replaces and found == wanted and kills:
        code = 0  # it had been whole
    differs = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    result = {"kills": kills, "at": points, "code": code, "differs": differs, "left": left}
    if code or differs or left:
        result["said"] = place.with_suffix(".log").read_text(errors="replace")[-1500:]
    else:
        shutil.rmtree(place)
    return result


def main() -> None:
    """Kill, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="over all commands (default 300)")
    parser.add_argument("--only", nargs="+", help="some commands")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the kills")
    parser.add_argument("--out", type=result_file, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)  # no threads yet, which a fork would lose
    with tempfile.TemporaryDirectory() as name:
        place, rng = Path(name), random.Random(options.seed)
        os.environ["MULTISCALE_CACHE"] = str(place / "cache")
        os.environ["MULTISCALE_OPS"] = "reference"
        shared = place / "shared"
        shared.mkdir()
        known = commands(shared)
        typed(
            Command(
                "dataset_tool",
                tuple(f"demo --dest {shared / 'patches.zip'} --resolution 16 --counts 8,8".split()),
                tree,
            ),
            shared,
        )
        chosen = {each: known[each] for each in options.only or known}
        report: dict[str, list[dict[str, Any]]] = {each: [] for each in chosen}
        undisturbed = {}
        for each, command in chosen.items():
            (place / each).mkdir()
            code, operations = typed(command, place / each)
            if code:
                raise SystemExit(f"{each} ended with {code}: {(place / each).with_suffix('.log').read_text()[-2000:]}")
            undisturbed[each] = command.made(place / each), operations
        done = 0
        while done < options.kills:
            for each, command in chosen.items():
                number = len(report[each])
                report[each].append(series(command, place / f"{each}-{number}", rng, *undisturbed[each]))
            done = sum(row["kills"] for rows in report.values() for row in rows)
            print(f"{done} kills", file=sys.stderr, flush=True)
    rows = [row for each in report.values() for row in each]
    bad = {each: [row for row in rows if row["code"] or row["differs"] or row["left"]] for each, rows in report.items()}
    whole = {
        **describe(1),
        "kills": sum(row["kills"] for row in rows),
        "series": {each: len(rows) for each, rows in report.items()},
        "operations": {each: operations for each, (_, operations) in undisturbed.items()},
        "did_not_go_on": sum(bool(row["code"]) for row in rows),
        "differ": sum(bool(row["differs"]) for row in rows),
        "left_behind": sum(len(row["left"]) for row in rows),
        "bad": {each: rows for each, rows in bad.items() if rows},
    }
    publish(whole, options.out)
    sys.exit(1 if whole["bad"] else 0)


if __name__ == "__main__":
    main()
