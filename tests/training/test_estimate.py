"""The memory estimate counts what autograd really keeps."""

import pytest
import torch
from conftest import small_config

from multiscale.config import DiscriminatorConfig, RunConfig, build, load_preset
from multiscale.networks.discriminator import Discriminator
from multiscale.networks.generator import Generator
from multiscale.training.estimate import memory_bytes, networks_on_meta, plan_table, saved_bytes
from multiscale.view import unchecked_transform


def test_distinct_tensors_are_counted_once():
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 4000
    assert saved_bytes(lambda: (y := x.exp()) * y) == 4000
    assert saved_bytes(lambda: x.exp().tanh()) == 8000


def test_the_count_without_computing_is_the_count_with_it():
    generator = Generator(small_config())
    transform = unchecked_transform(torch.ones(1), torch.zeros(1, 2))
    real = saved_bytes(lambda: generator(torch.randn(1, 16), transform, update_emas=False))
    generator.to("meta")
    z = torch.empty(1, 16, device="meta")
    imagined = saved_bytes(lambda: generator(z, transform.to("meta"), update_emas=False))
    assert imagined == pytest.approx(real, rel=0.02)


def test_activations_grow_with_the_share_of_the_batch():
    generator = Generator(small_config()).to("meta")
    discriminator = Discriminator(DiscriminatorConfig(channel_base=128, channel_max=16), img_resolution=32).to("meta")
    one, four = (memory_bytes(generator, discriminator, share) for share in (1, 4))
    assert one[0] == four[0] > 0
    assert four[1] == 4 * one[1] > 0


def test_the_published_discriminators_have_their_published_size():
    """Wolski et al. 2024: 133 M parameters for six octaves, 271 M for eight."""
    for name, published in (("moon", 133e6), ("spain", 271e6)):
        _, discriminator = networks_on_meta(build(RunConfig, load_preset(name)))
        assert sum(p.numel() for p in discriminator.parameters()) == pytest.approx(published, rel=0.005)


def test_the_plan_is_a_line_a_layer():
    generator = Generator(small_config())
    lines = plan_table(generator.plan).splitlines()
    assert len(lines) == 2 + len(generator.plan.layers)
    assert lines[-1].startswith("toRGB")
