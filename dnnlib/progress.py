"""Progress bars: lively on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_SEC = 30.0


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr; where that is not a terminal, a line every half minute. ``options`` are tqdm's."""
    return tqdm(mininterval=0.5 if sys.stderr.isatty() else LOG_INTERVAL_SEC, **options)
