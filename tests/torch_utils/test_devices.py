"""Copies to devices, as far as a CPU can tell."""

import torch

from torch_utils.devices import to_device


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


def test_nothing_is_copied_for_the_cpu():
    batch = torch.arange(24).reshape(6, 4)[1::2]
    assert to_device(batch, torch.device("cpu")) is batch
