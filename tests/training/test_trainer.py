"""The training loop: it learns, repeats, averages over processes, and keeps what it has when it is stopped."""

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_patches

from dnnlib.errors import UserError
from multiscale.config import RunConfig, build, load_preset, merge, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.data.prepare import make_demo
from multiscale.runs.headers import snapshots_of
from multiscale.runs.journal import read_metrics, read_stats
from multiscale.runs.snapshots import load_snapshot
from multiscale.runs.states import load_newest_state
from multiscale.training import trainer as trainer_module
from multiscale.training.launch import data_layer
from multiscale.training.objective import Part
from multiscale.training.trainer import Trainer
from multiscale.view import unchecked_transform
from torch_utils import distributed
from torch_utils.distributed import Process

CPU = torch.device("cpu")


BEYOND_THE_PAPER = {
    "generator": {"fourier_features": 40, "feature_style": True, "world_frame": True},
    "discriminator": {"scale_embedding": 8, "local_heads": True},
    "training": {
        "adversarial": "pairs",
        "r2_gamma": 1.0,
        "r1_interval": 4,
        "consistency_by_octave": [2, 1],
        "augment": "ada",
        "augment_p": 0.2,
        "ada_by_octave": True,
        "ada_kimg": 0.5,
    },
}
"""Everything of ours that the paper does not have."""


def beyond_run(dataset: PatchDataset, **training) -> RunConfig:
    """As :func:`tiny_run`, with all that goes beyond the paper."""
    values = merge(to_dict(tiny_run(dataset)), BEYOND_THE_PAPER, {"training": training})
    return build(RunConfig, values)


def tiny_run(dataset: PatchDataset, **training) -> RunConfig:
    generator = {
        "img_resolution": dataset.resolution,
        "img_channels": dataset.num_channels,
        "octaves": dataset.octaves,
        "channel_max": 16,
        "channel_base": 64,
        "z_dim": 16,
        "w_dim": 16,
        "num_layers": 5,
        "margin": 4,
        "radial_filters": False,
    }
    base = {"batch": 4, "kimg": 0.02, "blur_sigma_px": 0, "consistency_metric": "l1", "workers": 0, "sample_seeds": 2}
    return build(
        RunConfig,
        {
            "generator": generator,
            "discriminator": {"channel_base": 128, "channel_max": 16},
            "schedule": {"warmup_kimg": 0.5, "skew_kimg": 1},
            "training": base | training,
        },
    )


def stats(folder: Path) -> list[dict]:
    """Lines of statistics, without what the clock and the machine make different each time."""
    measured = ("seconds/", "memory/", "img/s")
    return [{k: v for k, v in line.items() if not k.startswith(measured)} for line in read_stats(folder)]


def test_a_shortened_demo_run_brings_generated_patches_nearer_to_real_ones(tmp_path):
    """The demo preset on the demo's planet at 16 pixels; three seeds measured 0.25 to 0.32 of the start at 1.2 kimg."""
    make_demo(tmp_path / "p.zip", resolution=16, octaves=3, counts=(60, 60, 60), workers=1)
    dataset = PatchDataset(tmp_path / "p.zip")
    values = merge(
        data_layer(dataset), load_preset("demo"), {"training": {"kimg": 0.8, "snapshot_kimg": 0.4, "metrics": "swd60"}}
    )
    Trainer(build(RunConfig, values), dataset, tmp_path, Process(CPU)).run()
    start, _, end = (line["results"]["swd60"]["value"] for line in read_metrics(tmp_path))
    assert end < 0.6 * start
    assert [int(p.stem.split("-")[1]) for p in snapshots_of(tmp_path)] == [0, 400, 800]
    assert len(list(tmp_path.glob("samples-*.png"))) == 3
    assert load_snapshot(snapshots_of(tmp_path)[-1]).info["kimg"] == 0.8
    losses = [line for line in stats(tmp_path) if "loss/D" in line]
    assert all(math.isfinite(value) for line in losses for key, value in line.items() if key.startswith("loss"))
    assert sum(losses[-1]["octave mix"]) == pytest.approx(1, abs=1e-3)


def test_the_same_seed_gives_the_same_losses_whatever_the_workers(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    logged = []
    for name, workers, seed in (("a", 0, 0), ("b", 1, 0), ("c", 0, 1)):
        folder = tmp_path / name
        folder.mkdir()
        Trainer(tiny_run(dataset, workers=workers, seed=seed), dataset, folder, Process(CPU)).run()
        logged.append([line["loss/D"] for line in stats(folder) if "loss/D" in line])
    assert len(logged[0]) == 5
    assert logged[0] == logged[1] != logged[2]


@pytest.mark.parametrize("kimg, steps", [(1e-9, 1), (0.004, 1), (0.0041, 2), (0.02, 5)])
def test_a_run_has_the_steps_that_its_length_needs(tmp_path, kimg, steps):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset, kimg=kimg), dataset, tmp_path, Process(CPU))
    trainer.run()
    assert trainer.step == steps


