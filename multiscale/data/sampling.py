"""Progressive scale sampling: which octave, then which patch, on one schedule for the whole run (Wolski et al. 2024, 4.3).

Every rank draws the same global batches and takes its own share of each, so the mixture advances once for all ranks and
all loader workers, and no patch is drawn twice before its octave is used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.config import ScheduleConfig
from torch_utils.random import stream


def octave_probabilities(
    images_seen: float, *, octaves: int, warmup_kimg: float, skew_kimg: float, boost_first: float, boost_last: float
) -> np.ndarray:
    """Probability of each octave after ``images_seen`` images t of the whole run.

    Before the warm-up W: p_j ~ 2^linspace(m, 1, n)_j with m = a boost_first + (1 - a), a = (W - t)/W. After it:
    p_j ~ linspace(1, m, n)_j with m = a boost_last + (1 - a), a = (t - W)/(M - W), held at a = 1 from M on.

    Args:
        images_seen: t, in images.
        octaves: n.
        warmup_kimg: W, in thousands of images; 0: no warm-up.
        skew_kimg: M >= W, in thousands of images.
        boost_first: Preference for coarse octaves at the start.
        boost_last: Preference for fine octaves at the end.

    Returns:
        Float64 [octaves] that sums to 1, coarse to fine.
    """
    warmup, skew = warmup_kimg * 1000, skew_kimg * 1000
    if images_seen < warmup:
        a = (warmup - images_seen) / warmup
        weights = 2 ** np.linspace(a * boost_first + (1 - a), 1, octaves)
    else:
        a = min((images_seen - warmup) / (skew - warmup), 1.0) if skew > warmup else 1.0
        weights = np.linspace(1, a * boost_last + (1 - a), octaves)
    return weights / weights.sum()


def patches_by_octave(patch_octaves: np.ndarray, octaves: int) -> list[np.ndarray]:
    """Indices of the patches of each octave.

    Raises:
        UserError: an octave has none.
    """
    members = [np.flatnonzero(patch_octaves == j) for j in range(octaves)]
    empty = [j for j, found in enumerate(members) if not len(found)]
    if empty:
        raise UserError(
            f"The data have no patch in octave {', '.join(map(str, empty))} of {octaves}; every octave from 0 up needs "
            "patches: make the data set again so that each is covered."
        )
    return members


@dataclass(frozen=True)
class SamplerState:
    """Where the schedule stands: steps drawn, and patches drawn of each octave."""

    step: int
    drawn: tuple[int, ...]


class ScaleSampler(torch.utils.data.Sampler[list[int]]):
    """Endless batches of patch indices for a DataLoader's ``batch_sampler``; it runs in the main process.

    Args:
        patch_octaves: Octave of every patch, integers [M].
        octaves: Number of octaves n.
        batch: Global batch, in images.
        schedule: The progressive schedule.
        seed: Seed of the run.
        rank: This process; it gets images ``rank, rank + world_size, ...`` of each global batch.
        world_size: Number of processes; divides ``batch``.

    Raises:
        UserError: an octave has no patch.
    """

    def __init__(
        self,
        patch_octaves: np.ndarray,
        *,
        octaves: int,
        batch: int,
        schedule: ScheduleConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch % world_size == 0
        self.members = patches_by_octave(patch_octaves, octaves)
        self.octaves, self.batch, self.schedule, self.seed = octaves, batch, schedule, seed
        self.rank, self.world_size = rank, world_size
        self.go_on_from(SamplerState(0, (0,) * octaves))
        self._shuffles: dict[int, tuple[int, np.ndarray]] = {}

    def __iter__(self) -> Iterator[list[int]]:
        state = self.start
        while True:
            indices, state = self.global_batch(state)
            yield indices[self.rank :: self.world_size].tolist()

    def go_on_from(self, state: SamplerState) -> None:
        """Begin the next iteration at ``state``."""
        self.start = self._counted = state

    def state_after(self, steps: int) -> SamplerState:
        """The state once ``steps`` batches of the run have been used, however far a loader has read ahead."""
        assert steps >= self._counted.step
        drawn = np.array(self._counted.drawn, dtype=np.int64)
        for step in range(self._counted.step, steps):
            drawn += np.bincount(self.draw_octaves(step), minlength=self.octaves)
        self._counted = SamplerState(steps, tuple(int(n) for n in drawn))
        return self._counted

    def global_batch(self, state: SamplerState) -> tuple[np.ndarray, SamplerState]:
        """Patch indices [batch] of the step at ``state``, and the state behind it."""
        octaves = self.draw_octaves(state.step)
        drawn = list(state.drawn)
        indices = np.empty(self.batch, dtype=np.int64)
        for i, octave in enumerate(octaves):
            indices[i] = self._patch(octave, drawn[octave])
            drawn[octave] += 1
        return indices, SamplerState(state.step + 1, tuple(drawn))

    def draw_octaves(self, step: int) -> np.ndarray:
        """The octave of each image of a step, [batch]."""
        probabilities = self.probabilities(step * self.batch)
        return stream(self.seed, "octaves", step).choice(self.octaves, size=self.batch, p=probabilities)

    def probabilities(self, images_seen: float) -> np.ndarray:
        """Probability of each octave, [octaves]."""
        return octave_probabilities(
            images_seen,
            octaves=self.octaves,
            warmup_kimg=self.schedule.warmup_kimg,
            skew_kimg=self.schedule.skew_kimg,
            boost_first=self.schedule.boost_first,
            boost_last=self.schedule.boost_last,
        )

    def _patch(self, octave: int, nth: int) -> int:
        """The ``nth`` patch drawn of an octave: each time the octave is used up, it is shuffled anew."""
        members = self.members[octave]
        turn, place = divmod(nth, len(members))
        if self._shuffles.get(octave, (-1,))[0] != turn:
            self._shuffles[octave] = (turn, stream(self.seed, "shuffle", octave, turn).permutation(members))
        return int(self._shuffles[octave][1][place])
