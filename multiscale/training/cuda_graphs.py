"""CUDA graphs of the networks in a training step: each call and its backward pass, recorded once and replayed.

The kernels of a small network take less time than Python needs to launch them: on an H100 the GPU is idle for nine tenths of a
step of the preset `small`. A replay launches them all at once and gives the same numbers. Its price is memory: what a recorded
call keeps for its backward pass stays allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from torch_utils.graphs import Graphs, Recordings

Function: TypeAlias = Callable[..., Any]
"""Of tensors on the GPU, to a tensor or a tuple of them; all else that it uses is constant or lives in the module's tensors."""


class Replays:
    """Call it with a function to have it replayed.

    In a step each role is called once at most: what a call returns, its gradients too, is overwritten by the role's next call.

    Args:
        graphs: Makes what records a call and its backward pass, with memory of its own: results wait for others' replays.
    """

    def __init__(self, graphs: Callable[[], Graphs] = Graphs) -> None:
        self._graphs = graphs
        self._of_variants: dict[Hashable, Graphs] = {}
        self._recordings: Recordings[_Recording] = Recordings(
            "There is not enough GPU memory to replay the rest of a step from CUDA graphs; it will be slower. "
            "--set training.cuda_graphs=false gives all memory to larger batches."
        )

    def __call__(
        self, role: str, function: Function, module: nn.Module, *inputs: torch.Tensor, variant: Hashable = None
    ) -> Any:
        """``function(*inputs)``, differentiable once.

        Args:
            role: Name of the call among those of a step.
            function: Recorded the third time that a role is called with such inputs; it may change buffers of ``module``.
            module: Holds the parameters that it uses.
            inputs: Tensors on the GPU.
            variant: What else the function depends on; a step calls one variant of a role, so all share their memory.

        Returns:
            What the function returns: a tensor, or a tuple of them.
        """
        kind = role, torch.is_grad_enabled(), *((t.shape, t.dtype, t.requires_grad) for t in inputs)
        recording = self._recordings.of(
            (*kind, variant), lambda: _Recording(self._memory(role, variant), function, module, inputs)
        )
        return function(*inputs) if recording is None else recording(*inputs)

    def _memory(self, role: str, variant: Hashable) -> Graphs:
        if variant is None:
            return self._graphs()
        if role not in self._of_variants:
            self._of_variants[role] = self._graphs()
        return self._of_variants[role]


class _Bound(nn.Module):
    """A function that uses a module's parameters, as a module itself."""

    def __init__(self, module: nn.Module, function: Function) -> None:
        super().__init__()
        self.module, self.function = module, (function,)  # in a tuple, lest a module be held by two names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function[0](*inputs)


class _Recording:
    """A call and its backward pass, on tensors that stay where they are.

    It is differentiated with respect to aliases of the parameters: autograd ties a parameter to the stream that it was used on
    first, which is not the one that records.
    """

    def __init__(self, graphs: Graphs, function: Function, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        is_differentiable = torch.is_grad_enabled()
        self.inputs = [_alias(t.clone(), t) for t in inputs]
        self.parameters = [p for p in module.parameters() if p.requires_grad and is_differentiable]
        self._bound = _Bound(module, function)
        self._aliases = {name: _alias(p, p) for name, p in self._bound.named_parameters()}
        leaves = [*self.inputs, *self._aliases.values()] if is_differentiable else []
        self.leaves = [t for t in leaves if t.requires_grad]
        self.received: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor | None] = []

        buffers = list(module.buffers())
        before = [b.clone() for b in buffers]
        graphs.rehearse(self._rehearse)
        self._forward = graphs.record(self._compute)
        if self.leaves:
            self.received = [torch.zeros_like(o) for o in self._computed]
            self._backward = graphs.record(self._differentiate)
        for buffer, value in zip(buffers, before, strict=True):
            if not torch.equal(buffer, value):  # others may be needed as they are by the step's gradients so far
                buffer.copy_(value)

    def _rehearse(self) -> None:
        self._compute()
        if self.leaves:
            self.received = [torch.zeros_like(o) for o in self._computed]
            self._differentiate()

    def _compute(self) -> None:
        result = torch.func.functional_call(self._bound, self._aliases, tuple(self.inputs))
        self.is_tuple = isinstance(result, tuple)
        self._computed = result if self.is_tuple else (result,)
        self.outputs = tuple(o.detach() for o in self._computed)

    def _differentiate(self) -> None:
        pairs = [(o, g) for o, g in zip(self._computed, self.received, strict=True) if o.requires_grad]
        differentiable, theirs = zip(*pairs, strict=True)
        self.gradients = list(torch.autograd.grad(differentiable, self.leaves, theirs, allow_unused=True))

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if self.leaves:
            given = [t for t in inputs if t.requires_grad]
            outputs = _Replay.apply(self, inputs, *given, *self.parameters)
        else:
            outputs = self.replay(inputs)
        return outputs if self.is_tuple else outputs[0]

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The forward pass."""
        for held, given in zip(self.inputs, inputs, strict=True):
            held.detach().copy_(given.detach())
        self._forward()
        return tuple(o.detach() for o in self.outputs)

    def replay_backward(self, gradients: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        """The backward pass, from the gradients of the outputs to those of the leaves."""
        for held, given in zip(self.received, gradients, strict=True):
            if given is None:
                held.zero_()
            else:
                held.copy_(given)
        self._backward()
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


def _alias(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A leaf of autograd with the memory of ``tensor``, differentiated if ``like`` is."""
    return tensor.detach().requires_grad_(like.requires_grad)
