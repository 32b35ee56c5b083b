"""Random streams, running means and the small helpers of torch_utils."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torch_utils.devices import default_device, peak_memory
from torch_utils.distributed import Process, average
from torch_utils.ema import half_life_decay, update_ema
from torch_utils.random import BatchRows, latents, normal, stream
from torch_utils.stats import Means


def test_streams_repeat_and_differ_by_every_part_of_their_name():
    def first(*name):
        return stream(*name).integers(2**62)

    assert first(0, "z", 5, 1) == first(0, "z", 5, 1)
    names = [(0, "z", 5, 1), (1, "z", 5, 1), (0, "y", 5, 1), (0, "z", 6, 1), (0, "z", 5, 2), (0, "z", 5)]
    assert len({int(first(*name)) for name in names}) == len(names)


def test_latents_are_the_same_on_every_machine():
    """A seed that somebody writes down must mean the same world for ever."""
    assert latents(3, 4).dtype == torch.float32
    np.testing.assert_allclose(latents(3, 4).numpy(), [[-0.55947852, 0.30664694, 1.5522276, 0.18947901]], rtol=1e-6)


def test_normal_has_unit_variance():
    x = normal(stream(0, "test"), 200, 100)
    assert x.shape == (200, 100)
    assert abs(x.std().item() - 1) < 0.02


def test_half_life_is_counted_in_images():
    decay = half_life_decay(8, 80.0)
    assert decay**10 == pytest.approx(0.5)
    assert half_life_decay(8, 0.0) == 0


def test_ema_moves_parameters_and_copies_buffers():
    module = nn.BatchNorm1d(3)
    average_ = copy.deepcopy(module)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.running_mean.fill_(7.0)
    update_ema(average_, module, 0.75)
    torch.testing.assert_close(average_.weight, torch.full([3], 1.5))
    torch.testing.assert_close(average_.running_mean, torch.full([3], 7.0))


def test_means_count_elements_between_two_readings():
    means, alone = Means(), Process(torch.device("cpu"))
    assert means.read(alone) == {}
    means.add("a", torch.tensor([1.0, 2.0, 3.0]))
    means.add("a", torch.tensor(6.0))
    means.add("b", torch.tensor(5))
    means.add_grouped("c", torch.tensor([1.0, 3.0, 7.0]), torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]))
    again = Means()
    again.load_state_dict(means.state_dict(), torch.device("cpu"))
    for held in (means, again):
        assert held.read(alone) == {"a": 3.0, "b": 5.0, "c": [2.0, None, 7.0], "c std": [1.0, None, 0.0]}
        assert held.read(alone) == {}


def test_shares_of_a_stream_put_together_are_the_stream():
    def draw(share):
        return np.concatenate(
            [
                share.random((2, share.count)),
                share.standard_normal((share.count,))[None],
                share.uniform(-1, 1, size=share.count)[None],
                share.integers(9, size=share.count)[None],
            ]
        )

    whole = draw(BatchRows(stream(0, "x"), 6, slice(None)))
    for rows in (slice(0, None, 2), slice(1, None, 3), slice(5, 6)):
        np.testing.assert_array_equal(draw(BatchRows(stream(0, "x"), 6, rows)), whole[:, rows])


def test_one_process_averages_with_nobody():
    x = torch.randn(3)
    before = x.clone()
    average([x], Process(torch.device("cpu")))
    assert torch.equal(x, before)


def test_default_device_is_one_that_exists():
    torch.zeros(1, device=default_device())


def test_peak_memory_is_left_out_where_the_system_does_not_say():
    program = """
import sys
sys.modules["resource"] = None  # as on Windows: importing it fails
import torch
from torch_utils.devices import peak_memory
assert peak_memory(torch.device("cpu")) is None
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
    assert 2**24 < peak_memory(torch.device("cpu")) < 2**40


@pytest.mark.parametrize("counter", [-1, 2**32])
def test_a_counter_that_would_run_into_the_next_is_refused(counter):
    assert stream(0, "x", 2**32 - 1).random() != stream(0, "x", 0, 1).random()
    with pytest.raises(ValueError, match="must be from 0 to"):
        stream(0, "x", counter)
