"""Figures with panels, in the style of all the project's plots."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
COLOURS = ("#2266aa", "#d1572d", "#3a9a5b")


def panels(
    count: int,
    *,
    columns: int,
    width: float = 4.1,
    height: float,
    ratios: Sequence[float] | None = None,
    share_x: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, row by row, of which those beyond ``count`` are hidden.

    Args:
        count: Panels, one or more.
        columns: Most panels in a row.
        width: Of a panel, in inches.
        height: Of a row, in inches.
        ratios: Heights of the rows in proportion; None: equal.
        share_x: Share one x axis, labelled below the lowest panel of each column.
    """
    from matplotlib.figure import Figure  # here: it takes a second

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 5.5), height * rows + 0.5), dpi=DPI, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios, sharex=share_x).flat)
    for axes in grid:
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, lw=0.6)
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def put_title(axes: Axes, title: str) -> None:
    """The title of a panel, at its left."""
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")


def colours(count: int) -> list[Any]:
    """One for each curve; many follow a colour map in order, such as for the snapshots of a run."""
    from matplotlib import colormaps

    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return list(colormaps["plasma"](np.linspace(0.85, 0.05, count)))


def as_png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
