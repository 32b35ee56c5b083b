"""A run described before it starts: settings, layer plan, parameters, and how much of a batch fits the memory."""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from multiscale.config import RunConfig, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.data.source import counted
from multiscale.networks.discriminator import Discriminator, make_discriminator
from multiscale.networks.generator import Generator
from multiscale.networks.plan import Plan
from multiscale.training.augment import augmentation
from multiscale.training.objective import Objective, Part

GIB = 2**30

STATES_PER_WEIGHT = 3
"""Floats kept per trained weight: itself and two of Adam; its gradient is counted with the step."""

ALLOCATOR_OVERHEAD = 1.3
"""Overhead of the allocator over live tensors (measured with glibc: 1.3 for small layers, 1.1 for large ones)."""

PROCESS_BYTES = 430 * 2**20
"""Of a process that has imported PyTorch (measured on a CPU; a CUDA context is about as large)."""

REPLAYED_FRACTION = 0.2
"""Part of a GPU's memory below which a step is replayed unasked: each recorded call keeps its own."""

USABLE = {"cpu": 0.8, "cuda": 0.9, "mps": 1.0}
"""Part of a device's memory that a run may fill."""


@dataclass(frozen=True)
class Memory:
    """Estimated bytes that a process takes."""

    weights: int
    """Weights, both moments of Adam, running mean of the generator."""
    step: int
    """Activations, gradients and workspace at the peak of a step."""

    @property
    def total(self) -> int:
        """With the process itself."""
        return PROCESS_BYTES + self.weights + self.step


def describe_run(
    config: RunConfig,
    *,
    preset: str,
    data: PatchDataset,
    devices: Sequence[torch.device],
    folder: Path,
    batch_gpu: int,
    processes_here: int | None = None,
) -> str:
    """The resolved run as text: choices, layer plan with shapes, parameters, memory, and whether it fits.

    Args:
        config: The run.
        preset: Name of what it is based on.
        data: Its patches.
        devices: One for each process.
        folder: Where it is written.
        batch_gpu: Images that each computes at a time; divides its part of the batch.
        processes_here: How many of the processes are on this machine; None: all.
    """
    device = devices[0]
    generator, discriminator = networks_on_meta(config, device.type)
    device_batch = config.training.batch // len(devices)
    memory = step_memory(config, batch_gpu, device_batch, device.type)
    capacity = device_capacity(device, processes_here or len(devices))
    return "\n".join(
        [
            f"Data:      {data.path} ({len(data)} patches of {data.resolution} x {data.resolution}, "
            f"{counted(data.octaves, 'octave')}{', also mirrored' * config.training.mirror})",
            f"Preset:    {preset}",
            f"Device:    {_listed(devices)} ({device_batch} of {config.training.batch} images each"
            f"{f', {batch_gpu} at a time' * (batch_gpu < device_batch)})",
            f"Length:    {config.training.kimg:g} kimg",
            f"Scales:    consistency by {config.training.consistency_metric}, weight {config.training.consistency_weight:g}",
            f"Folder:    {folder}",
            "",
            plan_table(generator.plan),
            "",
            f"Parameters: generator {_count(generator):,}, discriminator {_count(discriminator):,}",
            f"Memory, estimated for each process: {memory.total / GIB:.2f} GiB of {capacity / GIB:.1f} (weights and "
            f"optimisers {memory.weights / GIB:.2f}, a step with {batch_gpu} image{'s' * (batch_gpu > 1)} at a time "
            f"{memory.step / GIB:.2f})",
            *_memory_warning(config, batch_gpu, device_batch, capacity, device.type),
            "",
        ]
    )


def _listed(devices: Sequence[torch.device]) -> str:
    """Names of devices; one used by several processes appears once, with their number."""
    numbers = Counter(map(str, devices))
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in numbers.items())


