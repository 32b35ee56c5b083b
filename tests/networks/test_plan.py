"""The layer plan against the golden one, and its consistency over all legal configurations."""

import itertools

import pytest
import torch
from conftest import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscale.config import GeneratorConfig
from multiscale.networks.filters import design_lowpass_filter
from multiscale.networks.generator import Generator
from multiscale.networks.plan import BAND_LIMIT, least_weights, make_plan
from multiscale.view import view_transform

PLAN_FIELDS = (
    *("in_channels", "conv_channels", "out_channels", "in_size", "out_size", "in_rate", "out_rate", "in_cutoff"),
    *("out_cutoff", "in_half_width", "out_half_width", "up", "down", "up_taps", "down_taps", "radial"),
)


def test_plan_agrees_with_golden(golden):
    g = golden("generator_reference_geometry")
    cfg = g.meta["cfg"]
    config = GeneratorConfig(
        img_resolution=cfg["res"], channel_base=cfg["cbase"], channel_max=cfg["cmax"], n_bins=cfg["n_bins"], rho_max=64
    )
    names = {"conv_channels": "out_channels", "out_channels": "out_channels_final"}
    for layer, expected in zip(make_plan(config).layers, g.meta["layers"], strict=True):
        assert list(layer.padding) == expected["padding"]
        for name in PLAN_FIELDS:
            assert getattr(layer, name) == pytest.approx(expected[names.get(name, name)], abs=1e-9), (layer.index, name)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
def test_widths_are_consistent_for_every_legal_configuration(resolution):
    for channel_max, base, layers in itertools.product((16, 17, 40, 256, 1536), (16, 4096, 131072), (6, 9, 14, 20)):
        config = GeneratorConfig(
            img_resolution=resolution, channel_max=channel_max, channel_base=base, num_layers=layers
        )
        plan = make_plan(config)
        assert sum(layer.features for layer in plan.layers) + plan.input_features == channel_max
        assert plan.input_features > 0
        width = plan.input_features
        for before, layer in itertools.pairwise([None, *plan.layers]):
            assert layer.in_channels == width > 0
            if before is not None:
                assert layer.in_size == before.out_size
            if layer.features:
                assert layer.conv_channels == layer.in_channels, "a layer that injects keeps its input width"
            assert layer.out_channels <= channel_max or layer.is_torgb
            width = layer.out_channels
        assert plan.layers[-1].out_size == resolution
        assert plan.layers[-1].conv_channels == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_resolution": 256, "channel_base": 4096, "channel_max": 256, "z_dim": 512, "w_dim": 512},
        {"mapping_layers": 8, "w_dim": 256},
        {"conv_kernel": 3, "channel_base": 8192, "channel_max": 512},
        {"fourier_features": 4096, "channel_max": 64},
        {"fourier_features": 4096, "feature_style": True, "world_frame": True, "w_dim": 128},
        {"z_dim": 4096, "feature_style": True, "fourier_features": 64, "even_features": True, "feature_gates": True},
        {"fourier_features": 64, "feature_envelope": 0.5},
    ],
)
def test_the_least_number_of_weights_is_nearly_all_of_them(changes):
    config = small_config(**changes)
    with torch.device("meta"):
        weights = sum(tensor.numel() for tensor in Generator(config).parameters())
    assert 0.9 * weights < least_weights(config) <= weights


def test_all_features_are_injected_no_later_than_the_first_full_resolution_layer():
    plan = make_plan(GeneratorConfig())
    full = min(layer.index for layer in plan.layers if layer.out_rate == 256)
    assert max(layer.index for layer in plan.layers if layer.features) == full


def test_published_sizes_of_the_presets():
    """Wolski et al. 2024: about 9.0 M parameters for six octaves, 14.6 M for eight."""
    moon, spain = GeneratorConfig(), GeneratorConfig(channel_max=1536, octaves=8, n_bins=3)
    for config, published in ((moon, 9.0e6), (spain, 14.6e6)):
        assert sum(p.numel() for p in Generator(config).parameters()) == pytest.approx(published, rel=0.03)


