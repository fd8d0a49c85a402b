"""Shapes and types of every value, with open dimensions; computations about shapes become constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor, carrier
from hwq.names import display_name
from hwq.ops import dims
from hwq.ops.application import evaluate_node
from hwq.ops.base import Inferred, lookup
from hwq.ops.views import shape_slice

__all__ = ["FOLDED_ELEMENTS", "infer_node", "infer_shapes", "pruned", "require_bound"]

# A value with more elements is data, not a computation about shapes, and is left to run.
FOLDED_ELEMENTS = 4096
# Operators whose value says how numbers are stored: never folded away here.
_KEPT = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "DEQUANTIZE", "QUANTIZE"})
# Operators that only move elements, and so work on vectors of dimensions that are numbers and symbols alike.
_MOVERS = frozenset({"Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Identity"})


def infer_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]] | None = None, batch: int | None = None) -> Graph:
    """Bind open dimensions, infer every shape and type, and fold computations about shapes into constants.

    Parameters
    ----------
    graph : Graph
    shapes : mapping of input name to shape, optional
        Shapes of some or all inputs; a symbol that they bind is bound everywhere.
    batch : int, optional
        The first dimension of every input that is not in `shapes`.

    Returns
    -------
    Graph
        Dimensions that stay open keep their symbol. ``source`` notes which matrices were ``folded`` (a runtime without
        optimization computes them), and what follows from ``overridable`` initializers.

    Raises
    ------
    Error
        An unknown input, a rank or fixed dimension that differs, or a node whose operands do not fit.
    """
    if graph.form != "source":
        raise Error(
            "shapes are bound in source form only", where=f"graph {graph.name}", remedy="infer shapes, then lower"
        )
    tensors = dict(graph.tensors)
    bound = _bound_inputs(graph, shapes or {}, batch)
    tensors.update(bound)
    fixed = _fixed_batches(graph, bound)
    if batch is not None and len(fixed) == 1:
        tensors.update(_rebatched(graph, fixed[0], batch))
    try:
        return _propagated(graph, tensors)
    except Error as error:
        if not fixed:
            raise
        raise Error(
            f"the model was exported with batch {fixed[0]} and cannot run with {batch}",
            where=error.where,
            why=error.what,
            remedy=f"give batch {fixed[0]} (--batch {fixed[0]}), or export it with an open batch dimension",
        ) from error


def require_bound(graph: Graph) -> None:
    """Raise where values have no size yet because inputs have open dimensions; what only the data decide is left alone.

    Raises
    ------
    Error
        Naming the inputs and what to give for them.
    """
    made = [graph.tensors[name] for node in graph.nodes for name in node.outputs if name]
    given = [graph.tensors[name] for name in graph.inputs]
    still = [one for one in given if one.known_shape and not one.concrete]
    if not still or all(one.concrete for one in made):
        return
    names = [f"{one.name} {list(one.shape)}" for one in still[:8]]
    wanted = [f"{one.name}={','.join(map(str, one.shape))}" for one in still[:8]]
    raise Error(
        f"the shape of {'an input' if len(still) == 1 else 'inputs'} still has open dimensions",
        where=f"graph {graph.name}",
        why=", ".join(names),
        remedy=f"put numbers for them: --shape {' --shape '.join(wanted)}, or hwq.load(..., shapes={{input: shape}})",
    )


def _propagated(graph: Graph, tensors: dict[str, Tensor]) -> Graph:
    """Shapes, types and shape computations of every node, given those of the inputs."""
    values: dict[str, Array] = {name: tensor.data for name, tensor in tensors.items() if tensor.data is not None}
    kept: list[Node] = []
    folded = [str(name) for name in graph.source.get("folded", ())]
    overridable = [str(name) for name in graph.source.get("overridable", ())]
    for node in graph.nodes:
        operands = [_operand(tensors, values, name) for name in node.inputs]
        inferred = infer_node(node, operands)
        for name, (dtype, shape, known) in zip(node.outputs, inferred, strict=False):
            if name:
                stated = tensors[name]
                if not known and stated.known_shape and stated.dtype == dtype:
                    shape, known = stated.shape, True
                tensors[name] = dataclasses.replace(stated, dtype=dtype, shape=shape, known_shape=known, data=None)
        found = _value(graph, node, operands, [tensors[name] if name else None for name in node.outputs])
        if found is None:
            kept.append(node)
            continue
        values.update({name: value for name, value in zip(node.outputs, found, strict=False) if name})
        if any(
            value.dtype == object and tensors[name].dtype != "string"
            for name, value in zip(node.outputs, found, strict=False)
            if name
        ):
            kept.append(node)  # partly symbolic: the node stays, its readers know what it will say
            continue
        for name, value in zip(node.outputs, found, strict=False):
            if name:
                tensors[name] = dataclasses.replace(
                    tensors[name], shape=tuple(value.shape), known_shape=True, data=value
                )
        folded += [name for name, value in zip(node.outputs, found, strict=False) if name and value.ndim > 1]
        if not set(overridable).isdisjoint(node.inputs):
            overridable += [name for name in node.outputs if name]
    notes = {key: tuple(names) for key, names in (("folded", folded), ("overridable", overridable)) if names}
    return pruned(graph.replace(nodes=kept, tensors=tensors.values(), source={**graph.source, **notes}))


def pruned(graph: Graph) -> Graph:
    """The graph without constants and values that nothing mentions."""
    used = {*graph.inputs, *graph.outputs}
    for node in graph.nodes:
        used.update(node.inputs, node.outputs)
    for name in tuple(used):
        quantization = graph.tensors[name].quantization if name in graph.tensors else None
        if quantization is not None:
            used.update(part for part in (quantization.scale, quantization.zero_point) if isinstance(part, str))
    if all(name in used for name in graph.tensors):
        return graph
    return graph.replace(tensors=[tensor for tensor in graph.tensors.values() if tensor.name in used])


def infer_node(node: Node, operands: Sequence[Tensor | None]) -> list[Inferred]:
    """`Op.infer` with every failure told as an `Error` about the node."""
    op = lookup(node)
    try:
        inferred = op.infer(node, operands)
    except Error:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, ZeroDivisionError) as error:
        raise dims.fault(node, "its operands or attributes do not fit", f"{type(error).__name__}: {error}") from error
    if len([name for name in node.outputs if name]) > len(inferred):
        raise dims.fault(node, f"it has {len(node.outputs)} outputs, the operator makes {len(inferred)}")
    return inferred


def _operand(tensors: Mapping[str, Tensor], values: Mapping[str, Array], name: str) -> Tensor | None:
    if not name:
        return None
    tensor = tensors[name]
    return tensor if tensor.data is not None or name not in values else dataclasses.replace(tensor, data=values[name])


def _value(
    graph: Graph, node: Node, operands: Sequence[Tensor | None], made: Sequence[Tensor | None]
) -> list[Array] | None:
    """The node's outputs where they follow from shapes and constants alone: numbers, or numbers and symbols."""
    if (
        node.op in _KEPT
        or "states" in node.attributes
        or any(tensor is not None and tensor.concrete and tensor.elements > FOLDED_ELEMENTS for tensor in made)
    ):
        return None
    if node.kind == "tflite::SHAPE":
        (x,) = operands
        return [np.array(x.shape, made[0].dtype)] if x is not None and x.concrete and made[0] is not None else None
    if node.kind == "tflite::RANK":
        (x,) = operands
        return [np.array(len(x.shape), np.int32)] if x is not None and x.known_shape else None
    if node.op in {"Shape", "Size"} and not node.domain:
        (x,) = operands
        if x is None or not x.known_shape:
            return None
        return (
            [_numbers([dims.product(x.shape)], ())]
            if node.op == "Size"
            else [_numbers(list(x.shape[shape_slice(node)]))]
        )
    if not operands or any(tensor is not None and tensor.data is None for tensor in operands):
        return None
    given = [None if tensor is None else tensor.data for tensor in operands]
    if any(
        value is not None and value.dtype == object and tensor is not None and tensor.dtype != "string"
        for value, tensor in zip(given, operands, strict=True)
    ):
        return _symbolic(node, given)
    if not all(tensor is None or tensor.concrete for tensor in made):
        return None
    return evaluate_node(node, given, graph)


