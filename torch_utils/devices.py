"""Which device to compute on, and how memory is had there."""

from __future__ import annotations

import contextlib
import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)


def default_device() -> torch.device:
    """The first CUDA device if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that are freed, for this process, and hand them out again.

    By default glibc gives each block of more than 32 MB back to the system when it is freed, and the system clears every
    page of the next one anew: a quarter of the time of a large image on a CPU. Does nothing with other C libraries. The
    process's memory does not shrink any more, so this is for programs that do one thing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
