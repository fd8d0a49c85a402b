"""Small graphs that are trained, and what holds of every prepared module."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import hwq

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
needs_torch = pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed")


def equal(prepared: Any, x: np.ndarray[Any, Any]) -> tuple[Any, int]:
    """Every tensor of the converted graph's program equals the module's; returns that graph and how many tensors there are."""
    graph = hwq.qat.convert(prepared)
    result, seen = hwq.compile(graph)(x, intermediates=True)
    traced = prepared.trace(x)
    for name, value in seen.items():
        assert traced[name].dtype == value.dtype and traced[name].shape == value.shape, name
        assert np.array_equal(traced[name], value), name
    assert np.array_equal(prepared(x).detach().numpy(), result)
    return graph, len(seen)


def linear(weights: np.ndarray[Any, Any], relu: bool = True) -> hwq.Graph:
    """One product by (k, n) weights, without torch's tracing."""
    k, n = weights.shape
    tensors = [hwq.Tensor("x", shape=("N", k)), hwq.Tensor("w", shape=(k, n), data=weights.astype(np.float32)),
               hwq.Tensor("b", shape=(n,), data=np.linspace(-1, 1, n).astype(np.float32)),
               hwq.Tensor("h", shape=("N", n)), hwq.Tensor("y", shape=("N", n))]  # fmt: skip
    nodes = [hwq.Node("Gemm", "product", ("x", "w", "b"), ("h",)), hwq.Node("Relu", "relu", ("h",), ("y",))]
    return hwq.Graph(nodes, tensors, ["x"], ["y"])


def clipped(low: float, high: float) -> hwq.Graph:
    """Two convolutions, each behind a Clip; the second a depthwise one; a product at the end."""
    random = np.random.default_rng(8)

    def constant(name: str, *shape: int) -> hwq.Tensor:
        return hwq.Tensor(name, shape=shape, data=random.normal(0, 0.3, shape).astype(np.float32))

    floats = {"low": low, "high": high}
    tensors = [hwq.Tensor("x", shape=("N", 3, 6, 6)), constant("w1", 6, 3, 3, 3), constant("b1", 6), constant("w2", 6, 1, 3, 3),
               constant("b2", 6), constant("w3", 6, 4), constant("b3", 4), *(hwq.Tensor(name, shape=("N", 6, size, size)) for name, size in
               (("c1", 4), ("h1", 4), ("c2", 2), ("h2", 2), ("p", 1))), hwq.Tensor("f", shape=("N", 6)), hwq.Tensor("y", shape=("N", 4)),
               *(hwq.Tensor(name, shape=(), data=np.array(value, np.float32)) for name, value in floats.items())]  # fmt: skip
    nodes = [hwq.Node("Conv", "one", ("x", "w1", "b1"), ("c1",)), hwq.Node("Clip", "clip1", ("c1", "low", "high"), ("h1",)),
             hwq.Node("Conv", "two", ("h1", "w2", "b2"), ("c2",), {"group": 6}), hwq.Node("Clip", "clip2", ("c2", "low", "high"), ("h2",)),
             hwq.Node("MaxPool", "pool", ("h2",), ("p",), {"kernel_shape": (2, 2)}), hwq.Node("Flatten", "flat", ("p",), ("f",)),
             hwq.Node("Gemm", "three", ("f", "w3", "b3"), ("y",))]  # fmt: skip
    return hwq.Graph(nodes, tensors, ["x"], ["y"])
