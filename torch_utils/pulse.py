"""Processes that tell each other that they live, so that one which is stopped is named, and not waited for without end.

A process that has ended breaks its connections, which the others notice at once. One that is stopped (``kill -STOP``, a
debugger, a machine that swaps) keeps them, and the others would wait in their next sum until that gives up, for nobody knows
whom.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

ENDED = b"ended"
BEATS = 20
"""In the time after which a silent process is taken for stopped."""


class Pulse:
    """The beats of all processes in a store that nobody else uses at the same time.

    Args:
        store: A client of its own: others would wait for what this one waits for.
        world_size: Processes.
        silence_sec: After which a process that has once been heard of is taken for stopped.
    """

    def __init__(self, store: dist.Store, world_size: int, silence_sec: float) -> None:
        self._store = dist.PrefixStore(f"pulse/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self.silence_sec = silence_sec
        self._heard: dict[int, tuple[bytes, float]] = {}
        self.world_size = world_size
        self._count = 0

    def beat(self, rank: int, *, ends: bool = False) -> None:
        """Say that this process lives, or that it ends as it should."""
        self._count += 1
        value = ENDED.decode() if ends else f"{self._count} {socket.gethostname()}"
        self._store.set(str(rank), value)

    def stopped(self) -> dict[int, str]:
        """Host by rank of the processes that have not been heard of for ``silence_sec``."""
        now, found = time.monotonic(), {}
        for rank in range(self.world_size):
            if not self._store.check([str(rank)]):
                continue
            value = self._store.get(str(rank))
            before, since = self._heard.get(rank, (b"", now))
            if value != before:
                self._heard[rank] = value, now
            elif value != ENDED and now - since > self.silence_sec:
                found[rank] = value.decode().partition(" ")[2]
        return found

    def complaint(self, stopped: dict[int, str]) -> str:
        """One sentence on the processes that do not answer."""
        who = ", ".join(f"{rank} ({host})" for rank, host in stopped.items())
        return (
            f"Of {self.world_size} processes these have not answered for {self.silence_sec:g} s: rank {who}; stopped, or their "
            "machine is. See what became of them, and start the job again: it goes on from its last training state."
        )


@contextlib.contextmanager
def beating(pulse: Pulse, rank: int, *, watches: bool) -> Iterator[None]:
    """Beat, in a thread, for as long as the block lasts; with ``watches``, end this process when another has stopped.

    The one of the lowest rank that lives says why; a launcher ends the others.
    """
    done = threading.Event()

    def work() -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone, and with it the job: the next sum says so
            while not done.wait(pulse.silence_sec / BEATS):
                pulse.beat(rank)
                stopped = pulse.stopped() if watches else {}
                if stopped and not done.is_set():
                    if rank == min(set(range(pulse.world_size)) - set(stopped), default=rank):
                        print(f"Error: {pulse.complaint(stopped)}", file=sys.stderr, flush=True)
                    os._exit(2)
            pulse.beat(rank, ends=True)  # from here: no beat comes after the last one

    pulse.beat(rank)
    thread = threading.Thread(target=work, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # however long: a thread in a call of the store aborts an interpreter that ends


def another_client(store: dist.Store) -> dist.Store:
    """Another connection to the store that a process has, for use beside it."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    assert isinstance(store, dist.TCPStore), "torchrun has no other"
    return dist.TCPStore(store.host, store.port, None, False)
