"""Wave packets: the formula they stand for, one world at every zoom, no aliasing, numbers that never change."""

import math

import pytest
import torch
from conftest import small_config
from torch.testing import assert_close

from dnnlib.errors import UserError
from multiscale.config import RunConfig, build
from multiscale.networks.fourier import Waves
from multiscale.networks.generator import FeatureInjection, Generator
from multiscale.networks.packets import BENT_WAVES, draw_packets
from multiscale.view import AffineViews, sample_positions, unchecked_transform, view_transform

PACKETS = {"fourier_features": 96, "feature_bandwidth": 0.3, "n_bins": 3, "bin_offset": 2, "blend_offset": -16}
CENTRES = torch.tensor([[0.4817, -0.3291], [0.03, 0.2]], dtype=torch.float64)


def injections(**changes) -> list[FeatureInjection]:
    synthesis = Generator(small_config(**PACKETS | changes)).synthesis
    return [synthesis.input, *synthesis.injections.values()]


def turned_by(angle: float, zoom: float) -> torch.Tensor:
    """Views of ``CENTRES`` at an angle, [2, 3, 3]."""
    transform = unchecked_transform(torch.tensor([zoom, zoom / 3]), CENTRES)
    cos, sin = math.cos(angle), math.sin(angle)
    transform[:, :2, :2] = transform[:, :2, :2] @ torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    return transform


def exact_packets(
    point: FeatureInjection, views: AffineViews, size: tuple[int, int] | None = None, *, finer: int = 1
) -> torch.Tensor:
    """A point's features in float64 by the formula of packets.py, [B, K, rows, columns], or ``finer`` times as many samples."""
    config, grid = point.config, point.grid(size)
    x, y = (sample_positions(n * finer, grid.rate * finer) for n in (grid.columns, grid.rows))
    seen = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]))
    world = views.centre[:, :, None, None] + torch.einsum("bij,jhw->bihw", views.linear, seen)
    omega = point.omega.double() * 2.0 ** (config.bin_offset * point.bins[:, None])
    length = omega.norm(dim=1)
    single = (length < config.feature_anchor)[:, None, None]
    in_view = (omega[None] @ views.linear).norm(dim=2)
    passed = point.rate / (2 * math.sqrt(2))
    limit = (1 - (in_view - passed) / (point.rate / 2 - passed)).clamp(0, 1)[..., None, None]
    spread = config.feature_bandwidth * length
    box = omega.abs() + spread[:, None]
    corners = torch.stack([box, box * torch.tensor([1, -1])]) @ views.linear[:, None]  # [B, 2, K, 2]
    part = point.rate / 2 / corners.norm(dim=-1).amax(dim=1)  # [B, K]
    most = spread / 2
    total = 0
    of_point = torch.einsum("ki,bihw->bkhw", omega, world) + point.phase.double()[:, None, None]
    for term in range(BENT_WAVES):
        angle, kept = of_point, 1
        for axis in (0, 1):
            places = point.packet_place.double()[:, axis, term]
            q, q_bend = point.packet_phase.double()[:, axis, term, :, None, None].unbind(1)
            shift = (most * (2 * places[:, 0] - 1))[:, None, None]
            slow = (spread * (0.05 + 0.15 * places[:, 1]))[:, None, None]
            along = world[:, axis, None]
            turn = 2 * math.pi * (slow * along + q_bend)
            bend = most[:, None, None] / (2 * math.pi * slow) * turn.sin()
            angle = angle + shift * along + q + bend
            local = omega[:, axis, None, None] + shift + most[:, None, None] * turn.cos()
            place = local.abs() / box[:, axis, None, None]
            assert place.max() <= 1 + 1e-9, "a local frequency outside the packet's box"
            kept = kept * ((part[..., None, None] - place) / 0.1).clamp(0, 1)
        total = total + kept * (2 * math.pi * angle).sin() / math.sqrt(BENT_WAVES)
    return torch.where(single, limit * (2 * math.pi * of_point).sin(), total)


