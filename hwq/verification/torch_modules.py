"""What the torch dialects are verified on: eager quantized modules of one operator, and PT2E's decompositions, random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array

__all__ = ["EAGER", "RATES", "REFERENCE", "Draw", "whole"]


@dataclass(frozen=True)
class Draw:
    """What a case is made of.

    Attributes
    ----------
    build : callable
        ``(torch, rng, full) -> module``; `full` allows weights over all 8 bits.
    shape : tuple of int
        Of the one float32 input.
    scale, point : float, int
        Of the module's first quantization: inputs lie on and between its steps.
    """

    build: Callable[[Any, np.random.Generator, bool], Any]
    shape: tuple[int, ...]
    scale: float = float(np.float32(0.03))
    point: int = 71

    def inputs(self, rng: np.random.Generator, full: bool) -> Array:
        """Values on steps, on ties and beyond the range (with `full`); else on the steps of 7 bits."""
        if not full:
            steps = rng.integers(0, 128, self.shape).astype(np.float32)
        else:
            steps = (rng.integers(-20, 551, self.shape) / 2).astype(np.float32)
        made: Array = ((steps - np.float32(self.point)) * np.float32(self.scale)).astype(np.float32)
        return made


def _quantized(torch: Any, rng: np.random.Generator, shape: tuple[int, ...], full: bool) -> tuple[Any, Any, float]:
    """Stored weights with a scale a channel, a float bias, and an output scale that uses the range."""
    low, high = (-128, 128) if full else (-64, 65)
    stored = torch.from_numpy(rng.integers(low, high, shape).astype(np.int8))
    scales = torch.from_numpy(rng.uniform(0.002, 0.02, shape[0]).astype(np.float32).astype(np.float64))
    zeros = torch.zeros(shape[0], dtype=torch.int64)
    weights = torch._make_per_channel_quantized_tensor(stored, scales, zeros, 0)
    bias = torch.from_numpy(rng.standard_normal(shape[0]).astype(np.float32))
    depth = float(np.prod(shape[1:]))
    return weights, bias, float(np.float32(0.03 * 0.011 * 74 * 74 * np.sqrt(depth) / 60))


def _around(torch: Any, draw: Draw, *parts: Any) -> Any:
    quantized = torch.ao.nn.quantized
    first = quantized.Quantize(draw.scale, draw.point, torch.quint8)
    return torch.nn.Sequential(first, *parts, quantized.DeQuantize()).eval()


def _linear(relu: bool) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ao.nn.intrinsic.quantized.LinearReLU if relu else torch.ao.nn.quantized.Linear
        module = own(97, 33)
        weights, bias, scale = _quantized(torch, rng, (33, 97), full)
        module.set_weight_bias(weights, bias)
        module.scale, module.zero_point = scale, 93
        return _around(torch, EAGER["linear"], module)

    return build


def _conv(
    groups: int, relu: bool, rank: int = 2, transposed: bool = False, **options: Any
) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ao.nn.intrinsic.quantized if relu else torch.ao.nn.quantized
        name = f"Conv{'Transpose' if transposed else ''}{'ReLU' if relu else ''}{rank}d"
        module = getattr(own, name)(16, 16, 3, groups=groups, **options)
        weights, bias, scale = _quantized(torch, rng, (16, 16 // groups, *[3] * rank), full)
        if transposed:  # torch takes one scale there
            weights = torch._make_per_tensor_quantized_tensor(weights.int_repr(), float(np.float32(0.011)), 0)
        module.set_weight_bias(weights, bias)
        module.scale, module.zero_point = scale, 93
        return _around(torch, EAGER["conv2d"], module)

    return build


def _function(name: str, *given: Any) -> Callable[[Any, np.random.Generator, bool], Any]:
    """A module that takes scale and zero point first."""

    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        module = getattr(torch.ao.nn.quantized, name)(float(np.float32(0.041)), 117, *given)
        return _around(torch, EAGER[_FUNCTIONS[name]], module)

    return build


_FUNCTIONS = {"Hardswish": "hardswish", "LeakyReLU": "leaky_relu", "ELU": "elu"}


def _fixed(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    """Functions with scales that torch prescribes, and clamps."""
    nn = torch.nn
    return _around(
        torch, EAGER["sigmoid, tanh, hardtanh"], nn.Sigmoid(), nn.Hardtanh(0.1, 0.9), nn.Tanh(), nn.Hardsigmoid()
    )


def _normalization(name: str) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own, size = torch.ao.nn.quantized, 16

        def drawn() -> Any:
            return torch.nn.Parameter(torch.from_numpy(rng.standard_normal(size).astype(np.float32)))

        scale, point = float(np.float32(0.023)), 117
        if name == "BatchNorm2d":
            module = own.BatchNorm2d(size)
            module.weight, module.bias, module.running_mean.data = drawn(), drawn(), drawn().data
            module.running_var.data = drawn().data.square() + 0.25
            module.scale, module.zero_point = torch.tensor(scale), torch.tensor(point)
        elif name == "GroupNorm":
            module = own.GroupNorm(4, size, drawn(), drawn(), scale, point)
        else:
            size = 150
            module = own.LayerNorm([size], drawn(), drawn(), scale, point)
        return _around(torch, EAGER["conv2d" if name != "LayerNorm" else "layer_norm"], module)

    return build


def _slopes(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    module = torch.ao.nn.quantized.PReLU(float(np.float32(0.041)), 117, 16)
    stored = torch.from_numpy(rng.integers(0, 256, 16).astype(np.uint8))
    module.set_weight(torch._make_per_tensor_quantized_tensor(stored, float(np.float32(0.007)), 88))
    return _around(torch, EAGER["conv2d"], module)


def _binary(name: str) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        nn = torch.ao.nn.quantized

        class Both(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                draw = EAGER[name]
                self.first = nn.Quantize(draw.scale, draw.point, torch.quint8)
                self.second = nn.Quantize(float(np.float32(0.021)), 130, torch.quint8)
                self.both, self.last = nn.QFunctional(), nn.DeQuantize()
                self.both.scale = float(np.float32(0.041 if "add" in name else 0.11))
                self.both.zero_point = 117

            def forward(self, x: Any) -> Any:
                return self.last(getattr(self.both, name)(self.first(x), self.second(x.flip(0))))

        return Both().eval()

    return build


def _moved(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    nn = torch.nn
    return _around(torch, EAGER["conv2d"], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())


def _dynamic(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    module = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 20)).eval()
    for part in module.parameters():
        part.data = torch.from_numpy(rng.standard_normal(part.shape).astype(np.float32))
    return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)


def _recurrent(batch_first: bool, channels: bool) -> Callable[[Any, np.random.Generator, bool], Any]:
    """Two layers of dynamic LSTM, both directions, its states cut out of the input; output and states in one vector."""

    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        size, layers = 57, 2

        class Recurrent(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.lstm = torch.nn.LSTM(32, size, layers, batch_first=batch_first, bidirectional=True)

            def forward(self, x: Any) -> Any:
                states = x.transpose(0, 1)[: 2 * layers] if batch_first else x[: 2 * layers]
                states = states.repeat(1, 1, 2)[:, :, :size].contiguous() * 0.0625
                y, (h, c) = self.lstm(x, (states, states.flip(2)))
                return torch.cat([y.flatten(), h.flatten(), c.flatten()])

        module = Recurrent().eval()
        for part in module.parameters():
            part.data = torch.from_numpy(rng.standard_normal(part.shape).astype(np.float32) * np.float32(0.12))
        quantization = torch.ao.quantization
        config = quantization.per_channel_dynamic_qconfig if channels else quantization.default_dynamic_qconfig
        return quantization.quantize_dynamic(module, {torch.nn.LSTM: config}, dtype=torch.qint8)

    return build


def _decomposed(dtype: str, low: int, high: int, op: str) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ops.quantized_decomposed
        first = (float(np.float32(0.03)), 71, low, high, getattr(torch, dtype))
        second = (float(np.float32(0.047)), 13, low, high, getattr(torch, dtype))

        class Decomposed(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.linear = torch.nn.Linear(64, 64)

            def forward(self, x: Any) -> Any:
                y = own.dequantize_per_tensor(own.quantize_per_tensor(x, *first), *first)
                if op == "add":
                    y = y.relu() + y.flip(0)
                elif op == "mul":
                    y = y * y.flip(0)
                elif op == "linear":
                    # Stays stored: what differs differs by steps.
                    return own.quantize_per_tensor(self.linear(y), *second)
                return own.dequantize_per_tensor(own.quantize_per_tensor(y, *second), *second)

        return Decomposed().eval()

    return build


def _at_run_time(dtype: str, low: int, high: int, symmetric: bool) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ops.quantized_decomposed

        class Ranged(torch.nn.Module):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                choose = own.choose_qparams_symmetric if symmetric else own.choose_qparams
                scale, point = choose.tensor(x, low, high, 2.0**-12, getattr(torch, dtype))
                told = (scale, point, low, high, getattr(torch, dtype))
                return own.dequantize_per_tensor.tensor(own.quantize_per_tensor.tensor(x, *told), *told)

        return Ranged().eval()

    return build


EAGER: Mapping[str, Draw] = MappingProxyType(
    {
        "linear": Draw(_linear(False), (128, 97)),
        "linear_relu": Draw(_linear(True), (128, 97)),
        "conv2d": Draw(_conv(1, False, padding=1), (2, 16, 14, 14)),
        "conv2d_relu strided": Draw(_conv(1, True, stride=2, padding=(1, 0), dilation=(1, 2)), (2, 16, 14, 14)),
        "conv2d groups": Draw(_conv(4, False), (2, 16, 14, 14)),
        "conv2d depthwise": Draw(_conv(16, False, padding=1), (2, 16, 14, 14)),
        "add": Draw(_binary("add"), (64, 128)),
        "add_relu": Draw(_binary("add_relu"), (64, 128)),
        "mul": Draw(_binary("mul"), (64, 128)),
        "relu, max_pool2d, flatten": Draw(_moved, (2, 16, 14, 14)),
        "linear_dynamic": Draw(_dynamic, (64, 64)),
        "lstm_dynamic": Draw(_recurrent(False, False), (12, 5, 32)),
        "lstm_dynamic batch_first": Draw(_recurrent(True, True), (5, 12, 32)),
        "conv1d": Draw(_conv(1, False, 1, padding=1), (8, 16, 50)),
        "conv3d_relu": Draw(_conv(1, True, 3, padding=1), (1, 16, 7, 8, 9)),
        "conv3d depthwise": Draw(_conv(16, False, 3, padding=1), (1, 16, 7, 8, 9)),
        "conv_transpose2d": Draw(_conv(1, False, 2, True, stride=2, padding=1, output_padding=1), (2, 16, 7, 7)),
        "hardswish": Draw(_function("Hardswish"), (3, 16, 14, 13), float(np.float32(0.05))),
        "leaky_relu": Draw(_function("LeakyReLU", 0.5), (3, 16, 14, 13), float(np.float32(0.041))),
        "elu": Draw(_function("ELU", 0.7), (3, 16, 14, 13)),
        "sigmoid, tanh, hardtanh": Draw(_fixed, (3, 16, 14, 13), float(np.float32(0.041))),
        "prelu": Draw(_slopes, (3, 16, 14, 13)),
        "batch_norm2d": Draw(_normalization("BatchNorm2d"), (3, 16, 14, 13)),
        "layer_norm": Draw(_normalization("LayerNorm"), (40, 150)),
        "group_norm": Draw(_normalization("GroupNorm"), (3, 16, 14, 13)),
    }
)
REFERENCE: Mapping[str, Draw] = MappingProxyType(
    {
        "quantize_per_tensor uint8": Draw(_decomposed("uint8", 0, 255, "none"), (128, 64)),
        "quantize_per_tensor int8": Draw(_decomposed("int8", -128, 127, "none"), (128, 64)),
        "quantize_per_tensor 0..127": Draw(_decomposed("uint8", 0, 127, "none"), (128, 64)),
        "quantize_per_tensor -127..127": Draw(_decomposed("int8", -127, 127, "none"), (128, 64)),
        "add": Draw(_decomposed("uint8", 0, 255, "add"), (128, 64)),
        "mul": Draw(_decomposed("int8", -128, 127, "mul"), (128, 64)),
        "choose_qparams uint8": Draw(_at_run_time("uint8", 0, 255, False), (16, 64)),
        "choose_qparams int8": Draw(_at_run_time("int8", -128, 127, False), (16, 64)),
        "choose_qparams_symmetric int8": Draw(_at_run_time("int8", -127, 127, True), (16, 64)),
    }
)
# The order of a float product is torch's own.
RATES: Mapping[str, Draw] = MappingProxyType({"linear": Draw(_decomposed("uint8", 0, 255, "linear"), (128, 64))})


def whole(name: str, full: bool) -> bool:
    """Whether a case's data keep all 8 bits: depthwise products saturate on every CPU."""
    return full or "depthwise" in name
