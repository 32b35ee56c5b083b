"""What a transfer goes on from, in a sixth of a state."""

import dataclasses

import pytest
import torch
from conftest import small_patches
from test_trainer import tiny_run

from dnnlib.errors import UserError
from multiscale.config import to_dict
from multiscale.data.patches import PatchDataset
from multiscale.runs.packing import pack_networks
from multiscale.training.trainer import Trainer
from multiscale.training.transfer import Learned, load_learned, with_new
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


def test_weights_of_a_setting_that_has_another_value_begin_anew(tmp_path):
    config = tiny_run(PatchDataset(small_patches(tmp_path / "p.zip")))
    changes = [{}, {"feature_envelope": 0.5, "feature_gates": True}, {"feature_envelope": 0.4, "feature_gates": True}]
    mixed = [dataclasses.replace(config.generator, fourier_features=40, **each) for each in changes]
    none, half, less = (dataclasses.replace(config, generator=generator) for generator in mixed)
    old, envelope, gate = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
    names = ["synthesis.input_weight", "synthesis.injections.3.envelope", "synthesis.gates.3"]
    learned = Learned(
        path=tmp_path, config=to_dict(half), weights={"G": dict(zip(names, (old, envelope, gate), strict=True))}
    )
    assert list(learned.weights_for(half)["G"]) == names
    assert list(learned.weights_for(less)["G"]) == [names[0], names[2]]
    begun = with_new(learned.weights_for(less)["G"], {names[0]: gate, names[1]: gate, "synthesis.mixing.3": gate})
    assert [begun[name].tolist() for name in names] == [[0, 0], [2, 2], [2, 2]]
    assert len(begun) == len(names), "only what may come is taken from the new network"
    for given in (half, less):
        learned.check(given)
    with pytest.raises(UserError, match="feature_envelope"):
        learned.check(none)
