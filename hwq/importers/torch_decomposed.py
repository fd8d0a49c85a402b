"""PT2E's operators as ONNX: what torch.onnx's tables leave out, or write without the bounds of the stored values; and a squeeze."""

from __future__ import annotations

from typing import Any

__all__ = ["translations"]


def translations(torch: Any) -> dict[Any, Any]:
    """Translations for `torch.onnx.export`, by operator.

    Semantics: torch/ao/quantization/fx/_decomposed.py and determine_qparams of torch/ao/quantization/utils.py, 2.13.0.
    """
    import onnxscript

    standard: Any = onnxscript.opset18

    def constant(value: int, dtype: Any) -> Any:
        return standard.Constant(value=_stored(value, dtype))

    def bounded(made: Any, low: int, high: int, dtype: Any) -> Any:
        least, most = _bounds(dtype)
        if low <= least and high >= most:
            return made
        return standard.Clip(made, constant(low, dtype), constant(high, dtype))

    def number(value: float) -> Any:
        return standard.Constant(value_floats=[value])

    def quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        made = standard.QuantizeLinear(x, scale, constant(zero_point, dtype))
        return bounded(made, quant_min, quant_max, dtype)

    def quantize_at_run_time(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any) -> Any:
        point = standard.Cast(zero_point, to=int(dtype))
        return bounded(standard.QuantizeLinear(x, standard.Cast(scale, to=FLOAT), point), quant_min, quant_max, dtype)

    def dequantize_at_run_time(
        x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: Any, out_dtype: Any = None
    ) -> Any:
        return standard.DequantizeLinear(x, standard.Cast(scale, to=FLOAT), standard.Cast(zero_point, to=int(dtype)))

    def extremes(x: Any) -> tuple[Any, Any]:
        zero = number(0.0)
        return standard.Min(standard.ReduceMin(x, keepdims=0), zero), standard.Max(
            standard.ReduceMax(x, keepdims=0), zero
        )

    def choose(x: Any, qmin: int, qmax: int, eps: float, dtype: Any) -> tuple[Any, Any]:
        low, high = extremes(x)
        scale = standard.Max(standard.Div(standard.Sub(high, low), number(float(qmax - qmin))), number(eps))
        point = standard.Sub(number(float(qmin)), standard.Round(standard.Div(low, scale)))
        point = standard.Min(standard.Max(point, number(float(qmin))), number(float(qmax)))
        return standard.Cast(scale, to=DOUBLE), standard.Cast(point, to=INT64)

    def choose_symmetric(x: Any, qmin: int, qmax: int, eps: float, dtype: Any) -> tuple[Any, Any]:
        low, high = extremes(x)
        largest = standard.Max(standard.Neg(low), high)
        scale = standard.Max(standard.Div(largest, number((qmax - qmin) / 2)), number(eps))
        point = number(128.0 if _bounds(dtype)[0] == 0 else 0.0)
        return standard.Cast(scale, to=DOUBLE), standard.Cast(point, to=INT64)

    def squeeze(x: Any, dim: int) -> Any:
        shape = x.shape
        # torch leaves alone what is not of size 1; torch.onnx writes a Squeeze that no runtime takes.
        if shape is not None and (not len(shape) or (isinstance(shape[dim], int) and shape[dim] != 1)):
            return standard.Identity(x)
        return standard.Squeeze(x, standard.Constant(value_ints=[dim]))

    own = torch.ops.quantized_decomposed
    return {
        torch.ops.aten.squeeze.dim: squeeze,
        own.quantize_per_tensor.default: quantize,
        own.quantize_per_tensor.tensor: quantize_at_run_time,
        own.dequantize_per_tensor.tensor: dequantize_at_run_time,
        own.choose_qparams.tensor: choose,
        own.choose_qparams_symmetric.tensor: choose_symmetric,
    }


# onnx.TensorProto's codes.
FLOAT, INT64, DOUBLE = 1, 7, 11


def _stored(value: int, dtype: Any) -> Any:
    """A stored number as ONNX's tensor; `dtype` is an ONNX type code."""
    import onnx

    return onnx.helper.make_tensor("value", int(dtype), [], [value])


def _bounds(dtype: Any) -> tuple[int, int]:
    import numpy as np
    import onnx

    found = np.iinfo(onnx.helper.tensor_dtype_to_np_dtype(int(dtype)))
    return int(found.min), int(found.max)
