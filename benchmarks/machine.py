"""What a measurement was made on."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch


def describe(threads: int) -> dict[str, object]:
    """Date, processor, threads and PyTorch's version, for the head of a result."""
    return {"date": time.strftime("%Y-%m-%d"), "cpu": processor(), "threads": threads, "torch": torch.__version__}


def processor() -> str:
    """Model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
