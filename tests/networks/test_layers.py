"""What layers do in half precision, which only GPUs are given: on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiscale.networks.layers import mean_square, modulated_conv2d

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
    """The first factors of batched matrix products."""

    def __init__(self):
        super().__init__()
        self.factors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = {"aten::bmm": 0, "aten::baddbmm_": 1}
        if func._schema.name in places:
            self.factors.append(args[places[func._schema.name]])
        return func(*args, **(kwargs or {}))


def modulated(dtype, device="cpu", channels=(203, 294), size=6):
    """Maps, weights, style and gain of a layer with maps in parts."""
    maps = [torch.randn(2, count, size, size, device=device, dtype=dtype) for count in channels]
    weight = torch.randn(20, sum(channels), 1, 1, device=device, requires_grad=True)
    style = torch.randn(2, sum(channels), device=device, requires_grad=True)
    return maps, weight, style, torch.ones([], device=device)


@HALVES
@pytest.mark.parametrize("channels", [(203, 294), (475,), (64, 8)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_rows_of_weights_in_half_precision_begin_at_multiples_of_16_bytes(dtype, channels, device):
    with Products() as products:
        modulated_conv2d(*modulated(dtype, device, channels), demodulate=True)
    assert [factor.shape for factor in products.factors] == [(2, 20, count) for count in channels]
    for factor in products.factors:
        assert factor.stride(2) == 1
        assert factor.dtype == dtype
        assert all(2 * number % 16 == 0 for number in (*factor.stride()[:2], factor.storage_offset()))


@HALVES
def test_products_and_gradients_in_half_precision_are_those_of_the_same_numbers_in_rows_of_any_length(dtype):
    maps, weight, style, gain = modulated(dtype)
    y = modulated_conv2d(maps, weight, style, gain, demodulate=True)
    towards = torch.randn_like(y)
    found = torch.autograd.grad(y, (weight, style), towards)
    exact = modulated_conv2d([x.float() for x in maps], weight, style, gain, demodulate=True)
    expected = torch.autograd.grad(exact, (weight, style), towards.float())
    for a, b in zip((y.float(), *found), (exact, *expected), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 4 * torch.finfo(dtype).eps * b.norm()


def test_weights_in_float32_are_multiplied_where_they_are():
    with Products() as products:
        modulated_conv2d(*modulated(torch.float32), demodulate=True)
    first, second = products.factors
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert first.stride() == second.stride() == (20 * 497, 497, 1)
