"""Transfer learning: a run that begins with the networks of another, for other data or other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from multiscale.config import RunConfig, to_dict
from multiscale.runs.headers import is_published
from multiscale.runs.snapshots import load_snapshot
from multiscale.runs.states import NETWORKS, load_state
from multiscale.training.resume import check_changes

WITHOUT_WEIGHTS = ("feature_bandwidth", "even_features", "envelope_octaves", "mixing_init", "critical_filter_size")
"""Settings of the generator that change none of its weights' shapes: they may come or go."""
WITH_WEIGHTS = {"feature_gates": "synthesis.gates.*", "feature_envelope": "synthesis.injections.*.envelope"}
"""Settings with weights (patterns of their names) that may come or change, and then begin as in a network that is new."""


def with_new(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that were learned, and those of ``own`` that may come."""
    new = {key: value for key, value in own.items() if any(fnmatch(key, each) for each in WITH_WEIGHTS.values())}
    return {**new, **weights}


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Networks of another run."""

    path: Path
    config: Mapping[str, Any]
    """Their sections of its configuration: ``generator``, and ``discriminator`` if there is one."""
    weights: Mapping[str, Any]
    """State dicts by name: ``G``, ``G_ema`` and, from a training state, ``D``."""

    def check(self, config: RunConfig) -> None:
        """Raise a :class:`UserError` unless the run's networks are of the same shape."""
        mine = {section: values for section, values in to_dict(config).items() if section in self.config}
        generator, theirs = mine["generator"], self.config["generator"]
        free = [*WITHOUT_WEIGHTS, *(name for name in WITH_WEIGHTS if generator[name] or not theirs[name])]
        mine["generator"] = generator | {name: theirs[name] for name in free}
        check_changes(self.config, mine, f"The run of {self.path}", "leave out what follows from its networks")

    def weights_for(self, config: RunConfig) -> dict[str, dict[str, torch.Tensor]]:
        """``weights`` but for those of settings that have another value here, which begin anew."""
        mine, theirs = to_dict(config)["generator"], self.config["generator"]
        changed = [pattern for name, pattern in WITH_WEIGHTS.items() if mine[name] != theirs[name]]
        return {
            network: {key: value for key, value in tensors.items() if not any(fnmatch(key, each) for each in changed)}
            for network, tensors in self.weights.items()
        }

    def __str__(self) -> str:
        return f"Beginning with the {'networks' if 'D' in self.weights else 'generator'} of {self.path}."


def load_learned(path: Path) -> Learned:
    """Networks of a training state (``state-*.pt``), or the generator alone of a snapshot or of a published pickle.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    if path.suffix == ".safetensors" or is_published(path):
        generator = load_snapshot(path).generator
        weights = generator.state_dict()
        return Learned(
            path=path, config={"generator": to_dict(generator.config)}, weights={"G": weights, "G_ema": weights}
        )
    state = load_state(path, needed=NETWORKS)
    settings = to_dict(state["config"])
    config = {section: settings[section] for section in ("generator", "discriminator")}
    return Learned(path=path, config=config, weights={name: state[name] for name in NETWORKS})
