"""The generator: one world in the image, every legal configuration, running means, repeatability."""

import dataclasses
import math

import pytest
import torch
from conftest import calibrated_generator, small_config

from multiscale.networks.fourier import Waves
from multiscale.networks.generator import Generator
from multiscale.networks.layers import modulated_conv2d
from multiscale.view import AffineViews, view_transform

MIXED = {"fourier_features": 200}
STYLED = MIXED | {"feature_style": True, "world_frame": True}
WORLDS = pytest.mark.parametrize("changes", [{}, MIXED, STYLED], ids=["as published", "mixed", "with a frame"])


def worlds_apart(generator: Generator) -> Generator:
    """Give each latent a frame of its own, as training does (a new generator's are all the same)."""
    if generator.synthesis.frame is not None:
        with torch.no_grad():
            generator.synthesis.frame.weight.normal_(std=0.3)
    return generator


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Decibels for a peak-to-peak signal of the range of ``a``."""
    return 10 * math.log10(float((a.max() - a.min()) ** 2 / (a - b).square().mean()))


@WORLDS
@pytest.mark.parametrize("zoom", [2.0, 8.0, 40.0])
def test_views_half_a_view_apart_agree_where_they_overlap(zoom, changes):
    generator = worlds_apart(calibrated_generator(small_config(img_resolution=64, channel_max=32, **changes)))
    z = torch.randn(1, 16)
    centre = torch.tensor([[0.1, -0.05]], dtype=torch.float64)
    half = torch.tensor([[0.5 / zoom, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        left, right = (generator(z, view_transform([zoom], c)) for c in (centre - half / 2, centre + half / 2))
    assert psnr(left[..., 32:], right[..., :32]) > 80


@WORLDS
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_a_larger_image_holds_the_view_of_its_middle(changes, turn):
    generator = worlds_apart(calibrated_generator(small_config(img_resolution=64, **changes)))
    ws = generator.mapping(torch.randn(1, 16))
    transform = view_transform([16.0], [[0.21, -0.13]])
    transform[:, :2, :2] = transform[:, :2, :2] @ rotation(turn)
    with torch.no_grad():
        view, wide = generator.synthesis(ws, transform), generator.synthesis(ws, transform, size=(128, 96))
    assert wide.shape == (1, 3, 96, 128)
    middle = wide[..., 16:80, 32:96]
    assert psnr(view, middle) > 80
    assert psnr(view[..., 8:-8, 8:-8], middle[..., 8:-8, 8:-8]) > 115  # the border alone feels where the layers end


def rotation(angle: float) -> torch.Tensor:
    """The matrix that turns by an angle in radians, float64 [2, 2]."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)


def test_world_frames_start_as_the_identity():
    """A new generator shows with frames what it shows without."""
    generator = calibrated_generator(small_config(**STYLED))
    transform = view_transform([1.0, 64.0], [[0, 0], [0.3, -0.4]])
    ws = generator.mapping(torch.randn(2, 16))
    assert torch.equal(generator.synthesis.framed(transform, ws), transform)
    with torch.no_grad():
        framed = generator.synthesis(ws, transform)
        generator.synthesis.frame = None
        assert torch.equal(framed, generator.synthesis(ws, transform))


def test_a_world_in_a_turned_and_shifted_frame_is_the_world_seen_by_a_moved_view():
    generator = calibrated_generator(small_config(**STYLED))
    frame = generator.synthesis.frame
    ws = generator.mapping(torch.randn(1, 16))
    transform = view_transform([5.0], [[0.2, -0.1]])
    moved = transform.clone()
    moved[:, :2, :2] = rotation(0.6) @ transform[:, :2, :2]
    moved[:, :2, 2] = transform[:, :2, 2] @ rotation(0.6).T + torch.tensor([0.07, -0.3], dtype=torch.float64)
    with torch.no_grad():
        expected = generator.synthesis(ws, moved)
        angle_and_shift = torch.tensor([math.cos(0.6), math.sin(0.6), 0.07, -0.3])
        frame.bias.copy_(3 * angle_and_shift)  # the length of (r_c, r_s) divides all four
        assert psnr(expected, generator.synthesis(ws, transform)) > 80
        assert psnr(expected, generator.synthesis(ws, moved)) < 30


def test_frames_do_not_depend_on_how_many_views_are_rendered_at_a_time():
    """Rounded to float32 a shift may be off by 1e-8 and more: at 1024x, a thousandth of a pixel between two tiles."""
    generator = worlds_apart(Generator(small_config(octaves=10, **STYLED)))
    ws = generator.mapping(torch.randn(1, 16))
    transform = view_transform([1024.0], [[0.2, -0.1]])
    together = generator.synthesis.framed(transform.expand(7, 3, 3), ws.expand(7, -1, -1))
    torch.testing.assert_close(together[3:4], generator.synthesis.framed(transform, ws), atol=1e-14, rtol=0)


