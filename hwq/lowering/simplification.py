"""Rules on ordinary nodes: what onnxruntime removes, merges, folds and fuses before it looks for groups.

Each rule takes a `Draft`, changes it, and says whether it did. The rules are facts about onnxruntime 1.31.1 at its
default optimization level, read in its sources (onnxruntime/core/optimizer) and checked against the graphs that it
writes with ``optimized_model_filepath``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from hwq.graph import Array, Node, Tensor
from hwq.lowering.pairs import RANGES, affine, explicit, is_dequantize, is_quantize, made_by_dequantize
from hwq.lowering.rewriting import Draft, constant_like, same_quantization

__all__ = [
    "clip_bounds",
    "clip_is_redundant",
    "drop_redundant_clips",
    "fold_constants",
    "fuse_matmul_add",
    "merge_equal_nodes",
    "range_cuts",
    "remove_identities",
    "widen_constants",
]

# Ops whose value is no function of their inputs alone.
RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# What an operand may be without changing the other.
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
# Types of single numbers that count as equal by value.
SHARED = frozenset({"float16", "float32", "float64", "int32", "int64"})


def remove_identities(draft: Draft) -> bool:
    """Nodes that change nothing disappear, except as makers of graph outputs."""
    changed = False
    for key, node in draft:
        kept = _unchanged(draft, node)
        if kept is None or node.outputs[0] in draft.outputs:
            continue
        draft.remove(key)
        draft.redirect(node.outputs[0], node.inputs[kept])
        changed = True
    return changed


def _unchanged(draft: Draft, node: Node) -> int | None:
    """The operand that a node hands on as it is: of an Identity, a Dropout at inference, a Cast to the same type, an Expand to the
    same shape, a Slice of everything, and of sums with 0 and products with 1."""
    x = draft.tensors[node.inputs[0]] if node.inputs and node.inputs[0] else None
    if node.domain or x is None:
        return None
    constants = [draft.constant(value) for value in node.inputs]
    if node.op == "Dropout":
        return None if any(draft.edges(mask) or mask in draft.outputs for mask in node.outputs[1:] if mask) else 0
    if node.op == "Cast":
        return 0 if x.dtype == draft.tensors[node.outputs[0]].dtype else None
    if node.op == "Expand":
        return 0 if x.known_shape and _same_shape(x.shape, constants[1]) else None
    if node.op == "Slice":
        whole = (0, np.iinfo(np.int64).max)
        bounds = all(
            one is not None and one.size and np.all(one == end) for one, end in zip(constants[1:3], whole, strict=False)
        )
        steps = len(node.inputs) < 5 or (constants[4] is not None and bool(np.all(constants[4] == 1)))
        return 0 if len(constants) > 2 and bounds and steps else None
    if node.op in NEUTRAL and len(constants) == 2 and (constants[0] is None) != (constants[1] is None):
        kept = 0 if constants[0] is None else 1
        other, neutral = draft.tensors[node.inputs[kept]], constants[1 - kept]
        fits = other.known_shape and neutral is not None and neutral.size == 1 and neutral.ndim <= len(other.shape)
        if fits and (kept == 0 or node.op in {"Add", "Mul"}) and np.all(neutral == NEUTRAL[node.op]):
            return kept
        return None
    return 0 if node.op == "Identity" and not _view(draft, node) else None


def _view(draft: Draft, node: Node) -> bool:
    """Whether an Identity is there because its reader takes the stored integers in another scale than their maker."""
    made, given = draft.tensors[node.outputs[0]].quantization, draft.tensors[node.inputs[0]].quantization
    return made is not None and (given is None or not same_quantization(made, given))


def _same_shape(shape: tuple[int | str, ...], wanted: Array | None) -> bool:
    if wanted is None or not 0 < wanted.size <= len(shape):
        return False
    return all(size in (have, 1) for size, have in zip(wanted[::-1].tolist(), shape[::-1], strict=False))


def merge_equal_nodes(draft: Draft) -> bool:
    """Two nodes with the same operator, attributes and operands become one (common subexpressions).

    Operands are told apart by name, except single numbers of the types that onnxruntime shares (constant_sharing.cc).

    DequantizeLinear nodes are left apart, since every reader needs its own.
    """
    seen: dict[object, Node] = {}
    changed = False
    for key, node in draft:
        if node.op in RANDOM or is_dequantize(node) or len(node.outputs) != 1:
            continue
        attributes = tuple(sorted((name, _content(value)) for name, value in node.attributes.items()))
        operands = tuple(_operand(draft, value) for value in node.inputs)
        twin = seen.setdefault((node.kind, node.layout, operands, attributes), node)
        if twin is node or node.outputs[0] in draft.outputs or twin.outputs[0] in draft.outputs:
            continue
        mine, other = (draft.tensors[one.outputs[0]].quantization for one in (node, twin))
        if mine is not None and (other is None or not same_quantization(mine, other)):
            continue
        draft.remove(key)
        draft.redirect(node.outputs[0], twin.outputs[0])
        changed = True
    return changed


def _operand(draft: Draft, value: str) -> object:
    data = draft.constant(value)
    shared = data is not None and data.size == 1 and str(data.dtype) in SHARED
    return (str(data.dtype), data.shape, data.tobytes()) if data is not None and shared else value


def _content(value: object) -> str:
    return f"{value.dtype}{value.shape}{value.tobytes().hex()}" if isinstance(value, np.ndarray) else repr(value)


def fold_constants(draft: Draft) -> bool:
    """Nodes whose operands are all constant are computed now, except DequantizeLinear, which belongs to its group."""
    from hwq.ops.base import lookup

    changed = False
    for key, node in draft:
        if (
            is_dequantize(node)
            or node.op in RANDOM
            or not node.inputs
            or any(value in draft.outputs for value in node.outputs)
        ):
            continue
        values = [draft.constant(value) if value else None for value in node.inputs]
        if any(value and data is None for value, data in zip(node.inputs, values, strict=True)):
            continue
        results = lookup(node).evaluate(node, values)
        draft.remove(key)
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                draft.tensors[name] = dataclasses.replace(
                    draft.tensors[name], shape=tuple(result.shape), data=result, known_shape=True
                )
        changed = True
    return changed


def widen_constants(draft: Draft) -> bool:
    """TFLite's DEQUANTIZE of a constant (float16 or stored weights of a float model) is computed once, as LiteRT does."""
    from hwq.ops.tflite_base import Call
    from hwq.ops.tflite_quantize import Dequantize

    changed = False
    for key, node in draft:
        if node.kind != "tflite::DEQUANTIZE" or node.outputs[0] in draft.outputs:
            continue
        data, stored = draft.constant(node.inputs[0]), draft.tensors[node.inputs[0]]
        if data is None:
            continue
        made = draft.tensors[node.outputs[0]]
        (wide,) = Dequantize().compute(Call(node, [data], [stored], [made]))
        draft.remove(key)
        draft.tensors[made.name] = dataclasses.replace(made, shape=tuple(wide.shape), data=wide, known_shape=True)
        changed = True
    return changed


