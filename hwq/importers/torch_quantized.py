"""PyTorch's eager quantized modules as float modules between quantize and dequantize, which torch.export can trace.

A stand-in keeps stored weights, scales, zero points and the float bias bit for bit; every value between two modules is the
real number that the stored one stands for. The lowering of dialect ``torch-fbgemm`` puts the integers together again.
"""

from __future__ import annotations

import copy
from typing import Any

from hwq.errors import Error
from hwq.importers import torch_recurrent

__all__ = ["stand_in", "translations"]

_NAMESPACES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def stand_in(torch: Any, module: Any, path: str = "") -> tuple[Any, bool]:
    """The module with every eager quantized part replaced, and whether there was one. `module` itself is not changed.

    Raises
    ------
    Error
        A quantized part that has no stand-in.
    """
    if type(module).__module__.startswith(_NAMESPACES):
        return _replaced(torch, module, path), True
    changed = {}
    for name, child in module.named_children():
        new, found = stand_in(torch, child, f"{path}.{name}" if path else name)
        if found:
            changed[name] = new
    if not changed:
        return module, False
    made = copy.copy(module)
    made._modules = {**module._modules, **changed}
    return made, True


def translations(torch: Any) -> dict[Any, Any]:
    """How torch.onnx writes what its own tables leave out or write without the bounds of the stored values."""
    import onnxscript

    standard: Any = onnxscript.opset18

    def quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: Any) -> Any:
        def constant(value: int) -> Any:
            return standard.Constant(value=_stored(value, dtype))

        made = standard.QuantizeLinear(x, scale, constant(zero_point))
        low, high = _bounds(dtype)
        if quant_min <= low and quant_max >= high:
            return made
        return standard.Clip(made, constant(quant_min), constant(quant_max))

    return {torch.ops.quantized_decomposed.quantize_per_tensor.default: quantize}


def _stored(value: int, dtype: Any) -> Any:
    """A stored number as ONNX's tensor; `dtype` is an ONNX type code."""
    import onnx

    return onnx.helper.make_tensor("value", int(dtype), [], [value])


def _bounds(dtype: Any) -> tuple[int, int]:
    import numpy as np
    import onnx

    found = np.iinfo(onnx.helper.tensor_dtype_to_np_dtype(int(dtype)))
    return int(found.min), int(found.max)


