"""Resize by nearest neighbor, linear or cubic interpolation, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.graph import Array, Dim, Graph, Node, Shape, Tensor
from hwq.ops import accounting, dims
from hwq.ops.base import Inferred, Op, register
from hwq.work import Work

__all__ = ["Resize", "axis_weights"]

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _target(
    node: Node, shape: Shape, scales: Array | None, sizes: Array | None
) -> tuple[list[Dim], list[float | None]]:
    """(output dimensions, scale of each axis or None where it is not resized).

    Raises
    ------
    Error
        Neither or both of scales and sizes are given, or they do not fit the input.
    """
    rank = len(shape)
    axes = dims.axes_of(node, dims.ints_attribute(node, "axes", tuple(range(rank))), rank)
    given = sizes if scales is None else scales
    if given is None or (scales is not None and sizes is not None):
        raise dims.fault(node, "Resize needs either scales or sizes")
    if given.size != len(axes):
        raise dims.fault(node, f"{given.size} scales or sizes are given for {len(axes)} axes")
    made: list[Dim] = list(shape)
    factors: list[float | None] = [None] * rank
    values: list[Any] = given.ravel().tolist()
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy not in {"stretch", "not_larger", "not_smaller"}:
        raise dims.fault(node, f"keep_aspect_ratio_policy = {policy!r} is unknown")
    ratios = [
        value / dim
        for axis, value in zip(axes, values, strict=True)
        if isinstance(dim := shape[axis], int) and dim and not isinstance(value, str)
    ]
    for axis, value in zip(axes, values, strict=True):
        dim = shape[axis]
        if isinstance(value, str) or value == dim:
            made[axis] = value
            factors[axis] = 1.0 if sizes is not None and value == dim else factors[axis]
            if policy == "stretch" and sizes is not None:
                continue
        if scales is not None:
            if not np.isfinite(value) or value <= 0:
                raise dims.fault(node, f"the scale {value} is not a positive number")
            factors[axis] = float(value)
            # ONNX: floor of the product, which onnxruntime takes in float32
            if isinstance(dim, int):
                made[axis] = int(np.floor(np.float32(dim) * np.float32(value)))
            else:
                made[axis] = (
                    dim
                    if value == 1
                    else dims.product([dim, int(value)])
                    if value == int(value)
                    else f"{node.outputs[0]}.{axis}"
                )
            continue
        if isinstance(value, int) and value < 1:
            raise dims.fault(node, f"the size {value} is not positive")
        if policy != "stretch" and isinstance(dim, int):
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            factors[axis] = float(np.float32(ratio))
            made[axis] = int(np.floor(ratio * dim + 0.5))
            continue
        made[axis] = value
        factors[axis] = (
            float(np.float32(value) / np.float32(dim))
            if isinstance(dim, int) and dim and not isinstance(value, str)
            else None
        )
    return made, factors


def _coordinates(mode: str, count: int, size: int, scale: float, region: tuple[float, float]) -> NDArray[np.float32]:
    """Where each of `count` outputs lies on an axis of `size` elements. In float32, as onnxruntime computes it."""
    x = np.arange(count, dtype=np.float32)
    step, half, one = np.float32(scale), np.float32(0.5), np.float32(1)
    if mode == "asymmetric":
        return x / step
    if mode == "align_corners":
        return x * np.float32(size - 1) / np.float32(count - 1) if count > 1 else np.zeros(count, np.float32)
    if mode == "tf_crop_and_resize":
        start, end = np.float32(region[0]), np.float32(region[1])
        if count > 1:
            return start * np.float32(size - 1) + x * (end - start) * np.float32(size - 1) / np.float32(count - 1)
        return np.full(count, half * (start + end) * np.float32(size - 1), np.float32)
    if mode == "pytorch_half_pixel" and count <= 1:
        return np.zeros(count, np.float32)
    if mode == "tf_half_pixel_for_nn":
        return (x + half) / step
    found = (x + half) / step - half
    if mode == "half_pixel_symmetric":
        wanted = np.float32(size) * step
        found = np.float32(size) / np.float32(2) * (one - np.float32(count) / wanted) + found
    return found


def _nearest(at: NDArray[np.float32], mode: str) -> NDArray[np.int64]:
    if mode == "floor":
        return np.floor(at).astype(np.int64)
    if mode == "ceil":
        return np.ceil(at).astype(np.int64)
    floor = np.floor(at)
    over = at - floor
    upward = (over > 0.5) | ((over == 0.5) & (mode == "round_prefer_ceil"))
    return np.asarray(floor + upward).astype(np.int64)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Cubic convolution with free parameter `a` (Keys 1981, equation 4 of ieeexplore 1163711, as ONNX cites it)."""
    d = np.abs(distance)
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    return np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))


