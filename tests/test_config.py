"""The schema of a run: strict loading, hints, ranges; presets as published."""

import pytest
import yaml

from dnnlib.errors import UserError
from multiscale.config import (
    RunConfig,
    build,
    load_preset,
    load_yaml,
    merge,
    parse_assignment,
    preset_names,
    to_dict,
)


def test_defaults_survive_yaml():
    config = RunConfig()
    assert build(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"r1_gamma": 5}, r"Unknown key r1_gamma in .*; write training\.r1_gamma\.$"),
        ({"channel_max": 5}, r"; write generator\.channel_max or discriminator\.channel_max\.$"),
        ({"training": {"bacth": 8}}, "Unknown key training.bacth .* did you mean 'batch'"),
        ({"trainning": {}}, "did you mean 'training'"),
        ({"training": {"batch": 0}}, "training.batch=0 .* greater than or equal to 1"),
        ({"training": {"batch": "many"}}, "training.batch='many'"),
        ({"training": {"batch": True}}, "training.batch=True .* give a number"),
        ({"training": {"mirror": 1}}, "training.mirror=1 .* give true or false"),
        ({"training": {"r1_gamma": float("nan")}}, "training.r1_gamma"),
        ({"generator": {"img_resolution": 48}}, "generator.img_resolution=48 .* 16, 32, 64"),
        ({"generator": {"n_bins": 17}}, "generator.n_bins=17 .* less than or equal to 16"),
        ({"generator": {"channel_max": 15}}, "generator.channel_max=15"),
        ({"generator": {"num_layers": 4, "num_critical": 3}}, "must exceed num_critical"),
        ({"schedule": {"warmup_kimg": 5, "skew_kimg": 4}}, "must not be below warmup_kimg=5"),
        ({"training": 3}, "training in .* must be a section"),
        ({"generator": {"fourier_features": 15}}, "generator.fourier_features=15 .* greater than or equal to 16"),
        ({"generator": {"fourier_features": 70000}}, "less than or equal to 65536"),
        ({"generator": {"feature_share": 0}}, "generator.feature_share=0 .* greater than 0"),
        ({"generator": {"feature_share": 1.0}}, "generator.feature_share=1.0 .* less than 1"),
        ({"generator": {"feature_style": "perhaps"}}, "generator.feature_style='perhaps'"),
        ({"generator": {"mixing_init": 0.3}}, "mixing_init=0.3 is for .* fourier_features"),
        ({"generator": {"feature_envelope": 0.5}}, "feature_envelope=0.5 is for .* fourier_features"),
        ({"generator": {"feature_envelope": 3}}, "feature_envelope=3 .* less than or equal to 2"),
        ({"generator": {"envelope_octaves": 3}}, "envelope_octaves=3 is for .* feature_envelope"),
        ({"generator": {"critical_filter_size": 17}}, "critical_filter_size=17 .* less than or equal to 16"),
        ({"generator": {"even_features": True, "feature_style": True}}, "even_features is for .* fourier_features"),
        ({"generator": {"world_frames": True}}, "did you mean 'world_frame'"),
        (
            {"generator": {"feature_split": [1024] + [0] * 15, "fourier_features": 100}},
            "feature_split is for imported weights.*leave out fourier_features",
        ),
        ({"discriminator": {"scale_embedding": -1}}, "discriminator.scale_embedding=-1 .* greater than or equal to 0"),
        ({"discriminator": {"local_heads": 3}}, "discriminator.local_heads=3"),
        ({"training": {"adversarial": "hinge"}}, "training.adversarial='hinge' .* 'logistic' or 'pairs'"),
        ({"training": {"r2_gamma": -1}}, "training.r2_gamma=-1 .* greater than or equal to 0"),
        ({"training": {"consistency_by_octave": [1, -1]}}, "training.consistency_by_octave.1=-1 .* greater than or"),
        ({"training": {"consistency_by_octave": []}}, "training.consistency_by_octave=.* at least 1"),
        ({"training": {"ada_kimg": 0}}, "training.ada_kimg=0 .* greater than 0"),
        ({"training": {"consistency_metric": "l2"}}, "'l1\\+lpips' or 'l1'"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(values, message):
    with pytest.raises(UserError, match=message) as caught:
        build(RunConfig, values)
    assert "\n" not in str(caught.value)


def test_assignments_nest_and_later_layers_win():
    merged = merge({"training": {"batch": 4, "seed": 1}}, parse_assignment("training.batch=16"))
    assert merged == {"training": {"batch": 16, "seed": 1}}
    assert parse_assignment("training.g_lr=1e-3")["training"]["g_lr"] in ("1e-3", 1e-3)
    assert build(RunConfig, parse_assignment("training.g_lr=1e-3")).training.g_lr == 1e-3


@pytest.mark.parametrize("text", ["training.batch", "=3", "training.batch=[1"])
def test_assignments_that_cannot_be_read(text):
    with pytest.raises(UserError, match="--set"):
        parse_assignment(text)


@pytest.mark.parametrize(
    "content, message", [("- a\n", "holds a list"), ("a: [1", "not valid YAML"), (None, "Cannot read")]
)
def test_bad_config_files(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_yaml(path)


def test_presets_load_and_are_as_published():
    """Wolski et al. 2024, table 1."""
    table = {
        "moon": (2, 1024, 4, 4, 2000, 4000),
        "spain": (3, 1536, 8, 4, 3000, 6000),
        "himalayas": (3, 1536, 4, 4, 3000, 6000),
        "rembrandt": (3, 1536, 4, 4, 3000, 6000),
    }
    assert set(preset_names()) == {*table, "demo", "small", "zoom64", "zoom256"}
    for name, expected in table.items():
        c = build(RunConfig, load_preset(name))
        s = c.schedule
        assert c.generator.channel_max == c.discriminator.channel_max
        assert expected == (
            c.generator.n_bins, c.generator.channel_max, s.boost_first, s.boost_last, s.warmup_kimg, s.skew_kimg
        )  # fmt: skip
        t = c.training
        assert (t.batch, t.kimg, t.r1_gamma, t.r1_interval, t.consistency_weight) == (32, 25000, 2, 16, 4)
        assert (t.g_lr, t.d_lr) == (0.0025, 0.002)
    for name in ("demo", "small", "zoom64", "zoom256"):
        build(RunConfig, load_preset(name))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'moon'"):
        load_preset("mooon")