def test_worlds_with_styles_and_frames_differ_in_their_features():
    """Without them all worlds are made of the same features."""
    transform = view_transform([3.0], [[0.1, 0.1]])
    for changes in ({}, MIXED, MIXED | {"feature_style": True}, MIXED | {"world_frame": True}):
        generator = worlds_apart(Generator(small_config(**changes)))
        synthesis, ws = generator.synthesis, generator.mapping(torch.randn(2, 16))
        waves = (synthesis.waves(AffineViews.of(synthesis.framed(transform, w))) for w in ws.split(1))
        a, b = (synthesis.first_maps(of_world, w)[0] for of_world, w in zip(waves, ws.split(1), strict=True))
        assert torch.equal(a, b) == (changes in ({}, MIXED))


def test_the_code_of_the_features_has_no_mean_over_worlds_and_is_not_truncated():
    mapping = Generator(small_config(**MIXED | {"feature_style": True})).mapping
    z = torch.randn(20000, 16)
    ws = mapping(z)
    assert ws[:, 0].mean(dim=0).abs().max() < 0.05
    assert 0.5 < ws[:, 0].square().mean() < 2
    torch.testing.assert_close(mapping(-z)[:, 0], -ws[:, 0])
    torch.testing.assert_close(mapping(z, 0.3)[:, 0], ws[:, 0])
    assert (mapping(z, 0.3)[:, 1] - ws[:, 1]).abs().max() > 0.1


def test_only_the_lowest_frequencies_are_alike_in_all_worlds():
    generator = Generator(small_config(**MIXED | {"feature_style": True, "n_bins": 1}))
    point, transform = generator.synthesis.input, view_transform([1.0], [[0.0, 0.0]])
    a, b = (point(AffineViews.of(transform), w=w) for w in generator.mapping(torch.randn(2, 16))[:, 0].split(1))
    same = (a == b).flatten(2).all(dim=2)[0] & (a != 0).flatten(2).any(dim=2)[0]
    assert same.any()
    assert torch.equal(same, point.omega.norm(dim=1) < 1.5)


def test_even_features_count_alike_in_every_world_and_in_all():
    """Uneven weights and styles, as training makes them, are evened octave by octave; what an octave weighs stays."""
    generator = Generator(small_config(img_resolution=64, **MIXED, n_bins=3, feature_style=True, even_features=True))
    synthesis = generator.synthesis
    w = torch.randn(8, 16)
    mixing = {"input": synthesis.input_weight, **synthesis.mixing}
    for name, point in synthesis.points().items():
        waves = len(point.omega)
        with torch.no_grad():
            mixing[name].mul_(torch.linspace(0.1, 3, waves))
            point.style.mul_(torch.linspace(2, 0.5, 2 * waves)[:, None])
        one = torch.ones(8, waves, 1)
        turned = point.styled(Waves(0 * one, one, one, 0 * one), w)
        length = torch.hypot(turned.sin_y, turned.cos_y)[..., 0] / w.square().mean(dim=1, keepdim=True).sqrt()
        free = ~point.anchored
        torch.testing.assert_close(length[:, free], point.length[free].expand(8, -1))
        torch.testing.assert_close(length[:, ~free] * 0 + 1, torch.ones(8, int(point.anchored.sum())))
        energy = (point.weights(mixing[name]) * point.length).square().sum(dim=0)
        before = (mixing[name] * point.length).square().sum(dim=0) / waves
        octaves = point.frequency.log2().floor()
        assert len(octaves[free].unique()) > 3
        for octave in octaves[free].unique():
            mine = free & (octaves == octave)
            group = octaves == octave  # anchored features keep theirs
            torch.testing.assert_close(energy[mine], before[group].mean().expand(int(mine.sum())))
        torch.testing.assert_close(energy[~free], before[~free])


def test_gates_are_half_open_at_first_and_weigh_features_place_by_place():
    config = small_config(img_resolution=64, **MIXED)
    torch.manual_seed(0)
    plain = calibrated_generator(config)
    gated = Generator(dataclasses.replace(config, feature_gates=True))
    gated.load_state_dict(gated.state_dict() | plain.state_dict())
    z, view = torch.randn(2, 16), view_transform([3.0], [[0.1, 0.2]])
    with torch.no_grad():
        assert torch.equal(gated.eval()(z, view), plain.eval()(z, view))
        synthesis = gated.synthesis
        key, gate = next(iter(synthesis.gates.items()))
        gate.normal_()
        x, features = torch.randn(2, gate.shape[1], 9, 7), torch.randn(2, gate.shape[0], 9, 7)
        rms = synthesis.layers[int(key) + 1].magnitude_ema.sqrt()
        opened = 2 / (1 + torch.exp(-torch.einsum("fc,bchw->bfhw", gate, x) / rms))
        torch.testing.assert_close(synthesis.gated(int(key), x, features), features * opened)


