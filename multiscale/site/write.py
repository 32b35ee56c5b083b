"""``zoom.py --export``: a folder of static files that renders the model in a browser, or shows tiles of one world."""

from __future__ import annotations

import html
import json
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import torch

from dnnlib.errors import cannot_write
from dnnlib.files import atomic_write, new_temporary_folder
from dnnlib.progress import progress_bar
from multiscale.networks import packets
from multiscale.networks.generator import Generator
from multiscale.networks.plan import BAND_LIMIT
from multiscale.rendering.pyramid import OVERLAP_PX, Pyramid, write_deep_zoom
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.worlds import World
from multiscale.runs.folder import CONFIG
from multiscale.runs.snapshots import Snapshot, load_snapshot
from multiscale.site.onnx_export import export_graphs, onnx_package, points_of
from multiscale.site.packages import RUNTIME, VIEWER, Package, copy_from
from multiscale.site.place import FACTS, FORMAT, check_place, made
from multiscale.site.weights import deflated, rounded, take_out
from torch_utils.devices import default_device

NUMBERED = re.compile(r"generator-\d+")
"""Names of a run's snapshots, which say nothing of the model."""
TITLE_LENGTH = 200
"""Characters of a title that a file gives."""
FILE_NAME_LENGTH = 60
STATIC = Path(__file__).parent / "static"
SHARED = Path(__file__).parents[1] / "explorer" / "static"
PAGE = ("site.css", "check.js", "main.js", "refine.js", "worker.js", "model.js", "waves.js", "random.js")
SHARED_PAGE = ("base.css", "icon.svg", "address.js", "gestures.js", "idle.js", "motion.js", "view.js", "worlds.js")
RUNTIME_FILES = ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")
VIEWER_FILES = ("build/openseadragon/openseadragon.min.js", "build/openseadragon/images/", "LICENSE.txt")


def export_site(network: Path, folder: Path, *, title: str | None = None) -> Path:
    """Write a page that renders the model itself.

    Args:
        network: The file.
        folder: New, empty, or an earlier export, which is replaced.
        title: Of the page; None: :func:`title_of`.

    Returns:
        The folder.

    Raises:
        UserError: the network cannot be read or exported, npm cannot get the runtime, or the folder holds
            anything else.
    """
    replaces = check_place(folder)
    snapshot = load_snapshot(network)
    return made(folder, lambda place: _write_model(place, snapshot, title or title_of(snapshot)), replaces=replaces)


