"""The dialect hwq-integer's own groups: what `hwq` leaves to floats between integers runs on integers, or is refused by name.

Between a DequantizeLinear and a QuantizeLinear with one scale each, of 8 or 16 bits in any mix: LayerNormalization, Softmax,
means, sums and products of two tensors, products of two activations, concatenations. Constant factors and bias vectors behind
a product move into its group first. Formulas: `hwq.execution.integral`, kernels/README.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Tensor
from hwq.lowering.grouping import Site, annotate, declare, merge
from hwq.lowering.own import with_clamp
from hwq.lowering.pairs import RANGES, affine, is_dequantize, is_quantize, made_by_dequantize
from hwq.lowering.rewriting import Draft, constant_like

__all__ = ["fold_biases", "fold_factors", "group_integral", "require_integers", "rescale_pairs"]

# How many operands each takes from a DequantizeLinear.
OPERANDS = {"LayerNormalization": 1, "Softmax": 1, "ReduceMean": 1, "GlobalAveragePool": 1, "MaxPool": 1,
            "Add": 2, "Sub": 2, "Mul": 2, "MatMul": 2}  # fmt: skip
# Only what changes no value: the Q behind it has the DQ's scale.
SAME = frozenset({"MaxPool"})
# |n sum(x^2)| < 2^62 (kernels/README.md).
LONGEST_ROW = 1 << 16


def fold_factors(draft: Draft) -> bool:
    """A constant factor behind a product of two activations belongs to the first operand's scale."""
    changed = False
    for key, node in draft:
        reader = draft.only_reader(node.outputs[0]) if node.op == "MatMul" and not node.domain else None
        if reader is None or reader[1].op not in {"Mul", "Div"} or reader[1].domain or node.body:
            continue
        factor = _factor(draft, reader[1], node.outputs[0])
        before = made_by_dequantize(draft, node.inputs[0])
        given = None if before is None else affine(draft, before[1])
        if factor is None or before is None or given is None or not given.scalar:
            continue
        with np.errstate(all="ignore"):
            scale = (given.scale.reshape(()) * factor).astype(np.float32)
        if not (np.isfinite(scale) and scale > 0):
            continue
        name = draft.fresh(f"{before[1].inputs[1]}_times", constant_like(np.asarray(scale)))
        value = draft.fresh(f"{node.inputs[0]}_times", draft.tensors[node.inputs[0]])
        inputs = (before[1].inputs[0], name, *before[1].inputs[2:])
        draft.add(dataclasses.replace(before[1], name=draft.unique(f"{before[1].name}_times"), inputs=inputs, outputs=(value,)), key, after=False)  # fmt: skip
        draft.remove(reader[0])
        draft.exchange(key, dataclasses.replace(node, inputs=(value, *node.inputs[1:]), outputs=reader[1].outputs))
        if not draft.edges(before[1].outputs[0]) and before[1].outputs[0] not in draft.outputs:
            draft.remove(before[0])
        changed = True
    return changed


def _factor(draft: Draft, node: Node, value: str) -> Array | None:
    """The positive number by which a Mul or Div multiplies `value`."""
    others = [name for name in node.inputs if name != value]
    data = draft.constant(others[0]) if len(others) == 1 else None
    if data is None or data.size != 1 or data.ndim > len(draft.tensors[value].shape) or data.dtype != np.float32:
        return None
    if node.op == "Div" and node.inputs[0] != value:
        return None
    number = data.reshape(())
    if not (np.isfinite(number) and number > 0):
        return None
    return number if node.op == "Mul" else np.asarray(np.float32(1) / number, np.float32)


def fold_biases(draft: Draft) -> bool:
    """A constant vector added behind a product with constant weights is its third operand, whatever the rank."""
    changed = False
    for key, node in draft:
        if node.op != "MatMul" or node.domain or node.body or len(node.inputs) != 2:
            continue
        weights = made_by_dequantize(draft, node.inputs[1])
        reader = draft.only_reader(node.outputs[0])
        if weights is None or reader is None or reader[1].op != "Add" or reader[1].domain:
            continue
        stored = draft.constant(weights[1].inputs[0])
        others = [name for name in reader[1].inputs if name != node.outputs[0]]
        bias = draft.constant(others[0]) if len(others) == 1 else None
        if stored is None or stored.ndim != 2 or bias is None or bias.dtype != np.float32 or not bias.ndim:
            continue
        if bias.shape[-1] != stored.shape[1] or bias.size != stored.shape[1] or bias.ndim > len(draft.tensors[node.outputs[0]].shape):  # fmt: skip
            continue
        name = draft.fresh(f"{others[0]}_vector", constant_like(np.ascontiguousarray(bias.reshape(-1))))
        draft.remove(reader[0])
        draft.exchange(key, dataclasses.replace(node, inputs=(*node.inputs, name), outputs=reader[1].outputs))
        changed = True
    return changed


def group_integral(draft: Draft) -> bool:
    """Merge the operators of this room with the DQ before and the Q behind them."""
    changed = False
    # A reader that takes a value in another scale (`fold_factors`) must not be the first to say how it is stored.
    for _, node in draft:
        stored = affine(draft, node) if is_quantize(node) else None
        if stored is not None:
            declare(draft, node.outputs[0], stored.quantization())
    for key, node in draft:
        if node.domain or node.body or (node.op not in OPERANDS and node.op != "Concat"):
            continue
        wanted = OPERANDS.get(node.op, len(node.inputs))
        site = with_clamp(draft, key, node)
        if site is None or site.clip is None:
            found = [made_by_dequantize(draft, value) for value in node.inputs]
            quantizes = [one for one in draft.readers(node.outputs[0]) if is_quantize(one[1])]
            site = Site(draft, key, node, tuple(one for one in found if one is not None), tuple(quantizes), None)
        if len(site.quantizes) != 1 or not site.complete(wanted) or not _plain(site, wanted) or not _fits(site):
            continue
        merge(draft, site)
        changed = True
    return changed


