"""Weights as few bits as the picture allows: rounded row by row, by how many bits is measured, and packed for deflate."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.networks.generator import Generator
from multiscale.view import centre_limit, view_transform
from torch_utils.random import latents

BITS = (10, 11, 12, 13, 14, 16)
"""What is tried, in turn."""
MOST_LEVELS = 0.5
"""By how much rounding may move a pixel, in levels of 255: a rendered level is then at most one off."""
ROUNDED_FROM = 256
"""Numbers of a weight from which on it is rounded."""
WORLDS = (0, 3)
"""Seeds by which the error is measured, at 1x and at the deepest zoom."""


@dataclass(frozen=True)
class Rounded:
    """A generator whose weights are whole multiples of a step, one for each row (output channel)."""

    generator: Generator
    bits: int
    """Of a multiple, its sign included."""
    levels: float
    """By how much a pixel differs at most from the generator that was given, in levels of 255, where it was measured."""


def rounded(generator: Generator) -> Rounded:
    """Round the weights to the fewest bits that change no pixel by more than ``MOST_LEVELS``.

    Args:
        generator: On the CPU, float32, in evaluation mode; it is left as it is.

    Raises:
        UserError: 16 bits are not enough.
    """
    z = torch.cat([latents(seed, generator.config.z_dim) for seed in WORLDS]).repeat(2, 1)
    zoom = torch.tensor([1.0, 2.0**generator.config.octaves]).repeat_interleave(len(WORLDS))
    transform = view_transform(zoom, torch.stack([0.7 * centre_limit(zoom), -0.4 * centre_limit(zoom)], dim=1))

    def images(network: Generator) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([network(z[i : i + 1], transform[i : i + 1]) for i in range(len(z))]).clamp(-1, 1)

    exact, other = images(generator), copy.deepcopy(generator)
    error = float("inf")
    for bits in BITS:
        for name, weight in weights_of(generator).items():
            steps = _steps(weight.numpy(), bits)
            other.get_parameter(name).data.copy_(torch.from_numpy(_multiples(weight.numpy(), steps) * steps))
        error = float((images(other) - exact).abs().max() * 127.5)
        if error <= MOST_LEVELS:
            return Rounded(other, bits, error)
    raise UserError(
        f"Weights of {BITS[-1]} bits change pixels of this network by {error:.1f} levels of 255, which is too much for a page; "
        "use --tiles, or zoom.py."
    )


def weights_of(generator: Generator) -> dict[str, torch.Tensor]:
    """What is rounded, by the name of its parameter: matrices and kernels, but for the smallest."""
    named = generator.named_parameters()
    return {name: p.detach() for name, p in named if p.ndim > 1 and p.numel() >= ROUNDED_FROM}


def take_out(models: Sequence[Any], names: Collection[str], bits: int) -> tuple[list[list[int]], bytes]:
    """Move rounded weights out of ONNX models: they stay there as references into one file of float32, ``"weights"``.

    Args:
        models: ``onnx.ModelProto``, changed in place.
        names: Of the initializers to move; each model may have any of them.
        bits: As they were rounded to.

    Returns:
        ``[rows, columns]`` of each in the order of that file, and all in ``bits``: each row's step as float32, then of each
        number its multiple of the step plus 2^(bits - 1) as 16 bits: all lower bytes, then all upper ones (which deflate well).
    """
    shapes, steps, multiples, offset = [], [], [], 0
    for model in models:
        for tensor in model.graph.initializer:
            if tensor.name not in names:
                continue
            values = np.frombuffer(tensor.raw_data, dtype="<f4").reshape(tensor.dims[0], -1)
            shapes.append(list(values.shape))
            steps.append(_steps(values, bits).ravel())
            multiples.append((_multiples(values, _steps(values, bits)) + 2 ** (bits - 1)).ravel().astype("<u2"))
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            for key, value in (("location", "weights"), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += values.nbytes
    planes = np.concatenate(multiples).view(np.uint8).reshape(-1, 2).T
    return shapes, np.concatenate(steps).astype("<f4").tobytes() + planes.tobytes()


def _steps(values: np.ndarray, bits: int) -> np.ndarray:
    """The step of each row, [rows, 1, ...]: its largest magnitude is 2^(bits - 1) - 1 of them."""
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    return np.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1).astype(np.float32)


def _multiples(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.rint(values / steps)
