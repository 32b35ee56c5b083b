"""What a transfer goes on from, in a sixth of a state."""

import dataclasses

import pytest
import torch
from conftest import small_patches
from test_trainer import tiny_run

from multiscale.data.patches import PatchDataset
from multiscale.runs.packing import pack_networks
from multiscale.training.trainer import Trainer
from multiscale.training.transfer import load_learned
from torch_utils.distributed import Process


def test_packed_networks_are_what_a_transfer_begins_with(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    run = tmp_path / "run"
    run.mkdir()
    config = tiny_run(dataset)
    styled = dataclasses.replace(config.generator, fourier_features=40, feature_style=True)
    trainer = Trainer(dataclasses.replace(config, generator=styled), dataset, run, Process(torch.device("cpu")))
    trainer.run()
    pack_networks(run, tmp_path / "networks.pt")
    state = next(run.glob("state-*20.pt"))
    assert (tmp_path / "networks.pt").stat().st_size < state.stat().st_size / 3
    learned = load_learned(tmp_path / "networks.pt")
    learned.check(trainer.config)
    free = {
        "feature_bandwidth": 0.2,
        "even_features": True,
        "feature_gates": True,
        "feature_envelope": 0.5,
    }  # no weights, or some that may come
    packets = dataclasses.replace(config, generator=dataclasses.replace(styled, **free))
    learned.check(packets)
    Trainer(packets, dataset, tmp_path, Process(torch.device("cpu"))).begin_with(learned.weights)
    damaged = {"G": {key: value for key, value in learned.weights["G"].items() if key != "synthesis.input_weight"}}
    with pytest.raises(RuntimeError, match="Missing key"):
        Trainer(packets, dataset, tmp_path, Process(torch.device("cpu"))).begin_with(damaged)
    other = dataclasses.replace(tiny_run(dataset, seed=5), generator=styled)
    other = Trainer(other, dataset, tmp_path, Process(torch.device("cpu")))
    other.begin_with(learned.weights)
    for name in ("G", "D", "G_ema"):
        for key, tensor in getattr(trainer, name).state_dict().items():
            torch.testing.assert_close(getattr(other, name).state_dict()[key], tensor, rtol=1e-3, atol=1e-3)
