"""Layer-by-layer rounding: each layer's integers are chosen for the inputs that the already quantized layers give it.

With x the float layer's input and x^ the same input behind the quantized prefix, both less their means,

    E |W x - W^ x^|^2 = tr (W^ - T) H (W^ - T)^T + const,   H = E[x^ x^^T],   T = W E[x x^^T] H^-1

so rounding W for x^ is rounding T, the least-squares weights, under H (`hwq.rounding`); the means go into the bias:
``b^ = b + W E[x] - W^ E[x^]`` (empirical bias correction; Nagel et al. 2019). Damping pulls T towards W, so where the data
say nothing the weights stay; it is as strong as the samples are few (`hwq.transforms.problem`). Where the layer's output is added
to a value s that the quantized model has already, as in a residual block, the sum is what must be near: W x + s - s^ takes the
place of W x, and the layer makes good what it can of the other branch's error. Without samples, the second moments of a
calibration serve: x^ = x, T = W.

Scales are searched with the rounding that the plan asks for: candidates are shares of the largest weight of a channel, the
one with the least error in the layer's output wins (``scale = "seq-mse"``); ``"weighted"`` weighs the squared error of
each weight by E[x_k^2] alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.batches import Batches
from hwq.errors import Error
from hwq.floating import in_one_type
from hwq.graph import Array, Graph, Node, carrier
from hwq.names import display_name
from hwq.ops.application import evaluate_node
from hwq.ops.convolution import filters_first
from hwq.ops.storage import integer_range
from hwq.patches import Linear, linears
from hwq.placement import Constant, weight_axes
from hwq.plan import Weights
from hwq.rounding import nearest
from hwq.transforms import places
from hwq.transforms.biases import bias_of, matrix_of
from hwq.transforms.problem import Data, Problem
from hwq.transforms.subsets import pieces_within, thinned

if TYPE_CHECKING:
    from hwq.scales import Scales

__all__ = ["needs_samples", "reconstruct"]

Floats = NDArray[np.float64]

# Bytes of activations (float and quantized together) that are held for all samples at once; more samples are left out.
SAMPLE_BYTES = 400 << 20
# Shares of a channel's largest weight that a scale search tries.
FINE_SHARES = np.linspace(0.85, 1.0, 4)
COARSE_SHARES = np.linspace(0.4, 1.0, 13)
# Fewer bits than this are searched over the coarse shares.
FINE_BITS = 7
# Samples that bias correction alone looks at, spread evenly over all: means settle soon (some 100; Nagel et al. 2019).
MEAN_SAMPLES = 128


def needs_samples(weights: Weights) -> bool:
    """Whether these weights are rounded or scaled against data."""
    return weights.rounding != "nearest" or (
        isinstance(weights.scale, str) and weights.scale in {"weighted", "seq-mse"}
    )


def _weight(layer: Linear, matrix: Array, like: Array) -> Array:
    """The inverse of `matrix_of`."""
    if layer.node.op == "Conv":
        made = matrix.reshape(filters_first(like, layer.node).shape)
        return np.moveaxis(made, 1, -1) if layer.node.layout == "NHWC" else made
    return matrix if layer.node.op == "Gemm" and layer.node.attributes.get("transB", 0) else matrix.T


def reconstruct(scales: Scales, batches: Batches | None, correct: bool) -> Graph:
    """Choose integers and scales of every weight that asks for data, and correct biases.

    Parameters
    ----------
    scales : Scales
        Of the placement; its weights are filled in.
    batches : batches or None
        Samples of the float model's input; None: the calibration's second moments serve.
    correct : bool
        Correct biases.

    Returns
    -------
    Graph
        The graph with the corrected biases.

    Raises
    ------
    Error
        Neither samples nor second moments are there.
    """
    if batches is None:
        return _from_moments(scales, correct)
    bytes_of = {name: carrier(how.dtype).itemsize for name, how in scales.placement.points.items()}
    pieces = pieces_within(scales.graph, batches, SAMPLE_BYTES, bytes_of)
    if not any(needs_samples(one.weights) for one in scales.placement.constants.values()):
        pieces = thinned(scales.graph, pieces, MEAN_SAMPLES)
    return _Walk(scales, correct).run(pieces)


def _from_moments(scales: Scales, correct: bool) -> Graph:
    graph, biases = scales.graph, {}
    known = scales.cal.moments if scales.cal is not None else {}
    for name, layer in linears(graph).items():
        constant = scales.placement.constants.get((name, 1))
        if constant is None or not (needs_samples(constant.weights) or correct):
            continue
        if name not in known:
            raise Error(
                "this layer's weights are to be rounded against data, and there are none",
                where=f"node {display_name(name)}, key weights or transforms.bias_correction",
                remedy="pass batches= to quantize, or calibrate with moments=True",
            )
        bias = bias_of(graph, layer) if correct else ""
        data = Data.known(known[name], bool(bias))
        chosen = _choose(scales, layer, constant, data)
        if bias:
            biases[bias] = _corrected(scales, layer, bias, data, chosen)
    return _with(graph, biases)


def _with(graph: Graph, biases: Mapping[str, Array]) -> Graph:
    changed = [dataclasses.replace(one, data=biases.get(name, one.data)) for name, one in graph.tensors.items()]
    return graph.replace(tensors=changed)


def _corrected(scales: Scales, layer: Linear, name: str, data: Data, used: Array) -> Array:
    """``b + W E[x] + E[s - s^] - W^ E[x^]`` in float64, rounded to the bias's type."""
    graph = scales.graph
    bias, weight = graph.constant(name), graph.constant(layer.node.inputs[1])
    assert bias is not None and weight is not None
    was, now = (matrix_of(layer, one).astype(np.float64) for one in (weight, used))
    moved = bias + _by_group(was, data.mean) - _by_group(now, data.mean_after) + data.aside_mean
    return np.asarray(moved).astype(bias.dtype)


