"""Gradients of a network between backward pass and optimiser: averaged over processes, made finite, measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from torch_utils.distributed import Process

BUCKET_BYTES = 32 * 2**20
"""Gradients that travel in one collective call."""

LARGEST = 1e5
"""Magnitude of what replaces an infinite gradient; NaN becomes 0."""


class Gradients:
    """Gradients of parameters, averaged over processes in buckets, each sent while the rest are still computed.

    Args:
        parameters: Of one network, in the order of its forward pass; alike on all processes.
        process: This one among all.
        bucket_bytes: Size of a bucket.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], process: Process, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.process = process
        self.buckets = list(_buckets(list(parameters)[::-1], bucket_bytes))  # the backward pass meets the last first
        self._waits_for: list[set[nn.Parameter]] = []
        self._sent: list[tuple[list[nn.Parameter], torch.Tensor, dist.Work | None]] = []
        self._is_last = False
        if process.world_size > 1:
            for number, bucket in enumerate(self.buckets):
                for p in bucket:
                    p.register_post_accumulate_grad_hook(lambda p, number=number: self._arrived(p, number))

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """Around the last backward pass of a step: buckets are sent to the other processes once they are complete."""
        self._is_last = True
        self._waits_for = [set(bucket) for bucket in self.buckets]
        try:
            yield
        finally:
            self._is_last = False

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Complete the averages and put them into ``.grad``, non-finite entries replaced; None stays None.

        Returns:
            Norm of all gradients (after replacement), and how many entries were not finite; scalars on the device.
        """
        for number in range(len(self._sent), len(self.buckets)):  # those that wait for parameters without a gradient
            self._send(number)
        squares, broken = [], []
        for parameters, flat, work in self._sent:
            if work is not None:
                work.wait()
            broken.append((~torch.isfinite(flat)).sum())
            torch.nan_to_num(flat, nan=0.0, posinf=LARGEST, neginf=-LARGEST, out=flat)
            squares.append(torch.linalg.vector_norm(flat).square())
            for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad = mean.view_as(p)
        self._sent.clear()
        return torch.stack(squares).sum().sqrt(), torch.stack(broken).sum()

    def _arrived(self, parameter: nn.Parameter, number: int) -> None:
        if self._is_last:
            self._waits_for[number].discard(parameter)
            while len(self._sent) < len(self.buckets) and not self._waits_for[len(self._sent)]:
                self._send(len(self._sent))  # in one order on all processes

    @torch.no_grad()
    def _send(self, number: int) -> None:
        parameters = [p for p in self.buckets[number] if p.grad is not None]
        none = torch.empty(0, device=self.process.device)
        flat = torch.cat([none, *(p.grad.flatten() for p in parameters)])  # type: ignore[union-attr]
        work = None
        if parameters and self.process.world_size > 1:
            flat /= self.process.world_size
            work = dist.all_reduce(flat, async_op=True)
        self._sent.append((parameters, flat, work))


def _buckets(parameters: list[nn.Parameter], largest: int) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        if bucket and size + p.numel() * p.element_size() > largest:
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel() * p.element_size()
    if bucket:
        yield bucket
