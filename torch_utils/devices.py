"""Which device to compute on."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The first CUDA device if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
