"""Views of the world: the only code that knows coordinates.

World: the whole scene at zoom 1 is the unit square [-1/2, 1/2]^2, x to the right, y down. A view at zoom factor Z = 2^s
and centre c shows the square of side 1/Z about c; its image is [-1/2, 1/2]^2 again, and pixel i of N sits at
(i + 1/2)/N - 1/2. A transform is the 3x3 matrix T = [[1/Z, 0, cx], [0, 1/Z, cy], [0, 0, 1]]: world = T view.

Shapes: B views in a batch. Transforms are float64, because a 256x view needs its centre to more digits than float32 has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils.random import BatchRows

_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Region:
    """An axis-parallel grid of square pixels in the world: what an image of any size and aspect shows.

    Pixel (i, j), column and row, has its centre at (left + (i + 1/2) pitch, top + (j + 1/2) pitch).
    """

    left: float
    """World x of the left edge."""
    top: float
    """World y of the upper edge."""
    pitch: float
    """World units a pixel."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    @classmethod
    def of_view(cls, zoom: float, centre: tuple[float, float], width: int, height: int) -> Region:
        """The image whose longer side spans 1/zoom of the world about ``centre``."""
        pitch = 1 / (zoom * max(width, height))
        left, top = (c - pitch * side / 2 for c, side in zip(centre, (width, height), strict=True))
        return cls(left=left, top=top, pitch=pitch, width=width, height=height)

    @classmethod
    def of_world(cls, side: int) -> Region:
        """The whole world on ``side`` pixels a side."""
        return cls(left=-0.5, top=-0.5, pitch=1 / side, width=side, height=side)

    @property
    def centre(self) -> tuple[float, float]:
        """World coordinates (x, y) of the middle."""
        return self.left + self.pitch * self.width / 2, self.top + self.pitch * self.height / 2

    @property
    def zoom(self) -> float:
        """Zoom factor: the longer side spans 1/zoom of the world."""
        return 1 / (self.pitch * max(self.width, self.height))

    @property
    def inside(self) -> bool:
        """Whether no edge leaves the world."""
        right, bottom = self.left + self.pitch * self.width, self.top + self.pitch * self.height
        return min(self.left, self.top) >= -0.5 - _TOLERANCE and max(right, bottom) <= 0.5 + _TOLERANCE

    def depth(self, resolution: int) -> float:
        """Zoom s in octaves that a view of ``resolution`` pixels with this pitch has; below 0: more than the world."""
        return -math.log2(self.pitch * resolution)

    def part(self, x: int, y: int, width: int, height: int) -> Region:
        """The pixels from column x and row y on, in the same grid; it may reach over the edges."""
        return Region(
            left=self.left + x * self.pitch, top=self.top + y * self.pitch, pitch=self.pitch, width=width, height=height
        )

    def finer(self, factor: int) -> Region:
        """The same rectangle with each pixel split into factor x factor."""
        return Region(
            left=self.left,
            top=self.top,
            pitch=self.pitch / factor,
            width=self.width * factor,
            height=self.height * factor,
        )

    def transform(self, resolution: int) -> torch.Tensor:
        """World-from-view transform, float64 [1, 3, 3], of the ``resolution`` x ``resolution`` pixels about the middle."""
        zoom = torch.tensor([1 / (self.pitch * resolution)], dtype=torch.float64)
        return unchecked_transform(zoom, torch.tensor([self.centre], dtype=torch.float64))


def view_transform(
    zoom: torch.Tensor | Sequence[float] | float, centre: torch.Tensor | Sequence[Sequence[float]]
) -> torch.Tensor:
    """World-from-view transforms of square views inside the world.

    Args:
        zoom: Zoom factors Z >= 1 (not octaves), [B] or a number for a batch of one.
        centre: World coordinates (x, y) of the views' centres, [B, 2] (or [2] for one).

    Returns:
        Float64 [B, 3, 3] on the device of ``zoom``.

    Raises:
        UserError: a zoom below 1 or not finite, or a centre whose view leaves the world; the message has the legal range.
    """
    device = zoom.device if isinstance(zoom, torch.Tensor) and zoom.device.type != "mps" else None
    z = torch.as_tensor(zoom, dtype=torch.float64, device=device)
    c = torch.as_tensor(centre, dtype=torch.float64, device=device)
    z = z[None] if z.ndim == 0 else z
    c = c.reshape(-1, 2) if c.shape in ((0,), (2,)) else c
    if z.ndim != 1 or c.ndim != 2 or c.shape[1] != 2:
        raise UserError(
            f"Zoom factors have the shape {list(z.shape)} and centres {list(c.shape)}; "
            "give [B] and [B, 2]: (x, y) for each zoom."
        )
    if len(c) != len(z):
        raise UserError(f"{len(z)} zoom factors but {len(c)} centres were given; give one centre (x, y) for each zoom.")
    bad = ~(torch.isfinite(z) & (z >= 1))
    if bad.any():
        raise UserError(
            f"Zoom factor {z[bad][0].item():g} is not allowed; give a finite factor of 1 (whole scene) or more."
        )
    limit = centre_limit(z)
    outside = ~(c.abs() <= limit[:, None] + _TOLERANCE).all(dim=1)
    if outside.any():
        x, y = c[outside][0].tolist()
        factor, reach = z[outside][0].item(), limit[outside][0].item()
        raise UserError(
            f"Centre ({x:g}, {y:g}) puts a {factor:g}x view outside the world; "
            f"at {factor:g}x {legal_range('both coordinates', reach)}."
        )
    return unchecked_transform(z, c)


