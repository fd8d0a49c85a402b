"""TFLite's operators with state: SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM.

The state before the step is an operand, the state after it a result (see `hwq.importers.tflite`); the caller keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_hybrid as hybrid
from hwq.ops import tflite_lstm as lstm
from hwq.ops.base import Inferred, register
from hwq.ops.recurrent import bounded
from hwq.ops.tflite_base import INTEGERS, Call, TfliteOp, clamp_float, present, renamed
from hwq.work import Work

__all__ = ["Lstm", "Svdf"]

# Element types of input, feature filters, time filters and state.
SVDF_TYPES = frozenset(
    {
        ("float32", "float32", "float32", "float32"),
        ("float32", "int8", "int8", "float32"),
        ("int8", "int8", "int16", "int16"),
    }
)


def _state(call: Call, index: int, rows: int, size: int) -> Array:
    """A state of `size` elements for `rows` rows, whatever its dimensions; one row starts all of them."""
    flat = call.array(index).reshape(-1, size)
    if flat.shape[0] not in (1, rows):
        raise call.fault(f"a state of {flat.shape[0]} rows does not fit {rows}")
    return np.broadcast_to(flat, (rows, size))


@register
class Svdf(TfliteOp):
    """SVDF: a matrix product, a memory of its last results, and a product with time weights; `rank` filters a unit."""

    operators = ("SVDF",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, feature, time, bias, state = present(node, inputs, 3, 5)
        assert x is not None and feature is not None and time is not None
        rank = int(node.attributes.get("rank", 0))
        if state is None or not (x.known_shape and feature.concrete and time.concrete):
            raise dims.fault(node, "shapes of filters and state must be known")
        if len(x.shape) != 2 or len(feature.shape) != 2 or len(time.shape) != 2 or rank < 1:
            raise dims.fault(
                node, "input, feature filters and time filters must have two dimensions, and the rank must be positive"
            )
        filters, memory = int(time.shape[0]), int(time.shape[1])
        if (
            feature.shape[0] != filters
            or filters % rank
            or (isinstance(x.shape[1], int) and x.shape[1] != feature.shape[1])
            or memory < 1
        ):
            raise dims.fault(
                node,
                f"filters {list(feature.shape)}, {list(time.shape)} of rank {rank} do not fit input {list(x.shape)}",
            )
        if len(state.shape) != 2 or state.shape[1] != filters * memory:
            raise dims.fault(node, f"a state {list(state.shape)} does not hold {filters} filters of {memory} steps")
        if bias is not None and bias.shape != (filters // rank,):
            raise dims.fault(node, f"a bias {list(bias.shape)} does not fit {filters // rank} units")
        given = (x.dtype, feature.dtype, time.dtype, state.dtype)
        if given not in SVDF_TYPES:
            raise dims.fault(
                node, f"{', '.join(given)} for input, feature filters, time filters and state are not supported"
            )
        return [(x.dtype, (x.shape[0], filters // rank), True), (state.dtype, (x.shape[0], filters * memory), True)]

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, feature, time = call.array(0), call.array(1), call.array(2)
        filters, memory = time.shape
        rank, rows = int(call.attribute("rank")), len(x)
        kept = _state(call, 4, rows, filters * memory).reshape(rows, filters, memory)
        if not call.quantized:
            if call.hybrid:
                newest = hybrid.multiply_quantized(hybrid.quantizer(call)(x), feature, call.scale(1))
                time = time.astype(np.float32) * call.scale(2)
            else:
                newest = sums.multiply_by_four(x, feature)
            state = np.concatenate([kept[:, :, 1:], newest[:, :, None]], axis=2)
            parts = sums.add_by_four(state * time[None]).reshape(rows, filters // rank, rank)
            total = np.zeros(parts.shape[:2], np.float32)
            for part in np.moveaxis(parts, 2, 0):
                total += part
            made = total if not call.has(3) else total + call.array(3)
            return [clamp_float(call, made), state.reshape(rows, -1)]
        bits = 8 * call.array(4).dtype.itemsize
        # Both effective scales are formed in float32 (ai-edge-litert 2.3.0).
        first = float(np.float32(np.float32(call.scale(0) * call.scale(1)) / call.scale(4)))
        dot = fixed.wrap32(sums.multiply(sums.exact(x, call.zero_point(0)), feature.astype(np.int32)))
        latest = fixed.saturate(fixed.multiply(dot, *fixed.quantize_multiplier(first)), bits)
        memory_after = np.concatenate([kept[:, :, 1:].astype(np.int64), latest[:, :, None]], axis=2)
        terms = (memory_after * time.astype(np.int64)[None]).sum(axis=2)
        acc = terms.reshape(rows, filters // rank, rank).sum(axis=2)
        if call.has(3):
            acc = acc + call.array(3).astype(np.int64)
        second = float(np.float32(np.float32(call.scale(4) * call.scale(2)) / call.made_scale()))
        values = fixed.multiply(fixed.wrap32(acc), *fixed.quantize_multiplier(second)) + call.made_zero_point()
        # The kernel knows no fused activation but RELU, and leaves that to the result's saturation.
        made8 = np.clip(values, -128, 127).astype(np.int8)
        return [made8, memory_after.reshape(rows, -1).astype(call.array(4).dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: the product with the feature filters; the memory is read, shifted and multiplied beside it."""
        x, feature, time, made = (graph.tensors[name] for name in (*node.inputs[:3], node.outputs[0]))
        filters, memory = int(time.shape[0]), int(time.shape[1])
        rows, depth = int(x.shape[0]), int(feature.shape[1])
        bare = Node(node.op, node.name, node.inputs[:2], node.outputs[:1], node.attributes, node.domain)
        work = accounting.multiply(
            bare,
            graph,
            kind="gemm",
            groups=1,
            m=rows,
            k=depth + memory,
            n=filters,
            batch=rows,
            input_c=depth,
            output_c=int(made.shape[1]),
        )
        bias = graph.tensors[node.inputs[3]].bytes if len(node.inputs) > 3 and node.inputs[3] else 0
        return renamed(
            work,
            node,
            weight_elements=feature.elements + time.elements,
            other_elements=2 * rows * filters * memory,
            bias_bytes=bias,
            epilogue_operations=work.epilogue_operations + accounting.REQUANTIZE * rows * filters,
        )


