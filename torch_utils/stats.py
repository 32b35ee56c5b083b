"""Means gathered on the device: adding never waits for it, reading does so once."""

from __future__ import annotations

import torch


class Means:
    """Running means of named quantities between two readings."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """Count the elements of ``value`` (any shape) into the mean of ``name``."""
        value = value.detach()
        moments = torch.stack([value.float().sum(), torch.tensor(float(value.numel()), device=value.device)])
        held = self._values.setdefault(name, [torch.zeros_like(moments)])
        held[0] += moments

    def read(self) -> dict[str, float]:
        """The means since the last reading (NaN never appears: a name is only there if something was counted)."""
        names = list(self._values)
        if not names:
            return {}
        table = torch.stack([self._values[name][0] for name in names]).cpu()
        self._values.clear()
        return {name: float(total / count) for name, (total, count) in zip(names, table, strict=True)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has been counted since the last reading: sum and number, [2], by name."""
        return {name: held[0].cpu() for name, held in self._values.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        """Go on counting from there."""
        self._values = {name: [moments.to(device)] for name, moments in state.items()}
