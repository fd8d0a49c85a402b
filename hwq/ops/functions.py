"""Nonlinear functions: computed in float64 and rounded once to the operand's type.

Measured against onnxruntime 1.31.1 this rounding is the runtime's own in practically every element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array

__all__ = ["ELEMENTWISE", "erf", "gelu", "in_float64", "layer_normalization", "log_softmax", "sigmoid", "softmax"]

Wide = NDArray[np.float64]
_SCALAR_ERF = np.frompyfunc(math.erf, 1, 1)
# Elements a step: a Python float of 24 bytes and its address live for each at once.
_STEP = 1 << 16


def erf(x: Wide) -> Wide:
    """The error function, by the C library (below one unit in the last place of float64)."""
    flat = np.ascontiguousarray(x, np.float64).reshape(-1)
    result = np.empty_like(flat)
    for start in range(0, flat.size, _STEP):
        result[start : start + _STEP] = _SCALAR_ERF(flat[start : start + _STEP])
    return result.reshape(np.shape(x))


def sigmoid(x: Wide) -> Wide:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def gelu(x: Wide, approximate: str = "none") -> Wide:
    """Gaussian error linear unit, exact or by the tanh formula (ONNX Gelu-20)."""
    if approximate == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def softplus(x: Wide) -> Wide:
    """``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def softmax(x: Wide, axis: int) -> Wide:
    """Softmax along `axis`."""
    if x.size == 0:
        return x
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def log_softmax(x: Wide, axis: int) -> Wide:
    """Logarithm of softmax along `axis`."""
    if x.size == 0:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def layer_normalization(x: Wide, axes: tuple[int, ...], epsilon: float) -> tuple[Wide, Wide, Wide]:
    """(normalized, mean, reciprocal standard deviation) over `axes`; the variance is the population's."""
    mean = x.mean(axis=axes, keepdims=True)
    centered = x - mean
    reciprocal = 1.0 / np.sqrt(np.square(centered).mean(axis=axes, keepdims=True) + epsilon)
    return centered * reciprocal, mean, reciprocal


def in_float64(function: Callable[..., Wide], x: Array, *arguments: Any) -> Array:
    """``function(x, *arguments)`` in float64, rounded once to the type of `x`."""
    return np.asarray(function(x.astype(np.float64), *arguments)).astype(x.dtype)


# Functions of one element without attributes, by ONNX operator.
ELEMENTWISE: Mapping[str, Callable[[Wide], Wide]] = MappingProxyType({
    "Exp": np.exp, "Log": np.log, "Tanh": np.tanh, "Sigmoid": sigmoid, "Erf": erf, "Softplus": softplus,
    "Sin": np.sin, "Cos": np.cos, "Softsign": lambda x: x / (1.0 + np.abs(x)), "Mish": lambda x: x * np.tanh(softplus(x)),
    "HardSwish": lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0), "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos, "Atan": np.arctan,
    "Sinh": np.sinh, "Cosh": np.cosh, "Asinh": np.arcsinh, "Acosh": np.arccosh, "Atanh": np.arctanh,
})  # fmt: skip
