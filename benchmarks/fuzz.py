"""Damaged files of every format that the program reads: each is read or refused in one sentence, soon, in bounded memory.

    python benchmarks/fuzz.py --count 100000 --out benchmarks/results/fuzz-DATE.json

The same seed damages the same bytes; ``--only FORMAT --first I --count 1`` repeats one input. An input that ends the process
outright is the one after the last line of the log (``--verbose``).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, publish, result_file
from PIL import Image

from dnnlib.errors import UserError
from multiscale.config import GeneratorConfig, RunConfig, build, load_yaml, parse_assignment
from multiscale.data.patches import PatchDataset
from multiscale.data.pictures import examine
from multiscale.data.vips import Reading, Unreadable
from multiscale.explorer.messages import parse_message
from multiscale.metrics.features import load_features
from multiscale.metrics.reals import RealFeatures
from multiscale.networks.generator import Generator
from multiscale.rendering.worlds import World
from multiscale.runs.folder import began_with
from multiscale.runs.journal import read_metrics, read_stats
from multiscale.runs.snapshots import load_snapshot, save_snapshot
from multiscale.runs.states import load_state, save_state

SECONDS = 10.0
"""An input that takes longer hangs."""
SENTENCE_CHARACTERS = 4000
TOKENS = [
    "null",
    "[]",
    "{}",
    "-1",
    "1e999",
    "NaN",
    '"\\u0000"',
    "0x",
    "9" * 400,
    "[" * 3000,
    '{"a":' * 50,
    "&a [*a]",
    "true",
]
"""What texts hold where something else was expected."""


class Hang(BaseException):
    """Raised in the middle of an input that takes too long."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        sample: A whole one.
        name: Of the file, in a folder where the others that it needs stand.
        read: Reads it as the program does.
        refusals: What it may raise.
        is_text: Whether tokens are put into it too.
        head: Bytes at its begin that say what the rest is; most of the damage goes there.
    """

    sample: bytes
    name: str
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...] = (UserError,)
    is_text: bool = False
    head: int | None = None


def formats(folder: Path) -> dict[str, Format]:
    """All formats, by name; what they need is written into ``folder``."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        img_resolution=16, octaves=1, num_layers=4, num_critical=1, channel_base=16, channel_max=16, z_dim=4, w_dim=4
    )
    generator = Generator(config)
    save_snapshot(folder / "g.safetensors", generator, {"kimg": 1})
    weights = {"x": torch.zeros(3)}
    state = save_state(
        folder,
        4,
        {"config": {}, "step": 1, "batch_gpu": 4, "data": {"patches": 3}, "augment_p": None, "ada": None, "drawn": [1]}
        | {"means": {}, "g_optimiser": {}, "d_optimiser": {}, **dict.fromkeys(("G", "D", "G_ema"), weights)},
    )
    patches(folder / "p.zip")
    dataset = PatchDataset(folder / "p.zip")
    features = load_features("random", 16, torch.device("cpu"))
    (folder / "folder").mkdir()
    with zipfile.ZipFile(folder / "p.zip") as archive:
        archive.extractall(folder / "folder")

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    def patches_of(path: Path) -> list[Any]:
        dataset = PatchDataset(path)
        return [dataset[i] for i in range(min(len(dataset), 3))]

    def picture(kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(stream, kind, **options)
        return stream.getvalue()

    def cached() -> bytes:
        stream = io.BytesIO()
        rows = np.zeros((3, features.dimension), np.float32)
        np.savez(stream, indices=np.arange(3), rows=rows)
        return stream.getvalue()

    def kept(path: Path) -> None:
        os.environ["MULTISCALE_CACHE"] = str(folder)
        RealFeatures(dataset, features, "0" * 24).missing(moments=True, indices=[0, 1])

    settings = b"generator:\n  octaves: 3\ntraining: {batch: 4, kimg: 1.5, metrics: swd}\n"
    facts = b'{"data": "x", "patches": 1, "labels_crc32": 1, "format_version": 2}'
    (folder / "config.yaml").write_bytes(settings)
    frame = (
        '{"type": "frame", "id": 1, "slot": "a", "quality": "draft", "world": "3~7:0.5", "left": -0.5, "top": -0.5, '
    )
    frame += '"pitch": 0.01, "width": 64, "height": 64}'
    found = {
        "config": Format(settings, "config.yaml", lambda path: build(RunConfig, load_yaml(path)), is_text=True),
        "setting": Format(b"training.batch=4", "set.txt", _text(parse_assignment), is_text=True),
        "facts": Format(facts, "environment.json", lambda path: began_with(path.parent), is_text=True),
        "stats": Format(
            b'{"kimg": 1, "swd": [1, 2], "swd mean": 1}\n{"kimg": 2, "swd": [1, null]}\n',
            "stats.jsonl",
            lambda path: [line["kimg"] + 0 for line in read_stats(path.parent)],
            is_text=True,
        ),
        "metrics": Format(
            b'{"kimg": 1, "results": {"swd": {"value": 1, "octaves": [1, 2]}}}\n',
            "metrics.jsonl",
            lambda path: [r["value"] + 0 for m in read_metrics(path.parent) for r in m["results"].values()],
            is_text=True,
        ),
        "state": Format(state.read_bytes(), state.name, load_state),
        "snapshot": Format(read("g.safetensors"), "g.safetensors", load_snapshot, head=2500),
        "patches": Format(read("p.zip"), "p.zip", patches_of),
        "labels": Format(
            read("folder/dataset.json"), "folder/dataset.json", lambda path: patches_of(path.parent), is_text=True
        ),
        "features": Format(cached(), f"metrics/{'0' * 24}-{features.identity}.npz", kept),
        "message": Format(frame.encode(), "message.json", _text(parse_message), is_text=True),
        "world": Format(b"3d0.4:-0.2~7:0.25_9@4-8", "world.txt", _text(World.parse), is_text=True),
        **{
            kind: Format(
                picture(kind, **options), f"p.{kind}", lambda path: examine(path, Reading(), 1 << 28), (Unreadable,)
            )  # its caller names the file
            for kind, options in {
                "png": {},
                "jpeg": {},
                "tiff": {"compression": "tiff_lzw"},
                "webp": {"lossless": True},
                "gif": {},
            }.items()
        },
    }
    for kind in found.values():
        (folder / kind.name).parent.mkdir(exist_ok=True)
        (folder / kind.name).write_bytes(kind.sample)
    return found


def _text(parse: Callable[[str], object]) -> Callable[[Path], object]:
    return lambda path: parse(path.read_bytes().decode("utf-8", "replace"))


def patches(path: Path) -> None:
    """A small set."""
    with zipfile.ZipFile(path, "w") as archive:
        labels = []
        for i in range(3):
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(stream, "png")
            archive.writestr(f"{i}.png", stream.getvalue())
            labels.append([f"{i}.png", i / 2])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def damaged(kind: Format, number: int) -> bytes:
    """The sample with damage that the number decides: bytes changed, cut off, repeated, filled, or a token put in."""
    rng = np.random.default_rng(number)
    data = bytearray(kind.sample)
    stop = kind.head if kind.head and rng.random() < 0.95 else len(data)
    for _ in range(rng.integers(1, 4)):
        stop = max(min(stop, len(data)), 1)
        start, end = sorted(int(place) for place in rng.integers(stop, size=2))
        match rng.integers(6 if kind.is_text else 5):
            case 0:
                for place in rng.integers(stop, size=rng.integers(1, 9)):
                    if place < len(data):
                        data[place] = rng.integers(256)
            case 1:
                del data[start:]
            case 2:
                data[start:start] = data[start:end]
            case 3:
                del data[start:end]
            case 4:
                length = int(rng.integers(1, 9))
                data[start : start + length] = rng.choice([b"\xff", b"\x00", b"\x7f"]) * length
            case 5:
                data[start : start + int(rng.integers(0, 4))] = TOKENS[rng.integers(len(TOKENS))].encode()
    return bytes(data)


def failure(kind: Format, folder: Path, number: int) -> str | None:
    """Read one damaged file: None if it was read or refused as it should, else what came instead."""
    path = folder / kind.name
    path.unlink()  # to write over it would wait for the disk on some systems
    path.write_bytes(damaged(kind, number))
    try:
        with _limited(), contextlib.redirect_stdout(io.StringIO()):
            kind.read(path)
    except Hang:
        return f"takes more than {SECONDS:g} s"
    except MemoryError:
        return "MemoryError"
    except kind.refusals as error:
        if isinstance(error, UserError) and len(str(error)) > SENTENCE_CHARACTERS:
            return f"a sentence of {len(str(error))} characters"
    except Exception:
        return traceback.format_exc(limit=-3)
    return None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise ``Hang`` after ``SECONDS``, where the system has such alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def hang(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    """Of this process's resident memory so far; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="inputs over all formats")
    parser.add_argument("--first", type=int, default=0, help="number of the first one of each format")
    parser.add_argument("--only", help="one format")
    parser.add_argument("--out", type=result_file, help="JSON file to write as well")
    parser.add_argument("--verbose", action="store_true", help="name each input before it is read")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        kinds = formats(Path(name))
        kinds = {options.only: kinds[options.only]} if options.only else kinds
        before = _peak_bytes()
        for title, kind in kinds.items():
            start, failures = time.perf_counter(), {}
            for number in range(options.first, options.first + -(-options.count // len(kinds))):
                if options.verbose:
                    print(title, number, file=sys.stderr, flush=True)
                if (what := failure(kind, Path(name), number)) is not None:
                    failures[number] = what
            (Path(name) / kind.name).write_bytes(kind.sample)
            done = -(-options.count // len(kinds))
            report[title] = {"inputs": done, "seconds": round(time.perf_counter() - start, 1), "failures": failures}
            print(title, done, len(failures), file=sys.stderr, flush=True)
    whole = {
        **describe(torch.get_num_threads()),
        "inputs": sum(kind["inputs"] for kind in report.values()),
        "failures": sum(len(kind["failures"]) for kind in report.values()),
        "peak memory MB": round(_peak_bytes() / 1e6),
        "peak memory before MB": round(before / 1e6),
        "formats": report,
    }
    publish(whole, options.out)
    sys.exit(1 if whole["failures"] else 0)


if __name__ == "__main__":
    main()
