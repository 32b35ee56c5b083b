"""CUDA graphs: what a GPU is told to do, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch


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
