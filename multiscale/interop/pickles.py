"""Pickles of the published multiscale code, opened as ours without running anything that is in them.

Such a file is one pickle of a dict with ``G``, ``D``, ``G_ema``, ``augment_pipe`` and ``training_set_kwargs``. A network in it
is a call of ``torch_utils.persistence._reconstruct_persistent_obj`` with one dict ``{type, version, module_src, class_name,
state}``, whose ``module_src`` is a program that the published code would run, and whose ``state`` is the module's ``__dict__``.
Here that is read as data (:mod:`multiscale.interop.unpickler`): ``G_ema``'s tensors by their names, and its settings from the
states themselves, go to :func:`multiscale.interop.official.generator_from_official`. Nothing else of the file is looked at,
and what is not looked at is not even copied into memory.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dnnlib.errors import UserError, shown
from dnnlib.files import sha256
from dnnlib.reading import parsed, regular_size, short_reason
from multiscale.interop.official import generator_from_official
from multiscale.interop.unpickler import Built, PickleError, read_pickle
from multiscale.networks.generator import Generator

LICENCE = "Nvidia Source Code License (non-commercial)"
"""Of the code that wrote such files, which derives from StyleGAN3; their publisher may add terms."""

NAMES = frozenset(
    {
        "torch_utils.persistence._reconstruct_persistent_obj",
        "dnnlib.util.EasyDict",
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
        "torch.nn.modules.container.ModuleDict",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.ParameterDict",
        "torch.nn.modules.container.ParameterList",
        "torch.nn.modules.container.Sequential",
        "torch.Size",
        "torch.device",
        "torch.float16",
        "torch.float32",
        "torch.float64",
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
        ),
    }
)
"""All that a file may name; what they stand for is never imported, and none of them is called."""

MOST_MODULES = 1000
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of ``torch.save`` begins that is not a ZIP: its magic number, pickled."""

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """A generator of the published code."""

    generator: Generator
    """As ours: on the CPU, float32, in evaluation mode."""
    digest: str
    """SHA-256 of the file."""
    info: dict[str, Any]
    """Where it comes from, for a snapshot's facts."""


def load_published(path: str | Path) -> Published:
    """Open the mean generator ``G_ema`` of a published pickle. Nothing in the file is executed.

    Raises:
        UserError: the file is missing, truncated, asks for anything that such a file does not need, holds another kind of
            network (plain StyleGAN3 has no scales), or its tensors do not fit each other.
    """
    path = Path(path)
    regular_size(path, "the network")
    try:
        with open(path, "rb") as stream:
            data = (
                memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
                if stream.peek(1)
                else memoryview(b"")
            )
        digest = sha256(path)
    except OSError as error:
        raise UserError(f"Cannot read the network {path}: {error.strerror or error}.") from error
    failure = f"Cannot open the published network {path}: it {{reason}}."
    generator = parsed(lambda: parsed_pickle(lambda: _generator(data)), failure)
    source = {"file": path.name, "sha256": digest, "format": "pickle of the published code", "network": "G_ema"}
    return Published(generator, digest, {"source": source, "licence": LICENCE})


def parsed_pickle(parse: Callable[[], T]) -> T:
    """What ``parse()`` returns; whatever it raises becomes a :class:`PickleError` that ends a sentence."""
    try:
        return parse()
    except PickleError:
        raise
    except UserError as error:
        raise PickleError(f"does not hold together: {error}") from error
    except Exception as error:
        raise PickleError(f"is damaged ({short_reason(error)}); get it again") from error


