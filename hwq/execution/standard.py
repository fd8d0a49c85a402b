"""Dialect `onnx`: QLinearMatMul and QLinearConv as the standard's reference evaluator requantizes.

``clip(rint(f64(acc) * f64(f32(f32(sa * sb) / sy)) + zp))``: the product in float64, the zero point added before rounding, so
that ties go to even outputs. Read in onnx 1.23.2 (reference/ops/op_qlinear_matmul.py, op_qlinear_conv.py) and compared with
it. onnxruntime (R4) rounds in float32 before the zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array, carrier
from hwq.ops.application import evaluate_node

__all__: list[str] = []

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


@register("float:QLinearMatMul", "float:QLinearConv")
def requantized(scope: Scope) -> Kernel:
    """The exact int32 accumulators of MatMulInteger or ConvInteger, then the evaluator's requantization."""
    node, dialect = scope.node, scope.dialect
    if dialect.formulas.get("requantize") != "reference-evaluator":
        return interpret(scope)
    product = node.op == "QLinearMatMul"
    integer = dataclasses.replace(node, op="MatMulInteger" if product else "ConvInteger")

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        a, a_scale, a_point, b, b_scale, b_point, scale, point = [present(one) for one in operands[:8]]
        (acc,) = evaluate_node(integer, [a, b, a_point, b_point])
        bias = operands[8] if len(operands) > 8 else None
        factors = np.float32(1) * a_scale * b_scale
        if not product:
            channel = (-1, *([1] * (acc.ndim - 2)))
            if node.layout == "NHWC":
                channel = (-1,)
            acc = acc if bias is None else (acc.astype(np.int64) + bias.reshape(channel)).astype(np.int32)
            factors = factors.reshape(channel) if factors.size > 1 else factors.reshape(())
        scaled = acc.astype(np.float64) * (factors / scale).astype(np.float32).astype(np.float64)
        low, high = RANGES[point.dtype.name]
        made = np.clip(np.rint(scaled + point.astype(np.float64)), low, high)
        return np.ascontiguousarray(made.astype(carrier(point.dtype.name)))

    return adapt(run)
