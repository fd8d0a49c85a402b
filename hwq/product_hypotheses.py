"""Convolutions and products by other rules than their dialect's: the sums are taken once, what leaves them is varied.

One reading serves ONNX's groups and TFLite's operators: integers summed exactly, the input's, the weights' and the
output's scale, the range after the fused activation.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hwq import numerics
from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Quantization, carrier
from hwq.ops import spatial
from hwq.ops.tflite_accumulators import windows_of
from hwq.ops.tflite_base import Call, activation_range
from hwq.ops.tflite_rescaling import rounding_of

__all__ = ["PRODUCTS", "Product", "permuted", "product_of", "products"]

# Operators that `product_of` reads: ONNX's groups, TFLite's.
PRODUCTS = frozenset({"Conv", "MatMul", "Gemm", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
# Rules that compare every channel with every other, or that run over pairs in NumPy, stop at so many steps.
STEPS = 1 << 30
f32 = np.float32
Made = Iterator[tuple[str, str, Array]]


@dataclasses.dataclass(frozen=True)
class Product:
    """A quantized product as it leaves its sums.

    Attributes
    ----------
    plain : int64 array (..., channels)
        Sums of (a - zero point) * (w - zero point), without the bias.
    bias : int64 array (channels,) or None
    scales : (float32, float32 array, float32)
        Of the input (with Gemm's alpha), of the weights (one, or one a channel), of the output.
    zero, low, high : int
        The output's zero point and its range after the fused activation.
    dtype : str
        The output's.
    own : str
        The dialect's rounding, by `hwq.numerics.requantize`'s names.
    second : bool
        Whether the output's channels are its second dimension.
    padded : callable or None
        `plain` with another stored value at padded places; None where nothing is padded.
    least : int
        Of the input's type.
    saturated : callable
        `plain` with neighboring products of uint8 and int8 added in int16.
    """

    plain: Array
    bias: Array | None
    scales: tuple[Any, Array, Any]
    zero: int
    low: int
    high: int
    dtype: str
    own: str
    second: bool
    padded: Callable[[int], Array] | None
    least: int
    saturated: Callable[[], Array]

    @property
    def products(self) -> Array:
        """f32(input scale * weight scale): () or (channels,)."""
        made = (self.scales[0] * self.scales[1]).astype(f32)
        return np.asarray(made.reshape(()) if made.size == 1 else made)

    @property
    def wide(self) -> Array:
        """The multiplier in float64, nothing rounded in between."""
        made = np.float64(self.scales[0]) * self.scales[1].astype(np.float64) / np.float64(self.scales[2])
        return np.asarray(made.reshape(()) if made.size == 1 else made)

    def total(self, plain: Array | None = None) -> Array:
        """Sums and bias."""
        plain = self.plain if plain is None else plain
        return plain if self.bias is None else plain + self.bias

    def stored(self, values: Array, bounds: tuple[int, int] | None = None) -> Array:
        """Rounded values with their zero point as the output holds them."""
        low, high = (self.low, self.high) if bounds is None else bounds
        kept = np.nan_to_num(values, nan=low) if values.dtype.kind == "f" else values
        made = np.clip(kept, low, high).astype(carrier(self.dtype))
        return np.ascontiguousarray(np.moveaxis(made, -1, 1) if self.second else made)

    def rescaled(self, plain: Array | None = None, bounds: tuple[int, int] | None = None) -> Iterator[Array]:
        """By the dialect's own rounding: whatever else is varied, this is not."""
        total = self.total(plain)
        if self.own == "fp32":
            scaled = total.astype(f32) * (self.products / self.scales[2]).astype(f32)
            yield self.stored(np.rint(scaled) + self.zero, bounds)
        elif self.own == "f64":
            yield self.stored(numerics.away(total.astype(np.float64) * self.wide) + self.zero, bounds)
        else:
            yield self.fixed(self.own, total, self.wide, bounds)
            yield self.fixed(self.own, total, self.products.astype(np.float64) / np.float64(self.scales[2]), bounds)

    def fixed(self, rounding: str, total: Array, real: Array, bounds: tuple[int, int] | None = None) -> Array:
        """In fixed point."""
        pairs = [numerics.quantize_multiplier(float(one)) for one in np.atleast_1d(real)]
        multipliers, shifts = (np.array(side, np.int64).reshape(real.shape) for side in zip(*pairs, strict=True))
        info = np.iinfo(carrier(self.dtype))
        made = numerics.requantize(total, rounding, multipliers=multipliers, shifts=shifts, zero_point=self.zero,
                                   clamp=(int(info.min), int(info.max)))  # fmt: skip
        return self.stored(made, bounds)


def products(graph: Graph, source: Graph, node: Node, feeds: Mapping[str, Array]) -> Made:
    """Every rule that applies to a product: (rule, detail, the output that it gives)."""
    one = product_of(graph, node, feeds)
    total, zero, factors = one.total(), one.zero, (one.products / one.scales[2]).astype(f32)
    acc, narrow = total.astype(np.float64), total.astype(f32)
    with contextlib.suppress(Error):  # no bytes, or too many
        for value in one.rescaled(one.saturated()):
            yield "saturation", "int16 pairs", value
    yield from _biases(source, node, one, factors)
    scaled = (narrow * factors).astype(f32)
    ties = np.rint if one.own == "fp32" else numerics.away  # the dialect's own: one rule is varied at a time
    yield "zero-point order", "added before rounding", one.stored(ties(scaled + f32(zero)))
    inverse = (one.products * (f32(1) / one.scales[2])).astype(f32)
    value = one.stored(ties((narrow * inverse).astype(f32)) + zero)
    yield "division or reciprocal", "multiplier by the reciprocal of the output scale", value
    value = one.stored(ties(((narrow * one.products).astype(f32) / one.scales[2]).astype(f32)) + zero)
    yield "division or reciprocal", "the accumulator is scaled, then divided by the output scale", value
    fused = numerics.fused_multiply_add(*np.broadcast_arrays(narrow, factors, f32(zero)))
    yield "fused multiply-add", "product and zero point rounded once", one.stored(np.rint(fused))
    yield "rounding", "R4, float32, ties to even", one.stored(np.rint(scaled) + zero)
    yield "rounding", "float32, ties away from zero", one.stored(numerics.away(scaled) + zero)
    yield "rounding", "R2, float64, ties away from zero", one.stored(numerics.away(acc * one.wide) + zero)
    yield "rounding", "float64, ties to even", one.stored(np.rint(acc * one.wide) + zero)
    yield "rounding", "towards zero", one.stored(np.trunc(acc * one.wide) + zero)
    yield "rounding", "downwards", one.stored(np.floor(acc * one.wide) + zero)
    yield "rounding", "upwards from halves", one.stored(np.floor(acc * factors.astype(np.float64) + 0.5) + zero)
    for name in ("gemmlowp", "ruy", "single", "mbqm64"):
        yield "rounding", f"fixed point, {name}", one.fixed(name, total, one.wide)
        yield (
            "rounding",
            f"fixed point, {name}, of f32(input scale * weight scale)",
            one.fixed(name, total, one.products.astype(np.float64) / np.float64(one.scales[2])),
        )
    yield from _operands(one)


def _biases(source: Graph, node: Node, one: Product, factors: Array) -> Made:
    if one.bias is None:
        return
    for detail, real in _float_biases(source, node, one):
        plain = one.plain.astype(f32)
        value = np.rint((plain + (real / one.products).astype(f32)) * factors) + one.zero
        yield "bias quantized", detail, one.stored(value)
        value = np.rint(((plain * one.products + real) / one.scales[2]).astype(f32)) + one.zero
        yield "bias quantized", f"{detail}, after the scale", one.stored(value)
    for detail, bias in (("not added", 0 * one.bias), ("subtracted", -one.bias), ("added twice", 2 * one.bias)):
        for value in dataclasses.replace(one, bias=bias).rescaled():
            yield "bias", detail, value


def _float_biases(source: Graph, node: Node, one: Product) -> Iterator[tuple[str, Array]]:
    """The bias in float32: the source's own where it has one, and the dequantized one."""
    assert one.bias is not None
    try:
        before = source.node(node.name)
    except Error:
        before = None
    if before is not None and len(before.inputs) > 2:
        value = source.constant(before.inputs[2])
        if value is not None and value.dtype == f32 and value.size == one.bias.size:
            yield "the model's float bias", value.reshape(-1)
    yield "the dequantized bias", (one.bias.astype(f32) * one.products).astype(f32)


def _operands(one: Product) -> Made:
    """Other values at padded places, other bounds, other channels' scales."""
    if one.padded is not None:
        for stored in {0, one.least}:
            for value in one.rescaled(one.padded(stored)):
                yield "padding", f"padded places hold a stored {stored}, not the zero point", value
    info = np.iinfo(carrier(one.dtype))
    least, most = int(info.min), int(info.max)
    for low, high in {
        (least, most), (least + 1, most), (least, most - 1), (one.low + 1, one.high), (one.low, one.high - 1),
        (one.low + 1, one.high - 1), (one.zero, one.high), (least, one.high), (one.low, most),
    }:  # fmt: skip
        for value in one.rescaled(bounds=(low, high)):
            yield "clamp", f"to [{low}, {high}] instead of [{one.low}, {one.high}]", value


def permuted(one: Product, theirs: Array) -> Made:
    """Channels that are what another channel's scale makes of their sums; found from the other run's values."""
    scales, columns = one.wide, np.moveaxis(theirs, 1, -1) if one.second else theirs
    total = one.total()
    if scales.size < 2 or scales.size * total.size > STEPS or columns.shape != total.shape:
        return
    flat, seen = total.reshape(-1, scales.size).astype(np.float64), columns.reshape(-1, scales.size)
    taken = np.arange(scales.size)
    for channel in range(scales.size):
        made = np.clip(np.rint(flat[:, channel, None] * scales) + one.zero, one.low, one.high)
        missed = np.count_nonzero(made != seen[:, channel, None], axis=0)
        if missed[channel]:
            taken[channel] = int(missed.argmin())
    if np.array_equal(taken, np.arange(scales.size)):
        return
    place = int(np.flatnonzero(taken != np.arange(scales.size))[0])
    weights = one.scales[1].reshape(-1)[taken]
    for value in dataclasses.replace(one, scales=(one.scales[0], weights, one.scales[2])).rescaled():
        yield "channel scales", f"channel {place} has the scale of channel {taken[place]}", value


def product_of(graph: Graph, node: Node, feeds: Mapping[str, Array]) -> Product:
    """The product of a node of a lowered graph, its variable operands given as stored.

    Raises
    ------
    Error
        An operand is not quantized, or not by one scale where one is needed.
    """
    a, w, made = (_quantization(graph, name) for name in (*node.inputs[:2], node.outputs[0]))
    operands = [feeds.get(name, graph.tensors[name].data) if name else None for name in node.inputs]
    x, filters = operands[:2]
    bias = operands[2] if len(operands) > 2 else None
    assert x is not None and filters is not None
    if a.scales().size != 1 or made.scales().size != 1:
        raise Error("activations with a scale a channel are no product of one kernel", where=f"node {node.name}")
    zeros = int(a.zero_points().reshape(-1)[0]), w.zero_points().astype(np.int64).reshape(-1)
    info = np.iinfo(carrier(made.dtype))
    low, high, own = int(info.min), int(info.max), "fp32"
    if node.domain == "tflite":
        call = Call.within(node, operands, graph)
        low, high = activation_range(call)
        own = rounding_of(call, None if bias is None else str(bias.dtype)).name
        zeros = zeros[0], zeros[1] if w.dtype == "uint8" else np.zeros(1, np.int64)
    alpha = f32(node.attributes.get("alpha", 1.0)) if node.op == "Gemm" else f32(1)
    scales = tuple(one.scales().reshape(-1).astype(f32) for one in (a, w, made))
    sums = _Sums(node, x, filters, *zeros)
    # Sums of 8-bit integers wrap in int32; those of int16 are wider.
    plain = sums.exact(zeros[0])
    return Product(
        plain if a.dtype == "int16" else plain.astype(np.int32).astype(np.int64),
        None if bias is None else bias.astype(np.int64).reshape(-1), (alpha * scales[0][0], scales[1], scales[2][0]),
        int(made.zero_points().reshape(-1)[0]), low, high, made.dtype, own, node.op == "Conv" and node.layout != "NHWC",
        sums.exact if sums.padded else None, int(np.iinfo(x.dtype).min), sums.saturated,
    )  # fmt: skip


def _quantization(graph: Graph, name: str) -> Quantization:
    found = graph.tensors[name].quantization
    if found is None or not found.known:
        raise Error("this operand is not quantized", where=f"tensor {name}")
    return found


class _Sums:
    """Sums of a product from its gathered windows: k over taps, then channels, the order of the kernels."""

    def __init__(self, node: Node, x: Array, filters: Array, zero: int, weight_zeros: Array):
        self.zero, self.window, self.rank = zero, None, 0
        if node.op in {"MatMul", "Gemm", "FULLY_CONNECTED"}:
            if node.op == "Gemm":
                x = x.T if node.attributes.get("transA", 0) else x
                filters = filters.T if node.attributes.get("transB", 0) else filters
            elif node.op == "FULLY_CONNECTED":
                rows = x.reshape(-1, filters.shape[1])
                x, filters = (x if node.attributes.get("keep_dims", False) else rows), filters.T
            if filters.ndim != 2 or x.ndim < 2:
                raise Error("batched products are not taken apart", where=f"node {node.name}")
            self.images, self.groups, self.each = x, 1, x.shape[-1]
            self.lead, weights = x.shape[:-1], filters[None]
        else:
            images = x if node.layout == "NHWC" or node.domain == "tflite" else np.moveaxis(x, 1, -1)
            self.rank = images.ndim - 2
            if node.op == "DEPTHWISE_CONV_2D":  # [1, h, w, channels * multiplier]
                channels = images.shape[-1]
                taps = np.moveaxis(filters.reshape(*filters.shape[1:-1], 1, channels, -1), -2, 0)
                self.groups, kernel = channels, filters.shape[1:-1]
            else:
                spread = filters if node.layout == "NHWC" or node.domain == "tflite" else np.moveaxis(filters, 1, -1)
                self.groups, kernel = images.shape[-1] // spread.shape[-1], spread.shape[1:-1]
                taps = np.moveaxis(spread.reshape(self.groups, -1, *spread.shape[1:]), 1, -1)
            weights = taps.reshape(self.groups, -1, taps.shape[-1])
            made = windows_of if node.domain == "tflite" else spatial.windows_of
            self.window = made(node, images.shape[1:-1], kernel)
            self.images, self.each = images, images.shape[-1] // self.groups
            self.lead = (images.shape[0], *self.window.sizes)
        columns = weights.shape[0] * weights.shape[2]
        points = np.broadcast_to(weight_zeros, (columns,)).reshape(weights.shape[0], 1, weights.shape[2])
        self.weights, self.points = weights.astype(np.int64), points
        self.padded = self.window is not None and any((*self.window.begin, *self.window.end))

    def gathered(self, padding: int) -> Iterator[tuple[int, Array]]:
        """(group, stored activations (rows, k)), an image and a group at a time, padded places holding `padding`."""
        for image in range(len(self.images)) if self.window is not None else [slice(None)]:
            if self.window is None:
                yield 0, self.images.reshape(-1, self.each).astype(np.int64)
                return
            border = [*zip(self.window.begin, self.window.end, strict=True), (0, 0)]
            wide = np.pad(self.images[image].astype(np.int64), border, constant_values=padding)
            view = np.lib.stride_tricks.sliding_window_view(wide, self.window.extents, tuple(range(self.rank)))
            steps = tuple(slice(None, None, step) for step in self.window.strides)
            taps = tuple(slice(None, None, step) for step in self.window.dilations)
            view = np.moveaxis(view[(*steps, slice(None), *taps)], self.rank, -1)
            for group in range(self.groups):
                part = view[..., group * self.each : (group + 1) * self.each]
                yield group, part.reshape(-1, self.weights.shape[1])

    def _sums(self, padding: int, add: Callable[[Array, Array, Array], Array]) -> Array:
        columns = self.weights.shape[2]
        made = np.empty((int(np.prod(self.lead)), self.groups, columns), np.int64)
        rows = len(made) // max(len(self.images), 1) if self.window is not None else len(made)
        for place, (group, part) in enumerate(self.gathered(padding)):
            start = place // self.groups * rows
            made[start : start + rows, group] = add(part, self.weights[group], self.points[group])
        return made.reshape(*self.lead, self.groups * columns)

    def exact(self, padding: int) -> Array:
        """Sums of (a - zero point) * (w - zero point); float64 holds them (2^15 * 2^8 * k < 2^53)."""

        def add(part: Array, weights: Array, points: Array) -> Array:
            made = (part - self.zero).astype(np.float64) @ (weights - points).astype(np.float64)
            return np.asarray(made.astype(np.int64))

        return self._sums(padding, add)

    def saturated(self) -> Array:
        """The same where products of k = 2i and 2i + 1 of uint8 and int8 are added in int16 with saturation.

        Activations of int8 are shifted to uint8 first, as runtimes do.

        Raises
        ------
        Error
            The operands are no such pair, or there are too many of them for a hypothesis.
        """
        shift = 128 if self.images.dtype == np.int8 else 0
        if self.images.dtype.itemsize != 1 or self.weights.min(initial=0) < -128 or self.weights.max(initial=0) > 127:
            raise Error("only bytes saturate in pairs")
        if self.weights.size * int(np.prod(self.lead)) > STEPS:
            raise Error("too many pairs for a hypothesis")

        def add(part: Array, weights: Array, points: Array) -> Array:
            a = part + shift
            made = -(self.zero + shift) * (weights - points).sum(axis=0) - a.sum(axis=1, keepdims=True) * points
            for k in range(0, len(weights), 2):
                made = made + np.clip(a[:, k : k + 2] @ weights[k : k + 2], -32768, 32767)
            return np.asarray(made)

        return self._sums(self.zero, add)
