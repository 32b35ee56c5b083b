"""The ops as compiled kernels, known to PyTorch as ``torch.ops.multiscale.*``, and the choice between them and PyTorch.

Each op is opaque to PyTorch's compilers, says which shapes come out (fake tensors), and has a gradient that is such an op
itself, so that there is one of any order. All of a layer's filters and sizes pass as plain numbers: nothing waits for the
device, and a CUDA graph can hold the launches.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from dnnlib.errors import UserError
from torch_utils.ops import build, tensor_cores
from torch_utils.ops.reference import Axis, FilteredLReLU, Resampling, filter_taps

IMPLEMENTATIONS = ("auto", "reference", "native")

PREFERENCES = (*IMPLEMENTATIONS, "scalar")
"""What ``MULTISCALE_OPS`` can ask for; "scalar" is "auto" without tensor cores."""

FACTORS = (1, 2, 4)
"""Up- and downsampling factors of the kernels."""

LARGEST_FILTER = {"upfirdn2d": 64, "filtered_lrelu": 32, "bias_act": 1}
"""Taps along an axis, at most. Of 64, the scratch memory that a single sample needs fits in any GPU's shared memory."""

LARGEST_MAP = 2**31 - 1
"""Samples of one map, at most; their number in all is not limited."""

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""Types of images: the numbers of ``enum Type``."""

DEVICE_TYPES: dict[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "meta": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
}
"""Types of images for which there are kernels; shapes without data ("meta") are those that the CPU's would have."""

HALF_TYPES = (torch.float16, torch.bfloat16)

ACTIVATE, REMEMBER, MULTIPLY = range(3)
"""``enum Slopes``."""

T = TypeVar("T")

_warned: set[str] = set()


# ----- which implementation -----------------------------------------------------------------------------------------


def is_chosen(op: str, impl: str, x: torch.Tensor, *resamplings: Resampling, bias: torch.Tensor | None = None) -> bool:
    """Whether the kernels shall do an op; where they cannot though "auto" would prefer them, one warning says why.

    Derivatives in forward mode, and those of ``torch.func``, are PyTorch's: its custom ops have neither.

    Args:
        op: Name of the op, for messages.
        impl: "auto", "reference" or "native"; "auto" is what the environment's ``MULTISCALE_OPS`` says, if anything.
        x: Images.
        resamplings: The op's filters.
        bias: The op's bias, if it has one.

    Raises:
        ValueError: ``impl`` is none of the three.
        UserError: ``MULTISCALE_OPS`` is none of PREFERENCES.
        RuntimeError: "native" is asked for, but cannot run; the message says why.
    """
    check_implementation(impl)
    impl = _answer(preference) if impl == "auto" else impl
    if impl == "reference":
        return False
    if not torch.compiler.is_compiling() and any(t is not None and _is_transformed(t) for t in (x, bias)):
        if impl == "native":
            raise RuntimeError(
                f"The native kernels of {op} cannot run: they have no derivatives in forward mode or by torch.func; "
                'give impl="reference" or "auto".'
            )
        return False
    of_call = _obstacle(op, x, resamplings)
    reason = of_call or _answer(_library_obstacle, x.device)
    if reason is None:
        return True
    if impl == "native":
        raise RuntimeError(f"The native kernels of {op} cannot run: {reason}")
    whose = op if of_call else "Resampling and filtered leaky ReLU"
    _answer(_warn_once, f"{whose} will be slower, in plain PyTorch, for want of a kernel: {reason}")
    return False


def _is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a tensor carries a tangent, or belongs to a gradient of ``torch.func``."""
    if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
        return True
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return functorch.is_gradtrackingtensor(tensor)


def _answer(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns; where a graph is traced it is a constant of that, and the function not part of it."""
    if not torch.compiler.is_compiling():
        return function(*arguments)
    from torch_utils.ops.constants import constant  # here: it loads the compiler, which takes more than a second

    return constant(function, *arguments)


