"""From TFLite's operators to ONNX: Q and DQ around float operators, images with their channels second inside.

Stored integers keep their type, scale and zero point, so a quantized TFLite model becomes the Q/DQ model that stands for it;
its inputs and outputs keep name, type and layout. Weights of dynamic-range models become constants behind a DQ: ONNX has no
operator that quantizes activations a row at run time, so there their products are float.
"""

from __future__ import annotations

from hwq.graph import Graph
from hwq.translation import Translation
from hwq.translation.onnx_assembly import OnnxAssembly
from hwq.translation.onnx_movers import MOVERS
from hwq.translation.onnx_operators import OPERATORS
from hwq.translation.onnx_windows import WINDOWS

__all__ = ["to_onnx"]

STATEFUL = frozenset({"SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "READ_VARIABLE", "ASSIGN_VARIABLE"})
RULES = {**OPERATORS, **MOVERS, **WINDOWS}


def to_onnx(graph: Graph) -> Translation:
    """A TFLite graph in ONNX's operators, in the dialect ``ort``.

    Raises
    ------
    Error
        An operator has no counterpart; the message names it.
    """
    assembly = OnnxAssembly(graph)
    for node in graph.nodes:
        rule = RULES.get(node.op) if node.domain == "tflite" else None
        if node.op in STATEFUL:
            raise assembly.refuse(node, f"ONNX has no counterpart of {node.op}", "it keeps its state between two runs")
        if rule is None:
            raise assembly.refuse(node, f"ONNX has no counterpart of {node.kind}")
        rule(assembly, node)
    return assembly.finish()
