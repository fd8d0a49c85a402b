"""PyTorch's eager quantized modules as float modules between quantize and dequantize, which torch.export can trace.

A stand-in keeps stored weights, scales, zero points and the float bias bit for bit; every value between two modules is the
real number that the stored one stands for. The lowering of dialect ``torch-fbgemm`` puts the integers together again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from hwq.errors import Error
from hwq.importers import torch_recurrent, torch_stored

__all__ = ["stand_in"]

_NAMESPACES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")
_DYNAMIC = tuple(f"{name}.dynamic." for name in _NAMESPACES)


def stand_in(torch: Any, module: Any, path: str = "") -> tuple[Any, bool]:
    """The module with every eager quantized part replaced, and whether there was one. `module` itself is not changed.

    Raises
    ------
    Error
        A quantized part that has no stand-in.
    """
    if type(module).__module__.startswith(_NAMESPACES) and not _made_of_parts(module):
        return _replaced(torch, module, path), True
    changed = {}
    for name, child in module.named_children():
        new, found = stand_in(torch, child, f"{path}.{name}" if path else name)
        if found:
            changed[name] = new
    pairs = _pairs(torch, module)
    if not changed and not pairs:
        return module, False
    made = copy.copy(module)
    made._modules = {**module._modules, **changed}
    made._buffers = {name: one for name, one in module._buffers.items() if name not in pairs}
    made.__dict__.update(pairs)
    return made, True


def _made_of_parts(module: Any) -> bool:
    """Whether a quantized module computes in its parts, as the static LSTM and MultiheadAttention do."""
    dynamic = f"{type(module).__module__}.".startswith(_DYNAMIC)
    return not dynamic and type(module).__name__ in {"LSTM", "MultiheadAttention"}


def _pairs(torch: Any, module: Any) -> dict[str, Any]:
    """Scales and zero points that FX graph mode keeps as buffers of one number, as numbers: a tracer sees no buffer's value."""
    if not isinstance(module, torch.fx.GraphModule):
        return {}
    named = re.compile(r"(scale|zero_point)_\d+$")
    return {name: one.item() for name, one in module._buffers.items() if named.search(name) and one.numel() == 1}


