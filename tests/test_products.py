"""Which arithmetic float32 products have on a GPU: one place decides, so a CPU can tell what a GPU would be asked for."""

from collections import defaultdict

import pytest
import torch
from click.testing import CliRunner
from conftest import calibrated_generator, small_config, small_patches
from torch.nn.modules.module import register_module_forward_pre_hook
from training.test_trainer import tiny_run

from multiscale.cli import calc_metrics, generate
from multiscale.data.patches import PatchDataset
from multiscale.metrics import reals
from multiscale.rendering.renderer import Renderer
from multiscale.runs.snapshots import save_snapshot
from multiscale.training.trainer import Trainer
from multiscale.view import Region
from torch_utils.devices import float32_products
from torch_utils.distributed import Process


def settings():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(False, True), (True, False)], ids=["as in PyTorch", "the other way round"])
def outside(request):
    """What a process has set before."""
    with float32_products():  # puts back
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
        yield request.param


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """Settings under which modules are called, by the modules' class; measures have a cache of their own."""
    monkeypatch.setattr(reals, "_folder", lambda: tmp_path / "cache")
    found = defaultdict(set)
    hook = register_module_forward_pre_hook(lambda module, _: found[type(module).__name__].add(settings()))
    yield found
    hook.remove()


def run(command, *arguments):
    result = CliRunner().invoke(command.main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_hold_for_a_block_and_are_put_back(outside, tf32):
    with pytest.raises(ZeroDivisionError), float32_products(tf32=tf32):
        assert settings() == (tf32, tf32)
        with float32_products():
            assert settings() == (False, False)
        assert settings() == (tf32, tf32)
        raise ZeroDivisionError
    assert settings() == outside


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="needs PyTorch 2.9 or later")
def test_settings_by_the_newer_names_are_put_back_too(outside):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    matmul.fp32_precision, conv.fp32_precision = "tf32", "ieee"
    with float32_products():
        assert settings() == (False, False)
    assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "ieee")


def test_images_and_measures_have_float32_whatever_the_process_has_set(tmp_path, outside, seen):
    data = small_patches(tmp_path / "p.zip", side=32, octaves=2)
    generator = calibrated_generator(small_config(octaves=2, channel_max=16))
    seen.clear()
    path = tmp_path / "generator-000000000.safetensors"
    save_snapshot(path, generator, {"kimg": 0.0})
    region = Region.of_view(2, (0, 0), 48, 32)
    Renderer(generator, torch.device("cpu")).image("3~4:0.5", region)
    run(generate, "--network", path, "--seeds", "0", "--out", tmp_path / "out")
    names = "msfid8,swd4,equivariance2,consistency2,diversity2"
    run(calc_metrics, "--network", path, "--data", data, "--metrics", names, "--gpus", 0, "--out", tmp_path / "metrics")
    assert {"MappingNetwork", "SynthesisNetwork", "RandomNetwork"} <= set(seen)
    assert set.union(*seen.values()) == {(False, False)}, dict(seen)
    assert settings() == outside


@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_s_setting_is_for_its_steps_alone(tmp_path, outside, seen, tf32):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = tiny_run(dataset, tf32=tf32, kimg=0.008, metrics="msfid4", augment="fixed", augment_p=0.3)
    trainer = Trainer(config, dataset, tmp_path, Process(torch.device("cpu")))
    step = trainer.train_step
    before = []

    def train_step(*batch):
        before.append({name: set(found) for name, found in seen.items()})
        seen.clear()
        step(*batch)
        assert set.union(*seen.values()) == {(tf32, tf32)}
        seen.clear()

    trainer.train_step = train_step
    trainer.run()
    assert len(before) == 2
    assert {"SynthesisNetwork", "RandomNetwork"} <= set(before[0])  # calibration, sheets, measures
    for found in (before[0], seen):
        assert set.union(*found.values()) == {(False, False)}, found
    assert settings() == outside
