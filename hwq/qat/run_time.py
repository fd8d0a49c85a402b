"""Ranges at run time: values quantized by what they hold, and the products of those integers. Their scales are not learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwq.errors import NotSupportedYet
from hwq.graph import Node
from hwq.qat import products
from hwq.qat.gradients import finite, instead
from hwq.qat.state import INTEGER, Stored

if TYPE_CHECKING:
    from hwq.qat.network import Network

__all__ = ["DEQUANTIZE", "QUANTIZE", "accumulated", "quantized", "real_rows"]

QUANTIZE = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeRows", "DynamicQuantizeRowsSymmetric"})
DEQUANTIZE = "DequantizeRows"


def quantized(network: Network, node: Node, operands: list[Any]) -> list[Any]:
    """Stored values, their scale and their zero point, by the program's own step; the gradient passes straight through."""
    exact, scale, point = network.step(node, operands)
    steps = torch.from_numpy(np.array(scale, np.float32))
    zero: Any = int(point.reshape(())) if point.size == 1 else point.astype(np.int32)
    centered = torch.from_numpy(exact.astype(np.float32) - point.astype(np.float32))
    soft = finite(operands[0]) / steps.clamp(min=torch.finfo(torch.float32).tiny)
    return [Stored(instead(soft, centered), steps, zero, exact.dtype.name), steps, point]


def real_rows(network: Network, node: Node, operands: list[Any]) -> list[Any]:
    """The real numbers of `quantized`'s values."""
    return [instead(network.real(operands[0]), torch.from_numpy(network.step(node, operands)[0]))]


def accumulated(network: Network, node: Node, operands: list[Any]) -> list[Any]:
    """The int32 sums of an integer operator."""
    x, w = operands[:2]
    if not isinstance(x, Stored) or not isinstance(w, Stored):
        raise NotSupportedYet(
            f"training through {node.kind} of integers that are given or computed",
            where=f"node {node.name}",
            remedy="leave this part out of the module that is trained",
        )
    total = products.exact_sums(node, INTEGER[node.op], x, w, None)
    if network.saturates(node):
        total = instead(total, torch.from_numpy(network.step(node, operands)[0].astype(np.float64)))
    return [Stored(total, torch.ones(()), 0, "int32")]
