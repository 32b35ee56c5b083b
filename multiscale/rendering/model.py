"""The face to Python: a model, its worlds, and pictures, films and pyramids of them, each in one line (docs/python.md)."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dnnlib.errors import UserError, shown
from dnnlib.names import typed_path
from dnnlib.reading import parsed
from multiscale.networks.generator import Generator
from multiscale.rendering.enlarging import enlarged_view
from multiscale.rendering.files import encode_png
from multiscale.rendering.film_files import kind_of_film
from multiscale.rendering.flights import Keyframe
from multiscale.rendering.pyramid import Pyramid, write_deep_zoom
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.request import MAX_PICTURE_PX
from multiscale.rendering.sheets import zoom_strip
from multiscale.rendering.video import FILM_PX, film_facts, write_film
from multiscale.rendering.worlds import GivenLatent, GivenStyles, World
from multiscale.runs.headers import WANTED, choice, find_network, kimg_of
from multiscale.runs.snapshots import Snapshot, load_snapshot
from multiscale.view import Region
from torch_utils.devices import default_device

Number: TypeAlias = float | np.number[Any] | NDArray[Any] | torch.Tensor
"""Of Python or NumPy, or a tensor or array without dimensions."""
Point: TypeAlias = Sequence[Number] | NDArray[Any] | torch.Tensor
"""World coordinates (x, y): x to the right, y down."""
Size: TypeAlias = Sequence[Number] | Number
"""Width and height in pixels, or one side of a square."""
AnyWorld: TypeAlias = "PlacedWorld | int | str | NDArray[Any] | torch.Tensor"
"""A world of a model, or what :meth:`Model.world` takes."""


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

    def world(self, seed: int | str | NDArray[Any] | torch.Tensor = 0, truncation_psi: Number = 1.0) -> PlacedWorld:
        """One of its worlds.

        Args:
            seed: A seed from 0 to 2^32 - 1; a world in writing, such as ``"3~7:0.25"`` (docs/exploring.md); or a latent z,
                a tensor or array [z_dim] of finite numbers, drawn from N(0, 1) or found, whose length makes no difference;
                or styles, the w of each layer, [num_ws, w_dim] or [1, num_ws, w_dim], such as :attr:`PlacedWorld.ws` or found.
            truncation_psi: 1 as trained, 0 the mean style, in which a world keeps its layout where features follow from its
                latent, as in the bundled model; from -2 to 2. Styles are taken as they are.

        Raises:
            UserError: it cannot be read, the truncation is out of range, or styles are to be truncated.
        """
        world = self._world(seed)
        psi = _number(truncation_psi, "Truncation")
        if not -2 <= psi <= 2:
            raise UserError(f"Truncation {psi:g} is out of range; give -2 to 2: 1 as trained, 0 the mean style.")
        if psi != 1 and isinstance(world.latent, GivenStyles):
            raise UserError(
                f"Truncation {psi:g} does not apply to styles, which are rendered as they are; leave it out, or give a latent."
            )
        world.ws(self.generator)  # refuses layers that it does not have
        return PlacedWorld(self, world, psi)

    def _world(self, seed: Any) -> World:
        if not isinstance(seed, np.ndarray | torch.Tensor):
            return World.parse(seed)
        z_dim, shape = self.generator.config.z_dim, (self.generator.plan.num_ws, self.generator.config.w_dim)
        sentence = (
            f"A latent of this model is a tensor or array [{z_dim}] of finite numbers, and styles are one of {list(shape)} or "
            f"{[1, *shape]}; given: {_described(seed)}."
        )
        if seed.ndim > 1:
            rows = seed[0] if seed.shape[:-2] == (1,) else seed
            return World(GivenStyles(tuple(map(tuple, _checked(rows, shape, "iuf", sentence)))))
        return World(GivenLatent(_numbers(seed, z_dim, sentence)))

    def __repr__(self) -> str:
        side = self.resolution
        return f"<model {self.path.name}: {side} x {side} pixels, {self.octaves} octaves, on {self.renderer.device}>"


@dataclass(frozen=True, repr=False)
class PlacedWorld:
    """A world of a model."""

    model: Model
    world: World
    truncation_psi: float = 1.0

    @property
    def ws(self) -> torch.Tensor:
        """The w of each layer, truncated, float32 [1, num_ws, w_dim], for ``model.generator.synthesis(ws, transform)``.

        ``model.world(ws)`` is the same world.
        """
        return self.model.renderer.styles(self.world, self.truncation_psi).clone()

    def view(
        self,
        scale: Number = 1,
        centre: Point = (0, 0),
        size: Size | None = None,
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
            UserError: a view that leaves the world, a scale beyond the model's, or more than 2^28 pixels.
        """
        renderer, sides, psi = self.model.renderer, None if size is None else _held(size), self.truncation_psi
        zoom, place = _number(scale, "Scale"), _point(centre)
        if extrapolate:
            pixels = renderer.view(self.world, zoom, place, sides, psi, extrapolate=True)
        else:
            pixels = enlarged_view(renderer, self.world, zoom, place, sides, psi)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def array(
        self,
        scale: Number = 1,
        centre: Point = (0, 0),
        size: Size | None = None,
        *,
        extrapolate: bool = False,
    ) -> NDArray[np.float32]:
        """As :meth:`view`, but as the network gives it: float32 [H, W, C], nominally in [-1, 1], neither rounded nor enlarged.

        Raises:
            UserError: a view that leaves the world, is finer than the model, or has more than 2^28 pixels.
        """
        width, height = _held(self.model.resolution if size is None else size)
        region = Region.of_view(_positive(scale), _point(centre), width, height)
        image = self.model.renderer.image(self.world, region, self.truncation_psi, extrapolate=extrapolate)
        array: NDArray[np.float32] = image.movedim(0, -1).numpy()
        return array

    def mixed(self, other: AnyWorld, weight: Number = 0.5) -> PlacedWorld:
        """The world that lies ``weight`` of the way from this one to another of the same model, in w.

        Args:
            other: A world, at its own truncation, or as for :meth:`Model.world`, at this world's. A mixture, or one of another
                truncation, is mixed in as its styles.
            weight: 0 is this world, 1 the other; from -100 to 100.

        Raises:
            UserError: ``other`` is of another model, or the weight is out of range.
        """
        world = self._other(other)
        if world.mixed or world.styles:
            world = self.model.world(dataclasses.replace(self, world=world).ws).world
        return dataclasses.replace(self, world=self.world.mixed_with(world.latent, _number(weight, "Weight")))

    def strip(self, centre: Point = (0, 0)) -> Image.Image:
        """Views at 1x, 2x, ... to the model's zoom about one point, each outlined in the one before."""
        return Image.fromarray(zoom_strip(self.model.renderer, self.world, _point(centre), self.truncation_psi))

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
        to: Point | Sequence[Point] = (),
        *,
        start: Point = (1, 0, 0),
        worlds: Sequence[AnyWorld] = (),
        loop: bool = False,
        seconds: Number = 20,
        fps: int = 30,
        size: Size | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> Path:
        """Write a flight through the world, or a walk from it to other worlds, or both at once.

        Args:
            path: The file, ending in .mp4, .webm, .gif or .webp; without an ending: a folder of PNG frames.
            to: Where it goes: (zoom factor, x, y), or several of these, one after the other. May be left out with ``worlds``.
            start: Where it begins.
            worlds: Which worlds this one turns into, one after the other, as for :meth:`mixed`.
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
        path = parsed(lambda: typed_path(path), f"{shown(path)} is not the name of a file or folder.")
        kind_of_film(path).check_place(path)
        places = [Keyframe(*place) for place in (_numbers(start, 3, _not_a_place(start)), *_places(to))]
        passed = [self.world, *map(self._other, worlds)]
        width, height = _sides(max(self.model.resolution, FILM_PX) if size is None else size)
        length = _number(seconds, "The length in seconds")
        if not math.isfinite(length):
            raise UserError(f"A film of {length:g} seconds is not possible; give its length.")
        rate = _whole(fps, f"{shown(fps)} frames a second are not possible; give a whole number from 1 to 240.")
        write_film(
            path,
            self.model.renderer,
            passed,
            self.truncation_psi,
            places,
            width=width,
            height=height,
            fps=rate,
            seconds=length,
            loop=loop,
            facts=film_facts(passed, self.truncation_psi, places, loop=loop) | self._provenance(passed),
            progress=progress,
        )
        return path

    def _other(self, world: AnyWorld) -> World:
        """Another world of the same model; one of another truncation than this as its styles, which keep it."""
        if not isinstance(world, PlacedWorld):
            return self.model.world(world).world
        if world.model is not self.model:
            raise UserError("Worlds of two models cannot be mixed; give one of the same model.")
        return world.world if world.truncation_psi == self.truncation_psi else self.model.world(world.ws).world

    def _facts(self) -> dict[str, Any]:
        return {"world": str(self.world), "truncation_psi": self.truncation_psi, **self._provenance([self.world])}

    def _provenance(self, worlds: Sequence[World]) -> dict[str, Any]:
        """The network, and the numbers of latents and styles that no seed gives."""
        terms = [term for world in worlds for term in (world.latent, *(term for term, _ in world.mixed))]
        kinds: dict[str, type[GivenLatent | GivenStyles]] = {"latents": GivenLatent, "styles": GivenStyles}
        given = {name: {str(t): t.numbers for t in terms if isinstance(t, kind)} for name, kind in kinds.items()}
        return self.model.provenance | {name: numbers for name, numbers in given.items() if numbers}

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
        names = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else ["mps"] if torch.backends.mps.is_available() else []),
        ]
        allowed = ", ".join(map(repr, names))
        raise UserError(f"There is no device {shown(device)} here; give {allowed}, or nothing.") from error
    if not isinstance(network, str | os.PathLike | None):
        raise UserError(f"{shown(network)} is not the name of a network; give {WANTED}.")
    path = find_network(network)
    if (sentence := choice(path, network, "load()")) is not None:
        if kimg_of(path) == 0:
            warnings.warn(sentence, stacklevel=3)  # where multiscale.load was called
        else:
            logging.getLogger(__name__).info(sentence)
    return Model(load_snapshot(path), place)


# ----- What users give: numbers of Python, NumPy and PyTorch ----------------------------------------------------------


def _numbers(values: Any, count: int, sentence: str) -> tuple[float, ...]:
    """``count`` finite numbers, of a sequence, an array or a tensor on any device; a UserError with ``sentence`` for others."""
    return tuple(map(float, _checked(values, (count,), "iuf", sentence)))


def _checked(values: Any, shape: tuple[int, ...], kinds: str, sentence: str) -> Any:
    """Values of a shape and of NumPy's ``kinds`` of numbers, finite, as plain ones; neither text nor truth is a number."""

    def read() -> Any:
        array = np.asarray(values.tolist() if isinstance(values, torch.Tensor) else values)
        if array.shape != shape or array.dtype.kind not in kinds or not np.isfinite(array).all():
            raise ValueError
        return array.tolist()

    return parsed(read, sentence)


