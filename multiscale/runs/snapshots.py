"""Snapshots: self-describing safetensors files (weights, config, format version) that run no code when loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dnnlib.errors import UserError, shown
from dnnlib.files import atomic_write, sha256
from dnnlib.reading import from_json, parsed, regular_size
from multiscale.config import GeneratorConfig, to_dict
from multiscale.networks.generator import Generator
from multiscale.runs.stored import FORMAT_VERSION, check_version, read_stored

FORMAT = "multiscale-generator"
PATTERN = "generator-*.safetensors"

BUNDLED = Path(__file__).parent / "bundled" / "earth64.safetensors"
"""The bundled model, trained on the Earth (docs/lab/earth64.md): 64 x 64 pixels, 6 octaves; parameters in half precision,
training settings in its metadata."""


@dataclass(frozen=True)
class Snapshot:
    """A generator read from disk."""

    generator: Generator
    """On the CPU, float32, in evaluation mode, its running means as saved."""
    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    info: dict[str, Any]
    """Facts saved beside the weights, such as ``kimg``."""


def save_snapshot(path: str | Path, generator: Generator, info: Mapping[str, Any]) -> None:
    """Write the generator atomically.

    Args:
        path: Where to; missing folders are made.
        generator: Usually the averaged one.
        info: Further facts, JSON values; kept in the file's metadata.

    Raises:
        UserError: the file cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(to_dict(generator.config)),
        "info": json.dumps(dict(info)),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    with atomic_write(path) as stream:
        stream.write(safetensors.torch.save(tensors, metadata))


def load_snapshot(path: str | Path) -> Snapshot:
    """Read a snapshot; nothing in the file is executed.

    Raises:
        UserError: the file is missing, truncated, not ours, of a newer format, or its tensors do not fit its config.
    """
    path = Path(path)
    config, weights, info = _read(path, with_weights=True)
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite ({broken[0]}); use an older snapshot of the run.")
    check_shapes(path, config, weights)
    generator = Generator(config)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The tensors of {path} do not fit its config: {reason}.") from error
    return Snapshot(generator.eval().requires_grad_(False), path, sha256(path), info)


def check_shapes(path: Path, config: GeneratorConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights whose shapes do not match the config, before building its network: the config may claim any size."""
    with torch.device("meta"):
        claimed = parsed(lambda: Generator(config).state_dict(), f"The config of {path} makes no network: {{reason}}.")
    shapes = {name: tuple(tensor.shape) for name, tensor in claimed.items()}
    held = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wrong := sorted(name for name in shapes.keys() | held.keys() if shapes.get(name) != held.get(name)):
        raise UserError(
            f"The tensors of {path} do not fit its config ({shown(wrong[0])} and {len(wrong) - 1} others); "
            "use another snapshot of the run."
        )


def read_header(path: Path) -> tuple[GeneratorConfig, dict[str, Any]]:
    """Config and facts of a snapshot, without reading weights.

    Raises:
        UserError: as :func:`load_snapshot`.
    """
    config, _, info = _read(path, with_weights=False)
    return config, info


def _read(path: Path, *, with_weights: bool) -> tuple[GeneratorConfig, dict[str, torch.Tensor], dict[str, Any]]:
    """Config, weights (none unless asked for) and facts."""
    regular_size(path, "the network")

    def read() -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys() if with_weights else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}

    try:
        metadata, weights = parsed(
            read,
            f"{path} is not a whole safetensors file ({{reason}}); it may be truncated: copy it again, or use an older one.",
        )
    except OSError as error:
        raise UserError(f"Cannot read the network {path}: {error.strerror or error}.") from error
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but not a generator of this program; give a {PATTERN} file of a run."
        )
    version = metadata.get("format_version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", version):
        raise UserError(f"{path} does not say which snapshot format it has; its metadata are damaged: use another one.")
    check_version(int(version), kind="snapshot", source=str(path))
    damaged = f"The metadata of {path} are damaged; use another snapshot of the run."
    values, info = parsed(lambda: (from_json(metadata["config"]), dict(from_json(metadata["info"]))), damaged)
    contents = {"config": {"generator": values}, "G_ema": weights}
    config, contents = parsed(lambda: read_stored(contents, version=int(version), source=str(path)), damaged)
    return config.generator, contents["G_ema"], info


def find_network(network: str | Path | None) -> Path:
    """The snapshot file meant by ``--network``: a file, the newest of a run's folder, or (None) of the newest run in ``runs``.

    Without any run it is the bundled model.

    Raises:
        UserError: what was named does not exist or holds no snapshot.
    """
    if network is None:
        found = [path for folder in _subfolders(Path("runs")) for path in snapshots_of(folder)]
        return max(found, key=lambda path: (path.stat().st_mtime, path.name), default=BUNDLED)
    path = Path(network)
    if path.is_dir():
        found = snapshots_of(path)
        if not found:
            raise UserError(f"The folder {path} holds no snapshot ({PATTERN}); give the folder of a run or a file.")
        return found[-1]
    if not path.exists():
        raise UserError(f"There is no network {path}; give the folder of a run or a {PATTERN} file.")
    return path


def snapshots_of(run: Path) -> list[Path]:
    """Snapshot files of a run's folder, oldest first (by images shown)."""
    found = [(int(m[1]), path) for path in run.glob(PATTERN) if (m := re.search(r"-(\d+)\.safetensors$", path.name))]
    return [path for _, path in sorted(found)]


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
