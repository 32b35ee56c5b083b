"""The progress of a run, read from its folder alone, without loading weights or PyTorch or disturbing a running training.

Older runs may lack keys; then the line is left out.
"""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from dnnlib.console import say
from dnnlib.errors import REFUSED, UserError, sentence_for
from dnnlib.files import atomic_write
from dnnlib.plots import COLOURS, as_png, panels, put_title
from dnnlib.reading import from_json, from_yaml, parsed, read_text
from multiscale.metrics.measure import distance_from_best
from multiscale.metrics.parse import parse_metric
from multiscale.runs.history import HISTORY, read_starts
from multiscale.runs.journal import METRICS, STATS, read_metrics, read_stats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUN_FILES = ("config.yaml", "environment.json", STATS)
PLOT = "plot.png"
MEASURE = "measure/"
"""Prefix of measures among the statistics that are drawn."""
STARTS_SHOWN = 5
"""Newest starts with changed settings that are listed; history.jsonl has all."""
RECENT = 10
"""Newest lines of statistics that the speed is a mean of."""


def report_status(path: str | Path) -> None:
    """Print the progress of a run, and plot its statistics as ``plot.png`` in its folder; where it cannot be written, say why.

    Args:
        path: A run's folder, or a folder of runs, of which the newest is meant.

    Raises:
        UserError: there is no run, or its files are not readable.
    """
    folder = find_run(Path(path))
    lines, measured = read_stats(folder), read_metrics(folder)
    print(folder)
    parsed(
        lambda: _report(folder, lines, measured),
        f"{', '.join((*RUN_FILES, METRICS))} or {HISTORY} in {folder} is damaged ({{reason}}).",
    )


def _report(folder: Path, lines: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]) -> None:
    for title, text in _facts(folder, lines, measured):
        print(f"  {title:<12}{text}")
    drawn = sorted([*lines, *_measure_lines(measured)], key=lambda line: line["kimg"])
    if _panels(drawn):
        try:
            save_plot(folder / PLOT, drawn, title=f"{folder.resolve().name}, {drawn[-1]['kimg']:g} kimg")
        except (UserError, *REFUSED) as error:
            say(f"No plot was written. {error if isinstance(error, UserError) else sentence_for(error)}")
        else:
            print(f"  {'plot':<12}{folder / PLOT}")


def find_run(path: Path) -> Path:
    """The folder itself if it holds a run, else the run below it that was written to last.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path}; give --status the folder of a run, or a folder of runs.")
    try:
        runs = [folder for folder in (path, *path.iterdir()) if any((folder / name).exists() for name in RUN_FILES)]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not runs:
        raise UserError(f"{path} holds no run; give --status the folder of a run, or a folder of runs.")
    return path if path in runs else max(runs, key=_written)


def is_training(folder: Path) -> bool | None:
    """Whether a process trains in the folder now; None if this user may not look."""
    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, blocking=False, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def command_to_resume(words: Sequence[str], folder: Path, launcher: str = "python") -> str:
    """The command line that goes on with the run which ``words`` (its ``sys.argv``, started by ``launcher``) began."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--resume":
            next(rest, None)
        elif word != "--fresh" and not word.startswith("--resume="):
            kept.append(word)
    if not any(re.match("--outdir(=|$)", word) for word in kept):
        kept += ["--outdir", str(folder)]
    return f"{launcher} {shlex.join(kept)}"


