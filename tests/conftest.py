"""Shared fixtures: golden numbers, small configs, a small data set."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multiscale.config import GeneratorConfig
from multiscale.networks.generator import Generator
from multiscale.view import unchecked_transform, uniform_centres
from torch_utils.ops import build

for name in ("no_proxy", "NO_PROXY"):  # servers within tests, and of them in processes, are asked without one
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, or they fight for the cores
    torch.set_num_threads(1)

with contextlib.suppress(ImportError):  # where GPUs are proved, there is none
    import hypothesis

    # The same examples each time, however long they take; --hypothesis-profile default tries others, within its deadlines.
    hypothesis.settings.register_profile(
        "suite", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("suite")

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """One fixture file: ``g["x0"]`` is a tensor, ``g.meta`` the JSON of its arguments."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.meta: Any = json.loads(bytes(self.arrays["__meta__"]))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def weights(self) -> dict[str, torch.Tensor]:
        """The arrays under ``p/``, by their names behind it."""
        return {name[2:]: self[name] for name in self.arrays if name.startswith("p/")}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """``golden("filters")`` opens ``tests/golden/filters.npz``."""
    return Golden


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small_config(**changes: Any) -> GeneratorConfig:
    """A generator small enough for tests, with all 14 layers."""
    base = {"img_resolution": 32, "channel_base": 512, "channel_max": 24, "z_dim": 16, "w_dim": 16}
    return GeneratorConfig(**(base | changes))


def calibrated_generator(config: GeneratorConfig) -> Generator:
    """An untrained generator whose running means are set from views over all its zooms."""
    generator = Generator(config).eval()
    rng = np.random.default_rng(0)
    zoom = torch.exp2(torch.from_numpy(rng.uniform(0, config.octaves, size=16)))
    generator.calibrate(torch.randn(16, config.z_dim), unchecked_transform(zoom, uniform_centres(zoom, rng)))
    return generator


def small_patches(path: Path, *, side: int = 16, octaves: int = 3, per_octave: int = 8, channels: int = 3) -> Path:
    """A ZIP of patches that differ by octave in colour and in stripes; written without the project's own code."""
    rng = np.random.default_rng(0)
    mode = "RGB" if channels == 3 else "L"
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(octaves * per_octave):
            octave = i // per_octave
            s = octave + rng.random()
            stripes = np.sin(np.arange(side) * 2 * np.pi / side * 2**octave + rng.uniform(0, 6.28))[None, :, None]
            colour = np.array([90 - 40 * octave, 60 * octave - 60, 40])
            pixels = np.clip(128 + colour + 50 * stripes + rng.normal(0, 4, (side, side, 3)), 0, 255).astype(np.uint8)
            name = f"00000/img{i:08d}.png"
            stream = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(stream, "png")
            archive.writestr(name, stream.getvalue())
            labels.append([name, s])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def package(name: str) -> Any:
    """A package that others' numbers come from; without it the test is skipped, and says why."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # one that needs compiled operators of torchvision fails in its own way
        pytest.skip(f"{name} cannot be imported here ({type(error).__name__}: {error}); it is in the extra 'dev'")


def choose_ops(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set ``MULTISCALE_OPS``; skip the test where kernels are wanted but the machine cannot build them."""
    monkeypatch.setenv("MULTISCALE_OPS", which)
    if which != "reference":
        try:
            build.library("cpu")
        except build.BuildError as error:
            pytest.skip(str(error))
