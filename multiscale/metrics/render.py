"""Measures that render their own views: what such a measure is given, and how processes share its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from multiscale.data.patches import PatchDataset
from multiscale.metrics.measure import Kind, Result

if TYPE_CHECKING:
    import torch

    from multiscale.metrics.samples import Shape
    from multiscale.networks.generator import Generator
    from multiscale.rendering.renderer import Renderer
    from torch_utils.distributed import Process

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Model:
    """A generator to measure, and the samples to take of it."""

    count: int
    """Samples to take."""
    generator: Generator
    """In evaluation mode, on the device of the process."""
    shape: Shape
    dataset: PatchDataset
    """The real patches."""
    process: Process
    seed: int
    """Of all draws."""
    batch: int
    """Samples at a time."""
    tell: Progress
    """Called with the number of views rendered, over all processes; :meth:`shared` does so."""

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.process.device

    @property
    def octaves(self) -> range:
        """All octaves of the data."""
        return range(self.dataset.octaves)

    @property
    def renderer(self) -> Renderer:
        """For images of any size."""
        from multiscale.rendering.renderer import Renderer  # here: PyTorch takes seconds

        return Renderer(self.generator, self.device)

    def octave_views(self, purpose: str, octave: int, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and views of patches of an octave, as :func:`patch_views`; each purpose has its own."""
        from multiscale.metrics.samples import patch_views  # here: PyTorch takes seconds

        labels = self.dataset.labels[self.dataset.patch_octaves == octave]
        return patch_views(self.seed, f"{purpose} {octave}", indices, labels, self.shape.z_dim)

    def shared(self, work: Callable[[list[int]], Sequence[Any]], views: int) -> list[Any]:
        """``work(indices)``, a value for each, for all indices below ``count``: shared by the processes, in order, in all.

        ``views``: how many a sample takes.
        """
        from multiscale.metrics.samples import (  # here: PyTorch takes seconds
            done_by_all,
            gathered,
            in_order,
            own_batches,
        )

        found: dict[int, Any] = {}
        for indices in own_batches(self.process, self.count, self.batch):
            found |= dict(zip(indices, work(indices), strict=True))
            self.tell(views * done_by_all(self.process, indices, self.count))
        return in_order(gathered(self.process, found))

    def shared_by_octave(self, work: Callable[[int, list[int]], Sequence[Any]], views: int) -> list[np.ndarray]:
        """``work(octave, indices)``, a number for each sample of each octave: float [count], octave by octave."""
        return [np.array(self.shared(partial(work, octave), views)) for octave in self.octaves]


@dataclass(frozen=True, kw_only=True)
class ViewKind(Kind):
    """A measure that renders its own views."""

    measured: Callable[[Model], Result]
    """Called in every process; must return the same result in each."""
    rendered: Callable[[int, int], int]
    """Number of views rendered, given (count, octaves)."""
    check: Callable[[PatchDataset], object] = lambda _: None
    """Called before any work; raises a UserError if the data lack what the measure needs."""

    def __post_init__(self) -> None:
        assert not self.needs, "what is needed of patches is for a PatchKind"

    def views(self, count: int, octaves: int) -> int:
        """Views that ``count`` samples take of one model of S octaves."""
        return self.rendered(count, octaves)