@pytest.mark.parametrize("angle", [0.0, 0.6])
@pytest.mark.parametrize("size", [None, (32, 32 + 3 * 16)])
@pytest.mark.parametrize("zoom", [1.0, 48.0])
def test_packets_are_what_their_formula_says(angle, size, zoom):
    views = AffineViews.of(turned_by(angle, zoom), turned=angle != 0)
    for point in injections(img_resolution=32):
        waves, exact = point.waves(views, size), exact_packets(point, views, size)
        assert (waves.maps().double() - exact).abs().max() < 5e-5
        for channels in (3, 700):  # few are mixed along y first, many as maps
            weight = torch.randn(channels, exact.shape[1]) / math.sqrt(exact.shape[1])
            expected = torch.einsum("ck,bkhw->bchw", weight.double(), exact)
            assert (waves.mixed(weight).double() - expected).abs().max() < 5e-5


def test_quadrature_of_a_packet_is_its_other_part():
    """A style turns the phase of every wave of a packet by the same angle."""
    views = AffineViews.of(view_transform([9.0], [[0.1, -0.2]]))
    for point in injections(img_resolution=64):
        waves = point.waves(views)
        amplitude = torch.tensor([0.0, 1.0]).expand(1, len(point.omega), 2)
        point.phase += 0.25
        assert_close(waves.styled(amplitude).maps(), point.waves(views).maps(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("zoom_log2", [1.0, 3.3, 6.0])
def test_one_world_at_every_injection_point(zoom_log2):
    """The same world points seen at zoom Z and at Z/2 have the same packets (where both show them in full)."""
    for point in injections(img_resolution=64, octaves=8):
        n, r, zoom = point.size, point.rate, 2**zoom_log2
        centre = torch.tensor([[0.21, -0.13]], dtype=torch.float64)
        fine = point(AffineViews.of(unchecked_transform(torch.tensor([zoom]), centre)))[0]
        coarse = point(AffineViews.of(unchecked_transform(torch.tensor([zoom / 2]), centre + 0.5 / (r * zoom))))[0]
        wide = torch.arange(n // 4, n - n // 4)
        deep = 2 * wide + 1 - n // 2
        box = point.world.double().abs() + 0.3 * point.frequency.double()[:, None]
        shown = box.norm(dim=1) / (zoom / 2) < r / 2 / 1.1
        assert shown.float().mean() > 0.1
        assert (fine[shown][:, deep][:, :, deep] - coarse[shown][:, wide][:, :, wide]).abs().max() < 3e-5


@pytest.mark.parametrize("s", [3.3, 5.2])
def test_packets_reach_up_to_nyquist_and_not_beyond(s):
    """Their spectrum, of twice as many samples, under a window that lets 1e-4 of a wave's power pass 3 cycles."""
    views = AffineViews.of(unchecked_transform(torch.tensor([2.0**s]), torch.zeros(1, 2)))
    everywhere = {"img_resolution": 64, "octaves": 8, "fourier_features": 1024, "n_bins": 8, "bin_offset": 1}
    for point in injections(**everywhere):
        side, rate = 2 * point.size, point.rate
        window = torch.hann_window(side, periodic=False, dtype=torch.float64)
        packets = exact_packets(point, views, finer=2)[0, point.frequency >= 2**s * rate / 16]
        power = torch.fft.fft2(packets * window * window[:, None]).abs().square().sum(dim=0)
        cycles = torch.fft.fftfreq(side, 1 / (2 * rate), dtype=torch.float64)  # a view
        seen = torch.hypot(cycles, cycles[:, None])
        low, high = rate / 4, rate / 2
        middle = math.sqrt(low * high)
        assert power[seen > high + 3].sum() < 1e-4 * power.sum()
        below, above = (power[(seen > a) & (seen < b)].sum() for a, b in ((low, middle), (middle, high)))
        assert above > 0.2 * below, "packets that end as a whole leave 0 to 0.2 at some zooms"


def test_a_packet_is_limited_where_its_view_is_finest():
    point = injections(img_resolution=64, octaves=8, fourier_features=1024)[-1]
    shear = torch.tensor([[0.25, 0.0], [0.2, 0.25]], dtype=torch.float64)
    linear = torch.eye(3, dtype=torch.float64)
    linear[:2, :2] = shear
    sheared = point.waves(AffineViews.of(linear[None], turned=True)).maps()[0].flatten(1).any(dim=1)
    box = point.world.double().abs() + 0.3 * point.frequency.double()[:, None]
    corners = torch.stack([box, box * torch.tensor([1, -1])]) @ shear
    assert not sheared[corners.norm(dim=-1).amax(dim=0) > 2 * point.rate / 2].any()
    assert sheared[corners.norm(dim=-1).amax(dim=0) < point.rate / 2].all()


def test_packets_have_the_power_of_single_waves_and_none_repeats():
    torch.manual_seed(0)
    [point, *_] = injections(img_resolution=64, fourier_features=1024)
    far = AffineViews.of(view_transform([1.0] * 16, torch.zeros(16, 2)))
    far.centre.uniform_(-100, 100)
    shown = (point.omega.norm(dim=1) * 4.0**point.bins > 2) & (point.omega.norm(dim=1) * 4.0**point.bins < 5)
    waves, quadrature = point.waves(far), torch.tensor([0.0, 1.0]).expand(16, len(point.omega), 2)
    power = (waves.maps().square() + waves.styled(quadrature).maps().square())[:, shown]
    assert power.mean().item() == pytest.approx(1, rel=0.1)
    assert power.std() > 0.6, "packets are strong here and weak there"


def test_what_tells_places_is_still_single_waves():
    torch.manual_seed(0)
    [packets, *_] = injections(feature_style=True)
    torch.manual_seed(0)
    [waves, *_] = injections(feature_style=True, feature_bandwidth=0)
    views = AffineViews.of(view_transform([1.0, 2.0], [[0, 0], [0.2, -0.1]]))
    a, b = (point.waves(views).maps() for point in (packets, waves))
    same = (a - b).abs().amax(dim=(0, 2, 3)) < 1e-6
    shown = b.abs().amax(dim=(0, 2, 3)) > 0
    anchored = packets.omega.norm(dim=1) * 4.0**packets.bins < 1.5
    assert anchored.any()
    assert torch.equal(same & shown, anchored)


def test_networks_of_waves_open_as_packets():
    """Packets have no weights: trained features can become packets, and go on training."""
    single = Generator(small_config(**PACKETS | {"feature_bandwidth": 0}))
    packets = Generator(small_config(**PACKETS))
    packets.load_state_dict(single.state_dict())
    view = view_transform([8.0], [[0.1, 0.1]])
    with torch.no_grad():
        assert (packets(torch.ones(1, 16), view) - single(torch.ones(1, 16), view)).abs().max() > 0.01


@pytest.mark.parametrize("changes", [{}, {"feature_style": True}, {"world_frame": True}])
def test_views_at_an_angle_render_without_being_told(changes):
    generator = Generator(small_config(img_resolution=32, **PACKETS | changes)).eval()
    synthesis, ws = generator.synthesis, generator.mapping(torch.randn(2, 16))
    upright = turned_by(0, 12.0)
    straight, on_its_side = (synthesis.waves(synthesis.views(t, ws)) for t in (upright, turned_by(math.pi / 2, 12.0)))
    for key in straight:
        assert_close(torch.rot90(on_its_side[key].maps(), -1, (2, 3)), straight[key].maps(), atol=2e-5, rtol=0)
    assert isinstance(straight["input"], Waves)
    assert (straight["input"].shape is None) == ("world_frame" not in changes)


PINNED = [[0.4764254438923672, 0.2823992547346279], [0.9442692814627662, 0.4284678647527471]]


def test_numbers_never_change():
    """They are in no file: a network's worlds would be others with other numbers."""
    place, phase = draw_packets(170, 16)
    assert place.shape == phase.shape == (170, 2, BENT_WAVES, 2)
    assert_close(place[0, 0, 0].tolist(), PINNED[0])
    assert_close(phase[169, 1, 2].tolist(), PINNED[1])
    assert place.min() > 0
    assert place.max() < 1
    assert (phase[:10] != draw_packets(10, 32)[1]).all()


def test_packets_of_imported_weights_are_refused():
    with pytest.raises(UserError, match="feature_bandwidth is not for imported weights"):
        build(RunConfig, {"generator": {"feature_bandwidth": 0.1, "published_geometry": True}})
