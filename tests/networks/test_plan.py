"""The layer plan against the golden one, and its consistency over all legal configurations."""

import itertools

import pytest

from multiscale.config import GeneratorConfig
from multiscale.networks.generator import Generator
from multiscale.networks.plan import make_plan

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


def test_all_features_are_injected_no_later_than_the_first_full_resolution_layer():
    plan = make_plan(GeneratorConfig())
    full = min(layer.index for layer in plan.layers if layer.out_rate == 256)
    assert max(layer.index for layer in plan.layers if layer.features) == full


def test_published_sizes_of_the_presets():
    """Wolski et al. 2024: about 9.0 M parameters for six octaves, 14.6 M for eight."""
    moon, spain = GeneratorConfig(), GeneratorConfig(channel_max=1536, octaves=8, n_bins=3)
    for config, published in ((moon, 9.0e6), (spain, 14.6e6)):
        assert sum(p.numel() for p in Generator(config).parameters()) == pytest.approx(published, rel=0.03)