def _numbers(found: Sequence[Dim], shape: Shape | None = None) -> Array:
    """int64 where every dimension is a number, else an object array of numbers and symbols."""
    if all(isinstance(dim, int) for dim in found):
        array: Array = np.array(found, np.int64)
    else:
        array = np.empty(len(found), object)
        array[:] = list(found)
    return array if shape is None else array.reshape([int(dim) for dim in shape])


def _symbolic(node: Node, given: Sequence[Array | None]) -> list[Array] | None:
    """A computation on dimensions of which some are symbols; None where its value is not certain."""
    first = given[0]
    if first is None or node.domain:
        return None
    if node.op == "Cast":
        return [first] if node.attributes.get("to") in {"int64", "int32"} else None
    if node.op in _MOVERS:
        if any(value is not None and value.dtype == object for value in given[1:]) and node.op != "Concat":
            return None
        return [_settled(value) for value in lookup(node).evaluate(node, given)]
    if node.op == "Where" and first.dtype == np.bool_ and len(given) == 3:
        return [_settled(np.where(first, given[1], given[2]))]  # type: ignore[arg-type]
    if node.op in {"Add", "Sub", "Mul", "Div", "Equal"} and len(given) == 2 and given[1] is not None:
        pairs = np.broadcast(first, given[1])
        if pairs.size > 64:
            return None
        found = [_combined(node.op, _dim(a), _dim(b)) for a, b in pairs]
        if any(dim is None for dim in found):
            return None
        if node.op == "Equal":
            return [np.array(found, np.bool_).reshape(pairs.shape)]
        return [_numbers([dim for dim in found if dim is not None], pairs.shape)]
    return None


