"""What the handlers of a server share."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dnnlib.cache import DiskCache
from multiscale.explorer.films import Films
from multiscale.explorer.networks import Library
from multiscale.explorer.scheduler import Owner, Rank, RenderQueue, Work
from multiscale.explorer.sites import Sites

T = TypeVar("T")

ENCODERS, READERS = 2, 2
PLACES_NOTED = 256

log = logging.getLogger(__name__)


@dataclass
class Services:
    """The networks, the render thread, films and the cache."""

    library: Library
    queue: RenderQueue
    films: Films
    cache: DiskCache

    def __post_init__(self) -> None:
        self._encoders = ThreadPoolExecutor(ENCODERS, "encode")
        self._readers = ThreadPoolExecutor(READERS, "disk")
        self._noted: set[tuple[str, str]] = set()
        self.sites = Sites(self.library)

    def close(self, seconds: float) -> bool:
        """Give up all work and remove all films and pages; whether the render thread has ended within a time."""
        ended = self.queue.stop(seconds)
        self.films.close()
        self.sites.close()
        for threads in (self._encoders, self._readers):
            threads.shutdown(wait=False, cancel_futures=True)
        return ended

    async def rendered(self, owner: Owner, rank: Rank, work: Work[T]) -> T:
        """The result of work of the render thread; it is given up when the waiting task is cancelled."""
        job = self.queue.submit(owner, rank, work)
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            job.close()

    async def encoded(self, function: Callable[[], T]) -> T:
        """The result of a function that computes, on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._encoders, function)

    async def on_disk(self, function: Callable[[], T]) -> T:
        """The result of a function that waits for the disk, on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    def note(self, error: BaseException) -> None:
        """Log an unexpected error, once for each place it comes from."""
        place = type(error).__name__, repr(traceback.extract_tb(error.__traceback__)[-1:])
        if place not in self._noted and len(self._noted) < PLACES_NOTED:
            self._noted.add(place)
            log.error("Unexpected error (reported once).", exc_info=error)
