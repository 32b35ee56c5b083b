"""What is given away of a run: its newest snapshot, a strip of a world, its settings and measures, and a card of all these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from dnnlib.errors import UserError, shown
from dnnlib.files import atomic_copy, atomic_folder, atomic_write, check_writable
from multiscale.rendering.files import save_picture
from multiscale.rendering.renderer import Renderer, provenance
from multiscale.rendering.sheets import zoom_strip
from multiscale.rendering.worlds import World
from multiscale.runs.folder import CONFIG
from multiscale.runs.headers import is_published
from multiscale.runs.journal import read_metrics
from multiscale.runs.snapshots import Snapshot, load_snapshot, save_snapshot
from torch_utils.devices import default_device

CARD, STRIP = "README.md", "strip.png"
SHOWN_CENTRE = (0.1, -0.07)


def write_share(network: Path, folder: Path, name: str, *, seed: int, licence: str | None) -> list[Path]:
    """Write what is given away into a folder of its own.

    Args:
        network: The file.
        folder: Empty, or not there.
        name: What others will type, such as ``hf://owner/repo``.
        seed: The world that the card shows.
        licence: Of the weights, as the hub writes it, such as ``cc-by-4.0``; None: what the snapshot says, else none is named.

    Returns:
        The files.

    Raises:
        UserError: the network cannot be read or states another licence; the folder holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; give one that is, or a new name.")
    check_writable(folder, folder="replaced")
    with atomic_folder(folder) as place:
        return [folder / file for file in _write(place, network, name, seed=seed, licence=licence)]


def _write(folder: Path, network: Path, name: str, *, seed: int, licence: str | None) -> list[str]:
    """The files of :func:`write_share`, by their names."""
    snapshot = load_snapshot(network)
    stated = str(snapshot.info.get("licence") or "")
    if licence is not None and stated and re.sub(r"[\s_-]+", "-", stated.lower()) != licence:
        raise UserError(
            f"{network} states the licence {shown(stated)}, and --licence {licence} is another; leave --licence out, or have a "
            f"new file state it: python -m multiscale.cli.pack {network} NEW.safetensors --info licence={licence}."
        )
    renderer = Renderer(snapshot.generator, default_device())
    weights = folder / f"{network.stem}.safetensors"
    if is_published(network):
        save_snapshot(weights, snapshot.generator, snapshot.info)
    else:
        atomic_copy(network, weights)
    world = World.parse(seed)
    save_picture(
        folder / STRIP,
        zoom_strip(renderer, world, SHOWN_CENTRE),
        {"world": str(world), "centre": SHOWN_CENTRE, **provenance(snapshot)},
    )
    files = [weights, folder / STRIP]
    if (network.parent / CONFIG).is_file():
        atomic_copy(network.parent / CONFIG, folder / CONFIG)
        files.append(folder / CONFIG)
    measured = measures_in(snapshot.info) | measures_of(network.parent, snapshot.kimg)
    with atomic_write(folder / CARD, "w") as stream:
        stream.write(
            card(snapshot, weights.name, name, measured, seed=seed, licence=licence, has_config=len(files) > 2)
        )
    return [file.name for file in (*files, folder / CARD)]


def measures_in(info: Mapping[str, Any]) -> dict[str, float]:
    """Values of the measures that a packed snapshot says of itself, by name."""
    found = info.get("measures")
    results = (
        {name: r.get("value") for name, r in found.items() if isinstance(r, Mapping)}
        if isinstance(found, Mapping)
        else {}
    )
    return {name: value for name, value in results.items() if isinstance(value, int | float)}


def measures_of(run: Path, kimg: Any) -> dict[str, float]:
    """Values of the measures that a run's folder has of the snapshot of ``kimg``, by name."""
    lines = [line for line in read_metrics(run) if kimg is not None and line.get("kimg") == kimg]
    return {name: result["value"] for line in lines for name, result in line["results"].items()}


def card(
    snapshot: Snapshot,
    file: str,
    name: str,
    measured: Mapping[str, float],
    *,
    seed: int,
    licence: str | None,
    has_config: bool,
) -> str:
    """The model card: Markdown with the hub's YAML on top."""
    config, info = snapshot.generator.config, snapshot.info
    facts: dict[str, Any] = {"library_name": "multiscale-gan", "pipeline_tag": "unconditional-image-generation"}
    facts["tags"] = ["gan", "multiscale", "zoom", "image-generation"]
    given = info.get("licence") if licence is None else licence
    if licence is not None:
        facts["license"] = licence
    elif given is not None:
        facts |= {"license": "other", "license_name": str(given)}
    parameters = sum(p.numel() for p in snapshot.generator.parameters())
    rows = {
        "patches": f"{config.img_resolution} x {config.img_resolution} pixels, {'RGB' if config.img_channels == 3 else 'grey'}",
        "zoom": f"1x to {2**config.octaves}x ({config.octaves} octaves)",
        "parameters": f"{parameters:,}",
    }
    if snapshot.kimg is not None:
        rows["trained on"] = f"{snapshot.kimg:g} thousand images"
    rows |= {key: str(info[key]) for key in ("data",) if isinstance(info.get(key), str)}
    if isinstance(source := info.get("source"), Mapping):
        rows["made from"] = f"{source.get('file')} ({source.get('format')}), SHA-256 `{source.get('sha256')}`"
    rows["licence of the weights"] = str(given) if given is not None else "not named"
    if info.get("credit"):
        rows["credit"] = " ".join(str(info["credit"]).replace("|", "\\|").split())
    rows["SHA-256"] = f"`{snapshot.digest}`" if not info.get("source") else "see the file's page"
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    values = "".join(f"| {measure} | {value:.4g} |\n" for measure, value in measured.items())
    measures = f"\n## Measures\n\n| measure | value |\n|---|---|\n{values}" if measured else ""
    side, zoom = config.img_resolution, 2**config.octaves
    title = " ".join(str(info.get("title") or name.rpartition("/")[2].partition("@")[0]).split())
    settings = f"\n[`{CONFIG}`]({CONFIG}) has all settings of its training.\n" if has_config else ""
    return f"""---
{yaml.safe_dump(facts, sort_keys=False).strip()}
---

# {title}

Worlds to fly through, of {side} x {side} pixels a view and up to {zoom}x zoom. Below: seed {seed}, each view outlined in
the one before.

![One world, from 1x to {zoom}x]({STRIP})

With multiscale-gan and huggingface_hub installed:

```
multiscale-zoom --network {name}
```

```python
import multiscale

world = multiscale.load("{name}").world(seed={seed})
world.view(scale={zoom // 2}, centre={SHOWN_CENTRE}).save("view.png")
```

| | |
|---|---|
{table}

[`{file}`]({quote(file)}) describes itself and runs no code when it is loaded.
{settings}{measures}"""
