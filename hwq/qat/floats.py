"""Which float constants are trained: weights of layers that stay float, gains of normalizations, slopes, embeddings.

An ONNX graph does not say which of its constants were parameters, so the operand that a constant is decides. What is added or
multiplied elsewhere may be a mask, a position or the statistics of the data: it keeps its value and is listed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Graph, Node

__all__ = ["Float", "frozen_floats", "trained_floats"]

# Operands that are learned where they are constants.
LEARNED = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1, 2), "PRelu": (1,), "Gather": (0,),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
# What a layer's bias is added to where the product is written out.
PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"})
# A step is this share of the largest magnitude: that of a grid of 8 bits, so that one rate serves floats too.
STEPS = 127


@dataclass(frozen=True)
class Float:
    """A trained float32 constant: ``base + unit * parameter``, the parameter 0 at the start, so that every bit is kept."""

    name: str
    base: NDArray[np.float32]
    unit: float


def trained_floats(quantized: Graph, lowered: Graph, taken: Collection[str]) -> list[Float]:
    """The constants that are trained.

    Parameters
    ----------
    quantized, lowered : Graph
    taken : collection of str
        Constants that are trained otherwise.
    """
    found: dict[str, Float] = {}
    for node in lowered.nodes:
        for index, name in enumerate(node.inputs):
            data = quantized.constant(name) if name and name not in taken and name not in found else None
            if data is None or data.dtype != np.float32 or not data.size or not np.isfinite(data).all():
                continue
            # What lowering has made another constant of would not follow.
            followed = len(quantized.consumers.get(name, ())) == len(lowered.consumers.get(name, ()))
            if followed and name not in quantized.outputs and _is_learned(lowered, node, index):
                unit = float(np.abs(data).max()) / STEPS
                found[name] = Float(name, np.array(data, np.float32), unit if unit > 0 else 1.0 / STEPS)
    return list(found.values())


def frozen_floats(lowered: Graph, taken: Collection[str]) -> tuple[str, ...]:
    """Constants of more than one float that operators read and nothing trains."""
    names = dict.fromkeys(name for node in lowered.nodes for name in node.inputs if name and name not in taken)
    datas = {name: lowered.constant(name) for name in names}
    return tuple(
        name for name, data in datas.items() if data is not None and data.dtype == np.float32 and data.size > 1
    )


def _is_learned(lowered: Graph, node: Node, index: int) -> bool:
    if node.op == "Add":
        name = node.inputs[1 - index]
        while (maker := lowered.producers.get(name)) is not None and maker.op in {"Cast", "Mul"}:
            name = maker.inputs[0]
        return maker is not None and maker.op in PRODUCTS
    return index in LEARNED.get(node.op, ())
