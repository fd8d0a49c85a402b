"""Reading the plan that a quantized graph obeys: every stored tensor as a rule with its exact scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.dialect import find
from hwq.errors import Error, NotSupportedYet
from hwq.graph import BITS, Graph, Quantization, Tensor
from hwq.names import display_name
from hwq.plan_operators import RUN_TIME, quantized_inside, with_operators

__all__ = ["exact", "float_name", "literal", "read", "stored_as_parameter"]

# The suffix that hwq and onnxruntime's tool give to stored tensors.
_SUFFIX = re.compile(r"_quantized(_\d+)?$")


def read(graph: Graph) -> dict[str, Any]:
    """The plan of a quantized graph, as the plain values of a plan file.

    Everything is float by default; each stored weight and activation has a rule of its own, named by the tensor of the
    float model, that gives type, granularity, scale and zero point. int32 biases have none: their scale follows from
    the others.

    Raises
    ------
    Error
        The graph is not quantized, or its scales are unset.
    NotSupportedYet
        Something that a plan cannot say yet: activations per channel, one value stored twice.
    """
    graph = with_operators(graph)
    inside = dict(quantized_inside(graph))
    stored = [
        tensor for tensor in graph.tensors.values() if tensor.quantization is not None and _used(graph, tensor.name)
    ]
    if not stored:
        raise Error(
            "the graph is not quantized, so there is no plan to read",
            where=f"graph {graph.name}",
            remedy="give a quantized graph; Plan.uniform makes a plan for a float one",
        )
    eight = next((tensor for tensor in stored if tensor.dtype.startswith("float8")), None)
    if eight is not None:
        raise NotSupportedYet(
            f"reading a plan from values stored as {eight.dtype}", where=f"tensor {display_name(eight.name)}",
            why="a plan stores integers, or floats of 16 bits and more", remedy="the model itself loads and runs",
        )  # fmt: skip
    rules: list[dict[str, Any]] = []
    seen: dict[str, Tensor] = {}
    for tensor in stored:
        assert tensor.quantization is not None
        name = float_name(graph, tensor.name)
        if stored_as_parameter(graph, tensor.name):
            if tensor.dtype in {"int32", "int64"}:
                continue
            match = {"tensor": literal(name)}
            if seen.setdefault(name, tensor) is not tensor:
                # Two stored versions of one weight: the later one is told by its reader.
                match["name"] = literal(_reader(graph, tensor.name))
            rules.append({"match": match, "weights": _weights(tensor, tensor.quantization)})
            continue
        if seen.setdefault(name, tensor) is not tensor or (source := _stored_again(graph, tensor)) is not None:
            first = seen[name] if seen[name] is not tensor else source
            if first is not None and _same(first, tensor):
                continue  # a pair of Q and DQ for each reader
            raise NotSupportedYet(
                "reading a plan from a graph that stores one value in two types",
                where=f"tensor {display_name(tensor.name)}",
                remedy="keep the plan that the graph was made from",
            )
        rules.append({"match": {"tensor": literal(name)}, "activations": _activations(tensor, tensor.quantization)})
    rules += [{"match": {"tensor": literal(name)}, "activations": dict(values)} for name, values in inside.items()]
    return {
        "schema": 1, "dialect": _dialect(graph, stored),
        "default": {"weights": {"dtype": "float32"}, "activations": {"dtype": "float32", "mode": "float"}},
        "layers": rules,
    }  # fmt: skip


def _stored_again(graph: Graph, tensor: Tensor) -> Tensor | None:
    """The stored tensor whose DequantizeLinear a QuantizeLinear reads to make `tensor`."""
    producer = graph.producers.get(tensor.name)
    behind = None if producer is None or producer.op != "QuantizeLinear" else graph.producers.get(producer.inputs[0])
    return None if behind is None or behind.op != "DequantizeLinear" else graph.tensors[behind.inputs[0]]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are stored in one type with one scale and zero point."""
    first, second = one.quantization, other.quantization
    if first is None or second is None or one.dtype != other.dtype:
        return False
    if not (first.known and second.known):
        return first.dynamic and second.dynamic
    return first.scales().tobytes() == second.scales().tobytes() and np.array_equal(
        first.zero_points(), second.zero_points()
    )


