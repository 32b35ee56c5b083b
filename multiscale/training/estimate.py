"""What a run will be, before it starts: its settings, layer plan, parameters, and the memory that it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from torch import nn

from multiscale.config import RunConfig, to_dict
from multiscale.data.patches import PatchDataset
from multiscale.networks.discriminator import Discriminator
from multiscale.networks.generator import Generator
from multiscale.networks.plan import Plan

GIB = 2**30
STATES_PER_WEIGHT = 4
"""Floats for each trained weight: itself, its gradient, two of Adam."""


def describe_run(
    config: RunConfig, *, preset: str, data: PatchDataset, devices: Sequence[torch.device], folder: Path
) -> str:
    """The resolved run as text: choices, every setting, the layer plan with shapes, parameters and memory."""
    generator, discriminator = networks_on_meta(config)
    share = config.training.batch // len(devices)
    weights, activations = memory_bytes(generator, discriminator, share)
    return "\n".join(
        [
            f"Data:      {data.path} ({len(data)} patches of {data.resolution} x {data.resolution}, {data.octaves} octaves)",
            f"Preset:    {preset}",
            f"Device:    {', '.join(str(device) for device in devices)} ({share} of {config.training.batch} images each)",
            f"Length:    {config.training.kimg:g} kimg",
            f"Scales:    consistency by {config.training.consistency_metric}, weight {config.training.consistency_weight:g}",
            f"Folder:    {folder}",
            "",
            plan_table(generator.plan),
            "",
            f"Parameters: generator {_count(generator):,}, discriminator {_count(discriminator):,}",
            f"Memory in float32, estimated for each device: {(weights + activations) / GIB:.2f} GiB "
            f"(weights and optimisers {weights / GIB:.2f}, activations of a step {activations / GIB:.2f})",
            "",
        ]
    )


def describe_settings(config: RunConfig) -> str:
    """Every setting of the run as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=False)


def plan_table(plan: Plan) -> str:
    """The layer plan, one line a layer: channels in, out and injected; sizes; rates; resampling."""
    lines = [
        "layer   channels  + features   size         rate       cutoff   up  down  filter",
        f"input   {'':8}  {plan.input_features:10d}   {plan.input_size:<11}  {plan.input_rate}",
    ]
    for layer in plan.layers:
        name = "toRGB" if layer.is_torgb else f"L{layer.index}"
        lines.append(
            f"{name:6}  {layer.conv_channels:8d}  {layer.features or '':>10}   {layer.in_size:4d} > {layer.out_size:<4d}  "
            f"{layer.in_rate:4d} > {layer.out_rate:<4d}  {layer.out_cutoff:6.1f}   {layer.up:2d}  {layer.down:4d}  "
            f"{'radial' if layer.radial else 'separable' if layer.down_taps > 1 else '-'}"
        )
    return "\n".join(lines)


def memory_bytes(generator: Generator, discriminator: Discriminator, share: int) -> tuple[int, int]:
    """Bytes of weights with optimisers and running mean, and of activations kept for the backward passes of a step.

    Activations are counted, not guessed: the networks (on the meta device, so nothing is computed) are run forward and
    the distinct tensors that autograd keeps are summed. Workspace of the backward pass itself comes on top.

    Args:
        generator: On the meta device.
        discriminator: On the meta device.
        share: Images of a step on one device.
    """
    weights = STATES_PER_WEIGHT * 4 * (_count(generator) + _count(discriminator)) + 4 * _count(generator)
    z = torch.empty(1, generator.config.z_dim, device="meta")
    transform = torch.eye(3, dtype=torch.float64, device="meta")[None]
    of_generator = saved_bytes(lambda: generator(z, transform, update_emas=False))
    side, channels = generator.config.img_resolution, generator.config.img_channels
    image = torch.empty(1, channels, side, side, device="meta", requires_grad=True)
    of_discriminator = saved_bytes(lambda: discriminator(image))
    # At the peak the fine and the coarse view, and the discriminator's pass over one of them, are alive.
    return weights, share * (2 * of_generator + of_discriminator)


def saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of the distinct tensors that autograd keeps after ``forward``, parameters left out."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept.values()}.values())
    del output
    return total


def networks_on_meta(config: RunConfig) -> tuple[Generator, Discriminator]:
    """Both networks of a run as shapes without memory."""
    discriminator = Discriminator(
        config.discriminator,
        img_resolution=config.generator.img_resolution,
        img_channels=config.generator.img_channels,
    )
    return Generator(config.generator).to("meta"), discriminator.to("meta")


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
