"""Inception-v3 as the Frechet inception distance uses it: the network of 2015-12-05 up to its last pooling.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., CVPR 2016) as trained by Google, whose weights
have been carried over to PyTorch under torchvision's names. It departs from torchvision's network: average pooling inside
blocks does not count the padding, and the very last block takes the maximum instead.

Shapes: B batch, C channels, N image side.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dnnlib.errors import UserError
from torch_utils import vision
from torch_utils.devices import full_precision

SIDE_PX = 299
DIMENSION = 2048
LAST = "Mixed_7c"
"""The block before the last pooling, the only one that takes the maximum."""
WITHOUT = "other features do without"


def architecture(without: str = WITHOUT) -> torch.nn.Module:
    """torchvision's network on the ``meta`` device, up to ``LAST``.

    Args:
        without: What does without torchvision, for messages.

    Raises:
        UserError: torchvision cannot be imported.
    """
    module = vision.networks("inception", "The features 'inception'", without)
    with torch.device("meta"):
        layers = dict(module.Inception3(aux_logits=False, init_weights=False).named_children())
    names = list(layers)
    kept = {name: layers[name] for name in names[: names.index(LAST) + 1]}
    return torch.nn.ModuleDict(kept).eval().requires_grad_(False)


def shapes(without: str = WITHOUT) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are read; as :func:`architecture`."""
    every = architecture(without).state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in every if not name.endswith("num_batches_tracked")}


class Inception(torch.nn.Module):
    """Images -> features of the last pooling; fixed weights, float32.

    Args:
        state: Tensors by name (:func:`shapes`); others, such as the classifier's, are left alone.
        without: What does without torchvision, for messages.

    Raises:
        UserError: a tensor is missing or has the wrong shape, or torchvision cannot be imported.
    """

    dimension = DIMENSION

    def __init__(self, state: Mapping[str, torch.Tensor], without: str = WITHOUT) -> None:
        super().__init__()
        needed = shapes(without)
        for name, shape in needed.items():
            tensor = state.get(name)
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
                found = f"has shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "is missing"
                raise UserError(f"Inception weights: {name} {found}, {list(shape)} is needed.")
        network = architecture(without)
        network.load_state_dict({name: state[name].float() for name in needed}, strict=False, assign=True)
        for layer in [module for module in network.modules() if hasattr(module, "bn")]:
            conv, normalisation = layer.get_submodule("conv"), layer.get_submodule("bn")
            assert isinstance(conv, torch.nn.Conv2d)
            assert isinstance(normalisation, torch.nn.BatchNorm2d)
            layer.conv, layer.bn = fuse_conv_bn_eval(conv, normalisation), torch.nn.Identity()
        self.layers = network

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            images: uint8 [B, C, N, N], C 1 or 3.

        Returns:
            float32 [B, 2048].
        """
        with full_precision(images.device):
            x = (resize(images.float().expand(-1, 3, -1, -1)) - 128) / 128
            for name, layer in self.layers.items():  # type: ignore[operator]
                x = _repooled(layer, x, is_last=name == LAST) if hasattr(layer, "branch_pool") else layer(x)
            return x.mean(dim=(2, 3))


def _repooled(block: torch.nn.Module, x: torch.Tensor, *, is_last: bool) -> torch.Tensor:
    """A block of torchvision with the pooling of the 2015 network in its last branch."""
    *branches, _ = block._forward(x)  # type: ignore[operator]
    pooled = F.max_pool2d(x, 3, 1, 1) if is_last else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return torch.cat([*branches, block.branch_pool(pooled)], dim=1)  # type: ignore[operator]


def resize(images: torch.Tensor) -> torch.Tensor:
    """Images [B, C, N, N] at 299 x 299 pixels, as TensorFlow 1 resizes: pixel i takes its value at i N/299, bilinear.

    Corners, not centres, of pixels are aligned, and downsampling does not antialias, as in all published values of the
    distance.
    """
    size = images.shape[-1]
    place = torch.arange(SIDE_PX, dtype=torch.float64) * (size / SIDE_PX)
    low = place.floor().long().clamp(max=size - 1)
    fraction = (place - low)[:, None]
    matrix = (1 - fraction) * F.one_hot(low, size) + fraction * F.one_hot((low + 1).clamp(max=size - 1), size)
    matrix = matrix.to(images)
    return matrix @ images @ matrix.mT
