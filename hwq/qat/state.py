"""What is trained: weights, biases and scales of a lowered graph, found in the quantized graph that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.graph import Array, Graph, Quantization, Tensor
from hwq.ops.storage import integer_range
from hwq.qat.floats import Float, frozen_floats, trained_floats
from hwq.qat.limits import FACTORS, limits
from hwq.qat.operators import MOVERS

__all__ = ["INTEGER", "Bias", "Scale", "State", "Stored", "Weight", "spread"]

# A weight starts this far inside the cell of its integer, in steps: the float weight is kept where the cell allows it.
INSIDE = 0.49
# Operators of integers whose sums an operator of floats scales afterwards, and the products that they are.
INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


@dataclass(frozen=True)
class Stored:
    """A quantized value: ``centered = q - zero``, integers in float32, and its scale."""

    centered: Any
    scale: Any
    zero: Any  # int, or an int32 array of the scale's shape
    dtype: str
    axis: int | None = None
    key: int | None = None
    block: int | None = None

    def spread_scale(self) -> Any:
        """The scale, broadcastable to the value."""
        return spread(self.scale, self.axis, self.block, self.centered)

    def spread_zero(self) -> Any:
        """The zero point, broadcastable to the value; an int or an int64 array."""
        if isinstance(self.zero, int):
            return self.zero
        made = spread(torch.from_numpy(np.array(self.zero, np.int64)), self.axis, self.block, self.centered)
        return made.numpy()


def spread(values: Any, axis: int | None, block: int | None, like: Any) -> Any:
    """One value, one a channel of `axis`, one a block along it, or of a broadcastable shape, for the tensor `like`."""
    if values.numel() == 1 and block is None:
        return values.reshape(())
    if axis is None:  # one a row, as it lies
        return values
    if block is not None:
        return torch.repeat_interleave(values, block, dim=axis).narrow(axis, 0, like.shape[axis])
    return values.reshape([-1 if index == axis else 1 for index in range(like.ndim)])


@dataclass(frozen=True)
class Scale:
    """A scale that is learned: the constants of the quantized graph that hold it, and its first value (float32)."""

    names: tuple[str, ...]
    base: NDArray[np.float32]
    gradient: float
    limits: tuple[float, float]  # of its factor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the factor."""
        return self.base.shape


@dataclass(frozen=True)
class Weight:
    """A stored weight that is trained: `start` is u, the weight over its first scale."""

    name: str
    start: NDArray[np.float32]
    low: int
    high: int
    zero: Any
    scheme: Quantization


@dataclass(frozen=True)
class Bias:
    """A bias that is trained: `start` in units of `unit`, the step of the layer's output (float64).

    `holder` is the constant of the quantized graph that holds it; `scale_name` that of its scale, empty for a float bias.
    """

    name: str
    holder: str
    scale_name: str
    node: str
    start: NDArray[np.float64]
    unit: NDArray[np.float64]


@dataclass(frozen=True)
class State:
    """Parameters in order, and which tensor of the lowered graph each is for; `frozen` float constants have none."""

    scales: tuple[Scale, ...]
    weights: tuple[Weight, ...]
    biases: tuple[Bias, ...]
    floats: tuple[Float, ...]
    frozen: tuple[str, ...]
    scale_of: Mapping[str, int]
    weight_of: Mapping[str, int]
    bias_of: Mapping[str, int]
    float_of: Mapping[str, int]

    @staticmethod
    def of(
        quantized: Graph,
        lowered: Graph,
        originals: Mapping[str, Array],
        bounds: Mapping[str, tuple[int, int]],
        groups: bool,
    ) -> State:
        """Find what can be trained.

        Parameters
        ----------
        quantized, lowered : Graph
        originals : mapping of stored weight to float array
            Where the float weights are known; others start in the middle of their cells.
        bounds : mapping of stored weight to (lowest, highest) integer
            Where they are narrower than the stored type.
        groups : bool
            Whether the dialect's groups take in a Clip (see `hwq.qat.limits`).
        """
        holders = _holders(lowered)
        fixed = _fixed(quantized, lowered, holders)
        joined = _joined(lowered, holders, fixed)
        weights = _weights(quantized, lowered, holders, originals, bounds)
        sizes = {name: joined[scale] for name, scale in holders.items() if scale in joined}
        order = {root: index for index, root in enumerate(dict.fromkeys(sizes.values()))}
        members: dict[str, list[str]] = {root: [] for root in order}
        for name, root in joined.items():
            if root in members:
                members[root].append(name)
        scale_of = {name: order[root] for name, root in sizes.items()}
        scales = []
        narrow = limits(quantized, joined, groups)
        for root in order:
            base = quantized.constant(root)
            assert base is not None
            held = [name for name, other in sizes.items() if other == root]
            scales.append(
                Scale(
                    tuple(members[root]),
                    np.array(base, np.float32),
                    _gradient(lowered.tensors[held[0]], quantized.tensors.get(held[0])),
                    narrow.get(root, FACTORS),
                )
            )
        biases = _biases(quantized, lowered, weights)
        taken = {*biases, *(one.holder for one in biases.values()), *holders.values()}
        floats = trained_floats(quantized, lowered, taken)
        return State(
            tuple(scales),
            tuple(weights.values()),
            tuple(biases.values()),
            tuple(floats),
            frozen_floats(lowered, {*taken, *(one.name for one in floats)}),
            scale_of,
            {name: index for index, name in enumerate(weights)},
            {name: index for index, name in enumerate(biases)},
            {one.name: index for index, one in enumerate(floats)},
        )