def check_implementation(impl: str) -> None:
    """ValueError unless ``impl`` is "auto", "reference" or "native"."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}, but it must be one of {', '.join(map(repr, IMPLEMENTATIONS))}.")


def preference() -> str:
    """What ``MULTISCALE_OPS`` asks for, one of PREFERENCES, "auto" if it is unset; UserError for anything else."""
    chosen = os.environ.get("MULTISCALE_OPS") or "auto"
    if chosen not in PREFERENCES:
        allowed = ", ".join(PREFERENCES)
        raise UserError(f"The environment's MULTISCALE_OPS is {chosen!r}, but it must be one of {allowed}.")
    return chosen


def _obstacle(op: str, x: torch.Tensor, resamplings: Sequence[Resampling]) -> str | None:
    """What about these arguments the kernels cannot do; None: nothing."""
    device = x.device.type
    if device not in DEVICE_TYPES:
        return f"there are none for the device {device}."
    if x.dtype not in DEVICE_TYPES[device]:
        return f"there are none for {x.dtype} on the device {device}."
    for r in resamplings:
        factors = (r.x.up, r.y.up, r.x.down, r.y.down)
        if not all(n in FACTORS for n in factors):
            return f"factors are 1, 2 or 4, but here up is {list(factors[:2])} and down is {list(factors[2:])}."
        if max(filter_taps(r.f)) > LARGEST_FILTER[op]:
            return f"filters have up to {LARGEST_FILTER[op]} taps, but here one has {max(filter_taps(r.f))}."
        if max(r.y.n_in * r.x.n_in, r.y.n_out * r.x.n_out) > LARGEST_MAP:
            return "a map has 2^31 samples or more."
    return None


def _library_obstacle(device: torch.device) -> str | None:
    """Why the kernels cannot be built or loaded; None: they are there."""
    try:
        library(device)
    except build.BuildError as error:
        return str(error)
    return None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)


def library(device: torch.device) -> ctypes.CDLL:
    """The kernels for a device, built if need be; BuildError if they cannot be, or do not run there."""
    if device.type != "cuda":
        return build.library("cpu")
    return _cuda_library(device.index or 0)


@functools.lru_cache
def _cuda_library(index: int) -> ctypes.CDLL:
    found = build.library("cuda", torch.cuda.get_device_capability(index))
    found.cuda_error.restype = ctypes.c_char_p
    with torch.cuda.device(index):
        code = found.cuda_probe()
    if code:
        reason = found.cuda_error(code).decode()
        raise build.BuildError(f"the CUDA kernels were built, but do not run on GPU {index}: {reason}.")
    return found


def has_tensor_cores(device: torch.device) -> bool:
    """Whether there are kernels for a device's tensor cores; BuildError if there are none for the device at all."""
    return device.type == "cuda" and _has_tensor_cores(device.index or 0)


@functools.lru_cache
def _has_tensor_cores(index: int) -> bool:
    kernels = _cuda_library(index)
    with torch.cuda.device(index):
        return bool(kernels.cuda_tensor_cores())


# ----- what is handed over (csrc/ops.h) -----------------------------------------------------------------------------


class _Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("n_in", "n_out", "up", "down", "pad0")]


class _Resampling(ctypes.Structure):
    _fields_ = [
        ("filter", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("taps_y", "taps_x", "separable", "flip")),
        ("gain", ctypes.c_double),
        ("y", _Axis),
        ("x", _Axis),
    ]


class _Upfirdn2d(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        ("maps", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("resampling", _Resampling),
    ]


class _FilteredLReLU(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "bias", "codes")),
        *((name, ctypes.c_int64) for name in ("maps", "channels", "code_bytes")),
        *((name, ctypes.c_int32) for name in ("type", "slopes")),
        *((name, ctypes.c_double) for name in ("slope", "clamp")),
        ("up", _Resampling),
        ("down", _Resampling),
        *((name, ctypes.c_void_p) for name in ("up_registers", "down_registers")),
        *((name, ctypes.c_int32) for name in ("up_terms", "down_terms")),
        *((name, ctypes.c_double) for name in ("up_unit", "down_unit")),
    ]


def _resampling(f: torch.Tensor | None, numbers: Sequence[int], gain: float) -> _Resampling:
    """The structure for a filter (of the type that the kernels want) and the numbers of ``_numbers``."""
    (taps_y, taps_x), flip = filter_taps(f), numbers[0]
    y, x = _Axis(*numbers[1:6]), _Axis(*numbers[6:])
    separable = f is not None and f.ndim == 1
    return _Resampling(_pointer(f), taps_y, taps_x, separable, flip, gain, y, x)


def _numbers(r: Resampling) -> list[int]:
    """A resampling but for its filter and gain, as an op's schema can take it."""
    return [int(r.flip_filter), *(n for a in (r.y, r.x) for n in (a.n_in, a.n_out, a.up, a.down, a.pad0))]


