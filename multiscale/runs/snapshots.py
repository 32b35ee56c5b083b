"""Snapshots: self-describing safetensors files (weights, config, format version) that run no code when loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dnnlib.errors import UserError, shown
from dnnlib.files import atomic_write
from dnnlib.reading import parsed
from multiscale.config import GeneratorConfig, to_dict
from multiscale.interop.pickles import load_published
from multiscale.networks.generator import Generator
from multiscale.networks.plan import least_weights
from multiscale.runs.headers import CHECKSUM, DAMAGED, FORMAT, is_published, kimg_in, opened
from multiscale.runs.migrations import FORMAT_VERSION


@dataclass(frozen=True)
class Snapshot:
    """A generator read from disk."""

    generator: Generator
    """On the CPU, float32, in evaluation mode, its running means as saved."""
    path: Path
    digest: str
    """SHA-256 of the bytes that were read, hexadecimal."""
    info: dict[str, Any]
    """Facts saved beside the weights, such as ``kimg``."""

    @property
    def kimg(self) -> float | None:
        """Thousands of images that it was trained with; None if it does not say."""
        return kimg_in(self.info)


def save_snapshot(path: str | Path, generator: Generator, info: Mapping[str, Any]) -> None:
    """Write the generator atomically.

    Args:
        path: Where to; missing folders are made.
        generator: Usually the averaged one.
        info: Further facts, JSON values; kept in the file's metadata.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(to_dict(generator.config)),
        "info": json.dumps(dict(info)),
        CHECKSUM: checksum(tensors),
    }
    with atomic_write(path) as stream:
        stream.write(safetensors.torch.save(tensors, metadata))


def load_snapshot(path: str | Path) -> Snapshot:
    """Read a snapshot, or a pickle of the published code (``.pkl``); nothing in the file is executed.

    Raises:
        UserError: the file is missing, truncated, damaged, not ours, of a newer format, or its tensors do not fit its config.
    """
    path = Path(path)
    if is_published(path):
        published = load_published(path)
        return Snapshot(published.generator.requires_grad_(False), path, published.digest, published.info)
    with opened(path) as file:
        data = file.whole()
    weights = parsed(lambda: safetensors.torch.load(data), DAMAGED.replace("{path}", str(path)))
    if file.checksum is not None and checksum(weights) != file.checksum:
        raise UserError(
            f"{path} is damaged: its weights are not those that were saved (SHA-256); get it anew from where "
            "it came from, or use another snapshot of the run."
        )
    config, weights = file.meaning(weights)
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite ({broken[0]}); use an older snapshot of the run.")
    generator = parsed(lambda: _built(path, config, weights), f"The config of {path} makes no network: {{reason}}.")
    parsed(lambda: generator.load_state_dict(weights), f"The tensors of {path} do not fit its config: {{reason}}.")
    digest = hashlib.sha256(data).hexdigest()
    return Snapshot(generator.eval().requires_grad_(False), path, digest, file.info)


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, hexadecimal, of names, types, shapes and bytes of tensors on the CPU, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _built(path: Path, config: GeneratorConfig, weights: Mapping[str, torch.Tensor]) -> Generator:
    """A network of the config, whose weights have these shapes; none is built that is larger, as the config may claim."""
    held = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if (claimed := least_weights(config)) > (count := sum(map(math.prod, held.values()))):
        raise UserError(
            f"The tensors of {path} do not fit its config (it claims {claimed:,} weights, and they are {count:,}); "
            "use another snapshot of the run."
        )
    with torch.random.fork_rng(devices=[]):  # its first weights, which are not kept, cost the caller no random numbers
        generator = Generator(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    if wrong := sorted(name for name in shapes.keys() | held.keys() if shapes.get(name) != held.get(name)):
        raise UserError(
            f"The tensors of {path} do not fit its config ({shown(wrong[0])} and {len(wrong) - 1} others); "
            "use another snapshot of the run."
        )
    return generator
