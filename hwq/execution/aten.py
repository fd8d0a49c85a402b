"""PyTorch's dynamic LSTM on the fbgemm engine: products of 7-bit activations, gates as ATen's CPU kernels compute them.

aten/src/ATen/native/RNN.cpp: one range for the whole input of a layer and direction, one for each step's hidden state; the
recurrent product, with its bias, plus the input's, with its own. Sigmoid is ``1 / (1 + exp(-x))``: whole vectors of a row
take Sleef's expf_u10, the columns behind them the C library's expf. Tanh is MKL's (`hwq.execution.mkl`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.errors import NotSupportedYet
from hwq.execution import fbgemm, mkl
from hwq.execution import recurrent as recurrent_cells
from hwq.execution.emission import Emitter
from hwq.execution.steps import Kernel, Scope, Settings, register
from hwq.graph import Array, Node
from hwq.numerics import exp_c, fused_multiply_add
from hwq.ops import dims
from hwq.ops.recurrent import Recurrence

__all__ = ["COLUMNS", "TANH", "exp_sleef", "sigmoid"]

f32 = np.float32
# Columns that one iteration of an elementwise kernel takes, two vectors of float32 (ATen's VectorizedLoop2d).
COLUMNS = {"aten-avx512": 32, "aten-avx512-mkl-avx2": 32, "aten-avx2": 16}
TANH = {"aten-avx512": "avx512", "aten-avx512-mkl-avx2": "avx2", "aten-avx2": "avx2"}
# Sleef 3's expf_u10 (Shibata and Petrogalli 2020): log2(e), -ln(2) in two parts, the polynomial of (exp(s) - 1 - s) / s^2.
LOG2E = f32(1.442695040888963407)
LN2 = (f32(-0.693145751953125), f32(-1.428606765330187045e-06))
SLEEF = tuple(
    f32(value)
    for value in (
        0.000198527617612853646278381,
        0.00139304355252534151077271,
        0.00833336077630519866943359,
        0.0416664853692054748535156,
        0.166666671633720397949219,
        0.5,
    )
)


def exp_sleef(x: Array) -> Array:
    """Sleef's expf_u10 with FMA; float32 in and out. Lanes are independent, so AVX2 and AVX-512 agree."""
    x = np.asarray(x, f32)
    # Beyond these bounds Sleef selects 0 and infinity; inside them |q| <= 151.
    inside = np.clip(np.where(np.isnan(x), f32(0), x), f32(-104), f32(100))
    q = np.rint(inside * LOG2E)
    s = inside
    for part in LN2:
        s = _fma(q, part, s)
    u = np.full_like(s, SLEEF[0])
    for term in SLEEF[1:]:
        u = _fma(u, s, term)
    u = f32(1) + fused_multiply_add((s * s).astype(f32), u, s)
    with np.errstate(over="ignore", under="ignore"):
        made = np.ldexp(u.astype(f32), q.astype(np.int32))
    made = np.where(x < -104, f32(0), np.where(x > 100, f32(np.inf), made))
    return np.where(np.isnan(x), x, made).astype(f32)


def sigmoid(x: Array, columns: int) -> Array:
    """ATen's sigmoid of float32 rows (rows, n), on one thread.

    Parameters
    ----------
    x : float32 array (rows, n)
    columns : int
        Columns an iteration, of `COLUMNS`; the last ``n % columns`` of a row are computed one by one.
    """
    whole = x.shape[1] // columns * columns
    # A NaN stays one, whatever its bits.
    x = np.where(np.isnan(x), f32(np.nan), x)
    e = np.concatenate([exp_sleef(-x[:, :whole]), exp_c(-x[:, whole:])], axis=1)
    made: Array = (f32(1) / (f32(1) + e)).astype(f32)
    return made


