"""What a step differentiates: penalties, pairs and weights by octave, against numbers that are known."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import small_patches
from training.test_trainer import CPU, beyond_run, part_of, stats, tiny_run

from multiscale.data.patches import PatchDataset
from multiscale.training.objective import Objective
from multiscale.training.trainer import Trainer
from multiscale.view import unchecked_transform
from torch_utils.distributed import Process

LABELS = torch.tensor([0.5, 1.5, 2.5, 2.9], dtype=torch.float64)


@pytest.fixture
def dataset(tmp_path):
    return PatchDataset(small_patches(tmp_path / "p.zip"))


def objective_of(dataset, folder, make=tiny_run, **training) -> Objective:
    return Trainer(make(dataset, **training), dataset, folder, Process(CPU)).objective


def a_part(real: torch.Tensor, **changes):
    return part_of(real, LABELS, unchecked_transform(torch.exp2(LABELS), torch.zeros(4, 2)), **changes)


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
def test_r2_is_r1_of_generated_patches(dataset, tmp_path, make):
    real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    r2 = objective_of(dataset, tmp_path, make, augment="none", r1_gamma=0, r2_gamma=3)
    r1 = objective_of(dataset, tmp_path, make, augment="none", r1_gamma=3, r2_gamma=0)
    both = objective_of(dataset, tmp_path, make, augment="none", r1_gamma=3, r2_gamma=3)
    of_fake = r2.penalties(a_part(real), fake)
    assert set(of_fake.means) == {"loss/r2"}
    assert of_fake.total.item() == pytest.approx(r1.penalties(a_part(fake), None).total.item(), rel=1e-5)
    of_real = r1.penalties(a_part(real), None)
    assert set(of_real.means) == {"loss/r1"}
    total = both.penalties(a_part(real), fake).total.item()
    assert total == pytest.approx(of_fake.total.item() + of_real.total.item(), rel=1e-5)


def test_penalties_are_of_the_mean_logit_and_count_for_the_steps_between(dataset, tmp_path):
    objective = objective_of(dataset, tmp_path, beyond_run, augment="none", r1_gamma=2, r2_gamma=0, r1_interval=7)
    part = a_part(torch.randn(4, 3, 16, 16))
    x = part.real.clone().requires_grad_()
    logits = objective.D(x, part.zoom_log2) * objective.D.logit_weights
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    losses = objective.penalties(part, None)
    assert losses.means["loss/r1"].item() == pytest.approx(gradient.square().sum().item() / 4, rel=1e-5)
    assert losses.total.item() == pytest.approx(7 * losses.means["loss/r1"].item(), rel=1e-5)


@pytest.mark.parametrize("r1, r2", [(0, 0), (1, 0), (0, 1)])
def test_penalties_are_asked_for_by_their_weights(dataset, tmp_path, r1, r2):
    objective = objective_of(dataset, tmp_path, r1_gamma=r1, r2_gamma=r2)
    assert objective.needs_penalties == bool(r1 or r2)
    assert objective.penalises_generated == bool(r2)


def test_losses_of_pairs_are_those_of_the_differences_of_logits(dataset, tmp_path):
    options = {"adversarial": "pairs", "consistency_weight": 0}
    objective = objective_of(dataset, tmp_path, **options)
    part = a_part(torch.randn(4, 3, 16, 16))
    generated = objective.generate(part, observe=False)
    with torch.no_grad():
        difference = (objective.D(generated[1]) - objective.D(part.real)).double()
    loss_d = objective.discriminator(part, generated[1])
    assert loss_d.total.item() == pytest.approx(difference.exp().log1p().mean().item(), rel=1e-5)
    assert loss_d.means["logits/real"].shape == (4,)
    loss_g = objective.generator(part, generated)
    assert loss_g.total.item() == pytest.approx((-difference).exp().log1p().mean().item(), rel=1e-5)


@pytest.mark.parametrize("adversarial", ["logistic", "pairs"])
def test_what_steers_ada_does_not_change_with_a_level_that_the_loss_leaves_free(dataset, tmp_path, adversarial):
    objective = objective_of(dataset, tmp_path, adversarial=adversarial)
    part, fake = a_part(torch.randn(4, 3, 16, 16)), torch.randn(4, 3, 16, 16)
    before = objective.discriminator(part, fake)
    with torch.no_grad():
        objective.D.head.out.bias += 9
    after = objective.discriminator(part, fake)
    free = adversarial == "pairs"
    assert torch.allclose(before.total, after.total, rtol=1e-4) == free
    assert torch.allclose(before.sureness, after.sureness, atol=1e-4) == free
    assert torch.equal(before.sureness, before.means["logits/real"]) != free


@pytest.mark.parametrize("make", [tiny_run, beyond_run])
@pytest.mark.parametrize("adversarial", ["logistic", "pairs"])
def test_each_step_gives_gradients_to_its_own_network_alone(dataset, tmp_path, make, adversarial):
    trainer = Trainer(make(dataset, adversarial=adversarial), dataset, tmp_path, Process(CPU))
    real, labels = next(trainer._batches())
    part = trainer._part(real, labels, 0, 1)
    reached = {}

    def optimise(name):
        own, other = (trainer.G, trainer.D) if name == "G" else (trainer.D, trainer.G)
        gradients = [p.grad for p in own.parameters() if p.grad is not None]
        assert len(gradients) > 0.8 * len(list(own.parameters()))  # the last biases have none of penalties
        assert all(gradient.isfinite().all() for gradient in gradients)
        reached.setdefault(name, []).append([p for p in other.parameters() if p.grad is not None])
        own.zero_grad(set_to_none=True)
        return torch.tensor(False)

    trainer._optimise = lambda gradients, optimiser, name: optimise(name)
    generated, _ = trainer._discriminator_step([part])
    trainer._generator_step([part], generated)
    assert reached == {"D": [[], []], "G": [[]]}  # with penalties


def test_consistency_is_weighed_by_the_octave_and_the_last_number_holds_for_the_rest(dataset, tmp_path, monkeypatch):
    part = a_part(torch.zeros(4, 3, 16, 16))
    assert part.octave.tolist() == [0, 1, 2, 2]
    coarse = torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None, None].expand(4, 3, 16, 16)
    for weights, expected in ((None, 1 + 2 + 4 + 8), ([3, 0.5], 3 + 1 + 2 + 4), ([0, 1, 0.25], 2 + 1 + 2), ([2], 30)):
        objective = objective_of(dataset, tmp_path, consistency_by_octave=weights)
        monkeypatch.setattr(objective.G.synthesis, "forward", lambda ws, transform: coarse)
        assert objective.consistency(part.real, None, part).item() == pytest.approx(expected / 4)


def test_the_coin_trains_one_of_the_two_views(dataset, tmp_path):
    objective = objective_of(dataset, tmp_path)
    part = a_part(torch.zeros(4, 3, 16, 16))
    ws, _ = objective.generate(part, observe=False)
    for train_fine in (True, False):
        fine = torch.randn(4, 3, 16, 16, requires_grad=True)
        loss = objective.consistency(fine, ws.detach(), replace(part, train_fine=train_fine))
        objective.G.zero_grad()
        loss.backward()
        assert (fine.grad is not None) == train_fine
        assert any(p.grad is not None for p in objective.G.synthesis.parameters()) != train_fine


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("r2_gamma", [0, 1])
def test_pairs_train_with_penalties_on_both_kinds_of_patches(dataset, tmp_path, local, r2_gamma):
    config = tiny_run(dataset, adversarial="pairs", r1_gamma=1, r2_gamma=r2_gamma, r1_interval=2, kimg=0.032)
    config = replace(config, discriminator=replace(config.discriminator, local_heads=local))
    Trainer(config, dataset, tmp_path, Process(CPU)).run()
    lines = [line for line in stats(tmp_path) if "loss/D" in line]
    assert len(lines) == 8
    for name in ("loss/D", "loss/G", "logits/real", "logits/fake"):
        assert all(math.isfinite(line[name]) for line in lines)
    assert sum("loss/r1" in line for line in lines) == 4
    assert sum("loss/r2" in line for line in lines) == 4 * r2_gamma


def test_all_that_goes_beyond_the_paper_trains_and_is_logged(dataset, tmp_path):
    trainer = Trainer(beyond_run(dataset, kimg=0.048), dataset, tmp_path, Process(CPU), 2)
    before = {name: p.detach().clone() for name, p in [*trainer.G.named_parameters(), *trainer.D.named_parameters()]}
    trainer.run()
    after = dict([*trainer.G.named_parameters(), *trainer.D.named_parameters()])
    offsets = {"head.out.bias", "local.b16.bias", "local.b8.bias"}  # differences of pairs are without them
    assert {name for name, p in before.items() if torch.equal(p, after[name])} == offsets
    line = stats(tmp_path)[-1]
    assert len(line["augment/p by octave"]) == 3
    assert line["augment/p"] == pytest.approx(sum(line["augment/p by octave"]) / 3)
    assert len(line["logits/real by octave"]) == 3
    assert not any(line.get("gradients/G not finite", 0) for line in stats(tmp_path))
