"""Open thousands of damaged and hostile variants of a published pickle, and watch what the program does meanwhile.

    python benchmarks/fuzz_pickles.py tests/golden/published_a.pkl [--count 5000 --seed 0] [--out benchmarks/results/NAME.json]

Each variant must be opened or refused with one sentence (a UserError). Python's audit events tell whether anything was run: a
program, a module's import, a compilation, a file opened for writing, a connection. Prints how many of each there were, the
slowest variant, and the most common refusals.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pickle
import pickletools
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import describe, publish, result_file

from dnnlib.errors import UserError
from multiscale.interop.pickles import NAMES, load_published

HOSTILE = (
    b"cos\nsystem\n\x8c\x04true\x85R",
    b"cbuiltins\neval\n\x8c\x021+\x85R",
    b"c__builtin__\nexec\n\x8c\x04pass\x85R",
    b"\x8c\x08builtins\x8c\x07getattr\x93",
    b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R",
    b"ctorch.storage\n_load_from_bytes\nC\x04.\x80\x04N\x85R",
    b"ccollections\nOrderedDict.__init__.__globals__\n)R",
    b"(S'true'\nios\nsystem\n",
    b"(cos\nsystem\nS'true'\no",
    b"\x82\x01",
    b"P1\n",
    b"\x8d" + (10**9).to_bytes(8, "little"),
    b"\x8b" + (2**31 - 1).to_bytes(4, "little"),
    b"r" + (2**32 - 1).to_bytes(4, "little"),
    b"(" * 3000 + b"t" * 2999,
    b")" + b"\x85" * 5000 + b"}" + b"N" + b"s",
)
"""Pieces of programs that call, import or take more than they give."""

WATCHED = re.compile(
    r"os\.(system|exec|fork|posix_spawn|spawn|remove|rename|putenv|kill)|subprocess|socket|exec$|compile|import|ctypes|shutil"
)
_MOST_SHOWN = 12


class Watch:
    """Counts audit events while it is on; the hook itself stays for the life of the process, as Python has it."""

    def __init__(self) -> None:
        self.is_on = False
        self.events: collections.Counter[str] = collections.Counter()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or WATCHED.match(event):
            self.events[f"{event} {str(arguments[:1])[:60]}"] += 1

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def variants(whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged and hostile variants of a pickle, each with the name of what was done to it."""
    rng = random.Random(seed)
    starts = [at for _, _, at in pickletools.genops(whole)]
    blobs = [
        at for opcode, value, at in pickletools.genops(whole) if opcode.name.endswith("BINBYTES") and len(value) > 64
    ]
    names = [name.encode() for full in NAMES for name in full.rpartition(".")[::2] if name.encode() in whole]

    def flips(at: Callable[[], int]) -> bytes:
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[min(at(), len(whole) - 1)] = rng.randrange(256)
        return bytes(damaged)

    def hostile() -> bytes:
        at = rng.choice(starts)
        return whole[:at] + rng.choice(HOSTILE) + whole[at:]

    def spans(part: Callable[[bytes], bytes]) -> bytes:
        a, b = sorted(rng.sample(starts, 2))
        b = min(b, a + 4096)
        return whole[:a] + part(whole[a:b]) + whole[b:]

    def renamed() -> bytes:
        name = rng.choice(names)
        other = rng.choice([b"os", b"posix", b"system", b"eval", b"__import__", name[::-1], name + b"." + name])
        return whole.replace(bytes([len(name)]) + name, bytes([len(other)]) + other)

    def lengths() -> bytes:
        at = rng.choice(blobs) + 1
        return whole[:at] + rng.choice([0, 1, 2**31, 2**32 - 1]).to_bytes(4, "little") + whole[at + 4 :]

    kinds: dict[str, Callable[[], bytes]] = {
        "bytes": lambda: flips(lambda: rng.randrange(len(whole))),
        "instructions": lambda: flips(lambda: rng.choice(starts) + rng.randrange(3)),
        "tensor heads": lambda: flips(lambda: rng.choice(blobs) + rng.randrange(400)),
        "truncated": lambda: whole[: rng.randrange(len(whole))],
        "hostile pieces": hostile,
        "left out": lambda: spans(lambda part: b""),
        "repeated": lambda: spans(lambda part: part * rng.randint(2, 4)),
        "shuffled": lambda: spans(lambda part: bytes(rng.sample(part, len(part)))),
        "renamed": renamed,
        "lengths": lengths,
        "hostile alone": lambda: pickle.PROTO + b"\x04" + rng.choice(HOSTILE) + pickle.STOP,
    }
    for i in range(count):
        kind = list(kinds)[i % len(kinds)]
        yield kind, kinds[kind]()


def fuzz(whole: bytes, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Open each variant; returns what came of them. Anything but success or a UserError is raised."""
    path = folder / "variant.pkl"
    path.write_bytes(whole)
    load_published(path)  # what is imported on the first use is imported now
    path.write_bytes(whole[: len(whole) // 2])
    with contextlib.suppress(UserError):
        load_published(path)
    watch = Watch()
    opened: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    slowest, longest, lines = 0.0, 0, 0
    for kind, data in variants(whole, count, seed):
        path.unlink()  # a file that is mapped must not change
        path.write_bytes(data)
        start = time.process_time()
        try:
            with watch.on():
                load_published(path)
            opened[kind] += 1
        except UserError as error:
            refused[re.sub(r"'.*'|\(.*\)|\d+", "_", str(error).replace(str(path), ""))] += 1
            longest, lines = max(longest, len(str(error))), max(lines, str(error).count("\n") + 1)
        slowest = max(slowest, time.process_time() - start)
    return {
        "variants": count,
        "opened": sum(opened.values()),
        "opened_by_kind": dict(opened),
        "refused": sum(refused.values()),
        "refusals": dict(refused.most_common(_MOST_SHOWN)),
        "longest_refusal_characters": longest,
        "most_lines_of_a_refusal": lines,
        "slowest_cpu_sec": round(slowest, 3),
        "run_or_written": dict(watch.events),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=result_file)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(options.file.read_bytes(), options.count, options.seed, Path(folder))
    publish({"host": describe(threads=1), "file": options.file.name, **report}, options.out)


if __name__ == "__main__":
    main()
