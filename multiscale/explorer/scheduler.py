"""One thread does all the computing of a device, in pieces: after each piece, the most urgent job goes on.

A job is a generator; each step of it is one piece, such as a tile of an image or a frame of a film. Drafts come before sharp
images and these before long jobs; among equals, whoever has waited longest since being served last. But whoever has taken more
of the thread lately than another who waits comes after them, however urgent: nobody's drafts keep others from sharp images.
Whoever floods comes after all others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, Generic, TypeVar

from multiscale.rendering.renderer import Cancelled

T = TypeVar("T")
Cancelling = Callable[[], bool]
Work = Callable[[Cancelling], Generator[None, None, T]]

UNSENT = 3
"""Results that an owner may leave unfetched before its jobs are passed over."""
PATIENCE_SECONDS = 3.0
"""A rank that has waited this long gets a piece, however urgent the others are."""


SHARE_SECONDS = 0.15
"""Thread time that an owner may have used beyond the waiting owner that has used least."""
FORGET_SECONDS = 2.0
"""Half-life of the thread time that an owner has used."""


class Rank(IntEnum):
    """How urgent a job is."""

    DRAFT = 0
    SHARP = 1
    LONG = 2


class Owner:
    """Whoever asks for jobs: a connection, a film, all viewers of tiles. The queue keeps its accounts here."""

    def __init__(self) -> None:
        self.served = 0
        self.unsent = 0
        self.floods = False
        """Whether it asks for more than anybody can look at; nothing is done for it while others wait."""
        self._taken = 0.0
        self._noted = 0.0

    def taken(self, now: float) -> float:
        """Thread time in seconds spent on its jobs, decaying with age."""
        return self._taken * 0.5 ** ((now - self._noted) / FORGET_SECONDS)

    def take(self, seconds: float, now: float) -> None:
        """Add seconds spent."""
        self._taken, self._noted = self.taken(now) + seconds, now


class Job(Generic[T]):
    """A submitted job; always call :meth:`close`, as soon as its result has been used or is no longer wanted."""

    def __init__(self, queue: RenderQueue, owner: Owner, rank: Rank, work: Work[T]) -> None:
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()
        self.owner = owner
        self.rank = rank
        self.asked = time.perf_counter()
        self.began: float | None = None
        """When its first piece began, in seconds of ``time.perf_counter``."""
        self.render_seconds = 0.0
        """Time spent on its pieces."""
        self.closed = False
        self.counted = False
        self._queue = queue
        self._pieces = work(lambda: self.closed or queue.stopped)

    def close(self) -> None:
        """Give up the job if it is unfinished; make room for the owner's next one."""
        self._queue.close(self)

    def drop(self) -> None:
        """End the job before its first piece (for the queue only)."""
        self._pieces.close()
        self.future.set_exception(Cancelled())

    def advance(self) -> bool:
        """Do the next piece; whether that was the last (for the queue only, on its thread)."""
        start = time.perf_counter()
        if self.began is None:
            self.began = start
        try:
            if self.closed or self._queue.stopped:
                self._pieces.close()
                raise Cancelled
            next(self._pieces)
        except StopIteration as end:
            self.render_seconds += time.perf_counter() - start
            self.future.set_result(end.value)
            return True
        except Cancelled:
            self.future.set_exception(Cancelled())  # without a traceback, which would keep what was being rendered
            return True
        except BaseException as error:  # belongs to whoever waits
            self.future.set_exception(error)
            return True
        self.render_seconds += time.perf_counter() - start
        return False


class RenderQueue:
    """The jobs of one device and the thread that does them."""

    def __init__(self) -> None:
        self.stopped = False
        self._jobs: list[Job[Any]] = []
        self._changed = threading.Condition()
        self._count = 0
        self._served_at = dict.fromkeys(Rank, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)
        self._thread.start()

    def submit(self, owner: Owner, rank: Rank, work: Work[T]) -> Job[T]:
        """Queue ``work(cancelled)``, a generator whose return value becomes the result of the job's ``future``.

        ``work`` may ask ``cancelled()`` within a piece and raise ``Cancelled``.
        """
        job = Job(self, owner, rank, work)
        with self._changed:
            if self.stopped:
                job.drop()
                return job
            if not any(other.rank == rank for other in self._jobs):
                self._served_at[rank] = time.monotonic()  # nobody has waited
            self._jobs.append(job)
            self._changed.notify()
        return job

    def call(self, owner: Owner, rank: Rank, function: Callable[[Cancelling], T]) -> Job[T]:
        """As :meth:`submit` for a job of one piece."""
        return self.submit(owner, rank, one_piece(function))

    def close(self, job: Job[Any]) -> None:
        """See :meth:`Job.close`."""
        with self._changed:
            job.closed = True
            if job.counted:
                job.counted = False
                job.owner.unsent -= 1
            never_began = job.began is None and job in self._jobs
            if never_began:
                self._jobs.remove(job)
            self._changed.notify()
        if never_began:
            job.drop()

    def stop(self, timeout: float) -> bool:
        """Give up all jobs; whether the thread has ended within ``timeout`` seconds."""
        with self._changed:
            self.stopped = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException:
            logging.getLogger(__name__).exception("The render thread has died.")
            raise

    def _step(self) -> bool:
        """Wait for a piece and do it; False at the end. No job is referenced while waiting."""
        with self._changed:
            while (job := self._choice()) is None:
                if self.stopped:
                    return False
                self._changed.wait()
            self._count += 1
            job.owner.served = self._count
            if job.began is None:
                job.began = time.perf_counter()
        start = time.monotonic()
        ended = job.advance()
        with self._changed:
            now = self._served_at[job.rank] = time.monotonic()
            job.owner.take(now - start, now)
            if ended:
                self._jobs.remove(job)
                if not job.closed:
                    job.counted = True
                    job.owner.unsent += 1
        return True

    def _choice(self) -> Job[Any] | None:
        if self.stopped:
            return self._jobs[0] if self._jobs else None
        ready = [job for job in self._jobs if job.closed or job.owner.unsent < UNSENT]
        if not ready:
            return None
        now = time.monotonic()
        late = now - PATIENCE_SECONDS
        fair = [job for job in ready if job.rank < Rank.LONG and not job.owner.floods]
        least = min((job.owner.taken(now) for job in fair), default=0.0)

        def place(job: Job[Any]) -> tuple[bool, bool, bool, bool, bool, Rank, int]:
            is_long = job.rank == Rank.LONG
            has_had_enough = not is_long and job.owner.taken(now) > least + SHARE_SECONDS
            patient = self._served_at[job.rank] > late
            return not job.closed, job.owner.floods, patient, is_long, has_had_enough, job.rank, job.owner.served

        return min(ready, key=place)


def one_piece(function: Callable[[Cancelling], T]) -> Work[T]:
    """Work that is done in one step."""

    def work(cancelled: Cancelling) -> Generator[None, None, T]:
        return function(cancelled)
        yield

    return work
