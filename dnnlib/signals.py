"""Stopping when asked to: a long run finishes what it is doing, all else is left at once, but in order."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a program to end; SIGHUP says that its terminal has gone."""


def are_heard() -> tuple[signal.Signals, ...]:
    """Those of ``ENDING`` that whoever started this process has not had ignored, as ``nohup`` does."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


class Ended(SystemExit):
    """Raised where a signal comes that asks to end: temporary files are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextlib.contextmanager
def ends_in_order() -> Iterator[None]:
    """Have the signals of ``ENDING`` raise :class:`Ended` in a ``with`` block; outside of the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in are_heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_quietly() -> None:
    """Have Ctrl-C end this process without a traceback wherever it comes, in the middle of an import too."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("Interrupted.", file=sys.stderr)
        else:
            shown(kind, error, trace)

    sys.excepthook = show


class StopRequest:
    """In a ``with`` block, SIGTERM, SIGHUP and the first SIGINT (Ctrl-C) only set ``received``; a second SIGINT interrupts.

    SIGHUP stays ignored where it was. Outside of the main thread, where Python has no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}
        self._interrupted = False

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
        self.received = True


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