@pytest.mark.parametrize("octaves_of_envelopes", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"feature_style": True}, {"feature_style": True, "even_features": True}])
def test_envelopes_make_features_strong_and_weak_as_those_three_octaves_and_more_below_say(
    changes, octaves_of_envelopes
):
    config = small_config(
        img_resolution=64, **MIXED, n_bins=4, feature_envelope=0.4, envelope_octaves=octaves_of_envelopes, **changes
    )
    synthesis = Generator(config).synthesis
    key, point = max(synthesis.injections.items(), key=lambda item: int(item[0]))
    mixing, octave = synthesis.mixing[key], point.frequency.log2().floor()
    assert len(point.envelope) == sum(bool((octave == each - 3).any()) for each in octave.unique()) > 1
    views = AffineViews.of(view_transform([2.0, 9.0], [[0.1, 0.2]] * 2))
    with torch.no_grad():
        point.envelope.copy_(torch.linspace(-0.2, 0.9, len(point.envelope)))
        for w in torch.randn(2, 1, 16) if changes else [None]:
            both = None if w is None else w.expand(2, -1)
            maps = point(views, w=both)
            expected, betas = torch.zeros(()), iter(point.envelope)
            for each in octave.unique():
                mine = octave == each
                mixed = torch.einsum("ck,bkyx->bcyx", point.weights(mixing)[:, mine], maps[:, mine])
                beta = next(betas) if (octave == each - 3).any() else 0
                for below in (octave == each - 3 - further for further in range(octaves_of_envelopes)):
                    if not below.any():
                        continue
                    amplitude = torch.ones(len(octave))
                    if w is not None:
                        amplitude = (w @ point.style.t() / 4).unflatten(1, (-1, 2)).norm(dim=2)[0]
                        amplitude = torch.where(point.anchored, 1.0, amplitude)
                        if config.even_features:
                            amplitude = torch.where(point.anchored, 1.0, point.length * w.square().mean().sqrt())
                    u = (maps / amplitude[:, None, None])[:, below].sum(dim=1, keepdim=True)
                    u = u * (2 / int(below.sum())) ** 0.5
                    mixed = mixed * torch.exp(beta * u - beta**2)
                expected = expected + mixed
            torch.testing.assert_close(point(views, w=both, mixing=mixing), expected, atol=1e-5, rtol=1e-4)


def test_an_envelope_leaves_the_mean_square_as_it_is():
    config = small_config(img_resolution=64, **MIXED, n_bins=4, feature_style=True, even_features=True)
    without, enveloped = (Generator(dataclasses.replace(config, feature_envelope=e)).synthesis for e in (0.0, 0.5))
    enveloped.load_state_dict(enveloped.state_dict() | without.state_dict())
    key = max(without.injections, key=int)
    views = AffineViews.of(view_transform([30.0] * 64, 0.9 * torch.rand(64, 2) - 0.45))
    w = torch.randn(64, 16)
    energy, patchiness = [], []
    for synthesis in (without, enveloped):
        with torch.no_grad():
            maps = synthesis.injections[key](views, w=w, mixing=synthesis.mixing[key])
        energy.append(maps.square().mean())
        local = torch.nn.functional.avg_pool2d(maps.square().mean(dim=1), 8)
        patchiness.append((local.std(dim=(1, 2)) / local.mean(dim=(1, 2))).mean())
    assert energy[1] / energy[0] == pytest.approx(1, abs=0.15)
    assert patchiness[1] > 1.3 * patchiness[0]


@pytest.mark.parametrize(
    "changes", [{}, STYLED, {"even_features": True, **STYLED}, {"feature_envelope": 0.5, **STYLED}]
)
def test_gradients_are_finite_at_the_latent_0_and_the_style_0(changes):
    """Where roots of squares have none of their own: inversions and mean worlds begin there."""
    generator = Generator(small_config(img_resolution=64, **changes))
    config, view = generator.config, view_transform([2.0], [[0.1, 0]])
    for given, image in (
        (torch.zeros(1, config.z_dim, requires_grad=True), lambda z: generator(z, view)),
        (
            torch.zeros(1, generator.mapping.num_ws, config.w_dim, requires_grad=True),
            lambda ws: generator.synthesis(ws, view),
        ),
    ):
        found = torch.autograd.grad(image(given).square().mean(), [given, *generator.parameters()], allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in found if gradient is not None)
        assert found[0].any()


