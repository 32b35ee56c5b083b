"""Progress bars: live on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_SEC = 30.0


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr; where that is not a terminal, a line every half minute. ``options`` are tqdm's."""
    if sys.stderr.isatty():
        return tqdm(mininterval=0.5, **options)
    return tqdm(**{"mininterval": LOG_INTERVAL_SEC, "file": _Lines(sys.stderr)} | options)


class _Lines:
    """A text stream for a bar, each state of which is a line of its own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            self._stream.write(f"{line}\n")
        return len(text)


class Stopwatch:
    """Wall-clock and CPU time of this process by activity: each lap runs from the end of the last one to now."""

    def __init__(self) -> None:
        self.clear()
        self._mark = time.perf_counter()
        self._cpu_mark = time.process_time()

    def lap(self, name: str) -> None:
        """Count the time since the last lap to ``name``."""
        now, cpu_now = time.perf_counter(), time.process_time()
        self.seconds[name] += now - self._mark
        self.cpu_seconds[name] += cpu_now - self._cpu_mark
        self.laps[name] += 1
        self._mark, self._cpu_mark = now, cpu_now

    def clear(self) -> None:
        """Forget all laps."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)
        self.laps: Counter[str] = Counter()
