"""QUANTIZE, DEQUANTIZE and CAST of TFLite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Graph, Node, Quantization, Tensor, carrier
from hwq.ops import accounting, dims
from hwq.ops import tflite_fixedpoint as fixed
from hwq.ops.base import Inferred, register
from hwq.ops.tflite_base import Call, TfliteOp, inferred, present, renamed
from hwq.work import Work

__all__ = ["Cast", "Dequantize", "Quantize", "along"]


def along(values: NDArray[np.float32] | NDArray[np.int32], quantization: Quantization, rank: int) -> Array:
    """Scales or zero points in a shape that broadcasts against a tensor of `rank` dimensions."""
    if quantization.axis is None:
        return values.reshape(())
    return values.reshape([-1 if axis == quantization.axis else 1 for axis in range(rank)])


@register
class Quantize(TfliteOp):
    """QUANTIZE: from float32, or from one stored type to another (R1)."""

    operators = ("QUANTIZE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        dtype = str(node.attributes.get("to", ""))
        if dtype not in {"int8", "uint8", "int16", "int32"} or x.dtype not in {
            "float32",
            "int8",
            "uint8",
            "int16",
            "int32",
        }:
            raise dims.fault(node, f"{x.dtype} cannot be quantized to {dtype or 'an unknown type'}")
        return inferred(dtype, x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x, scheme = call.array(0), call.made()
        info = np.iinfo(carrier(call.made_dtype()))
        if x.dtype == np.float32:
            points = along(scheme.zero_points(), scheme, x.ndim).astype(np.int64)
            with np.errstate(all="ignore"):
                rounded = fixed.away((x / along(scheme.scales(), scheme, x.ndim)).astype(np.float32))
            # The conversion to int32 gives INT32_MIN for whatever does not fit, NaN and +1e30 included (x86).
            fits = (rounded >= -(2.0**31)) & (rounded < 2.0**31)
            stored = np.where(fits, np.where(fits, rounded, 0), fixed.INT32_MIN).astype(np.int64)
            return [np.clip(stored + points, info.min, info.max).astype(info.dtype)]
        real = float(call.scale(0)) / float(call.made_scale())
        if (
            {call.dtype(0), call.made_dtype()} == {"int8", "uint8"}
            and real == 1.0
            and call.made_zero_point() - call.zero_point(0) == (128 if call.made_dtype() == "uint8" else -128)
        ):
            return [(x.view(np.uint8) ^ np.uint8(0x80)).view(info.dtype)]
        values = (
            fixed.multiply(call.wide(0) - call.zero_point(0), *fixed.quantize_multiplier(real)) + call.made_zero_point()
        )
        return [np.clip(values, info.min, info.max).astype(info.dtype)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        made = graph.tensors[node.outputs[0]]
        work = accounting.vector(node, graph, operations=accounting.REQUANTIZE * made.elements)
        return renamed(work, node, scale_bytes=accounting.scale_bytes(made.quantization, made.shape))


@register
class Dequantize(TfliteOp):
    """DEQUANTIZE: ``f32(scale * (q - zero point))``; float16 is widened."""

    operators = ("DEQUANTIZE",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        if x.dtype not in {"int4", "int8", "uint8", "int16", "int32", "float16"}:
            raise dims.fault(node, f"{x.dtype} cannot be dequantized")
        return inferred("float32", x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        x = call.array(0)
        if x.dtype == np.float16:
            return [x.astype(np.float32)]
        scheme = call.scheme(0)
        # The product of a 24-bit scale and an integer of up to 17 bits is exact in float64 and is rounded once.
        distance = x.astype(np.float64) - along(scheme.zero_points(), scheme, x.ndim)
        return [(distance * along(scheme.scales(), scheme, x.ndim).astype(np.float64)).astype(np.float32)]

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`."""
        x = graph.tensors[node.inputs[0]]
        return renamed(
            accounting.vector(node, graph, operations=2 * x.elements),
            node,
            scale_bytes=accounting.scale_bytes(x.quantization, x.shape),
        )


@register
class Cast(TfliteOp):
    """CAST between plain types; floats are truncated toward zero and saturate, no number gives the largest."""

    operators = ("CAST",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = present(node, inputs, 1)
        assert x is not None
        return inferred(str(node.attributes["to"]), x.shape if x.known_shape else None)

    def compute(self, call: Call) -> list[Array]:
        """See `TfliteOp.compute`."""
        kind = carrier(str(call.attribute("to")))
        x = call.array(0)
        if kind == np.bool_:
            return [x != 0]
        with np.errstate(invalid="ignore"):
            made = x.astype(kind)
        if kind.kind in "iu" and x.dtype.kind == "f":
            info = np.iinfo(kind)
            # -2**31 and 2**31 are float32s, the largest integers of 32 and 64 bits are none.
            made[x < float(info.min)] = info.min
            made[~(x < float(info.max) + 1)] = info.max
        return [made]
