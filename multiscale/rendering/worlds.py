"""Which world is shown: seeds, mixtures of seeds, drifts and styles taken from another seed, written as short texts.

    3                the world of seed 3
    3~7:0.25         a quarter of the way from seed 3 to seed 7, in w
    3d0.4:-0.2       seed 3 after a drift of its latent by 0.4 and -0.2 along two directions of its own
    3_7@4-6          seed 3, but layers 4 to 6 take their style from seed 7

They combine, in this order: ``3d0.4:0~7:0.25_9@5-6``. The texts stand in options, file names and addresses: their
characters mean nothing special to a shell, a file system or a URL. To read them takes no PyTorch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from dnnlib.errors import UserError

if TYPE_CHECKING:
    import torch

    from multiscale.networks.generator import Generator

MAX_SEED = 2**32 - 1
MAX_TERMS = 16
MAX_DRIFT = 100.0
SYNTAX = "a seed such as 3, a mix 3~7:0.25, a drift 3d0.4:-0.2, styles of layers 3_7@4-6, or these together"

_NUMBER = r"-?(?:\d{1,6}(?:\.\d{0,12})?|\.\d{1,12})(?:e-?\d{1,2})?"
_TERM = re.compile(rf"(?P<seed>\d{{1,10}})(?:d(?P<x>{_NUMBER}):(?P<y>{_NUMBER}))?", re.ASCII)
_MIX = re.compile(rf"(?P<term>[^~:]+(?:d[^~]*)?):(?P<weight>{_NUMBER})", re.ASCII)
_STYLE = re.compile(r"(?P<term>[^@]+)@(?P<first>\d{1,3})(?:-(?P<last>\d{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class Latent:
    """A seed's latent, moved by ``drift`` along two random directions that belong to the seed."""

    seed: int
    drift: tuple[float, float] = (0.0, 0.0)

    def z(self, z_dim: int) -> torch.Tensor:
        """Float32 [1, z_dim]; drifts keep the expected length, since the mapping normalises it."""
        import torch  # here: it takes seconds

        from torch_utils.random import latents, normal, stream

        z = latents(self.seed, z_dim)
        if self.drift != (0.0, 0.0):
            directions = normal(stream(self.seed, "drift"), 2, z_dim)
            z = z + torch.tensor([self.drift]) @ directions
        return z

    def __str__(self) -> str:
        return f"{self.seed}" + (
            f"d{_short(self.drift[0])}:{_short(self.drift[1])}" if self.drift != (0.0, 0.0) else ""
        )


@dataclass(frozen=True)
class GivenLatent:
    """A latent that no seed gives. Its text ``z8c3f...`` tells it from others (SHA-256), but cannot be read back."""

    numbers: tuple[float, ...]
    """Float32 values, z_dim of them."""

    def z(self, z_dim: int) -> torch.Tensor:
        """Float32 [1, z_dim]."""
        import torch  # here: it takes seconds

        assert len(self.numbers) == z_dim
        return torch.tensor([self.numbers], dtype=torch.float32)

    def __str__(self) -> str:
        return f"z{_digest(self.z(len(self.numbers)))}"


@dataclass(frozen=True)
class GivenStyles:
    """The w of each layer, which no latent gives, and which is not truncated. Its text ``w8c3f...`` is as that of a latent."""

    numbers: tuple[tuple[float, ...], ...]
    """Float32 values, [num_ws][w_dim]."""

    def ws(self) -> torch.Tensor:
        """Float32 [1, num_ws, w_dim]."""
        import torch  # here: it takes seconds

        return torch.tensor([self.numbers], dtype=torch.float32)

    def __str__(self) -> str:
        return f"w{_digest(self.ws())}"


Term: TypeAlias = Latent | GivenLatent | GivenStyles
"""What worlds are mixed of."""


@dataclass(frozen=True)
class Style:
    """Layers ``first`` to ``last`` (both counted, from 0; the last is toRGB) that take their w from another latent."""

    latent: Latent
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.latent}@{self.first}-{self.last}"


