"""DINOv2 as a feature network: a vision transformer trained without labels, up to the normalised class token.

"DINOv2: Learning Robust Visual Features without Supervision" (Oquab et al. 2023); its features as a replacement of
Inception's for distances of distributions: "Exposing flaws of generative model evaluation metrics and their unfair treatment
of diffusion models" (Stein et al., NeurIPS 2023). The size of the network follows from the tensors.

Shapes: B batch, C channels, N image side in pixels, T tokens (16 x 16 patches and the class), D width, H heads of 64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dnnlib.errors import UserError
from torch_utils.devices import full_precision

SIDE_PX, PATCH_PX, HEAD = 224, 14, 64
LAYER_NORM_EPS = 1e-6
POSITION_OFFSET = 0.1
"""Added to the grid's side when positions are interpolated, as the published network does."""
COLOUR_MEAN, COLOUR_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for values in [0, 1]."""


def shapes(width: int, depth: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that are read."""
    needed: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, PATCH_PX, PATCH_PX),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            needed |= {f"blocks.{block}.{name}.weight": (out, into), f"blocks.{block}.{name}.bias": (out,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            needed[f"blocks.{block}.{name}"] = (width,)
    return needed


class Dinov2(torch.nn.Module):
    """Images -> class token; fixed weights, float32.

    Args:
        state: Tensors by name (:func:`shapes`); others, such as the mask token, are left alone.

    Raises:
        UserError: a tensor is missing or of another shape.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        token, place = state.get("cls_token"), state.get("pos_embed")
        if not (isinstance(token, torch.Tensor) and isinstance(place, torch.Tensor) and place.ndim == 3):
            raise UserError("DINOv2 weights: cls_token [1, 1, D] or pos_embed [1, T, D] is missing.")
        self.dimension, positions = token.shape[-1], place.shape[1]
        self.grid = math.isqrt(positions - 1)
        if self.dimension % HEAD or self.grid**2 != positions - 1:
            raise UserError(
                f"DINOv2 weights: a width of {self.dimension} and {positions} positions are not those of a network with "
                f"heads of {HEAD} and a square of patches."
            )
        self.depth = 0
        while f"blocks.{self.depth}.norm1.weight" in state:
            self.depth += 1
        for name, shape in shapes(self.dimension, self.depth, positions).items():
            tensor = state.get(name)
            if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
                found = f"has shape {list(tensor.shape)}" if isinstance(tensor, torch.Tensor) else "is missing"
                raise UserError(f"DINOv2 weights: {name} {found}, {list(shape)} is needed.")
            self.register_buffer(name.replace(".", "/"), tensor.float())
        self.register_buffer("positions", self._positions(), persistent=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            images: uint8 [B, C, N, N], C 1 or 3.

        Returns:
            float32 [B, D].
        """
        with full_precision(images.device):
            x = images.float().expand(-1, 3, -1, -1) / 255
            x = F.interpolate(x, size=(SIDE_PX, SIDE_PX), mode="bicubic", align_corners=False, antialias=True)
            mean, deviation = (x.new_tensor(values)[:, None, None] for values in (COLOUR_MEAN, COLOUR_DEVIATION))
            x = (x.clamp(0, 1) - mean) / deviation
            x = F.conv2d(x, self._of("patch_embed.proj.weight"), self._of("patch_embed.proj.bias"), stride=PATCH_PX)
            x = x.flatten(2).mT  # [B, T - 1, D]
            x = torch.cat([self._of("cls_token").expand(len(x), -1, -1), x], dim=1) + self._of("positions")
            for block in range(self.depth):
                x = self._block(f"blocks.{block}", x)
            return self._norm("norm", x[:, 0])

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self._linear(f"{name}.attn.qkv", self._norm(f"{name}.norm1", x))
        q, k, v = qkv.reshape(batch, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)  # [B, H, T, 64] each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self._linear(f"{name}.attn.proj", mixed) * self._of(f"{name}.ls1.gamma")
        hidden = F.gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", x)))
        return x + self._linear(f"{name}.mlp.fc2", hidden) * self._of(f"{name}.ls2.gamma")

    def _positions(self) -> torch.Tensor:
        """Positions of the class and of 16 x 16 patches, [1, T, D], from those of the grid that was trained with."""
        place, side = self._of("pos_embed"), SIDE_PX // PATCH_PX
        if self.grid == side:
            return place
        square = place[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        scale = (side + POSITION_OFFSET) / self.grid
        square = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
        return torch.cat([place[:, :1], square.flatten(2).mT], dim=1)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self._of(f"{name}.weight"), self._of(f"{name}.bias"), LAYER_NORM_EPS)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._of(f"{name}.weight"), self._of(f"{name}.bias"))

    def _of(self, name: str) -> torch.Tensor:
        return self.get_buffer(name.replace(".", "/"))
