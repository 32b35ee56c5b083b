"""Work dealt to processes, whose results come back in order; nothing of them outlives the parent.

Each process has a pipe of its own, whose other end the parent alone reads. One that is killed in the middle of a result ends
its pipe, and the parent hears of it; from a queue that all share, as in ``ProcessPoolExecutor``, it would wait for the rest
for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

from dnnlib.errors import UserError
from dnnlib.machine import available_cores
from dnnlib.signals import ENDING, Ended, StopRequest

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_AHEAD = 4
"""Jobs per process that may be begun before the result that is next in order has come."""
_END_SEC = 5.0


def process_count(workers: int | None) -> int:
    if workers is not None:
        return workers
    return available_cores()


def in_order(function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int) -> Generator[_Result, None, None]:
    """``map`` over processes that yields in order and keeps only a few results waiting; close it to stop early.

    Whatever ends it early kills the processes: one that is in the middle of a large picture would not hear of it for minutes.

    Raises:
        UserError: a process was killed.
        Exception: what a job raised, in the place of its result.
    """
    if workers <= 1 or not jobs:
        yield from map(function, jobs)
        return
    count = min(workers, len(jobs))
    started = 0
    waiting: dict[int, tuple[_Result, BaseException | None]] = {}
    with contextlib.closing(_Crew(function, count)) as crew:
        for wanted in range(len(jobs)):
            while True:
                waiting.update(crew.finished(wait=started > 0 and wanted not in waiting))
                while crew.idle and started < min(wanted + _AHEAD * count, len(jobs)):
                    crew.begin(started, jobs[started])
                    started += 1
                if wanted in waiting:
                    break
            result, error = waiting.pop(wanted)
            if error is not None:
                raise error
            yield result
        crew.dismiss()


class _Crew:
    """Processes that each do one job at a time; ``close`` kills them.

    Only one that is idle, and so reads, is sent anything: parent and process never wait for each other to read.
    """

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        context: Any = _process_context()
        self._processes: dict[Connection, BaseProcess] = {}  # by the parent's ends of their pipes
        self._busy: dict[Connection, int] = {}
        self.idle: list[Connection] = []
        with StopRequest() as stop:  # an interrupt amid a start would lose the process, or show a traceback of it
            try:
                for _ in range(count):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(function, theirs), daemon=True)
                    process.start()
                    theirs.close()  # before the next one is forked: else this pipe would not end with its process
                    self._processes[ours] = process
                    self.idle.append(ours)
            except BaseException:
                self.close()
                raise
        if stop.received:
            self.close()
            signal.raise_signal(stop.number)

    def begin(self, number: int, job: Any) -> None:
        """Have an idle process do a job."""
        pipe = self.idle.pop()
        try:
            pipe.send((job,))
        except OSError as error:
            self._refuse(pipe, error)
        self._busy[pipe] = number

    def finished(self, *, wait: bool) -> dict[int, tuple[Any, BaseException | None]]:
        """Results of jobs, or what they raised, by number; one at least if it shall ``wait``."""
        found = {}
        ready: list[Any] = multiprocessing.connection.wait(list(self._busy), None if wait else 0)
        for pipe in ready:
            try:
                data = pipe.recv_bytes()
            except (EOFError, OSError) as ended:
                self._refuse(pipe, ended)
            result, error, trace = pickle.loads(data)
            if error is not None:
                error.__cause__ = _InProcess(trace)
            found[self._busy.pop(pipe)] = result, error
            self.idle.append(pipe)
        return found

    def dismiss(self) -> None:
        """Let the processes, all idle, end by themselves; those that do not within seconds are killed."""
        for pipe in self._processes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes.values():
            process.join(_END_SEC)

    def close(self) -> None:
        """End all processes now, whatever they do."""
        for process in self._processes.values():
            process.kill()
        for pipe, process in self._processes.items():
            process.join()
            pipe.close()

    def _refuse(self, pipe: Connection, error: Exception) -> NoReturn:
        """Say why a process is no more; who asks one to end asks all of them."""
        process = self._processes[pipe]
        process.join(_END_SEC)
        if process.exitcode is not None and -process.exitcode in ENDING:
            raise Ended(-process.exitcode) from error
        raise UserError("A worker process was killed, perhaps for lack of memory; pass a smaller --workers.") from error


def _process_context() -> multiprocessing.context.BaseContext:
    """How to start processes: by forking, where that is safe; not once libvips has run, whose threads the fork would miss."""
    if sys.platform == "linux" and "pyvips" not in sys.modules:
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multiscale.data.prepare"])
    return context


class _InProcess(Exception):
    """The traceback of an exception in the process that it came from, shown above the parent's."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    """Do jobs until None comes; leave Ctrl-C to the parent, and end when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (message := pipe.recv()) is not None:
            pipe.send_bytes(_outcome(function, *message))


def _outcome(function: Callable[[Any], Any], job: Any) -> bytes:
    """Pickled (result, exception, its traceback)."""
    try:
        return pickle.dumps((function(job), None, ""))
    except BaseException as error:
        trace = traceback.format_exc()
        try:
            message = pickle.dumps((None, error, trace))
            pickle.loads(message)
        except Exception:  # an exception that does not survive pickling
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
        return message


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
