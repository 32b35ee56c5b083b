"""Replays of a step from CUDA graphs, as far as a CPU can tell: which calls they are, when, and what without memory."""

from collections import Counter

import pytest
import torch
from conftest import small_patches
from training.test_trainer import beyond_run, tiny_run

from multiscale.config import RunConfig, build, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.training import estimate
from multiscale.training.cuda_graphs import Replays
from multiscale.training.estimate import chooses_replays
from multiscale.training.trainer import Trainer
from torch_utils.distributed import Process


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_in_a_step_each_role_is_called_once_with_what_the_graph_needs(tmp_path, make):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    trainer = Trainer(make(dataset), dataset, tmp_path, Process(torch.device("cpu")), replay=True)
    roles = Counter()

    def call(role, function, module, *inputs, variant=None):
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
        training, seen = trainer.config.training, ["D real", "D fake", "G fake"]
        if training.adversarial == "pairs":
            seen.append("G real")
        expected = Counter({"generate, observed": 1, "coarse": 1} | dict.fromkeys(seen, 1))
        if training.augment != "none":
            expected.update(f"augment {role.removeprefix('D ').replace('G fake', 'G')}" for role in seen)
        if (trainer.step - 1) % training.r1_interval == 0:
            expected.update(f"penalty {r}" for r in ("r1", "r2") if getattr(training, f"{r}_gamma"))
        assert roles == expected


def test_a_run_in_several_parts_is_not_replayed(tmp_path):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    process = Process(torch.device("cpu"))
    state = Trainer(tiny_run(dataset), dataset, tmp_path, process, 2).state_dict()
    trainer = Trainer(tiny_run(dataset), dataset, tmp_path, process, replay=True)
    trainer.load_state_dict(state)
    assert trainer.batch_gpu == 2
    assert trainer.objective.replays is None


class Emulation:
    """Stands in for CUDA graphs: does again what was recorded, and puts the results where those of the recording are."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def rehearse(self, body):
        body()

    def record(self, body):
        recording = body.__self__
        names = {"_compute": "outputs", "_differentiate": "gradients"}[body.__name__]
        body()
        held, is_differentiable = list(getattr(recording, names)), torch.is_grad_enabled()

        def replay():
            with torch.set_grad_enabled(is_differentiable):
                body()
            for place, value in zip(held, getattr(recording, names), strict=True):
                if place is not None:
                    place.untyped_storage().copy_(value.untyped_storage())
            setattr(recording, names, type(getattr(recording, names))(held))

        return replay


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_replayed_steps_are_the_same_but_for_the_order_of_sums(tmp_path, make):
    dataset = PatchDataset(small_patches(tmp_path / "p.zip"))
    states = []
    for replay in (False, True):
        config = make(dataset, augment="fixed", augment_p=0.4, r1_interval=4)
        trainer = Trainer(config, dataset, tmp_path, Process(torch.device("cpu")))
        trainer.objective.replays = Replays(Emulation) if replay else None
        batches = trainer._batches()
        for _ in range(14):
            trainer.train_step(*next(batches))
        states.append({f"{n}.{k}": v for n in ("G", "D", "G_ema") for k, v in getattr(trainer, n).state_dict().items()})
    roles = {key[:2] for key in trainer.objective.replays._recordings}
    assert {
        ("generate, observed", True),
        ("D fake", True),
        ("G fake", True),
        ("coarse", True),
        ("coarse", False),
        ("augment G", True),
        ("penalty r1", True),
    } <= roles
    for name, value in states[0].items():
        assert (states[1][name] - value).norm() <= 1e-5 * value.norm() + 1e-7, name


def test_the_third_call_is_recorded_for_each_role_shape_and_kind_of_gradient(monkeypatch):
    monkeypatch.setattr(Emulation, "made", 0)
    call, net = Replays(Emulation), torch.nn.Linear(3, 2)
    made = []
    for x in [torch.ones(4, 3)] * 4 + [torch.ones(5, 3)] * 3 + [torch.ones(5, 3, requires_grad=True)] * 3:
        assert call("a", net, net, x).shape == (len(x), 2)
        made.append(Emulation.made)
    assert made == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    for _ in range(3):
        call("b", net, net, torch.ones(4, 3))
        with torch.no_grad():
            call("a", net, net, torch.ones(4, 3))
    assert Emulation.made == 5


def test_without_memory_for_more_graphs_the_run_goes_on():
    def fails():
        raise torch.OutOfMemoryError

    call, net, x = Replays(fails), torch.nn.Linear(3, 2), torch.ones(4, 3)
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
