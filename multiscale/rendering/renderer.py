"""Rendering a snapshot: any world, any legal view, any size and aspect; one class under every command.

An image of any size is a grid of tiles. A tile is a view of the generator on exactly its part of the world, somewhat
wider than it (``halo``), so that what lies beyond its border has no effect; all tiles of an image share one grid of samples
in every layer. The image is therefore seamless by construction: nothing is blended.

Shapes: M images, C channels, N side of the generator's own image, W and H width and height in pixels.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.networks.generator import Generator
from multiscale.rendering.cuda_graphs import Replay
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import Snapshot
from multiscale.view import Region, centre_limit, legal_range, view_transform
from torch_utils.devices import float32_products

RENDER_BATCH = 16
REACH = 8
"""Samples of the input's grid beyond a view's border whose absence is seen inside it (100 dB); margins provide some."""
TILE_BYTES = {"cpu": 3 << 28, "cuda": 4 << 30}
"""Feature maps that a batch of tiles may take, roughly."""
TILE_PX = {"cpu": 512, "cuda": 2048}
"""Largest side of a tile."""
STYLES_KEPT = 64
MAX_EXTRAPOLATION = 1024
EXTRAPOLATE = "or allow extrapolation (--extrapolate; in Python extrapolate=True)"
_TOLERANCE = 1e-6  # octaves


class Cancelled(Exception):
    """A render was given up because its caller said so."""


@dataclass(frozen=True)
class Tile:
    """A part of an image: its place in pixels, and its pixels."""

    x: int
    y: int
    pixels: torch.Tensor
    """Float32 [C, height, width] on the renderer's device, nominally in [-1, 1]."""


