"""Exact sums in torch: convolutions, matrix products, residual sums and means of stored integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hwq import numerics
from hwq.errors import Error
from hwq.graph import Node
from hwq.lowering.simplification import clip_bounds
from hwq.ops import spatial
from hwq.ops.storage import integer_range
from hwq.qat import windows
from hwq.qat.gradients import round_through
from hwq.qat.state import Stored

if TYPE_CHECKING:
    from hwq.qat.network import Network

__all__ = [
    "BINARY",
    "PRODUCTS",
    "Sums",
    "accumulate",
    "clamped",
    "combined",
    "exact_sums",
    "mean_of_all",
    "of_bytes",
    "with_real_bias",
]

# Every integer up to here is a float32, so a sum whose terms' magnitudes add up to no more is exact in any order.
EXACT = 2.0**24
OVERFLOW = 2.0**31
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
BINARY = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class Sums:
    """Accumulators and their step.

    `total` is float32 or float64 integers, `scales` (float32, broadcastable) their real value, or with `count` the mean over
    so many; `bias` is a float32 one, which joins a stored result in accumulator steps, `floor` whether a ReLU is swallowed.
    """

    total: Any
    scales: Any
    bias: Any = None
    count: int | None = None
    floor: bool = False


def accumulate(network: Network, node: Node, operands: list[Any]) -> Sums:
    """The exact sums of a quantized convolution or product, its bias included.

    Raises
    ------
    Error
        They may pass int32.
    """
    x, w = operands[0], operands[1]
    channel = _channels(node, x)
    # f32(f32(alpha s_x) s_w), onnxruntime's order of products.
    factor = torch.tensor(float(node.attributes.get("alpha", 1.0)) if node.op == "Gemm" else 1.0)
    steps = (factor * x.scale.reshape(())) * w.scale.reshape(-1)
    groups = int(node.attributes.get("group", 1))
    if node.op == "ConvTranspose" and len(steps) > 1:  # groups share their filters' scales
        steps = steps.repeat(groups)
    bias, added = _bias(network, node, operands, steps)
    total = exact_sums(node, node.op, x, w, bias)
    floor = network.dialect.name.startswith("torch-fbgemm") and any(part.op == "Relu" for part in node.body)
    return Sums(total, steps.reshape(channel), None if added is None else added.reshape(channel), floor=floor)


def exact_sums(node: Node, op: str, x: Stored, w: Stored, bias: Any) -> Any:
    """The sums of a product `op` and an integer bias: float32 where that is exact, else float64.

    Raises
    ------
    Error
        They may pass int32.
    """
    low, high = integer_range(x.dtype)
    beside = float(bias.detach().abs().max()) if bias is not None and bias.numel() else 0.0
    sums = _weight_sums(node, op, w)
    reach = max(high - x.zero, x.zero - low) if isinstance(x.zero, int) else high - low
    bound = reach * sums + beside
    if bound > EXACT:  # by what the type can hold; what it does hold may be less
        bound = (float(x.centered.detach().abs().max()) if x.centered.numel() else 0.0) * sums + beside
    if bound >= OVERFLOW:
        raise Error(
            "these sums may pass int32",
            where=f"node {node.name}",
            why=f"the magnitudes of weights and inputs add up to {bound:.3g}",
            remedy="split the layer, or plan fewer bits",
        )
    dtype = torch.float64 if bound > EXACT else torch.float32
    left, right = x.centered.to(dtype), w.centered.to(dtype)
    joins = None if bias is None else bias.to(dtype)
    if op == "Conv":
        return windows.convolve(node, left, right, joins)
    if op == "ConvTranspose":
        total = windows.spread(node, left, right)
    else:
        get = node.attributes.get
        total = torch.matmul(
            left.T if get("transA", 0) and op == "Gemm" else left,
            right.T if get("transB", 0) and op == "Gemm" else right,
        )
    if joins is None:
        return total
    return total + (joins.reshape(_channels(node, x)) if joins.ndim == 1 else joins)


def of_bytes(operands: Sequence[Any]) -> bool:
    """Whether the sums of a product are of bytes, one scale a tensor or an output channel; others run by the program's step."""
    x, w = operands[0], operands[1]
    if len(operands) > 3:  # with a scale of run time
        return False
    return not x.dtype.endswith("16") and x.block is None and (not isinstance(w, Stored) or w.block is None)


