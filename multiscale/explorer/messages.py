"""What clients may send, bounded in every number, count and length; and how frames are packed for them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from dnnlib.errors import UserError, in_words
from multiscale.rendering.worlds import World
from multiscale.view import Region

FRAME_PX = 1 << 22
SIDE_PX = 8192
IMAGE_PX = 1 << 26
FILM_TOTAL_PX = 1 << 36
"""Over all frames of a film: 40 minutes of 1280 x 720 at 30 frames per second."""
FILM_PX = 3840 * 2160
FILM_FRAMES = 36_000
KEYFRAMES = 64
MESSAGE_BYTES = 1 << 16
WORLD_LENGTH = 400
LIMITS = {"frame_px": FRAME_PX, "side_px": SIDE_PX, "image_px": IMAGE_PX}

Number = Annotated[int, Field(ge=0, lt=2**53)]
Slot = Annotated[str, Field(min_length=1, max_length=32)]
NetworkName = Annotated[str, Field(max_length=200)]
WorldText = Annotated[str, Field(min_length=1, max_length=WORLD_LENGTH)]
Truncation = Annotated[float, Field(ge=-2, le=2)]
Coordinate = Annotated[float, Field(ge=-1, le=1)]
Pitch = Annotated[float, Field(ge=1e-9, le=1)]
Side = Annotated[int, Field(ge=1, le=SIDE_PX)]

M = TypeVar("M", bound=BaseModel)


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _Looks(_Message):
    """A network (None: the server's default) and a world."""

    network: NetworkName | None = None
    world: WorldText
    trunc: Truncation = 1.0


class _Picture(_Looks):
    left: Coordinate
    top: Coordinate
    pitch: Pitch
    width: Side
    height: Side
    extrapolate: bool = False

    @property
    def region(self) -> Region:
        return Region(left=self.left, top=self.top, pitch=self.pitch, width=self.width, height=self.height)


class FrameRequest(_Picture):
    """The newest view of a slot."""

    type: Literal["frame"]
    id: Number
    slot: Slot
    quality: Literal["draft", "sharp"]
    error: bool = False

    @model_validator(mode="after")
    def _bounded(self) -> FrameRequest:
        return _at_most(self, FRAME_PX)


class CancelRequest(_Message):
    """Drop what a slot has requested."""

    type: Literal["cancel"]
    slot: Slot


class Ping(_Message):
    """Answered with a pong of the same id."""

    type: Literal["ping"]
    id: Number = 0


class ImageQuery(_Picture):
    """An image to download."""

    depth: Literal["8", "16"] = "8"

    @model_validator(mode="after")
    def _bounded(self) -> ImageQuery:
        return _at_most(self, IMAGE_PX)


class SiteQuery(_Message):
    """Which network's page."""

    network: NetworkName | None = None


class TileQuery(_Message):
    """What tiles show, besides their world."""

    network: NetworkName | None = None
    trunc: Truncation = 1.0


class KeyframeRequest(_Message):
    """A view on a film's path."""

    zoom: Annotated[float, Field(ge=1, le=2**24)]
    x: Annotated[float, Field(ge=-0.5, le=0.5)]
    y: Annotated[float, Field(ge=-0.5, le=0.5)]


class FilmRequest(_Looks):
    """A film through keyframes."""

    width: Annotated[int, Field(ge=16, le=SIDE_PX)]
    height: Annotated[int, Field(ge=16, le=SIDE_PX)]
    fps: Annotated[int, Field(ge=1, le=120)]
    seconds: Annotated[float, Field(gt=0, le=3600)]
    keyframes: Annotated[list[KeyframeRequest], Field(min_length=2, max_length=KEYFRAMES)]

    @model_validator(mode="after")
    def _bounded(self) -> FilmRequest:
        if self.fps * self.seconds > FILM_FRAMES:
            raise ValueError(f"{self.fps * self.seconds:.0f} frames are more than {FILM_FRAMES}")
        if self.fps * self.seconds * self.width * self.height > FILM_TOTAL_PX:
            raise ValueError(
                f"{self.fps * self.seconds:.0f} frames of {self.width} x {self.height} pixels are too many"
            )
        return _at_most(self, FILM_PX)


Message = FrameRequest | CancelRequest | Ping
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def parse_message(text: str) -> Message:
    """A message from the WebSocket.

    Raises:
        UserError: it is not JSON, or out of bounds.
    """
    try:
        return _MESSAGE.validate_json(text)
    except ValidationError as error:
        raise UserError(f"The message cannot be understood: {_first(error)}.") from None


def parse_json(model: type[M], body: bytes) -> M:
    """The body of a request; errors as above."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise UserError(f"The request cannot be understood: {_first(error)}.") from None


def parse_query(model: type[M], query: Mapping[str, str]) -> M:
    """The query of an address (an empty value counts as not given); errors as above."""
    try:
        return model.model_validate_strings({name: value for name, value in query.items() if value != ""})
    except ValidationError as error:
        raise UserError(f"The address cannot be understood: {_first(error)}.") from None


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """A world in the path of an address, and the options after it: ``3;trunc=0.7`` -> ``3``, ``{"trunc": "0.7"}``.

    Viewers append to the addresses they are given, so options in a query would be lost. Values may be quoted, as by
    :func:`join_options`.
    """
    world, *options = text.split(";")
    return world, {name: unquote(value) for name, _, value in (option.partition("=") for option in options)}


def join_options(world: str, options: Mapping[str, str]) -> str:
    """The inverse, for the path of an address: quoted twice, as the server unquotes once before routing."""
    return quote(world, safe=":~@") + "".join(
        f";{name}={quote(quote(value, safe=''))}" for name, value in options.items()
    )


def parse_world(text: str) -> World:
    """A world in an address; errors as above, or those of its syntax."""
    if len(text) > WORLD_LENGTH:
        raise UserError(f"A world's text of {len(text)} characters is too long; {WORLD_LENGTH} are allowed.")
    return World.parse(text)


def sender_of(text: str) -> tuple[int | None, str | None]:
    """Id and slot of an invalid message, as far as it has them."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(values, dict):
        return None, None
    number, slot = values.get("id"), values.get("slot")
    known = type(number) is int and 0 <= number < 2**53
    return number if known else None, slot if isinstance(slot, str) and len(slot) <= 32 else None


def pack(header: dict[str, Any], image: bytes) -> bytes:
    """A binary message: length of the header in 4 bytes (big-endian), header, image."""
    text = json.dumps(header, allow_nan=False).encode()
    return struct.pack(">I", len(text)) + text + image


def _at_most(picture: Any, pixels: int) -> Any:
    if picture.width * picture.height > pixels:
        raise ValueError(f"{picture.width} x {picture.height} pixels are more than {pixels} in all")
    return picture


def _first(error: ValidationError) -> str:
    """The first error, in a few words."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])[:80]
    what = in_words(found["msg"])[:200]
    return f"{where}: {what}" if where else what
