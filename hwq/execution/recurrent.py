"""LSTM and DynamicQuantizeLSTM with onnxruntime's bits: products and gates in the order of its CPU kernels, on one thread.

onnxruntime 1.31.1, core/providers/cpu/rnn/uni_directional_lstm.cc and rnn_helpers.cc: the whole input is multiplied at once, each
step's state is added to that, then peepholes, then the sum of both biases. Logistic and tanh are MLAS' rational functions
(core/mlas/lib/logistic.cpp, tanh.cpp; coefficients from Eigen), with fused multiply-adds on every x86-64 CPU that has them.
Rows whose sequence has ended feed zeros. A state is quantized over its whole batch: with several threads onnxruntime cuts
the batch, and so its ranges, by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from hwq.execution import mlas, saturation
from hwq.execution.curves import logistic, tanh
from hwq.execution.emission import Emitter
from hwq.execution.steps import Kernel, Scope, Settings, interpret, register
from hwq.graph import Array, Node
from hwq.ops import arithmetic, contributed
from hwq.ops.recurrent import Function, Product, Recurrence

__all__ = ["integer_lstm"]

f32 = np.float32


class Cells(Recurrence):
    """`Recurrence` in onnxruntime's order. `start_at`: float products of the state start from the input's."""

    own = MappingProxyType({"sigmoid": logistic, "tanh": tanh})
    start_at: tuple[Array, ...] | None = None

    def _step(self, index: int, x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        if self.start_at is None:
            total = self.by_hidden(hidden, index) + x
        else:
            total = mlas.product(hidden, self.start_at[index], packed=True, start=np.ascontiguousarray(x))
        size, (f, g, h) = self.size, self.functions[index]
        first, second = self._biases(index)
        bias = None if self.bias is None else first + second
        inside, outside, forget, candidate = (slice(place * size, (place + 1) * size) for place in range(4))

        def gate(function: Function, place: slice, state: Array | None, peephole: int) -> Array:
            value = total[:, place]
            if self.peepholes is not None and state is not None:
                value = value + state * np.split(self.peepholes[index], 3)[peephole]
            return function(self._clipped(value if bias is None else value + bias[place]))

        opened = gate(f, inside, cell, 0)
        kept = f32(1) - opened if self.node.attributes.get("input_forget", 0) else gate(f, forget, cell, 2)
        made = kept * cell + opened * gate(g, candidate, None, 0)
        return gate(f, outside, made, 1) * h(made), made


@dataclass(frozen=True)
class Lstm:
    """One node, made ready."""

    node: Node
    saturating: bool = False
    in_place: bool = False
    emit: Emitter | None = None

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """See `Kernel`."""
        weights, recurrent = operands[1], operands[2]
        assert weights is not None and recurrent is not None
        if self.node.op == "LSTM" and weights.dtype != f32:
            # onnxruntime has no kernel of 16-bit floats either: it casts around the operator.
            widened = [one if one is None or one.dtype.kind in "iu" else one.astype(f32) for one in operands]
            return [np.asarray(one).astype(weights.dtype) for one in self(widened, (), settings)]
        if self.node.op == "LSTM":
            sides = [[np.ascontiguousarray(one.T) for one in stack] for stack in (weights, recurrent)]
            cells = Cells(self.node, operands, self._float(sides[0]), self._float(sides[1]))
            cells.start_at = tuple(sides[1])
            return cells.run()
        scales, points, r_scales, r_points = operands[8:12]
        cells = Cells(self.node, operands, self._integer(weights, scales, points), self._integer(recurrent, r_scales, r_points))  # fmt: skip
        return cells.run()

    def _float(self, matrices: Sequence[Array]) -> Product:
        return lambda x, index: mlas.product(np.ascontiguousarray(x), matrices[index], packed=True)

    def _integer(self, matrices: Array, scales: Array | None, points: Array | None) -> Product:
        assert scales is not None and points is not None
        saturating = self.saturating and matrices.dtype == np.int8

        def multiply(x: Array, index: int) -> Array:
            stored, scale, point = contributed.quantized_dynamically(self.node, np.ascontiguousarray(x))
            right = points[index].astype(np.int32).reshape(-1)
            if saturating:
                acc = saturation.product(stored, np.ascontiguousarray(matrices[index]), np.reshape(point, 1), right)
            else:
                left = stored.astype(np.int32) - np.int32(point)
                acc = arithmetic.wrap_int32(arithmetic.integer_matmul(left, matrices[index].astype(np.int32) - right))
            return contributed.scaled(acc, contributed.factors(scale, scales[index]), None)

        return multiply


def integer_lstm(scope: Scope) -> Kernel:
    """DynamicQuantizeLSTM: onnxruntime's where the dialect has its products, else `hwq.ops`' own."""
    if scope.dialect.formulas.get("float-product") != "mlas":
        return interpret(scope)
    return Lstm(scope.node, saturation.saturates(scope))


@register("float:LSTM")
def lstm(scope: Scope) -> Kernel:
    """LSTM: onnxruntime's where the dialect has its products, else `hwq.ops`' own."""
    weights = [scope.operand(index) for index in (1, 2)]
    if scope.dialect.formulas.get("float-product") != "mlas" or any(one is None or one.data is None for one in weights):
        return interpret(scope)
    return Lstm(scope.node)
