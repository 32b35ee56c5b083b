"""The face to Python: a model, its worlds, and pictures, films and pyramids of them, each in one line (docs/python.md)."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dnnlib.errors import UserError, shown
from dnnlib.reading import parsed
from multiscale.networks.generator import Generator
from multiscale.rendering.enlarging import enlarged_view
from multiscale.rendering.files import encode_png
from multiscale.rendering.film_files import kind_of_film
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.pyramid import Pyramid, write_deep_zoom
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.sheets import zoom_strip
from multiscale.rendering.video import FILM_PX, film_facts, write_film
from multiscale.rendering.worlds import World
from multiscale.runs.headers import choice, find_network, kimg_of
from multiscale.runs.snapshots import Snapshot, load_snapshot
from multiscale.view import Region
from torch_utils.devices import default_device


class Model:
    """A trained network, as :func:`multiscale.load` gives it.

    Args:
        snapshot: As read from disk.
        device: Where to render.
    """

    def __init__(self, snapshot: Snapshot, device: torch.device) -> None:
        self.path: Path = snapshot.path
        """The file that it was read from."""
        self.info: dict[str, Any] = snapshot.info
        """What was saved beside the weights, such as the images shown, or the licence."""
        self.renderer = Renderer(snapshot.generator, device)
        self.provenance = provenance(snapshot)
        """What files that are made with it say of it."""

    @property
    def generator(self) -> Generator:
        """The network itself, in evaluation mode: ``generator(z, transform, truncation_psi)``."""
        return self.renderer.generator

    @property
    def octaves(self) -> int:
        """Octaves S that it spans: it zooms up to 2^S."""
        return self.generator.config.octaves

    @property
    def resolution(self) -> int:
        """Side N in pixels of a view of its own size."""
        return self.generator.config.img_resolution

    def world(self, seed: int | str = 0, truncation_psi: float = 1.0) -> PlacedWorld:
        """One of its worlds.

        Args:
            seed: A seed from 0 to 2^32 - 1, or a world in writing, such as ``"3~7:0.25"`` (docs/exploring.md).
            truncation_psi: 1 as trained, 0 the mean world; from -2 to 2.

        Raises:
            UserError: it cannot be read, or the truncation is out of range.
        """
        world = World.parse(seed)
        if not -2 <= truncation_psi <= 2:
            raise UserError(
                f"Truncation {truncation_psi:g} is out of range; give -2 to 2: 1 as trained, 0 the mean world."
            )
        world.ws(self.generator)  # refuses layers that it does not have
        return PlacedWorld(self, world, float(truncation_psi))

    def __repr__(self) -> str:
        side = self.resolution
        return f"<model {self.path.name}: {side} x {side} pixels, {self.octaves} octaves, on {self.renderer.device}>"


@dataclass(frozen=True, repr=False)
class PlacedWorld:
    """A world of a model."""

    model: Model
    world: World
    truncation_psi: float = 1.0

    def view(
        self,
        scale: float = 1,
        centre: tuple[float, float] = (0, 0),
        size: tuple[int, int] | int | None = None,
        *,
        extrapolate: bool = False,
    ) -> Image.Image:
        """A picture, with the same pixels as ``generate.py``.

        Where they would be finer than any that the model has learned, the finest of these are enlarged (Lanczos), as the
        explorer and films do.

        Args:
            scale: Zoom factor Z, from 1 to 2^octaves: the longer side shows 1/Z of the world.
            centre: World coordinates (x, y), within [-1/2, 1/2], x to the right, y down.
            size: Width and height in pixels, or one side of a square; None: the network's own.
            extrapolate: Ask the model for finer pixels instead of enlarging.

        Returns:
            A PIL image of mode RGB, or L of a grey model; ``numpy.asarray`` makes it uint8 [H, W, 3] or [H, W].

        Raises:
            UserError: a view that leaves the world, or a scale beyond the model's.
        """
        renderer, sides, psi = self.model.renderer, None if size is None else _sides(size), self.truncation_psi
        if extrapolate:
            pixels = renderer.view(self.world, scale, centre, sides, psi, extrapolate=True)
        else:
            pixels = enlarged_view(renderer, self.world, scale, centre, sides, psi)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def array(
        self,
        scale: float = 1,
        centre: tuple[float, float] = (0, 0),
        size: tuple[int, int] | int | None = None,
        *,
        extrapolate: bool = False,
    ) -> np.ndarray:
        """As :meth:`view`, but as the network gives it: float32 [H, W, C], nominally in [-1, 1], neither rounded nor enlarged.

        Raises:
            UserError: a view that leaves the world, or is finer than the model.
        """
        width, height = _sides(size or self.model.resolution)
        region = Region.of_view(_positive(scale), centre, width, height)
        image = self.model.renderer.image(self.world, region, self.truncation_psi, extrapolate=extrapolate)
        return image.movedim(0, -1).numpy()

    def mixed(self, other: PlacedWorld | int, weight: float = 0.5) -> PlacedWorld:
        """The world that lies ``weight`` of the way from this one to another of the same model, in w.

        Args:
            other: A world of a seed, or a seed; not a mixture itself.
            weight: 0 is this world, 1 the other; from -100 to 100.

        Raises:
            UserError: ``other`` is a mixture or of another model.
        """
        world = self._other(other)
        if world.mixed or world.styles:
            raise UserError(
                f"World {world} is itself a mixture; mix the plain worlds of seeds into another one after the other."
            )
        mixture = dataclasses.replace(self.world, mixed=(*self.world.mixed, (world.latent, float(weight))))
        return dataclasses.replace(self, world=World.parse(str(mixture)))

    def strip(self, centre: tuple[float, float] = (0, 0)) -> Image.Image:
        """Views at 1x, 2x, ... to the model's zoom about one point, each outlined in the one before."""
        return Image.fromarray(zoom_strip(self.model.renderer, self.world, centre, self.truncation_psi))

    def pyramid(self, path: str | Path, advance: Callable[[int], object] = lambda tiles: None) -> Path:
        """Write the whole world at every zoom as Deep Zoom tiles; goes on with a half-made pyramid of the same world.

        Args:
            path: Of the description, ending in .dzi; the tiles go into a folder beside it.
            advance: Told how many more tiles are done.

        Returns:
            The path.

        Raises:
            UserError: it cannot be written, or its folder holds something else.
        """
        path = _ending(path, ".dzi")
        pyramid = Pyramid(self.model.renderer, self.world, self.truncation_psi)
        write_deep_zoom(path, pyramid, self._facts(), advance)
        return path

    def film(
        self,
        path: str | Path,
        to: Sequence[float] | Sequence[Sequence[float]] = (),
        *,
        start: Sequence[float] = (1, 0, 0),
        worlds: Sequence[PlacedWorld | int | str] = (),
        loop: bool = False,
        seconds: float = 20,
        fps: int = 30,
        size: tuple[int, int] | int | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Path:
        """Write a flight through the world, or a walk from it to other worlds, or both at once.

        Args:
            path: The file, ending in .mp4, .webm, .gif or .webp; without an ending: a folder of PNG frames.
            to: Where it goes: (zoom factor, x, y), or several of these, one after the other. May be left out with ``worlds``.
            start: Where it begins.
            worlds: Which worlds this one turns into, one after the other; at this world's truncation.
            loop: Go back to the beginning, so that after the last frame comes the first.
            seconds: Its length.
            fps: Frames a second, 1 to 240; in a GIF to 50.
            size: Width and height in pixels, even in an MP4, or one side; None: the network's own, at least 512.
            progress: Told the share that is done, from 0 to 1.

        Returns:
            The path.

        Raises:
            UserError: something out of range, or the file cannot be written.
        """
        path = Path(path)
        kind_of_film(path).check_place(path)
        several = list(to) if not len(to) or isinstance(to[0], Sequence) else [to]
        places = [_keyframe(place) for place in (start, *several)]
        passed = [self.world, *map(self._other, worlds)]
        width, height = _sides(size or max(self.model.resolution, FILM_PX))
        write_film(
            path,
            self.model.renderer,
            passed,
            self.truncation_psi,
            places,
            width=width,
            height=height,
            fps=fps,
            seconds=seconds,
            loop=loop,
            facts=film_facts(passed, self.truncation_psi, places, loop=loop) | self.model.provenance,
            progress=progress,
        )
        return path

    def _other(self, world: PlacedWorld | int | str) -> World:
        """Another world of the same model."""
        if isinstance(world, PlacedWorld) and world.model is not self.model:
            raise UserError("Worlds of two models cannot be mixed; give one of the same model.")
        return world.world if isinstance(world, PlacedWorld) else World.parse(world)

    def _facts(self) -> dict[str, Any]:
        return {"world": str(self.world), "truncation_psi": self.truncation_psi, **self.model.provenance}

    def _repr_png_(self) -> bytes:
        """What notebooks show of it: the view at 1x."""
        return encode_png(np.asarray(self.view()))

    def __repr__(self) -> str:
        psi = "" if self.truncation_psi == 1 else f" at truncation {self.truncation_psi:g}"
        return f"<world {self.world}{psi} of {self.model.path.name}>"


def load_model(network: str | Path | None = None, device: str | torch.device | None = None) -> Model:
    """As :func:`multiscale.load`."""
    try:
        place = default_device() if device is None else torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"There is no device {shown(device)} here; give 'cpu', 'cuda', 'mps', or nothing.") from error
    path = find_network(network)
    if network is None:
        if kimg_of(path) == 0:
            warnings.warn(choice(path, "load()"), stacklevel=3)  # where multiscale.load was called
        else:
            logging.getLogger(__name__).info(choice(path, "load()"))
    return Model(load_snapshot(path), place)


def _sides(size: tuple[int, int] | int) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"Size {shown(size)} is not allowed; give (width, height) in pixels, or one side.")
    return sides[0], sides[1]


def _positive(scale: float) -> float:
    if not 1 <= scale < float("inf"):
        raise UserError(f"Scale {scale:g} is out of range; give a zoom factor of 1 (the whole world) or more.")
    return scale


def _keyframe(place: Any) -> Keyframe:
    def read() -> Keyframe:
        zoom, x, y = map(float, place)
        return Keyframe(zoom, x, y)

    return parsed(read, f"The place {shown(place)} is not (zoom, x, y).")


def _ending(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise UserError(f"{path} does not end in {suffix}; give a name that does.")
    return path
