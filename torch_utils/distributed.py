"""Data-parallel processes: one process a device, gradients averaged after each backward pass."""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dnnlib.errors import UserError, sentence_of
from dnnlib.signals import StopRequest

TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """This process among all: rank of world_size, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """The process that writes files and talks to the user."""
        return self.rank == 0


def run(work: Callable[..., None], devices: Sequence[torch.device], *arguments: Any) -> None:
    """Call ``work(process, *arguments)`` in one process for each device (in this one if there is one device).

    A process that fails ends the others; its exception is raised here with its own traceback, a ``UserError`` as itself.
    SIGINT and SIGTERM reach all processes as requests to stop (:class:`dnnlib.signals.StopRequest`).
    """
    if len(devices) == 1:
        work(Process(devices[0]), *arguments)
        return
    store = dist.TCPStore("127.0.0.1", 0, None, True, TIMEOUT, wait_for_workers=False)
    spawned = mp.spawn(_worker, args=(work, list(devices), store.port, arguments), nprocs=len(devices), join=False)
    with StopRequest() as stop:
        try:
            _wait(spawned, stop)
        except mp.ProcessRaisedException as error:
            if "UserError: " in str(error):
                raise UserError(sentence_of(str(error))) from error
            raise
        except mp.ProcessExitedException as error:
            if stop.received:  # before it had begun to listen
                raise KeyboardInterrupt from error
            raise UserError(
                f"Process {error.error_index} of the {len(devices)} was ended from outside ({error}), perhaps for want of "
                "memory; the same command goes on from the last training state."
            ) from error
        finally:
            for process in spawned.processes:
                if process.is_alive():
                    process.kill()


def _wait(spawned: mp.ProcessContext, stop: StopRequest) -> None:
    """Until all processes have ended; they are told of the first signal, once."""
    told = False
    while not spawned.join(timeout=0.2):
        if stop.received and not told:
            told = True
            for process in spawned.processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)


def _worker(
    rank: int, work: Callable[..., None], devices: list[torch.device], port: int, arguments: tuple[Any, ...]
) -> None:
    device = devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(torch.get_num_threads() // len(devices), 1))
    store = dist.TCPStore("127.0.0.1", port, None, False, TIMEOUT)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=len(devices), timeout=TIMEOUT)
    try:
        work(Process(device, rank, len(devices)), *arguments)
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def average(tensors: Iterable[torch.Tensor], process: Process) -> None:
    """Replace each tensor by its mean over all processes, in one collective call."""
    tensors = list(tensors)
    if process.world_size == 1 or not tensors:
        return
    flat = torch.cat([t.float().flatten() for t in tensors]) / process.world_size
    dist.all_reduce(flat)
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(mean.view_as(t))


def any_of(flag: bool, process: Process) -> bool:
    """Whether the flag is set in any process; waits for the device."""
    if process.world_size == 1:
        return flag
    count = torch.tensor(float(flag), device=process.device)
    dist.all_reduce(count)
    return bool(count > 0)
