"""The progressive schedule: golden probabilities, and draws that follow it on any number of workers and ranks."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import GOLDEN
from torch.utils.data import DataLoader, Dataset

from dnnlib.errors import UserError
from multiscale.config import ScheduleConfig
from multiscale.data.sampling import SamplerState, ScaleSampler, octave_probabilities

SCHEDULE = ScheduleConfig(warmup_kimg=40, skew_kimg=80, boost_first=4, boost_last=4)
OCTAVES = 6
PATCHES = np.repeat(np.arange(OCTAVES), [5, 11, 40, 300, 300, 300])


class Octaves(Dataset):
    """A data set whose patches are their own octaves."""

    def __len__(self):
        return len(PATCHES)

    def __getitem__(self, index):
        return PATCHES[index], index


def sampler(batch=32, **arguments):
    return ScaleSampler(PATCHES, octaves=OCTAVES, batch=batch, schedule=SCHEDULE, seed=1, **arguments)


def test_probabilities_agree_with_golden():
    for case in json.loads((GOLDEN / "scale_sampling.json").read_text()):
        keys = ("warmup_kimg", "skew_kimg", "boost_first", "boost_last")
        for row in case["rows"]:
            p = octave_probabilities(row["kimg"] * 1000, octaves=case["n_octaves"], **{key: case[key] for key in keys})
            np.testing.assert_allclose(p, row["probs"], atol=1e-9, rtol=0)
            assert p.sum() == pytest.approx(1, abs=1e-12)


def test_no_warmup_and_one_octave_are_legal():
    arguments = {"warmup_kimg": 0, "skew_kimg": 0, "boost_first": 4, "boost_last": 4}
    assert octave_probabilities(0, octaves=1, **arguments).tolist() == [1]
    assert octave_probabilities(0, octaves=3, **arguments)[2] > 0.5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("start", [0, 40_000, 80_000])
def test_draws_follow_the_schedule_on_any_workers_and_ranks(workers, world_size, start):
    """Chi-square over 20,000 draws at three times; the expectation moves with the schedule, batch by batch."""
    batch, draws = 100, 20_000
    state = SamplerState(start // batch, (0,) * OCTAVES)
    observed = np.zeros(OCTAVES)
    for rank in range(world_size):
        source = sampler(batch, rank=rank, world_size=world_size)
        source.go_on_from(state)
        loader = iter(DataLoader(Octaves(), batch_sampler=source, num_workers=workers))
        for _ in range(draws // batch):
            octaves, _ = next(loader)
            assert len(octaves) == batch // world_size
            observed += np.bincount(octaves.numpy(), minlength=OCTAVES)
        del loader
    source = sampler(batch)
    expected = sum(source.probabilities(start + i * batch) * batch for i in range(draws // batch))
    assert observed.sum() == draws
    assert scipy.stats.chisquare(observed, expected * (draws / expected.sum())).pvalue > 1e-3


def test_ranks_share_each_global_batch_without_overlap():
    whole, state = sampler().global_batch(SamplerState(0, (0,) * OCTAVES))
    shares = [next(iter(sampler(rank=rank, world_size=2))) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(whole.tolist())
    assert state.step == 1


def test_an_octave_is_used_up_before_a_patch_comes_again():
    source, state = sampler(), SamplerState(0, (0,) * OCTAVES)
    drawn: list[int] = []
    for _ in range(60):
        indices, state = source.global_batch(state)
        drawn.extend(indices)
    for octave in range(OCTAVES):
        members = np.flatnonzero(octave == PATCHES)
        mine = [i for i in drawn if PATCHES[i] == octave]
        assert len(mine) > 0
        for turn in range(0, len(mine) - len(members) + 1, len(members)):
            assert sorted(mine[turn : turn + len(members)]) == members.tolist()


def test_a_restart_goes_on_where_it_stopped():
    straight, restarted = iter(sampler()), sampler()
    first = [next(straight) for _ in range(10)]
    again = iter(restarted)
    assert [next(again) for _ in range(4)] == first[:4]
    assert [next(again) for _ in range(3)] == first[4:7]  # read ahead by a loader, never used
    resumed = sampler()
    resumed.go_on_from(restarted.state_after(4))
    assert [batch for batch, _ in zip(resumed, range(6), strict=False)] == first[4:]


def test_an_empty_octave_is_refused():
    with pytest.raises(UserError, match="no patch in octave 6"):
        ScaleSampler(PATCHES, octaves=7, batch=4, schedule=SCHEDULE, seed=0)


def test_labels_reach_the_trainer_as_float64():
    class Labels(Octaves):
        def __getitem__(self, index):
            return np.zeros([3, 2, 2], dtype=np.uint8), 0.1

    images, labels = next(iter(DataLoader(Labels(), batch_sampler=sampler(4))))
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.float64
