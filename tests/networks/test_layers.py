"""What layers do in half precision, which only GPUs are given: on the CPU."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import small_config
from torch.utils._python_dispatch import TorchDispatchMode

from multiscale.networks import layers
from multiscale.networks.generator import Generator
from multiscale.networks.layers import SynthesisLayer, mean_square, modulated_conv2d
from multiscale.view import view_transform

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


class Results(TorchDispatchMode):
    """Sizes of all tensors that operators make."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.sizes |= {t.numel() for t in (result if isinstance(result, tuple) else (result,))}
        return result


@HALVES
def test_the_mean_square_of_half_maps_makes_no_copies(dtype):
    maps = [torch.randn(2, 4, 20, 20).mul(100).to(dtype), torch.randn(2, 3, 20, 20)]
    with Results() as results:
        found = mean_square(maps)
    assert maps[0].numel() not in results.sizes
    assert found.dtype == torch.float32
    exact = sum(t.double().square().sum() for t in maps) / sum(t.numel() for t in maps)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_mean_square_of_float32_maps_is_what_it_was_to_the_bit():
    maps = [torch.randn(2, 4, 20, 20), torch.randn(2, 3, 20, 20)]
    assert torch.equal(mean_square(maps), sum(t.float().square().sum() for t in maps) / sum(t.numel() for t in maps))


class Products(TorchDispatchMode):
    """The factors of batched matrix products, forward and backward."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = {"aten::bmm": (0, 1), "aten::baddbmm_": (1, 2)}
        self.factors += [args[place] for place in places.get(func._schema.name, ())]
        return func(*args, **(kwargs or {}))


def modulated(dtype, device="cpu", channels=(203, 294), out_channels=20, kernel=1, size=4):
    """Maps, weights, style and gain of a layer with maps in parts; all but the gain want gradients."""
    torch.manual_seed(0)
    leaf = {"device": device, "requires_grad": True}
    maps = [torch.randn(2, count, size, size, dtype=dtype, **leaf) for count in channels]
    weight = torch.randn(out_channels, sum(channels), kernel, kernel, **leaf)
    style = torch.randn(2, sum(channels), **leaf)
    return maps, weight, style, torch.tensor(1.25, device=device)


def loops(maps, weight, style, gain, demodulate):
    """The convolution in float64 as the definition says, sample by sample."""
    x = torch.cat([x.double() for x in maps], dim=1)
    weight, style = weight.double(), style.double()
    if demodulate:
        weight = weight / weight.square().mean(dim=[1, 2, 3], keepdim=True).sqrt()
        style = style / style.square().mean().sqrt()
    images = []
    for image, y in zip(x, style, strict=True):
        w = weight * y[:, None, None]
        if demodulate:
            w = w / w.flatten(1).norm(dim=1)[:, None, None, None]
        images.append(F.conv2d(image[None], w * gain, padding=weight.shape[-1] - 1))
    return torch.cat(images)


@HALVES
@pytest.mark.parametrize("channels", [(203, 294), (475,), (64, 8)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_sides_of_products_in_half_precision_are_multiples_of_16_bytes(dtype, channels, device):
    maps, weight, style, gain = modulated(dtype, device, channels)
    with Products() as products:
        y = modulated_conv2d(maps, weight, style, gain, demodulate=True)
        y.backward(torch.ones_like(y))
    assert len(products.factors) == 6 * len(channels)  # each product has two in its backward pass
    for factor in products.factors:
        assert factor.dtype == dtype
        assert not any(side % 8 for side in factor.shape[1:])
        assert sorted(factor.stride()[1:])[0] == 1
        assert not any(number % 8 for number in (factor.storage_offset(), *factor.stride()) if number != 1)


@HALVES
@pytest.mark.parametrize("channels", [(203, 94), (75,), (64, 8), (5, 3)])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_products_and_gradients_in_half_precision_are_those_of_float64(dtype, channels, demodulate, kernel):
    maps, weight, style, gain = modulated(dtype, channels=channels, kernel=kernel, out_channels=21)
    y = modulated_conv2d(maps, weight, style, gain, demodulate=demodulate)
    assert y.shape[:2] == (2, 24)
    assert y.is_contiguous()
    assert not y[:, 21:].any()
    towards = torch.randn_like(y[:, :21])
    found = torch.autograd.grad(y[:, :21], (*maps, weight, style), towards)
    exact = loops(maps, weight, style, gain, demodulate)
    expected = torch.autograd.grad(exact, (*maps, weight, style), towards.double())
    for a, b in zip((y[:, :21], *found), (exact, *expected), strict=True):
        assert (a - b).norm() < 4 * torch.finfo(dtype).eps * b.norm()


@HALVES
def test_maps_may_come_with_their_zeros(dtype):
    maps, weight, style, gain = modulated(dtype)
    given = [F.pad(maps[0], (0, 0, 0, 0, 0, 5)), maps[1]]
    assert torch.equal(*(modulated_conv2d(x, weight, style, gain, demodulate=True) for x in (maps, given)))


def test_weights_of_zeros_in_half_precision_give_zeros():
    maps, weight, style, gain = modulated(torch.float16)
    weight = weight.detach().mul(torch.arange(20)[:, None, None, None] > 0).requires_grad_()
    y = modulated_conv2d(maps, weight, style, gain, demodulate=True)
    assert not y[:, 0].any()
    y.sum().backward()
    assert style.grad.isfinite().all()


def test_weights_in_float32_are_multiplied_where_they_are():
    with Products() as products:
        y = modulated_conv2d(*modulated(torch.float32), demodulate=True)
    first, second = products.factors[::2]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.stride() == second.stride() == (20 * 497, 497, 1)
    assert y.shape[1] == 20


@pytest.fixture
def half_everywhere(monkeypatch):
    """Layers that would be in half precision on a GPU are so on the CPU."""
    monkeypatch.setattr(
        SynthesisLayer, "dtype_on", lambda self, _: self.half_dtype if self.plan.half else torch.float32
    )
    monkeypatch.setenv("MULTISCALE_OPS", "reference")


def image_and_gradients(generator, batch):
    """An image, all gradients of its sum of squares, and what is observed for the running means; and what calibration finds."""
    torch.manual_seed(1)
    generator = copy.deepcopy(generator)
    z = torch.randn(batch, generator.config.z_dim)
    transform = view_transform([1.5] * batch, [[0.1, -0.1]] * batch)
    image = generator.synthesis(generator.mapping(z, observe=True), transform, observe=True)
    image.square().sum().backward()
    gradients = [p.grad for p in generator.parameters()]
    generator.calibrate(z, transform)
    return [image.detach(), *gradients, *generator.observations(), *generator.running_means()]


@pytest.mark.parametrize(
    ("batch", "changes"),
    [(1, {}), (2, {"num_half_res": 2}), (2, {"conv_kernel": 3}), (2, {"feature_style": True, "fourier_features": 30})],
    ids=["one", "two", "three by three", "styled"],
)
def test_zeros_behind_the_channels_change_no_image_no_gradient_no_mean(half_everywhere, monkeypatch, batch, changes):
    torch.manual_seed(0)
    generator = Generator(small_config(**({"num_half_res": 8, "half_dtype": "bfloat16"} | changes)))
    assert any(
        count % 8 for layer in generator.plan.layers if layer.half for count in (layer.in_channels, layer.features)
    )
    found = image_and_gradients(generator, batch)
    monkeypatch.setattr(layers, "CHANNEL_STEP", 1)
    expected = image_and_gradients(generator, batch)
    assert found[0].shape == (batch, 3, *2 * [generator.config.img_resolution])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()
