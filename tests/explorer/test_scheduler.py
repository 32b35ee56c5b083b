"""The render queue: urgent first, fair among equals, nobody waits for ever, nothing is kept."""

import gc
import threading
import time
import weakref

import pytest
from serving import PATIENCE_SEC, Clock

from multiscale.explorer import scheduler
from multiscale.explorer.scheduler import UNSENT, Owner, Rank, RenderQueue
from multiscale.rendering.renderer import Cancelled


@pytest.fixture
def queue():
    queue = RenderQueue()
    yield queue
    assert queue.stop(PATIENCE_SEC)


class Gate:
    """A job that keeps the thread until it is opened, so that others queue up behind it."""

    def __init__(self, queue):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.job = queue.call(Owner(), Rank.DRAFT, self.wait)
        assert self.entered.wait(PATIENCE_SEC)

    def wait(self, cancelled):
        self.entered.set()
        assert self.opened.wait(PATIENCE_SEC)


def pieces(log, name, count):
    def work(cancelled):
        for i in range(count):
            log.append(f"{name}{i}")
            if i < count - 1:
                yield
        return name

    return work


def results(jobs):
    found = [job.future.result(PATIENCE_SEC) for job in jobs]
    for job in jobs:
        job.close()
    return found


def test_drafts_come_before_sharp_images_and_these_before_long_jobs(queue):
    gate, log = Gate(queue), []
    jobs = [queue.submit(Owner(), rank, pieces(log, rank.name[0], 2)) for rank in (Rank.LONG, Rank.SHARP, Rank.DRAFT)]
    gate.opened.set()
    assert results(jobs) == ["L", "S", "D"]
    assert log == ["D0", "D1", "S0", "S1", "L0", "L1"]


def test_a_draft_slips_in_between_the_pieces_of_a_long_job(queue):
    log, owner = [], Owner()
    asked = []

    def long(cancelled):
        for i in range(3):
            log.append(f"L{i}")
            if i == 1:
                asked.append(queue.submit(owner, Rank.DRAFT, pieces(log, "D", 1)))
            yield

    results([queue.submit(Owner(), Rank.LONG, long)])
    results(asked)
    assert log == ["L0", "L1", "D0", "L2"]


def test_owners_take_turns_however_much_each_asks_for(queue):
    gate, log = Gate(queue), []
    greedy, modest = Owner(), Owner()
    jobs = [queue.submit(greedy, Rank.SHARP, pieces(log, "a", 4)) for _ in range(2)]
    jobs += [queue.submit(modest, Rank.SHARP, pieces(log, "b", 3))]
    gate.opened.set()
    results(jobs)
    assert [name[0] for name in log[:6]] == ["a", "b"] * 3


def test_owners_who_ask_again_at_once_take_turns_too(queue):
    log = []

    def ask_often(owner, name):
        for _ in range(30):
            results([queue.submit(owner, Rank.DRAFT, pieces(log, name, 1))])

    threads = [threading.Thread(target=ask_often, args=(Owner(), name)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SEC)
    assert len(log) == 60


def test_a_rank_that_has_waited_long_gets_a_piece(queue, monkeypatch):
    clock, log = Clock(), []
    monkeypatch.setattr(scheduler, "time", clock)
    gate = Gate(queue)  # what is asked meanwhile has waited from now on

    def draft(owner):
        def work(cancelled):
            clock.now += scheduler.PATIENCE_SECONDS / 4
            log.append("D")
            if len(log) < 40:
                draft(owner)

        job = queue.call(owner, Rank.DRAFT, work)
        job.future.add_done_callback(lambda _: job.close())

    for _ in range(3):  # of whom each asks again as soon as it has a draft
        draft(Owner())
    long = queue.submit(Owner(), Rank.LONG, pieces(log, "L", 3))
    gate.opened.set()
    results([long])
    assert log[:13] == [*"DDDD", "L0", *"DDDD", "L1", "D", "D", "D"], "one piece at a time"


def test_owners_who_do_not_fetch_their_results_are_passed_over(queue):
    log = []
    slow, other = Owner(), Owner()
    jobs = [queue.submit(slow, Rank.DRAFT, pieces(log, f"s{i}.", 1)) for i in range(UNSENT + 1)]
    for job in jobs[:UNSENT]:
        job.future.result(PATIENCE_SEC)
    results([queue.submit(other, Rank.LONG, pieces(log, "o", 1))])
    assert not jobs[-1].future.done()
    jobs[0].close()
    assert jobs[-1].future.result(PATIENCE_SEC)
    for job in jobs:
        job.close()
        job.close()
    assert slow.unsent == 0


def test_a_job_closed_before_it_begins_is_not_done(queue):
    gate, log = Gate(queue), []
    job = queue.submit(Owner(), Rank.DRAFT, pieces(log, "x", 1))
    job.close()
    with pytest.raises(Cancelled):
        job.future.result(0)
    gate.opened.set()
    results([queue.submit(Owner(), Rank.LONG, pieces(log, "y", 1))])
    assert log == ["y0"]


def test_a_job_closed_while_it_runs_is_told_so(queue):
    entered = threading.Event()

    def work(cancelled):
        entered.set()
        while not cancelled():
            time.sleep(0.001)
        raise Cancelled

    job = queue.call(Owner(), Rank.SHARP, work)
    assert entered.wait(PATIENCE_SEC)
    job.close()
    with pytest.raises(Cancelled):
        job.future.result(PATIENCE_SEC)


def test_errors_go_to_whoever_waits_and_the_thread_goes_on(queue):
    def broken(cancelled):
        raise RuntimeError("broken")

    job = queue.call(Owner(), Rank.DRAFT, broken)
    with pytest.raises(RuntimeError, match="broken"):
        job.future.result(PATIENCE_SEC)
    job.close()
    assert results([queue.call(Owner(), Rank.DRAFT, lambda _: 7)]) == [7]


def test_after_the_end_everything_is_cancelled():
    queue = RenderQueue()
    gate = Gate(queue)
    waiting = queue.submit(Owner(), Rank.LONG, pieces([], "x", 9))
    assert not queue.stop(0.01)
    gate.opened.set()
    assert queue.stop(PATIENCE_SEC)
    late = queue.submit(Owner(), Rank.LONG, pieces([], "x", 1))
    for job in (waiting, late):
        with pytest.raises(Cancelled):
            job.future.result(0)


def test_finished_and_cancelled_jobs_leave_nothing_behind(queue):
    class Big:
        pass

    seen = []

    def work(cancelled):
        big = Big()
        seen.append(weakref.ref(big))
        yield
        if cancelled():
            raise Cancelled
        yield
        return big

    gc.disable()  # freed at once, not when the collector runs
    try:
        jobs = [queue.submit(Owner(), Rank.LONG, work) for _ in range(20)]
        for job in jobs[::2]:
            job.close()
        results(jobs[1::2])
        for job in jobs[::2]:
            with pytest.raises(Cancelled):
                job.future.result(PATIENCE_SEC)
        jobs.clear()
        del job
        results([queue.call(Owner(), Rank.DRAFT, lambda _: None)])
        end = time.monotonic() + PATIENCE_SEC
        while [reference for reference in seen if reference() is not None]:
            assert time.monotonic() < end
            time.sleep(0.001)
    finally:
        gc.enable()