def _by_group(rows: Floats, mean: Floats) -> Floats:
    """``W E[x]``: rows of (channels, K) by the mean of their group, (groups, K)."""
    split = rows.reshape(len(mean), -1, rows.shape[1])
    return np.asarray((split * mean[:, None]).sum(axis=-1).reshape(-1))


def _choose(scales: Scales, layer: Linear, constant: Constant, data: Data) -> Array:
    """Scale and integers of one layer, put into `scales`; returns the dequantized weight."""
    weight = scales.graph.constant(constant.tensor)
    assert weight is not None
    key, how = (layer.node.name, constant.slot), constant.weights
    scales.require_weight(layer.node, constant)
    if not needs_samples(how):
        scale, zero, stored = scales.weight(layer.node, constant)
        return _dequantized(stored, scale, zero, constant)
    minimum = scales.dialect.weight_minimum if how.dtype == "int8" else None
    low, high = integer_range(how.dtype)
    low = low if minimum is None else max(low, minimum)
    target = data.target(matrix_of(layer, weight).astype(np.float64))
    aim = _weight(layer, target, weight).astype(np.float32)
    problem = Problem(data, len(target))
    importance = _weight(layer, np.broadcast_to(problem.diagonal, target.shape), weight)
    best: tuple[Floats, Array, Array, Floats] | None = None
    for scale, zero in _candidates(scales, layer.node, constant, aim, importance, minimum):
        step, point = (
            matrix_of(layer, _expanded(one, weight.shape, constant)).astype(np.float64) for one in (scale, zero)
        )
        if how.rounding == "nearest":
            stored = nearest(target, step, point, low, high)
        else:
            stored = problem.rounded(target, step, point, low, high)
        error = problem.error(target, stored, step, point)
        if best is None:
            best = error, scale, zero, stored
            continue
        better = error < best[0]
        rows = _rows_of(layer, constant, weight.ndim)
        if rows is None:
            better = np.full_like(better, error.sum() < best[0].sum())
        by_scale = better.any() if rows is None else better.reshape(rows)
        best = (
            np.where(better, error, best[0]),
            np.where(by_scale, scale, best[1]),
            np.where(by_scale, zero, best[2]),
            np.where(better[:, None], stored, best[3]),
        )
    assert best is not None
    _, scale, zero, stored = best
    if how.rounding == "coordinate":
        step, point = (
            matrix_of(layer, _expanded(one, weight.shape, constant)).astype(np.float64) for one in (scale, zero)
        )
        stored = problem.rounded(target, step, point, low, high, start=stored)
    made = np.ascontiguousarray(_weight(layer, stored, weight)).astype(carrier(how.dtype))
    scales.weights[key] = scale.astype(np.float32), zero.astype(carrier(how.dtype)), made
    return _dequantized(made, scales.weights[key][0], scales.weights[key][1], constant)