def _fma(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    return fused_multiply_add(a, np.broadcast_to(b, a.shape), np.broadcast_to(c, a.shape))


class Cells(Recurrence):
    """`Recurrence` with ATen's cell; both products hold their biases already."""

    build = ""

    def _step(self, index: int, x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        gates = self.by_hidden(hidden, index) + x
        opened, outside, kept, candidate = (np.ascontiguousarray(part) for part in np.split(gates, 4, axis=1))
        opened, outside, kept = (sigmoid(part, COLUMNS[self.build]) for part in (opened, outside, kept))
        made = kept * cell + opened * mkl.tanh(candidate, TANH[self.build])
        return outside * mkl.tanh(made, TANH[self.build]), made


@dataclass(frozen=True)
class Lstm:
    """One layer, made ready: a packed matrix, scales and biases for each direction and side."""

    node: Node
    build: str
    sides: tuple[tuple[fbgemm.Linear, ...], tuple[fbgemm.Linear, ...]]
    in_place: bool = False
    emit: Emitter | None = None

    def __call__(
        self, operands: Sequence[Array | None], outs: Sequence[Array | None], settings: Settings
    ) -> Sequence[Array]:
        """See `Kernel`."""
        by_input, by_hidden = self.sides
        cells = Cells(
            self.node,
            operands,
            lambda x, index: by_input[index](np.ascontiguousarray(x), settings.threads),
            lambda x, index: by_hidden[index](np.ascontiguousarray(x), settings.threads),
        )
        cells.build = self.build
        for state in cells.start:
            if state.shape != (cells.count, cells.batch, cells.size):
                want = (cells.count, cells.batch, cells.size)
                raise dims.fault(self.node, f"a state of shape {state.shape} is given, {want} is needed")
        return cells.run()


@register("com.microsoft::DynamicQuantizeLSTM")
def lstm(scope: Scope) -> Kernel:
    """torch.quantized_lstm where the dialect says so, else onnxruntime's.

    Raises
    ------
    NotSupportedYet
        Weights that are computed or have zero points, and what torch's LSTM does not have: lengths, peepholes, clipping,
        other functions.
    """
    build = scope.dialect.formulas.get("DynamicQuantizeLSTM", "")
    if build not in COLUMNS:
        return recurrent_cells.integer_lstm(scope)
    node, where = scope.node, f"node {scope.node.name}"
    constants = [scope.operand(index) for index in (1, 2, 8, 9, 10, 11)]
    if any(one is None or one.data is None for one in constants):
        raise NotSupportedYet(f"computed weights in dialect {scope.dialect.name}", where=where)
    weights, recurrent, scales, points, r_scales, r_points = (one.data for one in constants if one is not None)
    assert weights is not None and recurrent is not None and scales is not None and r_scales is not None
    if weights.dtype != np.int8 or recurrent.dtype != np.int8 or np.any(points) or np.any(r_points):
        raise NotSupportedYet(f"weights with a zero point in dialect {scope.dialect.name}", where=where)
    unknown = {"clip", "input_forget", "activations"} & set(node.attributes)
    if unknown or node.attributes.get("direction", "forward") == "reverse":
        raise NotSupportedYet(f"an LSTM with {', '.join(sorted(unknown)) or 'direction reverse'}", where=where)
    bias = scope.operand(3)
    if scope.operand(4) is not None or scope.operand(7) is not None or (bias is not None and bias.data is None):
        raise NotSupportedYet("an LSTM with lengths, peepholes or computed biases in this dialect", where=where)
    count, width = weights.shape[0], weights.shape[2]
    offsets = np.zeros((count, 2 * width), f32) if bias is None or bias.data is None else bias.data

    def side(matrices: Array, steps: Array, first: int) -> tuple[fbgemm.Linear, ...]:
        return tuple(
            fbgemm.Linear(
                kernels.pack(np.ascontiguousarray(matrices[index])),
                np.ascontiguousarray(steps[index]).reshape(-1),
                np.ascontiguousarray(offsets[index, first : first + width]),
            )
            for index in range(count)
        )

    return Lstm(node, build, (side(weights, scales, 0), side(recurrent, r_scales, width)))