def _from_numbers(f: torch.Tensor | None, numbers: Sequence[int], gain: float) -> Resampling:
    return Resampling(f, Axis(*numbers[1:6]), Axis(*numbers[6:]), bool(numbers[0]), gain)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _constant(f: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """A filter or bias in the type in which the kernels calculate."""
    return None if f is None else f.to(_calculation_type(x)).contiguous()


def _calculation_type(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _code_bytes(width: int, resamplings: Sequence[Sequence[int]], device: str) -> int:
    """Bytes that hold the codes of a row of ``width`` upsampled samples, four to a byte: whole words on a GPU.

    On a CPU each phase of a row has whole blocks of 64 codes (csrc/cpu.cpp).
    """
    if device == "cuda":
        return -(-width // 16) * 4
    phases = max(resamplings[0][8], resamplings[1][9])  # the horizontal factors, up and down
    return phases * -(-width // (64 * phases)) * 16


def _run(name: str, x: torch.Tensor, call: ctypes.Structure) -> None:
    """Call a kernel of the device of ``x``; on its current stream."""
    kernels = library(x.device)
    if x.device.type == "cpu":
        if getattr(kernels, f"{name}_cpu")(ctypes.byref(call), torch.get_num_threads()):
            raise MemoryError(f"There is not enough memory for the scratch rows of {name}.")
        return
    with torch.cuda.device(x.device):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        code = getattr(kernels, f"{name}_cuda")(ctypes.byref(call), stream)
    if code:
        raise RuntimeError(f"The CUDA kernel of {name} failed: {kernels.cuda_error(code).decode()}.")


# ----- what PyTorch knows of them -------------------------------------------------------------------------------------


def _known_as(name: str) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Decorate a function of new tensors: an op ``torch.ops.NAME`` that it computes on the CPU and on CUDA.

    As ``torch.library.custom_op`` does, which would load PyTorch's compiler at the first call.
    """

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, ("cpu", "cuda"), function)
        namespace, _, op = name.partition("::")
        overload: torch._ops.OpOverload = getattr(getattr(torch.ops, namespace), op).default
        return overload

    return register


# ----- upfirdn2d ----------------------------------------------------------------------------------------------------


def upfirdn2d(x: torch.Tensor, r: Resampling) -> torch.Tensor:
    """Resample images [B, C, H, W]; differentiable to any order."""
    return _upfirdn2d(x, r.f, _numbers(r), r.gain)


@_known_as("multiscale::upfirdn2d")
def _upfirdn2d(x: torch.Tensor, f: torch.Tensor | None, numbers: Sequence[int], gain: float) -> torch.Tensor:
    x, f = x.contiguous(), _constant(f, x)
    y = _upfirdn2d_fake(x, f, numbers, gain)
    maps = x.shape[0] * x.shape[1]
    resampling = _resampling(f, numbers, gain)
    _run("upfirdn2d", x, _Upfirdn2d(x.data_ptr(), y.data_ptr(), maps, TYPES[x.dtype], resampling))
    return y


@torch.library.register_fake(_upfirdn2d)
def _upfirdn2d_fake(x: torch.Tensor, f: torch.Tensor | None, numbers: Sequence[int], gain: float) -> torch.Tensor:
    return x.new_empty([x.shape[0], x.shape[1], numbers[2], numbers[7]])


def _upfirdn2d_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, f, ctx.numbers, ctx.gain = inputs
    ctx.save_for_backward(f)


def _upfirdn2d_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    r = _from_numbers(f, ctx.numbers, ctx.gain)
    return upfirdn2d(grad, r.transposed()), None, None, None


torch.library.register_autograd(_upfirdn2d, _upfirdn2d_backward, setup_context=_upfirdn2d_setup)


# ----- filtered_lrelu -----------------------------------------------------------------------------------------------


def filtered_lrelu(x: torch.Tensor, b: torch.Tensor | None, layer: FilteredLReLU) -> torch.Tensor:
    """Filter images [B, C, H, W] with bias [C]; differentiable to any order with respect to both.

    Keeps two bits for each upsampled sample if there will be a gradient, nothing else.
    """
    b = _constant(b, x)
    remember = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    clamp = float("inf") if layer.clamp is None else layer.clamp
    return _filtered_lrelu(x, b, *_filters(layer), layer.slope, clamp, remember)[0]


def _filters(layer: FilteredLReLU) -> tuple[Any, ...]:
    """A layer's two resamplings as an op's schema can take them: fu, fd, numbers of both, gains of both."""
    return layer.up.f, layer.down.f, _numbers(layer.up), _numbers(layer.down), layer.up.gain, layer.down.gain


@_known_as("multiscale::filtered_lrelu")
def _filtered_lrelu(
    x: torch.Tensor,
    b: torch.Tensor | None,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    up_gain: float,
    down_gain: float,
    slope: float,
    clamp: float,
    remember: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Result and codes of the slopes; no codes unless they shall be remembered."""
    y, codes = _filtered_lrelu_fake(x, b, fu, fd, up, down, up_gain, down_gain, slope, clamp, remember)
    mode = REMEMBER if remember else ACTIVATE
    _run_filtered_lrelu(x, y, b, codes, (fu, up, up_gain), (fd, down, down_gain), mode, slope, clamp)
    return y, codes


@torch.library.register_fake(_filtered_lrelu)
def _filtered_lrelu_fake(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    _, _, _, up, down, *_, remember = arguments
    maps = [x.shape[0], x.shape[1]]
    y = x.new_empty([*maps, down[2], down[7]])
    shape = [*maps, up[2], _code_bytes(up[7], (up, down), x.device.type)] if remember else [0]
    # The CUDA kernels write all codes; the CPU's leave out those of samples on which no output depends.
    fresh = x.new_empty if x.device.type == "cuda" else x.new_zeros
    return y, fresh(shape, dtype=torch.uint8)


@_known_as("multiscale::filtered_lrelu_slopes")
def _multiply(
    x: torch.Tensor,
    codes: torch.Tensor,
    fu: torch.Tensor | None,
    fd: torch.Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    up_gain: float,
    down_gain: float,
    slope: float,
) -> torch.Tensor:
    """The layer with its activation replaced by the remembered slopes: linear in ``x``."""
    y = _multiply_fake(x, codes, fu, fd, up, down, up_gain, down_gain, slope)
    inf = float("inf")
    _run_filtered_lrelu(x, y, None, codes, (fu, up, up_gain), (fd, down, down_gain), MULTIPLY, slope, inf)
    return y


@torch.library.register_fake(_multiply)
def _multiply_fake(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    down = arguments[4]
    return x.new_empty([x.shape[0], x.shape[1], down[2], down[7]])


def _run_filtered_lrelu(
    x: torch.Tensor,
    y: torch.Tensor,
    b: torch.Tensor | None,
    codes: torch.Tensor,
    up: tuple[torch.Tensor | None, Sequence[int], float],
    down: tuple[torch.Tensor | None, Sequence[int], float],
    mode: int,
    slope: float,
    clamp: float,
) -> None:
    """Fill ``y``, and ``codes`` in the mode REMEMBER."""
    x, codes = x.contiguous(), codes.contiguous()
    fu, fd = _constant(up[0], x), _constant(down[0], x)
    call = _FilteredLReLU(
        *(_pointer(t) for t in (x, y, b, codes)),
        *(x.shape[0] * x.shape[1], x.shape[1], codes.shape[-1]),
        *(TYPES[x.dtype], mode, slope, clamp),
        *(_resampling(fu, *up[1:]), _resampling(fd, *down[1:])),
    )
    if has_tensor_cores(x.device) and x.dtype in HALF_TYPES and preference() != "scalar":
        _add_fragments(call, FilteredLReLU(_from_numbers(*up), _from_numbers(*down), slope, clamp))
    _run("filtered_lrelu", x, call)


def _add_fragments(call: _FilteredLReLU, layer: FilteredLReLU) -> None:
    """Put a layer's filters in the form that tensor cores want, if there is one; they are kept for good."""
    both = tensor_cores.fragments(layer)
    if both is not None:
        call.up_registers, call.down_registers = (_pointer(f.registers) for f in both)
        call.up_terms, call.down_terms = (f.terms for f in both)
        call.up_unit, call.down_unit = (f.unit for f in both)


def _filtered_lrelu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, _, fu, fd, *ctx.numbers, ctx.slope, _, _ = inputs
    ctx.save_for_backward(fu, fd, output[1])
    ctx.mark_non_differentiable(output[1])


def _filtered_lrelu_backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    dx = _transposed(ctx, grad)
    return dx, dx.sum([0, 2, 3], dtype=_calculation_type(dx)) if ctx.needs_input_grad[1] else None, *[None] * 9


def _multiply_setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, codes, fu, fd, *ctx.numbers, ctx.slope = inputs
    ctx.save_for_backward(fu, fd, codes)


def _multiply_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _transposed(ctx, grad), *[None] * 8


def _transposed(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    """The gradient that goes back through either op: the transposed filters the other way round, the same slopes."""
    fu, fd, codes = ctx.saved_tensors
    up, down, up_gain, down_gain = ctx.numbers
    layer = FilteredLReLU(_from_numbers(fu, up, up_gain), _from_numbers(fd, down, down_gain), ctx.slope, None)
    return _multiply(grad, codes, *_filters(layer.transposed()), ctx.slope)


torch.library.register_autograd(_filtered_lrelu, _filtered_lrelu_backward, setup_context=_filtered_lrelu_setup)
torch.library.register_autograd(_multiply, _multiply_backward, setup_context=_multiply_setup)