@dataclass(frozen=True)
class World:
    """A point of the space of worlds: a latent, others mixed in (each by a weight, in turn), styles of layers."""

    latent: Term
    mixed: tuple[tuple[Term, float], ...] = ()
    styles: tuple[Style, ...] = field(default=())

    @classmethod
    def parse(cls, text: str | int) -> World:
        """Read a text such as ``"3"`` or ``"3~7:0.25_9@4-6"``.

        Raises:
            UserError: it cannot be read, a seed is beyond 2^32 - 1, or it has more than 16 terms.
        """
        text = str(text).strip()
        try:
            base, *styles = text.split("_")
            first, *mixed = base.split("~")
            if len(styles) + len(mixed) >= MAX_TERMS:
                raise ValueError
            return cls(_latent(first), tuple(map(_mix, mixed)), tuple(map(_style, styles)))
        except ValueError:
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise UserError(f"World {shown!r} cannot be read; write {SYNTAX} (seeds from 0 to {MAX_SEED}).") from None

    def __str__(self) -> str:
        mixed = "".join(f"~{latent}:{_short(weight)}" for latent, weight in self.mixed)
        return f"{self.latent}{mixed}" + "".join(f"_{style}" for style in self.styles)

    def mixed_with(self, latent: Term, weight: float) -> World:
        """This world, then ``weight`` of the way to another latent; the weight is rounded as texts write it.

        Raises:
            UserError: a weight beyond 100, or more than 16 terms.
        """
        if not abs(weight) <= MAX_DRIFT:
            raise UserError(f"Weight {weight:g} is out of range; give -{MAX_DRIFT:g} to {MAX_DRIFT:g}.")
        if len(self.mixed) + len(self.styles) + 1 >= MAX_TERMS:
            raise UserError(f"World {self} has {MAX_TERMS} terms already, the most that are allowed; mix fewer.")
        return dataclasses.replace(self, mixed=(*self.mixed, (latent, float(_short(weight)))))

    def ws(self, generator: Generator, truncation_psi: float = 1.0) -> torch.Tensor:
        """The styles of this world, [1, num_ws, w_dim], on the generator's device.

        Raises:
            UserError: a range of layers that the network does not have.
        """
        import torch  # here: it takes seconds

        from torch_utils.devices import float32_products

        layers = len(generator.plan.layers)
        terms = [self.latent, *(latent for latent, _ in self.mixed), *(style.latent for style in self.styles)]
        with torch.no_grad(), float32_products():
            device = generator.mapping.w_avg.device
            z = [term.z(generator.config.z_dim) for term in terms if not isinstance(term, GivenStyles)]
            mapped = iter(generator.mapping(torch.cat(z).to(device), truncation_psi).split(1) if z else ())
            ws = torch.cat([term.ws().to(device) if isinstance(term, GivenStyles) else next(mapped) for term in terms])
            w = ws[:1].clone()
            for i, (_, weight) in enumerate(self.mixed, start=1):
                w = w.lerp(ws[i : i + 1], weight)
            for i, style in enumerate(self.styles, start=1 + len(self.mixed)):
                if style.last >= layers:
                    raise UserError(
                        f"World {self} names layer {style.last}; this network has layers 0 to {layers - 1}."
                    )
                w[:, style.first + 1 : style.last + 2] = ws[i : i + 1, style.first + 1 : style.last + 2]
        return w


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def _latent(text: str) -> Latent:
    match = _TERM.fullmatch(text)
    if match is None or int(match["seed"]) > MAX_SEED:
        raise ValueError
    return Latent(int(match["seed"]), (_number(match["x"]), _number(match["y"])))


def _mix(text: str) -> tuple[Latent, float]:
    match = _MIX.fullmatch(text)
    if match is None:
        raise ValueError
    return _latent(match["term"]), _number(match["weight"])


def _style(text: str) -> Style:
    match = _STYLE.fullmatch(text)
    if match is None:
        raise ValueError
    first = int(match["first"])
    last = int(match["last"]) if match["last"] else first
    if last < first:
        raise ValueError
    return Style(_latent(match["term"]), first, last)


def _number(text: str | None) -> float:
    value = float(text or 0)
    if not math.isfinite(value) or abs(value) > MAX_DRIFT:
        raise ValueError
    return value


def _short(value: float) -> str:
    """Shortest decimal text without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".") or "0"
