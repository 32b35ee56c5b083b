"""The measures by name, and what each needs: ``msfid10k`` is the measure ``msfid`` with 10,000 patches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dnnlib.errors import UserError, nearest_name

MAX_COUNT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A measure: what it says, of how many samples if nobody says otherwise, and which direction is good."""

    says: str
    count: int
    """Samples: over the mixture, of each octave, of the coarsest octave, or worlds."""
    per: Literal["mixture", "octave", "coarsest", "world"]
    needs: frozenset[str] = frozenset()
    """Of ``"moments"``, ``"bank"``: statistics of features, or the features themselves; ``"images"``."""
    higher_is_better: bool = False
    least: int = 1

    @property
    def unit(self) -> str:
        """What ``count`` counts."""
        units = {"mixture": "patches", "octave": "of each octave", "coarsest": "of the coarsest", "world": "worlds"}
        return units[self.per]


_MOMENTS, _BANK, _IMAGES = (frozenset({need}) for need in ("moments", "bank", "images"))

KINDS: dict[str, Kind] = {
    "msfid": Kind(
        says="Frechet distance over the data's mixture of scales",
        count=1000,
        per="mixture",
        needs=_MOMENTS,
        least=2,
    ),
    "msfid_octave": Kind(says="Frechet distance within each octave", count=1000, per="octave", needs=_MOMENTS, least=2),
    "mskid": Kind(
        says="kernel distance over the data's mixture of scales",
        count=1000,
        per="mixture",
        needs=_BANK,
        least=2,
    ),
    "mskid_octave": Kind(says="kernel distance within each octave", count=1000, per="octave", needs=_BANK, least=2),
    "precision_recall": Kind(
        says="precision and recall within each octave",
        count=1000,
        per="octave",
        needs=_BANK,
        higher_is_better=True,
        least=8,
    ),
    "swd": Kind(
        says="sliced Wasserstein distance on Laplacian pyramids",
        count=256,
        per="octave",
        needs=_IMAGES,
        least=2,
    ),
    "spectrum": Kind(says="power spectra, fake against real", count=256, per="octave", needs=_IMAGES, least=2),
    "lattice": Kind(
        says="periodic patterns: highest peaks of spectra, fake over real",
        count=64,
        per="octave",
        needs=_IMAGES,
        least=16,
    ),
    "diversity": Kind(
        says="distance between worlds in the coarsest octave, fake over real",
        count=64,
        per="coarsest",
        needs=_IMAGES,
        higher_is_better=True,
        least=2,
    ),
    "consistency": Kind(says="PSNR, SSIM and L1 between scales", count=64, per="world", higher_is_better=True),
    "equivariance": Kind(
        says="EQ-T under shifts by fractions of a pixel", count=32, per="octave", higher_is_better=True
    ),
    "seam": Kind(says="largest step across the borders of tiles", count=4, per="octave"),
    "truth": Kind(
        says="PSNR and SWD against the procedural scene itself", count=128, per="octave", higher_is_better=True, least=2
    ),
    "compression": Kind(
        says="bytes of the model against the pyramid it stands for", count=16, per="octave", higher_is_better=True
    ),
}
"""All measures."""

DEFAULT = "msfid1k,mskid1k,swd,spectrum,consistency"


@dataclass(frozen=True)
class Metric:
    """One measure that is asked for."""

    name: str
    """As it was written: the name of its result."""
    kind_name: str
    count: int

    @property
    def kind(self) -> Kind:
        """What is measured."""
        return KINDS[self.kind_name]


def parse_metric(text: str) -> Metric:
    """``"msfid10k"``, ``"mskid_octave500"``, ``"swd"`` -> a measure and its number of samples.

    Raises:
        UserError: an unknown name (with the nearest), or a number that is not allowed.
    """
    match = re.fullmatch(r"([a-z_]+?)(?:(\d{1,7})(k?))?", text.strip())
    if match is None or match[1] not in KINDS:
        stem = re.sub(r"\d.*", "", text.strip())
        raise UserError(f"There is no measure {text.strip()!r}{nearest_name(stem, KINDS)}")
    kind = KINDS[match[1]]
    count = kind.count if match[2] is None else int(match[2]) * (1000 if match[3] else 1)
    if not kind.least <= count <= MAX_COUNT:
        raise UserError(f"Measure {text.strip()!r} asks for {count} samples; give {kind.least} to {MAX_COUNT}.")
    return Metric(text.strip(), match[1], count)


def parse_metrics(text: str | Sequence[str]) -> tuple[Metric, ...]:
    """A list such as ``"msfid10k,swd"``, in its order, without repetitions.

    Raises:
        UserError: as :func:`parse_metric`; or the list is empty.
    """
    names = text.split(",") if isinstance(text, str) else list(text)
    found = {metric.name: metric for name in names if name.strip() for metric in [parse_metric(name)]}
    if not found:
        raise UserError(f"No measure was named; give one or more of {', '.join(KINDS)}.")
    return tuple(found.values())
