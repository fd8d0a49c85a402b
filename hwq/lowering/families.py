"""What the builder of each machine family fuses into one kernel: a rule table, applied to the source form.

The builder of a machine is modelled, not run: views are free, constants are computed at build time, quantize and
dequantize operators disappear into the kernels beside them, and an epilogue (bias, activation, residual, requantize)
runs on accumulators on their way out. What a rule does not name stays a kernel of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hwq.dialect import find
from hwq.errors import Error
from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.lowering.rewriting import Draft
from hwq.lowering.tables import gather_functions, make_tables

__all__ = ["FAMILY_RULES", "Fusion", "lower_for_family"]

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
INTEGER_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})
QUANTIZED_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeRows", "DynamicQuantizeRowsSymmetric"})
DEQUANTIZERS = frozenset({"DequantizeLinear", "DequantizeRows"})
CLAMPS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Min", "Max"})
SUMS = frozenset({"Add", "Sub", "Mul"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
TABLES = frozenset({"Sigmoid", "Tanh", "HardSigmoid", "HardSwish"})
POINTWISE = CLAMPS | TABLES | {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Erf", "Gelu", "BatchNormalization", "Cast", "Where", "Equal",
}  # fmt: skip

# Machines that read a function of a byte from a table where the graph's dialect does; GPUs have function units instead.
TABLE_FAMILIES = frozenset({"systolic", "npu", "cpu"})

# Longest group that one kernel takes: the pattern of a GELU spelled out is 5, of an opset-13 normalization 9.
LONGEST = 12


@dataclass(frozen=True)
class Fusion:
    """What one family's builder fuses.

    Attributes
    ----------
    epilogue : frozenset of op
        Operators that a matrix product's kernel does on its way out. QuantizeLinear is always among them.
    pointwise : frozenset of op
        Elementwise operators that one kernel does one after the other.
    residual : bool
        Whether an epilogue may read one more tensor.
    heads : frozenset of op
        Other operators whose kernel does the unary operators of `epilogue` on its way out.
    evidence : str
        Where the rule comes from.
    """

    epilogue: frozenset[str]
    pointwise: frozenset[str]
    residual: bool
    heads: frozenset[str]
    evidence: str


FAMILY_RULES: Mapping[str, Fusion] = MappingProxyType({
    "systolic": Fusion(
        CLAMPS | TABLES | {"Add", "BatchNormalization"}, CLAMPS | TABLES | {"Add"}, True, frozenset(),
        "Jouppi et al., ISCA 2017: the activation unit takes accumulators and writes results; a residual is assumed",
    ),
    "gpu": Fusion(
        POINTWISE, POINTWISE, True, frozenset(),
        "TensorRT documentation, layer fusion: convolution, bias, residual sum, activation; pointwise chains",
    ),
    "npu": Fusion(
        CLAMPS | TABLES | {"BatchNormalization"}, CLAMPS | TABLES, False, SUMS | POOLS,
        "Arm Vela: an activation joins the operator before it; a residual add is an operator of its own",
    ),
    "cpu": Fusion(
        CLAMPS | {"Add", "BatchNormalization"}, frozenset(), True, SUMS,
        "onnxruntime and oneDNN: convolution or product with bias, clamp and sum",
    ),
    "spatial": Fusion(
        CLAMPS | {"BatchNormalization"}, CLAMPS, False, SUMS | POOLS,
        "Chen et al., JSSC 2017: results pass a ReLU unit on their way to DRAM",
    ),
})  # fmt: skip


def lower_for_family(graph: Graph, family: str, apart: frozenset[str] = frozenset()) -> Graph:
    """Rewrite a source-form graph into the kernels that a machine family's builder would make.

    Parameters
    ----------
    graph : Graph
        Source form; shapes need not be known. Q/DQ may have unset scales.
    family : {"systolic", "gpu", "npu", "cpu", "spatial"}
    apart : frozenset of op
        Operators that this machine runs elsewhere or not at all: they join no group.

    Returns
    -------
    Graph
        Lowered form: groups carry their source nodes in ``body`` and read and make quantized tensors. A product's
        inputs are its own (activation, weight, bias or ""), then what its epilogue reads. A QuantizeLinear or
        DequantizeLinear that no kernel takes stays, as a kernel.

    Raises
    ------
    Error
        The family is unknown.
    """
    if family not in FAMILY_RULES:
        raise Error(f"unknown machine family {family!r}", remedy=f"one of: {', '.join(FAMILY_RULES)}")
    if graph.form == "lowered":
        return graph
    draft = Draft(graph)
    _compute_constants(draft)
    _name_quantizations(draft)
    _simplify_run_time_scales(draft)
    if family in TABLE_FAMILIES and "table" in find(graph.dialect).formulas:
        gather_functions(draft)
        make_tables(draft)
    _absorb_dequantize(draft)
    _fuse(draft, FAMILY_RULES[family], apart)
    return draft.finish(graph.dialect)


def _is_constant(draft: Draft, value: str) -> bool:
    return not value or (value not in draft.inputs and draft.maker(value) is None)


def _compute_constants(draft: Draft) -> None:
    # A dequantized weight is read as it is stored; anything else that only reads constants is done at build time.
    for key, node in draft:
        if not node.inputs or not all(_is_constant(draft, value) for value in node.inputs):
            continue
        if any(value in draft.outputs for value in node.outputs):
            continue
        origin = draft.tensors[node.inputs[0]] if node.inputs[0] else None
        draft.remove(key)
        if node.op == "DequantizeLinear" and origin is not None:
            draft.tensors[origin.name] = dataclasses.replace(origin, quantization=_quantization(draft, node, origin))
            draft.redirect(node.outputs[0], origin.name)
            continue
        if node.op == "Cast" and origin is not None and origin.quantization is not None:
            draft.redirect(node.outputs[0], origin.name)  # stored integers, cast as they are dequantized
            continue
        for value in node.outputs:
            tensor = draft.tensors.get(value)
            if tensor is None or origin is None:
                continue
            if node.op == "QuantizeLinear":
                tensor = dataclasses.replace(tensor, quantization=_quantization(draft, node, tensor))
            elif origin.quantization is not None and tensor.dtype.startswith("float"):
                # A transposed or reshaped weight keeps its stored type; its channels may have moved: one unset scale.
                tensor = dataclasses.replace(tensor, quantization=Quantization(origin.quantization.dtype))
            draft.tensors[value] = tensor


def _quantization(draft: Draft, node: Node, stored: Tensor) -> Quantization:
    """How `stored`, the integer side of a Q or DQ node, stands for real numbers."""
    if stored.quantization is not None:
        return stored.quantization
    scale, point = (draft.constant(node.inputs[i]) if len(node.inputs) > i and node.inputs[i] else None for i in (1, 2))
    block = node.attributes.get("block_size") or None
    per_axis = block is not None or (scale is not None and scale.ndim > 0 and scale.size > 1)
    name = node.inputs[1] if len(node.inputs) > 1 and node.inputs[1] else ""
    dynamic = name if name and draft.maker(name) is not None else None
    return Quantization(
        stored.dtype,
        scale if scale is not None else dynamic,
        point,
        axis=int(node.attributes.get("axis", 1)) if per_axis else None,
        block=block,
    )


def _name_quantizations(draft: Draft) -> None:
    for _, node in draft:
        if node.op in {"QuantizeLinear", "DequantizeLinear"}:
            stored = draft.tensors[node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]]
            draft.tensors[stored.name] = dataclasses.replace(stored, quantization=_quantization(draft, node, stored))


def _simplify_run_time_scales(draft: Draft) -> None:
    """A run-time scale times constant scales is one number a column on the way out, whoever multiplies them."""
    for key, node in draft:
        if node.op in QUANTIZED_AT_RUN_TIME and len(node.outputs) == 3:
            q, scale, point = node.outputs
            stored = draft.tensors[q]
            draft.tensors[q] = dataclasses.replace(stored, quantization=Quantization(stored.dtype, scale, point))
        if node.op != "Mul" or node.domain or node.outputs[0] in draft.outputs:
            continue
        made = [(value, draft.maker(value)) for value in node.inputs]
        scales = [value for value, maker in made if maker is not None and maker[1].op in QUANTIZED_AT_RUN_TIME
                  and value == maker[1].outputs[1]]  # fmt: skip
        if len(scales) == 1 and all(value in scales or _is_constant(draft, value) for value in node.inputs):
            draft.remove(key)
            draft.redirect(node.outputs[0], scales[0])


def _absorb_dequantize(draft: Draft) -> None:
    made_from = {node.outputs[0]: node.inputs[0] for _, node in draft if node.op in DEQUANTIZERS}
    for key, node in draft:
        if node.op == "QuantizeLinear" or node.op in DEQUANTIZERS:
            continue
        if node.op in PRODUCTS:
            # Integer arithmetic needs both operands; with one of them float, product and Q/DQ stay as they are.
            if not all(value in made_from or _quantized_constant(draft, value) for value in node.inputs[:2]):
                continue
        swallowed = [value for value in dict.fromkeys(node.inputs) if value in made_from]
        if not swallowed:
            continue
        parts = tuple(draft.nodes[maker[0]] for value in swallowed if (maker := draft.maker(value)) is not None)
        inputs = tuple(made_from.get(value, value) for value in node.inputs)
        draft.exchange(key, dataclasses.replace(node, inputs=inputs, body=(*parts, *(node.body or (node,)))))
    for key, node in draft:
        if node.op in DEQUANTIZERS and not draft.edges(node.outputs[0]) and node.outputs[0] not in draft.outputs:
            draft.remove(key)


def _quantized_constant(draft: Draft, value: str) -> bool:
    tensor = draft.tensors.get(value)
    return tensor is not None and tensor.quantization is not None and _is_constant(draft, value)


def _fuse(draft: Draft, rules: Fusion, apart: frozenset[str]) -> None:
    for key, node in draft:
        if (
            node.op in {"QuantizeLinear", *DEQUANTIZERS, *QUANTIZED_AT_RUN_TIME}
            or len([v for v in node.outputs if v]) != 1
        ):
            continue
        if node.op in PRODUCTS:
            allowed, residual = rules.epilogue, rules.residual
        elif node.op in INTEGER_PRODUCTS:
            # Accumulators leave dequantized: converted, scaled, with their bias.
            allowed, residual = rules.epilogue | {"Cast", "Mul", "Add"}, True
        elif node.op in rules.pointwise:
            allowed, residual = rules.pointwise, True
        elif node.op in rules.heads:
            allowed, residual = rules.epilogue & (CLAMPS | TABLES), False
        else:
            allowed, residual = frozenset(), False
        kept = frozenset({"Cast", "Mul", "Add"}) if node.op in INTEGER_PRODUCTS else frozenset[str]()
        _grow(draft, key, (allowed - apart) | {"QuantizeLinear"} | kept, residual)


def _grow(draft: Draft, key: float, allowed: frozenset[str], residual: bool) -> None:
    """Let the node at `key` swallow what follows it, one closed step after the other."""
    extra = 0  # tensors that the epilogue reads beside the accumulators
    while True:
        node = draft.nodes[key]
        step = _closed_step(draft, node.outputs[0], allowed, LONGEST - len(node.body), residual and extra == 0)
        if step is None:
            return
        members, made = step
        inside = {node.outputs[0], *(value for other in members for value in draft.nodes[other].outputs)}
        parts = [draft.nodes[other] for other in members]
        added = [v for part in parts for v in part.inputs if v and v not in inside and not _scale_of(part, v)]
        extra += sum(not _is_constant(draft, value) for value in added)
        inputs = [*node.inputs]
        if node.op in {"Conv", "Gemm"} and len(inputs) == 2:
            inputs.append("")
        inputs += [value for value in dict.fromkeys(added) if value not in inputs]
        body = [*(node.body or (node,)), *(item for part in parts for item in (part.body or (part,)))]
        for other in members:
            draft.remove(other)
        group = dataclasses.replace(node, inputs=tuple(inputs), outputs=(made,), body=tuple(body))
        draft.exchange(key, group)


def _scale_of(node: Node, value: str) -> bool:
    return node.op == "QuantizeLinear" and value in node.inputs[1:]


def _rescales(draft: Draft, node: Node) -> bool:
    """Whether the node multiplies or divides by one constant number, which every requantization does on the fly."""
    return (
        node.op in {"Mul", "Div"}
        and _is_constant(draft, node.inputs[1])
        and draft.tensors[node.inputs[1]].elements == 1
    )


def _closed_step(
    draft: Draft, start: str, allowed: frozenset[str], room: int, residual: bool
) -> tuple[list[float], str] | None:
    """The fewest allowed nodes after `start` from which only one value leaves: their keys and that value.

    One node for a chain; several for a diamond such as ``x * sigmoid(x)``.
    """
    if start in draft.outputs:
        return None
    inside, members = {start}, list[float]()
    outside = 0
    while len(members) < room:
        found = None
        for other in sorted({key for value in inside for key, _ in draft.edges(value)} - set(members)):
            node = draft.nodes[other]
            if not (node.op in allowed or _rescales(draft, node)) or len(node.outputs) != 1:
                continue
            reads = [
                v
                for v in node.inputs
                if v and v not in inside and not _is_constant(draft, v) and not _scale_of(node, v)
            ]
            if len(reads) + outside <= int(residual):
                found = other
                outside += len(reads)
                break
        if found is None:
            return None
        members.append(found)
        inside.add(draft.nodes[found].outputs[0])
        leaving = {v for v in inside if v in draft.outputs or any(key not in members for key, _ in draft.edges(v))}
        last = draft.nodes[found].outputs[0]
        unread = {v for v in inside if not draft.edges(v) and v not in draft.outputs and v != last}
        if leaving | unread <= {last}:
            return members, last
    return None
