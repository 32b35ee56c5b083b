"""Fourier features: golden numbers, one world at all zooms, no aliasing."""

import math

import pytest
import torch
from conftest import small_config

from multiscale.networks.fourier import band_limit_gain, bin_blend, fourier_features
from multiscale.networks.generator import FeatureInjection, Generator
from multiscale.networks.plan import BAND_LIMIT
from multiscale.view import unchecked_transform


def test_features_agree_with_golden_float64_evaluation(golden):
    g = golden("fourier_features_exact")
    for i, m in enumerate(g.meta):
        features = fourier_features(
            g[f"omega{i}"],
            g[f"phase{i}"],
            torch.arange(m["channels"]) % m["n_bins"],
            torch.tensor(m["log2_zoom"], dtype=torch.float64),
            g[f"centre{i}"],
            size=m["size"],
            rate=m["rate"],
            bin_offset=m["bin_offset"],
            blend_offset=m["blend_offset"],
            blend_width=m["blend_width"],
            band_limit=m["kappa"] if m["damp"] else None,
        )
        torch.testing.assert_close(features.float(), g[f"out{i}"], atol=1e-5, rtol=0)


def injections(**changes) -> list[FeatureInjection]:
    synthesis = Generator(small_config(**changes)).synthesis
    return [synthesis.input, *synthesis.injections.values()]


@pytest.mark.parametrize("resolution", [32, 256])
@pytest.mark.parametrize("zoom_log2", [1.0, 3.3, 6.0, 8.0])
def test_one_world_at_every_injection_point(resolution, zoom_log2):
    """The same world points seen at zoom Z and at Z/2 have the same features (where both show them in full)."""
    points = injections(img_resolution=resolution, channel_max=200, octaves=8, n_bins=3)
    assert resolution < 256 or len(points) == 5
    for point in points:
        n, r, zoom = point.size, point.rate, 2**zoom_log2
        centre = torch.tensor([[0.21, -0.13]], dtype=torch.float64)
        half_sample = 0.5 / (r * zoom)  # brings every coarse sample onto a fine one: j = 2 j' + 1 - n/2
        fine = point(unchecked_transform(torch.tensor([zoom]), centre))[0]
        coarse = point(unchecked_transform(torch.tensor([zoom / 2]), centre + half_sample))[0]
        wide = torch.arange(n // 4, n - n // 4)
        deep = 2 * wide + 1 - n // 2

        amplitude = [full_amplitude(point, s) for s in (zoom_log2, zoom_log2 - 1)]
        shown = (amplitude[0] == 1) & (amplitude[1] == 1)
        assert shown.float().mean() > 0.1
        difference = fine[shown][:, deep][:, :, deep] - coarse[shown][:, wide][:, :, wide]
        assert difference.abs().max() < 2e-5


def full_amplitude(point: FeatureInjection, zoom_log2: float) -> torch.Tensor:
    """a_b(s) d_k(s) of a point's features, [K]."""
    s = torch.tensor([zoom_log2], dtype=torch.float64)
    frequency = 2 ** (3.0 * point.bins) * point.omega.double().norm(dim=1) / 2**zoom_log2
    blend = bin_blend(3.0 * point.bins, s, point.bins, -1.0, 1.0)[0]
    return blend * band_limit_gain(frequency, point.rate, BAND_LIMIT)


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_no_energy_above_nyquist_at_any_zoom(resolution):
    for point in injections(img_resolution=resolution, channel_max=128, octaves=10, n_bins=4):
        for s in torch.linspace(0, 10, 41).tolist():
            maps = point(unchecked_transform(torch.tensor([2.0**s]), torch.zeros(1, 2)))[0]
            energy = maps.double().square().mean(dim=[1, 2])
            frequency = 2 ** (3.0 * point.bins) * point.omega.double().norm(dim=1) / 2**s
            above = energy[frequency > point.rate / 2].sum() / energy.sum()
            assert 10 * math.log10(above + 1e-30) < -40, s


def test_translation_by_whole_pixels_shifts_the_features_exactly():
    for point in injections(img_resolution=256, channel_max=128):
        zoom = torch.tensor([2.0**4.7])
        shift = torch.tensor([[3.0, -5.0]], dtype=torch.float64) / (zoom.double() * point.rate)
        centre = torch.tensor([[0.17, 0.31]], dtype=torch.float64)
        a, b = (point(unchecked_transform(zoom, c)) for c in (centre, centre + shift))
        torch.testing.assert_close(b[..., 5:, :-3], a[..., :-5, 3:], atol=2e-5, rtol=0)


def test_phase_at_256x_is_exact():
    """At 256x a float32 phase is off by 1e-3; ours agrees with plain float64 arithmetic."""
    omega = torch.tensor([[63.7, 11.3]]).double()
    centre = torch.tensor([[0.4817, -0.3291]], dtype=torch.float64)
    arguments = {"size": 36, "rate": 16, "band_limit": None}
    one = (torch.tensor([0.25]), torch.tensor([2]), torch.tensor([8.0]), centre)
    single = fourier_features(omega.float(), *one, **arguments)
    v = (torch.arange(36).double() - 17.5) / 16
    omega = omega.float().double() * 64
    x = omega[0, 0] * (centre[0, 0] + v / 256)
    y = omega[0, 1] * (centre[0, 1] + v / 256)
    exact = torch.sin(2 * math.pi * (x[None, :] + y[:, None] + 0.25))
    assert (single[0, 0].double() - exact).abs().max() < 1e-5
