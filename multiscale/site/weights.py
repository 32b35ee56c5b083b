"""Weights in as few bits as the picture allows: each row is rounded by how much it moves pixels, and packed for deflate.

Rounding to multiples of a step d moves a weight by d^2 / 12 in the mean square, and so the squared error of the picture by
that times the weight's sensitivity, the squared norm of d(pixels)/d(weight). For a given error the fewest bits are spent where
each weight contributes alike (reverse water-filling): steps in proportion to 1 / sqrt(sensitivity). One factor for all of them
is left, which is measured. Where only the direction of a pair counts there is no such sensitivity, but a least number of bits.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dnnlib.errors import UserError
from multiscale.networks.generator import FeatureInjection, Generator
from multiscale.view import centre_limit, view_transform
from torch_utils.random import latents, stream

MOST_LEVELS = 1.0
"""By how much rounding may move a pixel, in levels of 255: a rendered level is then at most one off."""
EXPECTED_LEVELS = 0.08
"""Root mean square with which the search begins; the largest of the measured views is ten to twenty times as much."""
ROUNDS = 12
CLOSE = 1.15
"""Factor between steps that are fine enough and some that are not, from which on the search ends."""
ROUNDED_FROM = 256
"""Numbers of a weight from which on it is rounded."""
SENSED, MEASURED = 16, 32
"""Views by which sensitivity and error are measured, from 1x to the deepest zoom, each with a world and a place of its own."""
FEWEST_BITS, MOST_BITS = 4, 16
"""Of a row's largest multiple, its sign included."""
FEWEST_BITS_OF_PAIRS = 15
"""Of even features' amplitudes (A, B), of which the direction counts: in a world where both are near 0 the least rounding turns
it, by more the nearer they are, so that no number of views tells how much it matters."""
STEPS_AN_OCTAVE = 4
"""Steps are powers of 2^(1/4), so that a byte says which."""


@dataclass(frozen=True)
class Rounded:
    """A generator whose weights are whole multiples of a step, one for each row (output channel)."""

    generator: Generator
    steps: dict[str, np.ndarray]
    """By the name of the parameter: for each row the power of 2^(1/4) that is its step, int8 [rows]."""
    levels: float
    """By how much a pixel differs at most from the generator that was given, in levels of 255, where it was measured."""


def rounded(generator: Generator) -> Rounded:
    """Round the weights as coarsely as changes no measured pixel by more than ``MOST_LEVELS``.

    Args:
        generator: On the CPU, float32, in evaluation mode; it is left as it is.

    Raises:
        UserError: no legal steps are fine enough.
    """
    views = _views(generator, "rounding checked", MEASURED)
    sensitivity, fewest = _sensitivity(generator), _fewest_bits(generator)
    weights, exact, other = weights_of(generator), _images(generator, views), copy.deepcopy(generator)
    count = sum(weight.numel() for weight in weights.values())
    factor = EXPECTED_LEVELS / 127.5 * math.sqrt(12 * exact[0].numel() / count)
    levels, too_coarse, best = math.inf, math.inf, None
    for _ in range(ROUNDS):
        steps = {name: _steps(w.numpy(), sensitivity[name], factor, fewest[name]) for name, w in weights.items()}
        for name, weight in weights.items():
            multiples, step = _multiples(weight.numpy(), steps[name])
            other.get_parameter(name).data.copy_(torch.from_numpy((multiples * step).reshape(weight.shape)))
        levels = float((_images(other, views) - exact).abs().max() * 127.5)
        if levels <= MOST_LEVELS:
            best, fine = Rounded(copy.deepcopy(other), steps, levels), factor
        else:
            too_coarse = factor
        if best is None:
            factor *= min(max(0.9 * MOST_LEVELS / levels, 0.5), 0.9)
        elif too_coarse < CLOSE * fine or too_coarse == math.inf:
            break
        else:
            factor = math.sqrt(fine * too_coarse)
    if best is not None:
        return best
    raise UserError(
        f"Rounded weights change pixels of this network by {levels:.1f} levels of 255 at least, which is too much for a page "
        "that renders; python zoom.py --export FOLDER --tiles makes one that shows a world of it."
    )


def weights_of(generator: Generator) -> dict[str, torch.Tensor]:
    """What is rounded, by the name of its parameter: matrices and kernels of the graphs, but for the smallest."""
    named = generator.named_parameters()
    return {
        name: p.detach()
        for name, p in named
        if p.ndim > 1 and p.numel() >= ROUNDED_FROM and not name.startswith("synthesis.frame.")  # outside of the graphs
    }


