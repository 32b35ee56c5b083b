"""The discriminator beyond its golden numbers (those are in tests/interop)."""

import math

import pytest
import torch

from dnnlib.errors import UserError
from multiscale.config import DiscriminatorConfig, RunConfig, build
from multiscale.networks.discriminator import (
    ARCHITECTURES,
    Discriminator,
    ResidualDiscriminator,
    ScaleEmbedding,
    append_minibatch_stddev,
)
from multiscale.training.estimate import networks_on_meta


def small(*, img_resolution: int = 16, octaves: int = 6, **changes) -> ResidualDiscriminator:
    config = DiscriminatorConfig(channel_base=128, channel_max=16, **changes)
    return ResidualDiscriminator(config, img_resolution=img_resolution, octaves=octaves)


@pytest.mark.parametrize("resolution", [16, 32, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_resolution_gives_one_logit_an_image(resolution, channels):
    config = DiscriminatorConfig(channel_base=128, channel_max=16)
    discriminator = ResidualDiscriminator(config, img_resolution=resolution, img_channels=channels)
    assert discriminator(torch.randn(2, channels, resolution, resolution)).shape == (2, 1)


def test_no_images_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="give at least one"):
        append_minibatch_stddev(torch.zeros(0, 2, 4, 4), 4)


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
    discriminator = small()
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert discriminator.blocks["b16"].conv0.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("octaves", [1, 6, 10])
def test_embeddings_of_zooms_have_unit_second_moment_and_tell_all_zooms_apart(octaves):
    embedding = ScaleEmbedding(octaves, 64)
    zooms = torch.linspace(0, octaves, 50 * octaves + 1)
    e = embedding(zooms)
    torch.testing.assert_close(e.square().mean(dim=1), torch.ones(len(zooms)), atol=1e-4, rtol=0)
    apart = torch.cdist(e, e) / 8  # of embeddings of norm 8
    assert apart[~torch.eye(len(e), dtype=bool)].min() > 1e-3
    assert apart.diagonal(1).max() < 0.5, "neighbours are near"


def test_logit_is_the_projection_of_the_head_on_the_embedding_of_the_zoom():
    discriminator = small(scale_embedding=12)
    heads = []
    discriminator.head.register_forward_hook(lambda module, inputs, output: heads.append(output))
    x, s = torch.randn(4, 3, 16, 16), torch.tensor([0.0, 1.3, 4.0, 6.0])
    logits = discriminator(x, s)
    expected = (heads[0] * discriminator.embedding(s)).sum(dim=1, keepdim=True) / math.sqrt(12)
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, discriminator(x, s.flip(0)))


def test_without_an_embedding_the_zoom_is_not_looked_at_and_with_one_it_is_needed():
    x, s = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 3.0])
    plain = small()
    assert torch.equal(plain(x), plain(x, s))
    with pytest.raises(ValueError, match="give zoom_log2"):
        small(scale_embedding=4)(x)


@pytest.mark.parametrize("embedding", [0, 8])
@pytest.mark.parametrize("resolution", [16, 64])
def test_local_heads_give_a_logit_for_each_place_and_all_heads_count_alike(embedding, resolution):
    discriminator = small(img_resolution=resolution, local_heads=True, scale_embedding=embedding)
    sides = [resolution // 2**i for i in range(1, int(math.log2(resolution)) - 1)]
    assert sides[-1] == 4
    logits = discriminator(torch.randn(2, 3, resolution, resolution), torch.tensor([0.5, 3.0]))
    places = [1, *(side**2 for side in sides)]
    assert logits.shape == (2, sum(places))
    assert discriminator.logit_weights.sum().item() == pytest.approx(1)
    for shares in discriminator.logit_weights.split(places):
        assert shares.sum().item() == pytest.approx(1 / len(places))
        assert torch.equal(shares, shares[:1].expand_as(shares))
    assert small().logit_weights.tolist() == [1]


def test_a_local_logit_looks_at_its_own_place():
    """The first map's, at 32 pixels: a corner's change leaves those of the far half as they are."""
    discriminator = small(img_resolution=64, local_heads=True)
    x = torch.randn(1, 3, 64, 64)
    changed = x.clone()
    changed[..., :4, :4] += 1
    a, b = (discriminator(image)[0, 1 : 1 + 32**2].reshape(32, 32) for image in (x, changed))
    assert not torch.equal(a[0, 0], b[0, 0])
    assert torch.equal(a[16:], b[16:])
    assert torch.equal(a[:, 16:], b[:, 16:])


@pytest.mark.parametrize(
    "changes", [{"local_heads": True}, {"scale_embedding": 8}, {"local_heads": True, "scale_embedding": 8}]
)
def test_second_derivatives_reach_local_heads_and_embedding(changes):
    discriminator = small(**changes)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    logits = discriminator(x, torch.tensor([0.5, 3.0])) * discriminator.logit_weights
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weights = [discriminator.head.out.weight, *(head.weight for head in discriminator.local.values())]
    if discriminator.embedding is not None:
        weights += [discriminator.embedding.hidden.weight, discriminator.embedding.out.weight]
    for weight in weights:
        assert weight.grad.isfinite().all()
        assert weight.grad.any()


class Linear(Discriminator):
    """All that another architecture takes."""

    def __init__(self, config, *, img_resolution, img_channels=3, octaves=6):
        super().__init__(config, img_resolution=img_resolution, img_channels=img_channels, octaves=octaves)
        self.fc = torch.nn.Linear(img_channels * img_resolution**2, 1)

    def forward(self, image, zoom_log2=None):
        return self.fc(image.flatten(1))


def test_another_architecture_is_one_class_and_its_name(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "linear", Linear)

    def made(**settings):
        contents = {"generator": {"img_resolution": 32}, "discriminator": settings}
        return networks_on_meta(build(RunConfig, contents))[1]

    assert type(made()) is ResidualDiscriminator
    linear = made(architecture="linear")
    assert type(linear) is Linear
    assert linear(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, len(linear.logit_weights))
    with pytest.raises(UserError, match=r"no discriminator of architecture 'residul', did you mean 'residual'\?"):
        made(architecture="residul")