def with_real_bias(network: Network, node: Node, operands: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Operands as they are stored, and as real numbers: an integer bias is the trained one in accumulator steps."""
    stored, real = list(operands), [network.real(one) for one in operands]
    if len(operands) > 2 and isinstance(operands[2], np.ndarray):
        steps = operands[0].scale.reshape(()) * operands[1].scale.reshape(-1)
        bias, _ = _bias(network, node, list(operands), steps)
        stored[2] = bias.detach().numpy().astype(operands[2].dtype)
        real[2] = (bias * steps).float()
    return stored, real


def clamped(node: Node, centered: Any, scale: Any, limits: tuple[int, int], constant: Callable[[str], Any]) -> Any:
    """Stored values behind the Clip that a group swallowed: between its bounds as Q stores them, and within `limits`."""
    if not any(part.op == "Clip" for part in node.body):
        return centered
    least, most = limits
    low, high = torch.tensor(float(least)), torch.tensor(float(most))
    for part in node.body:
        if part.op == "Clip":
            bounds = clip_bounds(constant, part)
            if bounds is None:
                raise Error("these bounds are computed at run time", where=f"node {part.name}")
            # An infinite bound over the scale would have the derivative infinity times 0.
            ends = [min(max(float(one), -1e30), 1e30) for one in bounds]
            edges = [torch.clamp(round_through(torch.tensor(one) / scale), least, most) for one in ends]
            low, high = torch.maximum(low, edges[0]), torch.minimum(high, edges[1])
    return torch.minimum(torch.maximum(centered, torch.minimum(low, high)), high)


def _channels(node: Node, x: Stored) -> tuple[int, ...]:
    """How one value a channel lies in the result."""
    return (-1, *[1] * (x.centered.ndim - 2)) if node.op in {"Conv", "ConvTranspose"} else (-1,)


def _bias(network: Network, node: Node, operands: list[Any], steps: Any) -> tuple[Any, Any]:
    """The bias as integers (float64) of accumulator steps, or as float32 in real numbers."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return None, None
    given = operands[2]
    if isinstance(given, np.ndarray):
        if name in network.state.bias_of:
            return network.bias(name, steps), None
        return torch.from_numpy(given.astype(np.float64)), None
    if given.dtype == torch.float32:
        return None, given.reshape(-1)
    return given.double(), None


def _weight_sums(node: Node, op: str, w: Stored) -> float:
    """The largest sum of magnitudes that one output multiplies."""
    magnitudes = w.centered.detach().abs().double()
    if not magnitudes.numel():
        return 0.0
    if op == "Conv":
        return float(magnitudes.reshape(len(magnitudes), -1).sum(1).max())
    if op == "ConvTranspose":
        groups = int(node.attributes.get("group", 1))
        each = magnitudes.reshape(groups, magnitudes.shape[0] // groups, magnitudes.shape[1], -1)
        return float(each.sum((1, 3)).max())
    axis = -1 if op == "Gemm" and node.attributes.get("transB", 0) else -2 if magnitudes.ndim > 1 else 0
    return float(magnitudes.sum(axis).max())


def mean_of_all(node: Node, operands: list[Any]) -> Sums | None:
    """The sums of a pool over the whole image, onnxruntime's QLinearGlobalAveragePool; None for other windows."""
    x = operands[0]
    space = tuple(x.centered.shape[2:])
    if node.op == "AveragePool":
        windows = spatial.windows_of(node, space, [int(one) for one in node.attributes["kernel_shape"]])
        if windows.kernel != space or any(windows.begin) or any(windows.end):
            return None
    count = int(np.prod(space, dtype=np.int64))
    dtype = torch.float64 if count * 256.0 > EXACT else torch.float32
    total = x.centered.to(dtype).sum(dim=tuple(range(2, x.centered.ndim)), keepdim=True)
    return Sums(total, x.scale.reshape(()), count=count)


def combined(network: Network, node: Node, operands: list[Any], made: tuple[Any, int, str]) -> tuple[Any, Any]:
    """A quantized sum or product of two byte tensors: (the real-valued steps for gradients, the exact steps).

    The exact value comes from a table over all pairs of bytes, made by the independent reading of the dialect's formula
    (`hwq.numerics.binary`).
    """
    a, b = operands
    scale, zero, dtype = made
    low, high = integer_range(dtype)
    ratio = torch.add if node.op == "Add" else torch.mul
    soft = ratio(a.centered * (a.scale / scale), b.centered * (b.scale if node.op == "Mul" else b.scale / scale))
    starts = [integer_range(one.dtype)[0] for one in (a, b)]
    bytes_ = [np.arange(start, start + 256) for start in starts]
    floor = network.dialect.name.startswith("torch-fbgemm") and any(part.op == "Relu" for part in node.body)
    table = numerics.binary(
        network.dialect.formulas[node.op],
        bytes_[0][:, None],
        bytes_[1][None, :],
        a_scale=float(a.scale.detach()),
        b_scale=float(b.scale.detach()),
        scale=float(scale.detach()),
        a_zero_point=a.zero,
        b_zero_point=b.zero,
        zero_point=zero,
        clamp=(zero if floor else low, high),
    )
    entries = torch.from_numpy((table - zero).astype(np.float32).reshape(-1))
    with torch.no_grad():
        first = float((a.zero - starts[0]) * 256 + b.zero - starts[1])
        places = torch.add(b.centered + first, a.centered, alpha=256.0).to(torch.int32)
        exact = entries.index_select(0, places.reshape(-1)).reshape(places.shape)
    return soft, exact
