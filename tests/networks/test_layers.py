"""What layers do in half precision, which only GPUs are given: on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiscale.networks.layers import mean_square

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
