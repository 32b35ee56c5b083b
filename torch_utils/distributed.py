"""Data-parallel processes, one per device, started here or by torchrun: rendezvous, checks, and a common end.

Tensors are exchanged by NCCL between CUDA devices and by gloo between CPUs; what only hosts must agree on always uses gloo,
so that no device is waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

if dist.is_available():
    import torch.distributed.nn.functional  # before there is a group, which its default arguments would hold for good

from dnnlib.errors import REFUSED, UserError, sentence_for, sentence_of
from dnnlib.machine import available_cores
from dnnlib.signals import Ended, StopRequest
from torch_utils.pulse import BEATS, Pulse, another_client, beating

TIMEOUT = datetime.timedelta(minutes=10)
"""Longest wait of a process for the others, at the start and in every collective call; after half of it without a sign of life
a stopped one is named, and the job ends."""

PARENT_SECONDS = 2.0
"""Between two looks whether the parent process is still there."""

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_STOPPED_BY = "stopped by"
"""Key of a store: the number of the signal that stopped the work."""

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process of several: its rank, their number, and its device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def run(work: Callable[..., int | None], devices: Sequence[torch.device], *arguments: Any) -> int:
    """Call ``work(process, *arguments)`` in one process for each device (in this one if there is one device).

    A process that fails ends the others; its exception is raised here with its own traceback, a ``UserError`` as itself.
    SIGINT, SIGTERM, SIGHUP and SIGUSR1 reach all processes as requests to stop (:class:`dnnlib.signals.StopRequest`).

    Args:
        work: Returns the number of the signal by which it was asked to stop before its end; else 0 or None.
        devices: One for each process.
        arguments: Can be pickled.

    Returns:
        The number of the signal that stopped the work in order; 0 if it came to its end.

    Raises:
        Ended, KeyboardInterrupt: a signal ended processes that do not listen for any.
    """
    if len(devices) == 1:
        return work(Process(devices[0]), *arguments) or 0
    store = dist.TCPStore("127.0.0.1", 0, None, True, TIMEOUT, wait_for_workers=False)
    spawned = mp.spawn(
        _worker, args=(work, list(devices), store.port, TIMEOUT, arguments), nprocs=len(devices), join=False
    )
    with StopRequest() as stop:
        try:
            _wait(spawned, stop, Pulse(store, len(devices), TIMEOUT.total_seconds() / 2))
        except mp.ProcessRaisedException as error:
            if "UserError: " in str(error):
                raise UserError(sentence_of(str(error))) from error
            raise
        except mp.ProcessExitedException as error:
            if stop.received:  # it does not listen, or has not begun to
                raise _ended(stop) from error
            raise UserError(
                f"Process {error.error_index} of the {len(devices)} was ended from outside ({error}), perhaps for want of "
                "memory; the same command resumes from the last training state."
            ) from error
        finally:
            for process in spawned.processes:
                if process.is_alive():
                    process.kill()
    if not store.check([_STOPPED_BY]):  # Ctrl-C reached them, too, and they do not listen
        raise _ended(stop)
    stopped_by = int(store.get(_STOPPED_BY))
    return stop.number or stopped_by if stopped_by else 0  # they are told of any signal by SIGTERM


def _ended(stop: StopRequest) -> BaseException:
    return Ended(stop.number) if stop.number not in (0, signal.SIGINT) else KeyboardInterrupt()


def _wait(spawned: mp.ProcessContext, stop: StopRequest, pulse: Pulse) -> None:
    """Until all processes have ended; they are told of the first signal, once. UserError if one is stopped."""
    told, looked = False, time.monotonic()
    while not spawned.join(timeout=0.2):
        if time.monotonic() - looked > pulse.silence_sec / BEATS:
            looked = time.monotonic()
            if stopped := pulse.stopped():
                raise UserError(pulse.complaint(stopped))
        if stop.received and not told:
            told = True
            for process in spawned.processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)


def _worker(
    rank: int,
    work: Callable[..., int | None],
    devices: list[torch.device],
    port: int,
    timeout: datetime.timedelta,
    arguments: tuple[Any, ...],
) -> None:
    _end_with_parent()
    _share_cores(len(devices), os.environ.get("OMP_NUM_THREADS"))
    store = dist.TCPStore("127.0.0.1", port, None, False, timeout)
    try:
        with _member(Process(devices[rank], rank, len(devices)), store, timeout) as process:
            stopped_by = work(process, *arguments) or 0
            if process.is_first:
                store.set(_STOPPED_BY, str(stopped_by))
    except REFUSED as error:  # nothing else than its text reaches the process that talks to the user
        raise UserError(f"In process {rank}: {sentence_for(error)}") from error


def _end_with_parent() -> None:
    """End this process when its parent is killed, so that nothing keeps hold of the run or of the rendezvous.

    Linux sees to it at once; elsewhere a thread looks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher with the same variables, has started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def _number(name: str) -> int:
    """What a launcher has set; UserError if that is no number."""
    if not (text := os.environ[name]).isdecimal():
        raise UserError(
            f"{name} is {text!r}, but it must be a whole number, as torchrun sets it; leave it to torchrun."
        )
    return int(text)


