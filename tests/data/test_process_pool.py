"""Processes that work in order: what becomes of results, exceptions, interrupts and kills."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dnnlib.errors import UserError
from dnnlib.signals import Ended
from multiscale.data.process_pool import in_order

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE_SEC = 120
needs_posix = pytest.mark.skipif(os.name == "nt", reason="sends signals; run it on Linux or macOS")


class Awkward(Exception):
    """Can be pickled, but not made again from that."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def uneven(n):
    time.sleep(0.02 if n % 3 == 0 else 0)
    return n, os.getpid()


def failing(n):
    if n == 5:
        raise UserError("Five.")
    if n == 6:
        raise Awkward("this", "that")
    return n


def ended_by(number):
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE_SEC)


def noted(path):
    pathlib.Path(path).touch()


def test_results_come_in_order_from_several_processes():
    results = list(in_order(uneven, range(50), 3))
    assert [n for n, _ in results] == list(range(50))
    assert len({process for _, process in results} - {os.getpid()}) == 3
    assert list(in_order(uneven, [], 3)) == []
    assert not multiprocessing.active_children()


def test_no_more_than_a_few_jobs_are_begun_ahead(tmp_path):
    with contextlib.closing(in_order(noted, [tmp_path / f"{n}" for n in range(100)], 2)) as results:
        next(results)
        time.sleep(0.3)
        assert 1 <= len(list(tmp_path.iterdir())) <= 2 * 4


def test_an_exception_of_a_job_comes_in_its_place_with_its_traceback():
    results = in_order(failing, range(100), 2)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match=r"Five\.") as caught:
        next(results)
    assert "in failing" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Awkward: this and that"):
        list(in_order(failing, [6, 6], 2))
    assert not multiprocessing.active_children()


@needs_posix
def test_a_process_that_is_killed_is_reported_and_one_asked_to_end_ends_all():
    with pytest.raises(UserError, match="killed, perhaps for lack of memory"):
        list(in_order(ended_by, [signal.SIGKILL] * 3, 2))
    with pytest.raises(Ended) as caught:
        list(in_order(ended_by, [signal.SIGTERM] * 3, 2))
    assert caught.value.code == 128 + signal.SIGTERM
    assert not multiprocessing.active_children()


INTERRUPTED = """
import multiprocessing, os, signal, threading
from multiscale.data.process_pool import in_order
for round in range(60):
    try:
        timer = threading.Timer(0.0005 * round, os.kill, (os.getpid(), signal.SIGINT))
        results = in_order(bytes, [1 << 18] * 10**6, 2)
        try:
            timer.start()
            for result in results:
                assert len(result) == 1 << 18
        finally:
            results.close()
    except KeyboardInterrupt:
        pass
    assert not multiprocessing.active_children()
print("done")
"""


@needs_posix
def test_interrupts_in_the_middle_of_results_leave_nobody_waiting():
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SEC)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_kill_in_the_middle_of_a_result_is_reported():
    results = in_order(bytes, [1 << 24] * 100, 2)
    next(results)
    time.sleep(0.5)  # nobody reads: both processes have written what a pipe holds of their next result, and wait
    multiprocessing.active_children()[0].kill()
    with pytest.raises(UserError, match="killed, perhaps for lack of memory"):
        list(results)
    assert not multiprocessing.active_children()
