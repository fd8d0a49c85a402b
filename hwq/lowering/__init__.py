"""Lowering: by tables of rules, a source graph becomes the fused groups of a dialect or of a machine family."""

from __future__ import annotations

from hwq.dialect import DIALECTS
from hwq.errors import Error
from hwq.graph import Graph

__all__ = ["FAMILIES", "lower"]

# Machine families that have a rule table of their own; a machine's name is resolved to its family by the caller.
FAMILIES = ("systolic", "gpu", "npu", "cpu", "spatial")


def lower(graph: Graph, rules: str) -> Graph:
    """Rewrite a source graph into fused groups.

    Parameters
    ----------
    graph : Graph
        In source form.
    rules : str
        A dialect (``hwq.dialects()`` lists them) or a machine family (``systolic``, ``gpu``, ``npu``, ``cpu``, ``spatial``).

    Returns
    -------
    Graph
        In lowered form. A group's node has the op that does the main work, reads and makes tensors whose
        `Tensor.quantization` says how they are stored, and holds the source nodes in `Node.body`.

    Raises
    ------
    Error
        There are no such rules, or the graph is lowered already.
    NotSupportedYet
        The rules are promised but not built.
    """
    if rules in FAMILIES:
        from hwq.lowering.families import lower_for_family

        return lower_for_family(graph, rules)
    if rules in DIALECTS:
        from hwq.lowering.dialects import lower_for_dialect

        return lower_for_dialect(graph, rules)
    raise Error(
        "there are no such rules",
        where=f"rules {rules}",
        remedy=f"a dialect ({', '.join(DIALECTS)}) or a machine family ({', '.join(FAMILIES)})",
    )