def _dim(value: Any) -> Dim:
    return value if isinstance(value, str) else int(value)


def _combined(op: str, a: Dim, b: Dim) -> Dim | None:
    """The result where it is certain. Equal is 1 or 0; a dimension never equals a negative number, such as Expand's -1."""
    if op == "Equal":
        if isinstance(a, int) and isinstance(b, int):
            return int(a == b)
        return 1 if a == b else 0 if any(isinstance(dim, int) and dim < 0 for dim in (a, b)) else None
    if op == "Mul":
        return dims.product([a, b])
    if op == "Div":
        return dims.quotient([a], [b])
    if op == "Add":
        return (
            dims.offset(a, b) if isinstance(b, int) else dims.offset(b, a) if isinstance(a, int) else dims.total([a, b])
        )
    return dims.offset(a, -b) if isinstance(b, int) else 0 if a == b else None


def _settled(value: Any) -> Array:
    """An object array (or the one element that NumPy took out of it); as int64 where it holds only numbers."""
    whole: Array = np.empty((), object)
    if isinstance(value, np.ndarray):
        whole = value
    else:
        whole[()] = value
    if whole.dtype == object and all(isinstance(dim, (int, np.integer)) for dim in whole.ravel()):
        return whole.astype(np.int64)
    return whole


def _bound_inputs(graph: Graph, shapes: Mapping[str, Sequence[int]], batch: int | None) -> dict[str, Tensor]:
    unknown = [name for name in shapes if name not in graph.inputs]
    if unknown:
        raise Error(
            "the model has no such input",
            where=f"input {unknown[0]}",
            remedy=f"its inputs are {', '.join(display_name(name) for name in graph.inputs[:16])}",
        )
    symbols: dict[str, int] = {}
    wanted: dict[str, list[Dim]] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        stated = list(tensor.shape)
        if name in shapes:
            stated = _stated(tensor, shapes[name])
            for old, new in zip(tensor.shape, stated, strict=False):
                _bind(symbols, old, int(new), tensor)
        elif batch is not None and tensor.known_shape and stated:
            if isinstance(stated[0], str):
                _bind(symbols, stated[0], batch, tensor)
            stated[0] = batch
        wanted[name] = stated
    if batch is not None and batch < 1:
        raise Error(f"the batch {batch} is not positive", where="batch")
    return {
        name: dataclasses.replace(
            graph.tensors[name],
            known_shape=graph.tensors[name].known_shape or name in shapes,
            shape=tuple(symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in shape),
        )
        for name, shape in wanted.items()
    }


def _stated(tensor: Tensor, shape: Sequence[int]) -> list[Dim]:
    stated = [int(dim) for dim in shape]
    fits = not tensor.known_shape or (
        len(stated) == len(tensor.shape)
        and all(isinstance(old, str) or old == new for old, new in zip(tensor.shape, stated, strict=True))
    )
    if not fits or any(dim < 0 for dim in stated):
        raise Error(
            f"the shape {stated} does not fit the model's {list(tensor.shape)}",
            where=f"input {tensor.name}",
            why="only open dimensions can be bound, to numbers that are not negative",
            remedy="export the model with open dimensions, or give its own shape",
        )
    return list(stated)


def _bind(symbols: dict[str, int], old: Dim, new: int, tensor: Tensor) -> None:
    if isinstance(old, str) and symbols.setdefault(old, new) != new:
        raise Error(
            f"the dimension {old} would be both {symbols[old]} and {new}",
            where=f"input {tensor.name}",
            remedy="give one value to inputs that share a dimension",
        )


def _fixed_batches(graph: Graph, bound: Mapping[str, Tensor]) -> list[int]:
    """First dimensions that the file fixes and the caller asks to change."""
    found: dict[int, None] = {}
    for name, tensor in bound.items():
        old = graph.tensors[name].shape[:1]
        if old and isinstance(old[0], int) and tensor.shape[:1] != old:
            found[old[0]] = None
    return list(found)


def _rebatched(graph: Graph, old: int, batch: int) -> dict[str, Tensor]:
    """Targets of Reshape, Expand and Resize that repeat a fixed batch, with the new one in its place.

    A model exported with a fixed batch says it in its inputs and again in every target that starts with it.
    """
    changed: dict[str, Tensor] = {}
    for node in graph.nodes:
        place = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op, 0)
        if not place or node.domain or len(node.inputs) <= place:
            continue
        target, x = graph.tensors[node.inputs[place]], graph.tensors[node.inputs[0]]
        if target.data is None or target.data.ndim != 1 or not target.data.size or x.data is not None:
            continue
        if int(target.data[0]) == old and x.known_shape and x.shape[:1] == (old,):
            data = np.array(target.data, carrier(target.dtype))
            data[0] = batch
            changed[target.name] = dataclasses.replace(target, data=data)
    return changed
