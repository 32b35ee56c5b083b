"""The generator: one world in the image, every legal configuration, running means, repeatability."""

import math

import pytest
import torch
from conftest import calibrated_generator, small_config

from multiscale.networks.generator import Generator
from multiscale.networks.layers import modulated_conv2d
from multiscale.view import view_transform


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Decibels for a peak-to-peak signal of the range of ``a``."""
    return 10 * math.log10(float((a.max() - a.min()) ** 2 / (a - b).square().mean()))


@pytest.mark.parametrize("zoom", [2.0, 8.0, 40.0])
def test_views_half_a_view_apart_agree_where_they_overlap(zoom):
    generator = calibrated_generator(small_config(img_resolution=64, channel_max=32))
    z = torch.randn(1, 16)
    centre = torch.tensor([[0.1, -0.05]], dtype=torch.float64)
    half = torch.tensor([[0.5 / zoom, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        left, right = (generator(z, view_transform([zoom], c)) for c in (centre - half / 2, centre + half / 2))
    assert psnr(left[..., 32:], right[..., :32]) > 80


@pytest.mark.parametrize(
    "changes",
    [
        {"img_resolution": 16, "channel_max": 16, "n_bins": 1, "octaves": 1},
        {"img_resolution": 32, "channel_max": 16, "n_bins": 4, "octaves": 10},
        {"img_resolution": 64, "channel_max": 19, "img_channels": 1},
        {"img_resolution": 128, "channel_max": 32, "num_layers": 9, "conv_kernel": 3},
        {"img_resolution": 32, "num_layers": 6, "margin": 4, "radial_filters": False, "num_critical": 1},
    ],
)
def test_legal_configurations_render_and_train(changes):
    generator = Generator(small_config(**changes))
    transform = view_transform([1.0, 2.0], [[0, 0], [0.2, 0.2]])
    image = generator(torch.randn(2, 16), transform)
    side, channels = generator.config.img_resolution, generator.config.img_channels
    assert image.shape == (2, channels, side, side)
    assert image.dtype == torch.float32
    image.square().mean().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_largest_resolution_renders():
    generator = calibrated_generator(small_config(img_resolution=1024, channel_max=16, channel_base=1024, num_layers=6))
    with torch.no_grad():
        image = generator(torch.randn(1, 16), view_transform([1.0], [[0, 0]]))
    assert image.shape == (1, 3, 1024, 1024)
    assert torch.isfinite(image).all()


def test_running_means_move_in_training_mode_only():
    generator = Generator(small_config())
    transform = view_transform([1.0] * 4, [[0, 0]] * 4)
    before = [mean.clone() for mean in generator.running_means()]
    generator.eval()(torch.randn(4, 16), transform)
    assert all(torch.equal(a, b) for a, b in zip(before, generator.running_means(), strict=True))
    generator.train()(torch.randn(4, 16), transform)
    assert not any(torch.equal(a, b) for a, b in zip(before, generator.running_means(), strict=True))


def test_magnitude_half_life_counts_images():
    generator = Generator(small_config(magnitude_half_life_kimg=0.004))
    layer = generator.synthesis.layers[0]
    x = torch.full([4, layer.plan.in_channels, layer.plan.in_size, layer.plan.in_size], 3.0)
    for _ in range(2):
        layer(x, torch.randn(4, 16), observe=True)
    assert layer.magnitude_ema.item() == 1
    generator.update_running_means(4, parts=2)
    assert layer.magnitude_ema.item() == pytest.approx((1 + 9) / 2)
    generator.update_running_means(4)  # what was seen has been forgotten
    assert layer.magnitude_ema.item() == pytest.approx((1 + 9) / 4)


def test_truncation_pulls_towards_the_mean_latent():
    generator = calibrated_generator(small_config())
    z = torch.randn(3, 16)
    full, half, none = (generator.mapping(z, psi) for psi in (1.0, 0.5, 0.0))
    torch.testing.assert_close(none, generator.mapping.w_avg.expand_as(none))
    torch.testing.assert_close(half, (full + none) / 2)


def test_an_image_does_not_depend_on_its_batch():
    generator = calibrated_generator(small_config())
    z = torch.randn(3, 16)
    transform = view_transform([1.0, 5.0, 60.0], [[0, 0], [0.3, 0.1], [-0.4, 0.2]])
    with torch.no_grad():
        together = generator(z, transform)
        alone = torch.cat([generator(z[i : i + 1], transform[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_rotated_views_are_rendered_as_one_world():
    """A quarter turn of the view turns the Fourier features, so the world is the same from any side."""
    point = Generator(small_config()).synthesis.input
    upright = view_transform([4.0], [[0.1, 0.2]])
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turned = point(upright @ turn)
    torch.testing.assert_close(turned, point(upright).rot90(1, [2, 3]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_against_a_loop_over_samples(kernel, demodulate):
    x, weight, style = torch.randn(3, 5, 7, 6), torch.randn(4, 5, kernel, kernel), torch.randn(3, 5)
    gain = torch.tensor(0.7)
    result = modulated_conv2d([x], weight, style, gain, demodulate=demodulate)
    parts = modulated_conv2d([x[:, :2], x[:, 2:]], weight, style, gain, demodulate=demodulate)
    torch.testing.assert_close(parts, result)
    w, y = weight, style
    if demodulate:
        w = w / w.square().mean(dim=[1, 2, 3], keepdim=True).sqrt()
        y = y / y.square().mean().sqrt()
    for i in range(3):
        wi = w * y[i][None, :, None, None]
        if demodulate:
            wi = wi / (wi.square().sum(dim=[1, 2, 3], keepdim=True) + 1e-8).sqrt()
        expected = torch.nn.functional.conv2d(x[i : i + 1], wi * gain, padding=kernel - 1)
        torch.testing.assert_close(result[i : i + 1], expected, atol=1e-5, rtol=1e-5)
