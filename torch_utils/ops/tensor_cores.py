"""Filters as the fragments of matrices that the tensor cores of a GPU multiply by (csrc/cuda/filtered_lrelu_mma.cuh).

A pass of a resampling is a product with a banded matrix (reference.py). Here such a matrix is cut into blocks of 16 x 16 or
16 x 8 half-precision numbers, which every warp of the kernel holds in registers, in the order that ``mma.m16n8k16`` wants
(PTX ISA, "Matrix Fragments for mma.m16n8k16"). The blocks are the same all over an image, as tiles begin at multiples of the
factors. A dense filter is taken apart into few separable ones, by its singular values.

Reading a filter waits for the device, so each is read once and its fragments are kept.
"""

from __future__ import annotations

import collections
import dataclasses
import threading

import numpy as np
import torch

from torch_utils.devices import is_capturing
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling

TAPS = 6
"""Taps of a phase of all filters that have such kernels."""

LARGEST_ERROR = 2.0**-12
"""Of a dense filter as a sum of separable ones: the norm of the difference relative to the norm of the filter.

For white noise that is the result's error, root mean square. A half-precision result is rounded by up to 2^-11 of itself,
a bfloat16 by up to 2^-8.
"""

MOST_TERMS = 3
"""Separable filters that a dense one may be taken apart into, at most; if these are not enough, other kernels serve."""

FILTERS_WATCHED = 256
"""Tensors whose contents are remembered."""


@dataclasses.dataclass(frozen=True)
class Fragments:
    """A filter for the tensor cores.

    Attributes:
        registers: int32 [quads, 32, 4]: four registers at a time of each lane of a warp.
        terms: Separable filters whose sum the filter is.
        unit: The blocks are those of the filter times this, so that no pass makes values larger than the largest it takes.
    """

    registers: torch.Tensor
    terms: int
    unit: float


_contents: collections.OrderedDict[tuple[object, ...], tuple[torch.Tensor, np.ndarray]] = collections.OrderedDict()
_fragments: dict[tuple[object, ...], Fragments | None] = {}  # of each content: for good, as graphs hold their addresses
_lock = threading.Lock()


def fragments(layer: FilteredLReLU) -> tuple[Fragments, Fragments] | None:
    """Both filters of a layer; None if there is no kernel for their kind, or they cannot be read now.

    Args:
        layer: Its filters are constants on the images' device.
    """
    up, down = layer.up, layer.down
    (phase_y, _), (phase_x, first_x) = _start(up.y, down.y), _start(up.x, down.x)
    phase_x -= first_x % 2 * up.x.up  # tiles begin at even columns of inputs
    first = _of_filter(up, up.y.up, up.x.up, (phase_y, phase_x))
    second = None if first is None else _of_filter(down, down.y.down, down.x.down, None)
    return None if first is None or second is None else (first, second)