def _described(value: Any) -> str:
    """A value as a message quotes it, on one line; large ones by their shape."""
    shape = tuple(getattr(value, "shape", ()))
    large = math.prod(shape) > 3
    return f"of shape {list(shape)} and {value.dtype}" if large else " ".join(shown(value).split())


def _number(value: Any, name: str) -> float:
    """A number; of what is not finite too, which ranges exclude and say so."""
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return float(_checked(value, (), "iuf", f"{name} {_described(value)} is not a finite number; give one."))


def _whole(value: Any, sentence: str) -> int:
    return int(_checked(value, (), "iu", sentence))


def _point(centre: Any) -> tuple[float, float]:
    sentence = f"Centre {_described(centre)} is not a point; give two numbers (x, y), x to the right and y down."
    x, y = _numbers(centre, 2, sentence)
    return x, y


def _sides(size: Any) -> tuple[int, int]:
    sentence = f"Size {_described(size)} is not allowed; give (width, height) in whole pixels, or one side."
    several = isinstance(size, Sequence) or getattr(size, "shape", ()) != ()
    sides = _checked(size, (2,), "iu", sentence) if several else [_whole(size, sentence)] * 2
    if min(sides) < 1:
        raise UserError(sentence)
    return sides[0], sides[1]


def _held(size: Any) -> tuple[int, int]:
    """Width and height of a picture that is to be held as a whole."""
    width, height = _sides(size)
    if width * height > MAX_PICTURE_PX:
        side = math.isqrt(MAX_PICTURE_PX)
        raise UserError(
            f"A picture of {width} x {height} pixels is too large to hold; give a size of at most {MAX_PICTURE_PX:,} pixels "
            f"(such as {side} x {side}), or write it to a file part by part: generate.py --tiff FILE --enlarge, or the whole "
            "world by .pyramid(FILE)."
        )
    return width, height


def _positive(scale: Any) -> float:
    zoom = _number(scale, "Scale")
    if not 1 <= zoom < float("inf"):
        raise UserError(f"Scale {zoom:g} is out of range; give a zoom factor of 1 (the whole world) or more.")
    return zoom


def _not_a_place(place: Any) -> str:
    return f"The place {_described(place)} is not (zoom, x, y)."


def _places(to: Any) -> list[tuple[float, ...]]:
    """One place (zoom, x, y), or several."""
    entries = parsed(lambda: list(to), _not_a_place(to))
    one = entries and all(getattr(entry, "shape", ()) == () and not isinstance(entry, Sequence) for entry in entries)
    return [_numbers(place, 3, _not_a_place(place)) for place in ([to] if one else entries)]


def _ending(path: str | Path, suffix: str) -> Path:
    path = parsed(lambda: typed_path(path), f"{shown(path)} is not the name of a file; give one that ends in {suffix}.")
    if path.suffix.lower() != suffix:
        raise UserError(f"{path} does not end in {suffix}; give a name that does.")
    return path