def _replaced(torch: Any, module: Any, path: str) -> Any:
    """The stand-in of one eager quantized module."""
    kind, nn = type(module).__name__, torch.nn
    own = torch.ops.quantized_decomposed
    where = f"module {path or kind} ({type(module).__module__}.{kind})"

    def pair(value: Any, scale: float, point: int) -> Any:
        stored = own.quantize_per_tensor(value, scale, point, 0, 255, torch.uint8)
        return own.dequantize_per_tensor(stored, scale, point, 0, 255, torch.uint8)

    class Quantized(nn.Module):  # type: ignore[misc, name-defined]
        """What every stand-in with stored weights and one output scale shares."""

        def __init__(self) -> None:
            super().__init__()
            weights, bias = module._weight_bias()
            if weights.dtype != torch.qint8:
                raise Error(
                    f"weights of type {weights.dtype} have no stand-in", where=where, remedy="use qint8 weights"
                )
            self.channel = weights.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
            self.register_buffer("stored", weights.int_repr())
            if self.channel:
                self.axis = weights.q_per_channel_axis()
                self.register_buffer("scales", weights.q_per_channel_scales().to(torch.float32))
                self.register_buffer("points", weights.q_per_channel_zero_points().to(torch.int64))
            else:
                self.scales, self.points = float(weights.q_scale()), int(weights.q_zero_point())
            self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))

        def weights(self) -> Any:
            if self.channel:
                return own.dequantize_per_channel(
                    self.stored, self.scales, self.points, self.axis, -128, 127, torch.int8
                )
            return own.dequantize_per_tensor(self.stored, self.scales, self.points, -128, 127, torch.int8)

        def finished(self, value: Any) -> Any:
            value = value.relu() if "ReLU" in kind else value
            return pair(value, float(module.scale), int(module.zero_point))

    class Linear(Quantized):
        """``quantized.linear`` and ``linear_relu``."""

        def forward(self, x: Any) -> Any:
            return self.finished(nn.functional.linear(x, self.weights(), self.bias))

    class Convolution(Quantized):
        """``quantized.conv2d`` and ``conv2d_relu``."""

        def forward(self, x: Any) -> Any:
            made = nn.functional.conv2d(
                x, self.weights(), self.bias, module.stride, module.padding, module.dilation, module.groups
            )
            return self.finished(made)

    class Dynamic(nn.Module):  # type: ignore[misc, name-defined]
        """``quantized.linear_dynamic`` with a reduced range."""

        def __init__(self) -> None:
            super().__init__()
            weights, bias = module._weight_bias()
            if weights.dtype != torch.qint8:
                raise Error(
                    f"weights of type {weights.dtype} have no stand-in", where=where, remedy="use qint8 weights"
                )
            channel = weights.qscheme() in {torch.per_channel_affine, torch.per_channel_symmetric}
            points = weights.q_per_channel_zero_points() if channel else torch.tensor(weights.q_zero_point())
            if bool(points.any()):
                raise Error(
                    "weights with a zero point have no stand-in", where=where, remedy="quantize them symmetrically"
                )
            scales = weights.q_per_channel_scales() if channel else torch.tensor([weights.q_scale()])
            self.register_buffer("stored", weights.int_repr().t().contiguous())
            self.register_buffer("scales", scales.to(torch.float32))
            given = torch.zeros(weights.shape[0]) if bias is None else bias.detach()
            self.register_buffer("bias", given.to(torch.float32))

        def forward(self, x: Any) -> Any:
            # The operator of domain com.microsoft with the same operands; torch.onnx writes it as it is named.
            return torch.onnx.ops.symbolic(
                "com.microsoft::DynamicQuantizeMatMul",
                (x, self.stored, self.scales, None, self.bias),
                dtype=torch.float32,
                shape=(*x.shape[:-1], self.stored.shape[1]),
                version=1,
            )

    class Quantize(nn.Module):  # type: ignore[misc, name-defined]
        """Where floats become stored numbers."""

        def forward(self, x: Any) -> Any:
            return pair(x, float(module.scale), int(module.zero_point))

    class Functional(nn.Module):  # type: ignore[misc, name-defined]
        """``quantized.add``, ``mul`` and ``cat``, a sum with or without a ReLU; the others are not reproduced."""

        def add(self, a: Any, b: Any) -> Any:
            return pair(a + b, float(module.scale), int(module.zero_point))

        def mul(self, a: Any, b: Any) -> Any:
            return pair(a * b, float(module.scale), int(module.zero_point))

        def add_relu(self, a: Any, b: Any) -> Any:
            return pair((a + b).relu(), float(module.scale), int(module.zero_point))

        def cat(self, values: Any, dim: int = 0) -> Any:
            return pair(torch.cat(values, dim), float(module.scale), int(module.zero_point))

        def __getattr__(self, name: str) -> Any:
            if name in {"add_scalar", "mul_scalar", "matmul"}:
                told = "add, mul, add_relu and cat are"
                raise Error(f"QFunctional.{name} is not reproduced", where=where, remedy=told)
            return super().__getattr__(name)

    dynamic = type(module).__module__.startswith(f"{_NAMESPACES[0]}.dynamic")
    if kind == "Linear" and dynamic:
        return Dynamic()
    if kind == "LSTM" and dynamic:
        return torch_recurrent.lstm(torch, module, where)
    if kind in {"Conv2d", "ConvReLU2d"} and not dynamic and module.padding_mode != "zeros":
        raise Error(f"padding_mode {module.padding_mode} is not reproduced", where=where, remedy="pad with zeros")
    if kind == "Quantize" and module.dtype != torch.quint8:
        raise Error(f"activations of type {module.dtype} are not reproduced", where=where, remedy="quint8 is")
    table = {
        "Linear": Linear, "LinearReLU": Linear, "Conv2d": Convolution, "ConvReLU2d": Convolution,
        "Quantize": Quantize, "DeQuantize": nn.Identity, "QFunctional": Functional, "Dropout": nn.Identity,
    }  # fmt: skip
    if dynamic or kind not in table:
        names = ", ".join(dict.fromkeys([*table, "dynamic Linear", "dynamic LSTM"]))
        raise Error("this quantized module is not reproduced", where=where, remedy=f"those that are: {names}")
    return table[kind]()
