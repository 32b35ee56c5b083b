"""Which slope each sample of a layer took, and the gradient that these slopes have: for checks in half precision.

A leaky ReLU's gradient jumps where its argument is 0, and at the clamp. A sample that is closer to one of these than its
rounding error takes either slope, rightly so, and a single one of them changes the gradient of a small layer by a thousandth
or more. So a gradient is compared with the exact one for the slopes that the layer took, and these slopes with the exact ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from torch_utils.ops.reference import FilteredLReLU


def slopes_taken(y: torch.Tensor) -> torch.Tensor:
    """What a filtered leaky ReLU remembered for its gradient.

    Args:
        y: The result of PyTorch's ops, or of kernels on a GPU; its gradient has not been taken yet.

    Returns:
        int8 [M, H, W], M = B C, of the upsampled samples: 1, -1 (the slope below 0) or 0 (clamped).
    """
    codes = _node(y).saved_tensors[-1].flatten(0, -3)
    if codes.dtype == torch.int8:
        return codes
    numbers = unpacked(codes, _node(y).numbers[0][7])
    return torch.tensor([1, -1, 0, 0], dtype=torch.int8, device=codes.device)[numbers]


def unpacked(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Codes of the kernels on a GPU, uint8 [..., bytes] with four to a byte, as numbers 0 to 3, int64 [..., width]."""
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device)
    return (codes[..., None] >> shifts & 3).flatten(-2)[..., :width].long()


def gradient(exact: torch.Tensor, slopes: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """The gradient of the images, [B, C, H, W] in float64, for slopes that a layer took in another type.

    Args:
        exact: The layer's result by PyTorch's ops in float64; its gradient has not been taken yet.
        slopes: int8 [M, H, W], as slopes_taken() has them.
        dy: The gradient of the result, [B, C, H', W'].
    """
    back: FilteredLReLU = _node(exact).layer.transposed()
    return back.multiply(dy.double().flatten(0, 1), slopes).unflatten(0, dy.shape[:2])


def farthest_from_threshold(
    exact: torch.Tensor, slopes: torch.Tensor, x: torch.Tensor, b: torch.Tensor | None
) -> float:
    """How far from a threshold the upsampled samples are, at most, that took another slope than the exact one.

    Relative to the largest upsampled sample. Samples on which no result depends do not count.

    Args:
        exact: The layer's result for x and b by PyTorch's ops in float64; its gradient has not been taken yet.
        slopes: int8 [M, H, W], as slopes_taken() has them.
        x: Images [B, C, H, W].
        b: Bias [C], or None.
    """
    layer: FilteredLReLU = _node(exact).layer
    u = layer.up((x if b is None else x + b[:, None, None]).double().flatten(0, 1))
    v = F.leaky_relu(u, layer.slope)
    distance = u.abs()
    if layer.clamp is not None:
        distance = torch.minimum(distance, (v.abs() - layer.clamp).abs())
    ones = exact.new_ones([1, *exact.shape[2:]])
    used = layer.down.transposed()(ones) != 0
    others = (slopes != slopes_taken(exact)) & used
    return (distance[others].max() / u.abs().max()).item() if others.any() else 0.0


def _node(y: torch.Tensor) -> Any:
    """The node of autograd that keeps the slopes."""
    node: Any = y.grad_fn
    while node is not None:
        saved = getattr(node, "saved_tensors", ())
        if saved and saved[-1] is not None and saved[-1].dtype in (torch.int8, torch.uint8):
            return node
        node = node.next_functions[0][0] if node.next_functions else None
    raise ValueError("There is no filtered leaky ReLU whose slopes are remembered.")
