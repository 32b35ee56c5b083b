"""Fourier features: golden numbers, one world at all zooms, no aliasing."""

import math

import pytest
import torch
from conftest import small_config

from multiscale.networks.fourier import Grid, Waves, band_limit_gain, bin_blend, fourier_features, waves_of_views
from multiscale.networks.generator import FeatureInjection, Generator, waves_of_points
from multiscale.networks.plan import BAND_LIMIT
from multiscale.view import AffineViews, sample_positions, unchecked_transform


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
        fine = point(AffineViews.of(unchecked_transform(torch.tensor([zoom]), centre)))[0]
        coarse = point(AffineViews.of(unchecked_transform(torch.tensor([zoom / 2]), centre + half_sample)))[0]
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
            maps = point(AffineViews.of(unchecked_transform(torch.tensor([2.0**s]), torch.zeros(1, 2))))[0]
            energy = maps.double().square().mean(dim=[1, 2])
            frequency = 2 ** (3.0 * point.bins) * point.omega.double().norm(dim=1) / 2**s
            above = energy[frequency > point.rate / 2].sum() / energy.sum()
            assert 10 * math.log10(above + 1e-30) < -40, s


def test_translation_by_whole_pixels_shifts_the_features_exactly():
    for point in injections(img_resolution=256, channel_max=128):
        zoom = torch.tensor([2.0**4.7])
        shift = torch.tensor([[3.0, -5.0]], dtype=torch.float64) / (zoom.double() * point.rate)
        centre = torch.tensor([[0.17, 0.31]], dtype=torch.float64)
        a, b = (point(AffineViews.of(unchecked_transform(zoom, c))) for c in (centre, centre + shift))
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


RATE = 16
CENTRES = [[0.4817, -0.3291], [0.03, 0.2]]


def deep_waves(count: int, size: tuple[int, int], *, turn: float = 0.0) -> tuple[Waves, torch.Tensor]:
    """Factors of waves in two views at 256x, turned by an angle, and the phases in radians by plain float64 arithmetic."""
    omega, phase = torch.randn(count, 2), torch.rand(count) - 0.5
    omega *= 8 / omega.norm(dim=1, keepdim=True)
    bins = torch.arange(count) % 3
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    linear = (rotation / 256).expand(2, 2, 2)
    centre = torch.tensor(CENTRES, dtype=torch.float64)
    [waves] = waves_of_views(
        omega,
        phase,
        bins,
        AffineViews(linear, centre, torch.tensor([8.0, 8.0])),
        [Grid(count, *size, RATE)],
        bin_offset=3.0,
        blend_offset=-1.0,
        blend_width=1.0,
        band_limit=None,
    )
    x, y = (sample_positions(n, RATE) for n in size)
    view = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))  # [2, rows, columns]
    world = centre[:, :, None, None] + torch.einsum("bij,jhw->bihw", linear, view)
    cycles = torch.einsum("ki,bihw->bkhw", omega.double() * 8.0 ** bins[:, None], world)
    return waves, 2 * math.pi * (cycles + phase.double()[:, None, None])


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("size", [None, (64, 64 + 3 * 16)])
def test_waves_of_all_injection_points_at_once_are_those_of_each(published, size):
    points = injections(
        img_resolution=64, channel_max=128, published_geometry=published, published_frequencies=published
    )
    assert len(points) > 1
    views = AffineViews.of(unchecked_transform(torch.tensor([2.0, 50.0]), torch.tensor(CENTRES, dtype=torch.float64)))
    for point, together in zip(points, waves_of_points(points, views, size), strict=True):
        alone = point.waves(views, size)
        exact = exact_maps(point, views, size)
        for waves in (alone, together):
            assert (waves.maps().double() - exact).abs().max() < 1e-5


def exact_maps(point: FeatureInjection, views: AffineViews, size: tuple[int, int] | None) -> torch.Tensor:
    """A point's features in float64, as :func:`fourier_features` defines them."""
    side = point.config.img_resolution
    columns, rows = (point.size + (pixels - side) * point.rate // side for pixels in size or (side, side))
    x, y = (sample_positions(n, point.rate) for n in (columns, rows))
    seen = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))
    world = point.shift_gain * views.centre[:, :, None, None] + torch.einsum("bij,jhw->bihw", views.linear, seen)
    omega = point.unit * point.omega.double() * 8.0 ** point.bins[:, None]
    cycles = torch.einsum("ki,bihw->bkhw", omega, world) + point.phase.double()[:, None, None]
    gains = [full_amplitude(point, s) for s in views.zoom_log2.tolist()]
    if point.config.published_geometry:  # without a band limit
        gains = [bin_blend(3.0 * point.bins, s[None], point.bins, -1.0, 1.0)[0] for s in views.zoom_log2]
    return torch.stack(gains)[:, :, None, None] * (2 * math.pi * cycles).sin()


@pytest.mark.parametrize("turn", [0.0, 0.6])
@pytest.mark.parametrize("size", [(36, 36), (20, 51), (51, 20)])
@pytest.mark.parametrize("channels", [1, 3, 60])  # few are mixed along y first, many as maps
def test_mixed_waves_are_the_product_of_weights_and_maps_in_both_orders(turn, size, channels):
    waves, exact = deep_waves(40, size, turn=turn)
    weight = torch.randn(channels, 40) / math.sqrt(40)
    mixed = waves.mixed(weight)
    assert mixed.shape == (2, channels, size[1], size[0])
    torch.testing.assert_close(mixed, torch.einsum("ck,bkhw->bchw", weight, waves.maps()), atol=1e-5, rtol=0)
    expected = torch.einsum("ck,bkhw->bchw", weight.double(), exact.sin())
    assert (mixed.double() - expected).abs().max() < 2e-5


@pytest.mark.parametrize("turn", [0.0, 0.6])
def test_styled_waves_are_sums_of_sines_and_cosines(turn):
    waves, exact = deep_waves(40, (20, 33), turn=turn)
    style = torch.randn(2, 40, 2)
    a, b = style.double()[..., None, None].unbind(2)
    found = waves.styled(style).maps().double()
    assert (found - (a * exact.sin() + b * exact.cos())).abs().max() < 2e-5 * style.abs().max()


def test_mixing_has_gradients_of_weights_and_styles_in_both_orders():
    waves, _ = deep_waves(5, (6, 7))
    waves = Waves(*(getattr(waves, name).double() for name in ("sin_x", "cos_x", "sin_y", "cos_y")))
    style = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    for channels in (2, 8):
        weight = torch.randn(channels, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda w, s: waves.styled(s).mixed(w), (weight, style))
