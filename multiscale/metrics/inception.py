"""Inception-v3 as the Frechet inception distance uses it: the network of 2015-12-05 up to its last pooling.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., CVPR 2016) as trained by Google, of which the
weights have been carried over to PyTorch under the names that ``BLOCKS`` gives. It departs from the later networks of that
name: average pooling inside blocks does not count the padding, and the very last block takes the maximum instead.

Shapes: B batch, C channels, N image side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from torch_utils.devices import full_precision

SIDE_PX = 299
DIMENSION = 2048
BATCH_NORM_EPS = 1e-3


class Conv(NamedTuple):
    """A convolution with batch normalisation and ReLU, by its name behind the block's."""

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


Branch = Sequence["Conv | tuple[Conv, Conv]"]
"""Convolutions one after another; a pair at the end sees the same input, and its outputs are joined."""


class Block(NamedTuple):
    """Branches that see the same input, and a pooled one (``"average"``, ``"maximum"`` or ``"stride"``: maximum by 2)."""

    name: str
    branches: Sequence[Branch]
    pool: str
    pool_conv: Conv | None


def _square(name: str, i: int, o: int, side: int, *, stride: int = 1, padding: int = 0) -> Conv:
    return Conv(name, i, o, (side, side), stride, (padding, padding))


def _row(name: str, i: int, o: int, length: int = 7) -> Conv:
    return Conv(name, i, o, (1, length), 1, (0, length // 2))


def _column(name: str, i: int, o: int, length: int = 7) -> Conv:
    return Conv(name, i, o, (length, 1), 1, (length // 2, 0))


def _block_35(name: str, width: int, pooled: int) -> Block:
    return Block(
        name,
        [
            [Conv("branch1x1", width, 64)],
            [Conv("branch5x5_1", width, 48), _square("branch5x5_2", 48, 64, 5, padding=2)],
            [
                Conv("branch3x3dbl_1", width, 64),
                _square("branch3x3dbl_2", 64, 96, 3, padding=1),
                _square("branch3x3dbl_3", 96, 96, 3, padding=1),
            ],
        ],
        "average",
        Conv("branch_pool", width, pooled),
    )


def _block_17(name: str, width: int) -> Block:
    return Block(
        name,
        [
            [Conv("branch1x1", 768, 192)],
            [Conv("branch7x7_1", 768, width), _row("branch7x7_2", width, width), _column("branch7x7_3", width, 192)],
            [
                Conv("branch7x7dbl_1", 768, width),
                _column("branch7x7dbl_2", width, width),
                _row("branch7x7dbl_3", width, width),
                _column("branch7x7dbl_4", width, width),
                _row("branch7x7dbl_5", width, 192),
            ],
        ],
        "average",
        Conv("branch_pool", 768, 192),
    )


def _block_8(name: str, width: int, pool: str) -> Block:
    return Block(
        name,
        [
            [Conv("branch1x1", width, 320)],
            [
                Conv("branch3x3_1", width, 384),
                (_row("branch3x3_2a", 384, 384, 3), _column("branch3x3_2b", 384, 384, 3)),
            ],
            [
                Conv("branch3x3dbl_1", width, 448),
                _square("branch3x3dbl_2", 448, 384, 3, padding=1),
                (_row("branch3x3dbl_3a", 384, 384, 3), _column("branch3x3dbl_3b", 384, 384, 3)),
            ],
        ],
        pool,
        Conv("branch_pool", width, 192),
    )


STEM: Sequence[Conv | None] = (
    _square("Conv2d_1a_3x3", 3, 32, 3, stride=2),
    _square("Conv2d_2a_3x3", 32, 32, 3),
    _square("Conv2d_2b_3x3", 32, 64, 3, padding=1),
    None,
    Conv("Conv2d_3b_1x1", 64, 80),
    _square("Conv2d_4a_3x3", 80, 192, 3),
    None,
)
"""Before the blocks; None is 3 x 3 maximum pooling by 2."""

BLOCKS: Sequence[Block] = (
    _block_35("Mixed_5b", 192, 32),
    _block_35("Mixed_5c", 256, 64),
    _block_35("Mixed_5d", 288, 64),
    Block(
        "Mixed_6a",
        [
            [_square("branch3x3", 288, 384, 3, stride=2)],
            [
                Conv("branch3x3dbl_1", 288, 64),
                _square("branch3x3dbl_2", 64, 96, 3, padding=1),
                _square("branch3x3dbl_3", 96, 96, 3, stride=2),
            ],
        ],
        "stride",
        None,
    ),
    _block_17("Mixed_6b", 128),
    _block_17("Mixed_6c", 160),
    _block_17("Mixed_6d", 160),
    _block_17("Mixed_6e", 192),
    Block(
        "Mixed_7a",
        [
            [Conv("branch3x3_1", 768, 192), _square("branch3x3_2", 192, 320, 3, stride=2)],
            [
                Conv("branch7x7x3_1", 768, 192),
                _row("branch7x7x3_2", 192, 192),
                _column("branch7x7x3_3", 192, 192),
                _square("branch7x7x3_4", 192, 192, 3, stride=2),
            ],
        ],
        "stride",
        None,
    ),
    _block_8("Mixed_7b", 1280, "average"),
    _block_8("Mixed_7c", 2048, "maximum"),
)


def convolutions() -> dict[str, Conv]:
    """Every convolution by its full name in the weight file, in the order of the network."""
    found = {conv.name: conv for conv in STEM if conv is not None}
    for block in BLOCKS:
        for branch in block.branches:
            for step in branch:
                found |= {f"{block.name}.{conv.name}": conv for conv in _each(step)}
        if block.pool_conv is not None:
            found[f"{block.name}.{block.pool_conv.name}"] = block.pool_conv
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are read."""
    needed: dict[str, tuple[int, ...]] = {}
    for name, conv in convolutions().items():
        needed[f"{name}.conv.weight"] = (conv.out_channels, conv.in_channels, *conv.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            needed[f"{name}.bn.{part}"] = (conv.out_channels,)
    return needed


class Inception(torch.nn.Module):
    """Images -> features of the last pooling; fixed weights, float32.

    Args:
        state: Tensors by name (:func:`shapes`); others, such as the classifier's, are left alone.

    Raises:
        UserError: a tensor is missing or of another shape.
    """

    dimension = DIMENSION

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, shape in shapes().items():
            tensor = state.get(name)
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
                found = f"has shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "is missing"
                raise UserError(f"Inception weights: {name} {found}, {list(shape)} is needed.")
        for name in convolutions():  # normalisation by fixed statistics is a gain and a shift of the convolution
            gain = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + BATCH_NORM_EPS).sqrt()
            shift = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * gain
            key = name.replace(".", "/")
            self.register_buffer(f"{key}/weight", (state[f"{name}.conv.weight"] * gain[:, None, None, None]).float())
            self.register_buffer(f"{key}/bias", shift.float())

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
            for conv in STEM:
                x = F.max_pool2d(x, 3, 2) if conv is None else self._convolve(conv.name, conv, x)
            for block in BLOCKS:
                x = self._block(block, x)
            return x.mean(dim=(2, 3))

    def _block(self, block: Block, x: torch.Tensor) -> torch.Tensor:
        joined = []
        for branch in block.branches:
            y = x
            for step in branch:
                y = torch.cat([self._convolve(f"{block.name}.{conv.name}", conv, y) for conv in _each(step)], dim=1)
            joined.append(y)
        if block.pool == "average":
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, 1, 1) if block.pool == "maximum" else F.max_pool2d(x, 3, 2)
        if block.pool_conv is not None:
            pooled = self._convolve(f"{block.name}.{block.pool_conv.name}", block.pool_conv, pooled)
        return torch.cat([*joined, pooled], dim=1)

    def _convolve(self, name: str, conv: Conv, x: torch.Tensor) -> torch.Tensor:
        key = name.replace(".", "/")
        weight, bias = self.get_buffer(f"{key}/weight"), self.get_buffer(f"{key}/bias")
        return F.relu(F.conv2d(x, weight, bias, conv.stride, conv.padding))


def resize(images: torch.Tensor) -> torch.Tensor:
    """Images [B, C, N, N] at 299 x 299 pixels, as TensorFlow 1 resizes: pixel i takes its value at i N/299, bilinear.

    Corners, not centres of pixels, fall together, and nothing is averaged when an image becomes smaller: it is what all
    published values of the distance were computed with.
    """
    size = images.shape[-1]
    place = torch.arange(SIDE_PX, dtype=torch.float64) * (size / SIDE_PX)
    low = place.floor().long().clamp(max=size - 1)
    share = (place - low)[:, None]
    matrix = (1 - share) * F.one_hot(low, size) + share * F.one_hot((low + 1).clamp(max=size - 1), size)
    matrix = matrix.to(images)
    return matrix @ images @ matrix.mT


def _each(step: Conv | tuple[Conv, Conv]) -> tuple[Conv, ...]:
    return (step,) if isinstance(step, Conv) else step