def fuse_matmul_add(draft: Draft) -> bool:
    """MatMul followed by Add of a bias becomes Gemm, with reshapes around it for other ranks (matmul_add_fusion.cc).

    Only where both operands are dequantized: elsewhere the two forms are the same float island.
    """
    changed = False
    for key, node in draft:
        if node.op != "MatMul" or not all(made_by_dequantize(draft, value) for value in node.inputs):
            continue
        reader = draft.only_reader(node.outputs[0])
        if reader is None or reader[1].op != "Add":
            continue
        left, right = (draft.tensors[value] for value in node.inputs)
        biases = [value for value in reader[1].inputs if value != node.outputs[0]]
        if (
            len(biases) != 1
            or left.dtype != "float32"
            or len(right.shape) != 2
            or not (left.known_shape and right.known_shape)
        ):
            continue
        bias = draft.tensors[biases[0]]
        flat = len(left.shape) == 2
        if (
            not bias.known_shape
            or not (flat or (left.concrete and right.concrete))
            or not _gemm_bias(left, right, bias, flat)
        ):
            continue
        draft.remove(key)
        first, last = node.inputs[0], reader[1].outputs[0]
        if not flat:
            rows = int(np.prod([int(dim) for dim in left.shape[:-1]], dtype=np.int64))
            first = _reshape(draft, key, first, (rows, left.shape[-1]), f"{node.name}_rows")
            last = draft.fresh(f"{last}_rows", dataclasses.replace(left, name="", shape=(rows, right.shape[1])))
        gemm = Node(
            "Gemm",
            node.name,
            (first, node.inputs[1], biases[0]),
            (last,),
            {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
            origin=node.origin,
            body=(),
        )
        if flat:
            draft.exchange(reader[0], gemm)
        else:
            draft.add(gemm, reader[0], after=False)
            shape = draft.fresh(f"{last}_shape", constant_like(np.array([*left.shape[:-1], right.shape[1]], np.int64)))
            draft.exchange(
                reader[0], Node("Reshape", reader[1].name, (last, shape), reader[1].outputs, origin=reader[1].origin)
            )
        changed = True
    return changed


def _gemm_bias(left: Tensor, right: Tensor, bias: Tensor, flat: bool) -> bool:
    columns = right.shape[1]
    if len(bias.shape) == 1:
        return bool(bias.shape[0] == columns)
    if not flat or len(bias.shape) != 2:
        return False
    return bool(
        (bias.shape[0] == 1 and bias.shape[1] == columns)
        or (bias.shape[0] == left.shape[0] and bias.shape[1] in (1, columns))
    )


def _reshape(draft: Draft, near: float, value: str, shape: tuple[int | str, ...], name: str) -> str:
    made = draft.fresh(name, dataclasses.replace(draft.tensors[value], name="", shape=shape))
    target = draft.fresh(f"{name}_shape", constant_like(np.array(shape, np.int64)))
    draft.add(Node("Reshape", draft.unique(name), (value, target), (made,)), near, after=False)
    return made


def drop_redundant_clips(draft: Draft) -> bool:
    """Relu and Clip before a Q whose range says the same disappear (clip_quantizelinear.cc, relu_quantizelinear.cc)."""
    changed = False
    for key, node in draft:
        reader = draft.only_reader(node.outputs[0]) if node.op in {"Relu", "Clip"} else None
        if reader is not None and is_quantize(reader[1]) and clip_is_redundant(draft, node, reader[1]):
            draft.remove(key)
            draft.redirect(node.outputs[0], node.inputs[0])
            changed = True
    return changed


def clip_is_redundant(draft: Draft, node: Node, quantize: Node) -> bool:
    """Whether the stored range of `quantize` already cuts where `node`, a Relu or Clip, cuts."""
    found = affine(draft, quantize)
    if found is None or not found.scalar or not found.fixed_point or found.dtype not in RANGES:
        return False
    if node.op == "Relu":
        return found.offset == RANGES[found.dtype][0]
    bounds = clip_bounds(draft.constant, node)
    if (
        bounds is None
        or not found.fixed
        or found.scale.ndim != 0
        or (found.zero_point is not None and found.zero_point.ndim != 0)
    ):
        return False
    return range_cuts(bounds, np.float32(found.scale), found.offset, found.dtype, explicit(quantize))


def range_cuts(
    bounds: tuple[np.float32, np.float32], scale: np.float32, offset: int, dtype: str, explicit: bool
) -> bool:
    """Whether the stored range says what a Clip's bounds say. What holds for a scale holds for every smaller one."""
    low, high = RANGES[dtype]
    if dtype in {"int8", "uint8"} and explicit:
        epsilon = np.finfo(np.float32).eps
        lower, upper = scale * np.float32(low - offset), scale * np.float32(high - offset)
        if not (epsilon < bounds[0] - lower or epsilon < upper - bounds[1]):
            return True
    with np.errstate(all="ignore"):
        steps = [float(np.rint(bound / scale)) for bound in bounds]
    return steps[0] + offset <= low and steps[1] + offset >= high


def clip_bounds(constant: Callable[[str], Array | None], node: Node) -> tuple[np.float32, np.float32] | None:
    """The constant bounds of a Clip, or None where one is computed."""
    largest = np.finfo(np.float32).max
    bounds = [-largest, largest]
    for index, name in ((1, "min"), (2, "max")):
        if name in node.attributes:
            bounds[index - 1] = np.float32(node.attributes[name])
        elif len(node.inputs) > index and node.inputs[index]:
            value = constant(node.inputs[index])
            if value is None or value.size != 1:
                return None
            bounds[index - 1] = np.float32(value.reshape(()))
    return np.float32(bounds[0]), np.float32(bounds[1])