def zip_site(network: Path, folder: Path) -> Path:
    """Write the page of a network file as a ZIP that is called after the page's title, as is the one folder in it.

    Args:
        network: A snapshot's file.
        folder: Where to write the ZIP; made if it is not there.

    Returns:
        The ZIP.

    Raises:
        UserError: as :func:`export_site`.
    """
    snapshot = load_snapshot(network)
    title = title_of(snapshot)
    target = folder / f"{file_name_of(title)}.zip"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = new_temporary_folder(target.name, folder)
        try:
            _write_model(place, snapshot, title)
            with atomic_write(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(place.rglob("*")):
                    archive.write(path, Path(target.stem, path.relative_to(place)))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def export_tiles(network: Path, folder: Path, world: World, *, title: str | None = None) -> Path:
    """Write a page with one world as Deep Zoom tiles, for machines that cannot compute; arguments as :func:`export_site`."""
    replaces = check_place(folder)
    snapshot = load_snapshot(network)
    return made(
        folder, lambda place: _write_tiles(place, snapshot, world, title or title_of(snapshot)), replaces=replaces
    )


def title_of(snapshot: Snapshot) -> str:
    """What to call the page of a model: ``title`` in its metadata, or the name of the data it was trained on, of its run's
    folder, or of its file, in words."""
    title, data, path = snapshot.info.get("title"), snapshot.info.get("data"), snapshot.path.absolute()
    if isinstance(title, str) and title.strip():
        return title.strip()[:TITLE_LENGTH]
    if isinstance(data, str) and Path(data).stem:
        name = Path(data).stem
    elif NUMBERED.fullmatch(path.stem) and (path.parent / CONFIG).is_file():
        name = re.sub(r"^\d{5}-", "", path.parent.name)
    else:
        name = path.stem
    words = " ".join(re.split(r"[-_\s]+", name)).strip()[:TITLE_LENGTH]
    return words[:1].upper() + words[1:] or "A world"


def file_name_of(title: str) -> str:
    """A title as the name of a file that any system and any HTTP header takes: ``"The Moon & its craters"`` is
    ``the-moon-its-craters``; ``world`` if no Latin letter or digit is in it."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:FILE_NAME_LENGTH].strip("-") or "world"


def _write_model(folder: Path, snapshot: Snapshot, title: str) -> None:
    onnx_package()  # first, as the runtime: without them the minutes that rounding may take are in vain
    copy_from(RUNTIME, RUNTIME_FILES, folder / "runtime")
    generator = snapshot.generator
    config, points = generator.config, points_of(generator)
    less = rounded(generator)
    models = export_graphs(less.generator)
    shapes, weights = take_out(models, less.steps)
    rows = [torch.cat([p.omega, p.phase[:, None], p.bins[:, None].float()], dim=1) for p in points]
    parts = {
        **weights,
        "waves": torch.cat(rows).numpy().astype("<f4").tobytes(),
        "mapping": models[0].SerializeToString(),
        "synthesis": models[1].SerializeToString(),
    }
    if config.world_frame:
        parts["frame"] = _frame(less.generator).tobytes()
    parts = {part: deflated(content) for part, content in parts.items()}
    (folder / "model.bin").write_bytes(b"".join(parts.values()))
    facts = {
        "format": FORMAT,
        "title": title,
        "licence": snapshot.info.get("licence"),
        "provenance": provenance(snapshot),
        "parts": {part: len(content) for part, content in parts.items()},
        "levels": round(less.levels, 3),
        "shapes": shapes,
        "resolution": config.img_resolution,
        "octaves": config.octaves,
        "layers": len(generator.plan.layers),
        "z_dim": config.z_dim,
        "w_dim": config.w_dim,
        "step": generator.plan.step,
        "halo": Renderer(generator, torch.device("cpu")).halo,
        "bin_offset": config.bin_offset,
        "blend_offset": config.blend_offset,
        "blend_width": config.blend_width,
        "band_limit": None if config.published_geometry else BAND_LIMIT,
        "packets": {
            "bandwidth": config.feature_bandwidth,
            "anchor": config.feature_anchor,
            "terms": points[0].terms,
            "slowest": packets.SLOWEST,
            "fastest": packets.FASTEST,
            "fade": packets.FADE,
        },
        "points": [
            {"size": p.size, "rate": p.rate, "waves": len(p.omega), "unit": p.unit, "shift_gain": p.shift_gain}
            for p in points
        ],
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    for source, files in ((STATIC, PAGE), (SHARED, SHARED_PAGE)):
        for file in files:
            shutil.copyfile(source / file, folder / file)
    shutil.copyfile(STATIC / "onnxruntime-LICENSE.txt", folder / "runtime/LICENSE.txt")  # its package has none
    _write_page(folder, "page.html", title, _write_licences(folder, snapshot, "runtime", RUNTIME))


def _frame(generator: Generator) -> np.ndarray:
    """What turns a world's first w, and a 1 behind it, into its frame before that is normalised: float64 [4, D + 1]."""
    layer = generator.synthesis.frame
    assert layer is not None
    weight, bias = (parameter.detach().double() for parameter in (layer.weight, layer.bias))
    return torch.cat([weight * layer.weight_gain, bias[:, None] * layer.bias_gain], dim=1).numpy().astype("<f8")


def _write_tiles(folder: Path, snapshot: Snapshot, world: World, title: str) -> None:
    renderer = Renderer(snapshot.generator, default_device())
    pyramid = Pyramid(renderer, world)
    copy_from(VIEWER, VIEWER_FILES, folder / "viewer")
    with progress_bar(total=pyramid.tiles, unit="tile", desc="tiles") as bar:
        write_deep_zoom(folder / "world.dzi", pyramid, {"world": str(world), **provenance(snapshot)}, bar.update)
    parts = [path.read_text(encoding="utf-8") for path in (SHARED / "idle.js", STATIC / "tiles.js")]
    # One script, and no module: a page that is opened from a file may not import.
    (folder / "tiles.js").write_text("\n".join(parts).replace("export function", "function"), encoding="utf-8")
    for file in ("base.css", "icon.svg"):
        shutil.copyfile(SHARED / file, folder / file)
    _write_page(folder, "tiles.html", title, _write_licences(folder, snapshot, "viewer", VIEWER))
    facts = {
        "format": FORMAT,
        "title": title,
        "world": str(world),
        "licence": snapshot.info.get("licence"),
        **provenance(snapshot),
    }
    facts |= {"side": pyramid.side, "tile": pyramid.tile_px, "overlap": OVERLAP_PX}
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    # The same as a script: a page that is opened from a file may not fetch.
    (folder / "facts.js").write_text(f"window.facts = {json.dumps(facts)};\n", encoding="utf-8")


def _write_page(folder: Path, template: str, title: str, licences: str) -> None:
    """The page itself, with its title where its source says TITLE, and what is under which licence where it says LICENCES."""
    source, texts = (STATIC / template).read_text(encoding="utf-8"), {"TITLE": title, "LICENCES": licences}
    page = re.sub("|".join(texts), lambda match: html.escape(texts[match[0]]), source)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _write_licences(folder: Path, snapshot: Snapshot, place: str, package: Package) -> str:
    """Say in ``LICENCES.txt`` what is under which licence; returns that."""
    weights = snapshot.info.get("licence") or "none is named in its file; ask who made it"
    lines = [
        f"{place}/: {package.name} {package.version}, {package.licence}; the text is in {place}/LICENSE.txt.",
        "Other files of the page: multiscale-gan, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0).",
        f"The model and its pictures: {weights}.",
    ]
    text = "\n".join(lines) + "\n"
    (folder / "LICENCES.txt").write_text(text, encoding="utf-8")
    return text