def _memory_warning(
    config: RunConfig, batch_gpu: int, device_batch: int, capacity: int, device_type: str
) -> Iterator[str]:
    """A line of advice if the estimate exceeds the memory."""
    if step_memory(config, batch_gpu, device_batch, device_type).total <= capacity:
        return
    fits = fit_batch_gpu(config, device_batch, capacity, device_type)
    if step_memory(config, fits, device_batch, device_type).total <= capacity:
        yield f"Warning: that may not fit; give --batch-gpu {fits}: the same batch in smaller parts."
    else:
        yield (
            "Warning: not even 1 image at a time may fit; lower generator.channel_max, generator.channel_base, "
            "discriminator.channel_max or discriminator.channel_base with --set."
        )


def describe_settings(config: RunConfig) -> str:
    """Every setting of the run as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=False)


def plan_table(plan: Plan) -> str:
    """The layer plan, one line a layer: channels of the convolution and of features; sizes; rates; resampling.

    Features that are mixed are shown as ``32 of 174``: channels, and the waves that they are mixed from.
    """

    def features(channels: int, waves: int) -> str:
        return f"{channels} of {waves}" if waves != channels else f"{channels or ''}"

    first = features(plan.input_features, plan.input_waves)
    injected = [features(layer.features, layer.waves) for layer in plan.layers]
    column = max(map(len, ["+ features", first, *injected]))
    lines = [
        f"layer   channels  {'+ features':>{column}}   size         rate       cutoff   up  down  filter",
        f"input   {'':8}  {first:>{column}}   {plan.input_size:<11}  {plan.input_rate}",
    ]
    for layer, given in zip(plan.layers, injected, strict=True):
        name = "toRGB" if layer.is_torgb else f"L{layer.index}"
        lines.append(
            f"{name:6}  {layer.conv_channels:8d}  {given:>{column}}   {layer.in_size:4d} > {layer.out_size:<4d}  "
            f"{layer.in_rate:4d} > {layer.out_rate:<4d}  {layer.out_cutoff:6.1f}   {layer.up:2d}  {layer.down:4d}  "
            f"{'radial' if layer.radial else 'separable' if layer.down_taps > 1 else '-'}"
        )
    return "\n".join(lines)


def fit_batch_gpu(config: RunConfig, device_batch: int, capacity_bytes: int, device_type: str = "cpu") -> int:
    """The most images to compute at a time that are estimated to fit.

    Args:
        config: The run.
        device_batch: Images of a step on one device.
        capacity_bytes: Memory that they may fill (:func:`device_capacity`).
        device_type: "cuda" computes some layers in half precision.

    Returns:
        The largest divisor of ``device_batch`` that fits; 1 if none does.
    """

    def needed(images: int) -> int:
        return step_memory(config, images, device_batch, device_type).total

    if needed(device_batch) <= capacity_bytes:
        return device_batch
    divisors = [n for n in range(1, device_batch) if device_batch % n == 0] or [1]
    return divisors[max(bisect.bisect_right(divisors, capacity_bytes, key=needed) - 1, 0)]


def chooses_replays(config: RunConfig, batch_gpu: int, device_batch: int, device: torch.device) -> bool:
    """Whether a step's networks are replayed from CUDA graphs: as the settings say, or where it fits easily.

    Args:
        config: The run.
        batch_gpu: Images that are computed at a time.
        device_batch: Images of a step on one device.
        device: Of the process.
    """
    if device.type != "cuda" or batch_gpu < device_batch or config.training.cuda_graphs is False:
        return False
    if config.training.cuda_graphs:
        return True
    return step_memory(config, batch_gpu, device_batch, device.type).total <= REPLAYED_FRACTION * device_capacity(
        device, 1
    )


def device_capacity(device: torch.device, processes_here: int) -> int:
    """Bytes that one process may fill, from the hardware alone, so that the same command gives the same run.

    Nine tenths of a CUDA device's memory; of a CPU's, or of the limit that its control group sets (v1 or v2), four fifths
    shared by the processes; on MPS what Metal recommends.

    Args:
        device: Of the process.
        processes_here: Processes of the run on this machine, >= 1.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
    else:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        total = min([physical, *control_group_limits()]) // processes_here
    return int(total * USABLE[device.type])


