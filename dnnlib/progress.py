"""Progress bars: lively on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_SEC = 30.0


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr; where that is not a terminal, a line every half minute. ``options`` are tqdm's."""
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else LOG_INTERVAL_SEC, **options)


class Stopwatch:
    """Wall-clock time by what it went to: each lap ends now, and began when the last one ended."""

    def __init__(self) -> None:
        self.clear()
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last lap to ``name``."""
        now = time.perf_counter()
        self.seconds[name] += now - self._mark
        self.laps[name] += 1
        self._mark = now

    def clear(self) -> None:
        """Forget all laps."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.laps: Counter[str] = Counter()
