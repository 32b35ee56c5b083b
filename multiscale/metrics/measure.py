"""What a measure is, and the register of all of them: each is one file in ``multiscale/metrics/measures/``.

A file there registers what it measures when it is imported; the register imports them all when somebody first looks at it,
so that nobody keeps a list, and commands that only name measures load nothing.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dnnlib.errors import UserError
from dnnlib.extensions import import_extensions

FOLDER = "multiscale.metrics.measures"

Result = dict[str, Any]
"""JSON values: ``value`` is the number to compare models by, ``octaves`` the same of each octave, where it has any, and
``floor`` what two halves of up to twice as many real patches give; ``better`` is the kind's."""

Better = Literal["lower", "higher", "nearer 1"]
"""Which values are better."""


def distance_from_best(value: float, better: str) -> float:
    """A number that is less for a better value, infinite for none: of what is ``nearer 1``, a half is as far off as 2."""
    if math.isnan(value) or (better == "nearer 1" and value <= 0):
        return math.inf
    return abs(math.log(value)) if better == "nearer 1" else -value if better == "higher" else value


def plain(name: str, result: Any) -> Any:
    """A measure's result with the numbers of NumPy and PyTorch as Python's own, as JSON takes them.

    Raises:
        UserError: it holds something else.
    """
    if isinstance(result, Mapping):
        return {str(key): plain(name, value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [plain(name, value) for value in result]
    if result is None or isinstance(result, bool | int | float | str):
        return float(result) if isinstance(result, float) else result  # float64 is a float
    if hasattr(result, "tolist"):
        return plain(name, result.tolist())
    raise UserError(
        f"The result of the measure {name} holds {type(result).__name__}; it may hold numbers, texts, lists and dictionaries."
    )


@dataclass(frozen=True)
class Picture:
    """A plot of a measure for the report."""

    title: str
    text: str
    draw: Callable[[Mapping[str, Mapping[str, Result]], str], bytes]
    """Of the results of each network by measure, and the measure's name: a PNG."""


@dataclass(frozen=True)
class Column:
    """A number of a result, or one for each octave, in a table that compares models."""

    key: str = "value"
    title: str | None = None
    """None: the measure's name, as it was asked for."""
    digits: int = 3
    """Significant digits."""
    in_decibels: bool = False
    """Compare models by differences, not ratios."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A measure: name, description, default number of samples, and which values are good.

    Those that look at patches, which measures share, are ``PatchKind`` (``multiscale/metrics/compare.py``); those that
    render views of their own are ``ViewKind`` (``multiscale/metrics/render.py``).
    """

    name: str
    description: str
    count: int
    """Samples: over the mixture, of each octave, of the coarsest octave, or worlds."""
    per: Literal["mixture", "octave", "coarsest", "world"]
    needs: frozenset[Literal["moments", "bank", "images"]] = frozenset()
    """What it uses of the shared patches: moments of their features, the features, the images; empty: renders its own views."""
    better: Better = "lower"
    least: int = 1
    curves: Mapping[str, str] = field(default_factory=lambda: {"octaves": ""})
    """Keys of its result with a number for each octave that a report draws, where there are any, and what is added to the
    measure's name for them."""
    picture: Picture | None = None
    columns: tuple[Column, ...] = (Column(),)
    """Columns in a table of several models."""

    @property
    def unit(self) -> str:
        """The unit of ``count``."""
        units = {"mixture": "patches", "octave": "of each octave", "coarsest": "of the coarsest", "world": "worlds"}
        return units[self.per]

    def views(self, count: int, octaves: int) -> int:
        """Views that ``count`` samples take of one model of S octaves, if no other measure shares them."""
        return count * octaves if self.per == "octave" else count


class Register(Mapping[str, Kind]):
    """Measures by name: those that look at features first, then those of images, then those that render; each by name."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._loaded = False

    def add(self, kind: Kind) -> None:
        """Add a measure; one from outside this project in a module of :mod:`dnnlib.extensions`.

        Raises:
            ValueError: another has the name.
        """
        if kind.name in self._kinds:
            raise ValueError(f"There are two measures of the name {kind.name!r}.")
        self._kinds[kind.name] = kind

    def __getitem__(self, name: str) -> Kind:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all(), key=lambda name: (self._group(name), name)))

    def __len__(self) -> int:
        return len(self._all())

    def _group(self, name: str) -> int:
        needs = self._kinds[name].needs
        return 0 if "moments" in needs else 1 if "bank" in needs else 2 if needs else 3

    def _all(self) -> dict[str, Kind]:
        if not self._loaded:
            for module in pkgutil.iter_modules(importlib.import_module(FOLDER).__path__, FOLDER + "."):
                importlib.import_module(module.name)
            import_extensions()
            self._loaded = True
        return self._kinds


KINDS = Register()
"""All measures."""


@dataclass(frozen=True)
class Metric:
    """A measure that was requested."""

    name: str
    """As written by the user; its result goes by this name."""
    kind_name: str
    count: int

    @property
    def kind(self) -> Kind:
        """What is measured."""
        return KINDS[self.kind_name]