def _replaced(torch: Any, module: Any, path: str) -> Any:
    """The stand-in of one eager quantized module."""
    kind, nn = type(module).__name__, torch.nn
    own, functional = torch.ops.quantized_decomposed, torch.nn.functional
    where = f"module {path or kind} ({type(module).__module__}.{kind})"
    relu = kind.removesuffix("1d").removesuffix("2d").removesuffix("3d") in {"LinearReLU", "ConvReLU", "BNReLU"}

    def stored(value: Any) -> Any:
        pair = (
            (module.output_scale, module.output_zero_point) if kind == "Sigmoid" else (module.scale, module.zero_point)
        )
        return torch_stored.pair(torch, value.relu() if relu else value, float(pair[0]), int(pair[1]))

    class Standing(nn.Module):  # type: ignore[misc, name-defined]
        """Computes with the real numbers that its arguments stand for."""

        def forward(self, *values: Any) -> Any:
            with torch_stored.unmarked(*values):
                return self.made(*values)

    class Weighted(Standing):
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

    class Linear(Weighted):
        """``quantized.linear`` and ``linear_relu``."""

        def made(self, x: Any) -> Any:
            return stored(functional.linear(x, self.weights(), self.bias))

    class Convolution(Weighted):
        """``quantized.conv1d``, ``conv2d``, ``conv3d``, transposed or not."""

        def made(self, x: Any) -> Any:
            rank, given = x.dim() - 2, (module.stride, module.padding)
            if "Transpose" in kind:
                convolve = getattr(functional, f"conv_transpose{rank}d")
                rest = (module.output_padding, module.groups, module.dilation)
                return stored(convolve(x, self.weights(), self.bias, *given, *rest))
            convolve = getattr(functional, f"conv{rank}d")
            options = [one[-rank:] for one in (*given, module.dilation)]  # torch keeps two of each for Conv1d
            return stored(convolve(x, self.weights(), self.bias, *options, module.groups))

    class Function(Standing):
        """A function of one stored value, element by element, or a normalization."""

        def __init__(self, function: Callable[[Any], Any]) -> None:
            super().__init__()
            self.function = function

        def made(self, x: Any) -> Any:
            return stored(self.function(x))

    class Normalization(Standing):
        """``quantized.batch_norm2d`` and its kin: a float operator with the module's own parameters."""

        def __init__(self) -> None:
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                one = getattr(module, name, None)
                self.register_buffer(name, None if one is None else one.detach().to(torch.float32))

        def made(self, x: Any) -> Any:
            if "BatchNorm" in kind or "BNReLU" in kind:
                parameters = (self.running_mean, self.running_var, self.weight, self.bias)
                return stored(functional.batch_norm(x, *parameters, eps=module.eps))
            if kind == "LayerNorm":
                return stored(functional.layer_norm(x, module.normalized_shape, self.weight, self.bias, module.eps))
            groups = module.num_groups if kind == "GroupNorm" else x.shape[1]
            ones = torch.ones(x.shape[1])
            gain = ones if self.weight is None else self.weight
            offset = 0 * ones if self.bias is None else self.bias
            # torch.onnx writes the operator as it is named; its own translation reshapes around another.
            name = "InstanceNormalization" if groups == x.shape[1] else "GroupNormalization"
            more = {"epsilon": float(module.eps)} | ({} if groups == x.shape[1] else {"num_groups": int(groups)})
            made = torch.onnx.ops.symbolic(
                name, (x, gain, offset), more, dtype=torch.float32, shape=tuple(x.shape), version=18
            )
            return stored(made)

    class Slopes(Standing):
        """``quantized.prelu``, whose slopes are stored as quint8."""

        def __init__(self) -> None:
            super().__init__()
            slopes = module.weight
            self.register_buffer("stored", slopes.int_repr())
            self.scales, self.points = float(slopes.q_scale()), int(slopes.q_zero_point())

        def made(self, x: Any) -> Any:
            slopes = own.dequantize_per_tensor(self.stored, self.scales, self.points, 0, 255, torch.uint8)
            return stored(functional.prelu(x, slopes))

    class Dynamic(nn.Module):  # type: ignore[misc, name-defined]
        """``quantized.linear_dynamic`` with a reduced range."""

        def __init__(self) -> None:
            super().__init__()
            parts = torch_recurrent.unpacked(torch, module._weight_bias(), where)
            for name, part in zip(("stored", "scales", "bias"), parts, strict=True):
                self.register_buffer(name, part)

        def forward(self, x: Any) -> Any:
            made = torch_recurrent.linear(torch, x, self.stored, self.scales, self.bias)
            return made.relu() if relu else made

    class Embedding(nn.Module):  # type: ignore[misc, name-defined]
        """``quantized.embedding_byte`` and ``embedding_4bit``: rows as torch dequantizes them, in float32.

        Their scales and float zero points, one a row, are beyond what DequantizeLinear can say.
        """

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", module(torch.arange(module.num_embeddings)))

        def forward(self, indices: Any) -> Any:
            return functional.embedding(indices, self.rows)

    class Quantize(nn.Module):  # type: ignore[misc, name-defined]
        """Where floats become stored numbers."""

        def forward(self, x: Any) -> Any:
            return stored(x)

    class DeQuantize(nn.Module):  # type: ignore[misc, name-defined]
        """Where stored numbers become floats."""

        def forward(self, x: Any) -> Any:
            return torch_stored.real(torch, x)

    class Functional(nn.Module):  # type: ignore[misc, name-defined]
        """``quantized.add``, ``mul``, ``mul_scalar`` and ``cat``, a sum with or without a ReLU; the others are not reproduced."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.zero_point = module.scale, module.zero_point

        def add(self, a: Any, b: Any) -> Any:
            with torch_stored.unmarked(a, b):
                return stored(a + b)

        def mul(self, a: Any, b: Any) -> Any:
            with torch_stored.unmarked(a, b):
                return stored(a * b)

        def add_relu(self, a: Any, b: Any) -> Any:
            with torch_stored.unmarked(a, b):
                return stored((a + b).relu())

        def cat(self, values: Any, dim: int = 0) -> Any:
            with torch_stored.unmarked(*values):
                return stored(torch.cat(values, dim))

        def mul_scalar(self, a: Any, factor: float) -> Any:
            """The same stored numbers, their scale times the factor."""
            scale, point = getattr(a, torch_stored.MARK)
            if factor <= 0:
                raise Error(
                    f"QFunctional.mul_scalar by {factor} is not reproduced",
                    where=where,
                    remedy="multiply by more than 0",
                )
            with torch_stored.unmarked(a):
                return torch_stored.pair(torch, a * factor, scale * factor, point)

        def __getattr__(self, name: str) -> Any:
            if name in {"add_scalar", "matmul"}:
                told = "add, mul, mul_scalar, add_relu and cat are"
                raise Error(f"QFunctional.{name} is not reproduced", where=where, remedy=told)
            return super().__getattr__(name)

    dynamic = f"{type(module).__module__}.".startswith(_DYNAMIC)
    recurrent = {"LSTM": torch_recurrent.lstm, "GRU": torch_recurrent.gru,
                 **dict.fromkeys(("LSTMCell", "GRUCell", "RNNCell"), torch_recurrent.cell)}  # fmt: skip
    if dynamic and kind in recurrent:
        return recurrent[kind](torch, module, where)
    convolution = "Conv" in kind and not dynamic
    if convolution and module.padding_mode != "zeros":
        raise Error(f"padding_mode {module.padding_mode} is not reproduced", where=where, remedy="pad with zeros")
    if kind == "Quantize" and module.dtype != torch.quint8:
        raise Error(f"activations of type {module.dtype} are not reproduced", where=where, remedy="quint8 is")
    functions: dict[str, Callable[[Any], Any]] = {
        "Sigmoid": torch.sigmoid, "Hardswish": functional.hardswish,
        "ELU": lambda x: functional.elu(x, module.alpha), "LeakyReLU": lambda x: functional.leaky_relu(x, module.negative_slope),
    }  # fmt: skip
    rest: dict[str, Callable[[], Any]] = {
        "Linear": Linear, "LinearReLU": Linear, "Quantize": Quantize, "DeQuantize": DeQuantize, "QFunctional": Functional,
        "Dropout": nn.Identity, "PReLU": Slopes, "ReLU6": nn.ReLU6, "Embedding": Embedding,
    }  # fmt: skip
    convolutions = [f"{name}{rank}d" for name in ("Conv", "ConvReLU", "ConvTranspose") for rank in (1, 2, 3)]
    normalizations = ["BatchNorm2d", "BatchNorm3d", "BNReLU2d", "BNReLU3d", "LayerNorm", "GroupNorm",
                      "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]  # fmt: skip
    table = {**rest, **dict.fromkeys(convolutions, Convolution), **dict.fromkeys(normalizations, Normalization)}
    if dynamic and kind in {"Linear", "LinearReLU"}:
        return Dynamic()
    if not dynamic and kind in functions:
        return Function(functions[kind])
    if dynamic or kind not in table:
        names = ", ".join([*table, *functions, *(f"dynamic {name}" for name in ("Linear", "LinearReLU", *recurrent))])
        raise Error("this quantized module is not reproduced", where=where, remedy=f"those that are: {names}")
    return table[kind]()
