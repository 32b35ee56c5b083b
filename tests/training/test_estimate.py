"""The memory estimate counts what is really alive, and chooses how many images are computed at a time."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_config, small_patches

from multiscale.config import RunConfig, build, load_preset, merge
from multiscale.data.patches import PatchDataset
from multiscale.networks.generator import Generator
from multiscale.training import estimate
from multiscale.training.estimate import (
    PROCESS_BYTES,
    LiveBytes,
    Memory,
    control_group_limits,
    describe_run,
    device_capacity,
    fit_batch_gpu,
    networks_on_meta,
    plan_table,
    step_memory,
)

CPU = torch.device("cpu")


BEYOND = {
    "generator": {"fourier_features": 40, "feature_style": True, "world_frame": True},
    "discriminator": {"local_heads": True, "scale_embedding": 8},
}


def tiny(beyond: bool = False, **training) -> RunConfig:
    """A model of the least cost that has all that a step has; with all that the paper's networks have not."""
    values = {
        "generator": {
            "img_resolution": 16,
            "octaves": 3,
            "channel_base": 64,
            "channel_max": 16,
            "z_dim": 16,
            "w_dim": 16,
            "num_layers": 4,
            "num_critical": 1,
            "margin": 4,
            "radial_filters": False,
        },
        "discriminator": {"channel_base": 64, "channel_max": 16},
        "training": {"batch": 8, "consistency_metric": "l1"},
    }
    return build(RunConfig, merge(values, BEYOND if beyond else {}, {"training": training}))


def test_bytes_are_counted_once_and_while_they_are_alive():
    before = torch.ones(5000)
    with LiveBytes() as memory:
        x = torch.ones(1000)
        y = x.exp()
        parts = y[:10], y.view(10, 100), y.detach()
        assert memory.live == 8000
        del x
        assert memory.live == 4000
        y *= before[:1000]
        assert memory.live == 4000
        del y, parts
    assert (memory.live, memory.peak) == (0, 8000)


