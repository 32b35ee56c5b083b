"""The discriminator beyond its golden numbers (those are in tests/interop)."""

import pytest
import torch

from multiscale.config import DiscriminatorConfig
from multiscale.networks.discriminator import Discriminator, append_minibatch_stddev


@pytest.mark.parametrize("resolution", [16, 32, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_resolution_gives_one_logit_an_image(resolution, channels):
    config = DiscriminatorConfig(channel_base=128, channel_max=16)
    discriminator = Discriminator(config, img_resolution=resolution, img_channels=channels)
    assert discriminator(torch.randn(2, channels, resolution, resolution)).shape == (2, 1)


def test_minibatch_deviation_groups_are_strided_over_the_batch():
    x = torch.randn(6, 2, 4, 4)
    channel = append_minibatch_stddev(x, 3)[:, 2]
    for member in range(2):
        group = x[[member, member + 2, member + 4]]
        expected = (group.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(channel[member::2], expected.expand(3, 4, 4))


def test_group_falls_to_a_divisor_of_the_batch():
    assert torch.isfinite(append_minibatch_stddev(torch.randn(5, 2, 4, 4), 4)).all()
    assert append_minibatch_stddev(torch.randn(1, 2, 4, 4), 4).shape == (1, 3, 4, 4)


def test_second_derivatives_exist_for_r1():
    discriminator = Discriminator(DiscriminatorConfig(channel_base=128, channel_max=16), img_resolution=16)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert discriminator.blocks["b16"].conv0.weight.grad.abs().sum() > 0