@register
class Lstm(TfliteOp):
    """UNIDIRECTIONAL_SEQUENCE_LSTM: one layer over a sequence; CIFG, peepholes and projection as the operands say."""

    operators = ("UNIDIRECTIONAL_SEQUENCE_LSTM",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        given = present(node, inputs, 1, 24)
        x = given[0]
        needed = [given[index] for index in (2, 3, 4, 6, 7, 8, 13, 14, 15, 18, 19)]
        if x is None or any(tensor is None for tensor in needed):
            raise dims.fault(node, "an operand that every LSTM needs is missing")
        weight, recurrent = given[4], given[8]
        assert weight is not None and recurrent is not None
        if node.attributes.get("activation") != "TANH":
            raise dims.fault(
                node, f"the activation {node.attributes.get('activation')} is not supported", "kernels have TANH"
            )
        if node.attributes.get("diagonal_recurrence", False):
            raise dims.fault(node, "diagonal recurrent weights are not supported")
        if (x.dtype, weight.dtype) not in {("float32", "float32"), ("float32", "int8"), ("int8", "int8")}:
            raise dims.fault(
                node, f"{x.dtype} activations with {weight.dtype} weights are not supported in this operator"
            )
        if not x.known_shape or not (weight.concrete and recurrent.concrete):
            raise dims.fault(node, "shapes of input and weights must be known")
        if len(x.shape) != 3 or len(weight.shape) != 2 or len(recurrent.shape) != 2:
            raise dims.fault(node, f"input {list(x.shape)} must be a batch of sequences and the weights matrices")
        cells, outputs = int(weight.shape[0]), int(recurrent.shape[1])
        self._check(node, given, cells, outputs, x.shape[2])
        rows: Dim = x.shape[1] if node.attributes.get("time_major", False) else x.shape[0]
        states = [given[18], given[19]]
        return [
            (x.dtype, (*x.shape[:2], outputs), True),
            *(
                (state.dtype, (rows, size), True)
                for state, size in zip(states, (outputs, cells), strict=True)
                if state is not None
            ),
        ]

    def _check(self, node: Node, given: Sequence[Tensor | None], cells: int, outputs: int, depth: Dim) -> None:
        wanted: dict[int, tuple[Dim, ...]] = {index: (cells, depth) for index in range(1, 5)}
        wanted |= {index: (cells, outputs) for index in range(5, 9)} | {index: (cells,) for index in range(9, 16)}
        wanted |= {16: (outputs, cells), 17: (outputs,)} | {index: (cells,) for index in range(20, 24)}
        for index, shape in wanted.items():
            tensor = given[index]
            if tensor is not None and tensor.shape != shape and all(isinstance(dim, int) for dim in shape):
                raise dims.fault(node, f"operand {index} is {list(tensor.shape)}, it must be {list(shape)}")
        if (given[1] is None) != (given[5] is None) or (given[1] is not None and given[12] is None):
            raise dims.fault(node, "the input gate has only some of its operands")
        norms = [given[20 + gate] is not None for gate in range(4) if gate or given[1] is not None]
        if len(set(norms)) > 1 or (given[1] is None and given[20] is not None):
            raise dims.fault(node, "only some gates have a layer normalization")
        if given[16] is None and outputs != cells:
            raise dims.fault(node, f"{cells} cells cannot make {outputs} outputs without a projection")
        for index, size in ((18, outputs), (19, cells)):
            state = given[index]
            last = state.shape[-1] if state is not None and state.known_shape and state.shape else 0
            if (
                not isinstance(last, int)
                or not last
                or last % size
                or (last != size and state is not None and len(state.shape) > 1)
            ):
                raise dims.fault(node, f"state {index} does not hold {size} elements a row")

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        steps = x if call.attribute("time_major", False) else x.transpose(1, 0, 2)
        rows = steps.shape[1]
        bounded(call.node, len(steps))
        outputs, cells = call.array(8).shape[1], call.array(4).shape[0]
        hidden, cell = _state(call, 18, rows, outputs), _state(call, 19, rows, cells)
        hybrid_weights = call.dtype(4) in INTEGERS
        step = (lstm.integer_step if call.quantized else lstm.hybrid_step if hybrid_weights else lstm.float_step)(call)
        made = []
        for one in steps:
            hidden, cell = step(one, hidden, cell)
            made.append(hidden)
        stacked = np.stack(made) if made else np.zeros((0, *hidden.shape), x.dtype)
        result = stacked if call.attribute("time_major", False) else stacked.transpose(1, 0, 2)
        return [np.ascontiguousarray(result), np.ascontiguousarray(hidden), np.ascontiguousarray(cell)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: for each step one product of [input, state] with the weights of all gates."""
        x, made = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
        matrices = [
            graph.tensors[node.inputs[index]]
            for index in (*range(1, 9), 16)
            if index < len(node.inputs) and node.inputs[index]
        ]
        biases = sum(
            graph.tensors[node.inputs[index]].bytes
            for index in (*range(12, 16), 17)
            if index < len(node.inputs) and node.inputs[index]
        )
        cells, outputs, depth = int(graph.tensors[node.inputs[4]].shape[0]), int(made.shape[2]), int(x.shape[2])
        gates = 4 if node.inputs[1] else 3
        rows = int(x.shape[0]) * int(x.shape[1])
        bare = Node(
            node.op, node.name, (node.inputs[0], node.inputs[4]), node.outputs[:1], node.attributes, node.domain
        )
        work = accounting.multiply(
            bare,
            graph,
            kind="gemm",
            groups=1,
            m=rows,
            k=depth + outputs,
            n=gates * cells,
            batch=int(x.shape[1 if node.attributes.get("time_major", False) else 0]),
            input_c=depth,
            output_c=outputs,
        )
        return renamed(
            work,
            node,
            weight_elements=sum(tensor.elements for tensor in matrices),
            bias_bytes=biases,
            vector_operations=rows * cells * (5 if x.dtype in INTEGERS else 4) * gates,
        )
