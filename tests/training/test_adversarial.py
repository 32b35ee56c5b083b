"""The objective's parts against plain arithmetic."""

import math

import pytest
import torch

from multiscale.training.adversarial import (
    blur,
    blur_sigma,
    discriminator_loss,
    generator_loss,
    lazy_adam,
    lr_factor,
    pair_loss,
    r1_penalty,
    weighted_mean,
)


def test_losses_are_logistic():
    fake, real = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.5], [0.1]])
    assert generator_loss(fake).item() == pytest.approx(
        sum(math.log(1 + math.exp(-x)) for x in (0.3, -2.0)) / 2, rel=1e-6
    )
    expected = sum(math.log(1 + math.exp(x)) for x in (0.3, -2.0, -1.5, -0.1)) / 2
    assert discriminator_loss(fake, real).item() == pytest.approx(expected, rel=1e-6)


def test_pairs_compare_a_real_and_a_generated_patch():
    real, fake = torch.tensor([[1.5], [0.1]]), torch.tensor([[0.3], [-2.0]])
    above = (1.5 - 0.3, 0.1 + 2.0)  # by which the real one of each pair is above
    assert pair_loss(real, fake).item() == pytest.approx(sum(math.log(1 + math.exp(-x)) for x in above) / 2, rel=1e-6)
    assert pair_loss(fake, real).item() == pytest.approx(sum(math.log(1 + math.exp(x)) for x in above) / 2, rel=1e-6)
    assert pair_loss(real + 7, fake + 7).item() == pytest.approx(pair_loss(real, fake).item(), rel=1e-5)


def test_several_logits_of_an_image_count_by_their_shares():
    weights = torch.tensor([0.5, 0.25, 0.25])
    a, b = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), torch.tensor([[0.2, 0.4, -0.6], [-0.8, 1.0, 1.2]])

    def by_hand(values):
        return (values.double().exp().log1p() @ weights.double()).mean().item()

    assert weighted_mean(a, weights).tolist() == [0.5 - 0.5 + 0.125, 0.75 - 0.25]
    assert generator_loss(a, weights).item() == pytest.approx(by_hand(-a), rel=1e-6)
    assert discriminator_loss(a, b, weights).item() == pytest.approx(by_hand(a) + by_hand(-b), rel=1e-6)
    assert pair_loss(a, b, weights).item() == pytest.approx(by_hand(b - a), rel=1e-6)
    assert weighted_mean(a).tolist() == pytest.approx([-1 / 6, 2 / 3])


def test_r1_of_a_quadratic_is_known():
    real = torch.randn(4, 3, 8, 8, requires_grad=True)
    logits = 0.5 * real.square().sum(dim=[1, 2, 3])[:, None]  # the gradient is the image itself
    penalty = r1_penalty(logits, real, gamma=3.0)
    assert penalty.item() == pytest.approx(1.5 * real.detach().square().sum(dim=[1, 2, 3]).mean().item(), rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(real.grad, 3.0 * real.detach() / 4)


def test_lazy_correction_is_sixteen_seventeenths():
    rate, betas = lazy_adam(0.002, (0.0, 0.99), 16)
    assert rate == pytest.approx(0.002 * 16 / 17)
    assert betas == (0.0, pytest.approx(0.99 ** (16 / 17)))


def test_learning_rates_fall_in_the_second_half_of_a_run():
    assert [lr_factor(t, 0.2) for t in (0, 0.5, 0.75, 1, 1.5)] == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    assert lr_factor(0.9, 1.0) == 1


def test_blur_fades_linearly_to_nothing():
    sigmas = [blur_sigma(t, sigma_px=10, fade_images=200_000) for t in (0, 50_000, 200_000, 300_000)]
    assert sigmas == [10, 7.5, 0, 0]


def test_blur_is_the_stated_kernel():
    images = torch.zeros(1, 2, 33, 33)
    images[..., 16, 16] = 1
    sigma = 2.5
    kernel = [2 ** -((x / sigma) ** 2) for x in range(-7, 8)]  # cut at 3 sigma: 7 pixels
    kernel = torch.tensor(kernel) / sum(kernel)
    expected = torch.zeros(33, 33)
    expected[9:24, 9:24] = torch.outer(kernel, kernel)
    torch.testing.assert_close(blur(images, sigma)[0, 1], expected)
    assert blur(images, 0.2) is images


def test_blur_wider_than_the_image_keeps_its_size():
    assert blur(torch.randn(1, 3, 16, 16), 10.0).shape == (1, 3, 16, 16)
