"""Traced graphs without what tracing leaves and nobody needs: operators on constants, casts that change nothing, long names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

SMALL = 1 << 12
"""Numbers of a constant that a folded operator may give."""


def simplify(model: Any, weights: Collection[str]) -> None:
    """Simplify an ``onnx.ModelProto`` in place; it computes the same.

    Args:
        model: As traced.
        weights: Initializers that stay as they are, with their names; what is computed from them is left to the runtime.
    """
    _fold(model, weights)
    _drop_copies(model)
    _narrow(model.graph)
    _shorten(model.graph, {*weights, *(value.name for value in (*model.graph.input, *model.graph.output))})


def _fold(model: Any, weights: Collection[str]) -> None:
    """Compute what follows from constants alone."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph, opsets = model.graph, {opset.domain: opset.version for opset in model.opset_import}
    known: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if tensor.name not in weights:
            known[tensor.name] = numpy_helper.to_array(tensor)
    left = []
    for node in graph.node:
        if all(name in known or not name for name in node.input):
            feeds = {name: known[name] for name in node.input if name}
            values: Any = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
            if sum(value.size for value in values) <= SMALL:
                known |= zip(node.output, values, strict=True)
                continue
        left.append(node)
    used = {name for node in left for name in node.input}
    constants: dict[Any, str] = {}
    same: dict[str, str] = {}
    for name in sorted(known.keys() & used):
        value = known[name]
        same[name] = constants.setdefault((value.dtype.str, value.shape, value.tobytes()), name)
    for node in left:
        node.input[:] = [same.get(name, name) for name in node.input]
    kept = [tensor for tensor in graph.initializer if tensor.name in weights]
    kept += [numpy_helper.from_array(known[name], name) for name in constants.values()]
    _replace(graph.node, left)
    _replace(graph.initializer, kept)


def _drop_copies(model: Any) -> None:
    """Casts to the type that a value has, and what stands for an equal weight."""
    import onnx

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    source: dict[str, str] = {}
    left = []
    for node in graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        cast = node.op_type == "Cast" and types.get(node.input[0]) == node.attribute[0].i
        if cast or node.op_type == "Identity":
            source[node.output[0]] = node.input[0]
        else:
            left.append(node)
    _replace(graph.node, left)


def _narrow(graph: Any) -> None:
    """Constants that are places to gather from, in 32 bits."""
    from onnx import TensorProto, numpy_helper

    gathered = {name for node in graph.node if node.op_type == "Gather" for name in node.input[1:]}
    other = {name for node in graph.node for name in node.input[: 1 if node.op_type == "Gather" else None]}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT64 and tensor.name in gathered - other:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name))


def _shorten(graph: Any, kept: Collection[str]) -> None:
    """Other names for all values but those ``kept``: they are half of a graph without its weights."""
    names: dict[str, str] = {"": ""}  # an input that is left out

    def short(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"{len(names):x}")

    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    del graph.value_info[:]


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)