def _start(up: Axis, down: Axis) -> tuple[int, int]:
    """Tap that the first input has at the first upsampled sample that an output needs, and which input that is.

    The tap is the same for all tiles, as these begin at multiples of 16 outputs.
    """
    pad = up.pad0 + down.pad0
    return pad % up.up, -(pad // up.up)


def _of_filter(r: Resampling, factor: int, other: int, phases: tuple[int, int] | None) -> Fragments | None:
    """Fragments for upsampling with tiles that begin at ``phases`` (y, x), or, None, for downsampling."""
    f = r.f
    if f is None or factor != other or factor not in (2, 4) or {*f.shape} != {TAPS * factor}:
        return None
    content = _content(f)
    if content is None:
        return None
    key = (f.device, content.tobytes(), content.shape, r.flip_filter, factor, phases)
    with _lock:
        if key in _fragments:
            return _fragments[key]
    if is_capturing(f.device):
        return None
    made = make(content if r.flip_filter else np.flip(content), factor, phases)
    if made is not None:
        made = dataclasses.replace(made, registers=made.registers.to(f.device))
    with _lock:
        return _fragments.setdefault(key, made)


def _content(f: torch.Tensor) -> np.ndarray | None:
    """A filter's taps in float64; None if they would have to be read from a device now that must not wait."""
    if f.is_inference():  # keeps no count of its changes
        return None if is_capturing(f.device) else f.cpu().double().numpy()
    key = (f.device, f.data_ptr(), f.dtype, f.shape, f.stride(), f._version)
    with _lock:
        if key in _contents:
            _contents.move_to_end(key)
            return _contents[key][1]
    if is_capturing(f.device):
        return None
    content = f.detach().cpu().double().numpy()
    with _lock:
        _contents[key] = f.detach(), content  # the tensor too, so that no other filter comes to lie where it is
        while len(_contents) > FILTERS_WATCHED:
            _contents.popitem(last=False)
    return content


def make(g: np.ndarray, factor: int, phases: tuple[int, int] | None) -> Fragments | None:
    """Fragments of a filter as it is correlated, [T] or [T, T]; on the CPU. None if it takes too many terms."""
    terms = separable_terms(g)
    if terms is None:
        return None
    if phases is not None:  # up: first vertically, then horizontally
        pairs, unit = _in_units(terms, factor)
        blocks = []
        for first, second in pairs:
            blocks.append(_left(_up_block(first, factor, phases[0], 0, 16)))
            blocks += [_right(_up_block(second, factor, phases[1], 8 * p, 8).T) for p in range(factor)]
    else:  # down: first horizontally, two terms at a time with eight outputs each, the last one with 16; then vertically
        pairs, unit = _in_units([(h, v) for v, h in terms], 1)
        horizontal = [first for first, _ in pairs]
        blocks = []
        for two in zip(horizontal[::2], horizontal[1::2], strict=False):
            for start in (0, 16):
                blocks.append(_left(np.concatenate([_down_block(g, factor, start, 8) for g in two])))
        if len(pairs) % 2:
            blocks += [_left(_down_block(horizontal[-1], factor, 16 * s, 16)) for s in range({2: 3, 4: 6}[factor])]
        for _, second in pairs:
            blocks += [_left(_down_rows(second, factor, 16 * s)) for s in range(factor // 2)]
    halves = np.concatenate(blocks, 1).astype(np.float16)  # [32, registers, 2]
    registers = halves.view(np.int32)[..., 0].reshape(32, -1, 4).transpose(1, 0, 2)
    return Fragments(torch.from_numpy(np.ascontiguousarray(registers)), len(terms), unit)


def separable_terms(g: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Pairs of filters (vertical, horizontal) that add up to a filter, but for LARGEST_ERROR; None if MOST_TERMS do not."""
    if not np.isfinite(g).all() or not g.any():
        return None
    if g.ndim == 1:
        return [(g, g)]
    u, s, v = np.linalg.svd(g)
    for terms in range(1, MOST_TERMS + 1):
        if np.linalg.norm(s[terms:]) <= LARGEST_ERROR * np.linalg.norm(s):
            return [(u[:, k] * s[k], v[k]) for k in range(terms)]
    return None


def _in_units(
    pairs: list[tuple[np.ndarray, np.ndarray]], factor: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """Filters of a first and a second pass, rounded, so scaled that neither makes larger values than it takes; the scale."""

    def largest_sum(g: np.ndarray) -> np.ndarray:
        return np.abs(g).reshape(-1, factor).sum(0)  # of each phase

    scales = [largest_sum(first).max() for first, _ in pairs]
    total = sum(largest_sum(second) * scale for (_, second), scale in zip(pairs, scales, strict=True)).max()
    scaled = [(first / scale, second * scale / total) for (first, second), scale in zip(pairs, scales, strict=True)]
    return [(_rounded(first, factor), _rounded(second, factor)) for first, second in scaled], float(1 / total)


def _rounded(g: np.ndarray, factor: int) -> np.ndarray:
    """Half-precision taps. From the largest on, each makes up for the errors before it, so that each phase keeps its sum."""
    rounded = np.zeros_like(g)
    for phase in range(factor):
        error = 0.0
        for k in sorted(range(phase, len(g), factor), key=lambda k: -abs(g[k])):
            rounded[k] = np.float16(g[k] + error)
            error += g[k] - rounded[k]
    return rounded


def _up_block(g: np.ndarray, factor: int, phase: int, start: int, rows: int) -> np.ndarray:
    """[rows, 16]: weights of 16 inputs in the upsampled samples from ``start`` on."""
    m, j = np.arange(start, start + rows)[:, None], np.arange(16)
    return _taps(g, phase + j * factor - m)


def _down_block(g: np.ndarray, factor: int, start: int, rows: int) -> np.ndarray:
    """[rows, 16]: weights of the 16 upsampled samples from ``start`` on in the first outputs."""
    m, j = np.arange(rows)[:, None], np.arange(start, start + 16)
    return _taps(g, j - m * factor)


def _down_rows(g: np.ndarray, factor: int, start: int) -> np.ndarray:
    """[16, 16]: weights of 16 upsampled samples in the eight outputs that began before them, and in the next eight.

    Args:
        start: From where the next eight begin to the samples.
    """
    return np.concatenate([_down_block(g, factor, start + offset, 8) for offset in (8 * factor, 0)])


def _taps(g: np.ndarray, k: np.ndarray) -> np.ndarray:
    return np.where((k >= 0) & (k < len(g)), g[np.clip(k, 0, len(g) - 1)], 0.0)


def _left(block: np.ndarray) -> np.ndarray:
    """[16, 16] as the left factor of a product: [lane, register, half]."""
    lane = np.arange(32)[:, None, None]
    row = lane // 4 + 8 * np.array([0, 1, 0, 1])[:, None]
    column = lane % 4 * 2 + 8 * np.array([0, 0, 1, 1])[:, None] + np.arange(2)
    return block[row, column]


def _right(block: np.ndarray) -> np.ndarray:
    """[16, 8] as the right factor of a product: [lane, register, half]."""
    lane = np.arange(32)[:, None, None]
    row = lane % 4 * 2 + 8 * np.arange(2)[:, None] + np.arange(2)
    return block[row, lane // 4]
