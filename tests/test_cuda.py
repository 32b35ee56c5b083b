"""What only a GPU can show: the same numbers as on the CPU, half precision close to them, a training step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import calibrated_generator, small_config, small_patches
from training.test_trainer import beyond_run, stats, tiny_run

from dnnlib.errors import UserError
from multiscale.config import DiscriminatorConfig
from multiscale.data.patches import PatchDataset
from multiscale.networks.discriminator import ResidualDiscriminator
from multiscale.networks.fourier import fourier_features
from multiscale.networks.generator import Generator
from multiscale.networks.layers import modulated_conv2d
from multiscale.rendering import renderer as renderer_module
from multiscale.rendering.renderer import Renderer
from multiscale.training.trainer import Trainer
from multiscale.view import Region, view_transform
from torch_utils import distributed
from torch_utils.devices import float32_products
from torch_utils.distributed import Process, any_of, average
from torch_utils.ops.filtered_lrelu import filtered_lrelu

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of PyTorch"),
]


@pytest.fixture(autouse=True)
def _full_float32():
    with float32_products():
        yield


MIXED = {"fourier_features": 300, "feature_style": True, "world_frame": True}
PACKETS = {
    "fourier_features": 300,
    "feature_style": True,
    "even_features": True,
    "feature_bandwidth": 0.2,
    "feature_gates": True,
    "feature_envelope": 0.5,
    "envelope_octaves": 3,
    "critical_filter_size": 10,
}


def images(half_res: int, half_dtype: str = "float16", **changes):
    generator = calibrated_generator(small_config(img_resolution=64, channel_max=64, channel_base=4096, **changes))
    generator.config = replace(generator.config, num_half_res=half_res, half_dtype=half_dtype)
    on_gpu = Generator(generator.config).eval()
    on_gpu.load_state_dict(generator.state_dict())
    z, transform = torch.randn(2, 16), view_transform([1.0, 40.0], [[0, 0], [0.3, -0.4]])
    with torch.no_grad():
        return generator(z, transform), on_gpu.cuda()(z.cuda(), transform.cuda()).cpu()


@pytest.mark.parametrize("changes", [{}, MIXED, PACKETS], ids=["as published", "mixed", "packets"])
def test_a_float32_image_is_the_same_on_both(changes):
    cpu, gpu = images(half_res=0, **changes)
    torch.testing.assert_close(gpu, cpu, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype, decibels", [("float16", 40), ("bfloat16", 22)])
def test_half_precision_images_are_close(dtype, decibels):
    cpu, gpu = images(half_res=4, half_dtype=dtype)
    error = (gpu - cpu).square().mean()
    assert 10 * math.log10((cpu.max() - cpu.min()) ** 2 / error) > decibels


@pytest.mark.parametrize("channels", [(475, 837), (837, 724)])
def test_layers_of_odd_widths_take_hardly_longer_than_those_of_multiples_of_eight(channels):
    """Of other sides tensor cores multiply matrices three to six times more slowly, forward and backward."""
    times = []
    for inside, outside in (channels, [count + -count % 8 for count in channels]):
        x = torch.randn(2, inside + -inside % 8, 148 * 148, dtype=torch.float16, device="cuda").unflatten(2, (148, 148))
        x[:, inside:] = 0
        weight = torch.randn(outside, inside, 1, 1, device="cuda", requires_grad=True)
        style, gain = torch.randn(2, inside, device="cuda"), torch.ones([], device="cuda")
        x.requires_grad_()
        times.append(min(seconds_both_ways(x, weight, style, gain) for _ in range(5)))
    assert times[0] < 1.5 * times[1]


def seconds_both_ways(x, weight, style, gain):
    """How long the GPU takes for a modulated convolution and its gradients."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # until all is queued
    begin.record()
    y = modulated_conv2d([x], weight, style, gain, demodulate=True)
    torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


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