def control_group_limits(
    membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Memory limits in bytes of the control groups of this process and of those above them; none outside of Linux.

    Args:
        membership: Lists the groups as ``number:controllers:path``; no controllers: version 2.
        mounted: Where they are; in a container its own group may be the root there, whatever its path.
    """
    lines = membership.read_text("utf-8").splitlines() if membership.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (mounted / "memory", "memory.limit_in_bytes") if controllers else (mounted, "memory.max")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such group here, or "max"
                yield int((folder / name).read_text("utf-8"))
            if folder == root:
                break


@functools.lru_cache(maxsize=256)
def step_memory(config: RunConfig, images: int, device_batch: int, device_type: str = "cpu") -> Memory:
    """Memory of a process that computes ``images`` at a time.

    Counted, not guessed: a training step runs on the meta device, where tensors have shapes but no data, and the bytes of
    live tensors are summed at their peak; then the allocator's overhead is added.

    Args:
        config: The run.
        images: Computed at a time.
        device_batch: Images of a step on one device; if more than ``images``, D's step keeps nothing for G's.
        device_type: "cuda" computes some layers in half precision.
    """
    generator, discriminator = networks_on_meta(config, device_type)
    trained = _count(generator) + _count(discriminator)
    live = LiveBytes()
    with live:
        _rehearse_step(config, generator, discriminator, images, in_parts=images < device_batch)
    weights = 4 * (STATES_PER_WEIGHT * trained + _count(generator))
    return Memory(weights, int(ALLOCATOR_OVERHEAD * live.peak))


def _rehearse_step(
    config: RunConfig, generator: Generator, discriminator: Discriminator, images: int, *, in_parts: bool
) -> None:
    """The most expensive ``Trainer.train_step``: with penalties, and gradients to the coarser view."""
    side, octaves = config.generator.img_resolution, config.generator.octaves
    device = generator.mapping.w_avg.device
    part = Part(
        real=torch.zeros(images, config.generator.img_channels, side, side, device=device),
        labels=torch.zeros(images, dtype=torch.float64),
        zoom_log2=torch.zeros(images, device=device),
        octave=np.zeros(images, dtype=np.int64),
        octaves=torch.zeros(images, octaves, device=device),
        z=torch.ones(images, config.generator.z_dim, device=device),
        transform=torch.eye(3, dtype=torch.float64, device=device).expand(images, 3, 3),
        images_seen=10**15,  # the blur of the start is over
        draws=lambda purpose: np.random.default_rng(0),
        train_fine=False,
    )
    pipe, _ = augmentation(config)
    if pipe is not None:
        pipe.p.fill_(1)
    objective = Objective(config, generator, discriminator, augment=pipe)  # LPIPS keeps a hundredth of what G does
    for p in [*discriminator.parameters(), *generator.parameters()]:
        p.grad = torch.empty_like(p) if in_parts else None  # of the parts before
    with torch.set_grad_enabled(not in_parts):
        generated = objective.generate(part, observe=False)
    objective.discriminator(part, generated[1]).total.backward()
    if objective.needs_penalties:
        objective.penalties(part, generated[1]).total.backward()
    discriminator.zero_grad(set_to_none=True)
    discriminator.requires_grad_(False)
    if in_parts:
        generated = objective.generate(part, observe=False)
    objective.generator(part, generated).total.backward()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors made within it, and their peak (``peak``)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._known.update(_storages((args, kwargs)))
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage not in self._known:
                self._known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _forget(self, number: int) -> None:
        self.live -= number


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of all tensors among nested values."""
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, torch.Tensor))


def networks_on_meta(config: RunConfig, device_type: str = "cpu") -> tuple[Generator, Discriminator]:
    """Both networks of a run as shapes without memory, as they compute on a device of that type."""
    g, d = config.generator, config.discriminator
    if device_type != "cuda":  # half precision is for CUDA alone
        g, d = replace(g, num_half_res=0), replace(d, num_half_res=0)
    with torch.device("meta"):
        discriminator = make_discriminator(
            d, img_resolution=g.img_resolution, img_channels=g.img_channels, octaves=g.octaves
        )
    return Generator(g).to("meta"), discriminator


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
