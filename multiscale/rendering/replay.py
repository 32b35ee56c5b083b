"""CUDA graphs of the synthesis network: what the GPU is told to do for a shape of image, recorded once and replayed."""

from __future__ import annotations

from collections import OrderedDict

import torch

from multiscale.networks.generator import SynthesisNetwork

SHAPES_KEPT = 8
SHAPES_COUNTED = 256
WARM_UP = 2
"""Calls before a shape is recorded, so that libraries have chosen their algorithms."""


class Replay:
    """Call it as the network; each shape's third call records, later ones replay. Use it from one thread at a time.

    The image that a call returns is overwritten by the next call of the same shape.
    """

    def __init__(self, synthesis: SynthesisNetwork) -> None:
        self.synthesis = synthesis
        self._calls: dict[tuple[int, int, int], int] = {}
        self._graphs: OrderedDict[tuple[int, int, int], _Recording] = OrderedDict()

    def __call__(self, ws: torch.Tensor, transform: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """ws [B, num_ws, D] on the GPU, transform [B, 3, 3] anywhere -> float32 [B, C, height, width] on the GPU."""
        key = (len(ws), *size)
        if key not in self._graphs:
            if len(self._calls) > SHAPES_COUNTED:
                self._calls.clear()
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM_UP:
                return self.synthesis(ws, transform, size=size)
            self._graphs[key] = _Recording(self.synthesis, ws, transform, size)
            self._calls.pop(key)
            while len(self._graphs) > SHAPES_KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key](ws, transform)


class _Recording:
    def __init__(
        self, synthesis: SynthesisNetwork, ws: torch.Tensor, transform: torch.Tensor, size: tuple[int, int]
    ) -> None:
        self.ws = ws.contiguous().clone()
        self.transform = transform.double().to(ws.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.image = synthesis(self.ws, self.transform, size=size)

    def __call__(self, ws: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
        self.ws.copy_(ws)
        self.transform.copy_(transform, non_blocking=True)
        self.graph.replay()
        return self.image
