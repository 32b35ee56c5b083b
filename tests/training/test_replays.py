"""Replays of a step from CUDA graphs, as far as a CPU can tell: which calls they are, when, and what without memory."""

from collections import Counter

import pytest
import torch
from conftest import small_patches
from training.test_trainer import beyond_run, tiny_run

from multiscale.config import RunConfig, build, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.training import estimate, replays
from multiscale.training.estimate import chooses_replays
from multiscale.training.replays import Replays
from multiscale.training.trainer import Trainer
from torch_utils.distributed import Process


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_in_a_step_each_role_is_called_once_with_what_the_graph_needs(tmp_path, make):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(make(dataset), dataset, tmp_path, Process(torch.device("cpu")), replay=True)
    roles = Counter()

    def call(role, function, module, *inputs):
        roles[role] += 1
        assert all(isinstance(t, torch.Tensor) for t in inputs)
        assert set(map(id, module.parameters())) <= {id(p) for net in (trainer.G, trainer.D) for p in net.parameters()}
        return function(*inputs)

    assert isinstance(trainer.objective.replays, Replays)
    trainer.objective.replays = call
    batches = trainer._batches()
    for _ in range(3):
        roles.clear()
        trainer.train_step(*next(batches))
        pairs = {"G real": 1} if trainer.config.training.adversarial == "pairs" else {}
        assert roles == {"generate, observed": 1, "D real": 1, "D fake": 1, "G fake": 1, "coarse": 1, **pairs}


def test_a_run_in_several_parts_is_not_replayed(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    process = Process(torch.device("cpu"))
    state = Trainer(tiny_run(dataset), dataset, tmp_path, process, 2).state_dict()
    trainer = Trainer(tiny_run(dataset), dataset, tmp_path, process, replay=True)
    trainer.load_state_dict(state)
    assert trainer.batch_gpu == 2
    assert trainer.objective.replays is None


class Recording:
    made = 0

    def __init__(self, function, module, inputs):
        type(self).made += 1
        self.function = function

    def __call__(self, *inputs):
        return self.function(*inputs)


def test_the_third_call_is_recorded_for_each_role_shape_and_kind_of_gradient(monkeypatch):
    monkeypatch.setattr(replays, "_Recording", Recording)
    monkeypatch.setattr(Recording, "made", 0)
    call, net = Replays(), torch.nn.Linear(3, 2)
    made = []
    for x in [torch.ones(4, 3)] * 4 + [torch.ones(5, 3)] * 3 + [torch.ones(5, 3, requires_grad=True)] * 3:
        assert call("a", net, net, x).shape == (len(x), 2)
        made.append(Recording.made)
    assert made == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    for _ in range(3):
        call("b", net, net, torch.ones(4, 3))
        with torch.no_grad():
            call("a", net, net, torch.ones(4, 3))
    assert Recording.made == 5


def test_without_memory_for_more_graphs_the_run_goes_on(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(replays, "_Recording", fails)
    call, net, x = Replays(), torch.nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.warns(RuntimeWarning, match="cuda_graphs=false") as warned:
        results = [call("a", net, net, x) for _ in range(9)]
    assert len(warned) == 1
    assert all(torch.equal(y, net(x)) for y in results)


@pytest.mark.parametrize(
    "asked, batch_gpu, memory, chosen",
    [
        (None, 4, 1e9, True),
        (None, 4, 1e6, False),
        (None, 2, 1e9, False),
        (True, 4, 1e6, True),
        (True, 2, 1e9, False),
        (False, 4, 1e9, False),
    ],
)
def test_steps_are_replayed_where_that_fits_easily(tmp_path, monkeypatch, asked, batch_gpu, memory, chosen):
    monkeypatch.setattr(estimate, "device_capacity", lambda *_: 10 * memory)
    values = to_dict(tiny_run(PatchDataset(small_patches(tmp_path / "p.zip"))))
    values["training"]["cuda_graphs"] = asked
    config = build(RunConfig, values)
    assert chooses_replays(config, batch_gpu, 4, torch.device("cuda", 0)) is chosen
    assert not chooses_replays(config, 4, 4, torch.device("cpu"))
