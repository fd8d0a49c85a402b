"""A model's own functions, written out in place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from hwq.errors import Error
from hwq.names import display_name

__all__ = ["inlined"]

# Nested calls multiply: a file of a kilobyte could ask for billions of nodes.
MAX_DEPTH = 32
MAX_NODES = 1_000_000

_Key = tuple[str, str, str]


def inlined(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The graph's nodes; a call of a function of the model becomes the function's body.

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
        functions[key] = function
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken.update(tensor.name for tensor in model.graph.initializer)
    found: list[onnx.NodeProto] = []
    for node in _expanded(model.graph.node, functions, taken, 0):
        found.append(node)
        if len(found) > MAX_NODES:
            raise Error(f"the model's functions expand to more than {MAX_NODES} nodes", where="functions")
    return found


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _expanded(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto], taken: set[str], depth: int
) -> Iterator[onnx.NodeProto]:
    for index, node in enumerate(nodes):
        function = functions.get((_domain(node.domain), node.op_type, node.overload))
        if function is None:
            yield node
            continue
        if depth >= MAX_DEPTH:
            raise Error(
                "functions call each other too deeply",
                where=f"function {node.domain}::{node.op_type}",
                why=f"more than {MAX_DEPTH} levels; probably one calls itself",
            )
        yield from _expanded(_body(node, function, taken, index), functions, taken, depth + 1)


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