def take_out(models: Sequence[Any], steps: dict[str, np.ndarray]) -> tuple[list[list[int]], dict[str, bytes]]:
    """Move rounded weights out of ONNX models: they stay there as references into one file of float32, ``"weights"``.

    Args:
        models: ``onnx.ModelProto``, changed in place.
        steps: As in :class:`Rounded`; the initializers of these names are moved, of which each model may have any.

    Returns:
        ``[rows, columns]`` of each in the order of that file, and its parts: ``steps``, int8 for each row; ``shifts``, uint8
        for each row: how many bits of its multiples are in ``lower``; ``upper``, int8: what is left of each multiple above
        them; ``lower``: these bits one after the other, the lowest first.
    """
    shapes, offset = [], 0
    parts: dict[str, list[np.ndarray]] = {"steps": [], "shifts": [], "upper": [], "lower": []}
    for model in models:
        for tensor in model.graph.initializer:
            if tensor.name not in steps:
                continue
            values = np.frombuffer(tensor.raw_data, dtype="<f4").reshape(tensor.dims[0], -1)
            multiples, _ = _multiples(values, steps[tensor.name])
            shifts = np.maximum(_bits(multiples) - 8, 0)
            shapes.append(list(values.shape))
            parts["steps"].append(steps[tensor.name])
            parts["shifts"].append(shifts.astype(np.uint8))
            parts["upper"].append((multiples >> shifts[:, None]).astype(np.int8).ravel())
            for row, shift in zip(multiples, shifts, strict=True):
                parts["lower"].append((row[:, None] >> np.arange(shift) & 1).astype(np.uint8).ravel())
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            for key, value in (("location", "weights"), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += values.nbytes
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    whole["lower"] = np.packbits(whole["lower"], bitorder="little")
    return shapes, {name: array.tobytes() for name, array in whole.items()}


def deflated(data: bytes) -> bytes:
    """In the format of zlib, by the strategy that suits it best: numbers have no repetitions to look for."""

    def by(strategy: int) -> bytes:
        deflate = zlib.compressobj(9, strategy=strategy)
        return deflate.compress(data) + deflate.flush()

    return min((by(strategy) for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)), key=len)


def _views(generator: Generator, name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [count, z_dim] and transforms [count, 3, 3] of worlds at places of their own, from 1x to the deepest zoom."""
    zoom = 2 ** torch.linspace(0, generator.config.octaves, count)
    rng = stream(0, name)
    z = torch.cat([latents(int(seed), generator.config.z_dim) for seed in rng.integers(2**32, size=count)])
    centres = torch.from_numpy(rng.uniform(-1, 1, (count, 2))).float() * centre_limit(zoom)[:, None]
    return z, view_transform(zoom, centres)


def _images(generator: Generator, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([generator(z[None], transform[None]) for z, transform in zip(*views, strict=True)]).clamp(
            -1, 1
        )


def _sensitivity(generator: Generator) -> dict[str, np.ndarray]:
    """Of each row's weights: by how much a picture's squared norm changes with a weight's square, [rows].

    The squared gradient of pixels with random signs has the squared norm of the Jacobian for its expectation. A few views tell
    little about a single row (whose wave may not be in any), so that the geometric mean with the whole weight's is taken.
    """
    network = copy.deepcopy(generator).requires_grad_(True)
    weights = {name: network.get_parameter(name) for name in weights_of(generator)}
    squares = {name: torch.zeros(len(weight)) for name, weight in weights.items()}
    rng = stream(0, "rounding signs")
    for z, transform in zip(*_views(generator, "rounding sensed", SENSED), strict=True):
        image = network(z[None], transform[None])
        signs = torch.from_numpy(rng.choice(np.array([-1, 1], dtype=np.float32), image.shape))
        for name, gradient in zip(
            weights, torch.autograd.grad((image * signs).sum(), list(weights.values())), strict=True
        ):
            squares[name] += gradient.flatten(1).square().mean(1) / SENSED
    return {name: (square * square.mean()).sqrt().numpy() for name, square in squares.items()}


def _fewest_bits(generator: Generator) -> dict[str, np.ndarray]:
    """Of each row's largest multiple, int [rows]."""
    fewest = {name: np.full(len(weight), FEWEST_BITS) for name, weight in weights_of(generator).items()}
    for name, point in generator.named_modules():
        if isinstance(point, FeatureInjection) and point.config.even_features and f"{name}.style" in fewest:
            is_pair = ~point.anchored.cpu().numpy().repeat(2)  # what is anchored has the amplitudes (1, 0)
            fewest[f"{name}.style"][is_pair] = FEWEST_BITS_OF_PAIRS
    return fewest


def _steps(values: np.ndarray, sensitivity: np.ndarray, factor: float, fewest: np.ndarray) -> np.ndarray:
    """The step of each row as a power of 2^(1/4), int8 [rows], with which its largest multiple has ``fewest`` bits or more.

    Args:
        values: A weight, its rows first.
        sensitivity: As :func:`_sensitivity`, [rows].
        factor: Of all steps.
        fewest: Bits, int [rows].
    """
    largest = np.maximum(np.abs(values).reshape(len(values), -1).max(axis=1), 2.0**-24).astype(np.float64)
    wanted = factor / np.sqrt(np.maximum(sensitivity, 1e-30, dtype=np.float64))
    fine, coarse = ((largest / (2 ** (bits - 1) - 1)) for bits in (MOST_BITS, fewest))
    # Upwards, so that no multiple is above the largest of MOST_BITS; it takes no bit from the fewest.
    return np.ceil(STEPS_AN_OCTAVE * np.log2(np.clip(wanted, fine, coarse))).clip(-128, 127).astype(np.int8)


def _multiples(values: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a weight in whole multiples, int32 [rows, columns], of their steps, float32 [rows, 1]."""
    step = (2.0 ** (steps[:, None] / STEPS_AN_OCTAVE)).astype(np.float32)
    return np.rint(values.reshape(len(values), -1) / step).astype(np.int32), step


def _bits(multiples: np.ndarray) -> np.ndarray:
    """Bits of each row's multiples, their sign included."""
    largest = np.maximum(multiples.max(axis=1), -1 - multiples.min(axis=1))  # -2^(b - 1) needs b bits
    return np.ceil(np.log2(largest + 1)).astype(int) + 1
