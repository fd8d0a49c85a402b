"""A model's own functions, written out in place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from hwq.errors import Error
from hwq.exporters.functions import is_ours
from hwq.names import display_name

__all__ = ["inlined"]

# Nested calls multiply: a file of a kilobyte could ask for billions of nodes. Far above any real model.
MAX_NODES = 200_000

_Key = tuple[str, str, str]


def inlined(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The graph's nodes; a call of a function of the model becomes the function's body, except those that hwq wrote.

    Raises
    ------
    Error
        A function calls itself, or the calls expand beyond `MAX_NODES`.
    """
    if not model.functions:
        return list(model.graph.node)
    functions: dict[_Key, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (_domain(function.domain), function.name, function.overload)
        if key in functions:
            raise Error("a function is defined twice", where=f"function {function.domain}::{function.name}")
        if not is_ours(function):
            functions[key] = function
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken.update(tensor.name for tensor in model.graph.initializer)
    _require_finite(model.graph.node, functions)
    return list(_expanded(model.graph.node, functions, taken))


def _require_finite(nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto]) -> None:
    """Count what the calls expand to before anything is expanded.

    Raises
    ------
    Error
        A function calls itself, or there are more than `MAX_NODES` nodes.
    """
    counts: dict[_Key, int] = {}
    open_calls: set[_Key] = set()

    def count(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = _key(node)
            if key in open_calls:
                raise Error("a function calls itself", where=f"function {node.domain}::{node.op_type}")
            if key in functions and key not in counts:
                open_calls.add(key)
                counts[key] = count(functions[key].node)
                open_calls.discard(key)
            total += counts.get(key, 1)
        return total

    if count(nodes) > MAX_NODES:
        raise Error(f"the model's functions expand to more than {MAX_NODES} nodes", where="functions")


def _key(node: onnx.NodeProto) -> _Key:
    return (_domain(node.domain), node.op_type, node.overload)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _expanded(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto], taken: set[str]
) -> Iterator[onnx.NodeProto]:
    for index, node in enumerate(nodes):
        function = functions.get(_key(node))
        if function is None:
            yield node
        else:
            yield from _expanded(_body(node, function, taken, index), functions, taken)


def _body(call: onnx.NodeProto, function: onnx.FunctionProto, taken: set[str], index: int) -> list[onnx.NodeProto]:
    scope = call.name or f"{call.op_type}_{index}"
    if len(call.input) > len(function.input) or len(call.output) > len(function.output):
        raise Error(
            "a call has more operands than its function",
            where=f"node {scope}, function {function.domain}::{function.name}",
        )
    names = {"": ""}
    names.update(
        {formal: call.input[place] if place < len(call.input) else "" for place, formal in enumerate(function.input)}
    )
    names.update(
        {
            formal: call.output[place]
            for place, formal in enumerate(function.output)
            if place < len(call.output) and call.output[place]
        }
    )
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given.update({attribute.name: attribute for attribute in call.attribute})

    def renamed(name: str) -> str:
        if name not in names:
            fresh = f"{scope}/{name}"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            names[name] = fresh
        return names[name]

    body: list[onnx.NodeProto] = []
    for place, inner in enumerate(function.node):
        copy = onnx.NodeProto(
            op_type=inner.op_type,
            domain=inner.domain,
            overload=inner.overload,
            name=f"{scope}/{inner.name or f'{inner.op_type}_{place}'}",
        )
        copy.input.extend(renamed(name) for name in inner.input)
        copy.output.extend(renamed(name) if name else "" for name in inner.output)
        for attribute in inner.attribute:
            if not attribute.ref_attr_name:
                copy.attribute.append(attribute)
            elif attribute.ref_attr_name in given:
                actual = copy.attribute.add()
                actual.CopyFrom(given[attribute.ref_attr_name])
                actual.name = attribute.name
        body.append(copy)
    if any(attribute.ref_attr_name for node in body for attribute in node.attribute):
        raise Error("an attribute refers to another that is not there", where=f"function {display_name(function.name)}")
    return body