def _dialect(graph: Graph, stored: Sequence[Tensor]) -> str:
    """The graph's dialect; where that is ort and has no kernels for these types (it runs such a file in floats), hwq, or
    ort-unfused where that has none either.
    """
    dialect = find(graph.dialect)
    weights = {one.dtype for one in stored if stored_as_parameter(graph, one.name)} - {"int32", "int64"}
    activations = {one.dtype for one in stored if not stored_as_parameter(graph, one.name)}
    known = activations <= dialect.activation_dtypes and (not activations or weights <= dialect.weight_dtypes)
    wider = find("hwq")
    taken = activations <= wider.activation_dtypes and weights <= wider.weight_dtypes
    if graph.dialect != "ort" or known:
        return graph.dialect
    return "hwq" if taken else "ort-unfused"


def float_name(graph: Graph, stored: str) -> str:
    """The float model's name of a stored tensor: what its QuantizeLinear reads, a model output's own name, or the
    name without suffix.
    """
    producer = graph.producers.get(stored)
    for reader in graph.consumers.get(stored, ()):
        if reader.op == "DequantizeLinear" and reader.outputs[0] in graph.outputs:
            return reader.outputs[0]
    if producer is not None and producer.op in {"QuantizeLinear", *RUN_TIME}:
        source = graph.producers.get(producer.inputs[0])
        # A model of 16-bit floats reads its inputs through a Cast.
        cast = source is not None and source.op == "Cast" and source.inputs[0] in graph.inputs
        return source.inputs[0] if source is not None and cast else producer.inputs[0]
    return _SUFFIX.sub("", stored)


def stored_as_parameter(graph: Graph, name: str) -> bool:
    """Whether a stored tensor is a constant: given as integers, or as floats behind a QuantizeLinear of their own."""
    producer = graph.producers.get(name)
    if producer is not None and producer.op == "QuantizeLinear":
        return graph.constant(producer.inputs[0]) is not None
    return producer is None and name not in graph.inputs


def _used(graph: Graph, name: str) -> bool:
    return name in graph.consumers or name in graph.outputs


def _reader(graph: Graph, stored: str) -> str:
    """The operator that reads a stored weight, through its DequantizeLinear where there is one."""
    node = graph.consumers[stored][0]
    if node.op == "DequantizeLinear" and node.outputs[0] in graph.consumers:
        node = graph.consumers[node.outputs[0]][0]
    return node.name


def literal(name: str) -> str:
    """A glob that fits `name` only."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _weights(tensor: Tensor, how: Quantization) -> dict[str, Any]:
    granularity: Any = {"group": how.block} if how.block is not None else "tensor" if how.axis is None else "channel"
    return {
        "dtype": tensor.dtype,
        "granularity": granularity,
        "symmetric": _symmetric(tensor, how),
        **_values(tensor, how, True),
    }


def _activations(tensor: Tensor, how: Quantization) -> dict[str, Any]:
    if how.dynamic:
        return {"dtype": tensor.dtype, "mode": "dynamic", "symmetric": how.zero_point is None}
    if how.axis is not None:
        raise NotSupportedYet(
            "activations with one scale a channel",
            where=f"tensor {display_name(tensor.name)}",
            remedy="plans give activations one scale",
        )
    return {
        "dtype": tensor.dtype,
        "mode": "static",
        "symmetric": _symmetric(tensor, how),
        **_values(tensor, how, False),
    }


def _symmetric(tensor: Tensor, how: Quantization) -> bool:
    """Whether every zero point is the middle of the type."""
    middle = (1 << (BITS[tensor.dtype] - 1)) if tensor.dtype.startswith("u") else 0
    return bool((_zero_points(tensor, how) == middle).all())


def _zero_points(tensor: Tensor, how: Quantization) -> NDArray[np.int32]:
    if not how.known:
        raise Error(
            "this tensor's scale is unset",
            where=f"tensor {display_name(tensor.name)}",
            why="the graph was planned for cost only, or the file computes the scale",
            remedy="read the plan from a calibrated graph",
        )
    return how.zero_points()


def _values(tensor: Tensor, how: Quantization, weight: bool) -> dict[str, Any]:
    zeros = [int(value) for value in _zero_points(tensor, how).reshape(-1)]
    if (how.scales() == 0.0).any() or (how.scales().min() < 0.0 and not weight):
        raise NotSupportedYet(
            f"reading a plan from {'activations with ' if not weight else ''}scales of 0 or less",
            where=f"tensor {display_name(tensor.name)}",
            remedy="the model itself loads and runs",
        )
    scales = [exact(value) for value in how.scales().reshape(-1)]
    found: dict[str, Any] = {"scale": scales[0] if how.scales().ndim == 0 else scales}
    if any(zeros):
        found["zero_point"] = zeros[0] if how.scales().ndim == 0 else zeros
    return found


def exact(value: np.float32) -> float:
    """The shortest decimal that reads back to the same float32 bits, through float64."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)
