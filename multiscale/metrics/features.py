"""Feature networks, which turn images into the vectors whose distributions are compared.

``random`` is a convolutional network with fixed random weights. It needs no file and orders models that differ visibly, but
its values mean nothing beside those of other networks: do not report them as FID. ``inception`` is the network that the
Frechet inception distance is defined with, ``dinov2`` one that was trained without labels; their weights are files that the
user provides. Nothing is downloaded.

Shapes: B batch, C channels (3, or 1 for grey), N image side in pixels, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dnnlib.errors import UserError, nearest_name
from dnnlib.files import cache_folder
from multiscale.metrics.dinov2 import Dinov2
from multiscale.metrics.inception import Inception
from multiscale.metrics.parse import FEATURES
from torch_utils.devices import float32_products, full_precision
from torch_utils.random import stream
from torch_utils.weights import MissingWeights, WeightFile

INCEPTION_FILE = WeightFile(
    name="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
DINOV2_FILES = tuple(
    WeightFile(
        name=f"dinov2_{size}14_pretrain.pth",
        url=f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{size}14/dinov2_{size}14_pretrain.pth",
        sha256=digest,
    )
    for size, digest in (
        ("vitl", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
        ("vitb", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
        ("vits", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    )
)
"""The first is the one of published values."""

RANDOM_WIDTHS = (24, 48, 72, 96, 128)
RANDOM_SMALLEST_SIDE_PX = 4
"""The last convolution of the random network sees maps of this side at least."""
RANDOM_CALIBRATION_IMAGES = 64
RANDOM_SEED = 6
RANDOM_VERSION = 1


@dataclass(frozen=True)
class Options:
    """How features and their weight file are named where they are asked for: what stands before the value."""

    features: str = "--features "
    weights: str = "--weights "

    @property
    def without(self) -> str:
        """The end of a refusal: what needs no file."""
        return f"{self.features}random does without"


class Features:
    """A feature network by name, on a device.

    Attributes:
        name: Of ``FEATURES``.
        identity: Name and version of the weights: equal identities give equal features.
        dimension: D.
    """

    def __init__(self, name: str, identity: str, network: torch.nn.Module, device: torch.device) -> None:
        self.name, self.identity, self.device = name, identity, device
        self.dimension: int = network.dimension  # type: ignore[assignment]
        self._network = network.to(device)

    @float32_products()
    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """Features float32 [B, D] of images uint8 [B, C, N, N] on any device."""
        return self._network(images.to(self.device)).cpu().numpy()


class RandomNetwork(torch.nn.Module):
    """Convolutions, each followed by a leaky ReLU and halving; features are each map's mean and deviation over the image.

    Each feature is shifted and scaled to mean 0 and deviation 1 over a fixed set of coloured 1/f noise, so that all count
    alike: fine texture as much as brightness.

    Args:
        resolution: N, at least 8; 5 convolutions from 64 pixels on, fewer below.
    """

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.depth = min(int(math.log2(resolution / RANDOM_SMALLEST_SIDE_PX)) + 1, len(RANDOM_WIDTHS))
        self.dimension = 2 * sum(RANDOM_WIDTHS[: self.depth])
        width = 3
        for stage, wider in enumerate(RANDOM_WIDTHS[: self.depth]):
            rng = stream(RANDOM_SEED, "random features", stage)
            weight = rng.standard_normal((wider, width, 3, 3)) * math.sqrt(2 / (9 * width))
            weight -= weight.mean(axis=(1, 2, 3), keepdims=True) / 2  # less of plain brightness, more of structure
            self.register_buffer(f"weight{stage}", torch.from_numpy(weight).float())
            self.register_buffer(f"bias{stage}", torch.from_numpy(rng.uniform(-0.2, 0.2, wider)).float())
            width = wider
        noise = _pink_noise(RANDOM_CALIBRATION_IMAGES, resolution)
        raw = torch.cat([self._raw(part) for part in noise.split(8)])
        deviation, mean = torch.std_mean(raw, dim=0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, D] of images uint8 [B, C, N, N]."""
        return (self._raw(images) - self.get_buffer("mean")) / self.get_buffer("deviation")

    @torch.no_grad()
    def _raw(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().expand(-1, 3, -1, -1) / 127.5 - 1
        found = []
        with full_precision(images.device):
            for stage in range(self.depth):
                x = F.pad(x, (1, 1, 1, 1), mode="reflect")
                x = F.conv2d(x, self.get_buffer(f"weight{stage}"), self.get_buffer(f"bias{stage}"))
                x = F.leaky_relu(x, 0.2)
                variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
                found += [mean, (variance + 1e-8).sqrt()]
                x = F.avg_pool2d(x, 2)
        return torch.cat(found, dim=1)


def _pink_noise(count: int, size: int) -> torch.Tensor:
    """Images whose amplitude falls as 1/f, of various contrast and tint: uint8 [count, 3, N, N], always the same."""
    rng = stream(RANDOM_SEED, "random features, noise")
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    white = rng.standard_normal((count, 3, size, size))
    white = white + rng.standard_normal((count, 1, size, size))  # channels go together in part
    pink = np.fft.irfft2(np.fft.rfft2(white) / np.maximum(frequency, 1 / size), s=(size, size))
    pink *= np.exp(rng.normal(math.log(0.3), 0.5, (count, 1, 1, 1))) / pink.std(axis=(1, 2, 3), keepdims=True)
    pixels = pink + rng.normal(0, 0.2, (count, 3, 1, 1))
    return torch.from_numpy((pixels * 127.5 + 128).clip(0, 255).astype(np.uint8))


def load_features(
    name: str, resolution: int, device: torch.device, weights: Path | None = None, options: Options | None = None
) -> Features:
    """A feature network, ready for use.

    Args:
        name: Of ``FEATURES``.
        resolution: N of the images.
        device: Where to compute.
        weights: The weight file of ``inception`` or ``dinov2``, or a folder that holds it; None: the cache folder.
        options: How the user says all this, for messages; None: as to ``calc_metrics.py``.

    Raises:
        MissingWeights: there is no weight file.
        UserError: an unknown name; a weight file that is not a published one, or not readable.
    """
    options = options or Options()
    if name not in FEATURES:
        raise UserError(f"There are no features {name!r}{nearest_name(name, FEATURES)}")
    if name == "random":
        if weights is not None:
            raise UserError(
                f"The features 'random' have no weight file; leave out {options.weights.rstrip(' =')}, or give "
                f"{options.features}{' or '.join(FEATURES[1:])}."
            )
        return Features(name, f"random{RANDOM_VERSION}-{resolution}", RandomNetwork(resolution), device)
    files = (INCEPTION_FILE,) if name == "inception" else DINOV2_FILES
    path = cache_folder() if weights is None else Path(weights)
    if path.is_dir() or weights is None:
        path = path / files[0].name
    if not path.is_file():
        raise MissingWeights(
            f"The features {name!r} need {files[0].name} (from {files[0].url}, SHA-256 {files[0].sha256}): put it into "
            f"{path.parent} or give {options.weights}FILE; {options.without}."
        )
    file = next((f for f in files if f.name == path.name), files[0])
    state = file.read(path, name)
    network = Inception(state, options.without) if name == "inception" else Dinov2(state)
    return Features(name, f"{name}-{file.sha256[:16]}", network, device)
