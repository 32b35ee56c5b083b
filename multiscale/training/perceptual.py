"""LPIPS: the difference of two images as AlexNet's features see it, pixel by pixel.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (Zhang et al., CVPR 2018), equation 1, in its
spatial form and with the weights of version 0.1. AlexNet is torchvision's, the one-tower network of "One weird trick for
parallelizing convolutional neural networks" (Krizhevsky 2014). Nothing is downloaded here: ``load_lpips`` reads two files
and, when they are missing, says where they come from and what does without them.

Shapes: B batch, C channels (3, or 1 for grey), N image side in pixels; feature maps [B, C_l, n_l, n_l], l = 0..4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from dnnlib.files import cache_folder
from torch_utils import vision
from torch_utils.devices import full_precision
from torch_utils.weights import MissingWeights, WeightFile

ALEXNET_FILE = WeightFile(
    name="alexnet-owt-7be5be79.pth",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be79",
)
LINEAR_FILE = WeightFile(
    name="alex.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/alex.pth",
    sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
)

SMALLEST_SIDE_PX = 31  # below it the second pooling has nothing left

# Mean and deviation of ImageNet's colours, restated for images in [-1, 1].
COLOUR_SHIFT = (-0.030, -0.088, -0.188)
COLOUR_SCALE = (0.458, 0.448, 0.450)

WITHOUT = "--set training.consistency_metric=l1 does without"


class LPIPS(torch.nn.Module):
    """Spatial LPIPS distance with fixed weights; differentiable with respect to both images.

    Args:
        alexnet: State of torchvision's AlexNet; only ``features.*`` is read.
        linear: ``lin{l}.model.1.weight`` [1, C_l, 1, 1], not negative.

    Raises:
        UserError: weights are missing or have the wrong shape, or torchvision cannot be imported.
    """

    def __init__(self, alexnet: Mapping[str, torch.Tensor], linear: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(COLOUR_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(COLOUR_SCALE)[:, None, None])
        with torch.device("meta"):
            network = vision.networks("alexnet", "LPIPS", WITHOUT).AlexNet().features[:-1]  # without its last pooling
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        state = {name: _checked(alexnet, f"features.{name}", shape) for name, shape in shapes.items()}
        network.load_state_dict(state, assign=True)
        self.network: torch.nn.Sequential = network.requires_grad_(False)
        widths = [layer.out_channels for layer in network if isinstance(layer, torch.nn.Conv2d)]
        for level, width in enumerate(widths):
            weights = _checked(linear, f"lin{level}.model.1.weight", (1, width, 1, 1))
            self.register_buffer(f"linear{level}", weights.clamp(min=0))

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Distance map of two batches of images.

        Args:
            images: [B, C, N, N], C 1 or 3, N >= 31, range [-1, 1] nominal; computed in float32.
            others: The same shape.

        Returns:
            [B, 1, N, N], >= 0: the sum over the layers, each enlarged bilinearly to the images' size.

        Raises:
            UserError: the images are too small, or neither grey nor RGB.
        """
        size = images.shape[-1]
        if size < SMALLEST_SIDE_PX:
            raise UserError(f"LPIPS needs images of 32 pixels a side or more and got {size}; {WITHOUT}.")
        if images.shape[1] not in (1, 3):
            raise UserError(f"LPIPS needs 1 or 3 channels and got {images.shape[1]}; {WITHOUT}.")
        with full_precision(images.device):
            distance = images.new_zeros(len(images), 1, size, size, dtype=torch.float32)
            pairs = zip(self.features(images), self.features(others), strict=True)
            for level, (x, y) in enumerate(pairs):
                weighted = _weighted_difference(x, y, self.get_buffer(f"linear{level}"))  # [B, 1, n_l, n_l]
                distance = distance + F.interpolate(weighted, size=(size, size), mode="bilinear", align_corners=False)
        return distance

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Outputs [B, C_l, n_l, n_l] of AlexNet's five convolutions, each after its ReLU."""
        x = (images.float().expand(-1, 3, -1, -1) - self.get_buffer("shift")) / self.get_buffer("scale")
        outputs = []
        for layer in self.network:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                outputs.append(x)
        return outputs


def unit_normalise(features: torch.Tensor) -> torch.Tensor:
    """Scale the feature vector [B, C_l] of each pixel to unit length; zeros stay zeros, with finite gradients."""
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-10)


def missing_files(folder: Path | None = None) -> list[WeightFile]:
    """The weight files of ``load_lpips`` that are not in ``folder`` (None: the cache folder)."""
    folder = cache_folder() if folder is None else Path(folder)
    return [file for file in (ALEXNET_FILE, LINEAR_FILE) if not (folder / file.name).is_file()]


def load_lpips(folder: Path | None = None) -> LPIPS:
    """Read AlexNet and the LPIPS weights from a folder; by default the cache folder. Nothing is downloaded.

    Args:
        folder: Holds ``alexnet-owt-7be5be79.pth`` and ``alex.pth``; None: ``dnnlib.files.cache_folder()``.

    Returns:
        The distance on the CPU, in evaluation mode; its weights take no gradients.

    Raises:
        MissingWeights: a file is missing.
        UserError: a file is not the published one, or cannot be read.
    """
    folder = cache_folder() if folder is None else Path(folder)
    if missing := missing_files(folder):
        wanted = " and ".join(f"{file.name} (from {file.url})" for file in missing)
        raise MissingWeights(f"LPIPS needs {wanted}: put {'them' if missing[1:] else 'it'} into {folder}; {WITHOUT}.")
    return LPIPS(*(file.read(folder / file.name, "LPIPS") for file in (ALEXNET_FILE, LINEAR_FILE))).eval()


def _weighted_difference(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Equation 1 at one layer: squared difference of unit-length features, channels weighted and summed."""
    return F.conv2d((unit_normalise(x) - unit_normalise(y)).square(), weights)


def _checked(state: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = state.get(name)
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
        found = f"has shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "is missing"
        raise UserError(f"LPIPS weights: {name} {found}, {list(shape)} is needed; {WITHOUT}.")
    return tensor.detach().float().clone()
