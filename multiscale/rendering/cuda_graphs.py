"""CUDA graphs of the synthesis network: what the GPU is told to do for a shape of image, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from multiscale.networks.generator import SynthesisNetwork
from torch_utils.graphs import Graphs, Recordings

SHAPES_KEPT = 8


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
        self._recordings: Recordings[_Recording] = Recordings(
            "There is not enough GPU memory to replay more shapes of image from CUDA graphs; they will be slower.",
            kept=SHAPES_KEPT,
        )

    def __call__(self, ws: torch.Tensor, transform: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """ws [B, num_ws, D] on the GPU, transform [B, 3, 3] anywhere -> float32 [B, C, height, width] on the GPU."""
        recording = self._recordings.of((len(ws), *size), lambda: self._record(ws, transform, size))
        return self.synthesis(ws, transform, size=size) if recording is None else recording(ws, transform)

    def _record(self, ws: torch.Tensor, transform: torch.Tensor, size: tuple[int, int]) -> _Recording:
        if self._graphs is None:
            self._graphs = self._make_graphs(ws.device)
        return _Recording(self._graphs, self.synthesis, ws, transform, size)


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
