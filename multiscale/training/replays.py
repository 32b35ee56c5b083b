"""CUDA graphs of the networks in a training step: each call and its backward pass, recorded once and replayed.

The kernels of a small network take less time than Python needs to launch them: on an H100 the GPU is idle for nine tenths of a
step of the preset `small`. A replay launches them all at once and gives the same numbers. Its price is memory: what a recorded
call keeps for its backward pass stays allocated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

WARM_UP = 2
"""Calls before one is recorded, so that libraries have chosen their algorithms."""

Function = Callable[..., Any]
"""Of tensors on the GPU, to a tensor or a tuple of them; all else that it uses is constant or lives in the module's tensors."""


class Replays:
    """Call it with a function to have it replayed.

    In a step each role is called once at most: what a call returns, its gradients too, is overwritten by the role's next call.
    """

    def __init__(self) -> None:
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._has_failed = False

    def __call__(self, role: str, function: Function, module: nn.Module, *inputs: torch.Tensor) -> Any:
        """``function(*inputs)``, differentiable once.

        Args:
            role: Name of the call among those of a step.
            function: Recorded the third time that a role is called with such inputs; it may change buffers of ``module``.
            module: Holds the parameters that it uses.
            inputs: Tensors on the GPU.

        Returns:
            What the function returns.
        """
        key = role, torch.is_grad_enabled(), *((t.shape, t.dtype, t.requires_grad) for t in inputs)
        if key not in self._recordings:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARM_UP or self._has_failed:
                return function(*inputs)
            try:
                self._recordings[key] = _Recording(function, module, inputs)
            except torch.OutOfMemoryError:
                self._has_failed = True
                warnings.warn(
                    "There is not enough GPU memory to replay the rest of a step from CUDA graphs; it will be slower. "
                    "--set training.cuda_graphs=false gives all memory to larger batches.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return function(*inputs)
        return self._recordings[key](*inputs)


class _Recording:
    def __init__(self, function: Function, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
        leaves = [*self.inputs, *module.parameters()] if torch.is_grad_enabled() else []
        self.leaves = [t for t in leaves if t.requires_grad]
        buffers = list(module.buffers())
        before = [b.clone() for b in buffers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once more, where it will be recorded: libraries take their workspace there
            outputs = _tuple(function(*self.inputs))
            if self.leaves:
                self._gradients(outputs, [torch.zeros_like(o) for o in outputs])
            del outputs
        torch.cuda.current_stream().wait_stream(stream)

        # Other threads go on meanwhile, such as the one that pins the next batch: "thread_local" lets them.
        self.forward = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, stream=stream, capture_error_mode="thread_local"):
            result = function(*self.inputs)
        self.is_tuple = isinstance(result, tuple)
        outputs = _tuple(result)
        self.received: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor | None] = []
        if self.leaves:
            self.received = [torch.zeros_like(o) for o in outputs]
            self.backward = torch.cuda.CUDAGraph()
            options: dict[str, Any] = {"pool": self.forward.pool(), "stream": stream}
            with torch.cuda.graph(self.backward, capture_error_mode="thread_local", **options):
                self.gradients = self._gradients(outputs, self.received)
        self.outputs = tuple(o.detach() for o in outputs)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    def _gradients(self, outputs: tuple[torch.Tensor, ...], received: list[torch.Tensor]) -> list[torch.Tensor | None]:
        pairs = [(o, g) for o, g in zip(outputs, received, strict=True) if o.requires_grad]
        differentiable, theirs = zip(*pairs, strict=True)
        return list(torch.autograd.grad(differentiable, self.leaves, theirs, allow_unused=True))

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.leaves:
            given = [t for t in inputs if t.requires_grad]
            outputs = _Replay.apply(self, inputs, *given, *self.leaves[len(given) :])
        else:
            outputs = self.replay(inputs)
        return outputs if self.is_tuple else outputs[0]

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The forward pass."""
        for held, given in zip(self.inputs, inputs, strict=True):
            held.detach().copy_(given.detach())
        self.forward.replay()
        return tuple(o.detach() for o in self.outputs)

    def replay_backward(self, gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        """The backward pass, from the gradients of the outputs to those of the leaves."""
        for held, given in zip(self.received, gradients, strict=True):
            if given is None:
                held.zero_()
            else:
                held.copy_(given)
        self.backward.replay()
        return tuple(None if g is None else g.detach() for g in self.gradients)


class _Replay(torch.autograd.Function):
    """A recording among other operations that are differentiated."""

    @staticmethod
    def forward(
        ctx: Any, recording: _Recording, inputs: tuple[torch.Tensor, ...], *leaves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.recording = recording
        ctx.set_materialize_grads(False)
        return recording.replay(inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.recording.replay_backward(gradients)


def _tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
