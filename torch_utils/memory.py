"""Memory of CPU runs: freed blocks are kept for the next step in place of being returned to the system."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep freed memory; returns whether it could be told (Linux with glibc).

    A training step on a CPU allocates the same large blocks again and again; by default each is mapped from the system
    anew and its pages are cleared one fault at a time (benchmarks/allocator.py measures what that costs).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
