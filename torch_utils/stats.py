"""Means accumulated on the device: adding never waits for it, reading waits once."""

from __future__ import annotations

import math

import torch

from torch_utils.distributed import Process, average


class Means:
    """Running means of named quantities between two readings, over all processes.

    A quantity is one number, or one for each of several groups. All processes add the same names.
    """

    def __init__(self) -> None:
        # Sum of the values, of their squares, their number: [3], or [3, groups].
        self._moments: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add the elements of ``value`` (any shape) to the mean of ``name``."""
        value = value.detach().float().flatten()
        self._add(name, torch.stack([value.sum(), value.square().sum(), torch.full_like(value[0], len(value))]))

    def add_grouped(self, name: str, values: torch.Tensor, members: torch.Tensor) -> None:
        """Add values [B] to the means of their groups; members float [B, groups] is one-hot."""
        values = values.detach().float()
        self._add(name, torch.stack([values, values.square(), torch.ones_like(values)]) @ members)

    def _add(self, name: str, moments: torch.Tensor) -> None:
        held = self._moments.get(name)
        self._moments[name] = moments if held is None else held + moments

    def read(self, process: Process) -> dict[str, float | list[float | None]]:
        """Means since the last reading; called by all processes, it waits for them and for the device.

        A grouped name gives a list, None where nothing was counted, and another of standard deviations as ``NAME std``.
        """
        self.pool(process)
        result: dict[str, float | list[float | None]] = {}
        for name, moments in self.state_dict().items():
            total, squares, count = moments.double()
            mean = total / count
            if moments.ndim == 1:
                result[name] = float(mean)
            else:
                result[name] = _listed(mean)
                result[f"{name} std"] = _listed((squares / count - mean.square()).clamp(min=0).sqrt())
        self._moments.clear()
        return result

    def pool(self, process: Process) -> None:
        """Replace each process's sums by their mean over all processes, so that the state of one serves all."""
        average(self._moments.values(), process)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has been counted since the last reading, by name."""
        sizes = [m.numel() for m in self._moments.values()]
        flat = torch.cat([m.flatten() for m in self._moments.values()]).cpu() if sizes else torch.empty(0)  # waits once
        parts = zip(self._moments.items(), flat.split(sizes), strict=True)
        return {name: part.view_as(moments).clone() for (name, moments), part in parts}

    def load_state_dict(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        """Continue counting from there."""
        self._moments = {name: moments.to(device) for name, moments in state.items()}


def _listed(values: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(v) else v for v in values.tolist()]
