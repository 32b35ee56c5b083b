"""Files as the published code writes them, of any size: written with Python's own pickler from stand-ins for its classes.

The names that the file holds (``torch_utils.persistence._reconstruct_persistent_obj`` and others) belong to nothing here: they
are lent to stand-ins while the file is written.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiscale.config import GeneratorConfig
from multiscale.networks.generator import Generator

SOURCE = "raise SystemExit('the source text of a published network was run')\n"


class EasyDict(dict):
    __module__ = "dnnlib.util"


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("a published network was built")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


class Persistent:
    """What pickles as a call of the published code."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,)


@contextlib.contextmanager
def _lent_names() -> Iterator[None]:
    """The modules that the pickler looks for names in."""
    lent = {"dnnlib.util": {"EasyDict": EasyDict}}
    lent["torch_utils.persistence"] = {"_reconstruct_persistent_obj": _reconstruct_persistent_obj}  # type: ignore[dict-item]
    before = {name: sys.modules.get(name) for name in lent}
    try:
        for name, members in lent.items():
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__dict__.update(members)
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def module(class_name: str, parameters=(), buffers=(), modules=(), **others: Any) -> Persistent:
    """A module of the published code."""
    state = {"training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(buffers)}
    return Persistent(class_name, **state, _modules=OrderedDict(modules), _forward_hooks=OrderedDict(), **others)


def linear(weight: torch.Tensor, bias: torch.Tensor) -> Persistent:
    parameters = {"weight": torch.nn.Parameter(weight), "bias": torch.nn.Parameter(bias)}
    return module("FullyConnectedLayer", parameters, bias_gain=np.float64(1))


def published_config(**changes: Any) -> GeneratorConfig:
    """A small network as the published code would build it: features by radius, one width up to the last that injects."""
    base = {
        "img_resolution": 16,
        "octaves": 3,
        "n_bins": 2,
        "channel_max": 16,
        "channel_base": 512,
        "z_dim": 8,
        "w_dim": 8,
    }
    return GeneratorConfig(**(base | changes), published_geometry=True, published_frequencies=True)


def published_generator(generator: Generator) -> Persistent:
    """The published code's module of one of our generators."""
    config, plan, synthesis = generator.config, generator.plan, generator.synthesis
    points = [synthesis.input, *(synthesis.injections[str(layer.index)] for layer in plan.layers if layer.features)]
    freqs = torch.cat([point.omega for point in points])
    phases = torch.cat([point.phase for point in points])
    split = [plan.input_waves, *(layer.waves for layer in plan.layers)]
    source = module(
        "MultiscaleSynthesisInput",
        {"weight": torch.nn.Parameter(synthesis.input_weight.detach())},
        {"transform": torch.eye(3), "freqs": freqs, "phases": phases},
        {"affine": linear(torch.zeros(4, config.w_dim), torch.tensor([1.0, 0, 0, 0]))},
        n_bins=config.n_bins,
        bin_transform_offset=config.bin_offset,
        bin_blend_width=config.blend_width,
        bin_blend_offset=config.blend_offset,
        split_indices=torch.arange(len(freqs)).split(split),
        size=np.array([plan.input_size] * 2),
        sampling_rate=np.float64(plan.input_rate),
    )
    layers = {}
    for layer, mine in zip(plan.layers, synthesis.layers, strict=True):
        parameters = {name: torch.nn.Parameter(getattr(mine, name).detach()) for name in ("weight", "bias")}
        buffers = {name: getattr(mine, name) for name in ("magnitude_ema", "up_filter", "down_filter")}
        layers[f"L{layer.index}_{layer.out_size}_{layer.out_channels}"] = module(
            "SynthesisLayer",
            parameters,
            buffers,
            {"synthesis_input": source, "affine": linear(mine.affine.weight.detach(), mine.affine.bias.detach())},
            conv_kernel=config.conv_kernel,
            conv_clamp=config.conv_clamp,
            use_fp16=np.bool_(layer.half),
            up_factor=layer.up,
            up_taps=layer.up_taps,
            down_radial=layer.radial,
            in_cutoff=np.float64(layer.in_cutoff),
        )
    mapping = {f"fc{i}": linear(fc.weight.detach(), fc.bias.detach()) for i, fc in enumerate(generator.mapping.layers)}
    scales = EasyDict(scale_mapping_norm="positive", scale_mapping_min=0.0, scale_mapping_max=float(config.octaves))
    kwargs = {"channel_base": config.channel_base, "channel_max": config.channel_max}
    return module(
        "Generator",
        modules={
            "synthesis": module(
                "SynthesisNetwork",
                modules={"input": source, **layers},
                num_critical=config.num_critical,
                margin_size=config.margin,
                output_scale=config.output_scale,
                num_fp16_res=config.num_half_res,
                _init_kwargs=kwargs,
            ),
            "mapping": module("MappingNetwork", buffers={"w_avg": generator.mapping.w_avg}, modules=mapping),
        },
        z_dim=config.z_dim,
        w_dim=config.w_dim,
        img_resolution=config.img_resolution,
        scale_mapping_kwargs=scales,
        _init_kwargs=kwargs | {"n_bins": config.n_bins, "distribution_threshold": np.float64(2 * 2**0.5)},
    )


def write_published(path: Path, generator: Generator, protocol: int = 4, **others: Any) -> Path:
    """A file of the published code with this generator as ``G_ema``, and another one as ``G``."""
    torch.manual_seed(1)
    first = published_generator(Generator(generator.config))
    kwargs = EasyDict(class_name="training.dataset.MultiscaleImageFolderDataset", use_labels=True)
    contents = {"G": first, "D": None, "G_ema": published_generator(generator), "augment_pipe": None, **others}
    with _lent_names(), open(path, "wb") as stream:
        pickle.dump(contents | {"training_set_kwargs": kwargs}, stream, protocol=protocol)
    return path
