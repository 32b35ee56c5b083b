"""A generator as two ONNX graphs: z to styles, and styles with the factors of the view's waves to an image of any size.

What needs float64, the frame of a world and the phase at the view's centre, stays outside: the caller gives each injection
point's waves as sines and cosines along x and y (:class:`multiscale.networks.fourier.Waves`). The operators are those of the
reference: zeros between samples, a filter, the leaky ReLU, a filter, as plain convolutions.

Shapes: K waves of a point, P samples of its grid, D size of w.
"""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from dnnlib.errors import UserError
from multiscale.networks.fourier import Waves
from multiscale.networks.generator import FeatureInjection, Generator, Size
from multiscale.networks.layers import SQRT2, SynthesisLayer, modulated_weight
from multiscale.site.simplify import simplify

OPSET = 17
PREFIX = "generator."
"""Of the names of a generator's parameters in :class:`SynthesisGraph`."""


class MappingGraph(nn.Module):
    """z [1, z_dim] and psi [1] -> ws [1, num_ws, D]."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.mapping = generator.mapping

    def forward(self, z: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
        ws, mean = self.mapping(z), self.mapping.w_avg
        truncated = mean + psi * (ws - mean)
        # With a style of features the first w is their layout, which is not truncated.
        return truncated if self.mapping.layout is None else torch.cat([ws[:, :1], truncated[:, 1:]], dim=1)


class SynthesisGraph(nn.Module):
    """ws [1, num_ws, D] and for each injection point along_x and along_y [2, K, P] -> image [1, C, rows, columns].

    ``along_x``: sin alpha and cos alpha times the amplitude; ``along_y``: sin beta and cos beta.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.synthesis = generator.synthesis

    def forward(self, ws: torch.Tensor, *along: torch.Tensor) -> torch.Tensor:
        synthesis, waiting = self.synthesis, list(along)
        x = _features(synthesis.input, synthesis.input_weight, ws, *waiting[:2])
        waiting = waiting[2:]
        for i, layer in enumerate(synthesis.layers):
            x = _layer(layer, x, ws[:, i + 1])  # type: ignore[arg-type]
            if (key := str(i)) in synthesis.injections:
                point: Any = synthesis.injections[key]
                mixing = synthesis.mixing.get(key)
                features = _features(point, mixing, ws, *waiting[:2])
                x = torch.cat([x, synthesis.gated(i, x, features)], dim=1)
                waiting = waiting[2:]
        return x * self.generator.config.output_scale


def points_of(generator: Generator) -> list[FeatureInjection]:
    """The injection points in the order of :class:`SynthesisGraph`'s arguments."""
    return list(generator.synthesis.points().values())


def export_graphs(generator: Generator) -> tuple[Any, Any]:
    """The mapping and the synthesis as ``onnx.ModelProto``; their initializers are named as the generator's parameters.

    Inputs and outputs are those of :class:`MappingGraph` (``z``, ``psi``; ``ws``) and :class:`SynthesisGraph` (``ws``,
    ``along_x0``, ``along_y0``, ``along_x1``, ...; ``image``), all float32; :func:`factors_of_view` computes those of the view.

    Args:
        generator: On the CPU, float32, in evaluation mode.

    Raises:
        UserError: the package onnx is not installed, or packets are turned by frames of worlds, where they have no factors.
    """
    config = generator.config
    if config.world_frame and config.feature_bandwidth:
        raise UserError(
            "Networks with both generator.world_frame and generator.feature_bandwidth cannot be exported to a page; "
            "use --tiles or zoom.py."
        )
    ws = generator.mapping(torch.zeros(1, config.z_dim))
    along = [torch.zeros(2, len(p.omega) * p.terms, p.size) for p in points_of(generator) for _ in "xy"]
    names = _names(generator)
    mapping = _export(MappingGraph(generator), (torch.zeros(1, config.z_dim), torch.ones(1)), ["z", "psi"], "ws", {})
    axes = {name: {2: f"{name}_samples"} for name in names} | {"image": {2: "rows", 3: "columns"}}
    return mapping, _export(SynthesisGraph(generator), (ws, *along), ["ws", *names], "image", axes)


