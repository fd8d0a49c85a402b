"""Weight-only layers as onnxruntime's MatMulNBits, and back: the same integers and scales, packed as its kernels read them.

A Gemm or MatMul of floats with dequantized constant weights of 4 or 8 bits (one scale a group along K, a column or the tensor)
becomes one `com.microsoft::MatMulNBits` with accuracy level 0: float32 sums, so onnxruntime is within ulps of the product of the
dequantized weights. What each node was stands beside it in the graph's `source`, in the file under `hwq.matmulnbits`, so that
reading the file gives the same nodes, integers and scales.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, Tensor, carrier
from hwq.ops.storage import integer_range

__all__ = ["KEY", "restored", "with_matmulnbits"]

KEY = "matmulnbits"
BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
# onnxruntime takes blocks of a power of two from 16 on.
LEAST_BLOCK = 16
# The block in which scales of a column or of the whole tensor are repeated.
REPEATED = 32


def with_matmulnbits(graph: Graph) -> Graph:
    """Every weight-only product of a quantized graph as MatMulNBits; all else stays as it is.

    Raises
    ------
    Error
        There is none that the operator can hold; the message says why the first candidate cannot.
    """
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = dict(graph.tensors)
    notes: dict[str, Any] = {}
    reason = ""
    for node in graph.nodes:
        made = _converted(graph, node)
        if made is None or isinstance(made, str):
            reason = reason or (made or "")
            nodes.append(node)
            continue
        note, packed, scales, points = made
        bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else ""
        names = [_fresh(tensors, f"{note['names'][0]}_{part}") for part in ("packed", "blocks", "points")]
        for name, data in zip(names, (packed, scales, points), strict=True):
            tensors[name] = Tensor(name, str(data.dtype), data.shape, data)
        attributes = {
            "K": note["k"],
            "N": note["n"],
            "bits": BITS[note["dtype"]],
            "block_size": note["size"],
            "accuracy_level": 0,
        }
        inputs = (node.inputs[0], *names, *(("", bias) if bias else ()))
        nodes.append(Node("MatMulNBits", node.name, inputs, node.outputs, attributes, "com.microsoft", node.origin))
        notes[node.name] = note
    if not notes:
        raise Error(
            "no layer of this graph can be a MatMulNBits",
            where=f"graph {graph.name}",
            why=reason or "it multiplies floats by stored weights of 4 or 8 bits, and no layer does",
            remedy='plan weights = { dtype = "int4", granularity = { group = 32 } } and activations = { mode = "float" }',
        )
    read = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    kept = [node for node in nodes if node.op != "DequantizeLinear" or node.outputs[0] in read]
    used = {name for node in kept for name in (*node.inputs, *node.outputs)} | set(graph.outputs) | set(graph.inputs)
    return graph.replace(
        nodes=kept, tensors=[tensor for name, tensor in tensors.items() if name in used],
        source={**graph.source, KEY: json.dumps(notes, sort_keys=True)},
    )  # fmt: skip


def _fresh(tensors: Mapping[str, Tensor], name: str) -> str:
    while name in tensors:
        name += "_"
    return name


def _converted(graph: Graph, node: Node) -> tuple[dict[str, Any], Array, Array, Array] | str | None:
    """What the node was, and its weights packed; why it cannot be; None where it is no product with stored weights."""
    get = node.attributes.get
    if node.op not in {"MatMul", "Gemm"} or node.domain:
        return None
    back = graph.producers.get(node.inputs[1])
    if back is None or back.op != "DequantizeLinear" or graph.constant(back.inputs[0]) is None:
        return None
    first = graph.producers.get(node.inputs[0])
    if first is not None and first.op.startswith(("DequantizeLinear", "DequantizeRows")):
        return f"node {node.name}: its activations are stored as integers; MatMulNBits multiplies floats"
    stored, scale, dtype = (
        graph.constant(back.inputs[0]),
        graph.constant(back.inputs[1]),
        graph.tensors[back.inputs[0]].dtype,
    )
    zero = graph.constant(back.inputs[2]) if len(back.inputs) > 2 and back.inputs[2] else None
    if dtype not in BITS or stored is None or scale is None or scale.dtype != np.float32 or stored.ndim != 2:
        return f"node {node.name}: {dtype} weights of {graph.tensors[back.inputs[0]].shape}; the operator takes matrices of 4 or 8 bits and float32 scales"  # fmt: skip
    if node.op == "Gemm" and (get("transA", 0) or get("alpha", 1.0) != 1.0 or get("beta", 1.0) != 1.0):
        return f"node {node.name}: transA, alpha and beta have no place in the operator"
    bias = graph.tensors.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    turned = bool(get("transB", 0)) if node.op == "Gemm" else False
    n, k = stored.shape if turned else stored.shape[::-1]
    if bias is not None and (bias.dtype != "float32" or bias.shape != (n,)):
        return f"node {node.name}: its bias is no float32 vector of {n}"
    block = int(back.attributes.get("block_size", 0)) or None
    if block is not None and (block < LEAST_BLOCK or block & (block - 1)):
        return f"node {node.name}: groups of {block}; the operator takes powers of two from {LEAST_BLOCK} on"
    axis, along = int(back.attributes.get("axis", 1)) % 2, 1 if turned else 0
    if (block is not None and axis != along) or (block is None and scale.size != 1 and axis == along):
        return f"node {node.name}: its scales do not lie along K"
    size = block or REPEATED
    blocks = -(-k // size)

    def spread(values: Array) -> Array:
        if block is None:
            return np.broadcast_to(values.reshape(-1, 1), (n, blocks)) if values.size != 1 else np.broadcast_to(values.reshape(1, 1), (n, blocks))  # fmt: skip
        return values if turned else values.T

    low = integer_range(dtype)[0]
    rows = (stored if turned else stored.T).astype(np.int16) - low  # unsigned: int4 -8..7 is 0..15
    points = spread(np.zeros_like(scale, np.int16) if zero is None else zero.astype(np.int16)) - low
    padded = np.repeat(points, size, axis=1).astype(np.int16)  # beyond K the zero point: a weight of 0
    padded[:, :k] = rows
    bits = BITS[dtype]
    packed = _packed(padded.reshape(n * blocks, size), bits).reshape(n, blocks, size * bits // 8)
    zeros = _packed(np.pad(points, ((0, 0), (0, (-blocks) % (8 // bits)))), bits)
    note = {
        "op": node.op, "attributes": {name: value for name, value in node.attributes.items() if isinstance(value, (int, float))},
        "names": [back.inputs[0], back.inputs[1], back.inputs[2] if zero is not None else "", node.inputs[1], back.name],
        "dtype": dtype, "k": k, "n": n, "size": size, "block": block, "axis": axis if scale.size != 1 or block else None,
        "turned": turned, "scale": list(scale.shape),
    }  # fmt: skip
    return note, packed, np.ascontiguousarray(spread(scale), np.float32), zeros


def _packed(values: Array, bits: int) -> Array:
    """Rows of small numbers as bytes, the first in the low bits."""
    small = values.astype(np.uint8)
    return np.ascontiguousarray(small if bits == 8 else small[:, ::2] | small[:, 1::2] << 4)


def restored(graph: Graph, text: str) -> Graph:
    """What `with_matmulnbits` made, as it was. A note that does not fit its node leaves the node as it is."""
    try:
        notes = json.loads(text)
    except ValueError:
        return graph
    if not isinstance(notes, dict):
        return graph
    nodes: list[Node] = []
    tensors = dict(graph.tensors)
    for node in graph.nodes:
        note = notes.get(node.name) if node.kind == "com.microsoft::MatMulNBits" else None
        made = None
        if isinstance(note, dict):
            try:
                made = _restored(graph, node, note, tensors)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                made = None  # the file was edited; the operator computes the same
        nodes += [node] if made is None else made
    used = {name for node in nodes for name in (*node.inputs, *node.outputs)} | set(graph.outputs) | set(graph.inputs)
    return graph.replace(nodes=nodes, tensors=[tensor for name, tensor in tensors.items() if name in used])


def _restored(graph: Graph, node: Node, note: Mapping[str, Any], tensors: dict[str, Tensor]) -> list[Node] | None:
    packed, scales, zeros = (graph.constant(name) for name in node.inputs[1:4])
    dtype, k, n, size, block = note["dtype"], int(note["k"]), int(note["n"]), int(note["size"]), note["block"]
    get, bits = node.attributes.get, BITS[dtype]
    if packed is None or scales is None or zeros is None or note["op"] not in {"MatMul", "Gemm"}:
        return None
    if (get("K"), get("N"), get("bits", 4), get("block_size")) != (k, n, bits, size) or k < 1 or n < 1:
        return None
    names = [str(name) for name in note["names"]]
    if len(names) != 5 or any(name in tensors for name in names[:4] if name):
        return None
    blocks, low, turned = -(-k // size), integer_range(dtype)[0], bool(note["turned"])

    def opened(values: Array, count: int) -> Array:
        rows = values.reshape(n, -1)
        pairs = rows if bits == 8 else np.stack((rows & 15, rows >> 4), axis=-1).reshape(n, -1)
        return pairs[:, :count].astype(np.int16) + low

    rows, points = opened(packed, k), opened(zeros, blocks)
    real = scales.reshape(n, blocks).astype(np.float32)
    shape = tuple(int(one) for one in note["scale"])

    def joined(values: Array) -> Array:
        if block is not None:
            return np.ascontiguousarray(values if turned else values.T)
        return values[:, 0].reshape(shape) if len(shape) and shape != (1,) else values[0, :1].reshape(shape)

    scale, zero = joined(real), joined(points).astype(carrier(dtype))
    stored = np.ascontiguousarray(rows if turned else rows.T).astype(carrier(dtype))
    axis = note["axis"]
    kind = Quantization(dtype, scale, zero, axis, block, "packed" if bits < 8 else "plain")
    tensors[names[0]] = Tensor(names[0], dtype, stored.shape, stored, kind if names[2] else None)
    tensors[names[1]] = Tensor(names[1], "float32", scale.shape, scale)
    if names[2]:
        tensors[names[2]] = Tensor(names[2], dtype, zero.shape, zero)
    tensors[names[3]] = Tensor(names[3], "float32", stored.shape)
    attributes = {
        **({} if axis is None else {"axis": int(axis)}),
        **({} if block is None else {"block_size": int(block)}),
    }
    back = Node("DequantizeLinear", names[4], tuple(name for name in names[:3] if name), (names[3],), attributes)
    bias = (node.inputs[5],) if len(node.inputs) > 5 and node.inputs[5] else ()
    inputs = (node.inputs[0], names[3], *bias)
    return [
        back,
        dataclasses.replace(node, op=note["op"], domain="", inputs=inputs, attributes=dict(note["attributes"])),
    ]
