"""``zoom.py --export``: a folder of static files that renders the model in a browser, or shows tiles of one world."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from dnnlib.files import atomic_write, check_writable, new_temporary_folder
from dnnlib.progress import progress_bar
from dnnlib.reading import from_json, parsed, read_text
from multiscale.networks.plan import BAND_LIMIT
from multiscale.rendering.pyramid import Pyramid, write_deep_zoom
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.worlds import World
from multiscale.runs.snapshots import Snapshot, find_network, load_snapshot
from multiscale.site.onnx_export import export_graphs, points_of
from multiscale.site.packages import RUNTIME, VIEWER, Package, copy_from
from multiscale.site.weights import rounded, take_out, weights_of
from torch_utils.devices import default_device

FORMAT = "multiscale-site"
FACTS = "model.json"
STATIC = Path(__file__).parent / "static"
SHARED = Path(__file__).parents[1] / "explorer" / "static"
PAGE = ("index.html", "site.css", "check.js", "main.js", "worker.js", "model.js", "waves.js", "random.js")
SHARED_PAGE = ("address.js", "view.js", "worlds.js")
RUNTIME_FILES = ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")
VIEWER_FILES = ("build/openseadragon/openseadragon.min.js", "build/openseadragon/images/", "LICENSE.txt")


def export_site(network: str | None, folder: Path, *, name: str | None = None) -> Path:
    """Write a page that renders the model itself.

    Args:
        network: What ``--network`` takes.
        folder: New, empty, or an earlier export, which is replaced.
        name: Of the model, as the page shows it; None: of its file.

    Returns:
        The folder.

    Raises:
        UserError: there is no such network, it cannot be exported, npm cannot get the runtime, or the folder holds
            anything else.
    """
    _check_place(folder)
    snapshot = load_snapshot(find_network(network))
    return _replaced(folder, lambda place: _write_model(place, snapshot, name or snapshot.path.stem))


def zip_site(network: Path, target: Path) -> Path:
    """Write the page of a network file as a ZIP, with one folder in it; arguments, result and errors as :func:`export_site`."""
    snapshot = load_snapshot(network)
    try:
        place = new_temporary_folder(target.name, target.parent)
        try:
            _write_model(place, snapshot, network.stem)
            with atomic_write(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(place.rglob("*")):
                    archive.write(path, Path(network.stem, path.relative_to(place)))
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror or error}.") from error
    return target


def export_tiles(network: str | None, folder: Path, world: World) -> Path:
    """Write a page with one world as Deep Zoom tiles, for machines that cannot compute; arguments as :func:`export_site`."""
    _check_place(folder)
    snapshot = load_snapshot(find_network(network))
    return _replaced(folder, lambda place: _write_tiles(place, snapshot, world))


def _replaced(folder: Path, write: Callable[[Path], None]) -> Path:
    """Have a folder written beside its place and moved there when it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = new_temporary_folder(folder.name, folder.parent)  # for this user alone
        try:
            whole = place / "whole"
            whole.mkdir()  # with the mode that the system gives a new folder
            write(whole)
            if folder.exists():
                before = new_temporary_folder(folder.name, folder.parent)
                os.replace(folder, before / "before")
                os.replace(whole, folder)
                shutil.rmtree(before, ignore_errors=True)
            else:
                os.replace(whole, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return folder


def _check_place(folder: Path) -> None:
    """UserError if the folder holds what is not ours to replace, or cannot be written."""
    check_writable(folder, folder="replaced")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    facts: Any = None
    if folder.is_dir() and (folder / FACTS).is_file():
        facts = parsed(lambda: from_json(read_text(folder / FACTS, "the facts")), f"{folder / FACTS} cannot be read.")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{folder} holds something else than an earlier export; give an empty folder, or a new name.")


def _write_model(folder: Path, snapshot: Snapshot, name: str) -> None:
    generator = snapshot.generator
    config, points = generator.config, points_of(generator)
    less = rounded(generator)
    models = export_graphs(less.generator)
    shapes, weights = take_out(models, weights_of(generator), less.bits)
    rows = [torch.cat([p.omega, p.phase[:, None], p.bins[:, None].float()], dim=1) for p in points]
    parts = {
        "weights": weights,
        "waves": torch.cat(rows).numpy().astype("<f4").tobytes(),
        "mapping": models[0].SerializeToString(),
        "synthesis": models[1].SerializeToString(),
    }
    (folder / "model.bin").write_bytes(gzip.compress(b"".join(parts.values()), mtime=0))
    facts = {
        "format": FORMAT,
        "name": name,
        "licence": snapshot.info.get("licence"),
        "provenance": provenance(snapshot),
        "parts": {part: len(content) for part, content in parts.items()},
        "bits": less.bits,
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
        "points": [
            {"size": p.size, "rate": p.rate, "waves": len(p.omega), "unit": p.unit, "shift_gain": p.shift_gain}
            for p in points
        ],
    }
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    for source, files in ((STATIC, PAGE), (SHARED, SHARED_PAGE)):
        for file in files:
            shutil.copyfile(source / file, folder / file)
    copy_from(RUNTIME, RUNTIME_FILES, folder / "runtime")
    shutil.copyfile(STATIC / "onnxruntime-LICENSE.txt", folder / "runtime/LICENSE.txt")  # its package has none
    _write_licences(folder, snapshot, "runtime", RUNTIME)


def _write_tiles(folder: Path, snapshot: Snapshot, world: World) -> None:
    renderer = Renderer(snapshot.generator, default_device())
    pyramid = Pyramid(renderer, world)
    copy_from(VIEWER, VIEWER_FILES, folder / "viewer")
    with progress_bar(total=len(pyramid.addresses()), unit="tile", desc=folder.name) as bar:
        write_deep_zoom(folder / "world.dzi", pyramid, {"world": str(world), **provenance(snapshot)}, bar.update)
    shutil.copyfile(STATIC / "tiles.html", folder / "index.html")
    shutil.copyfile(STATIC / "tiles.js", folder / "tiles.js")
    _write_licences(folder, snapshot, "viewer", VIEWER)
    facts = {"format": FORMAT, "world": str(world), "licence": snapshot.info.get("licence"), **provenance(snapshot)}
    facts |= {"side": pyramid.side, "tile": pyramid.tile_px}
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    # The same as a script: a page that is opened from a file may not fetch.
    (folder / "facts.js").write_text(f"window.facts = {json.dumps(facts)};\n", encoding="utf-8")


def _write_licences(folder: Path, snapshot: Snapshot, place: str, package: Package) -> None:
    """Say in ``LICENCES.txt`` what is under which licence."""
    weights = snapshot.info.get("licence") or "none is named in its file; ask who made it"
    lines = [
        f"{place}/: {package.name} {package.version}, {package.licence}; the text is in {place}/LICENSE.txt.",
        "Other files of the page: multiscale-gan, Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0).",
        f"The model and its pictures: {weights}.",
    ]
    (folder / "LICENCES.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