@contextlib.contextmanager
def joined(*, on_cpu: bool, timeout: datetime.timedelta = TIMEOUT) -> Iterator[Process]:
    """Join the processes that torchrun has started, one per CUDA device if there are any, unless ``on_cpu``.

    Raises:
        UserError: the launcher's variables are wrong, this machine has fewer CUDA devices than processes, or another process
            does not come or answer in time.
    """
    rank, world_size, local = map(_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank >= world_size:
        raise UserError(f"RANK is {rank} and WORLD_SIZE {world_size}, but it must be smaller; leave both to torchrun.")
    here = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else world_size
    _end_with_parent()
    available = 0 if on_cpu else torch.cuda.device_count()
    if available and local >= available:
        raise UserError(
            f"torchrun started {here} processes on {socket.gethostname()}, which has {available} CUDA "
            f"device{'s' * (available != 1)}; give --nproc-per-node {available}, or --gpus 0 to train on CPUs."
        )
    chosen = os.environ.get("OMP_NUM_THREADS")
    _share_cores(here, None if chosen == "1" else chosen)  # torchrun's own choice is 1, which leaves most cores idle
    device = torch.device("cuda", local) if available else torch.device("cpu")
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timeout))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Rank {rank} on {socket.gethostname()} does not reach {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, "
            f"where the processes are to meet ({_first_line(error)})."
        ) from error
    with _member(Process(device, rank, world_size), store, timeout, watches=True) as process:
        yield process


