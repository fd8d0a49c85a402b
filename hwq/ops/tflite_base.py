"""What TFLite's operators share: the call with its tensors' quantization, requantization, activation ranges.

Operators of the domain ``tflite`` compute on stored integers wherever their tensors have a quantization, so their value
depends on more than the arrays: `TfliteOp.apply` takes it from the graph. Alone (`evaluate`) they compute on floats and
plain integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.graph import Array, Dim, Graph, Node, Quantization, Tensor, carrier
from hwq.ops import accounting, dims
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import Inferred, Op
from hwq.work import Work

__all__ = [
    "DEFAULT_DIALECT",
    "DEFAULT_INTERPRETER",
    "INTEGERS",
    "ONNX_NAMES",
    "Call",
    "Moving",
    "TfliteOp",
    "activation_range",
    "by_default",
    "clamp",
    "clamp_float",
    "constant_numbers",
    "contiguous",
    "float_range",
    "renamed",
    "same_scale",
]

DEFAULT_DIALECT = "litert-ref"
# LiteRT without options: XNNPACK, and optimised kernels for what XNNPACK refuses.
DEFAULT_INTERPRETER = "litert-xnnpack"
# Element types that stand for real numbers through a scale.
INTEGERS = frozenset({"int4", "int8", "uint8", "int16"})
ACTIVATIONS = frozenset({"NONE", "RELU", "RELU6", "RELU_N1_TO_1"})
# The name under which machine files and reports know each operator.
ONNX_NAMES = {
    "CONV_2D": "Conv", "DEPTHWISE_CONV_2D": "Conv", "TRANSPOSE_CONV": "ConvTranspose", "FULLY_CONNECTED": "Gemm",
    "BATCH_MATMUL": "MatMul", "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div",
    "AVERAGE_POOL_2D": "AveragePool", "MAX_POOL_2D": "MaxPool", "MEAN": "ReduceMean", "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "REDUCE_PROD": "ReduceProd", "SOFTMAX": "Softmax",
    "LOG_SOFTMAX": "LogSoftmax", "LOGISTIC": "Sigmoid", "TANH": "Tanh", "HARD_SWISH": "HardSwish", "RELU": "Relu",
    "RELU6": "Clip", "RELU_N1_TO_1": "Clip", "RELU_0_TO_1": "Clip", "LEAKY_RELU": "LeakyRelu", "PRELU": "PRelu",
    "ELU": "Elu", "GELU": "Gelu", "QUANTIZE": "QuantizeLinear", "DEQUANTIZE": "DequantizeLinear", "PAD": "Pad",
    "PADV2": "Pad", "MIRROR_PAD": "Pad", "CONCATENATION": "Concat", "SPLIT": "Split", "SPLIT_V": "Split",
    "RESHAPE": "Reshape", "TRANSPOSE": "Transpose", "STRIDED_SLICE": "Slice", "SLICE": "Slice", "GATHER": "Gather",
    "PACK": "Concat", "UNPACK": "Split", "RESIZE_BILINEAR": "Resize", "RESIZE_NEAREST_NEIGHBOR": "Resize",
    "SQUEEZE": "Squeeze", "EXPAND_DIMS": "Unsqueeze", "ARG_MAX": "ArgMax", "ARG_MIN": "ArgMin",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM", "SVDF": "SVDF", "MAXIMUM": "Max", "MINIMUM": "Min", "POW": "Pow",
    "EXP": "Exp", "LOG": "Log", "SQRT": "Sqrt", "RSQRT": "Sqrt", "ABS": "Abs", "NEG": "Neg", "FLOOR": "Floor",
    "CEIL": "Ceil", "ROUND": "Round", "SIN": "Sin", "COS": "Cos", "SIGN": "Sign", "CAST": "Cast", "SHAPE": "Shape",
    "FILL": "Expand", "BROADCAST_TO": "Expand", "TILE": "Tile", "SELECT": "Where", "SELECT_V2": "Where",
    "DEPTH_TO_SPACE": "DepthToSpace", "SPACE_TO_DEPTH": "SpaceToDepth", "SQUARE": "Mul",
    "READ_VARIABLE": "Identity", "ASSIGN_VARIABLE": "Identity",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One operator with its operands, what the graph says about them and about its results, and the dialect."""

    node: Node
    arrays: Sequence[Array | None]
    reads: Sequence[Tensor | None]
    makes: Sequence[Tensor | None]
    dialect: str = DEFAULT_DIALECT

    @staticmethod
    def within(node: Node, arrays: Sequence[Array | None], graph: Graph) -> Call:
        """The call of a node of `graph`."""
        return Call(
            node,
            arrays,
            [graph.tensors[name] if name else None for name in node.inputs],
            [graph.tensors[name] if name else None for name in node.outputs],
            graph.dialect,
        )

    @staticmethod
    def alone(node: Node, arrays: Sequence[Array | None]) -> Call:
        """The call without a graph: no operand has a quantization."""
        reads = [
            None if array is None else Tensor(name, str(array.dtype), tuple(array.shape))
            for name, array in zip(node.inputs, arrays, strict=True)
        ]
        return Call(node, arrays, reads, [None] * len(node.outputs))

    def fault(self, what: str, why: str | None = None, remedy: str | None = None) -> Error:
        """An `Error` about the node."""
        return dims.fault(self.node, what, why, remedy)

    def has(self, index: int) -> bool:
        """Whether operand `index` is given."""
        return index < len(self.arrays) and self.arrays[index] is not None

    def array(self, index: int) -> Array:
        """Operand `index`.

        Raises
        ------
        Error
            It is absent.
        """
        value = self.arrays[index] if index < len(self.arrays) else None
        if value is None:
            raise self.fault(f"operand {index} is missing")
        return value

    def wide(self, index: int) -> fixed.Int64:
        """Operand `index` in int64."""
        return self.array(index).astype(np.int64)

    def optional(self, index: int) -> Array | None:
        """Operand `index`, or None."""
        return self.arrays[index] if index < len(self.arrays) else None

    def numbers(self, index: int) -> tuple[int, ...]:
        """Operand `index` as integers, such as axes or a shape."""
        return tuple(int(value) for value in self.array(index).reshape(-1))

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attributes.get(name, default)

    def dtype(self, index: int) -> str:
        """Element type of operand `index`."""
        tensor = self.reads[index] if index < len(self.reads) else None
        return "" if tensor is None else tensor.dtype

    def made_dtype(self, index: int = 0) -> str:
        """Element type of result `index` as the graph declares it, else that of the first operand."""
        tensor = self.makes[index]
        return self.dtype(0) if tensor is None else tensor.dtype

    @property
    def quantized(self) -> bool:
        """Whether the first operand stands for real numbers through a scale."""
        return self.dtype(0) in INTEGERS

    @property
    def hybrid(self) -> bool:
        """Whether float activations meet integer weights."""
        return self.dtype(0) == "float32" and self.dtype(1) in INTEGERS

    def scheme(self, index: int) -> Quantization:
        """The quantization of operand `index`."""
        return self._known(self.reads[index] if index < len(self.reads) else None, f"operand {index}")

    def made(self, index: int = 0) -> Quantization:
        """The quantization of result `index`."""
        return self._known(self.makes[index], f"result {index}")

    def _known(self, tensor: Tensor | None, which: str) -> Quantization:
        if tensor is None or tensor.quantization is None or not tensor.quantization.known:
            raise self.fault(
                f"{which} is {'integer' if tensor is None else tensor.dtype} without a scale",
                "integer kernels need the scale and zero point of every operand and result",
                "evaluate the node inside its graph (Op.apply)",
            )
        return tensor.quantization

    def scale(self, index: int) -> np.float32:
        """The one scale of operand `index`."""
        return np.float32(self._one(self.scheme(index).scales(), f"operand {index}"))

    def zero_point(self, index: int) -> int:
        """The one zero point of operand `index`."""
        return int(self._one(self.scheme(index).zero_points(), f"operand {index}"))

    def made_scale(self, index: int = 0) -> np.float32:
        """The one scale of result `index`."""
        return np.float32(self._one(self.made(index).scales(), f"result {index}"))

    def made_zero_point(self, index: int = 0) -> int:
        """The one zero point of result `index`."""
        return int(self._one(self.made(index).zero_points(), f"result {index}"))

    def _one(self, values: NDArray[Any], which: str) -> Any:
        if values.size != 1:
            raise self.fault(f"{which} has {values.size} scales where the kernel takes one")
        return values.reshape(())