class Renderer:
    """Images of one generator.

    Args:
        generator: The network; it is used where it is.
        device: Where to render; the generator is moved there.
        reach: Samples of the input's grid that are computed beyond each border. With fewer, the outermost pixels of a
            tile depend on the tile: in the outermost pixels 66 dB of a network before training, 38 dB of the bundled
            one, and 0.8 of the time, for none beyond the network's own margin.
        replay: Record what a GPU is told to do for a shape of image and have it replayed (CUDA graphs): for many
            images of few shapes. Other devices have nothing to replay.
    """

    def __init__(self, generator: Generator, device: torch.device, *, reach: int = REACH, replay: bool = False) -> None:
        self.generator = generator.to(device)
        self.device = device
        config, step = generator.config, generator.plan.step
        self.halo = max(reach - config.margin, 0) * step
        """Pixels by which a tile is rendered wider on each side."""
        self._replay = Replay(generator.synthesis) if replay and device.type == "cuda" else None
        self._styles: OrderedDict[tuple[str, float], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.on_tile: Callable[[int], object] | None = None
        """Told, as each tile of an image of any size is done, how many the image has; for bars of progress."""

    @property
    def max_zoom(self) -> float:
        """Largest zoom factor of the model, 2^S."""
        return 2.0**self.generator.config.octaves

    @property
    def resolution(self) -> int:
        """N, the side of the patches that the generator was trained on."""
        return self.generator.config.img_resolution

    @property
    def world_px(self) -> int:
        """Side in pixels of the whole world at the model's finest zoom, N 2^S."""
        return int(self.resolution * self.max_zoom)

    @property
    def largest_tile_px(self) -> int:
        """Largest side of what is evaluated at once, its halo included."""
        return TILE_PX[self._kind]

    @property
    def _kind(self) -> str:
        return self.device.type if self.device.type in TILE_BYTES else "cuda"

    @torch.no_grad()
    def render(
        self,
        worlds: Sequence[World | int],
        zooms: Sequence[float],
        centres: Sequence[tuple[float, float]],
        truncation_psi: float = 1.0,
    ) -> np.ndarray:
        """Images of N x N pixels, one for each world, zoom and centre (three sequences of one length M).

        They are those of :meth:`image`, several at a time.

        Args:
            worlds: Worlds or seeds.
            zooms: Zoom factors, from 1 to ``max_zoom``.
            centres: World coordinates (x, y) of the views' centres.
            truncation_psi: Truncation of the latents; 1 for none.

        Returns:
            uint8 [M, N, N, C].

        Raises:
            UserError: a zoom beyond the model's range or a view that leaves the world.
        """
        self._check_own_views(zooms, centres)
        size = (self.resolution, self.resolution)
        places = [(Region.of_view(zoom, centre, *size), 0, 0) for zoom, centre in zip(zooms, centres, strict=True)]
        images = []
        for i in range(0, len(worlds), RENDER_BATCH):
            ws = torch.cat([self.styles(world, truncation_psi) for world in worlds[i : i + RENDER_BATCH]])
            images.append(to_uint8(self._evaluate(ws, places[i : i + RENDER_BATCH], size)))
        return np.concatenate(images)

    def view(
        self,
        world: World | int,
        zoom: float,
        centre: tuple[float, float],
        size: tuple[int, int] | None = None,
        truncation_psi: float = 1.0,
        *,
        bits: int = 8,
        extrapolate: bool = False,
    ) -> np.ndarray:
        """One picture: [H, W, C] of ``bits`` 8 (uint8) or 16 (uint16).

        ``size``: width and height in pixels, the longer side spans 1/zoom; None: N x N.

        Raises:
            UserError: as :meth:`render` and :meth:`image`.
        """
        self.check_view(zoom, centre, size, extrapolate=extrapolate)
        if size is None and not extrapolate and bits == 8:
            return self.render([world], [zoom], [centre], truncation_psi)[0]
        region = Region.of_view(zoom, centre, *(size or (self.resolution,) * 2))
        return self.pixels(world, region, truncation_psi, bits=bits, extrapolate=extrapolate)

    def image(
        self,
        world: World | int,
        region: Region,
        truncation_psi: float = 1.0,
        *,
        extrapolate: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> torch.Tensor:
        """Render one image of any size.

        Args:
            world: A world or a seed.
            region: The pixels, inside the world.
            truncation_psi: Truncation of the latents; 1 for none.
            extrapolate: Allow pixels finer than those of the model's largest zoom, which it has never seen.
            cancelled: Asked before each layer; True gives up.

        Returns:
            Float32 [C, H, W] on the CPU, nominally in [-1, 1].

        Raises:
            UserError: a region that is empty, leaves the world, or is finer than the model.
            Cancelled: ``cancelled`` said so.
        """
        image = torch.empty(self.generator.config.img_channels, region.height, region.width)
        tiles = self.tiles(world, region, truncation_psi, extrapolate=extrapolate, cancelled=cancelled)
        for _ in placed(tiles, image.movedim(0, -1), lambda pixels: pixels.movedim(0, -1).cpu()):
            pass
        return image

    def pixels(
        self,
        world: World | int,
        region: Region,
        truncation_psi: float = 1.0,
        *,
        bits: int = 8,
        extrapolate: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> np.ndarray:
        """As :meth:`image`, but as files have it: [H, W, C] of ``bits`` 8 (uint8) or 16 (uint16)."""
        self.check(region, extrapolate=extrapolate)
        convert = to_uint16 if bits == 16 else to_uint8
        shape = (region.height, region.width, self.generator.config.img_channels)
        pixels = np.empty(shape, np.uint16 if bits == 16 else np.uint8)
        tiles = self.tiles(world, region, truncation_psi, extrapolate=extrapolate, cancelled=cancelled)
        for _ in placed(tiles, pixels, convert):
            pass
        return pixels

    @torch.no_grad()
    def tiles(
        self,
        world: World | int,
        region: Region,
        truncation_psi: float = 1.0,
        *,
        extrapolate: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Tile]:
        """As :meth:`image`, tile by tile from the top left, row by row: for images that memory does not hold at once."""
        self.check(region, extrapolate=extrapolate)
        ws = self.styles(world, truncation_psi)
        give_up = None if cancelled is None else _raising(cancelled)
        factor = self._oversampling(region)
        if factor > 1:  # coarser than the model's coarsest view: render that and average; the result is small
            fine = region.finer(factor)
            pixels = self._evaluate(ws, [(fine, 0, 0)], (fine.width, fine.height), give_up)
            self._tell(1)
            yield Tile(0, 0, torch.nn.functional.avg_pool2d(pixels, factor)[0])
            return
        width, height, together = self._tile_size(region)
        places = [(region, x, y) for y in range(0, region.height, height) for x in range(0, region.width, width)]
        for i in range(0, len(places), together):
            batch = places[i : i + together]
            images = self._evaluate(ws.expand(len(batch), -1, -1), batch, (width, height), give_up)
            for (_, x, y), pixels in zip(batch, images, strict=True):
                self._tell(len(places))
                yield Tile(x, y, pixels[:, : region.height - y, : region.width - x])

    def _tell(self, tiles: int) -> None:
        if self.on_tile is not None:
            self.on_tile(tiles)

    def check_worlds(self, worlds: Sequence[World]) -> None:
        """UserError if a world names layers that the network does not have."""
        for world in worlds:
            if world.styles:
                self.styles(world)

    def check_view(
        self,
        zoom: float,
        centre: tuple[float, float],
        size: tuple[int, int] | None = None,
        *,
        extrapolate: bool = False,
        otherwise: str = EXTRAPOLATE,
    ) -> None:
        """Raise a :class:`UserError` unless :meth:`view` renders this; ``otherwise`` as for :meth:`check`."""
        if not 1 <= zoom < float("inf"):
            raise UserError(f"Scale {zoom:g} is out of range: this model zooms from 1 to {self.max_zoom:g}.")
        if size is None and not extrapolate:
            self._check_own_views([zoom], [centre])
        else:
            region = Region.of_view(zoom, centre, *(size or (self.resolution,) * 2))
            self.check(region, extrapolate=extrapolate, otherwise=otherwise)

    def _check_own_views(self, zooms: Sequence[float], centres: Sequence[tuple[float, float]]) -> None:
        for zoom in zooms:
            if not 1 <= zoom <= self.max_zoom:
                raise UserError(
                    f"Scale {zoom:g} is out of range: this model zooms from 1 to {self.max_zoom:g} "
                    f"({self.generator.config.octaves} octaves)."
                )
        view_transform(torch.tensor(zooms, dtype=torch.float64), torch.tensor(centres, dtype=torch.float64))

    def check(self, region: Region, *, extrapolate: bool = False, otherwise: str = EXTRAPOLATE) -> None:
        """Raise a :class:`UserError` unless ``region`` can be rendered; ``otherwise``: what else the message advises."""
        if region.width < 1 or region.height < 1:
            raise UserError(
                f"An image of {region.width} x {region.height} pixels has none; both sides must be at least 1."
            )
        if not region.inside:
            x, y = region.centre
            reach = [max(0.5 - region.pitch * side / 2, 0.0) for side in (region.width, region.height)]
            raise UserError(
                f"Centre ({x:g}, {y:g}) puts this {region.zoom:g}x view outside the world; "
                f"{legal_range('x', reach[0])} and {legal_range('y', reach[1])}."
            )
        beyond = self.extrapolation(region)
        if beyond > MAX_EXTRAPOLATION:
            raise UserError(
                f"This view is {beyond:g} times finer than the model; at most {MAX_EXTRAPOLATION:,} are allowed: "
                "give fewer pixels or a smaller scale."
            )
        if beyond > 1 and not extrapolate:
            side = max(region.width, region.height)
            pixels, scale = int(self.world_px / region.zoom), self.world_px / side
            ways = [f"at {region.zoom:g}x give at most {pixels} pixels"] if pixels else []
            if scale >= 1:
                scale = math.floor(scale * 1000) / 1000  # not rounded up: what is named must be allowed
                ways.append(f"for {side} pixels {'' if ways else 'give '}a scale of at most {scale:.10g}")
            raise UserError(
                f"{side} pixels at {region.zoom:g}x are {beyond:g} times finer than this model has learned "
                f"({self.resolution} pixels at {self.max_zoom:g}x): {', '.join([*ways, otherwise])}."
            )

    def extrapolation(self, region: Region) -> float:
        """How many times finer the pixels of ``region`` are than the finest that the model has learned; 1: not at all."""
        beyond = region.depth(self.resolution) - self.generator.config.octaves
        return 2.0**beyond if beyond > _TOLERANCE else 1.0

    @torch.no_grad()
    def styles(self, world: World | int, truncation_psi: float = 1.0) -> torch.Tensor:
        """The w of each layer for a world, [1, num_ws, w_dim]; the last few are kept."""
        world = world if isinstance(world, World) else World.parse(world)
        key = (str(world), truncation_psi)
        with self._lock:
            if key in self._styles:
                self._styles.move_to_end(key)
                return self._styles[key]
        ws = world.ws(self.generator, truncation_psi)
        with self._lock:
            self._styles[key] = ws
            while len(self._styles) > STYLES_KEPT:
                self._styles.popitem(last=False)
        return ws

    @float32_products()
    def _evaluate(
        self,
        ws: torch.Tensor,
        places: Sequence[tuple[Region, int, int]],
        size: tuple[int, int],
        before_layer: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Pixels from each place (a region, and x and y of a pixel in it) on: [len(places), C, height, width].

        Everything that is rendered comes from here. ``ws``: [len(places), num_ws, w_dim]; ``size`` (width, height) may be any.
        """
        step, halo = self.generator.plan.step, self.halo
        wide, high = (math.ceil(side / step) * step + 2 * halo for side in size)
        parts = [region.part(x - halo, y - halo, wide, high) for region, x, y in places]
        transform = torch.cat([part.transform(self.resolution) for part in parts])
        if self._replay is not None:
            images = self._replay(ws, transform, (wide, high))
        else:
            images = self.generator.synthesis(ws, transform, size=(wide, high), before_layer=before_layer)
        return images[..., halo : halo + size[1], halo : halo + size[0]]

    def _oversampling(self, region: Region) -> int:
        """Least power of two that brings the pixels of ``region`` to those of the 1x view or finer."""
        return 2 ** max(math.ceil(-region.depth(self.resolution) - _TOLERANCE), 0)

    def _tile_size(self, region: Region) -> tuple[int, int, int]:
        """Width and height of equal tiles (multiples of the grid's step) that cover ``region``, and how many at a time."""
        step = self.generator.plan.step
        bytes_a_pixel = max(
            2 * (layer.in_channels + 2 * layer.conv_channels) * (layer.temporary_rate / self.resolution) ** 2
            for layer in self.generator.plan.layers
        )
        kind = self._kind
        side = min(math.isqrt(int(TILE_BYTES[kind] / bytes_a_pixel)), self.largest_tile_px) - 2 * self.halo
        most = max(side, self.resolution)
        width, height = (
            math.ceil(pixels / math.ceil(pixels / most) / step) * step for pixels in (region.width, region.height)
        )
        pixels = (width + 2 * self.halo) * (height + 2 * self.halo)
        together = 1 if kind == "cpu" else max(int(TILE_BYTES[kind] / bytes_a_pixel / pixels), 1)
        return width, height, together


def placed(
    tiles: Iterable[Tile], pixels: torch.Tensor | np.ndarray, convert: Callable[[torch.Tensor], Any]
) -> Iterator[Tile]:
    """Write tiles into an image [H, W, C], each as ``convert`` ([C, h, w] -> [h, w, C]) gives it, and say which is done."""
    for tile in tiles:
        height, width = tile.pixels.shape[1:]
        pixels[tile.y : tile.y + height, tile.x : tile.x + width] = convert(tile.pixels)
        yield tile


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Images [..., C, H, W] in [-1, 1] -> uint8 [..., H, W, C] on the CPU; values beyond the range are clipped."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()


def to_uint16(images: torch.Tensor) -> np.ndarray:
    """Images [..., C, H, W] in [-1, 1] -> uint16 [..., H, W, C] on the CPU; values beyond the range are clipped."""
    values = (images.double() * 32767.5 + 32768).clamp(0, 65535).to(torch.int32)
    return values.movedim(-3, -1).cpu().numpy().astype(np.uint16)


def octave_zooms(octaves: int) -> list[float]:
    """Zoom factors 1, 2, 4, ... 2^octaves."""
    return [2.0**j for j in range(octaves + 1)]


def nearest_centre(centre: tuple[float, float], zoom: float) -> tuple[float, float]:
    """The legal centre of a view at ``zoom`` that is nearest to ``centre``."""
    limit = float(centre_limit(torch.tensor(zoom, dtype=torch.float64)))
    x, y = (min(max(value, -limit), limit) for value in centre)
    return x, y


def provenance(snapshot: Snapshot) -> dict[str, Any]:
    """What every image says about the network that made it."""
    facts = {"network": snapshot.path.name, "sha256": snapshot.digest, "kimg": snapshot.kimg}
    return facts | {key: snapshot.info[key] for key in ("licence", "credit") if key in snapshot.info}


def _raising(cancelled: Callable[[], bool]) -> Callable[[], None]:
    def check() -> None:
        if cancelled():
            raise Cancelled

    return check