def _rows_of(layer: Linear, constant: Constant, rank: int) -> tuple[int, ...] | None:
    """The shape in which one value a row (an output channel) meets the scales; None where rows share a scale."""
    if constant.axis is None:
        return None
    if constant.block is None:
        return (-1,)
    channel, _ = weight_axes(layer.node, constant.slot, rank)
    return tuple(-1 if axis == channel else 1 for axis in range(rank))


def _candidates(
    scales: Scales, node: Node, constant: Constant, aim: Array, importance: Array, minimum: int | None
) -> Iterator[tuple[Array, Array]]:
    how = constant.weights
    searched = how.scale == "seq-mse"
    plain = how.model_copy(update={"scale": "minmax"}) if searched else how
    scale, zero = scales.observed_weight(node, constant, aim, plain, minimum, importance)
    if not searched:
        yield scale, zero
        return
    for share in FINE_SHARES if integer_range(how.dtype)[1] >= 2 ** (FINE_BITS - 1) - 1 else COARSE_SHARES:
        # A smaller scale may ask too much of an int32 bias where the weights are next to nothing.
        smaller = (scale * np.float32(share)).astype(np.float32)
        yield scales.alive(node, constant, smaller.reshape(-1)).reshape(scale.shape), zero


def _expanded(values: Array, shape: tuple[int, ...], constant: Constant) -> Array:
    """A scale or zero point for every element of the weight."""
    if constant.axis is None:
        return np.broadcast_to(values, shape)
    if constant.block is None:
        return np.broadcast_to(
            values.reshape([-1 if axis == constant.axis else 1 for axis in range(len(shape))]), shape
        )
    repeated = np.repeat(values, constant.block, axis=constant.axis)
    return np.take(repeated, np.arange(shape[constant.axis]), axis=constant.axis)


def _dequantized(stored: Array, scale: Array, zero: Array, constant: Constant) -> Array:
    steps, points = (_expanded(one, stored.shape, constant) for one in (scale, zero))
    return ((stored.astype(np.float32) - points.astype(np.float32)) * steps).astype(np.float32)


def _dense(value: Array) -> Array:
    """The values without gaps, in the order of memory that they have."""
    return value if np.may_share_memory(value.ravel("K"), value) else np.ascontiguousarray(value)