def unchecked_transform(zoom: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """As :func:`view_transform` but without the check of ranges: zoom [B] and centre [B, 2] -> float64 [B, 3, 3]."""
    transform = torch.eye(3, dtype=torch.float64, device=zoom.device).repeat(len(zoom), 1, 1)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 / zoom.to(torch.float64)
    transform[:, :2, 2] = centre.to(torch.float64)
    return transform


def centre_limit(zoom: torch.Tensor) -> torch.Tensor:
    """Largest |x| and |y| of the centre of a view inside the world: (1 - 1/Z)/2."""
    return (1 - 1 / zoom) / 2


def legal_range(name: str, limit: float) -> str:
    """What a coordinate, or both, may be, for messages: ``"x must lie in [-0.25, 0.25]"``, ``"y must be 0"``."""
    return f"{name} must lie in [{-limit:g}, {limit:g}]" if limit > _TOLERANCE else f"{name} must be 0"


def uniform_centres(zoom: torch.Tensor, rng: np.random.Generator | BatchRows) -> torch.Tensor:
    """Centres drawn uniformly over the legal range of each zoom factor: zoom [B] -> float64 [B, 2] on the CPU."""
    unit = torch.from_numpy(rng.uniform(-1.0, 1.0, size=(2, len(zoom))).T)
    return unit * centre_limit(zoom.double().cpu())[:, None]


def zoom_out(transform: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The views [B, 3, 3] enlarged by ``factor`` [B] about their own centres (they may reach beyond the world)."""
    wider = transform.clone()
    wider[:, :2, :2] *= factor.to(wider)[:, None, None]
    return wider


def zoom_log2(transform: torch.Tensor) -> torch.Tensor:
    """Zoom s in octaves of each transform [B, 3, 3] -> [B]: s = -log2 sqrt |det|, so it also holds for rotated views."""
    linear = transform[:, :2, :2]
    determinant = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
    return -0.5 * determinant.abs().log2()


def turned(transform: torch.Tensor) -> bool:
    """Whether sides of any of the views [B, 3, 3] are at an angle to the world's (waits for the GPU if they are there)."""
    return bool((transform[:, 0, 1].abs() + transform[:, 1, 0].abs()).any())


@dataclass(frozen=True)
class AffineViews:
    """What a network asks of a batch of views, computed once for all of its layers; float64."""

    linear: torch.Tensor
    """World from view without the shift, [B, 2, 2]: 1/Z times a rotation."""
    centre: torch.Tensor
    """World coordinates c of the views' centres, [B, 2]."""
    zoom_log2: torch.Tensor
    """Zoom s in octaves, [B]."""
    turned: bool = False
    """Whether sides of a view may be at an angle to the world's."""

    @classmethod
    def of(cls, transform: torch.Tensor, *, turned: bool = False) -> AffineViews:
        """Of world-from-view transforms float64 [B, 3, 3]."""
        return cls(transform[:, :2, :2], transform[:, :2, 2], zoom_log2(transform), turned)

    def split(self, count: int) -> list[AffineViews]:
        """Up to ``count`` views at a time."""
        parts = (part.split(count) for part in (self.linear, self.centre, self.zoom_log2))
        return [AffineViews(*tensors, self.turned) for tensors in zip(*parts, strict=True)]  # type: ignore[call-arg]


def sample_positions(size: int, rate: float, device: torch.device | None = None) -> torch.Tensor:
    """View coordinates of a layer's samples along one axis: v_j = (j - (size - 1)/2)/rate, float64 [size]."""
    return (torch.arange(size, dtype=torch.float64, device=device) - (size - 1) / 2) / rate