def _share_cores(processes: int, chosen: str | None) -> None:
    """Use this process's fraction of the machine's cores, or of the configured threads."""
    torch.set_num_threads(max((available_cores() if chosen is None else torch.get_num_threads()) // processes, 1))


@contextlib.contextmanager
def _member(
    process: Process, store: dist.Store, timeout: datetime.timedelta, *, watches: bool = False
) -> Iterator[Process]:
    """The process group, from rendezvous to its end; with ``watches``, this process also looks out for stopped ones."""
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
    roll = dist.PrefixStore("roll", store)
    host = socket.gethostname()
    roll.set(f"come/{process.rank}", host)
    _await_all(roll, "come", process.world_size, timeout, "have not come")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if process.device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=process.rank,
        world_size=process.world_size,
        timeout=timeout,
    )
    pulse = Pulse(another_client(store), process.world_size, timeout.total_seconds() / 2)
    try:
        check_collectives(process, roll, timeout)
        with beating(pulse, process.rank, watches=watches):
            yield process
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise UserError(
                f"Rank {process.rank} on {host} lost touch with another process, which has probably ended "
                f"({_first_line(error)}). Its own message says why; the same command resumes from the last training state."
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def check_collectives(process: Process, roll: dist.Store, timeout: datetime.timedelta) -> None:
    """One sum over all devices, which every process must enter and see in time.

    Args:
        process: This one; all call this.
        roll: Where each leaves its name: ``come/RANK`` holds its host.
        timeout: Longest to wait.

    Raises:
        UserError: names the ranks, and their hosts, that did not enter; or says that the devices do not reach each other.
    """
    roll.set(f"enter/{process.rank}", "1")
    _await_all(roll, "enter", process.world_size, timeout, "do not answer")
    ones = torch.ones(1, device=process.device)
    deadline = time.monotonic() + timeout.total_seconds()
    try:
        work = dist.all_reduce(ones, async_op=True)
        while not work.is_completed() and time.monotonic() < deadline:
            time.sleep(0.001)
        if work.is_completed():
            work.wait()
            if float(ones) == process.world_size:
                roll.set(f"seen/{process.rank}", "1")
                _await_all(roll, "seen", process.world_size, timeout, "did not see the first sum of all devices")
                return
        reason = f"not within {timeout.total_seconds():g} s"
    except RuntimeError as error:
        reason = _first_line(error)
    raise UserError(
        f"The first sum over all {process.world_size} devices did not come about ({reason}), as rank {process.rank} on "
        f"{socket.gethostname()} sees it; the network between the nodes may be closed to "
        f"{dist.get_backend()} (NCCL_SOCKET_IFNAME and NCCL_DEBUG=INFO help to see)."
    )


def _await_all(roll: dist.Store, name: str, world_size: int, timeout: datetime.timedelta, complaint: str) -> None:
    """Until every rank has written ``name/RANK``; a ``UserError`` names those that have not."""
    with contextlib.suppress(RuntimeError):
        roll.wait([f"{name}/{rank}" for rank in range(world_size)], timeout)
        return
    missing = [rank for rank in range(world_size) if not roll.check([f"{name}/{rank}"])]
    if missing:
        who = ", ".join(f"{rank} ({_host(roll, rank)})" for rank in missing)
        raise UserError(
            f"Of {world_size} processes these {complaint} within {timeout.total_seconds():g} s: rank {who}. See what became "
            "of them, and start the job again: it resumes from its last training state."
        )


def _host(roll: dist.Store, rank: int) -> str:
    return roll.get(f"come/{rank}").decode() if roll.check([f"come/{rank}"]) else "host not known"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def from_first(process: Process, make: Callable[[], T]) -> T:
    """The first process's result, on all processes; its exception ends all of them, the others silently.

    Args:
        process: This one; all call this.
        make: Called in the first process only; gives something that can be pickled.
    """
    if process.world_size == 1:
        return make()
    parcel: list[Any] = [None, False]
    try:
        if process.is_first:
            parcel = [make(), True]
    finally:
        dist.broadcast_object_list(parcel, src=0, device=torch.device("cpu"))
    if not parcel[1]:
        with contextlib.suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # until the first has said why and is gone: torchrun ends all when one ends
        sys.exit(2)
    return parcel[0]


def check_alike(process: Process, facts: Mapping[str, Any], advice: Mapping[str, str]) -> None:
    """Check that all processes hold the same facts.

    Args:
        process: This one; all call this.
        facts: By name, with small values.
        advice: What to do about a fact that differs, by its name.

    Raises:
        UserError: in all processes: names the first rank, its host and the fact that differ from rank 0's.
    """
    if process.world_size == 1:
        return
    table: list[Any] = [None] * process.world_size
    dist.all_gather_object(table, (socket.gethostname(), dict(facts)))
    first_host, first = table[0]
    for rank, (host, theirs) in enumerate(table):
        for name, value in theirs.items():
            if value != first[name]:
                raise UserError(
                    f"Rank {rank} on {host} has another {name} than rank 0 on {first_host} ({value}, not {first[name]}): "
                    f"{advice[name]}."
                )


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


def copy_from_first(tensors: Iterable[torch.Tensor], process: Process) -> None:
    """Give each tensor the values that it has in the first process."""
    if process.world_size > 1:
        for t in tensors:
            dist.broadcast(t, src=0)


def any_of(flag: bool, process: Process) -> bool:
    """Whether the flag is set in any process; waits for the other hosts, not for the devices."""
    return bool(largest(int(flag), process))


def largest(number: int, process: Process) -> int:
    """The largest of the numbers, exact up to 2^63, of all processes; waits for the other hosts, not for the devices."""
    if process.world_size == 1:
        return number
    held = torch.tensor(number)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


@torch.no_grad()
def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """A number that differs if any bit of float32 tensors differs (but for chance): the sum of their bits as integers."""
    sums = [t.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64) for t in tensors]
    return int(torch.stack(sums).sum()) if sums else 0
