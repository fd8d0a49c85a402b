"""Differentiable forms of functions of single elements, and of products without windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hwq.graph import Node
from hwq.ops.application import evaluate_node
from hwq.qat.operators import TABLE, Operand, as_tensor, form, operand

__all__: list[str] = []


def _simple(name: str, function: Callable[..., Any]) -> None:
    TABLE[name] = lambda node, operands: function(*[as_tensor(one) for one in operands])


for _name, _function in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "Neg": torch.neg, "Abs": torch.abs,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Erf": torch.erf, "Relu": torch.relu,
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin,
    "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
    "Atanh": torch.atanh, "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish,
    "Identity": lambda x: x, "Max": lambda *given: functools.reduce(torch.maximum, given),
    "Min": lambda *given: functools.reduce(torch.minimum, given), "Sum": lambda *given: functools.reduce(torch.add, given),
    "Mean": lambda *given: functools.reduce(torch.add, given) / len(given),
}.items():  # fmt: skip
    _simple(_name, _function)


@form("MatMul")
def _matmul(node: Node, operands: Sequence[Operand]) -> Any:
    made = torch.matmul(as_tensor(operands[0]), as_tensor(operands[1]))
    bias = as_tensor(operand(operands, 2))
    return made if bias is None else made + bias


@form("Gemm")
def _gemm(node: Node, operands: Sequence[Operand]) -> Any:
    get = node.attributes.get
    a, b, bias = as_tensor(operands[0]), as_tensor(operands[1]), as_tensor(operand(operands, 2))
    made = torch.matmul(a.T if get("transA", 0) else a, b.T if get("transB", 0) else b) * float(get("alpha", 1.0))
    return made if bias is None else made + bias * float(get("beta", 1.0))


@form("Einsum")
def _einsum(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.einsum(str(node.attributes["equation"]), *[as_tensor(one) for one in operands])


def _stated(node: Node, **defaults: float) -> list[float]:
    return [float(node.attributes.get(name, default)) for name, default in defaults.items()]


@form("Mod")
def _modulo(node: Node, operands: Sequence[Operand]) -> Any:
    function = torch.fmod if node.attributes.get("fmod", 0) else torch.remainder
    return function(as_tensor(operands[0]), as_tensor(operands[1]))


@form("LeakyRelu")
def _leaky(node: Node, operands: Sequence[Operand]) -> Any:
    return F.leaky_relu(operands[0], float(node.attributes.get("alpha", 0.01)))


@form("PRelu")
def _prelu(node: Node, operands: Sequence[Operand]) -> Any:
    x, slope = operands[0], as_tensor(operands[1])
    return torch.where(x < 0, x * slope, x)


@form("Elu")
def _elu(node: Node, operands: Sequence[Operand]) -> Any:
    return F.elu(operands[0], float(node.attributes.get("alpha", 1.0)))


@form("Celu")
def _celu(node: Node, operands: Sequence[Operand]) -> Any:
    (alpha,) = _stated(node, alpha=1.0)
    return F.celu(operands[0], alpha)


@form("Selu")
def _selu(node: Node, operands: Sequence[Operand]) -> Any:
    alpha, gamma = _stated(node, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875)
    return gamma * F.elu(operands[0], alpha)


@form("ThresholdedRelu")
def _thresholded(node: Node, operands: Sequence[Operand]) -> Any:
    (alpha,) = _stated(node, alpha=1.0)
    return torch.where(operands[0] > alpha, operands[0], torch.zeros(()))


@form("Swish")
def _swish(node: Node, operands: Sequence[Operand]) -> Any:
    (alpha,) = _stated(node, alpha=1.0)
    return operands[0] * torch.sigmoid(alpha * operands[0])


@form("HardSigmoid")
def _hard_sigmoid(node: Node, operands: Sequence[Operand]) -> Any:
    get = node.attributes.get
    return (operands[0] * float(get("alpha", 0.2)) + float(get("beta", 0.5))).clamp(0, 1)


@form("Gelu")
def _gelu(node: Node, operands: Sequence[Operand]) -> Any:
    approximate = node.attributes.get("approximate", "none")
    word = approximate.decode() if isinstance(approximate, bytes) else str(approximate)
    return F.gelu(operands[0], approximate=word)


@form("Clip")
def _clip(node: Node, operands: Sequence[Operand]) -> Any:
    low, high = (
        operand(operands, index) if operand(operands, index) is not None else node.attributes.get(name)
        for index, name in ((1, "min"), (2, "max"))
    )
    bounds = [None if one is None else float(one) for one in (low, high)]
    return operands[0].clamp(*bounds) if any(one is not None for one in bounds) else operands[0]


@form("Softmax")
def _softmax(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.softmax(operands[0], int(node.attributes.get("axis", -1)))


@form("LogSoftmax")
def _log_softmax(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.log_softmax(operands[0], int(node.attributes.get("axis", -1)))


@form("Where")
def _where(node: Node, operands: Sequence[Operand]) -> Any:
    return torch.where(*[as_tensor(one) for one in operands])


@form("Dropout")
def _dropout(node: Node, operands: Sequence[Operand]) -> Any:
    return operands[0]


@form("Cast", "CastLike")
def _cast(node: Node, operands: Sequence[Operand]) -> Any:
    x = operands[0]
    given = x.detach().numpy() if isinstance(x, torch.Tensor) else x
    (made,) = evaluate_node(node, [given, *(one if one is None else np.asarray(one) for one in operands[1:])])
    if made.dtype.kind != "f":
        return made
    return x.to(torch.from_numpy(made).dtype) if isinstance(x, torch.Tensor) else torch.from_numpy(made)