def _holders(lowered: Graph) -> dict[str, str]:
    """The constant that holds the scale of each stored tensor of the lowered graph."""
    found: dict[str, str] = {}
    for node in lowered.nodes:
        for part in (node, *node.body):
            if part.op == "QuantizeLinear":
                found[part.outputs[0]] = part.inputs[1]
            elif part.op == "DequantizeLinear":
                found.setdefault(part.inputs[0], part.inputs[1])
    # The scale of an int32 bias is that of its accumulators.
    return {
        name: scale
        for name, scale in found.items()
        if name in lowered.tensors and lowered.tensors[name].dtype != "int32" and not _stands_in(lowered, name)
    }


def _stands_in(lowered: Graph, name: str) -> bool:
    """Whether the lowered graph reads a converted copy of this constant instead; such a constant is not trained."""
    return name in lowered.tensors and lowered.tensors[name].constant and not lowered.consumers.get(name)


def _fixed(quantized: Graph, lowered: Graph, holders: Mapping[str, str]) -> set[str]:
    """Scales that must keep their value: no constants of the graph, read as something else too, one tensor's second
    scale, of a constant that a copy stands in for, or what the lowering derives an integer bias (one behind a DQ too) from.
    """
    fixed = set()
    for scale in set(holders.values()):
        data = quantized.constant(scale)
        if data is None or data.dtype != np.float32 or not data.size:
            fixed.add(scale)
    for node in quantized.nodes:
        for index, name in enumerate(node.inputs):
            if not (node.op.endswith("eLinear") and index == 1):
                fixed.add(name)
    for node in lowered.nodes:
        for part in (node, *node.body):
            if part.op == "DequantizeLinear" and holders.get(part.inputs[0], part.inputs[1]) != part.inputs[1]:
                fixed |= {holders[part.inputs[0]], part.inputs[1]}
            if part.op == "DequantizeLinear" and _stands_in(lowered, part.inputs[0]):
                fixed.add(part.inputs[1])
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        maker = lowered.producers.get(bias)
        stored = maker.inputs[0] if maker is not None and maker.op == "DequantizeLinear" else bias
        derived = stored and lowered.tensors[stored].dtype == "int32" and stored not in quantized.tensors
        if maker is not None and derived:  # the operator reads its operands as floats
            sources = [lowered.producers.get(name) for name in node.inputs[:2]]
            fixed |= {part.inputs[1] for part in sources if part is not None and part.op == "DequantizeLinear"}
        if derived or (bias and len(lowered.consumers[bias]) > 1):
            fixed |= {holders[name] for name in node.inputs[:2] if name in holders}
    return fixed


def _joined(lowered: Graph, holders: Mapping[str, str], fixed: set[str]) -> dict[str, str]:
    """The representative of each learned scale: operators that move stored values keep both sides equal."""
    parents = {scale: scale for scale in holders.values()}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    for node in lowered.nodes:
        if node.op in MOVERS and node.inputs and node.inputs[0] in holders:
            for made in node.outputs:
                if made in holders:
                    parents[root(holders[made])] = root(holders[node.inputs[0]])
    still = {root(name) for name in fixed if name in parents}
    return {name: root(name) for name in parents if root(name) not in still}


def _gradient(tensor: Tensor, source: Tensor | None) -> float:
    """LSQ's gradient scale, 1 / sqrt(N Qp): N the elements of a weight, or of one sample's activation."""
    sizes = [int(dim) for dim in (tensor.shape if tensor.constant else tensor.shape[1:]) if isinstance(dim, int)]
    highest = integer_range((tensor if source is None else source).dtype)[1]
    return float(1.0 / np.sqrt(max(1, int(np.prod(sizes, dtype=np.int64))) * max(highest, 1)))