def test_the_magnitudes_start_calibrated(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset), dataset, tmp_path, Process(CPU))
    assert all(layer.magnitude_ema.item() != 1 for layer in trainer.G.synthesis.layers)


def test_gradients_that_are_not_finite_are_replaced_and_counted(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset), dataset, tmp_path, Process(CPU))
    before = [p.detach().clone() for p in trainer.D.parameters()]
    for p in trainer.D.parameters():
        p.grad = torch.zeros_like(p)
    next(trainer.D.parameters()).grad.flatten()[:2] = torch.tensor([math.nan, math.inf])
    bad = trainer._optimise(trainer.d_gradients, trainer.d_optimiser, "D")
    assert bool(bad)
    assert trainer.means.read(Process(CPU))["gradients/D not finite"] == 2
    assert all(torch.isfinite(p).all() for p in trainer.D.parameters())
    assert not torch.equal(before[0], next(trainer.D.parameters()))


@pytest.mark.parametrize("augment", ["fixed", "ada"])
def test_augmented_runs_train_and_log_their_probability(tmp_path, augment):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    Trainer(tiny_run(dataset, augment=augment, augment_p=0.5), dataset, tmp_path, Process(CPU)).run()
    p = [line["augment/p"] for line in stats(tmp_path) if "augment/p" in line]
    assert (set(p) == {0.5}) == (augment == "fixed")


def test_consistency_is_small_for_a_consistent_generator_only(tmp_path, monkeypatch):
    """A generator that paints linear functions of the world agrees with itself but for the footprints' fractional edges."""
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset), dataset, tmp_path, Process(CPU))
    side = dataset.resolution
    v = (torch.arange(side) + 0.5) / side - 0.5

    def linear(ws, transform, **_):
        x = transform[:, 0, 0, None] * v + transform[:, 0, 2, None]
        y = transform[:, 1, 1, None] * v + transform[:, 1, 2, None]
        return torch.stack(
            torch.broadcast_tensors(x[:, None, :], y[:, :, None], x[:, None, :] + y[:, :, None]), 1
        ).float()

    monkeypatch.setattr(trainer.G.synthesis, "forward", linear)
    labels = torch.tensor([0.0, 0.7, 1.5, 2.0], dtype=torch.float64)
    transform = unchecked_transform(torch.exp2(labels), torch.zeros(4, 2))
    fine = linear(None, transform)
    draws = functools.partial(trainer._draws, rows=slice(None))
    part = part_of(fine, labels, transform, draws=draws)
    consistent = trainer.objective.consistency(fine, None, part).item()
    monkeypatch.setattr(trainer.G.synthesis, "forward", lambda ws, transform: fine)
    inconsistent = trainer.objective.consistency(fine, None, part).item()
    assert consistent < 0.05 * inconsistent


def part_of(real: torch.Tensor, labels: torch.Tensor, transform: torch.Tensor, **changes) -> Part:
    """A part of three octaves whose draws are those of a seed, with latents of 16 numbers."""
    octave = labels.numpy().astype(int).clip(0, 2)
    values = {
        "real": real,
        "labels": labels,
        "zoom_log2": labels.float(),
        "octave": octave,
        "octaves": torch.eye(3)[octave],
        "z": torch.randn(len(real), 16),
        "transform": transform,
        "images_seen": 10**9,
        "draws": lambda purpose: np.random.default_rng(0),
        "train_fine": False,
    }
    return Part(**(values | changes))


