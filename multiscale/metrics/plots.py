"""Plots of measures: by octave, spectra, the matrix of consistency, and over training; each becomes the bytes of a PNG.

Shapes: S octaves, K frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.plots import as_png, colours, panels, put_title
from multiscale.metrics.measure import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL = "#222222"

Results = Mapping[str, Result]


def octave_name(octave: int) -> str:
    """The zooms of an octave, such as ``"4x - 8x"``."""
    return f"{2**octave}x - {2 ** (octave + 1)}x"


def octave_curves(networks: Mapping[str, Results], curves: Mapping[str, Mapping[str, str]]) -> bytes | None:
    """A panel for each measure that is taken by octave, a curve for each network; None if there is none.

    ``curves``: for each measure the keys of results that have a number for each octave, and what is added to its name for
    them. The grey dashes are what two halves of the real patches give.
    """
    curved = [
        (name, key, suffix)
        for name, result in _first(networks).items()
        for key, suffix in curves[name].items()
        if result.get(key)
    ]
    if not curved:
        return None
    figure, grid = panels(len(curved), columns=3, height=2.7)
    for axes, (name, key, suffix) in zip(grid, curved, strict=True):
        for colour, (label, results) in zip(colours(len(networks)), networks.items(), strict=True):
            values = results[name][key]
            axes.plot(range(len(values)), values, "o-", ms=3.5, lw=1.4, color=colour, label=label)
        floor = _first(networks)[name].get("floor") if key == "octaves" else None
        if floor is not None:
            axes.plot(range(len(floor)), floor, "--", lw=1.2, color="#888888", label="real against real")
        put_title(axes, name + suffix)
        axes.set_xticks(range(len(values)), [f"{2**j}x" for j in range(len(values))])
        if min(values) >= 0 and key != "psnr":
            axes.set_ylim(bottom=0)
    return _finished(figure, grid, networks)


def spectra(networks: Mapping[str, Results], name: str) -> bytes:
    """Power by frequency of each octave, real and generated, and below each the difference in dB."""
    from multiscale.metrics.spectra import FLOOR, spectrum_difference  # here: PyTorch takes seconds

    octaves = len(_first(networks)[name]["octaves"])
    columns = min(octaves, 4)
    blocks = math.ceil(octaves / columns)
    figure, grid = panels(2 * columns * blocks, columns=columns, height=2.0, ratios=[2, 1] * blocks)
    for octave in range(octaves):
        block, column = divmod(octave, columns)
        upper, lower = grid[2 * block * columns + column], grid[(2 * block + 1) * columns + column]
        real = np.array(_first(networks)[name]["real"][octave])
        frequency = np.arange(len(real)) / (2 * (len(real) - 1))  # cycles a pixel
        upper.plot(frequency[1:], np.maximum(real[1:], FLOOR), color=REAL, lw=1.8, label="real")
        for colour, (label, results) in zip(colours(len(networks)), networks.items(), strict=True):
            fake = np.array(results[name]["fake"][octave])
            upper.plot(frequency[1:], np.maximum(fake[1:], FLOOR), color=colour, lw=1.2, label=label)
            lower.plot(frequency[1:], spectrum_difference(real, fake), color=colour, lw=1.2)
        upper.set_yscale("log")
        put_title(upper, octave_name(octave))
        lower.axhline(0, color=REAL, lw=0.8)
        lower.set_ylim(-15, 15)
        if column == 0:
            upper.set_ylabel("power", fontsize=8)
            lower.set_ylabel("fake/real, dB", fontsize=8)
        lower.set_xlabel("cycles a pixel", fontsize=8)
    for index, axes in enumerate(grid):
        axes.set_visible(index // (2 * columns) * columns + index % columns < octaves)
    return _finished(figure, grid, networks, extra=1)


def consistency_matrices(networks: Mapping[str, Results], name: str) -> bytes:
    """PSNR in dB of views of the rows' zoom, reduced, against views of the columns' zoom; a matrix for each network."""
    named = list(networks.items())
    figure, grid = panels(len(named), columns=min(len(named), 3), height=3.6)
    matrices = [np.array(results[name]["psnr"], dtype=float) for _, results in named]
    known = np.concatenate(
        [matrix[np.isfinite(matrix)] for matrix in matrices]
    )  # none of a network that gives no numbers
    low, high = (known.min(), known.max()) if len(known) else (0, 0)
    for axes, (label, results), matrix in zip(grid, named, matrices, strict=True):
        axes.grid(False)
        image = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=max(high, low + 1))
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
        ticks = [f"{2**level}x" for level in range(len(matrix))]
        axes.set_xticks(range(len(matrix)), ticks)
        axes.set_yticks(range(len(matrix)), ticks)
        axes.set_xlim(-0.5, len(matrix) - 1.5)  # nothing is coarser than the coarsest, or finer than the finest
        axes.set_ylim(len(matrix) - 0.5, 0.5)
        axes.set_xlabel("compared with the view at", fontsize=8)
        axes.set_ylabel("view, reduced", fontsize=8)
        put_title(axes, f"{label}: mean {results[name]['value']:.2f} dB")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return _finished(figure, grid, {})


def training_curves(histories: Mapping[str, Sequence[tuple[float, Results]]]) -> bytes | None:
    """Each measure over the thousands of images seen, a curve for each run; None unless one has two points."""
    names = {
        name: None
        for history in histories.values()
        for _, results in history
        for name in results
        if sum(name in others for _, others in history) > 1
    }
    if not names:
        return None
    figure, grid = panels(len(names), columns=3, height=2.7)
    for axes, name in zip(grid, names, strict=True):
        for colour, (run, history) in zip(colours(len(histories)), histories.items(), strict=True):
            points = [(kimg, results[name]["value"]) for kimg, results in history if name in results]
            if points:  # the others have no legend entry either
                axes.plot(*zip(*points, strict=True), "o-", ms=3.5, lw=1.4, color=colour, label=run)
        put_title(axes, name)
        axes.set_xlabel("kimg", fontsize=8)
    return _finished(figure, grid, histories if len(histories) > 1 else {})


def _first(networks: Mapping[str, Results]) -> Results:
    return next(iter(networks.values()))


def _finished(
    figure: Figure,
    grid: Sequence[Axes],
    named: Mapping[str, Any],
    *,
    extra: int = 0,
) -> bytes:
    """The PNG; with a legend above all panels if the curves have names."""
    handles, labels = grid[0].get_legend_handles_labels()
    for axes in grid[1:]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles, labels = [*handles, handle], [*labels, label]
    if len(named) + extra > 1 or "real against real" in labels:
        columns = max(1, int(figure.get_figwidth() / 2.2))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=8)
    return as_png(figure)
