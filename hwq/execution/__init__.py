"""Execution: a graph, lowered and packed once, run bit for bit as a dialect's runtime runs it."""

from __future__ import annotations

from typing import Any

from hwq.dialect import find
from hwq.errors import Error
from hwq.execution import (
    aten,
    aten_functions,
    aten_windows,
    curves,
    eigen,
    elementwise,
    integral,
    islands,
    movement,
    normalization,
    pooling,
    products,
    quantized_pooling,
    run_time,
    saturation,
    standard,
    tflite,
    tflite_bytes,
    transposed,
)
from hwq.execution.program import Program
from hwq.execution.representation import require_representable
from hwq.execution.session import Input, Session
from hwq.execution.steps import Gemm
from hwq.graph import Graph
from hwq.kernels import default_state
from hwq.lowering import lower

__all__ = ["BUILDERS", "Gemm", "Program", "Session", "compile", "execute"]

# Importing a module of builders registers them.
BUILDERS = (
    aten,
    aten_functions,
    aten_windows,
    curves,
    eigen,
    elementwise,
    integral,
    islands,
    movement,
    normalization,
    pooling,
    products,
    quantized_pooling,
    run_time,
    saturation,
    standard,
    tflite,
    tflite_bytes,
    transposed,
)


@default_state()
def compile(graph: Graph, dialect: str | None = None, *, gemm: Gemm | None = None) -> Program:
    """Lower a graph by a dialect's rules and make it ready to run.

    Parameters
    ----------
    graph : Graph
        Float or quantized, in source form; or already lowered for the same dialect.
    dialect : str, optional
        ``hwq.dialects()`` lists them; default ``graph.dialect``.
    gemm : Gemm, optional
        Stands in for the integer GEMM of every quantized convolution and product.

    Returns
    -------
    Program

    Raises
    ------
    Error
        The runtime cannot represent the graph, a scale is unset, a weight has no values, or an operator is unknown.
    NotSupportedYet
        The dialect is not built yet.
    """
    rules = find(dialect or graph.dialect, usable=True)
    if graph.form == "lowered" and graph.dialect != rules.name:
        raise Error(
            f"this graph was lowered for {graph.dialect}, not for {rules.name}",
            where=f"graph {graph.name}",
            remedy="compile the source form",
        )
    require_representable(graph, rules)
    lowered = graph if graph.form == "lowered" else lower(graph, rules.name)
    return Program(graph, lowered, rules, gemm)


def execute(graph: Graph, x: Input, dialect: str | None = None) -> Any:
    """`compile` and call: the outputs as the dialect's runtime computes them.

    Parameters
    ----------
    graph : Graph
    x : array, or mapping of input name to array
    dialect : str, optional

    Returns
    -------
    array, or dict of output name to array
        An array where the model has one output.

    Raises
    ------
    Error
        As `compile` and `Program`.
    """
    return compile(graph, dialect)(x)