def _plain(site: Site, wanted: int) -> bool:
    """Whether the operands come first, and operands and result have one scale each, of 8 or 16 bits."""
    feeds = [node.outputs[0] for _, node in site.dequantizes]
    if list(site.node.inputs[:wanted]) != feeds or len(set(feeds)) != wanted:
        return False
    pairs = [affine(site.draft, node) for _, node in (*site.dequantizes, *site.quantizes)]
    return all(pair is not None and pair.scalar and pair.dtype in RANGES for pair in pairs)


def _fits(site: Site) -> bool:
    """Whether the operator's own conditions hold."""
    draft, node = site.draft, site.node
    if sum(bool(name) for name in node.outputs) != 1:
        return False
    shape = draft.tensors[node.inputs[0]].shape
    if node.op in SAME:
        first, last = (affine(draft, one[0][1]) for one in (site.dequantizes, site.quantizes))
        same = first is not None and last is not None and first.dtype == last.dtype and first.offset == last.offset
        return same and first is not None and last is not None and bool(first.scale.reshape(()) == last.scale.reshape(())) and site.clip is None  # fmt: skip
    if node.op == "LayerNormalization":
        axis = int(node.attributes.get("axis", -1)) % len(shape)
        dims = [dim for dim in shape[axis:] if isinstance(dim, int)]
        if len(dims) < len(shape) - axis or math.prod(dims) > LONGEST_ROW:
            return False
        values = [draft.constant(name) for name in node.inputs[1:] if name]
        return all(one is not None and np.isfinite(one).all() for one in values)
    if node.op == "ReduceMean":
        given = len(node.inputs) > 1 and bool(node.inputs[1])
        return bool(shape) and (draft.constant(node.inputs[1]) is not None if given else "axes" in node.attributes)
    if node.op == "MatMul":
        # Constant weights are the products' own rules.
        return len(node.inputs) == 2 and all(
            draft.constant(one.inputs[0]) is None for _, one in site.dequantizes
        ) and len(shape) >= 2 and len(draft.tensors[node.inputs[1]].shape) >= 2  # fmt: skip
    return True


def rescale_pairs(draft: Draft) -> bool:
    """A DQ whose value goes to a Q of another scale or type is a table: a change of scale and nothing else."""
    changed = False
    for key, node in draft:
        if not is_quantize(node):
            continue
        before = made_by_dequantize(draft, node.inputs[0])
        made, given = affine(draft, node), None if before is None else affine(draft, before[1])
        if before is None or made is None or given is None or not (made.scalar and given.scalar):
            continue
        if draft.constant(before[1].inputs[0]) is not None or made.dtype not in RANGES or given.dtype not in RANGES:
            continue
        value, result = node.inputs[0], f"{node.outputs[0]}_same"
        inside = Node("Identity", node.name, (value,), (result,))
        declare(draft, node.outputs[0], made.quantization())
        stored = annotate(draft, before[1].inputs[0], given.quantization(), key)
        attributes = {"chain": "Identity", "source": value, "result": result}
        body = (before[1], inside, dataclasses.replace(node, inputs=(result, *node.inputs[1:])))
        draft.exchange(
            key, Node("Table", node.name, (stored,), node.outputs, attributes, "hwq", node.origin, body=body)
        )
        if not draft.edges(value) and value not in draft.outputs:
            draft.remove(before[0])
        changed = True
    return changed


def require_integers(graph: Graph) -> None:
    """Refuse a lowered graph in which a value leaves the integers and comes back.

    Raises
    ------
    Error
        It names the first operator of floats between stored values, and how many there are.
    """
    behind: set[str] = set()  # floats that depend on stored values
    for node in graph.nodes:
        given = [name for name in node.inputs if name and graph.constant(name) is None]
        if any(_stored(graph.tensors[name]) or name in behind for name in given):
            behind.update(name for name in node.outputs if name and graph.tensors[name].dtype.startswith(("float", "bfloat")))  # fmt: skip
    before: set[str] = set()  # floats on which stored values depend
    for node in reversed(graph.nodes):
        if any(_stored(graph.tensors[name]) or name in before for name in node.outputs if name):
            before.update(name for name in node.inputs if name and graph.tensors[name].dtype.startswith(("float", "bfloat")))  # fmt: skip
    between = behind & before
    islands = [
        node
        for node in graph.nodes
        if any(name in between for name in (*node.inputs, *node.outputs))
        and not (is_quantize(node) or is_dequantize(node))
    ]
    if islands:
        first = islands[0]
        raise Error(
            f"dialect hwq-integer has no integer kernel for this {first.op}",
            where=f"node {first.name} ({first.kind}; {len(islands)} operators of floats stand between stored values)",
            why="the dialect promises that no value leaves the integers and comes back; this operator, or its types, form or granularity, has no kernel of integers",
            remedy='store its operands and its result with one static scale each (8 or 16 bits), or take dialect = "hwq", which leaves it to floats',
        )


def _stored(tensor: Tensor) -> bool:
    return tensor.quantization is not None and not tensor.dtype.startswith(("float", "bfloat"))