def _generator(data: memoryview) -> Generator:
    file = read_pickle(data, NAMES)
    if not isinstance(file, dict) or "G_ema" not in file:
        raise PickleError("holds no network named G_ema; give a network-snapshot of the published multiscale code")
    network = _module(file["G_ema"])
    synthesis = network.child("synthesis")
    features = synthesis.child("input")
    if "n_bins" not in features.state:
        raise PickleError(
            f"is a {_kind(network, synthesis)}, which has no scales to fly through; give a network of the multiscale code"
        )
    tensors = _Tensors(len(data))
    state = dict(tensors.of(network))
    layers = [synthesis.child(name) for name in synthesis.children if "conv_kernel" in synthesis.child(name).state]
    resampled = [layer for layer in layers if layer.integer("up_factor") > 1]
    if not resampled:
        raise PickleError("holds a network without layers that resample; it is not a generator of the multiscale code")
    settings = {
        "num_critical": synthesis.integer("num_critical"),
        "margin": synthesis.integer("margin_size"),
        "output_scale": synthesis.number("output_scale"),
        "num_half_res": synthesis.integer("num_fp16_res"),
        "conv_kernel": layers[0].integer("conv_kernel"),
        "conv_clamp": layers[0].number("conv_clamp"),
        "filter_size": resampled[0].integer("up_taps") // resampled[0].integer("up_factor"),
        "radial_filters": any(bool(layer.get("down_radial")) for layer in layers),
        "bin_offset": features.number("bin_transform_offset"),
        "blend_offset": features.number("bin_blend_offset"),
        "blend_width": features.number("bin_blend_width"),
    }
    octaves = _mapping(network.get("scale_mapping_kwargs")).get("scale_mapping_max")
    return generator_from_official(
        state,
        img_resolution=network.integer("img_resolution"),
        channel_base=_channel_base(network, synthesis),
        channel_max=len(state.get("synthesis.input.freqs", ())),
        n_bins=features.integer("n_bins"),
        octaves=math.floor(_number(octaves)),
        z_dim=network.integer("z_dim"),
        w_dim=network.integer("w_dim"),
        settings=settings,
        features=_feature_order(features, tensors),
    )


@dataclass(frozen=True)
class _Module:
    """A module of the published code: its class, and its ``__dict__``."""

    kind: str
    state: Mapping[str, Any]

    @property
    def children(self) -> Mapping[str, Any]:
        return _mapping(self.get("_modules"))

    def child(self, name: str) -> _Module:
        children = self.children
        if name not in children:
            raise PickleError(
                f"holds a {shown(self.kind)} without {shown(name)}; it is not a generator of the multiscale code"
            )
        return _module(children[name])

    def get(self, name: str) -> Any:
        if name not in self.state:
            raise PickleError(
                f"does not say {shown(name)} of its {shown(self.kind)}; it is not a generator of the multiscale code"
            )
        return self.state[name]

    def number(self, name: str) -> float:
        return _number(self.get(name))

    def integer(self, name: str) -> int:
        value = self.number(name)
        if value != int(value):
            raise PickleError(f"says {name}={value:g} of its {shown(self.kind)}, which must be a whole number")
        return int(value)


def _module(node: Any) -> _Module:
    """The module that a call of the published ``_reconstruct_persistent_obj``, or one of PyTorch's containers, describes."""
    if isinstance(node, Built) and node.name.name == "_reconstruct_persistent_obj" and len(node.arguments) == 1:
        meta = _mapping(node.arguments[0])
        state = _mapping(meta.get("state"))
        if meta.get("type") == "class" and isinstance(meta.get("class_name"), str):
            return _Module(meta["class_name"], state)
    if isinstance(node, Built) and node.name.module == "torch.nn.modules.container":
        return _Module(node.name.name, _mapping(node.state))
    raise PickleError("holds something else where a network should be")


def _mapping(node: Any) -> Mapping[Any, Any]:
    """A dict, an EasyDict or an OrderedDict."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Built) and node.name.name in ("EasyDict", "OrderedDict"):
        return node.items
    raise PickleError("holds something else where a mapping should be")


def _number(node: Any) -> float:
    """A number of Python's or NumPy's."""
    if isinstance(node, Built) and node.name.name == "scalar" and len(node.arguments) == 2:
        value = np.frombuffer(node.arguments[1], _dtype(node.arguments[0]))
        node = value[0].item() if len(value) == 1 else None
    if not isinstance(node, bool | int | float) or not abs(node) < 1e9:
        raise PickleError("holds something else where a number should be")
    return float(node)


def _dtype(node: Any) -> np.dtype[Any]:
    """One of NumPy's numbers; its description is a text such as ``f8``, and its state begins with (3, byte order)."""
    kind = node.arguments[0] if isinstance(node, Built) and node.name.name == "dtype" and node.arguments else None
    order = node.state[1] if isinstance(node, Built) and isinstance(node.state, tuple) and len(node.state) > 1 else "<"
    if not isinstance(kind, str) or not re.fullmatch(r"[fiu][1248]|b1", kind) or order not in ("<", ">", "|"):
        raise PickleError("holds a number of a type that a published network does not have")
    return np.dtype(f"{order}{kind}")


