"""The source form's value, node by node, Q and DQ included; and `infer_shapes`, which it builds on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hwq.errors import Error
from hwq.files import MAX_BYTES
from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.names import display_name
from hwq.ops import dims
from hwq.ops.application import evaluate_node
from hwq.ops.folding import fold
from hwq.ops.inference import infer_node, infer_shapes
from hwq.progress import Progress

__all__ = ["checked_feeds", "evaluate", "fold", "infer_shapes", "walk"]


def evaluate(
    graph: Graph,
    feeds: Mapping[str, Array],
    intermediates: bool = False,
    progress: Progress | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Array]:
    """Run a graph in source form.

    Parameters
    ----------
    graph : Graph
        Source form, with its weights.
    feeds : mapping of input name to array
    intermediates : bool
        Return every value that a node makes, not only the outputs. Otherwise a value is freed after its last reader.
    progress : callable, optional
        Called as ``progress(done, total, "evaluate: nodes")``.
    max_bytes : int
        Bound on the bytes that one node may make.

    Returns
    -------
    dict of name to array
        In `hwq.graph.carrier` of each tensor's type. Arrays may share memory with the graph or the feeds.

    Raises
    ------
    Error
        A missing, unknown or misshapen feed, or a node that cannot be computed.
    """
    from hwq.kernels import default_state  # here: an estimate folds constants with this room and needs no kernels

    found: dict[str, Array] = {name: data for name in graph.outputs if (data := graph.constant(name)) is not None}
    given = checked_feeds(graph, feeds)
    found.update({name: given[name] for name in graph.outputs if name in given})
    wanted = set(graph.outputs)
    with default_state():
        for done, (node, values) in enumerate(walk(graph, given, max_bytes=max_bytes), 1):
            found.update(
                {
                    name: value
                    for name, value in zip(node.outputs, values, strict=False)
                    if name and (intermediates or name in wanted)
                }
            )
            if progress is not None:
                progress(done, len(graph.nodes), "evaluate: nodes")
    return found if intermediates else {name: np.asarray(found[name], order="C") for name in graph.outputs}


def walk(graph: Graph, feeds: Mapping[str, Array], *, max_bytes: int = MAX_BYTES) -> Iterator[tuple[Node, list[Array]]]:
    """Yield each node with the values that it makes, in order, keeping no value longer than its last reader needs it.

    Raises
    ------
    Error
        As `evaluate`.
    """
    if graph.form != "source":
        raise Error(
            "this evaluates the source form only",
            where=f"graph {graph.name}",
            remedy="use hwq.compile or hwq.execute for lowered graphs",
        )
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    values: dict[str, Array] = checked_feeds(graph, feeds)
    for index, node in enumerate(graph.nodes):
        operands = [_value(graph, values, node, name) for name in node.inputs]
        described = [
            None
            if value is None
            else dataclasses.replace(graph.tensors[name], shape=tuple(value.shape), data=value, known_shape=True)
            for name, value in zip(node.inputs, operands, strict=True)
        ]
        _require_room(node, described, max_bytes)
        made = evaluate_node(node, operands, graph)
        values.update({name: value for name, value in zip(node.outputs, made, strict=False) if name and name in last})
        for name in node.inputs:
            if last.get(name) == index:
                values.pop(name, None)
        yield node, made


def _value(graph: Graph, values: Mapping[str, Array], node: Node, name: str) -> Array | None:
    if not name:
        return None
    if name in values:
        return values[name]
    data = graph.tensors[name].data
    if data is None:
        raise Error(
            "this weight has no values",
            where=f"node {node.name}, tensor {name}",
            why="the graph was built for cost only",
            remedy="load the model with its weights",
        )
    return data


def _require_room(node: Node, operands: Sequence[Tensor | None], max_bytes: int) -> None:
    """Raise where shapes do not fit, or the outputs would be larger than `max_bytes`."""
    size = 0
    for dtype, shape, known in infer_node(node, operands):
        if known and all(isinstance(dim, int) for dim in shape):
            count = carrier(dtype).itemsize
            for dim in shape:
                count *= int(dim)
            size += count
    if size > max_bytes:
        raise dims.fault(
            node,
            f"it would make {size} bytes, more than the bound of {max_bytes}",
            None,
            "raise --max-bytes (max_bytes=) if the model is what you think it is",
        )


def checked_feeds(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds as arrays, once each has the model's name, type and shape.

    Raises
    ------
    Error
        A name is missing or unknown, a type or shape differs, or two inputs disagree about an open dimension.
    """
    unknown = [name for name in feeds if name not in graph.inputs]
    missing = [name for name in graph.inputs if name not in feeds]
    if unknown or missing:
        raise Error(
            f"the model has no input {unknown[0]}" if unknown else "an input is missing",
            where=f"input {(unknown or missing)[0]}",
            remedy=f"feed {', '.join(display_name(name) for name in graph.inputs[:16])}",
        )
    symbols: dict[str, int] = {}
    given: dict[str, Array] = {}
    for name in graph.inputs:
        tensor, array = graph.tensors[name], np.asarray(feeds[name])
        if array.dtype != carrier(tensor.dtype):
            raise Error(
                f"the array is {array.dtype}, the model takes {tensor.dtype}",
                where=f"input {name}",
                remedy=f"convert it to {tensor.dtype}",
            )
        if tensor.known_shape:
            fits = array.ndim == len(tensor.shape) and all(
                (symbols.setdefault(dim, size) if isinstance(dim, str) else dim) == size
                for dim, size in zip(tensor.shape, array.shape, strict=True)
            )
            if not fits:
                raise Error(
                    f"the array has shape {list(array.shape)}, the model takes {list(tensor.shape)}",
                    where=f"input {name}",
                    why=f"open dimensions so far: {symbols}" if symbols else None,
                    remedy="give the input in the model's shape",
                )
        given[name] = array
    return given
