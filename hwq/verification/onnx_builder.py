"""An ONNX model under construction, and what it is fed with: only onnx and NumPy, nothing of hwq's arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["OWN", "Builder"]

Array = NDArray[Any]
Feeds = dict[str, Array]
_CODES = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint16): TensorProto.UINT16,
    np.dtype(np.int16): TensorProto.INT16,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.float32): TensorProto.FLOAT,
}
# onnxruntime's own domain.
OWN = "com.microsoft"


class Builder:
    """A model under construction: nodes one after the other, each returning the name of what it makes."""

    def __init__(self, rng: np.random.Generator, ties: bool):
        self.rng = rng
        self.ties = ties
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.feeds: Feeds = {}
        self.overridable = False
        self.opset = 21

    def name(self) -> str:
        """A name that is not taken."""
        return f"v{len(self.nodes) + len(self.constants) + len(self.feeds)}"

    def constant(self, value: Any) -> str:
        """An initializer."""
        name = self.name()
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def feed(self, value: Array) -> str:
        """An input, and what it is fed with."""
        name = self.name()
        self.feeds[name] = value
        return name

    def add(self, op: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        """A node; its first output."""
        name = self.name()
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n_{name}", domain=domain, **attributes))
        return name

    def scale(self, low: float = 0.004, high: float = 0.08) -> np.float32:
        """A scale: log-uniform, or with ties a power of two in the same range."""
        drawn = float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        return np.float32(2.0 ** round(np.log2(drawn)) if self.ties else drawn)

    def scales(self, count: int, low: float = 0.004, high: float = 0.08) -> Array:
        """One scale a channel."""
        return np.array([self.scale(low, high) for _ in range(count)], np.float32)

    def point(self, dtype: str = "uint8") -> Array:
        """A zero point anywhere in the type."""
        info = np.iinfo(dtype)
        return np.asarray(self.rng.integers(info.min, info.max + 1), dtype)

    def stored(self, shape: tuple[int, ...], dtype: str = "uint8", bound: int | None = None) -> Array:
        """Integers over the whole type, or within +-bound."""
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if bound is None else (-bound, bound)
        return self.rng.integers(low, high + 1, shape).astype(dtype)

    def operand(self, shape: tuple[int, ...], dtype: str = "uint8") -> Array:
        """An operand of a product: the whole type, or with ties small numbers, whose sums often rescale to a half."""
        if not self.ties:
            return self.stored(shape, dtype)
        return self.rng.integers(0 if dtype == "uint8" else -8, 16 if dtype == "uint8" else 9, shape).astype(dtype)

    def operand_point(self, dtype: str = "uint8") -> Array:
        """Its zero point."""
        return np.asarray(self.rng.integers(0, 16), dtype) if self.ties else self.point(dtype)

    def bias(self, count: int) -> Array:
        """int32, of the accumulators' size."""
        bound = 100 if self.ties else 20000
        return self.rng.integers(-bound, bound + 1, count).astype(np.int32)

    def dequantized(self, value: str, scale: Any, point: Any, **attributes: Any) -> str:
        """DequantizeLinear with constant parameters."""
        return self.add("DequantizeLinear", value, self.constant(scale), self.constant(point), **attributes)

    def quantized(self, value: str, scale: Any, point: Any, **attributes: Any) -> str:
        """QuantizeLinear with constant parameters."""
        return self.add("QuantizeLinear", value, self.constant(scale), self.constant(point), **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model; types and shapes of its outputs are left open."""
        graph = helper.make_graph(
            self.nodes,
            "case",
            [
                helper.make_tensor_value_info(name, _CODES[value.dtype], list(value.shape))
                for name, value in self.feeds.items()
            ]
            + [
                helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
                for one in self.constants
                if self.overridable
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            initializer=self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(OWN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
