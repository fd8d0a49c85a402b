"""LSTM, GRU and RNN (ONNX), and onnxruntime's DynamicQuantizeLSTM: float32 sums, nonlinear functions in float64 rounded once.

Equations: ONNX operators LSTM-14, GRU-14, RNN-14. Products are in the fixed order of kernels/README.md. LSTMs with onnxruntime's and
PyTorch's bits are `hwq.execution.recurrent` and `aten`; tests/test_recurrent.py states how near GRU and RNN come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array, Graph, Node, Shape, Tensor
from hwq.ops import accounting, arithmetic, contributed, dims, functions
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["MAX_STEPS", "Function", "Product", "Recurrence", "bounded"]

# Steps of one sequence, about 0.2 to 1 ms each.
MAX_STEPS = 1 << 16
f32 = np.float32
# Gates a cell, in the order in which the weights are stacked: LSTM i o f c, GRU z r h, RNN h.
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
Function = Callable[[Array], Array]
# x [rows, k], direction -> x @ weights of that direction [rows, gates * hidden]
Product = Callable[[Array, int], Array]


def _hidden(node: Node, recurrent: Tensor | Array) -> int:
    stated = node.attributes.get("hidden_size")
    # R is [directions, gates * hidden, hidden], DynamicQuantizeLSTM's [directions, hidden, gates * hidden].
    found = recurrent.shape[1 if node.op == "DynamicQuantizeLSTM" else 2]
    return int(stated) if stated is not None else int(found)


def _directions(node: Node) -> int:
    direction = node.attributes.get("direction", "forward")
    if direction not in {"forward", "reverse", "bidirectional"}:
        raise dims.fault(node, f"direction {direction!r} is unknown", None, "forward, reverse or bidirectional")
    return 2 if direction == "bidirectional" else 1


def _functions(node: Node, each: int, own: Mapping[str, Function]) -> list[Function]:
    """Activation functions, direction after direction; alpha and beta are consumed in order (ONNX). `own` comes first."""
    kind = "LSTM" if node.op == "DynamicQuantizeLSTM" else node.op
    names = [str(name) for name in node.attributes.get("activations", DEFAULTS[kind] * _directions(node))]
    if len(names) != each * _directions(node):
        raise dims.fault(node, f"{len(names)} activations are given for {each * _directions(node)} places")
    alphas, betas = (list(node.attributes.get(name, ())) for name in ("activation_alpha", "activation_beta"))
    made: list[Function] = []
    for name in names:
        if name.lower() in own:
            made.append(own[name.lower()])
            continue
        build = _FUNCTIONS.get(name.lower())
        if build is None:
            raise dims.fault(
                node, f"activation {name} is not supported", None, f"one of: {', '.join(sorted(_FUNCTIONS))}"
            )
        function, alpha, beta = build
        if alpha is not None:
            alpha = float(alphas.pop(0)) if alphas else alpha
        if beta is not None:
            beta = float(betas.pop(0)) if betas else beta
        made.append(_applied(function, alpha, beta))
    return made


def _applied(function: Callable[..., Any], alpha: float | None, beta: float | None) -> Function:
    given = [one for one in (alpha, beta) if one is not None]
    return lambda x: np.asarray(function(x.astype(np.float64), *given)).astype(x.dtype)


# Function of float64, default alpha, default beta (ONNX RNN: activation functions).
_FUNCTIONS: dict[str, tuple[Callable[..., Any], float | None, float | None]] = {
    "sigmoid": (functions.sigmoid, None, None),
    "tanh": (np.tanh, None, None),
    "relu": (lambda x: np.maximum(x, 0.0), None, None),
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a: np.where(x < 0, a * x, x), 0.01, None),
    "thresholdedrelu": (lambda x, a: np.where(x > a, x, 0.0), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0.0)), x), 1.0, None),
    "softsign": (lambda x: x / (1.0 + np.abs(x)), None, None),
    "softplus": (functions.softplus, None, None),
}


def bounded(node: Node, steps: int) -> None:
    """Refuse a sequence that would run for many minutes.

    Raises
    ------
    Error
        It has more than `MAX_STEPS` steps.
    """
    if steps > MAX_STEPS:
        raise dims.fault(
            node,
            f"a sequence of {steps} steps is longer than {MAX_STEPS}",
            "steps depend on each other and run one by one",
            "cut the sequence and feed the states of one part to the next",
        )


class Recurrence:
    """One call: operands unpacked, one direction after the other. A runtime's subclass has functions of its `own`."""

    own: Mapping[str, Function] = MappingProxyType({})

    def __init__(self, node: Node, inputs: Sequence[Array | None], by_input: Product, by_hidden: Product):
        given = [*inputs, *[None] * 8]
        x, recurrent = given[0], given[2]
        assert x is not None and recurrent is not None
        self.node, self.by_input, self.by_hidden = node, by_input, by_hidden
        self.batch_first = bool(node.attributes.get("layout", 0))
        self.x = x.swapaxes(0, 1) if self.batch_first else x  # [time, batch, input]
        self.steps, self.batch = self.x.shape[:2]
        self.size, self.count = _hidden(node, recurrent), _directions(node)
        self.gates = GATES[node.op]
        self.bias, self.lengths = given[3], given[4]
        states = [
            None if one is None else one.swapaxes(0, 1) if self.batch_first else one for one in (given[5], given[6])
        ]
        self.start = [np.zeros((self.count, self.batch, self.size), x.dtype) if one is None else one for one in states]
        self.peepholes = given[7] if self.gates == 4 else None
        self.clip = node.attributes.get("clip")
        each = {4: 3, 3: 2, 1: 1}[self.gates]
        known = _functions(node, each, self.own)
        self.functions = [known[index * each : (index + 1) * each] for index in range(self.count)]

    def run(self) -> list[Array]:
        """Y, Y_h and (LSTM) Y_c."""
        made = np.zeros((self.steps, self.count, self.batch, self.size), self.x.dtype)
        last = [one.copy() for one in self.start]
        for index in range(self.count):
            backwards = index == 1 or self.node.attributes.get("direction", "forward") == "reverse"
            self._direction(index, backwards, made, last)
        outputs = [made, last[0], last[1]][: 3 if self.gates == 4 else 2]
        if self.batch_first:
            outputs = [made.transpose(2, 0, 1, 3), *(one.swapaxes(0, 1) for one in outputs[1:])]
        return [np.ascontiguousarray(one) for one in outputs][: max(len(self.node.outputs), 1)]

    def _direction(self, index: int, backwards: bool, made: Array, last: list[Array]) -> None:
        lengths = np.full(self.batch, self.steps) if self.lengths is None else self.lengths.astype(np.int64)
        bounded(self.node, int(lengths.max(initial=0)))
        if np.any((lengths < 0) | (lengths > self.steps)):
            raise dims.fault(self.node, f"a sequence length lies outside 0..{self.steps}")
        longest = int(lengths.max(initial=0))
        if longest:
            projected = self.by_input(self.x[:longest].reshape(-1, self.x.shape[-1]), index).reshape(longest, self.batch, -1)  # fmt: skip
        hidden, cell = self.start[0][index].copy(), self.start[1][index].copy()
        rows = np.arange(self.batch)
        for step in range(longest):
            # Backwards, a sequence starts at its own last element.
            time = lengths - 1 - step if backwards else np.full(self.batch, step)
            active = step < lengths
            at = np.where(active, time, 0)
            # A sequence that has ended feeds zeros to the product: onnxruntime quantizes a state over the whole batch.
            fed = hidden if step == 0 else np.where((step <= lengths)[:, None], hidden, 0).astype(hidden.dtype)
            new_hidden, new_cell = self._step(index, projected[at, rows], fed, cell)
            hidden = np.where(active[:, None], new_hidden, hidden)
            cell = np.where(active[:, None], new_cell, cell)
            made[at[active], index, rows[active]] = hidden[active]
        empty = (lengths == 0)[:, None]  # onnxruntime gives zeros for an empty sequence, whatever it starts from
        last[0][index], last[1][index] = np.where(empty, 0, hidden), np.where(empty, 0, cell)

    def _biases(self, index: int) -> tuple[Array, Array]:
        width = self.gates * self.size
        if self.bias is None:
            zero = np.zeros(width, self.x.dtype)
            return zero, zero
        return self.bias[index, :width], self.bias[index, width:]

    def _clipped(self, x: Array) -> Array:
        return x if self.clip is None else np.asarray(np.clip(x, -f32(self.clip), f32(self.clip)))

    def _step(self, index: int, x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        if self.gates == 3:
            return self._gru(index, x, hidden), cell
        first, second = self._biases(index)
        total = x + self.by_hidden(hidden, index) + (first + second)
        if self.gates == 1:
            return self.functions[index][0](self._clipped(total)), cell
        inside, outside, forget, candidate = np.split(total, 4, axis=1)
        f, g, h = self.functions[index]
        peep = None if self.peepholes is None else np.split(self.peepholes[index], 3)
        inside = inside if peep is None else inside + peep[0] * cell
        forget = forget if peep is None else forget + peep[2] * cell
        opened = f(self._clipped(inside))
        kept = 1 - opened if self.node.attributes.get("input_forget", 0) else f(self._clipped(forget))
        made = kept * cell + opened * g(self._clipped(candidate))
        outside = outside if peep is None else outside + peep[1] * made
        return f(self._clipped(outside)) * h(made), made

    def _gru(self, index: int, x: Array, hidden: Array) -> Array:
        first, second = self._biases(index)
        size = self.size
        by_hidden = self.by_hidden(hidden, index)
        f, g = self.functions[index]
        gates = f(self._clipped(x[:, : 2 * size] + by_hidden[:, : 2 * size] + (first + second)[: 2 * size]))
        update, reset = gates[:, :size], gates[:, size:]
        if self.node.attributes.get("linear_before_reset", 0):
            inner = reset * (by_hidden[:, 2 * size :] + second[2 * size :])
        else:
            inner = self.by_hidden(reset * hidden, index)[:, 2 * size :] + second[2 * size :]
        candidate = g(self._clipped(x[:, 2 * size :] + inner + first[2 * size :]))
        return np.asarray((1 - update) * candidate + update * hidden)


def _shapes(node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
    if len(inputs) < 3 or any(tensor is None for tensor in inputs[:3]):
        raise dims.fault(node, "the operator needs an input, weights and recurrent weights")
    x, recurrent = inputs[0], inputs[2]
    assert x is not None and recurrent is not None
    count = 3 if GATES[node.op] == 4 else 2
    if not x.known_shape or not recurrent.known_shape:
        return [(x.dtype, (), False)] * count
    if len(x.shape) != 3 or len(recurrent.shape) != 3:
        raise dims.fault(
            node, f"the input and the weights must have three dimensions, not {len(x.shape)} and {len(recurrent.shape)}"
        )
    size, directions = _hidden(node, recurrent), _directions(node)
    first = bool(node.attributes.get("layout", 0))
    time, batch = (x.shape[1], x.shape[0]) if first else (x.shape[0], x.shape[1])
    whole: Shape = (batch, time, directions, size) if first else (time, directions, batch, size)
    state: Shape = (batch, directions, size) if first else (directions, batch, size)
    return [(x.dtype, shape, True) for shape in (whole, state, state)][:count]


@register
class Recurrent(Op):
    """LSTM, GRU and RNN, both directions, both layouts, sequences of different lengths."""

    names = ("LSTM", "GRU", "RNN")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        return _shapes(node, inputs)[: max(len(node.outputs), 1)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        weights, recurrent = inputs[1], inputs[2]
        assert weights is not None and recurrent is not None

        def by(matrices: Array) -> Product:
            return lambda x, index: arithmetic.matmul(np.ascontiguousarray(x), np.ascontiguousarray(matrices[index].T))

        return Recurrence(node, inputs, by(weights), by(recurrent)).run()

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: every step multiplies input and state by their weights."""
        x, w, r = (graph.tensors[name] for name in node.inputs[:3])
        steps = x.elements // max(int(x.shape[-1]), 1)
        return accounting.vector(node, graph, operations=2 * steps * (w.elements + r.elements))


@register
class DynamicQuantizeLSTM(Op):
    """onnxruntime's LSTM with integer weights [directions, k, 4 * hidden]: the whole input, and each step's state, are
    quantized as DynamicQuantizeLinear does; products are exact, scaled in float32.
    """

    names = ("com.microsoft::DynamicQuantizeLSTM",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if len(inputs) < 12 or any(inputs[index] is None for index in range(8, 12)):
            raise dims.fault(node, "the operator needs scales and zero points of both weights")
        return _shapes(node, inputs)[: max(len(node.outputs), 1)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        weights, recurrent, scales, points, r_scales, r_points = (inputs[index] for index in (1, 2, 8, 9, 10, 11))

        def by(matrices: Array | None, scales: Array | None, points: Array | None) -> Product:
            assert matrices is not None and scales is not None and points is not None

            def multiply(x: Array, index: int) -> Array:
                stored, scale, point = contributed.quantized_dynamically(node, np.ascontiguousarray(x))
                left = stored.astype(np.int32) - np.int32(point)
                right = matrices[index].astype(np.int32) - points[index].astype(np.int32).reshape(-1)
                acc = arithmetic.wrap_int32(arithmetic.integer_matmul(left, right))
                return contributed.scaled(acc, contributed.factors(scale, scales[index]), None)

            return multiply

        return Recurrence(node, inputs, by(weights, scales, points), by(recurrent, r_scales, r_points)).run()

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return Recurrent().work(node, graph)
