"""What benchmarks start ends with them, however they end."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from benchmarks import gpu
from benchmarks.machine import served
from dnnlib.errors import UserError
from dnnlib.signals import Ended, ends_in_order

WAITS = "import os, time; print(f'http://127.0.0.1:{os.getpid()}/', flush=True); time.sleep(600)"


def test_a_server_ends_with_the_block_that_a_signal_ends():
    with pytest.raises(Ended), ends_in_order(), served("-c", WAITS) as (address, process):
        assert address == f"http://127.0.0.1:{process}"
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_server_that_does_not_start_is_said():
    with pytest.raises(UserError, match="did not start"), served("-c", "print('no address')"):
        pass


def test_a_part_of_the_gpu_s_proof_ends_with_it(tmp_path):
    code = (
        f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); os.kill({os.getpid()}, 15); {WAITS}"
    )
    part = gpu.Part("slow", [sys.executable, "-c", code], 60, gpu.lines_of)
    with pytest.raises(Ended), ends_in_order():
        gpu.run(part, tmp_path, 60)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
