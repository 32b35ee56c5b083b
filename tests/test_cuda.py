"""What only a GPU can show: the same numbers as on the CPU, half precision close to them, a training step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import calibrated_generator, small_config, small_patches
from training.test_trainer import stats, tiny_run

from multiscale.data.patches import PatchDataset
from multiscale.networks.fourier import fourier_features
from multiscale.networks.generator import Generator
from multiscale.training.trainer import Trainer
from multiscale.view import view_transform
from torch_utils.distributed import Process
from torch_utils.ops.filtered_lrelu import filtered_lrelu

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of PyTorch"),
]


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def images(half_res: int, half_dtype: str = "float16"):
    generator = calibrated_generator(small_config(img_resolution=64, channel_max=64, channel_base=4096))
    generator.config = replace(generator.config, num_half_res=half_res, half_dtype=half_dtype)
    on_gpu = Generator(generator.config).eval()
    on_gpu.load_state_dict(generator.state_dict())
    z, transform = torch.randn(2, 16), view_transform([1.0, 40.0], [[0, 0], [0.3, -0.4]])
    with torch.no_grad():
        return generator(z, transform), on_gpu.cuda()(z.cuda(), transform.cuda()).cpu()


def test_a_float32_image_is_the_same_on_both():
    cpu, gpu = images(half_res=0)
    torch.testing.assert_close(gpu, cpu, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype, decibels", [("float16", 40), ("bfloat16", 22)])
def test_half_precision_images_are_close(dtype, decibels):
    cpu, gpu = images(half_res=4, half_dtype=dtype)
    error = (gpu - cpu).square().mean()
    assert 10 * math.log10((cpu.max() - cpu.min()) ** 2 / error) > decibels


def test_deep_phases_are_exact_on_the_gpu():
    omega, phase, bins = torch.randn(8, 2) * 40, torch.rand(8) - 0.5, torch.arange(8) % 3
    zoom, centre = torch.tensor([8.0]), torch.tensor([[0.481, -0.329]], dtype=torch.float64)
    cpu = fourier_features(omega, phase, bins, zoom, centre, size=36, rate=16)
    gpu = fourier_features(omega.cuda(), phase.cuda(), bins.cuda(), zoom.cuda(), centre.cuda(), size=36, rate=16)
    torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dense", [False, True])
def test_ops_and_gradients_are_the_same_on_both(dense):
    fu, fd = torch.rand(12), torch.rand(12, 12) if dense else torch.rand(12)
    results = []
    x0, b0 = torch.randn(2, 3, 20, 22), torch.randn(3)
    for device in ("cpu", "cuda"):
        x, b = (t.to(device).requires_grad_() for t in (x0, b0))
        y = filtered_lrelu(x, fu.to(device), fd.to(device), b, up=2, down=2, padding=[11, 10, 11, 10], clamp=0.9)
        results.append([t.cpu() for t in (y.detach(), *torch.autograd.grad(y.square().sum(), (x, b)))])
    for cpu, gpu in zip(*results, strict=True):
        assert (gpu - cpu).abs().max() < 1e-4 * cpu.abs().max()


def test_training_runs_and_its_losses_are_finite(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    Trainer(tiny_run(dataset, augment="ada"), dataset, tmp_path, Process(torch.device("cuda", 0))).run()
    assert all(np.isfinite(line["loss/D"]) for line in stats(tmp_path) if "loss/D" in line)