@torch.no_grad()
def factors_of_view(
    generator: Generator, ws: torch.Tensor | NDArray[Any], transform: torch.Tensor, size: Size | None = None
) -> dict[str, NDArray[np.float32]]:
    """What the synthesis graph takes beside ``ws`` for a view of that world: float32 [2, K, P] by the inputs' names.

    Args:
        generator: The network that was exported.
        ws: Styles [1, num_ws, D]; worlds with frames of their own have other waves in the same view.
        transform: The view, [1, 3, 3] of :func:`multiscale.view.view_transform`, with sides parallel to the world's.
        size: Width and height of the image in pixels, each N plus a multiple of ``plan.step``; None: N x N.
    """
    waves = generator.synthesis.waves(generator.synthesis.views(transform, torch.as_tensor(ws)), size)
    along = [torch.cat(pair) for w in waves.values() for pair in ((w.sin_x, w.cos_x), (w.sin_y, w.cos_y))]
    return {name: part.numpy() for name, part in zip(_names(generator), along, strict=True)}


def _names(generator: Generator) -> list[str]:
    """Of the waves' factors, in the order of :class:`SynthesisGraph`'s arguments."""
    return [f"along_{axis}{i}" for i in range(len(points_of(generator))) for axis in "xy"]


def onnx_package() -> Any:
    """The package onnx.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("Exporting a page needs the package onnx: pip install onnx.") from error
    return onnx


def _features(
    point: FeatureInjection, mixing: torch.Tensor | None, ws: torch.Tensor, along_x: torch.Tensor, along_y: torch.Tensor
) -> torch.Tensor:
    waves = Waves(along_x[:1], along_x[1:], along_y[:1], along_y[1:], point.terms)
    return point.maps(waves, ws[:, 0], mixing)


def _layer(layer: SynthesisLayer, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """As :class:`SynthesisLayer`, of one image."""
    plan = layer.plan
    style = layer.affine(w)
    if plan.is_torgb:
        style = style / math.sqrt(layer.weight[0].numel())
    weight = modulated_weight(layer.weight, style, layer.magnitude_ema.rsqrt(), demodulate=not plan.is_torgb)
    x = F.conv2d(x, weight[0], padding=weight.shape[-1] - 1) + layer.bias[:, None, None]
    x = x.transpose(0, 1)  # channels are images of one channel
    x0, x1, y0, y1 = plan.padding
    if layer.up_filter is not None:
        x = _upsampled(x, layer.up_filter, plan.up, (x0, y0), (x1, y1))
    if plan.is_torgb:
        return x.clamp(-layer.clamp, layer.clamp).transpose(0, 1)
    # The gain of the leaky ReLU goes into the filter behind it.
    x = F.leaky_relu(x, 0.2).clamp(-layer.clamp / SQRT2, layer.clamp / SQRT2)
    assert layer.down_filter is not None
    taps = layer.down_filter * (SQRT2 if layer.down_filter.ndim == 2 else math.sqrt(SQRT2))
    return _downsampled(x, taps, plan.down).transpose(0, 1)


def _upsampled(x: torch.Tensor, f: torch.Tensor, up: int, low: tuple[int, int], high: tuple[int, int]) -> torch.Tensor:
    """Zeros between the samples, padding or cropping by (x, y) at both ends, the filter with a gain of up^2."""
    taps = f.shape[0]
    g = f * up
    for axis in (1, 0):  # rows, then columns
        shape = (1, 1, taps, 1) if axis else (1, 1, 1, taps)
        stride = (up, 1) if axis else (1, up)
        x = F.conv_transpose2d(x, g.view(shape), stride=stride)
        # The transposed convolution begins taps - 1 before the first sample that the padded filter gives, and has no up - 1
        # zeros behind the last one.
        cut = (low[axis] - (taps - 1), high[axis] - (taps - 1) + up - 1)
        x = F.pad(x, (0, 0, *cut) if axis else (*cut, 0, 0))
    return x


def _downsampled(x: torch.Tensor, f: torch.Tensor, down: int) -> torch.Tensor:
    g = f.flip(list(range(f.ndim)))
    if f.ndim == 2:
        return F.conv2d(x, g[None, None], stride=down)
    x = F.conv2d(x, g.view(1, 1, -1, 1), stride=(down, 1))
    return F.conv2d(x, g.view(1, 1, 1, -1), stride=(1, down))


def _export(module: nn.Module, arguments: tuple[Any, ...], inputs: list[str], output: str, axes: dict[str, Any]) -> Any:
    onnx = onnx_package()
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of a tracer that says of each shape that it is traced
        torch.onnx.export(
            module.eval(),
            arguments,
            stream,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=inputs,
            output_names=[output],
            dynamic_axes=axes,
            do_constant_folding=False,  # weights keep their names, and the rows that they are rounded by
        )
    model = onnx.load_model_from_string(stream.getvalue())
    weights = {name for name, _ in module.named_parameters()}
    simplify(model, weights)
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(PREFIX)
    for node in model.graph.node:
        node.input[:] = [name.removeprefix(PREFIX) for name in node.input]
    onnx.checker.check_model(model)
    return model
