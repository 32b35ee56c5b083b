"""Discriminators by name; one of your own is a subclass in ``ARCHITECTURES``.

The residual one is that of StyleGAN2 (Karras et al. 2020, appendix B).

Shapes: B images, C image channels, N image side, G group of the minibatch standard deviation, L logits of an image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dnnlib.errors import UserError, nearest_name
from dnnlib.extensions import import_extensions
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


class ScaleEmbedding(nn.Module):
    """The zoom s as a vector of unit second moment: hat functions at the octaves and sines of s, through two layers.

    Args:
        octaves: S; there is a hat at each of 0 ... S.
        size: C numbers.
    """

    HARMONICS = 4

    def __init__(self, octaves: int, size: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.hidden = Linear(octaves + 1 + 2 * self.HARMONICS, size, act="lrelu")
        self.out = Linear(size, size)

    def forward(self, zoom_log2: torch.Tensor) -> torch.Tensor:
        """s [B] -> [B, C]."""
        s = zoom_log2.float()[:, None]
        hats = (1 - (s - torch.arange(self.octaves + 1, device=s.device)).abs()).clamp(min=0)
        # Periods of 2S, S, 2S/3 ... octaves: no two zooms of the range have the same sines.
        turns = math.pi * s / self.octaves * torch.arange(1, self.HARMONICS + 1, device=s.device)
        e = self.out(self.hidden(torch.cat([hats, turns.sin(), turns.cos()], dim=1)))
        return e * (e.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class DiscriminatorHead(nn.Module):
    """4x4 features and their minibatch standard deviation, to ``outputs`` numbers."""

    def __init__(self, channels: int, mbstd_group: int, clamp: float, outputs: int = 1) -> None:
        super().__init__()
        self.mbstd_group = mbstd_group
        self.conv = Conv2d(channels + 1, channels, 3, clamp=clamp)
        self.fc = Linear(channels * 16, channels, act="lrelu")
        self.out = Linear(channels, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, I, 4, 4] -> [B, outputs]."""
        x = self.conv(append_minibatch_stddev(x, self.mbstd_group))
        return self.out(self.fc(x.flatten(1)))


class Discriminator(nn.Module):
    """``D(image, zoom_log2)`` -> logits, high for real patches: the interface that training relies on.

    Another architecture is a subclass with the same arguments and a ``forward``, listed in ``ARCHITECTURES``.

    Args:
        config: Its section of the run's configuration.
        img_resolution: N.
        img_channels: C.
        octaves: S.
    """

    logit_weights: torch.Tensor
    """Weight of each of the L logits of an image, [L], with sum 1; a buffer that is not saved."""

    def __init__(
        self, config: DiscriminatorConfig, *, img_resolution: int, img_channels: int = 3, octaves: int = 6
    ) -> None:
        super().__init__()
        self.config, self.octaves = config, octaves
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.register_buffer("logit_weights", torch.ones(1), persistent=False)

    def forward(self, image: torch.Tensor, zoom_log2: torch.Tensor | None = None) -> torch.Tensor:
        """Images [B, C, N, N] in [-1, 1] and their zooms s [B] -> logits [B, L]; a mean over L weighs by ``logit_weights``."""
        raise NotImplementedError

    if TYPE_CHECKING:  # that of nn.Module takes and returns anything
        __call__ = forward


class ResidualDiscriminator(Discriminator):
    """That of StyleGAN2, ``"residual"``.

    With ``scale_embedding`` = C > 0 the head gives C numbers h, and the logit is <h, e(s)>/sqrt(C) (projection, Miyato and
    Koyama 2018); otherwise the zoom is ignored. With ``local_heads`` there is a logit for each place of the maps behind
    every block, besides the one of the whole image (patches of several sizes, as in Isola et al. 2017). Their ``logit_weights``
    are such that all heads count alike, and all places of a head.
    """

    def __init__(
        self, config: DiscriminatorConfig, *, img_resolution: int, img_channels: int = 3, octaves: int = 6
    ) -> None:
        super().__init__(config, img_resolution=img_resolution, img_channels=img_channels, octaves=octaves)
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
        size = config.scale_embedding
        self.head = DiscriminatorHead(width(4), config.mbstd_group, config.conv_clamp, size or 1)
        self.embedding = ScaleEmbedding(octaves, size) if size else None
        self.local = nn.ModuleDict()
        if config.local_heads:
            self.local.update({f"b{r}": Conv2d(width(r // 2), size or 1, 1, act="linear") for r in resolutions})
        places = [1, *((int(name[1:]) // 2) ** 2 for name in self.local)]
        self.logit_weights = torch.cat([torch.full([n], 1 / (n * len(places))) for n in places])

    def forward(self, image: torch.Tensor, zoom_log2: torch.Tensor | None = None) -> torch.Tensor:
        """Images [B, C, N, N] in [-1, 1] and their zooms s [B] (needed if there is an embedding) -> logits [B, L].

        L is 1 without local heads; a mean over L weighs by ``logit_weights``.
        """
        x = image
        local = []
        for i, (name, block) in enumerate(self.blocks.items()):
            half = i < self.config.num_half_res and x.device.type in ("cuda", "meta")
            x = block(x.to(self.half_dtype if half else image.dtype))
            if name in self.local:
                local.append(self.local[name](x.to(image.dtype)).flatten(2))  # [B, 1 or C, places]
        h = torch.cat([self.head(x.to(image.dtype))[:, :, None], *local], dim=2)  # [B, 1 or C, L]
        if self.embedding is None:
            return h[:, 0]
        if zoom_log2 is None:
            raise ValueError("this discriminator knows the zoom: give zoom_log2")
        e = self.embedding(zoom_log2) / math.sqrt(h.shape[1])
        return torch.bmm(e[:, None], h)[:, 0]


ARCHITECTURES: dict[str, type[Discriminator]] = {"residual": ResidualDiscriminator}
"""By the name in ``discriminator.architecture``."""


def make_discriminator(
    config: DiscriminatorConfig, *, img_resolution: int, img_channels: int, octaves: int
) -> Discriminator:
    """The discriminator of a configuration; arguments as for :class:`Discriminator`.

    Raises:
        UserError: the name is unknown.
    """
    import_extensions()
    if config.architecture not in ARCHITECTURES:
        raise UserError(
            f"There is no discriminator of architecture {config.architecture!r}"
            f"{nearest_name(config.architecture, ARCHITECTURES)}"
        )
    network = ARCHITECTURES[config.architecture]
    return network(config, img_resolution=img_resolution, img_channels=img_channels, octaves=octaves)


def append_minibatch_stddev(x: torch.Tensor, group: int) -> torch.Tensor:
    """Append the standard deviation over groups of samples, averaged to one number a group (PGGAN section 3).

    The group size is the largest divisor of the batch that is not above ``group``; sample b belongs to group
    b mod (B/G): [B, I, H, W] -> [B, I + 1, H, W].

    Raises:
        ValueError: B is 0.
    """
    batch, _, height, width = x.shape
    if not batch:
        raise ValueError("There are no images to judge: give at least one.")
    group = max(g for g in range(1, min(group, batch) + 1) if batch % g == 0)
    deviation = x.float().reshape(group, -1, *x.shape[1:])  # [G, B/G, I, H, W]
    deviation = (deviation - deviation.mean(dim=0)).square().mean(dim=0)
    statistic = (deviation + 1e-8).sqrt().mean(dim=[1, 2, 3])  # [B/G]
    channel = statistic.to(x.dtype).reshape(-1, 1, 1, 1).repeat(group, 1, height, width)
    return torch.cat([x, channel], dim=1)
