"""Learning and rendering one continuous scale space: views, patches, the generator, its training, rendering.

>>> world = multiscale.load().world(seed=3)
>>> world.view(scale=64, centre=(0.1, -0.2), size=(1024, 768)).save("view.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from multiscale.rendering.model import Model

__version__ = "0.1.0"


def load(network: str | Path | None = None, device: str | torch.device | None = None) -> Model:
    """Open a model. Nothing in its file is executed.

    Args:
        network: What ``--network`` takes: a snapshot, a run's folder (its newest), a folder of runs (the one written
            last), a ``.pkl`` of the published code, ``https://...``, ``hf://owner/repo``, or ``earth``, the bundled
            model. None: the snapshot written last below ``runs/``, else the bundled model.
        device: Where to render, such as ``"cpu"`` or ``"cuda:1"``; None: a GPU if there is one.

    Returns:
        The model; ``model.world(seed)`` is one of its worlds.

    Raises:
        UserError: (a ValueError) there is no such network, it cannot be read, or there is no such device.
    """
    from multiscale.rendering.model import load_model  # here: PyTorch takes seconds

    return load_model(network, device)