@settings(max_examples=300)
@given(
    resolution=st.sampled_from([16, 32, 64, 128, 256, 512, 1024]),
    features=st.integers(16, 65536) | st.integers(16, 40),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    base=st.integers(16, 2**24) | st.integers(16, 300),
    channel_max=st.integers(16, 8192) | st.integers(16, 40),
    layers=st.integers(5, 32),
    critical=st.integers(1, 3),
)
def test_mixed_features_fit_every_legal_configuration(resolution, features, share, base, channel_max, layers, critical):
    config = GeneratorConfig(
        img_resolution=resolution,
        fourier_features=features,
        feature_share=share,
        channel_base=base,
        channel_max=channel_max,
        num_layers=layers,
        num_critical=critical,
    )
    plan = make_plan(config)
    assert plan.input_waves + sum(layer.waves for layer in plan.layers) == features
    assert plan.input_features > 0
    assert plan.input_waves > 0
    width = plan.input_features
    for layer in plan.layers:
        assert layer.in_channels == width
        assert layer.conv_channels > 0
        assert (layer.features > 0) == (layer.waves > 0)
        assert layer.out_channels <= channel_max or layer.is_torgb
        if layer.features and layer.out_channels > 2:
            assert layer.features == pytest.approx(share * layer.out_channels, abs=1)
        width = layer.out_channels
    assert plan.layers[-1].conv_channels == 3
    assert not plan.layers[-1].features


def test_mixing_turns_all_waves_of_a_point_into_its_channels():
    config = small_config(
        img_resolution=256, fourier_features=100, feature_share=0.25, channel_base=64, mixing_init=0.3
    )
    generator = Generator(config)
    plan, synthesis = generator.plan, generator.synthesis
    assert synthesis.input_weight.shape == (plan.input_features, plan.input_waves)
    assert plan.input_features == 16 != plan.input_waves
    injecting = [layer for layer in plan.layers if layer.waves]
    assert len(injecting) > 1
    assert [int(index) for index in synthesis.mixing] == [layer.index for layer in injecting]
    for layer in injecting:
        assert synthesis.mixing[str(layer.index)].shape == (layer.features, layer.waves)
        assert layer.features == max(round(0.25 * layer.out_channels), 1)
        assert len(synthesis.injections[str(layer.index)].omega) == layer.waves


def test_mixing_begins_as_strong_as_it_is_told_to():
    networks = []
    for strength in (1, 0.3):
        torch.manual_seed(0)
        networks.append(Generator(small_config(fourier_features=100, mixing_init=strength)).synthesis)
    assert networks[0].mixing
    for name, full in networks[0].mixing.items():
        torch.testing.assert_close(networks[1].mixing[name], 0.3 * full)


def test_layers_of_one_channel_inject_and_run():
    """As narrow as a configuration can be: no feature is lost, and all weights are trained."""
    config = small_config(img_resolution=64, channel_base=16, channel_max=16, fourier_features=16, world_frame=True)
    generator = Generator(config)
    assert min(layer.conv_channels for layer in generator.plan.layers) == 1
    points = [generator.synthesis.input, *generator.synthesis.injections.values()]
    radii = torch.cat([point.omega.norm(dim=1) * point.size / point.rate for point in points])
    reach = (64 + 2 * config.margin) / BAND_LIMIT
    torch.testing.assert_close(radii, torch.arange(1.0, 17) * reach / 16)
    generator(torch.randn(2, 16), view_transform([1.0, 4.0], [[0, 0], [0.1, 0]])).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


def test_filters_of_the_finest_detail_can_be_steeper():
    """What is close to Nyquist passes; the rest of the network stays as it is, to the shapes of its weights."""
    plain, steep = (make_plan(small_config(img_resolution=64, critical_filter_size=size)) for size in (None, 10))
    critical = [layer.index for layer in steep.layers if layer.out_cutoff == 32 and not layer.is_torgb]
    assert critical == [len(steep.layers) - 3, len(steep.layers) - 2]
    for before, after in zip(plain.layers, steep.layers, strict=True):
        kept = [name for name in PLAN_FIELDS if not name.endswith(("_taps", "_half_width"))]
        assert all(getattr(before, name) == getattr(after, name) for name in kept)
        finest = before.out_cutoff == 32
        assert after.out_half_width == pytest.approx(before.out_half_width * (11 / 19 if finest else 1))
        if before.down > 1:
            assert (before.down_taps, after.down_taps) == ((12, 20) if finest else (12, 12))
            passed = [
                abs(
                    torch.fft.fft(
                        design_lowpass_filter(layer.down_taps, layer.out_cutoff, 2 * layer.out_half_width, 128), 512
                    )[4 * 28]
                )
                for layer in (before, after)
            ]
            if finest:  # 28 of 32 cycles
                assert 0.7 < passed[0] < 0.8 < 0.9 < passed[1] < 1.1
    both = [Generator(small_config(img_resolution=64, critical_filter_size=size)) for size in (None, 10)]
    both[1].load_state_dict(both[0].state_dict())
