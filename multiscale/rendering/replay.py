"""CUDA graphs of the synthesis network: what the GPU is told to do for a shape of image, recorded once and replayed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch

from multiscale.networks.generator import SynthesisNetwork
from torch_utils.graphs import Graphs

SHAPES_KEPT = 8
SHAPES_COUNTED = 256
WARM_UP = 2
"""Calls before a shape is recorded, so that libraries have chosen their algorithms."""


class Replay:
    """Call it as the network; each shape's third call records, later ones replay. Use it from one thread at a time, and on one
    stream.

    Recordings use the same memory for what lies between their inputs and images. Where there is not enough memory for another
    recording, none is tried again: shapes without one are rendered by the network itself.

    Args:
        synthesis: The network, on a GPU.
        graphs: Makes what records, for a device; called once, before the first recording.
    """

    def __init__(self, synthesis: SynthesisNetwork, graphs: Callable[[torch.device], Graphs] = Graphs) -> None:
        self.synthesis = synthesis
        self._make_graphs = graphs
        self._graphs: Graphs | None = None
        self._has_failed = False
        self._calls: dict[tuple[int, int, int], int] = {}
        self._recordings: OrderedDict[tuple[int, int, int], _Recording] = OrderedDict()

    def __call__(self, ws: torch.Tensor, transform: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """ws [B, num_ws, D] on the GPU, transform [B, 3, 3] anywhere -> float32 [B, C, height, width] on the GPU."""
        key = (len(ws), *size)
        if key not in self._recordings and self._is_due(key):
            self._record(key, ws, transform)
        if key not in self._recordings:
            return self.synthesis(ws, transform, size=size)
        self._recordings.move_to_end(key)
        return self._recordings[key](ws, transform)

    def _is_due(self, key: tuple[int, int, int]) -> bool:
        if self._has_failed:
            return False
        if len(self._calls) > SHAPES_COUNTED:
            self._calls.clear()
        self._calls[key] = self._calls.get(key, 0) + 1
        return self._calls[key] > WARM_UP

    def _record(self, key: tuple[int, int, int], ws: torch.Tensor, transform: torch.Tensor) -> None:
        try:
            if self._graphs is None:
                self._graphs = self._make_graphs(ws.device)
            self._recordings[key] = _Recording(self._graphs, self.synthesis, ws, transform, key[1:])
        except torch.OutOfMemoryError:
            self._has_failed = True
            warnings.warn(
                "There is not enough GPU memory to replay more shapes of image from CUDA graphs; they will be slower.",
                RuntimeWarning,
                stacklevel=3,
            )
            return  # what the failed recording has taken is free before the network is called
        self._calls.pop(key)
        while len(self._recordings) > SHAPES_KEPT:
            self._recordings.popitem(last=False)


class _Recording:
    """The network for a shape of image, on tensors that stay where they are."""

    def __init__(
        self,
        graphs: Graphs,
        synthesis: SynthesisNetwork,
        ws: torch.Tensor,
        transform: torch.Tensor,
        size: tuple[int, int],
    ) -> None:
        self.synthesis, self.size = synthesis, size
        self.ws = ws.contiguous().clone()
        self.transform = transform.double().to(ws.device, copy=True)
        graphs.rehearse(self._compute)
        self._replay = graphs.record(self._compute)

    def _compute(self) -> None:
        self.image = self.synthesis(self.ws, self.transform, size=self.size)

    def __call__(self, ws: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
        self.ws.copy_(ws)
        self.transform.copy_(transform, non_blocking=True)
        self._replay()
        return self.image.clone()  # the replay of another shape may use its memory