class _Tensors:
    """Reads tensors, no more numbers in all than the file has bytes: a file could name the same ones again and again."""

    def __init__(self, file_bytes: int) -> None:
        self.left = file_bytes

    def of(self, network: _Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters and buffers by their names, but those of the input's copies in the layers."""
        waiting: list[tuple[str, _Module]] = [("", network)]
        for _ in range(MOST_MODULES):
            if not waiting:
                return
            prefix, module = waiting.pop()
            for kind in ("_parameters", "_buffers"):
                for name, node in _mapping(module.get(kind)).items():
                    if node is not None:
                        yield f"{prefix}{name}", self.read(node)
            if len(module.children) + len(waiting) > MOST_MODULES:
                break
            for name, node in module.children.items():
                if name != "synthesis_input" and node is not None:
                    waiting.append((f"{prefix}{name}.", _module(node)))
        raise PickleError(f"holds more than {MOST_MODULES} modules")

    def read(self, node: Any) -> torch.Tensor:
        """What ``_rebuild_parameter(tensor, ...)`` or ``_rebuild_tensor_v2(storage, offset, size, stride, ...)`` describe."""
        if isinstance(node, Built) and node.name.name == "_rebuild_parameter" and node.arguments:
            node = node.arguments[0]
        if not (isinstance(node, Built) and node.name.name == "_rebuild_tensor_v2" and len(node.arguments) >= 4):
            raise PickleError("holds something else where a tensor should be")
        storage, offset, size, stride = node.arguments[:4]
        values = self.storage(storage)
        whole = [offset, *size, *stride]
        if any(type(number) is not int or not 0 <= number < 1 << 48 for number in whole) or len(size) != len(stride):
            raise PickleError("holds a tensor that does not fit its values; it is damaged: get it again")
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        count = math.prod(size)
        if count > len(values) or (count and last >= len(values)):
            raise PickleError("holds a tensor that does not fit its values; it is damaged: get it again")
        return values.as_strided(size, stride, offset).clone() if count else values.new_empty(size)

    def storage(self, node: Any) -> torch.Tensor:
        """The numbers [n] of a file of ``torch.save`` within the file."""
        blob = node.arguments[0] if isinstance(node, Built) and len(node.arguments) == 1 else None
        if not isinstance(blob, memoryview) or blob[: len(_LEGACY_TORCH)] != _LEGACY_TORCH:
            raise PickleError("holds something else where the values of a tensor should be")
        self.left -= len(blob)
        if self.left < 0:
            raise PickleError("names the same values again and again; it is damaged: get it again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's, of the kind of storage that such files have
                storage = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
                return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())
        except Exception as error:
            raise PickleError("holds a tensor whose values cannot be read; it is damaged: get it again") from error


def _feature_order(features: _Module, tensors: _Tensors) -> list[torch.Tensor] | None:
    """Indices into the features of those at the input and behind each layer, where the file has them."""
    split = features.state.get("split_indices")
    return [tensors.read(part).long() for part in split] if isinstance(split, tuple | list) else None


def _channel_base(network: _Module, synthesis: _Module) -> int:
    """As the network was configured; widths come from the tensors, so this is for the record."""
    for module in (synthesis, network):
        if "channel_base" in (kwargs := _mapping(module.get("_init_kwargs"))):
            return int(_number(kwargs["channel_base"]))
    return 32768


def _kind(network: _Module, synthesis: _Module) -> str:
    is_alias_free = "freqs" in _mapping(synthesis.child("input").get("_buffers"))
    return "plain StyleGAN3" if is_alias_free else f"network of another kind ({shown(network.kind)})"
