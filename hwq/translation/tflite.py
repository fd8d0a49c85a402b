"""From Q/DQ graphs of ONNX to TFLite's integer operators: what fuses with its Q, what moves stored values, what stays float.

An operator whose operands come from DQs and whose result (perhaps through a Relu or Clip) goes to one Q becomes TFLite's
integer kernel; what only moves elements works on stored values; any other runs on floats between DEQUANTIZE and QUANTIZE.
"""

from __future__ import annotations

import numpy as np

from hwq.graph import Graph, Node, Tensor
from hwq.lowering.pairs import is_dequantize, is_quantize
from hwq.translation import Translation
from hwq.translation.assembly import Assembly, Held, refuse
from hwq.translation.pairs import as_pairs
from hwq.translation.tflite_operators import MOVERS, OPERATORS

__all__ = ["to_tflite"]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def to_tflite(graph: Graph, dialect: str) -> Translation:
    """The graph in TFLite's operators, in the dialect `dialect`.

    Raises
    ------
    Error
        TFLite has no such operator, type or quantization.
    """
    source = as_pairs(graph)
    assembly = Assembly(source, _sign(source))
    for name in source.inputs:
        tensor = source.tensors[name]
        assembly.tensors[name] = Tensor(name, tensor.dtype, tensor.shape)
        if tensor.dtype == "float32":
            assembly.real[name] = Held(tensor.shape, "float32", names={False: name})
    swallowed: set[str] = set()
    for node in source.nodes:
        if node.name in swallowed:
            continue
        if is_dequantize(node):
            assembly.dequantized[node.outputs[0]] = (node.inputs[0], assembly.pair(node))
        elif is_quantize(node):
            assembly.quantize(node)
        else:
            swallowed |= _operator(assembly, node)
    made, values = assembly.finish(dialect)
    return Translation(made, values)


def _sign(graph: Graph) -> str:
    """int8, or uint8 where weights have zero points: TFLite's int8 weights are symmetric, its uint8 ones have one pair a tensor."""
    for node in graph.nodes:
        if node.op not in PRODUCTS or len(node.inputs) < 2:
            continue
        maker = graph.producers.get(node.inputs[1])
        if maker is None or not is_dequantize(maker) or graph.constant(maker.inputs[0]) is None:
            continue
        zero = graph.constant(maker.inputs[2]) if len(maker.inputs) > 2 and maker.inputs[2] else None
        middle = {"uint8": 128, "uint4": 8}.get(graph.tensors[maker.inputs[0]].dtype, 0)
        if np.any((np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)) != middle):
            return "uint8"
    return "int8"


def _operator(assembly: Assembly, node: Node) -> set[str]:
    """Translate one operator; returns the nodes behind it that it swallowed."""
    if node.domain or node.body or node.layout == "NHWC" or node.op not in (OPERATORS.keys() | MOVERS.keys()):
        raise refuse(node, f"TFLite has no counterpart of {node.kind}")
    if node.op in MOVERS:
        under = assembly.integer(node.inputs[0])
        held = under if under is not None else assembly.float(node.inputs[0], node)
        made = MOVERS[node.op](assembly, node, held)
        for name, value in zip([name for name in node.outputs if name], made, strict=False):
            _note(assembly, node, name, value, under)
        return set()
    if node.op == "MaxPool" and node.inputs[0] in assembly.stored:
        stored = assembly.stored[node.inputs[0]].like(assembly.source.tensors[node.outputs[0]].shape)
        OPERATORS[node.op](assembly, node, stored, "NONE", node.outputs[0])
        assembly.stored[node.outputs[0]] = stored
        return set()
    chain, result, activation = _behind(assembly, node)
    if result is not None:
        dtype, quantization, offset = assembly.scheme(assembly.pair(result), result)
        target = Held(assembly.source.tensors[node.outputs[0]].shape, dtype, quantization, offset=offset)
        if OPERATORS[node.op](assembly, node, target, activation, result.outputs[0]):
            assembly.stored[result.outputs[0]] = target
            return {part.name for part in (*chain, result)}
    target = Held(assembly.source.tensors[node.outputs[0]].shape, "float32")
    if not OPERATORS[node.op](assembly, node, target, "NONE", node.outputs[0]):
        raise refuse(node, f"TFLite has no kernel for this {node.op}")
    assembly.real[node.outputs[0]] = target
    return set()


def _note(assembly: Assembly, node: Node, name: str, value: Held, under: Held | None) -> None:
    if under is None or node.inputs[0] in assembly.stored:  # real, or stored in the source too
        (assembly.real if under is None else assembly.stored)[name] = value
        return
    stored = f"{name}:stored"
    assembly.stored[stored] = value
    assembly.dequantized[name] = (stored, assembly.dequantized[node.inputs[0]][1])


def _behind(assembly: Assembly, node: Node) -> tuple[list[Node], Node | None, str]:
    """(Relu or Clip nodes, the Q, the fused activation) behind an operator; no Q where it cannot be swallowed."""
    source, value, activation = assembly.source, node.outputs[0], "NONE"
    chain: list[Node] = []
    for _ in range(2):
        readers = source.consumers.get(value, ())
        if len(readers) != 1 or value in source.outputs:
            return [], None, "NONE"
        reader = readers[0]
        if is_quantize(reader) and reader.inputs[0] == value:
            return chain, reader, activation
        found = _activation(assembly, reader) if not chain and node.op != "Softmax" else None
        if found is None:
            return [], None, "NONE"
        chain, activation, value = [reader], found, reader.outputs[0]
    return [], None, "NONE"


def _activation(assembly: Assembly, node: Node) -> str | None:
    if node.domain or node.op not in {"Relu", "Clip"}:
        return None
    return "RELU" if node.op == "Relu" else clip_name(assembly, node)


def clip_name(assembly: Assembly, node: Node) -> str | None:
    """TFLite's name of a Clip, or None."""
    bounds = []
    for index, name in ((1, "min"), (2, "max")):
        given = assembly.numbers(node.inputs[index]) if len(node.inputs) > index and node.inputs[index] else None
        computed = len(node.inputs) > index and node.inputs[index] and given is None
        if computed or (given is not None and given.size != 1):
            return None
        bounds.append(node.attributes.get(name) if given is None else float(given.reshape(-1)[0]))
    known: dict[tuple[object, object], str] = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, None): "RELU"}
    return known.get((bounds[0], bounds[1]))
