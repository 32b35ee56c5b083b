"""Stopping on request: a long run finishes its step first, everything else stops at once, but cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from dnnlib.console import say

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a program to end: SIGHUP means that its terminal is gone, SIGUSR1 that a cluster wants the machine back."""

RESUMES = "What is done is kept: the same command resumes."


def are_heard() -> tuple[signal.Signals, ...]:
    """Those of ``ENDING`` that this process was not started to ignore, as under ``nohup``."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


class Ended(SystemExit):
    """Raised for a signal that asks to end: temporary files are removed on the way out, and the exit code is 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Have the signals of ``ENDING`` raise :class:`Ended` in a ``with`` block; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in are_heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def says_when_ended(text: str = RESUMES) -> Iterator[None]:
    """Where Ctrl-C or a signal ends a ``with`` block, say what has become of what was done."""
    try:
        yield
    except (KeyboardInterrupt, Ended):
        say(text)
        raise


def interrupt_quietly() -> None:
    """Have Ctrl-C end this process without a traceback whenever it comes, even during an import."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)
        else:
            shown(kind, error, trace)

    sys.excepthook = show


class StopRequest:
    """In a ``with`` block, those of ``ENDING`` and the first SIGINT (Ctrl-C) are only noted; a second SIGINT interrupts.

    A signal that was ignored stays so. No effect outside the main thread, where Python cannot set handlers.

    Args:
        notice: Printed on standard error as soon as the first signal comes: what is finished first, and what a second SIGINT
            costs.
    """

    def __init__(self, notice: str | None = None) -> None:
        self._notice = notice
        self.number = 0
        """Of the first signal; 0: none has come."""
        self._before: dict[int, Any] = {}
        self._interrupted = False

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *are_heard()):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        if self._notice is not None and not self.number:
            # Not by print, which a signal may have interrupted; on a line of its own, below a progress bar.
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self._notice}\n".encode())
        self.number = self.number or number


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