def _facts(
    folder: Path, lines: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Titles and texts of what is printed."""
    environment, training = _read(folder / "environment.json"), _read(folder / "config.yaml").get("training") or {}
    newest = {key: value for line in lines for key, value in line.items() if value is not None}
    states, snapshots = _numbered(folder, "state-*.pt"), _numbered(folder, "generator-*.safetensors")
    images = max([round(1000 * newest.get("kimg", 0)), *states, *snapshots])
    total, trains = round(1000 * training.get("kimg", 0)), is_training(folder)

    devices = Counter(environment.get("devices", []))
    where = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in devices.items())
    yield "run", f"{environment.get('preset', 'unknown preset')} on {where or 'unknown device'}"
    yield "data", str(environment.get("data", "unknown"))
    of_total = f" of {total / 1000:g} kimg ({images / total:.1%})" if total else " kimg"
    stands = "finished" if total and images >= total else "not training now"
    now = {True: "training now", False: stands, None: "its lock is not readable"}[trains]
    yield "images", f"{images / 1000:g}{of_total}, {now}"
    if speeds := [speed for line in lines if isinstance(speed := line.get("img/s"), int | float) and speed > 0][
        -RECENT:
    ]:
        speed = sum(speeds) / len(speeds)
        left = f", {_duration((total - images) / speed)} left" if images < total else ""
        yield "speed", f"{speed:.3g} img/s{left if trains else ''}"
    if newest.get("seconds/step") and "seconds/data" in newest:
        step, data = newest["seconds/step"], newest["seconds/data"]
        yield "data wait", f"{data / step:.1%} of a step of {step:.3g} s"
    if "memory/peak GiB" in newest:
        yield "memory", f"{newest['memory/peak GiB']:.3g} GiB at most"
    if losses := [f"{k[5:]} {v:.4g}" for k, v in sorted(newest.items()) if k.startswith("loss/")]:
        yield "losses", ", ".join(losses)
    if norms := [f"{name} {newest[key]:.3g}" for name in "DG" if (key := f"gradients/{name} norm") in newest]:
        yield "gradients", f"norms {', '.join(norms)}; not finite {_not_finite(lines, training.get('batch'))}"
    if "augment/p" in newest:
        yield "augment", f"p {newest['augment/p']:.3f}"
    for title, pattern in ("snapshot", "generator-*.safetensors"), ("state", "state-*.pt"):
        if files := _numbered(folder, pattern):
            file = files[max(files)]
            yield title, f"{file.name}, {_duration(time.time() - _written(file))} old"
    yield from _measures(measured)
    yield from _starts(read_starts(folder))
    if trains is False and images < total and environment.get("command"):
        yield "to resume", command_to_resume(environment["command"], folder, environment.get("launcher", "python"))


def _starts(starts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """How often a run was started, and the last starts that changed settings."""
    if starts:
        times = "once, on" if len(starts) == 1 else f"{len(starts)} times, last on"
        yield "started", f"{times} {starts[-1]['time']} at {starts[-1]['kimg']:g} kimg"
    changing = [start for start in starts if start["changed"]]
    for number, start in enumerate(changing[-STARTS_SHOWN:]):
        changes = (f"{name}: {old} -> {new}" for name, (old, new) in start["changed"].items())
        yield "" if number else "changed", f"at {start['kimg']:g} kimg: {'; '.join(changes)}"


def _measures(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """First, best and newest values of the measures in the last line of ``metrics.jsonl``, or the only ones."""
    for number, name in enumerate(lines[-1]["results"] if lines else ()):
        found = [(line["results"][name], line["kimg"]) for line in lines if name in line["results"]]
        first, last = found[0][0], found[-1][0]
        better = last.get("better") or parse_metric(name).kind.better  # results have it since format 3
        best, kimg = min(found, key=lambda pair: distance_from_best(pair[0]["value"], better))
        if len(found) == 1:
            text = f"{last['value']:.4g} at {kimg:g} kimg, measured once"
        else:
            text = f"{first['value']:.4g} -> {best['value']:.4g} (at {kimg:g} kimg) -> {last['value']:.4g}"
        yield "" if number else "measures", f"{name:<18}{text}"
        if last.get("octaves"):
            before = "" if len(found) == 1 else f"{_listed(first.get('octaves') or ())} -> "
            yield "", f"  {'by octave':<16}{before}{_listed(last['octaves'])}"


def _listed(values: Sequence[float | None]) -> str:
    return " ".join("-" if value is None else f"{value:.3g}" for value in values)


def _measure_lines(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Lines of measures in the form of lines of statistics, by octave where possible."""
    for line in lines:
        values = {MEASURE + name: result.get("octaves") or result["value"] for name, result in line["results"].items()}
        yield {"kimg": line["kimg"], **values}


def _not_finite(lines: Sequence[dict[str, Any]], batch: int | None) -> str:
    """Elements of gradients, counted over the run; lines hold a step's mean."""
    counts = []
    for name in "DG":
        found = _series(lines, f"gradients/{name} not finite")
        if found is not None:
            kimg, values = found[0], found[1][:, 0]
            steps = np.median(np.diff(kimg, prepend=0)) * 1000 / batch if batch else 1
            last = f" (last at {kimg[values > 0][-1]:g} kimg)" if (values > 0).any() else ""
            counts.append(f"{name} {round(np.nansum(values) * steps)}{last}")
    return ", ".join(counts) or "unknown"


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """kimg [n] and values [n, octaves] (one column for plain numbers; NaN for null) of the lines that have the key."""
    rows = [(line["kimg"], line[key]) for line in lines if line.get(key) is not None]
    if not rows:
        return None
    listed = [row if isinstance(row, list) else [row] for _, row in rows]
    width = max(len(row) for row in listed)
    values = np.array([row + [None] * (width - len(row)) for row in listed], dtype=float)
    return (np.array([kimg for kimg, _ in rows]), values) if np.isfinite(values).any() else None


def _read(path: Path) -> dict[str, Any]:
    """A YAML or JSON file's mapping; empty if there is none."""
    if not path.exists():
        return {}
    text = read_text(path, "the run's")
    parse = from_json if path.suffix == ".json" else from_yaml
    values = parsed(lambda: parse(text), f"Cannot read {path}: {{reason}}.")
    return values if isinstance(values, dict) else {}


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Files by the images in their names."""
    return {int(m[1]): path for path in folder.glob(pattern) if (m := re.search(r"-(\d+)\.\w+$", path.name))}


def _written(path: Path) -> float:
    """When a file was last written, or the last of a run's files; 0 if it has just gone."""
    times = []
    for file in [path / name for name in RUN_FILES] if path.is_dir() else [path]:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def _duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 5 min``, ``2 d 7 h``."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@dataclass(frozen=True)
class Panel:
    """Curves over kimg; keys of lists have a curve for each octave."""

    title: str
    keys: tuple[str, ...]
    kind: Literal["curves", "stacked", "points"] = "curves"
    scale: Literal["linear", "log"] = "linear"

    def is_in(self, lines: Sequence[dict[str, Any]]) -> bool:
        """Whether there is anything to draw."""
        return any(self._drawable(lines, key) is not None for key in self.keys)

    def _drawable(self, lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray] | None:
        found = _series(lines, key)
        if found is None or self.scale == "linear":
            return found
        positive = np.where(found[1] > 0, found[1], np.nan)
        return (found[0], positive) if np.isfinite(positive).any() else None

    def draw(self, axes: Axes, lines: Sequence[dict[str, Any]]) -> None:
        """Draw the curves, and their names beside the panel's title."""
        for i, key in enumerate(self.keys):
            found = self._drawable(lines, key)
            if found is None:
                continue
            kimg, values = found
            name = re.sub(r"^(loss|logits|gradients|augment)/| (norm|by octave)$", "", key)
            if self.kind == "stacked" or values.shape[1] > 1:
                self._octaves(axes, kimg, values, "--" if i else "-")
            elif self.kind == "points":
                known = np.isfinite(values[:, 0])
                axes.plot(kimg[known], values[known, 0], "o-", ms=3, lw=1.2, color=COLOURS[i])
            else:
                axes.plot(kimg, values[:, 0], lw=0.6, alpha=0.3, color=COLOURS[i])
                label = name if len(self.keys) > 1 else None
                axes.plot(kimg, _smooth(values[:, 0]), lw=1.5, color=COLOURS[i], label=label)

    def _octaves(self, axes: Axes, kimg: np.ndarray, values: np.ndarray, style: str) -> None:
        from matplotlib import colormaps

        colours = colormaps["viridis"](np.linspace(0, 0.9, values.shape[1]))  # from coarse (dark) to fine
        labels = [f"octave {i}" if i == 0 else str(i) for i in range(len(colours))]
        if self.kind == "stacked":
            axes.stackplot(kimg, np.nan_to_num(values.T), colors=list(colours), labels=labels)
            axes.set_ylim(0, 1)
            return
        for curve, colour, label in zip(values.T, colours, labels, strict=True):
            if self.kind == "points":
                known = np.isfinite(curve)
                axes.plot(kimg[known], curve[known], "o-", ms=3, lw=1.2, color=colour, label=label)
            else:
                axes.plot(kimg, _smooth(curve), style, lw=1.2, color=colour, label=label if style == "-" else None)


PANELS = (
    Panel("losses", ("loss/D", "loss/G")),
    Panel("r1 penalty and consistency", ("loss/r1", "loss/consistency"), scale="log"),
    Panel("D's logits", ("logits/real", "logits/fake")),
    Panel("D's logits by octave, fake dashed", ("logits/real by octave", "logits/fake by octave")),
    Panel("gradient norms", ("gradients/D norm", "gradients/G norm"), scale="log"),
    Panel("octave mix", ("octave mix",), "stacked"),
    Panel("augmentation p", ("augment/p",)),
    Panel("speed, img/s", ("img/s",)),
)


def _panels(lines: Sequence[dict[str, Any]]) -> list[Panel]:
    """Panels with something to draw: statistics, and one for each measure."""
    measures = dict.fromkeys(key for line in lines for key in line if key.startswith(MEASURE))
    every = [*PANELS, *(Panel(key.removeprefix(MEASURE), (key,), "points", _scale(lines, key)) for key in measures)]
    return [panel for panel in every if panel.is_in(lines)]


def _scale(lines: Sequence[dict[str, Any]], key: str) -> Literal["linear", "log"]:
    """Logarithmic for what is positive and changes much."""
    found = _series(lines, key)
    if found is None:
        return "linear"
    low, high = np.nanmin(found[1]), np.nanmax(found[1])
    return "log" if 0 < low < high / 3 else "linear"


def save_plot(path: Path, lines: Sequence[dict[str, Any]], title: str) -> None:
    """Draw what the lines of statistics hold, a panel each, over kimg.

    Args:
        path: Of the PNG.
        lines: As of ``read_stats``, and measures beside them.
        title: Above all panels.

    Raises:
        UserError: the file cannot be written.
    """
    drawn = _panels(lines)
    figure, grid = panels(len(drawn), columns=2, width=6.5, height=2.5, share_x=True)
    for panel, axes in zip(drawn, grid, strict=True):
        panel.draw(axes, lines)
        _finish(axes, panel)
    for axes in grid[-2:]:
        axes.set_xlabel("kimg", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    with atomic_write(path) as stream:
        stream.write(as_png(figure))


def _finish(axes: Axes, panel: Panel) -> None:
    """A panel's title, the names of its curves to the right of that, its scale."""
    from matplotlib.ticker import LogLocator, NullLocator

    put_title(axes, panel.title)
    if axes.get_legend_handles_labels()[0]:
        style = {"ncols": 9, "frameon": False, "fontsize": 8, "handlelength": 1.2, "columnspacing": 1.0}
        axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.985), **style)
    if panel.scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = (1, 2, 3, 4, 6, 8) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.01)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a thirtieth of all lines; NaN stays out of it."""
    window = np.ones(2 * (len(values) // 60) + 1)
    known = np.isfinite(values)
    total, count = (np.convolve(v, window, "same") for v in (np.where(known, values, 0), known.astype(float)))
    return np.where(known, total / np.maximum(count, 1), np.nan)
