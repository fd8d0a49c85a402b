"""The rule tables of the dialects: in which order a runtime rewrites a source graph, and what it fuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from hwq.dialect import find
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.lowering.conversion import quantize_biases, turn_unsigned
from hwq.lowering.fbgemm import group_eager
from hwq.lowering.grouping import annotate, declare, drop_inverse_pairs, group
from hwq.lowering.integers import adopt_integer_ops
from hwq.lowering.integral import fold_biases, fold_factors, group_integral, require_integers, rescale_pairs
from hwq.lowering.narrow import widen_weights
from hwq.lowering.own import group_integer_products, group_own, group_run_time
from hwq.lowering.pairs import affine, is_dequantize, is_quantize
from hwq.lowering.placement import merge_double_pairs, propagate_pairs, split_dequantizes
from hwq.lowering.rewriting import Draft
from hwq.lowering.simplification import (
    drop_redundant_clips,
    fold_constants,
    fuse_matmul_add,
    merge_equal_nodes,
    remove_identities,
    widen_constants,
)
from hwq.lowering.tables import gather_functions, make_tables
from hwq.ops.application import FAILURES

__all__ = ["RULES", "lower_for_dialect"]

Rule = Callable[[Draft], bool]
# onnxruntime applies the rules of one level over and over, at most so many times (max_num_graph_transformation_steps).
STEPS = 10

# A graph's note of the initializers that are inputs too (`hwq.importers.onnx`): for onnxruntime's optimizer they are no constants.
OVERRIDABLE = "overridable"

# Levels of rules, in onnxruntime's order. A level is repeated until nothing changes.
_ORT = (
    (adopt_integer_ops, split_dequantizes),
    (
        remove_identities,
        merge_double_pairs,
        merge_equal_nodes,
        fold_constants,
        fuse_matmul_add,
        propagate_pairs,
        quantize_biases,
        split_dequantizes,
    ),
    (drop_redundant_clips, turn_unsigned, group, drop_inverse_pairs),
)
# hwq's own: no weight or bias is quantized that the plan did not quantize; then what onnxruntime fuses, and our own groups.
_HWQ = (
    (widen_weights, gather_functions),
    (adopt_integer_ops, split_dequantizes, group_run_time, group_integer_products),
    tuple(rule for rule in _ORT[1] if rule is not quantize_biases),
    (drop_redundant_clips, turn_unsigned, make_tables, group_own, group, drop_inverse_pairs),
)
# And hwq-integer: what lies between moves into the products' groups, the rest has groups of its own.
_INTEGRAL = (
    *_HWQ[:2],
    (*_HWQ[2], fold_factors, fold_biases),
    (drop_redundant_clips, make_tables, group_integral, group_own, group, drop_inverse_pairs, rescale_pairs),
)
RULES: Mapping[str, tuple[tuple[Rule, ...], ...]] = MappingProxyType(
    {
        "ort": _ORT,
        "ort-avx512": _ORT,
        "ort-avx2-saturating": _ORT,
        "ort-unfused": ((adopt_integer_ops,),),
        "hwq": _HWQ,
        "hwq-integer": _INTEGRAL,
        "onnx": (),
        "tensorrt": (),
        "litert-ref": ((widen_constants,),),
        "litert-ref-fixedfc": ((widen_constants,),),
        "litert-xnnpack": ((widen_constants,),),
        "torch-pt2e": (),
        "torch-fbgemm": ((group_eager,),),
        "torch-fbgemm-avx512": ((group_eager,),),
        "torch-fbgemm-avx512-amd": ((group_eager,),),
        "torch-fbgemm-avx2-saturating": ((group_eager,),),
    }
)


def lower_for_dialect(graph: Graph, dialect: str) -> Graph:
    """Rewrite a source graph into the groups that a runtime executes.

    Raises
    ------
    Error
        The graph is lowered already, or there is no such dialect.
    NotSupportedYet
        The dialect's rules are not built yet.
    """
    find(dialect, usable=True)
    if dialect not in RULES:
        raise NotSupportedYet(f"lowering for dialect {dialect}", remedy=f"one of: {', '.join(RULES)}")
    if graph.form != "source":
        raise Error("this graph is lowered already", where=f"graph {graph.name}", remedy="lower the source form")
    try:
        overridable = graph.source.get(OVERRIDABLE, ()) if dialect.startswith("ort") else ()
        return _lowered(Draft(graph, overridable), dialect)
    except Error:
        raise
    except FAILURES as error:
        raise Error(
            "this graph cannot be lowered",
            where=f"graph {graph.name}",
            why=f"the operands of a quantized operator do not fit it ({type(error).__name__}: {error})",
            remedy="the file is damaged; export it again",
        ) from error


def _lowered(draft: Draft, dialect: str) -> Graph:
    for level in RULES[dialect]:
        for _ in range(STEPS):
            # Every rule of the level runs, whatever the earlier ones found.
            if not any([rule(draft) for rule in level]):
                break
    _annotate_pairs(draft)
    made = draft.finish(dialect)
    if find(dialect).integers:
        require_integers(made)
    return made


def _annotate_pairs(draft: Draft) -> None:
    """Say of every tensor that a Q makes or a DQ reads how it is quantized."""
    for key, node in draft:
        if not (is_quantize(node) or is_dequantize(node)):
            continue
        found = affine(draft, node)
        if found is None:
            continue
        if is_quantize(node):
            declare(draft, node.outputs[0], found.quantization())
            continue
        view = annotate(draft, node.inputs[0], found.quantization(), key)
        if view != node.inputs[0]:
            draft.set_input((key, 0), view)