def _weights(
    quantized: Graph,
    lowered: Graph,
    holders: Mapping[str, str],
    originals: Mapping[str, Array],
    bounds: Mapping[str, tuple[int, int]],
) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    integers = _integer_weights(lowered)
    for name in [*holders, *integers]:
        tensor, source = lowered.tensors[name], quantized.tensors.get(name)
        scheme = integers.get(name, tensor.quantization)
        if tensor.data is None or source is None or scheme is None or not scheme.known or tensor.dtype == "int32":
            continue
        zero = scheme.zero_points()
        plain: Any = int(zero.reshape(())) if zero.size == 1 and scheme.block is None else zero
        low, high = bounds.get(name, integer_range(source.dtype))
        stored = torch.from_numpy(tensor.data.astype(np.float32))
        wide = spread(torch.from_numpy(np.array(zero, np.float32)), scheme.axis, scheme.block, stored)
        middle = (stored - wide).numpy()
        start = middle
        if name in originals and originals[name].shape == middle.shape:
            step = spread(torch.from_numpy(np.array(scheme.scales())), scheme.axis, scheme.block, stored).numpy()
            with np.errstate(all="ignore"):
                start = np.clip(originals[name] / step, middle - INSIDE, middle + INSIDE)
            start = np.where(np.isfinite(start), start, middle)
        found[name] = Weight(name, np.asarray(start, np.float32), low, high, plain, scheme)
    return found


def _integer_weights(lowered: Graph) -> dict[str, Quantization]:
    """Constant weights of integer operators, which no DequantizeLinear reads, and how they are stored."""
    found: dict[str, Quantization] = {}
    for node in lowered.nodes:
        tensor = lowered.tensors[node.inputs[1]] if node.op in INTEGER else None
        if tensor is None or tensor.data is None or tensor.dtype not in {"int8", "uint8"}:
            continue
        name = node.inputs[3] if len(node.inputs) > 3 else ""
        points = lowered.constant(name) if name else np.zeros((), tensor.dtype)
        scheme = tensor.quantization
        if scheme is None and points is not None and points.size == 1:
            scheme = Quantization(tensor.dtype, np.ones((), np.float32), points.reshape(()))
        if scheme is None or not scheme.known or points is None:
            continue
        own, points = scheme.zero_points().reshape(-1), points.reshape(-1)
        if 1 in {own.size, points.size} or own.size == points.size:
            if bool((own == points).all()):
                found[node.inputs[1]] = scheme
    return found


def _biases(quantized: Graph, lowered: Graph, weights: Mapping[str, Weight]) -> dict[str, Bias]:
    found: dict[str, Bias] = {}
    dequantized = {node.inputs[0]: node.inputs[1] for node in quantized.nodes if node.op == "DequantizeLinear"}
    for node in lowered.nodes:
        name = node.inputs[2] if len(node.inputs) > 2 and node.op in {"Conv", "ConvTranspose", "Gemm", "MatMul"} else ""
        tensor = lowered.tensors[name] if name else None
        if tensor is None or tensor.data is None or len(lowered.consumers[name]) > 1:
            continue
        given, made = (lowered.tensors[one].quantization for one in (node.inputs[0], node.outputs[0]))
        if tensor.dtype == "int32":
            if name not in dequantized or node.inputs[1] not in weights or given is None:
                continue
            steps = given.scales().reshape(()) * weights[node.inputs[1]].scheme.scales().reshape(-1)
            real, holder, scale_name = tensor.data.astype(np.float64) * steps, name, dequantized[name]
        else:
            real, scale_name = tensor.data.astype(np.float64), ""
            holder = next(
                (part.inputs[2] for part in (*node.body, node) if part.op == node.op and len(part.inputs) > 2), ""
            )
            data = quantized.constant(holder)
            if data is None or data.dtype != np.float32 or len(quantized.consumers.get(holder, ())) != 1:
                continue
        unit = np.float64(made.scales().reshape(())) if made is not None else max(float(np.abs(real).mean()), 1e-6)
        found[name] = Bias(name, holder, scale_name, node.name, real / unit, np.asarray(unit, np.float64))
    return found


def require_prepared(value: Any) -> None:
    """Raise unless `prepare` made the module."""
    if not isinstance(getattr(value, "state", None), State):
        raise Error(
            f"this is a {type(value).__name__}, not a prepared module",
            where="hwq.qat",
            remedy="hwq.qat.prepare makes one",
        )