def weights_after(folder: Path, config: RunConfig, dataset: PatchDataset, steps: int, process: Process, parts: int = 1):
    """Weights and running means after some steps of one process."""
    trainer = Trainer(config, dataset, folder, process, trainer_share(config, process) // parts)
    batches = trainer._batches()
    for _ in range(steps):
        trainer.train_step(*next(batches))
    tensors = [*trainer.G.state_dict().values(), *trainer.D.state_dict().values(), *trainer.G_ema.state_dict().values()]
    return torch.cat([t.flatten() for t in tensors])


def trainer_share(config: RunConfig, process: Process) -> int:
    return config.training.batch // process.world_size


def _save_weights(process, config, dataset, folder, steps):
    torch.save(weights_after(folder, config, dataset, steps, process), folder / f"weights-{process.rank}.pt")


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_two_processes_are_one_that_computes_its_batch_in_two_parts(tmp_path, make):
    """The same draws, gradients and running means; with R1, ADA and mirrored patches on the way."""
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = make(dataset, batch=8, r1_interval=3, augment="ada", augment_p=0.3, mirror=True, g_lr=1e-4, d_lr=1e-4)
    distributed.run(_save_weights, [CPU, CPU], config, dataset, tmp_path, 10)
    a, b = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(
        a, weights_after(tmp_path, config, dataset, 10, Process(CPU), parts=2), rtol=0, atol=1e-5
    )
    other = replace(config, training=replace(config.training, seed=1))
    assert (a - weights_after(tmp_path, other, dataset, 10, Process(CPU), parts=2)).abs().max() > 0.1


def test_parts_change_a_step_by_no_more_than_statistics_over_them(tmp_path):
    """What is drawn for an image does not depend on the parts; only D's deviation over a group and the styles' norm do."""
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = tiny_run(dataset, batch=8, augment="fixed", augment_p=0.5)
    shown = []
    for parts in (1, 2, 4):
        trainer = Trainer(config, dataset, tmp_path, Process(CPU), 8 // parts)
        real, labels = next(trainer._batches())
        images = torch.empty(8, 3, 16, 16)
        for m in range(parts):
            rows = slice(m, None, parts)
            part = trainer._part(real[rows], labels[rows], m, parts)
            images[rows] = (
                trainer.objective.for_discriminator(part.real, "augment real", part) + part.z[:, :1, None, None]
            )
            images[rows] += part.transform[:, :1, 2, None, None].float()
        shown.append(images)
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(shown[0], shown[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_a_step_waits_for_the_device_nowhere(tmp_path, make):
    """On the meta device nothing can be read, so a step that looks at a value fails."""
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = make(dataset, augment="ada", augment_p=0.3, r1_interval=2, blur_sigma_px=2)
    real, labels = next(Trainer(config, dataset, tmp_path, Process(CPU))._batches())
    trainer = Trainer(config, dataset, tmp_path, Process(torch.device("meta")))
    for _ in range(3):
        trainer.train_step(real, labels)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(trainer.bad_steps)


def test_rates_follow_the_settings_also_after_resuming_with_others(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    process, rates = Process(CPU), []
    trainer = Trainer(tiny_run(dataset, g_lr=0.004, d_lr=0.002, lr_end=0.5), dataset, tmp_path, process)
    for batch, _ in zip(trainer._batches(), range(5), strict=False):
        trainer.train_step(*batch)
        rates.append(trainer.g_optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.004, 0.004, 0.004, 0.004 * (1 - 0.25 * (1 - math.cos(0.2 * math.pi))), rates[-1]])
    assert rates[4] < rates[3]
    resumed = Trainer(tiny_run(dataset, g_lr=0.001, d_lr=0.0005), dataset, tmp_path, process)
    resumed.load_state_dict(trainer.state_dict())
    resumed.train_step(*next(resumed._batches()))
    assert resumed.g_optimiser.param_groups[0]["lr"] == 0.001
    assert resumed.d_optimiser.param_groups[0]["lr"] == pytest.approx(0.0005, rel=0.5)


def test_a_run_whose_gradients_stay_broken_stops_with_its_last_good_state(tmp_path, monkeypatch):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset, kimg=2, snapshot_kimg=0.016), dataset, tmp_path, Process(CPU))
    real_loss = trainer_module.adversarial.generator_loss

    def breaks_after_six_steps(*logits):
        return real_loss(*logits) * (math.nan if trainer.step >= 6 else 1)

    monkeypatch.setattr(trainer_module.adversarial, "generator_loss", breaks_after_six_steps)
    with pytest.raises(UserError, match=r"not been finite for 100 steps in a row.*state-000000016\.pt"):
        trainer.run()
    assert 106 <= trainer.step <= 106 + 2 * trainer_module.STEPS_TO_AGREE
    assert load_newest_state(tmp_path)["step"] == 4
    assert load_snapshot(snapshots_of(tmp_path)[-1]).info["kimg"] == 0.016
    assert sum(line.get("gradients/G not finite", 0) for line in stats(tmp_path)) > 0


def test_a_step_too_large_for_memory_names_the_next_smaller_part(tmp_path, monkeypatch):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(tiny_run(dataset, batch=12), dataset, tmp_path, Process(CPU))

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "train_step", full)
    with pytest.raises(UserError, match="does not hold a step with 12 images at a time; give --batch-gpu 6"):
        trainer.run()


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_a_compiled_discriminator_trains_the_same(tmp_path, monkeypatch, make):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    plain = weights_after(tmp_path, make(dataset, r1_interval=2), dataset, 3, Process(CPU))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = make(dataset, r1_interval=2, compile_discriminator=True)
    torch.testing.assert_close(plain, weights_after(tmp_path, config, dataset, 3, Process(CPU)), rtol=0, atol=1e-5)