@pytest.mark.parametrize("dtype, near", [("float16", 0.02), ("bfloat16", 0.15)])
@pytest.mark.parametrize("changes", [{}, {"scale_embedding": 16, "local_heads": True}], ids=["as published", "local"])
def test_the_discriminator_in_half_precision_judges_as_in_float32(dtype, near, changes):
    config = DiscriminatorConfig(channel_base=2048, channel_max=64, num_half_res=0, **changes)
    exact = ResidualDiscriminator(config, img_resolution=64).cuda()
    half = ResidualDiscriminator(replace(config, num_half_res=4, half_dtype=dtype), img_resolution=64).cuda()
    half.load_state_dict(exact.state_dict())
    x = torch.randn(8, 3, 64, 64, device="cuda")
    zoom_log2 = torch.rand(8, device="cuda") * 6
    logits = [D(x.requires_grad_(), zoom_log2) for D in (exact, half)]
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in logits]
    assert logits[1].dtype == gradients[1].dtype == torch.float32
    assert (logits[1] - logits[0]).norm() < near * logits[0].norm()
    assert (gradients[1] - gradients[0]).norm() < 3 * near * gradients[0].norm()


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_a_step_waits_for_the_gpu_nowhere(tmp_path, make, replay):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = make(dataset, augment="ada", augment_p=0.3, r1_interval=2, blur_sigma_px=2)
    trainer = Trainer(config, dataset, tmp_path, Process(torch.device("cuda", 0)), replay=replay)
    batches = trainer._batches()
    first = 20 if replay else 2  # before, kernels are loaded and graphs recorded
    for step in range(first + 8):
        batch = next(batches)
        torch.cuda.set_sync_debug_mode("error" if step >= first else "default")
        try:
            trainer.train_step(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("half_res, near", [(0, 1e-3), (4, 3e-2)], ids=["float32", "half"])
@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_replayed_steps_train_as_others_do(tmp_path, make, half_res, near):
    """Replayed augmentation pads more, which moves the rounding; Adam makes ten times of it in a few steps."""
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    config = make(dataset)
    config = replace(
        config,
        generator=replace(config.generator, num_half_res=half_res),
        discriminator=replace(config.discriminator, num_half_res=half_res),
    )
    states = []
    for replay in (False, True):
        trainer = Trainer(config, dataset, tmp_path, Process(torch.device("cuda", 0)), replay=replay)
        batches = trainer._batches()
        for _ in range(12):
            trainer.train_step(*next(batches))
        states.append({**trainer.G.state_dict(), **{f"D.{k}": v for k, v in trainer.D.state_dict().items()}})
        losses = trainer.means.read(trainer.process)
        states[-1]["losses"] = torch.tensor([losses["loss/D"], losses["loss/G"], losses["loss/consistency"]])
    assert len(trainer.objective.replays._recordings) >= 5
    for name, eager in states[0].items():
        assert (states[1][name] - eager).norm() <= near * eager.norm() + 1e-6, name


def test_a_gpu_that_is_too_small_says_what_to_lower(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    torch.cuda.set_per_process_memory_fraction(0.002)
    try:
        trainer = Trainer(tiny_run(dataset, batch=512), dataset, tmp_path, Process(torch.device("cuda", 0)))
        with pytest.raises(UserError, match="give --batch-gpu 256"):
            trainer.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _sum(process, folder):
    mean = torch.full([3], float(process.rank), device=process.device)
    average([mean], process)
    (folder / f"{process.rank}").write_text(f"{mean[0].item()} {any_of(process.rank == 0, process)}")


def test_nccl_serves_as_many_gpus_as_there_are(tmp_path):
    """With one GPU: the process group, the first sum and the agreement of hosts still run."""
    count = torch.cuda.device_count()
    store = dist.TCPStore("127.0.0.1", 0, None, True, distributed.TIMEOUT, wait_for_workers=False)
    if count > 1:
        distributed.run(_sum, [torch.device("cuda", i) for i in range(count)], tmp_path)
        assert (tmp_path / "0").read_text() == f"{(count - 1) / 2} True"
    else:
        with distributed._member(Process(torch.device("cuda", 0), 0, 1), store, distributed.TIMEOUT) as process:
            ones = torch.ones(2, device="cuda")
            dist.all_reduce(ones)
            assert ones.sum() == 2
            assert any_of(True, process)


@pytest.mark.parametrize("changes", [{}, MIXED, PACKETS], ids=["as published", "mixed", "packets"])
def test_replayed_images_are_those_of_the_network(changes):
    generator = calibrated_generator(small_config(octaves=4, **changes))
    device = torch.device("cuda", 0)
    eager, replaying = Renderer(generator, device), Renderer(generator, device, replay=True)
    for zoom, centre, seed in [
        (2, (0.1, 0), 3),
        (3, (-0.2, 0.1), 4),
        (4, (0, 0.3), 5),
        (5, (0.1, 0.1), 6),
        (2, (0, 0), 3),
    ]:
        region = Region.of_view(zoom, centre, 64, 48)
        torch.testing.assert_close(replaying.image(seed, region), eager.image(seed, region), atol=1e-5, rtol=0)
    assert len(replaying._replay._recordings) == 1


def test_replays_that_share_memory_leave_each_others_images_alone():
    renderer = Renderer(calibrated_generator(small_config(octaves=4)), torch.device("cuda", 0), replay=True)
    synthesis, replay, ws = renderer.generator.synthesis, renderer._replay, renderer.styles(3)
    transform = Region.of_view(2, (0, 0), 64, 64).transform(renderer.resolution)
    shapes = [(64 + 32 * i, 64) for i in (2, 0, 3, 1)]
    with torch.no_grad():
        for _ in range(3):
            images = [replay(ws, transform, size) for size in [*shapes, *reversed(shapes)]]
        for image, size in zip(images, [*shapes, *reversed(shapes)], strict=True):
            torch.testing.assert_close(image, synthesis(ws, transform, size=size), atol=1e-5, rtol=0)
    assert len(replay._recordings) == len(shapes)


def test_tiles_are_rendered_together_and_without_seams(monkeypatch):
    renderer = Renderer(calibrated_generator(small_config(octaves=4)), torch.device("cuda", 0))
    region = Region.of_view(1, (0, 0), 256, 256)
    whole = renderer.image(3, region)
    monkeypatch.setitem(renderer_module.TILE_PX, "cuda", 64 + 2 * renderer.halo)
    assert renderer._tile_size(region)[2] > 1
    assert (renderer.image(3, region) - whole).square().mean() < 4e-8  # 80 dB


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_training_runs_and_its_losses_are_finite(tmp_path, make):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    Trainer(make(dataset, augment="ada"), dataset, tmp_path, Process(torch.device("cuda", 0))).run()
    assert all(np.isfinite(line["loss/D"]) for line in stats(tmp_path) if "loss/D" in line)
