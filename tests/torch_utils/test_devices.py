"""Copies to devices, as far as a CPU can tell."""

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils.devices import choose_devices, to_device


def test_what_goes_to_a_gpu_is_one_piece_of_pinned_memory(monkeypatch):
    pinned, copied = [], []

    def pin_memory(tensor):
        pinned.append(tensor)
        return tensor

    def to(tensor, device, *, non_blocking):
        copied.append((device, non_blocking))
        assert tensor is pinned[-1]
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    device, batch = torch.device("cuda", 0), torch.arange(24).reshape(6, 4)
    for tensor in (batch, batch[1::2], batch.T, batch[:, 1], batch[1::3, ::2]):
        assert torch.equal(to_device(tensor, device), tensor)
        assert pinned[-1].is_contiguous()
        assert copied[-1] == (device, True)
    assert pinned[0] is batch  # in one piece already


@pytest.mark.parametrize("gpus, available", [(None, 0), (0, 0), (0, 8)])
def test_processes_share_the_cpu_where_that_is_what_is_computed_on(monkeypatch, gpus, available):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available > 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_devices(gpus, 3) == [torch.device("cpu")] * 3


@pytest.mark.parametrize(
    "gpus, available, advice",
    [
        (2, 0, "give --gpus 0 with it."),
        (None, 2, "give --gpus 0 with it, or --gpus 2 instead."),
        (None, 8, "give --gpus 0 with it, or --gpus 3 instead."),
    ],
)
def test_what_is_advised_for_several_processes_is_allowed(monkeypatch, gpus, available, advice):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available > 0)
    with pytest.raises(UserError) as refused:
        choose_devices(gpus, 3)
    assert str(refused.value) == f"--procs 3 is for the CPU; {advice}"


def test_nothing_is_copied_for_the_cpu():
    batch = torch.arange(24).reshape(6, 4)[1::2]
    assert to_device(batch, torch.device("cpu")) is batch
