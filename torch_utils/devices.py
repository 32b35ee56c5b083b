"""Devices: which to compute on, copies to and from them, and the memory of the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

from dnnlib.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)

_WITH_AUTOCAST = frozenset(kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind))
"""Asked once: Dynamo of PyTorch 2.11 does not trace the question."""


def default_device() -> torch.device:
    """The first CUDA device if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_devices(gpus: int | None, procs: int = 1) -> list[torch.device]:
    """Devices to compute on: ``gpus`` CUDA devices, the CPU for 0; None: one CUDA device, else MPS, else the CPU.

    ``procs`` processes share the CPU.

    Raises:
        UserError: the machine has fewer CUDA devices, or several processes are asked for but not the CPU.
    """
    available = torch.cuda.device_count()
    if procs > 1:
        if gpus == 0 or (gpus is None and default_device().type == "cpu"):
            return [torch.device("cpu")] * procs
        instead = f", or --gpus {min(procs, available)} instead" if available else ""
        raise UserError(f"--procs {procs} is for the CPU; give --gpus 0 with it{instead}.")
    if gpus is None:
        return [default_device()]
    if gpus == 0:
        return [torch.device("cpu")]
    if gpus > available:
        raise UserError(
            f"--gpus {gpus} was given but this machine has {available} CUDA device{'s' * (available != 1)}; "
            f"give --gpus {available}{'' if available == 0 else ' or fewer'}{' for the CPU' if available == 0 else ''}."
        )
    return [torch.device("cuda", i) for i in range(gpus)]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to ``device`` without waiting for its queue."""
    if device.type == "cuda":  # a copy is asynchronous from pinned memory, and only if it is one piece
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """A small tensor on its way from a device to the CPU: requested now, read later, when it has most likely arrived."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._value = tensor.detach().to("cpu", non_blocking=True)
        self._event = None
        if tensor.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()
        elif tensor.device.type == "mps":
            torch.mps.synchronize()

    def read(self) -> torch.Tensor:
        """The tensor on the CPU; waits until it is there, which does not stop the device."""
        if self._event is not None:
            self._event.synchronize()
        return self._value


def is_capturing(device: torch.device) -> bool:
    """Whether what is computed on ``device`` is only recorded, for a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A block without autocast, where the device has any."""
    return torch.autocast(device.type, enabled=False) if device.type in _WITH_AUTOCAST else contextlib.nullcontext()


@contextlib.contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """A block, or as a decorator a function, whose float32 products and convolutions GPUs compute in float32.

    Nothing else decides it. PyTorch's own default rounds the factors of convolutions, but not of products, to TF32. The
    setting is the process's: it holds for the threads of a backward pass too, and one thread at a time should use a GPU.

    Args:
        tf32: Round the factors of both to TF32 (10 bits of mantissa), on GPUs that have it.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn  # type: Any, Any
    before: list[tuple[Any, str, object]] = []
    with contextlib.suppress(RuntimeError):  # where somebody has used PyTorch's newer settings only these can be read
        before += [(place, "allow_tf32", place.allow_tf32) for place in (matmul, cudnn)]
    if hasattr(torch.backends, "fp32_precision"):  # PyTorch 2.9
        before += [(place, "fp32_precision", place.fp32_precision) for place in (matmul, cudnn.conv, cudnn.rnn)]
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use so far: of this process, or on a CUDA device; None where the system does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Have the C library keep and reuse large freed blocks in this process.

    By default glibc gives each block of more than 32 MB back to the system when it is freed, and the system clears every
    page of the next one anew: a quarter of the time of a large image on a CPU. Does nothing with other C libraries. The
    process's memory does not shrink any more, so this is for programs that do one thing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