def _weighted(
    node: Node, x: NDArray[np.float64], axis: int, at: NDArray[np.float32], scale: float
) -> NDArray[np.float64]:
    """Weighted taps along one axis. Beyond the border the edge element counts, unless exclude_outside drops it."""
    get = node.attributes.get
    cubic = get("mode") == "cubic"
    width = min(scale, 1.0) if get("antialias", 0) else 1.0
    reach = int(np.ceil((2.0 if cubic else 1.0) / width))
    places = np.floor(at).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    distance = (places - at.astype(np.float64)[:, None]) * width
    weights = (
        _cubic(distance, float(np.float32(get("cubic_coeff_a", -0.75))))
        if cubic
        else np.clip(1.0 - np.abs(distance), 0.0, 1.0)
    )
    if get("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= x.shape[axis]), 0.0, weights)
    weights /= weights.sum(axis=1, keepdims=True)
    places = np.clip(places, 0, x.shape[axis] - 1)
    shape = [-1 if index == axis else 1 for index in range(x.ndim)]
    result = np.zeros([len(at) if index == axis else dim for index, dim in enumerate(x.shape)])
    for tap in range(places.shape[1]):
        result += np.take(x, places[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return result


def _along(node: Node, x: Array, axis: int, at: NDArray[np.float32], factor: float) -> Array:
    """One axis of `x` (float64 where the mode is no nearest) at the coordinates `at`."""
    if node.attributes.get("mode", "nearest") != "nearest":
        return _weighted(node, x, axis, at, factor)
    places = _nearest(at, node.attributes.get("nearest_mode", _NEAREST[0]))
    return np.take(x, np.clip(places, 0, x.shape[axis] - 1), axis=axis)


def axis_weights(node: Node, shape: Sequence[int], inputs: Sequence[Array | None]) -> list[tuple[int, Array]]:
    """The operator as products: each axis that is resized, and its matrix (outputs, inputs) in float64.

    Parameters
    ----------
    node : Node
    shape : sequence of int
        Of the operand that is resized.
    inputs : sequence
        The node's operands; the first is not read.

    Raises
    ------
    Error
        The mode is tf_crop_and_resize, which writes constants too.
    """
    scales, sizes = [*inputs, None, None][2:4]
    made, factors = _target(node, tuple(shape), scales if scales is not None and scales.size else None, sizes)
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        raise dims.fault(node, "tf_crop_and_resize is no product of an image and a matrix")
    return [
        (axis, _along(node, np.eye(size), 0, _coordinates(mode, int(count), size, factor, (0.0, 1.0)), factor))
        for axis, (count, size, factor) in enumerate(zip(made, shape, factors, strict=True))
        if factor is not None and not (count == size and factor == 1.0)
    ]


def _between(at: NDArray[np.float32], size: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]:
    """The elements before and after each coordinate, each with its weight; the edge element counts twice by half."""
    place = np.clip(at, np.float32(0), np.float32(size - 1))
    before = place.astype(np.int64)
    after = np.minimum(before + 1, size - 1)
    edge, half = before == after, np.float32(0.5)
    near = np.where(edge, half, np.abs(place - after.astype(np.float32)))
    far = np.where(edge, half, np.abs(place - before.astype(np.float32)))
    return (before, near), (after, far)


def _bilinear(x: NDArray[np.float32], at: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The last two axes at once, in float32 and in onnxruntime's order, so that halves of a quantized step round alike:
    ``wx * wy * value`` over (before, before), (before, after), (after, before), (after, after) as (row, column)."""
    rows, columns = (_between(place, size) for place, size in zip(at, x.shape[-2:], strict=True))
    result: NDArray[np.float32] | None = None
    for row, row_weight in rows:
        taken = np.take(x, row, axis=-2)
        for column, column_weight in columns:
            term = (column_weight * row_weight[:, None]) * np.take(taken, column, axis=-1)
            result = term if result is None else result + term
    assert result is not None
    return result


@register
class Resize(Op):
    """ONNX Resize, modes nearest, linear and cubic."""

    names = ("Resize",)

    def infer(self, node: Node, inputs: Sequence[Tensor | None]) -> list[Inferred]:
        """See `Op.infer`."""
        if not 2 <= len(inputs) <= 4 or inputs[0] is None:
            raise dims.fault(node, "Resize needs an input and scales or sizes")
        get = node.attributes.get
        if get("mode", "nearest") not in {"nearest", "linear", "cubic"}:
            raise dims.fault(
                node, f"Resize by mode {get('mode')!r} is not supported", None, "use nearest, linear or cubic"
            )
        if (
            get("coordinate_transformation_mode", "half_pixel") not in _COORDINATES
            or get("nearest_mode", _NEAREST[0]) not in _NEAREST
        ):
            raise dims.fault(node, "coordinate_transformation_mode or nearest_mode is unknown")
        x = inputs[0]
        if not x.known_shape:
            return [(x.dtype, (), False)]
        scales, sizes = ([*inputs, None, None])[2:4]
        scales = None if scales is not None and scales.known_shape and scales.shape == (0,) else scales
        if any(tensor is not None and tensor.data is None for tensor in (scales, sizes)):
            return [(x.dtype, tuple(f"{node.outputs[0]}.{axis}" for axis in range(len(x.shape))), True)]
        made, _ = _target(node, x.shape, None if scales is None else scales.data, None if sizes is None else sizes.data)
        return [(x.dtype, tuple(made), True)]

    def evaluate(self, node: Node, inputs: Sequence[Array | None]) -> list[Array]:
        """See `Op.evaluate`."""
        x, region, scales, sizes = [*inputs, None, None][:4]
        assert x is not None
        made, factors = _target(node, x.shape, scales if scales is not None and scales.size else None, sizes)
        get = node.attributes.get
        smooth = get("mode", "nearest") != "nearest"
        mode = get("coordinate_transformation_mode", "half_pixel")
        axes = dims.axes_of(node, dims.ints_attribute(node, "axes", tuple(range(x.ndim))), x.ndim)
        if self._is_bilinear(node, x, factors, mode):
            places = [
                np.arange(count, dtype=np.float32)
                if factor is None or factor == 1.0
                else _coordinates(mode, count, size, factor, (0.0, 1.0))
                for count, size, factor in zip(map(int, made[2:]), x.shape[2:], factors[2:], strict=True)
            ]
            return [_bilinear(x, places)]
        result: Array = x.astype(np.float64) if smooth else x
        outside = np.zeros([1] * x.ndim, np.bool_)
        for axis, factor in enumerate(factors):
            count = int(made[axis])
            if factor is None or (count == x.shape[axis] and factor == 1.0 and mode != "tf_crop_and_resize"):
                continue
            if x.shape[axis] == 0:
                raise dims.fault(node, f"dimension {axis} is empty and cannot be resized")
            window = (0.0, 1.0)
            if region is not None and region.size == 2 * len(axes):
                window = (float(region[axes.index(axis)]), float(region[axes.index(axis) + len(axes)]))
            at = _coordinates(mode, count, x.shape[axis], factor, window)
            if mode == "tf_crop_and_resize":
                beyond = (at < 0) | (at > x.shape[axis] - 1)
                outside = outside | beyond.reshape([-1 if index == axis else 1 for index in range(x.ndim)])
            result = _along(node, result, axis, at, factor)
        if np.any(outside):
            result = np.where(outside, np.float64(np.float32(get("extrapolation_value", 0.0))), result)
        return [result.astype(x.dtype, copy=False)]

    @staticmethod
    def _is_bilinear(node: Node, x: Array, factors: Sequence[float | None], mode: str) -> bool:
        get = node.attributes.get
        images = x.ndim == 4 and x.dtype == np.float32 and x.size > 0 and all(one in (None, 1.0) for one in factors[:2])
        return bool(images and get("mode") == "linear" and mode != "tf_crop_and_resize" and not get("antialias", 0))

    def work(self, node: Node, graph: Graph) -> Work:
        """See `Op.work`: nearest only moves; linear weighs two taps an axis, cubic four (a multiply and an addition each)."""
        taps = {"linear": 2, "cubic": 4}.get(node.attributes.get("mode", "nearest"), 0)
        if not taps:
            return accounting.move(node, graph)
        x, made = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
        resized = sum(a != b for a, b in zip(x.shape, made.shape, strict=True))
        return accounting.vector(node, graph, operations=made.elements * 2 * taps * max(resized, 1))
