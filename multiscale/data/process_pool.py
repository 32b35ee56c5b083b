"""Work dealt to processes, whose results come back in order; nothing of them outlives the parent."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dnnlib.errors import UserError
from dnnlib.machine import available_cores

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def process_count(workers: int | None) -> int:
    if workers is not None:
        return workers
    return available_cores()


def in_order(function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int) -> Generator[_Result, None, None]:
    """``map`` over processes that yields in order and keeps only a few results waiting; close it to stop early.

    Whatever ends it early kills the processes: one that is in the middle of a large picture would not hear of it for minutes.
    """
    if workers <= 1 or not jobs:
        yield from map(function, jobs)
        return
    context = _process_context()
    processes = min(workers, len(jobs))
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    is_done = False
    try:
        todo = iter(jobs)
        waiting: deque[Future[_Result]] = deque(
            pool.submit(function, job) for job in itertools.islice(todo, 4 * processes)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, job) for job in itertools.islice(todo, 1))
            yield result
        is_done = True
    except BrokenProcessPool as error:
        raise UserError("A worker process was killed, perhaps for lack of memory; pass a smaller --workers.") from error
    finally:
        if not is_done:
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _process_context() -> multiprocessing.context.BaseContext:
    """How to start processes: by forking, where that is safe; not once libvips has run, whose threads the fork would miss."""
    if sys.platform == "linux" and "pyvips" not in sys.modules:
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multiscale.data.prepare"])
    return context


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
