"""TFLite's sums, pools, reshapes and softmax of bytes, and some of floats, as C steps; `hwq.ops` computes what has none."""

from __future__ import annotations

import math

import numpy as np

from hwq import kernels
from hwq.errors import Error
from hwq.execution.emission import Site, Value, geometry
from hwq.execution.steps import Kernel, Scope, interpret, register
from hwq.kernels.rows import LEAST_SCALE
from hwq.ops import tflite_accumulators as sums
from hwq.ops.tflite_base import Call, activation_range, checked_activation

__all__: list[str] = []

BYTES = frozenset({"int8", "uint8"})
# XNNPACK takes sums whose ratios of scales lie in this range; LiteRT's own kernels compute the others.
LEAST_RATIO, RATIO_LIMIT = 2.0**-10, 2.0**8


def _call(scope: Scope) -> Call:
    return Call.within(scope.node, [None] * len(scope.node.inputs), scope.graph)


def _same_bytes(scope: Scope, *indices: int) -> bool:
    call = _call(scope)
    return call.made_dtype() in BYTES and all(call.dtype(index) == call.made_dtype() for index in indices)


@register("tflite::ADD", "tflite::SUB")
def added(scope: Scope) -> Kernel:
    """A sum or difference of bytes, or of floats, of one shape."""
    operator = _operator(scope) if _same_bytes(scope, 0, 1) else None
    plain = operator is None and _floats(scope, 2)

    def emit(site: Site) -> bool:
        if plain and site.shape(0) == site.shape(1) == site.made_shape():
            _step_by_element(site, scope.node.op.lower())
            return True
        if operator is None or not site.shape(0) == site.shape(1) == site.made_shape():
            return False
        a, b, y, size = site.read(0), site.read(1), site.make(), math.prod(site.made_shape())
        site.step([a, b], y, lambda steps, at: steps.binary(operator, size, at(a), 1, at(b), 1, at(y)))
        return True

    return interpret(scope, emit)


def _floats(scope: Scope, operands: int) -> bool:
    """Floats with an activation that steps have; BUILTIN_REF's finite bounds are none of them."""
    call = _call(scope)
    if scope.dialect.name != "litert-xnnpack":
        return False
    plain = call.made_dtype() == "float32" and all(call.dtype(index) == "float32" for index in range(operands))
    return plain and checked_activation(scope.node) in {"NONE", "RELU"}


def _step_by_element(site: Site, formula: str) -> None:
    a, b, y, size = site.read(0), site.read(1), site.make(), math.prod(site.made_shape())
    site.step([a, b], y, lambda steps, at: steps.map(formula, size, at(a), at(b), out=at(y)))
    _activate(site, y, size)


def _activate(site: Site, y: int, size: int) -> None:
    if checked_activation(site.node) == "RELU":
        site.step([y], y, lambda steps, at: steps.map("relu", size, at(y), None, out=at(y)))


def _operator(scope: Scope) -> kernels.Binary | None:
    call, name = _call(scope), scope.node.op.lower()
    scales = float(call.scale(0)), float(call.scale(1)), float(call.made_scale())
    family = "tflite"
    if scope.dialect.name == "litert-xnnpack":
        ratios = [np.float32(call.scale(index) / call.made_scale()) for index in (0, 1)]
        if not all(LEAST_RATIO <= ratio < RATIO_LIMIT for ratio in ratios):
            return None
        family = "xnnpack"
    try:
        return kernels.Binary(
            formula=f"{family}-{name}",
            a_scale=scales[0],
            b_scale=scales[1],
            scale=scales[2],
            a_zero_point=call.zero_point(0),
            b_zero_point=call.zero_point(1),
            zero_point=call.made_zero_point(),
            a_dtype=call.dtype(0),
            b_dtype=call.dtype(1),
            dtype=call.made_dtype(),
            clamp=activation_range(call),
        )
    except Error:
        return None


@register("tflite::AVERAGE_POOL_2D", "tflite::MAX_POOL_2D")
def pool(scope: Scope) -> Kernel:
    """The mean, halves away from zero, or the greatest of each window's stored bytes; by default means of floats too."""
    node, plain = scope.node, _same_bytes(scope, 0)
    clamp = activation_range(_call(scope)) if plain else None
    by_nines = (
        scope.dialect.name == "litert-xnnpack"
        and node.op == "AVERAGE_POOL_2D"
        and _floats(scope, 1)
        and all(
            step <= size for step, size in zip(node.attributes["strides"], node.attributes["kernel_shape"], strict=True)
        )
    )

    def emit(site: Site) -> bool:
        if not plain and not by_nines:
            return False
        shape, size = site.shape(0), node.attributes["kernel_shape"]
        windows = sums.windows_of(node, (shape[1], shape[2]), (int(size[0]), int(size[1])))
        x, y, dtype = site.read(0), site.make(), site.dtype(0)
        kind = "nines" if by_nines else "max" if node.op == "MAX_POOL_2D" else "average"
        site.step([x], y, lambda steps, at: steps.pool(
            at(x), kind, geometry(windows, shape[1:3]), windows.end, shape[0], shape[3], dtype, layout="NHWC",
            clamp=clamp, out=at(y)))  # fmt: skip
        if by_nines:
            _activate(site, y, math.prod(site.made_shape()))
        return True

    return interpret(scope, emit)


@register("tflite::RESHAPE")
def reshape(scope: Scope) -> Kernel:
    """The same memory in another shape."""

    def emit(site: Site) -> bool:
        x = site.read(0)
        made = Value(site.made_shape(), site.dtype(0), root=x)
        site.emission.held[site.node.outputs[0], False] = site.emission.value(made)
        return True

    return interpret(scope, emit)


@register("tflite::SOFTMAX")
def softmax(scope: Scope) -> Kernel:
    """Over the last axis: LiteRT's fixed point, or by default a table of floats."""
    by_default, call, plain = scope.dialect.name == "litert-xnnpack", _call(scope), _same_bytes(scope, 0)
    scale, beta = (float(call.scale(0)), float(scope.node.attributes.get("beta", 1.0))) if plain else (0.0, 0.0)
    made = (float(call.made_scale()), call.made_zero_point()) if plain else (0.0, 0)
    if plain and by_default:
        # Steps down from 1, and quotients that int32 holds; hwq.ops has the others' bits.
        plain = 0 <= float(np.float32(scale) * np.float32(beta)) < np.inf and LEAST_SCALE <= made[0] < np.inf

    def emit(site: Site) -> bool:
        shape = site.shape(0)
        if not plain or not shape or not shape[-1] or not (by_default or shape[-1] <= 4095):
            return False
        x, y, rows, dtype = site.read(0), site.make(), math.prod(shape[:-1]), site.dtype(0)
        if by_default:
            site.step([x], y, lambda steps, at: steps.softmax_xnnpack(
                at(x), rows, shape[-1], dtype, scale, beta, made, out=at(y)))  # fmt: skip
        else:
            site.step([x], y, lambda steps, at: steps.softmax_tflite(
                at(x), rows, shape[-1], dtype, dtype, scale, beta, out=at(y)))  # fmt: skip
        return True

    return interpret(scope, emit)
