"""The report on measures: a table, one self-contained page, and its plots as PNG files.

Shapes: n patches, C channels, N side in pixels, S octaves, D features.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnnlib.files import atomic_write
from dnnlib.pictures import grid
from dnnlib.reading import each_once
from multiscale.metrics import plots
from multiscale.metrics.frechet import nearest
from multiscale.metrics.measure import Metric, Result, distance_from_best
from multiscale.metrics.pools import Patches
from multiscale.metrics.reals import fixed_order
from multiscale.metrics.scales import NEIGHBOURS_AMONG, Evaluation
from multiscale.rendering.files import encode_png
from multiscale.runs.journal import METRICS, metrics_line, read_metrics

PAGE = "report.html"
PICTURED = 4
"""Number of networks, the last ones, whose patches are shown."""
EXTREMES = 5
"""Best and worst patches of an octave that are shown."""
PAIRS = 3
"""Patches of an octave that are shown beside the real one nearest to them."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1280px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2em 0 .3em; } h3 { font-size: 1em; margin: 1.2em 0 .2em; }
table { border-collapse: collapse; }
td, th { padding: .15em .9em .15em 0; text-align: right; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; } thead th { border-bottom: 1px solid #999; text-align: right; }
thead th:first-child, td.text { text-align: left; } td.best { font-weight: 700; } .scroll { overflow-x: auto; }
img { max-width: 100%; } p { max-width: 60em; } small, .quiet { color: #666; }
"""


@dataclass(frozen=True)
class Measured:
    """A network and its results."""

    label: str
    path: Path
    digest: str
    kimg: float | None
    data: str | None
    """Name of the patches that it was trained on; None: its file does not say."""
    training: str
    """Its length, data and preset, as far as its file and folder say."""
    results: dict[str, Result]
    patches: dict[int, Patches]
    """Those of each octave that pictures are chosen from."""
    seconds: float


@dataclass(frozen=True)
class Neighbours:
    """Generated patches of an octave, ordered by the distance to the nearest real one in features."""

    distance: np.ndarray
    """[n], ascending."""
    fake: np.ndarray
    """Patches uint8 [n, C, N, N] in this order."""
    real: np.ndarray
    """Index in the data set of the real patch nearest to each, [n]."""
    closeness: float
    """Median distance, over the median distance of real patches to the nearest other real one: far below 1 for copies."""


def table_lines(measured: Measured, metrics: Sequence[Metric]) -> Iterator[str]:
    """The results of a network as text."""
    yield f"{measured.label} ({measured.path}), {measured.training}, {measured.seconds:.0f} s"
    for metric in metrics:
        result = measured.results[metric.name]
        octaves = " ".join(f"{value:.4g}" for value in result.get("octaves", ()))
        error = result.get("error")
        deviation = f" +- {error:.2g}" if isinstance(error, float) else ""
        yield f"  {metric.name:<20}{result['value']:>10.5g}{deviation}  ({metric.kind.better} is better)" + (
            f"  by octave {octaves}" if octaves else ""
        )


def trained_apart(measured: Sequence[Measured]) -> str | None:
    """A remark on networks that were not trained on the same data, whose numbers do not compare recipes; None: they were."""
    data = each_once(m.data for m in measured)
    if len(data) < 2:
        return None
    return (
        f"Remark: these networks were trained on different data ({', '.join(d or 'unknown' for d in data)}): their numbers "
        "say how near each is to --data, not which recipe is better."
    )


def write_report(folder: Path, measured: Sequence[Measured], evaluation: Evaluation) -> Path:
    """Write ``report.html``, its plots as PNG files, and ``metrics.jsonl`` with all numbers.

    Args:
        folder: Where to; it is made if need be.
        measured: The networks, at least one.
        evaluation: That measured them.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    facts, dataset = evaluation.facts, evaluation.dataset
    lines = [
        metrics_line(
            m.kimg,
            m.results,
            {**facts, "network": m.path.name, "training": m.training, "sha256": m.digest, "seconds": m.seconds},
        )
        for m in measured
    ]
    with atomic_write(folder / METRICS, "w") as stream:
        stream.writelines(lines)
    sections = list(_sections(measured, evaluation))
    for name, _, _, png in sections:
        with atomic_write(folder / f"{name}.png") as image:
            image.write(png)
    described = {
        "data": f"{dataset.path}: {len(dataset):,} patches of {dataset.resolution} x {dataset.resolution} pixels over "
        f"{dataset.octaves} octaves, SHA-256 {(evaluation.digest or 'unknown')[:16]}",
        "features": _about_features(evaluation),
        "seed": str(evaluation.seed),
        "date": time.strftime("%Y-%m-%d"),
    }
    path = folder / PAGE
    with atomic_write(path, "w") as page:
        page.write(_page(measured, evaluation.metrics, described, sections))
    return path


def neighbours_of(patches: Patches, octave: int, evaluation: Evaluation) -> Neighbours:
    """Generated patches of an octave, those nearest to a real one first."""
    assert evaluation.reals is not None
    indices = fixed_order(evaluation.dataset, octave)[:NEIGHBOURS_AMONG]
    rows = evaluation.reals.rows(indices)
    count = min(len(patches.images), len(patches.bank), evaluation.pictures)
    found, which = (values[:, 0] for values in nearest(patches.bank[:count], rows, 1))
    among = float(np.median(nearest(rows, rows, 2)[0][:, 1])) if len(rows) > 1 else float("nan")
    order = np.argsort(found, kind="stable")
    closeness = float(np.median(found)) / among if among else float("nan")
    return Neighbours(found[order], patches.images[:count][order], indices[which[order]], closeness)


def _sections(measured: Sequence[Measured], evaluation: Evaluation) -> Iterator[tuple[str, str, str, bytes]]:
    """File name, title, explanation and PNG of each picture."""
    networks = {m.label: m.results for m in measured}
    curves = {metric.name: metric.kind.curves for metric in evaluation.metrics}
    if (png := plots.octave_curves(networks, curves)) is not None:
        text = "From coarse to fine; x is the zoom at which an octave begins. The dashes are two halves of the real patches."
        yield "octaves", "By octave", text, png
    for metric in evaluation.metrics:
        if (picture := metric.kind.picture) is not None:
            yield metric.name, picture.title, picture.text, picture.draw(networks, metric.name)
    if (png := plots.training_curves(histories(measured, evaluation.facts))) is not None:
        yield "training", "Over training", "Each measure over thousands of images seen.", png
    for number, m in enumerate(measured[-PICTURED:] if evaluation.pictures else []):
        octaves = range(evaluation.dataset.octaves)
        found = [neighbours_of(m.patches[octave], octave, evaluation) for octave in octaves]
        suffix = f"-{number}" if len(measured) > 1 else ""
        among = f" (of the last {PICTURED} of {len(measured)} networks)" if len(measured) > PICTURED else ""
        text = (
            f"Of {len(found[0].distance)} patches of each octave the {EXTREMES} nearest to any of up to "
            f"{NEIGHBOURS_AMONG:,} real ones (left), and the {EXTREMES} farthest (right), in features{among}."
        )
        yield f"samples{suffix}", f"Best and worst patches: {m.label}", text, _extremes_sheet(found)
        ratios = ", ".join(f"{n.closeness:.2f}" for n in found)
        text = (
            "Generated patches, each with the real one nearest to it on its right; those that come nearest of all. Median "
            f"distance over that of real patches to other real ones, octave by octave: {ratios}. Copies would be far below 1."
        )
        yield f"neighbours{suffix}", f"Nearest real patches: {m.label}", text, _neighbours_sheet(found, evaluation)


def histories(
    measured: Sequence[Measured], facts: Mapping[str, Any]
) -> dict[str, list[tuple[float, Mapping[str, Result]]]]:
    """Results over kimg for each run: those of its own ``metrics.jsonl`` that are comparable, and those found now."""
    runs: dict[Path, dict[float, Mapping[str, Result]]] = {}
    for m in measured:
        if m.kimg is None:
            continue
        folder = m.path.resolve().parent
        if folder not in runs:
            lines = read_metrics(folder)
            runs[folder] = {
                line["kimg"]: line["results"] for line in lines if all(line.get(key) == facts[key] for key in facts)
            }
        runs[folder][m.kimg] = {**runs[folder].get(m.kimg, {}), **m.results}
    return {folder.name: sorted(points.items()) for folder, points in runs.items()}


def _extremes_sheet(found: Sequence[Neighbours]) -> bytes:
    rows = [[_pixels(image) for image in (*n.fake[:EXTREMES], *n.fake[-EXTREMES:])] for n in found]
    half = min(len(rows[0]) // 2, EXTREMES)
    titles = ["nearest"] * half + ["farthest"] * half
    return encode_png(grid(rows, titles, [plots.octave_name(j) for j in range(len(rows))]))


def _neighbours_sheet(found: Sequence[Neighbours], evaluation: Evaluation) -> bytes:
    rows = []
    for n in found:
        real = [evaluation.dataset[int(i)][0] for i in n.real[:PAIRS]]
        rows.append([_pixels(image) for pair in zip(n.fake[:PAIRS], real, strict=True) for image in pair])
    titles = ["generated", "real"] * (len(rows[0]) // 2)
    return encode_png(grid(rows, titles, [plots.octave_name(j) for j in range(len(rows))]))


def _pixels(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 2, 0)


def _about_features(evaluation: Evaluation) -> str:
    if evaluation.reals is None:
        return "none"
    features = evaluation.reals.features
    caution = {
        "random": "a fixed network of random convolutions: it orders models of one data set that differ visibly, "
        "and its values must not be reported as FID or KID",
        "inception": "Inception-v3 of 2015-12-05, with which FID and KID are defined",
        "dinov2": "DINOv2, class token; not comparable with FID or KID of Inception",
    }
    return f"{features.identity}, {features.dimension} numbers a patch; {caution[features.name]}"


def _page(
    measured: Sequence[Measured],
    metrics: Sequence[Metric],
    described: Mapping[str, str],
    sections: Sequence[tuple[str, str, str, bytes]],
) -> str:
    facts = "".join(f"<tr><th>{escape(k)}</th><td class=text>{escape(v)}</td></tr>" for k, v in described.items())
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Measures of {escape(measured[-1].label)}</title><style>{STYLE}</style></head><body>",
        f"<h1>How good {'these models are' if len(measured) > 1 else 'this model is'}, at every scale</h1>",
        f"<table>{facts}</table>",
        f"<h2>Numbers</h2><div class=scroll>{_table(measured, metrics)}</div>",
        f"<h2>Networks</h2><table>{''.join(_network_row(m) for m in measured)}</table>",
        f"<p>{escape(trained_apart(measured) or '')}</p>",
    ]
    for name, title, text, png in sections:
        source = f"data:image/webp;base64,{base64.b64encode(_smaller(png)).decode()}"
        parts.append(
            f"<h2>{escape(title)}</h2><p>{escape(text)}</p><img src='{source}' alt='{escape(title, quote=True)}'>"
            f"<br><small>{escape(name)}.png</small>"
        )
    numbers = json.dumps({m.label: m.results for m in measured}).replace("</", "<\\/")
    parts.append(f"<script type='application/json' id=numbers>{numbers}</script></body></html>\n")
    return "\n".join(parts)


def _smaller(png: bytes) -> bytes:
    """The same pixels as lossless WebP: a third to a half less."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(stream, "webp", lossless=True)
    return stream.getvalue()


def _table(measured: Sequence[Measured], metrics: Sequence[Metric]) -> str:
    """A row for each measure, a column for each network; the best of several stands out."""
    head = "".join(f"<th>{escape(m.label)}</th>" for m in measured)
    rows = [f"<thead><tr><th>measure</th>{head}<th>better</th><th></th></tr></thead>"]
    for metric in metrics:
        values = [m.results[metric.name]["value"] for m in measured]
        best = min(values, key=lambda value: distance_from_best(value, metric.kind.better))
        cells = "".join(
            f"<td{' class=best' if len(values) > 1 and value == best else ''}>{value:.5g}</td>" for value in values
        )
        description = metric.kind.description
        rows.append(
            f"<tr><th>{escape(metric.name)}</th>{cells}<td class=quiet>{metric.kind.better}</td>"
            f"<td class='text quiet'>{escape(description)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _network_row(measured: Measured) -> str:
    return (
        f"<tr><th>{escape(measured.label)}</th><td class=text>{escape(str(measured.path))}</td>"
        f"<td class=text>{escape(measured.training)}</td>"
        f"<td class='text quiet'>SHA-256 {measured.digest[:16]}</td></tr>"
    )
