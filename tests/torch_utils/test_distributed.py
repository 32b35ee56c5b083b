"""Processes find, check and end each other; gradients leave while the backward pass still runs."""

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.distributed import Process, check_alike, check_collectives, checksum, copy_from_first
from torch_utils.gradients import LARGEST, Gradients

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SHORT = datetime.timedelta(seconds=0.5)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def _average_in_two_parts(process, folder):
    model = network()
    gradients = Gradients(model.parameters(), process, bucket_bytes=200)
    sent_early = []
    model[0].weight.register_hook(lambda _: sent_early.append(len(gradients._sent)))
    x = torch.arange(32.0).reshape(8, 4).cos()
    model(x[process.rank :: 4]).square().sum().backward()
    with gradients.last_backward():
        model(x[process.rank + 2 :: 4]).square().sum().backward()
    norm, broken = gradients.finish()
    torch.save(([p.grad for p in model.parameters()], norm, broken, sent_early), folder / f"{process.rank}.pt")


def test_gradients_are_averaged_while_the_rest_are_computed(tmp_path):
    distributed.run(_average_in_two_parts, [CPU, CPU], tmp_path)
    model = network()
    model(torch.arange(32.0).reshape(8, 4).cos()).square().sum().div(2).backward()
    for rank in (0, 1):
        grads, norm, broken, sent_early = torch.load(tmp_path / f"{rank}.pt")
        for ours, p in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad)
        torch.testing.assert_close(norm, torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
        assert broken == 0
        assert sent_early[0] == 0  # not before the last backward pass
        assert sent_early[1] >= 1  # and then before the first layer's gradient


def test_gradients_that_are_not_finite_are_replaced_and_those_that_are_not_there_stay_away():
    model = network()
    gradients = Gradients(model.parameters(), Process(CPU), bucket_bytes=200)
    model[4].weight.grad = torch.tensor([[1.0, torch.nan, torch.inf, -torch.inf, 0, 0, 0, 2]])
    norm, broken = gradients.finish()
    assert broken == 3
    torch.testing.assert_close(model[4].weight.grad, torch.tensor([[1.0, 0, LARGEST, -LARGEST, 0, 0, 0, 2]]))
    torch.testing.assert_close(norm, torch.tensor(LARGEST * 2**0.5))
    assert model[0].weight.grad is None


def _differ(process):
    value = torch.tensor([1.0, float(process.rank)])
    facts = {"a": 1, "weights": checksum([value])}
    check_alike(process, {"a": 1}, {"a": "-"})
    copy_from_first([value], process)
    check_alike(process, {"weights": checksum([value])}, {"weights": "-"})
    check_alike(process, facts, {"a": "-", "weights": "start again"})


def test_a_process_that_differs_is_named_with_its_host_and_what_to_do():
    with pytest.raises(UserError, match=r"^Rank 1 on \S+ has another weights than rank 0 on \S+ .*: start again\.$"):
        distributed.run(_differ, [CPU, CPU])


def test_a_checksum_sees_every_bit():
    values = torch.randn(1000)
    changed = values.clone()
    changed[500] = torch.nextafter(changed[500], torch.tensor(9.0))
    assert checksum([values]) == checksum([values[:300], values[300:]])
    assert checksum([values]) != checksum([changed])


def test_a_process_that_does_not_come_is_named():
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    with (
        pytest.raises(UserError, match=r"Of 3 processes these have not come within 0\.5 s: rank 1 .*, 2 "),
        distributed._member(Process(CPU, 0, 3), store, SHORT),
    ):
        pass


def test_a_process_that_comes_and_does_not_answer_is_named_with_its_host():
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    store.set("come/1", "node7")
    with pytest.raises(UserError, match=r"these do not answer within 0\.5 s: rank 1 \(node7\)\. See what became"):
        check_collectives(Process(CPU, 0, 2), store, SHORT)


def _hang(process):
    if process.rank == 1:
        threading.Event().wait()
    dist.all_reduce(torch.zeros(1))


@pytest.mark.slow
def test_a_sum_that_another_process_never_enters_ends_in_time(monkeypatch):
    """In a time that lets one of them start later than the other, and leaves out some of its signs of life."""
    monkeypatch.setattr(distributed, "TIMEOUT", datetime.timedelta(seconds=10))
    with pytest.raises(UserError, match=r"^Rank 0 on \S+ lost touch with another process"):
        distributed.run(_hang, [CPU, CPU])


@pytest.mark.slow
def test_torchrun_joins_the_processes_and_the_first_decides(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from torch_utils import distributed as d\n"
        "with d.joined(on_cpu=True) as process:\n"
        "    chosen = d.from_first(process, lambda: 'from rank 0')\n"
        "    total = torch.tensor([float(process.rank)])\n"
        "    d.average([total], process)\n"
        "    any_of = d.any_of(process.rank == 1, process)\n"
        "    open(f'{sys.argv[1]}/{process.rank}', 'w').write(f'{chosen} {total.item()} {any_of}')\n"
        "    if sys.argv[2:]:\n"
        "        d.from_first(process, lambda: 1 / 0)\n"
    )
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--standalone",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*words, script, tmp_path], check=True, env=environment, capture_output=True)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["from rank 0 0.5 True"] * 2
    failed = subprocess.run([*words, script, tmp_path, "fail"], env=environment, capture_output=True, text=True)
    assert failed.returncode != 0
    assert failed.stderr.count("ZeroDivisionError: division by zero") == 1
