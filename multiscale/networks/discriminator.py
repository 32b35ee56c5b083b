"""The residual discriminator of StyleGAN2 (Karras et al. 2020, appendix B).

Shapes: B images, C image channels, N image side, G group of the minibatch standard deviation.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from multiscale.config import DiscriminatorConfig
from multiscale.networks.layers import Conv2d, Linear


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the second with blur-downsampling, beside a 1x1 skip; their sum has unit variance."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float, img_channels: int | None = None) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.fromrgb = None if img_channels is None else Conv2d(img_channels, in_channels, 1, clamp=clamp)
        self.conv0 = Conv2d(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = Conv2d(in_channels, out_channels, 3, down=2, gain=half, clamp=clamp)
        self.skip = Conv2d(in_channels, out_channels, 1, bias=False, act="linear", down=2, gain=half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, I, R, R] -> [B, O, R/2, R/2]."""
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        return self.skip(x) + self.conv1(self.conv0(x))


class DiscriminatorHead(nn.Module):
    """4x4 features and their minibatch standard deviation, to one logit."""

    def __init__(self, channels: int, mbstd_group: int, clamp: float) -> None:
        super().__init__()
        self.mbstd_group = mbstd_group
        self.conv = Conv2d(channels + 1, channels, 3, clamp=clamp)
        self.fc = Linear(channels * 16, channels, act="lrelu")
        self.out = Linear(channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, I, 4, 4] -> [B, 1]."""
        x = self.conv(append_minibatch_stddev(x, self.mbstd_group))
        return self.out(self.fc(x.flatten(1)))


class Discriminator(nn.Module):
    """``D(image)`` -> logits, high for real patches."""

    def __init__(self, config: DiscriminatorConfig, *, img_resolution: int, img_channels: int = 3) -> None:
        super().__init__()
        self.config, self.img_resolution, self.img_channels = config, img_resolution, img_channels
        self.half_dtype = getattr(torch, config.half_dtype)

        def width(resolution: int) -> int:
            return max(min(config.channel_base // resolution, config.channel_max), 1)

        resolutions = [2**i for i in range(int(math.log2(img_resolution)), 2, -1)]
        self.blocks = nn.ModuleDict(
            {
                f"b{r}": DiscriminatorBlock(
                    width(r), width(r // 2), config.conv_clamp, img_channels if r == img_resolution else None
                )
                for r in resolutions
            }
        )
        self.head = DiscriminatorHead(width(4), config.mbstd_group, config.conv_clamp)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images [B, C, N, N] in [-1, 1] -> logits [B, 1]."""
        x = image
        for i, block in enumerate(self.blocks.values()):
            half = i < self.config.num_half_res and x.device.type in ("cuda", "meta")
            x = block(x.to(self.half_dtype if half else image.dtype))
        return self.head(x.to(image.dtype))


def append_minibatch_stddev(x: torch.Tensor, group: int) -> torch.Tensor:
    """Append the standard deviation over groups of samples, averaged to one number a group (PGGAN section 3).

    The group size is the largest divisor of the batch that is not above ``group``; sample b belongs to group
    b mod (B/G): [B, I, H, W] -> [B, I + 1, H, W].
    """
    batch, _, height, width = x.shape
    group = max(g for g in range(1, min(group, batch) + 1) if batch % g == 0)
    deviation = x.float().reshape(group, -1, *x.shape[1:])  # [G, B/G, I, H, W]
    deviation = (deviation - deviation.mean(dim=0)).square().mean(dim=0)
    statistic = (deviation + 1e-8).sqrt().mean(dim=[1, 2, 3])  # [B/G]
    channel = statistic.to(x.dtype).reshape(-1, 1, 1, 1).repeat(group, 1, height, width)
    return torch.cat([x, channel], dim=1)