class _Walk:
    """Runs float and quantized model side by side, node by node, over all pieces."""

    def __init__(self, scales: Scales, correct: bool):
        self.scales, self.correct, self.graph = scales, correct, scales.graph
        self.layers = linears(self.graph)
        self.biases: dict[str, Array] = {}
        last: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            last |= dict.fromkeys((name for name in node.inputs if name), index)
        self.dying = {
            index: [name for name, at in last.items() if at == index] for index in range(len(self.graph.nodes))
        }

    def run(self, pieces: list[Mapping[str, Array]]) -> Graph:
        before: list[dict[str, Array]] = [dict(piece) for piece in pieces]
        after: list[dict[str, Array]] = [
            {name: self._stored(name, value) for name, value in piece.items()} for piece in pieces
        ]
        for index, node in enumerate(self.graph.nodes):
            used = self._layer(node, before, after)
            for plain, rounded in zip(before, after, strict=True):
                made = evaluate_node(node, in_one_type(node, self._operands(node, plain)), self.graph)
                given = self._operands(node, {**rounded, **self.biases})
                for slot, value in used.items():
                    given[slot] = value
                again = evaluate_node(node, in_one_type(node, given), self.graph)
                plain.update(zip(node.outputs, made, strict=False))
                rounded.update(zip(node.outputs, again, strict=False))
                # Piece by piece, so that what is read for the last time and what is made of it are never all there at once.
                for name in self.dying[index]:
                    plain.pop(name, None)
                    rounded.pop(name, None)
            self._shift(node, before, after)
            for rounded in after:
                for name in node.outputs:
                    rounded[name] = self._stored(name, rounded[name])
        return _with(self.graph, self.biases)

    def _operands(self, node: Node, values: Mapping[str, Array]) -> list[Array | None]:
        return [
            None if not name else self._read(name, values[name]) if name in values else self.graph.constant(name)
            for name in node.inputs
        ]

    def _stored(self, name: str, value: Array) -> Array:
        """What the quantized model holds in the place of a value: integers, a quarter of its bytes."""
        how = self.scales.placement.points.get(name)
        if how is None or value.dtype.kind != "f":
            return value
        scale, zero = self.scales.activation(name)
        given = _dense(value.astype(np.float32, copy=False))
        made = np.empty_like(given, dtype=carrier(how.dtype))
        kernels.quantize(given.ravel("K"), scale, int(zero), how.dtype, out=made.ravel("K"))
        return made

    def _read(self, name: str, value: Array) -> Array:
        """A value of either model as its readers see it."""
        if name not in self.scales.placement.points or value.dtype.kind == "f":
            return value
        scale, zero = self.scales.activation(name)
        made = np.empty_like(value, dtype=np.float32)
        kernels.dequantize(value.ravel("K"), scale, int(zero), out=made.ravel("K"))
        return made

    def _layer(self, node: Node, before: list[dict[str, Array]], after: list[dict[str, Array]]) -> dict[int, Array]:
        """Choose the layer's integers and its bias; the weight that the quantized model has instead, by input slot."""
        constant, layer = self.scales.placement.constants.get((node.name, 1)), self.layers.get(node.name)
        if constant is None or layer is None:
            slots = [slot for (name, slot) in self.scales.placement.constants if name == node.name]
            return {
                slot: _dequantized(stored, scale, zero, one)
                for slot in slots
                for one in (self.scales.placement.constants[node.name, slot],)
                for scale, zero, stored in (self.scales.weight(node, one),)
            }
        if not needs_samples(constant.weights):
            scale, zero, stored = self.scales.weight(node, constant)
            return {1: _dequantized(stored, scale, zero, constant)}
        bias = bias_of(self.graph, layer) if self.correct else ""
        data = self._data(layer, constant, before, after, bool(bias))
        used = _choose(self.scales, layer, constant, data)
        if bias:
            self.biases[bias] = _corrected(self.scales, layer, bias, data, used)
        return {1: used}

    def _data(
        self,
        layer: Linear,
        constant: Constant,
        before: list[dict[str, Array]],
        after: list[dict[str, Array]],
        center: bool,
    ) -> Data:
        weight = self.graph.constant(constant.tensor)
        assert weight is not None  # `linears` says so
        at = places.spread(layer, before)
        plain, rounded = (places.rows(layer, values, at, self._read) for values in (before, after))
        name = places.partner(self.graph, layer.node.outputs[0])
        channels = len(matrix_of(layer, weight))
        beside = places.beside(layer, channels, name, before, after, at, self._read) if name else None
        return Data.of(plain, rounded, center, beside)

    def _shift(self, node: Node, before: list[dict[str, Array]], after: list[dict[str, Array]]) -> None:
        """Where a layer's bias is corrected and nothing else of it asks for data: move the bias, and the outputs already
        made with it, by the mean error of each output channel.
        """
        constant, layer = self.scales.placement.constants.get((node.name, 1)), self.layers.get(node.name)
        if not self.correct or constant is None or layer is None or needs_samples(constant.weights):
            return
        name, at_bias = node.outputs[0], bias_of(self.graph, layer)
        bias = self.graph.constant(at_bias)
        if bias is None:
            return
        axis = 1 if node.op == "Conv" and node.layout != "NHWC" else before[0][name].ndim - 1
        others = tuple(at for at in range(before[0][name].ndim) if at != axis)
        count = sum(piece[name].size for piece in before) // len(bias)
        means = [
            sum(piece[name].sum(axis=others, dtype=np.float64) for piece in side) / count for side in (before, after)
        ]
        self.biases[at_bias] = (bias + means[0] - means[1]).astype(bias.dtype)
        if at_bias not in node.inputs:  # the Add behind the product reads it
            return
        moved = (self.biases[at_bias] - bias).reshape([-1 if at == axis else 1 for at in range(len(others) + 1)])
        for piece in after:
            piece[name] = (piece[name] + moved).astype(piece[name].dtype, copy=False)
