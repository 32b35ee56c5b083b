"""Transfer learning: a run that begins with the networks of another, for other data or other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiscale.config import RunConfig, to_dict
from multiscale.runs.headers import is_published
from multiscale.runs.snapshots import load_snapshot
from multiscale.runs.states import NETWORKS, load_state
from multiscale.training.resume import check_changes

WITHOUT_WEIGHTS = ("feature_bandwidth", "even_features", "mixing_init")
"""Settings of the generator that change none of its weights' shapes: they may come or go."""
WITH_WEIGHTS = ("feature_gates", "feature_envelope")
"""Settings with weights that may come, and begin as in a network that is new."""


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
