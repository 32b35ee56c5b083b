"""What the benchmark of the ops counts as time."""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import machine
import ops


def test_compiling_is_not_timed(monkeypatch):
    clock = 0.0  # seconds; each look at it takes a millisecond

    def look():
        nonlocal clock
        clock += 1e-3
        return clock

    def compiled_late(op):
        """A compiled op as PyTorch has it: compiled at the first call with gradients and at the first without."""
        seen = set()

        def run(x, **arguments):
            nonlocal clock
            clock += 0 if torch.is_grad_enabled() in seen else 60
            seen.add(torch.is_grad_enabled())
            return op(x, **arguments)

        return run

    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=look))
    monkeypatch.setattr(torch, "compile", compiled_late)
    options = argparse.Namespace(device="cpu", dtype="float32", batch=1, repeats=1, compile=True, definition=False)
    call = torch.Size([1, 2, 8, 8]), {"fu": None, "fd": None, "up": 1, "down": 1}
    result = ops.measure_time(call, options, bandwidth=1e9, rate=1e9)
    assert result["compiled_ms"] == pytest.approx(1)
    assert result["compiled_both_ms"] == pytest.approx(1)