def test_gradients_reach_styles_mixing_and_frame():
    generator = Generator(small_config(img_resolution=64, **STYLED))
    generator(torch.randn(4, 16), view_transform([1.0, 2.0, 9.0, 60.0], [[0, 0]] * 4)).square().mean().backward()
    synthesis = generator.synthesis
    injections = [synthesis.input, *synthesis.injections.values()]
    reached = [synthesis.input_weight, *synthesis.mixing.values(), *synthesis.frame.parameters()]
    reached += [generator.mapping.layout, *(injection.style for injection in injections)]
    assert len(reached) > 5, "a layer injects, too"
    for parameter in reached:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"img_resolution": 16, "channel_max": 16, "n_bins": 1, "octaves": 1},
        {"img_resolution": 32, "channel_max": 16, "n_bins": 4, "octaves": 10},
        {"img_resolution": 64, "channel_max": 19, "img_channels": 1},
        {"img_resolution": 128, "channel_max": 32, "num_layers": 9, "conv_kernel": 3},
        {"img_resolution": 32, "num_layers": 6, "margin": 4, "radial_filters": False, "num_critical": 1},
        {"img_resolution": 16, "channel_base": 16, "octaves": 1, "n_bins": 1, **STYLED},
        {"img_resolution": 64, "channel_base": 16, "fourier_features": 16, "feature_share": 0.99},
        {"img_resolution": 128, "channel_max": 16, "img_channels": 1, "conv_kernel": 3, **STYLED},
        {"feature_style": True, "world_frame": True},
        {"img_resolution": 64, "feature_bandwidth": 0.25},
        {"img_resolution": 16, "feature_bandwidth": 0.1, **STYLED},
        {"even_features": True, "feature_gates": True, **STYLED},
        {"feature_gates": True},
        {"img_resolution": 16, "fourier_features": 40, "feature_envelope": 0.5},
        {"feature_envelope": 0.5, "feature_bandwidth": 0.2, **STYLED},
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


@WORLDS
def test_an_image_does_not_depend_on_its_batch(changes):
    generator = calibrated_generator(small_config(**changes))
    z = torch.randn(3, 16)
    transform = view_transform([1.0, 5.0, 60.0], [[0, 0], [0.3, 0.1], [-0.4, 0.2]])
    with torch.no_grad():
        together = generator(z, transform)
        alone = torch.cat([generator(z[i : i + 1], transform[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"feature_style": True, "fourier_features": 32, "world_frame": True}])
def test_one_world_has_many_views_and_one_view_many_worlds(changes):
    generator = (
        worlds_apart(calibrated_generator(small_config(**changes))) if changes else calibrated_generator(small_config())
    )
    z, transform = (
        torch.randn(3, generator.config.z_dim),
        view_transform([1.0, 2.0, 4.0], [(0, 0), (0.1, 0), (0, -0.2)]),
    )
    with torch.no_grad():
        for latents, views in ((z[:1], transform), (z, transform[1:2])):
            together = generator(latents, views)
            alone = generator(latents.expand(3, -1), views.expand(3, -1, -1))
            assert together.shape == (3, 3, 32, 32)
            torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda G, z, t: G(z[:, :7], t), r"^z has shape \[3, 7\]; give a tensor \[B, z_dim\], here \[B, 16\]\.$"),
        (lambda G, z, t: G(z[0], t), r"^z has shape \[16\]"),
        (lambda G, z, t: G(z[:0], t), r"^z has shape \[0, 16\], with nothing in it; give a tensor \[B, z_dim\]"),
        (lambda G, z, t: G(z[:1], t[:0]), r"^transform has shape \[0, 3, 3\], with nothing in it"),
        (lambda G, z, t: G.mapping(z.numpy()), r"^z is of type ndarray"),
        (lambda G, z, t: G(z, t[:2]), "^3 worlds and 2 views were given"),
        (lambda G, z, t: G(z, 4.0), r"^transform is of type float; give a tensor \[B, 3, 3\]\.$"),
        (lambda G, z, t: G(z, t[0]), r"^transform has shape \[3, 3\]"),
        (lambda G, z, t: G.synthesis(G.mapping(z)[:, 0], t), r"^ws has shape \[3, 16\]"),
        (lambda G, z, t: G.synthesis(G.mapping(z)[:, 1:], t), r"^ws has shape \[3, \d+, 16\]; .*\[B, num_ws, w_dim\]"),
    ],
)
def test_other_shapes_are_refused_in_a_sentence(call, sentence):
    generator = Generator(small_config())
    with pytest.raises(ValueError, match=sentence):
        call(generator, torch.zeros(3, 16), view_transform([1.0, 2.0, 4.0], [(0, 0)] * 3))


def test_rotated_views_are_rendered_as_one_world():
    """A quarter turn of the view turns the Fourier features, so the world is the same from any side."""
    point = Generator(small_config()).synthesis.input
    upright = view_transform([4.0], [[0.1, 0.2]])
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    turned = point(AffineViews.of(upright @ turn))
    torch.testing.assert_close(turned, point(AffineViews.of(upright)).rot90(1, [2, 3]), atol=2e-5, rtol=0)


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