def test_what_autograd_keeps_is_alive_until_the_backward_pass():
    x = torch.randn(1000, requires_grad=True)
    with LiveBytes() as memory:
        y = x.exp().tanh().sum()
        assert memory.live == 8004
        y.backward()
    assert memory.live == 4004  # y and the gradient
    assert x.grad is not None


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize(
    "training",
    [
        {"augment": "ada"},
        {"consistency_weight": 0, "r1_gamma": 0},
        {"beyond": True, "augment": "ada", "ada_by_octave": True, "adversarial": "pairs", "r2_gamma": 1},
        {"beyond": True, "consistency_by_octave": (2, 1)},
    ],
)
def test_the_count_without_computing_is_the_count_with_it(in_parts, training):
    config = tiny(**training)
    peaks = []
    for device in ("meta", "cpu"):
        with torch.random.fork_rng():
            networks = networks_on_meta(config)
            networks = [network.to_empty(device=device) for network in networks]
        with torch.no_grad():
            for tensor in itertools.chain(*(n.parameters() for n in networks), *(n.buffers() for n in networks)):
                tensor.fill_(0.5)
        with LiveBytes() as memory:
            estimate._rehearse_step(config, *networks, 4, in_parts=in_parts)
        peaks.append(memory.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def test_memory_grows_with_the_images_at_a_time_and_parts_keep_less_for_the_step_of_d():
    one, four = (step_memory(tiny(), images, 8) for images in (1, 4))
    assert one.weights == four.weights > 0
    assert one.step < four.step < 4 * one.step
    assert one.total == PROCESS_BYTES + one.weights + one.step
    alone = {"consistency_weight": 0, "r1_gamma": 0}
    assert step_memory(tiny(**alone), 4, 8).step < step_memory(tiny(**alone), 4, 4).step


def test_what_goes_beyond_the_paper_is_counted():
    plain, beyond = step_memory(tiny(), 4, 8), step_memory(tiny(beyond=True), 4, 8)
    assert beyond.weights > plain.weights
    steps = []
    for gamma in (0, 1):
        config = tiny(beyond=True, consistency_weight=0, adversarial="pairs", r2_gamma=gamma)
        large = replace(config.discriminator, channel_base=1024, channel_max=64)  # what its step keeps is the most
        steps.append(step_memory(replace(config, discriminator=large), 4, 8).step)
    assert steps[0] < steps[1]


def suppose_memory(monkeypatch, of_an_image: int) -> None:
    monkeypatch.setattr(estimate, "step_memory", lambda _, images, *__: Memory(0, of_an_image * images - PROCESS_BYTES))


def test_as_many_images_at_a_time_as_fit(monkeypatch):
    suppose_memory(monkeypatch, 10)
    assert [fit_batch_gpu(tiny(), 12, n) for n in (0, 10, 19, 20, 35, 50, 60, 119, 120)] == [1, 1, 1, 2, 3, 4, 6, 6, 12]
    assert [fit_batch_gpu(tiny(), 7, n) for n in (0, 69, 70)] == [1, 1, 7]
    assert [fit_batch_gpu(tiny(), 1, n) for n in (0, 10)] == [1, 1]


def test_capacity_is_shared_by_the_processes_of_a_machine():
    whole = device_capacity(CPU, 1)
    assert 2**28 < whole < 2**50
    assert device_capacity(CPU, 4) == pytest.approx(whole / 4, rel=1e-6)


def control_groups(folder: Path, membership: str, limits: dict[str, str]) -> list[int]:
    for name, limit in limits.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(limit + "\n")
    (folder / "cgroup").write_text(membership)
    return sorted(control_group_limits(folder / "cgroup", folder / "fs"))


def test_limits_of_control_groups_are_found_in_both_versions_and_in_containers(tmp_path):
    assert control_groups(
        tmp_path / "v2",
        "0::/user.slice/job\n",
        {"memory.max": "max", "user.slice/memory.max": "900", "user.slice/job/memory.max": "700"},
    ) == [700, 900]
    assert control_groups(
        tmp_path / "v1",
        "5:cpu,cpuacct:/\n4:memory:/job\n0::/\n",
        {"memory/job/memory.limit_in_bytes": "500", "memory/memory.limit_in_bytes": "9223372036854771712"},
    ) == [500, 9223372036854771712]
    container = {"memory/memory.limit_in_bytes": "600"}
    assert control_groups(tmp_path / "container", "4:memory:/docker/0123\n", container) == [600]
    assert list(control_group_limits(tmp_path / "none", tmp_path)) == []


def test_a_run_is_described_with_what_its_memory_holds(tmp_path, monkeypatch):
    data = PatchDataset(small_patches(tmp_path / "p.zip"))

    def text(batch_gpu: int, capacity: int = 2**40, devices: int = 1) -> str:
        monkeypatch.setattr(estimate, "device_capacity", lambda *_: capacity)
        return describe_run(
            tiny(mirror=True), preset="demo", data=data, devices=[CPU] * devices, folder=tmp_path, batch_gpu=batch_gpu
        )

    whole = text(8)
    assert "cpu (8 of 8 images each)\n" in whole
    assert "also mirrored" in whole
    assert "GiB of 1024.0 (weights and optimisers" in whole
    assert "a step with 8 images at a time" in whole
    assert "Warning" not in whole
    suppose_memory(monkeypatch, 10)
    assert "2 x cpu (4 of 8 images each, 2 at a time)\n" in text(2, devices=2)
    assert "--batch-gpu 2:" in text(8, capacity=25)
    assert "Warning" not in text(2, capacity=25)
    for batch_gpu in (1, 8):
        assert "not even 1 image at a time may fit; lower generator.channel_max" in text(batch_gpu, capacity=9)


def test_the_published_discriminators_have_their_published_size():
    """Wolski et al. 2024: 133 M parameters for six octaves, 271 M for eight."""
    for name, published in (("moon", 133e6), ("spain", 271e6)):
        _, discriminator = networks_on_meta(build(RunConfig, load_preset(name)))
        assert sum(p.numel() for p in discriminator.parameters()) == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("name", ["zoom64", "zoom256"])
def test_presets_for_ones_own_data_fit_a_gpu_of_24_gb_even_in_float32(name):
    config = build(RunConfig, load_preset(name))
    memory = step_memory(config, config.discriminator.mbstd_group, config.training.batch)
    assert memory.total < 0.9 * 24e9


def test_the_plan_is_a_line_a_layer():
    generator = Generator(small_config())
    lines = plan_table(generator.plan).splitlines()
    assert len(lines) == 2 + len(generator.plan.layers)
    assert lines[-1].startswith("toRGB")


@pytest.mark.parametrize("features", [None, 700, 65536])
def test_the_plan_shows_the_waves_that_features_are_mixed_from(features):
    plan = Generator(small_config(img_resolution=256, channel_max=96, fourier_features=features)).plan
    head, first, *lines = plan_table(plan).splitlines()
    assert len({line.index(mark) for line, mark in [(head, "size"), (first, str(plan.input_size))]}) == 1
    waves = f" of {plan.input_waves} " if features else ""
    assert f" {plan.input_features}{waves or ' '}" in first
    for layer, line in zip(plan.layers, lines, strict=True):
        mixed = f" {layer.conv_channels} {layer.features} of {layer.waves} "
        assert (" of " in line) == bool(features and layer.waves)
        assert " of " not in line or mixed in " ".join(line.split())
        assert line.index(" > ") == lines[0].index(" > ")
