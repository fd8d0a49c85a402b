"""TFLite's products: convolutions, fully connected, batched matrix product.

Sources of the arithmetic: kernels/README.md (dialect ``litert-ref``); counts of values compared stand in the dialect's
evidence. Accumulators are int32 and wrap, but int64 where int16 activations have an int64 bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.graph import Array, Dim, Graph, Node, Tensor
from hwq.ops import accounting, dims
from hwq.ops import tflite_accumulators as sums
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops import tflite_hybrid as hybrid
from hwq.ops import tflite_rescaling as rescaling
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import INTEGERS, Call, TfliteOp, clamp_float, inferred, present, renamed
from hwq.work import Work

__all__ = ["BatchMatmul", "Convolution", "FullyConnected", "TransposeConvolution"]


def _result_type(node: Node, x: Tensor, weight: Tensor) -> str:
    pair = (x.dtype, weight.dtype)
    if pair in {("float32", "float32"), ("uint8", "uint8"), ("int16", "int16")}:
        return x.dtype
    if x.dtype in {"int8", "int16", "float32"} and weight.dtype in {"int8", "int4"}:
        return x.dtype
    if pair in {("float32", "uint8"), ("float32", "float16")}:
        return x.dtype
    raise dims.fault(
        node, f"{x.dtype} activations with {weight.dtype} weights are not supported", "LiteRT has no such kernel"
    )


def _require_constant_scale_axis(node: Node, weight: Tensor, axis: int) -> None:
    quantization = weight.quantization
    if quantization is not None and quantization.axis not in (None, axis):
        raise dims.fault(
            node, f"the weight's scales lie along axis {quantization.axis}", f"kernels take them along axis {axis}"
        )


@register
class Convolution(TfliteOp):
    """CONV_2D (filters OHWI, grouped where the filter has fewer channels) and DEPTHWISE_CONV_2D (filters 1HWC)."""

    operators = ("CONV_2D", "DEPTHWISE_CONV_2D")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, weight, bias = present(node, inputs, 2, 3)
        assert x is not None and weight is not None
        dtype = _result_type(node, x, weight)
        if not (x.known_shape and weight.known_shape):
            return inferred(dtype, None)
        if len(x.shape) != 4 or len(weight.shape) != 4 or not weight.concrete:
            raise dims.fault(node, f"input {list(x.shape)} and filter {list(weight.shape)} must have four dimensions")
        deep = node.op == "DEPTHWISE_CONV_2D"
        _require_constant_scale_axis(node, weight, 3 if deep else 0)
        filters = int(weight.shape[3 if deep else 0])
        channels = x.shape[3]
        if isinstance(channels, int):
            each = 1 if deep else int(weight.shape[3])
            if deep and (weight.shape[0] != 1 or channels < 1 or filters % channels):
                raise dims.fault(node, f"a depthwise filter {list(weight.shape)} does not fit {channels} channels")
            if not deep and (each < 1 or channels % each or filters % (channels // each)):
                raise dims.fault(node, f"a filter {list(weight.shape)} does not fit {channels} channels")
        if bias is not None and bias.known_shape and bias.shape != (filters,):
            raise dims.fault(node, f"a bias {list(bias.shape)} does not fit {filters} filters")
        windows = sums.windows_of(node, x.shape[1:3], (int(weight.shape[1]), int(weight.shape[2])))
        return inferred(dtype, (x.shape[0], *windows.counts, filters))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, weight = call.array(0), call.array(1)
        windows = sums.windows_of(call.node, x.shape[1:3], weight.shape[1:3])
        add = sums.depthwise if call.node.op == "DEPTHWISE_CONV_2D" else sums.convolve
        if call.quantized:
            # Padding contributes nothing: a padded element is the zero point, so it is 0 once that is taken off.
            filter_zero = call.zero_point(1) if call.dtype(1) == "uint8" else 0
            total = add(sums.exact(x, call.zero_point(0)), sums.exact(weight, filter_zero), windows)
            return [rescaling.requantize(call, total, call.optional(2))]
        if call.hybrid:
            return [clamp_float(call, hybrid.convolve(call, windows, add))]
        total = add(x, weight.astype(np.float32), windows)
        return [clamp_float(call, total if not call.has(2) else total + call.array(2))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        x, weight, made = (graph.tensors[name] for name in (*node.inputs[:2], node.outputs[0]))
        _ = x.elements, made.elements
        deep = node.op == "DEPTHWISE_CONV_2D"
        taps = int(weight.shape[1]) * int(weight.shape[2])
        channels, filters = int(x.shape[3]), int(made.shape[3])
        each = 1 if deep else int(weight.shape[3])
        groups = channels // max(each, 1)
        return _product(
            node,
            graph,
            weight,
            kind="depthwise" if deep or (each == 1 and groups > 1) else "gemm",
            groups=groups,
            m=made.elements // max(filters, 1),
            k=taps * each,
            n=filters // max(groups, 1),
            **_window_geometry(node, x, weight, made),
        )


def _window_geometry(node: Node, x: Tensor, weight: Tensor, made: Tensor) -> dict[str, int]:
    strides = node.attributes["strides"]
    return {
        "batch": int(made.shape[0]),
        "input_h": int(x.shape[1]),
        "input_w": int(x.shape[2]),
        "input_c": int(x.shape[3]),
        "output_h": int(made.shape[1]),
        "output_w": int(made.shape[2]),
        "output_c": int(made.shape[3]),
        "kernel_h": int(weight.shape[1]),
        "kernel_w": int(weight.shape[2]),
        "stride_h": int(strides[0]),
        "stride_w": int(strides[1]),
    }


def _product(
    node: Node, graph: Graph, weight: Tensor, *, first: int = 0, second: int = 1, bias: int = 2, **fields: object
) -> Work:
    """`accounting.multiply`, with the fused activation counted, and hybrid products in the precision they run in."""
    operands = tuple(
        node.inputs[index] for index in (first, second, bias) if index < len(node.inputs) and node.inputs[index]
    )
    bare = Node(node.op, node.name, operands, node.outputs, node.attributes, node.domain, node.origin, node.layout)
    work = accounting.multiply(bare, graph, **fields)  # type: ignore[arg-type]
    changes: dict[str, object] = {}
    if node.attributes.get("activation", "NONE") != "NONE" and not work.precision.startswith("int"):
        changes["epilogue_operations"] = work.epilogue_operations + work.output_elements
    if graph.tensors[operands[0]].dtype == "float32" and weight.dtype in INTEGERS:
        changes["precision"] = "int8"  # rows are quantized on the fly; each output is rescaled once
        changes["epilogue_operations"] = work.epilogue_operations + work.output_elements
        changes["vector_operations"] = 5 * work.input_elements  # minimum, maximum, multiply, round, saturate
    return renamed(work, node, **changes)


@register
class TransposeConvolution(TfliteOp):
    """TRANSPOSE_CONV: operands are the output's shape, the filters OHWI, the input and an optional bias."""

    operators = ("TRANSPOSE_CONV",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        target, weight, x, bias = present(node, inputs, 3, 4)
        assert target is not None and weight is not None and x is not None
        dtype = _result_type(node, x, weight)
        shape = dims.integers(node, target, "the output shape")
        if not (x.known_shape and weight.known_shape):
            return inferred(dtype, None)
        if len(x.shape) != 4 or len(weight.shape) != 4 or not weight.concrete:
            raise dims.fault(node, f"input {list(x.shape)} and filter {list(weight.shape)} must have four dimensions")
        _require_constant_scale_axis(node, weight, 0)
        if min(dims.ints_attribute(node, "strides", (), 2)) < 1:
            raise dims.fault(node, "strides must be positive")
        filters = int(weight.shape[0])
        if isinstance(x.shape[3], int) and x.shape[3] != weight.shape[3]:
            raise dims.fault(node, f"a filter {list(weight.shape)} does not fit {x.shape[3]} channels")
        if bias is not None and bias.known_shape and bias.shape != (filters,):
            raise dims.fault(node, f"a bias {list(bias.shape)} does not fit {filters} filters")
        if shape is None:
            return inferred(dtype, None)
        if (
            len(shape) != 4
            or min(shape) < 0
            or shape[3] != filters
            or (isinstance(x.shape[0], int) and shape[0] != x.shape[0])
        ):
            raise dims.fault(node, f"an output {list(shape)} does not fit input {list(x.shape)} and {filters} filters")
        if isinstance(x.shape[0], str):
            raise dims.fault(node, "the output's shape fixes the batch, the input leaves it open")
        return inferred(dtype, shape)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        shape = tuple(int(dim) for dim in call.array(0))
        x, weight = call.array(2), call.array(1)
        strides = call.attribute("strides")
        space = (shape[1], shape[2])
        if call.dtype(2) in INTEGERS:
            filter_zero = call.zero_point(1) if call.dtype(1) == "uint8" else 0
            total = sums.transposed(
                sums.exact(x, call.zero_point(2)),
                sums.exact(weight, filter_zero),
                space,
                strides,
                call.attribute("padding"),
            )
            return [rescaling.requantize(call, total, call.optional(3), first=2, second=1)]
        total = sums.transposed(x, weight.astype(np.float32), space, strides, call.attribute("padding"))
        return [clamp_float(call, total if not call.has(3) else total + call.array(3))]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: one product of all filters for each input position."""
        weight, x, made = (graph.tensors[name] for name in (node.inputs[1], node.inputs[2], node.outputs[0]))
        taps = int(weight.shape[1]) * int(weight.shape[2])
        positions = x.elements // max(int(x.shape[3]), 1)
        return _product(
            node,
            graph,
            weight,
            first=2,
            second=1,
            bias=3,
            kind="gemm",
            groups=1,
            m=positions,
            k=int(x.shape[3]),
            n=taps * int(made.shape[3]),
            **_window_geometry(node, x, weight, made),
        )


@register
class FullyConnected(TfliteOp):
    """FULLY_CONNECTED: rows of the flattened input times filters [outputs, inputs]."""

    operators = ("FULLY_CONNECTED",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x, weight, bias = present(node, inputs, 2, 3)
        assert x is not None and weight is not None
        if node.attributes.get("weights_format", "DEFAULT") != "DEFAULT":
            raise dims.fault(node, "shuffled weights are not supported", "the format belongs to one kernel of one CPU")
        dtype = str(node.attributes.get("to", _result_type(node, x, weight)))
        if dtype != _result_type(node, x, weight) and not (x.dtype == "int8" and dtype == "int16"):
            raise dims.fault(node, f"{x.dtype} activations cannot make {dtype}")
        if not (x.known_shape and weight.known_shape):
            return inferred(dtype, None)
        if len(weight.shape) != 2 or not weight.concrete:
            raise dims.fault(node, f"a filter {list(weight.shape)} must have two dimensions")
        _require_constant_scale_axis(node, weight, 0)
        outputs, depth = int(weight.shape[0]), int(weight.shape[1])
        if bias is not None and bias.known_shape and bias.elements != outputs:
            raise dims.fault(node, f"a bias {list(bias.shape)} does not fit {outputs} outputs")
        rows: Sequence[Dim]
        if node.attributes.get("keep_dims", False):
            if not x.shape or x.shape[-1] != depth:
                raise dims.fault(node, f"rows of {list(x.shape)} have not {depth} elements")
            rows = x.shape[:-1]
        else:
            count = dims.quotient(x.shape, [depth])
            if count is None:
                raise dims.fault(node, f"an input {list(x.shape)} has no whole rows of {depth} elements")
            rows = [count]
        return inferred(dtype, (*rows, outputs))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, weight = call.array(0), call.array(1)
        outputs, depth = weight.shape
        rows = x.reshape(-1, depth) if depth else x.reshape(x.shape[0], 0)
        shape = (*x.shape[:-1], outputs) if call.attribute("keep_dims", False) else (len(rows), outputs)
        bias = None if not call.has(2) else call.array(2).reshape(-1)
        if call.quantized:
            total = sums.multiply(
                sums.exact(rows, call.zero_point(0)), sums.exact(weight, hybrid.filter_zero_point(call))
            )
            made = rescaling.requantize(call, total, bias)
        elif call.hybrid:
            made = clamp_float(call, hybrid.multiply_rows(call, rows, weight, bias), finite=False)
        else:
            total = sums.multiply(rows, weight.astype(np.float32))
            made = clamp_float(call, total if bias is None else total + bias)
        return [made.reshape(shape)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        x, weight, made = (graph.tensors[name] for name in (*node.inputs[:2], node.outputs[0]))
        outputs, depth = int(weight.shape[0]), int(weight.shape[1])
        rows = x.elements // max(depth, 1)
        batch = int(made.shape[0]) if len(made.shape) > 1 else 1
        return _product(
            node,
            graph,
            weight,
            kind="gemm",
            groups=1,
            m=rows,
            k=depth,
            n=outputs,
            batch=batch,
            input_h=1,
            input_w=max(rows // max(batch, 1), 1),
            input_c=depth,
            output_h=1,
            output_w=max(rows // max(batch, 1), 1),
            output_c=outputs,
        )


@register
class BatchMatmul(TfliteOp):
    """BATCH_MATMUL: both operands may be transposed first; leading dimensions broadcast."""

    operators = ("BATCH_MATMUL",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        a, b = present(node, inputs, 2)
        assert a is not None and b is not None
        if node.attributes.get("to") == "int32" and a.dtype == b.dtype == "int8":
            dtype = "int32"
        else:
            dtype = _result_type(node, a, b)
        if not (a.known_shape and b.known_shape):
            return inferred(dtype, None)
        if min(len(a.shape), len(b.shape)) < 2:
            raise dims.fault(node, f"operands {list(a.shape)} and {list(b.shape)} must be matrices")
        left = _swapped(a.shape, node.attributes.get("transpose_first", False))
        right = _swapped(b.shape, node.attributes.get("transpose_second", False))
        if left[-1] != right[-2] and isinstance(left[-1], int) and isinstance(right[-2], int):
            raise dims.fault(
                node, f"operands {list(a.shape)} and {list(b.shape)} do not fit", f"{left[-1]} meets {right[-2]}"
            )
        return inferred(dtype, (*dims.broadcast(node, [left[:-2], right[:-2]]), left[-2], right[-1]))

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        a = np.swapaxes(call.array(0), -1, -2) if call.attribute("transpose_first", False) else call.array(0)
        b = np.swapaxes(call.array(1), -1, -2) if call.attribute("transpose_second", False) else call.array(1)
        if call.quantized:
            if call.made_dtype() == "int32":
                raise call.fault("int32 results are not supported yet")
            total = sums.multiply_matrices(sums.exact(a, call.zero_point(0)), sums.exact(b, call.zero_point(1)))
            return [rescaling.requantize_matrices(call, total)]
        if call.hybrid:
            raise call.fault(
                "float activations with integer weights are not supported in this operator", None, "use FULLY_CONNECTED"
            )
        return [sums.multiply_matrices(a, b)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        a, b, made = (graph.tensors[name] for name in (*node.inputs[:2], node.outputs[0]))
        rows, columns = int(made.shape[-2]), int(made.shape[-1])
        depth = int(_swapped(a.shape, node.attributes.get("transpose_first", False))[-1])
        groups = made.elements // max(rows * columns, 1)
        return _product(
            node,
            graph,
            b,
            kind="gemm",
            groups=groups,
            m=rows,
            k=depth,
            n=columns,
            batch=1,
            input_w=rows,
            input_c=depth,
            output_w=rows,
            output_c=columns,
        )


def _swapped(shape: Sequence[Dim], swap: object) -> tuple[Dim, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if swap else tuple(shape)


Wide = fixed.Int64
