"""Functions of one stored value become one table: the dialect `hwq`'s own rules.

Between a DequantizeLinear and a QuantizeLinear of 8 or 16 bits, any operators that compute a function of that one value (a
sigmoid, x * sigmoid(x), a GELU in five nodes) are gathered into one node, `hwq::Table`, which then takes in the Q and the DQ
beside it. Its kernel computes the entries from the group's body and the scales around it (`hwq.ops.table`). Clamps alone are
left to the rules that drop them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hwq.graph import Node
from hwq.lowering.grouping import annotate, declare
from hwq.lowering.pairs import RANGES, affine, is_dequantize, is_quantize, made_by_dequantize
from hwq.lowering.rewriting import Draft
from hwq.ops import unary

__all__ = ["gather_functions", "make_tables"]


def gather_functions(draft: Draft) -> bool:
    """Gather every function of one stored value into one node, still between its DQ and its Q."""
    starts = {
        node.outputs[0]: node.inputs[0]
        for _, node in draft
        if is_dequantize(node) and _stored(draft, node, node.inputs[0])
    }

    def single(name: str, node: Node) -> bool:
        data, rank = draft.constant(name), len(draft.tensors[node.outputs[0]].shape)
        return data is not None and data.size == 1 and data.ndim <= rank and draft.tensors[name].dtype == "float32"

    def computed(name: str) -> bool:
        return draft.constant(name) is None

    plain = [node for _, node in draft if not node.body]
    found = unary.sources(plain, starts, single, computed) if starts else {}
    changed = False
    for _, node in draft:
        if is_quantize(node) and node.inputs[0] in found and _stored(draft, node, node.outputs[0]):
            changed |= _gather(draft, node.inputs[0], found, starts)
    return changed


def _stored(draft: Draft, node: Node, stored: str) -> bool:
    """Whether a Q or DQ has one constant scale and stores integers of 8 or 16 bits that are computed."""
    pair = affine(draft, node)
    return pair is not None and pair.scalar and pair.dtype in RANGES and draft.constant(stored) is None


def _gather(draft: Draft, result: str, found: Mapping[str, str], starts: Mapping[str, str]) -> bool:
    """One node for all that makes `result`; False where that is no more than clamps, or not between one DQ and one Q."""
    source = found[result]
    members: dict[float, Node] = {}
    opened: dict[str, Node] = {}
    waiting = [result]
    while waiting:
        name = waiting.pop()
        made = draft.maker(name)
        if made is None:
            continue
        if name in starts:
            opened[name] = made[1]
        elif found.get(name) == source:
            members[made[0]] = made[1]
            waiting += [value for value in made[1].inputs if value]
    pairs = [affine(draft, node) for node in opened.values()]
    last = draft.maker(result)
    if not pairs or last is None or draft.only_reader(result) is None:
        return False
    if len({(pair.offset, pair.scale.tobytes()) for pair in pairs if pair is not None}) != 1:
        return False
    if all(node.op in unary.CLAMPS for node in members.values()):
        return False
    value = next(iter(opened))
    # Every DQ of the source gives the same values: one is enough.
    inside = [
        dataclasses.replace(
            members[place], inputs=tuple(value if name in opened else name for name in members[place].inputs)
        )
        for place in sorted(members)
    ]
    node = inside[-1]
    # The text of the chain tells two tables of one value apart; the body calls its operand and its result by these names.
    chain = "; ".join(f"{one.kind}({', '.join(one.inputs)}) {sorted(one.attributes.items())}" for one in inside)
    draft.exchange(
        last[0],
        Node(
            "Table",
            node.name,
            (value,),
            (result,),
            {"chain": chain, "source": value, "result": result},
            "hwq",
            node.origin,
            body=tuple(inside),
        ),
    )
    for place in sorted(members, reverse=True):
        if place != last[0] and not any(draft.edges(name) or name in draft.outputs for name in members[place].outputs):
            draft.remove(place)
    return True


def make_tables(draft: Draft) -> bool:
    """Let each gathered function take in the DQ before and the Q behind it."""
    changed = False
    for key, node in draft:
        if node.kind != "hwq::Table" or is_dequantize(node.body[0]):
            continue
        before, after = made_by_dequantize(draft, node.inputs[0]), draft.only_reader(node.outputs[0])
        if before is None or after is None or not is_quantize(after[1]):
            continue
        given, made = affine(draft, before[1]), affine(draft, after[1])
        assert given is not None and made is not None
        draft.remove(after[0])
        declare(draft, after[1].outputs[0], made.quantization())
        value = annotate(draft, before[1].inputs[0], given.quantization(), key)
        body = (before[1], *node.body, after[1])
        group = dataclasses.replace(node, inputs=(value,), outputs=after[1].outputs, body=body)
        draft.exchange(key, group)
        if not draft.edges(before[1].outputs[0]) and before[1].outputs[0] not in draft.outputs:
            draft.remove(before[0])
        changed = True
    return changed
