"""Walks from world to world: a smooth curve through their styles, on which each point is a world that can be rendered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from multiscale.networks.generator import Generator
from multiscale.rendering.worlds import World

MAX_WORLDS = 256
"""Of a walk: the curve is kept in memory."""


@dataclass(frozen=True, eq=False)
class Between(World):
    """A point of a walk, which no seed has.

    Args:
        name: What tells it from any other world.
        point: Its styles at one truncation, [1, num_ws, w_dim].
    """

    name: str = ""
    point: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def ws(self, generator: Generator, truncation_psi: float = 1.0) -> torch.Tensor:
        """The point; both arguments are those that the walk was made with."""
        return self.point.to(generator.mapping.w_avg.device)

    def __str__(self) -> str:
        return self.name


def walk(
    worlds: Sequence[World], generator: Generator, frames: int, truncation_psi: float = 1.0, *, loop: bool = False
) -> Iterator[World]:
    """The world of each frame of a walk through worlds, which are evenly spread over its time.

    In the space of styles w, where the way between two worlds shows worlds as well (Karras et al. 2019, section 4.1), it is the
    cubic spline through them: with continuous speed, and exactly each world at its time.

    Args:
        worlds: One (which stays) or more, at most ``MAX_WORLDS``.
        generator: Of the styles.
        frames: One or more.
        truncation_psi: Truncation of the latents; 1 for none.
        loop: Go on from the last world to the first: the periodic spline, and after the last frame comes the first.
            Else the film begins and ends at the first and last world.

    Raises:
        UserError: a world names layers that the network does not have.
    """
    if len(worlds) == 1:
        yield from [worlds[0]] * frames
        return
    stops = torch.cat([world.ws(generator, truncation_psi) for world in worlds]).double().cpu().numpy()
    if loop:
        stops = np.concatenate([stops, stops[:1]])
    curve = CubicSpline(np.arange(len(stops)), stops, bc_type="periodic" if loop else "natural")
    times = np.linspace(0, len(stops) - 1, frames, endpoint=not loop)
    way = f"{'loop' if loop else 'walk'} {','.join(map(str, worlds))}"
    for time in times:
        if time == int(time):
            yield worlds[int(time) % len(worlds)]
        else:
            point = torch.from_numpy(curve(time)[None]).float()
            yield Between(worlds[0].latent, name=f"{way} {float(time)!r}", point=point)
