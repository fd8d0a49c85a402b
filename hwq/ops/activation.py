"""Activations with attributes: Clip, LeakyRelu, HardSigmoid, Gelu, Softmax and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Node, Tensor
from hwq.ops import dims, functions
from hwq.ops.base import Inferred, register
from hwq.ops.elementwise import Elementwise, operands, require_float

__all__ = ["Clip"]


@register
class LeakyRelu(Elementwise):
    """``x < 0 ? alpha * x : x``; of 16-bit floats the float32 product is rounded once, as in onnxruntime."""

    names = ("LeakyRelu",)

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        require_float(node, given[0])
        return given[0].dtype

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        wide = x if x.dtype == np.float64 else x.astype(np.float32)
        alpha = np.asarray(node.attributes.get("alpha", 0.01), np.float32)
        return [np.where(x < 0, (wide * alpha).astype(x.dtype), x)]


@register
class PRelu(Elementwise):
    """``x < 0 ? slope * x : x``; the slope broadcasts to `x`."""

    names = ("PRelu",)
    count = (2, 2)

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, slope = inputs
        assert x is not None and slope is not None
        return [np.where(x < 0, (x * slope).astype(x.dtype), x)]


@register
class Clip(Elementwise):
    """``min(max(x, low), high)``; bounds are optional scalar inputs."""

    names = ("Clip",)
    count = (1, 3)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        x = operands(node, inputs[:1], 1, 1)[0]
        bounds = [tensor for tensor in inputs[1:] if tensor is not None]
        dims.same_types(node, [x, *bounds])
        if len(inputs) > 3 or any(bound.known_shape and dims.product(bound.shape) != 1 for bound in bounds):
            raise dims.fault(node, "the bounds of Clip must be two scalars")
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x = inputs[0]
        assert x is not None
        low = inputs[1] if len(inputs) > 1 else None
        high = inputs[2] if len(inputs) > 2 else None
        result = x if low is None else np.maximum(x, low.reshape(()))
        return [
            np.asarray(result if high is None else np.minimum(result, high.reshape(()))).astype(x.dtype, copy=False)
        ]


def _formula(node: Node, x: Any) -> Any:
    get = node.attributes.get
    if node.op == "HardSigmoid":
        # The default 0.2 is float32's 0.2: ONNX attributes are float32.
        return np.clip(float(np.float32(get("alpha", 0.2))) * x + float(np.float32(get("beta", 0.5))), 0.0, 1.0)
    if node.op == "Elu":
        return np.where(x < 0, float(get("alpha", 1.0)) * np.expm1(np.minimum(x, 0.0)), x)
    if node.op == "Celu":
        alpha = float(get("alpha", 1.0))
        return np.maximum(x, 0.0) + np.minimum(alpha * np.expm1(np.minimum(x, 0.0) / alpha), 0.0)
    if node.op == "Selu":
        alpha, gamma = float(get("alpha", 1.67326319217681884765625)), float(get("gamma", 1.05070102214813232421875))
        return gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)
    if node.op == "ThresholdedRelu":
        return np.where(x > float(get("alpha", 1.0)), x, 0.0)
    if node.op == "Swish":
        return x * functions.sigmoid(float(get("alpha", 1.0)) * x)
    approximate = get("approximate", "none")
    if approximate not in {"none", "tanh"}:
        raise ValueError(f"approximate={approximate!r} is neither none nor tanh")
    return functions.gelu(x, approximate)


@register
class Parametric(Elementwise):
    """A function of one operand with attributes, in float64 and rounded once."""

    names = ("HardSigmoid", "Gelu", "com.microsoft::Gelu", "Elu", "Celu", "Selu", "ThresholdedRelu", "Swish")

    def result_type(self, node: Node, given: Sequence[Tensor]) -> str:
        """See `Elementwise.result_type`."""
        require_float(node, given[0])
        return given[0].dtype

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        return [np.asarray(_formula(node, x.astype(np.float64))).astype(x.dtype)]


@register
class Softmax(Elementwise):
    """Softmax or its logarithm along one axis, in float64 and rounded once."""

    names = ("Softmax", "LogSoftmax")

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        (x,) = operands(node, inputs, 1, 1)
        require_float(node, x)
        if x.known_shape:
            dims.axis_of(node, int(node.attributes.get("axis", -1)), len(x.shape))
        return [(x.dtype, x.shape, x.known_shape)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        (x,) = inputs
        assert x is not None
        function = functions.softmax if node.op == "Softmax" else functions.log_softmax
        return [functions.in_float64(function, x, int(node.attributes.get("axis", -1)))]
