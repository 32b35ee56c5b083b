"""CUDA graphs: what a GPU is told to do, recorded once and replayed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

import torch

WARM_UP = 2
"""Calls of a kind before one is recorded, so that libraries have chosen their algorithms."""

KINDS_COUNTED = 256
"""Kinds of calls that are counted at a time."""

T = TypeVar("T")


class Graphs:
    """Records on a stream of its own and into one pool of memory, which all of its recordings share.

    What is alive while a graph is recorded is left alone by it; what earlier recordings have freed, such as what lies between
    their inputs and outputs, it uses again. So a replay may overwrite the results of a graph that was recorded later: use or
    copy those before the next replay, on one stream. Graphs whose results must outlive each other's replays take a
    ``Graphs`` each.

    Args:
        device: The GPU; None: the current one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def rehearse(self, body: Callable[[], object]) -> None:
        """Do it once where it will be recorded: libraries take their workspace there."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            body()
        current.wait_stream(self.stream)

    def record(self, body: Callable[[], object]) -> Callable[[], None]:
        """Record it without doing it; what is returned does it.

        Other threads go on meanwhile, such as the one that pins the next batch: "thread_local" lets them.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            body()
        return graph.replay


class Recordings(Generic[T]):
    """Recordings of several kinds of calls: each kind's third call makes one. After an out-of-memory none is tried again.

    Args:
        shortage: What is warned of then, once.
        kept: Recordings, at most; those used longest ago go.
    """

    def __init__(self, shortage: str, kept: int | None = None) -> None:
        self._shortage, self._kept = shortage, kept
        self._has_failed = False
        self._calls: dict[Hashable, int] = {}
        self._made: OrderedDict[Hashable, T] = OrderedDict()

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def of(self, kind: Hashable, make: Callable[[], T]) -> T | None:
        """The recording for a call, made now if it is due; None: there is none."""
        if kind not in self._made and self._is_due(kind):
            self._make(kind, make)
        if kind in self._made:
            self._made.move_to_end(kind)
        return self._made.get(kind)

    def _is_due(self, kind: Hashable) -> bool:
        if self._has_failed:
            return False
        if len(self._calls) > KINDS_COUNTED:
            self._calls.clear()
        self._calls[kind] = self._calls.get(kind, 0) + 1
        return self._calls[kind] > WARM_UP

    def _make(self, kind: Hashable, make: Callable[[], T]) -> None:
        try:
            self._made[kind] = make()
        except torch.OutOfMemoryError:
            self._has_failed = True
            warnings.warn(self._shortage, RuntimeWarning, stacklevel=4)
            return  # what the failed recording has taken is free before anything else is called
        self._calls.pop(kind)
        while self._kept is not None and len(self._made) > self._kept:
            self._made.popitem(last=False)