# What the default interpreter computes otherwise than the reference kernels; None where both compute the same.
Alternative = Callable[[Call], Array | None]
BY_DEFAULT: dict[str, Alternative] = {}


def by_default(*operators: str) -> Callable[[Alternative], Alternative]:
    """Decorator: the function is the default interpreter's kernel of these operators."""

    def note(function: Alternative) -> Alternative:
        BY_DEFAULT.update(dict.fromkeys(operators, function))
        return function

    return note


class TfliteOp(Op):
    """An operator of the domain ``tflite``; a subclass gives `infer` and `compute`."""

    operators: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.names = tuple(f"tflite::{name}" for name in cls.operators)

    def compute(self, call: Call) -> list[Array]:
        """The operator's value."""
        raise NotImplementedError

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`: floats and plain integers only."""
        return self.compute(Call.alone(node, inputs))

    def apply(self, node: Node, inputs: Sequence[Array | None], graph: Graph) -> list[Array]:
        """See `Op.apply`."""
        call = Call.within(node, inputs, graph)
        with np.errstate(all="ignore"):  # infinities and what is no number are results like others
            if graph.dialect == DEFAULT_INTERPRETER and node.op in BY_DEFAULT:
                made = BY_DEFAULT[node.op](call)
                if made is not None:
                    return [made]
            return self.compute(call)

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return renamed(accounting.vector(node, graph), node)


class Moving(TfliteOp):
    """An operator that puts elements elsewhere and changes none; its result has the first operand's scale."""

    view: ClassVar[bool] = False

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        return renamed(accounting.view(node, graph) if self.view else accounting.move(node, graph), node)


def renamed(work: Work, node: Node, **changes: Any) -> Work:
    """The Work under the name that machine files know."""
    return replace(work, op=ONNX_NAMES.get(node.op, node.op), **changes)


def activation_range(call: Call, index: int = 0) -> tuple[int, int]:
    """(lowest, highest) stored value of a result after the fused activation.

    Zero point plus the bound over the scale, in float32, halves away from zero.
    """
    dtype = call.made_dtype(index)
    info = np.iinfo(carrier(dtype))
    low, high = int(info.min), int(info.max)
    activation = checked_activation(call.node)
    if activation == "NONE":
        return low, high
    scale, zero = call.made_scale(index), call.made_zero_point(index)

    def stored(bound: float) -> int:
        return zero + int(fixed.away(np.float32(np.float32(bound) / scale)))

    low = max(low, stored(-1.0 if activation == "RELU_N1_TO_1" else 0.0))
    if activation != "RELU":
        high = min(high, stored(1.0 if activation == "RELU_N1_TO_1" else 6.0))
    return low, high


def checked_activation(node: Node) -> str:
    """The fused activation.

    Raises
    ------
    Error
        It is one that no kernel of this operator has.
    """
    activation = str(node.attributes.get("activation", "NONE"))
    if activation not in ACTIVATIONS:
        raise dims.fault(
            node,
            f"the fused activation {activation} is not supported",
            f"kernels have {', '.join(sorted(ACTIVATIONS))}",
        )
    return activation


def clamp(call: Call, values: fixed.Int64, index: int = 0) -> Array:
    """Stored integers after zero point, fused activation and saturation."""
    low, high = activation_range(call, index)
    return np.asarray(np.clip(values, low, high).astype(carrier(call.made_dtype(index))))


_FLOAT_RANGES = {"NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


def float_range(node: Node) -> tuple[float | None, float | None]:
    """Bounds of the fused activation; None where it has none."""
    return _FLOAT_RANGES[checked_activation(node)]


def clamp_float(call: Call, values: Array, *, finite: bool = True) -> Array:
    """Float values, or plain integers, after the fused activation; BUILTIN_REF's bounds are finite where there is none."""
    low, high = float_range(call.node)
    if finite and values.dtype.kind == "f" and call.dialect != DEFAULT_INTERPRETER:
        info = np.finfo(values.dtype)
        low, high = float(info.min) if low is None else low, float(info.max) if high is None else high
    if low is None:
        return values
    bounded: Array = np.maximum(values, np.asarray(low, values.dtype))
    return bounded if high is None else np.minimum(bounded, np.asarray(high, values.dtype))


def contiguous(x: Array) -> Array:
    """`x` in memory order, its rank kept (NumPy's ascontiguousarray makes a scalar a vector)."""
    return np.asarray(x, order="C")


def same_scale(call: Call, index: int = 0) -> bool:
    """Whether operand `index` and the first result share scale and zero point."""
    return call.scale(index) == call.made_scale() and call.zero_point(index) == call.made_zero_point()


def present(node: Node, inputs: Sequence[Tensor | None], least: int, most: int | None = None) -> list[Tensor | None]:
    """The operands, padded with None to `most`.

    Raises
    ------
    Error
        One of the first `least` is absent, or there are more than `most`.
    """
    most = least if most is None else most
    if len(inputs) > most or len(inputs) < least or any(tensor is None for tensor in inputs[:least]):
        raise dims.fault(
            node,
            f"the operator needs {least if most == least else f'{least} to {most}'} inputs, it has "
            f"{sum(tensor is not None for tensor in inputs)}",
        )
    return [*inputs, *[None] * (most - len(inputs))]


def same_dtype(node: Node, *tensors: Tensor) -> str:
    """The one element type of the operands."""
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        raise dims.fault(node, f"its operands have different types: {', '.join(tensor.dtype for tensor in tensors)}")
    return tensors[0].dtype


def inferred(dtype: str, shape: Sequence[Dim] | None) -> list[Inferred]:
    """One result; None: its shape is not known yet."""
    return [(dtype, () if shape is None else tuple(shape), shape is not None)]


def constant_numbers(node: Node, tensor: Tensor | None, what: str) -> tuple[int, ...] | None:
    """The integers of a constant operand (a scalar counts as one), or None where they are known at run time only.

    Raises
    ------
    Error
        They are no integers, or more than any shape needs.
    """
    if tensor is not None and tensor.data is not None and tensor.data.ndim != 1 and tensor.data.size <= 4096:
        if tensor.data.dtype.kind not in "iu":
            raise dims.fault(node, f"{what} must be integers, not {tensor.dtype}")
        return tuple(int(value) for value in tensor.data.reshape(-1))
    return dims.integers(node, tensor, what)
