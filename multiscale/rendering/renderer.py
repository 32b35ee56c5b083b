"""Rendering a snapshot: latents by seed, any legal view, images as the uint8 arrays that files hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dnnlib.errors import UserError
from dnnlib.files import atomic_write
from multiscale.networks.generator import Generator
from multiscale.training.checkpoint import Snapshot
from multiscale.view import centre_limit, view_transform
from torch_utils.random import latents

RENDER_BATCH = 16


class Renderer:
    """Views of one generator.

    Args:
        generator: The network; it is used where it is.
        device: Where to render; the generator is moved there.
    """

    def __init__(self, generator: Generator, device: torch.device) -> None:
        self.generator = generator.to(device)
        self.device = device

    @property
    def max_zoom(self) -> float:
        """Largest zoom factor of the model, 2^S."""
        return 2.0**self.generator.config.octaves

    @torch.no_grad()
    def render(
        self,
        seeds: Sequence[int],
        zooms: Sequence[float],
        centres: Sequence[tuple[float, float]],
        truncation_psi: float = 1.0,
    ) -> np.ndarray:
        """Render one image for each seed, zoom and centre (three sequences of one length M).

        Args:
            seeds: Seeds of the latents, >= 0.
            zooms: Zoom factors, from 1 to ``max_zoom``.
            centres: World coordinates (x, y) of the views' centres.
            truncation_psi: Truncation of the latents; 1 for none.

        Returns:
            uint8 [M, N, N, C].

        Raises:
            UserError: a zoom beyond the model's range or a view that leaves the world.
        """
        for zoom in zooms:
            if not 1 <= zoom <= self.max_zoom:
                raise UserError(
                    f"Scale {zoom:g} is out of range: this model zooms from 1 to {self.max_zoom:g} "
                    f"({self.generator.config.octaves} octaves)."
                )
        transforms = view_transform(
            torch.tensor(zooms, dtype=torch.float64), torch.tensor(centres, dtype=torch.float64)
        )
        images = []
        for i in range(0, len(seeds), RENDER_BATCH):
            z = torch.cat([latents(seed, self.generator.config.z_dim) for seed in seeds[i : i + RENDER_BATCH]])
            images.append(self.generator(z.to(self.device), transforms[i : i + RENDER_BATCH], truncation_psi))
        return to_uint8(torch.cat(images))


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Images [M, C, N, N] in [-1, 1] -> uint8 [M, N, N, C] on the CPU; values beyond the range are clipped."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def octave_zooms(octaves: int) -> list[float]:
    """Zoom factors 1, 2, 4, ... 2^octaves."""
    return [2.0**j for j in range(octaves + 1)]


def nearest_centre(centre: tuple[float, float], zoom: float) -> tuple[float, float]:
    """The legal centre of a view at ``zoom`` that is nearest to ``centre``."""
    limit = float(centre_limit(torch.tensor(zoom, dtype=torch.float64)))
    x, y = (min(max(value, -limit), limit) for value in centre)
    return x, y


def save_png(path: str | Path, pixels: np.ndarray, metadata: dict[str, Any]) -> None:
    """Write uint8 [H, W, C] or [H, W] atomically, with ``metadata`` as JSON in the PNG's text chunk ``multiscale``."""
    info = PngInfo()
    info.add_itxt("multiscale", json.dumps(metadata))
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
    with atomic_write(path) as stream:
        image.save(stream, format="png", pnginfo=info)


def provenance(snapshot: Snapshot) -> dict[str, Any]:
    """What every image says about the network that made it."""
    return {"network": snapshot.path.name, "sha256": snapshot.digest, "kimg": snapshot.info.get("kimg")}
