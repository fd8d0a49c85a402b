"""hwq as an ONNX backend: the standard's own conformance suites run against the source form's evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from hwq.errors import Error
from hwq.graph import BITS, Array, Graph, carrier
from hwq.importers.onnx import read
from hwq.importers.onnx_values import Budget, array_of
from hwq.ops.evaluate import evaluate

__all__ = ["HwqBackend", "HwqRep", "carried", "prepare", "run_model", "supports_device"]


class HwqRep(BackendRep):
    """One loaded model."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **keywords: Any) -> tuple[Array, ...]:
        """Evaluate the model; sub-byte types come one element a slot.

        Raises
        ------
        Error
            The inputs do not fit the model.
        """
        given = inputs if isinstance(inputs, Mapping) else dict(zip(self.graph.inputs, inputs, strict=True))
        feeds = {
            name: carried(value, self.graph.tensors[name].dtype)
            for name, value in given.items()
            if name in self.graph.tensors
        }
        found = evaluate(self.graph, feeds)
        return tuple(found[name] for name in self.graph.outputs)


def carried(given: Any, dtype: str) -> Array:
    """An array or TensorProto in the carrier of `dtype`: ml_dtypes' int4 and int2 become int8."""
    if isinstance(given, onnx.TensorProto):
        return array_of(given, f"tensor {given.name}", Budget())[1]
    value, target = np.asarray(given), carrier(dtype)
    if value.dtype == target:
        return value
    if BITS[dtype] < 8 and dtype.startswith(("int", "uint")):
        return value.astype(target)
    if value.dtype.kind == "U":
        return value.astype(object)
    return value


class HwqBackend(Backend):
    """The `onnx.backend.base.Backend` interface."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **keywords: Any) -> HwqRep:
        """Load a model from memory.

        Raises
        ------
        Error
            The model is damaged, or uses what hwq lacks.
        """
        if not cls.supports_device(device):
            raise Error(f"there is no device {device}", remedy="use CPU")
        return HwqRep(read(model))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **keywords: Any) -> tuple[Array, ...]:
        """Load and evaluate a model."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether the device is the CPU."""
        return device.split(":")[0] == "CPU"


prepare = HwqBackend.prepare
run_model = HwqBackend.run_model
supports_device = HwqBackend.supports_device
