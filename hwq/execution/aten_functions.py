"""Functions of one stored byte as ATen's quantized kernels compute them, and normalizations of stored values.

aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp. Whole vectors of bytes, two at a time, take
``fma(s, q, f32(-s z))``, the function in float32, and ``rint(f32(y * f32(1 / s'))) + z'``; what is left behind them, on one
thread, ``s * (q - z)`` and ``rint(f32(y * f32(1 / s')) + z')``, which breaks a tie the other way where z' is odd. Each way is
a table of 256 bytes; only where they differ does an element's place in memory matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hwq.dialect import DIALECTS
from hwq.execution import elementwise, mkl
from hwq.execution.aten import COLUMNS, TANH, exp_sleef, sigmoid
from hwq.execution.elementwise import looked_up
from hwq.execution.steps import Kernel, Scope, Settings, adapt, present, register
from hwq.graph import Array, Graph
from hwq.numerics import exp_c, fused_multiply_add

__all__ = ["memory", "register_eager"]

f32 = np.float32
BYTES = np.arange(256).astype(f32)
# Pixels from which on a group normalization of channels-last values adds in float32.
LARGE = 512
FBGEMM = tuple(name for name in DIALECTS if name.startswith("torch-fbgemm"))
# Operators whose result lies in memory as their first operand does.
FOLLOWING = frozenset({"Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "PRelu", "Sigmoid", "Tanh",
                       "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "BatchNormalization", "GroupNormalization",
                       "InstanceNormalization", "Resize", "Pad"})  # fmt: skip


def register_eager(*ops: str) -> Callable[[Any], Any]:
    """Decorator: `ops` on stored values in every dialect of eager modules."""
    return register(*(f"{dialect}:{op}" for dialect in FBGEMM for op in ops))


def _fma(a: Array, b: Any, c: Any) -> Array:
    parts = np.broadcast_arrays(a, np.asarray(b, f32), np.asarray(c, f32))
    return fused_multiply_add(*(np.ascontiguousarray(one) for one in parts))


def _quantized(y: Array, scale: np.float32, point: int, *, whole: bool) -> Array:
    """A vector's rounding, or with `whole` False that of the elements behind it. 2^31 bounds both before they become integers."""
    with np.errstate(all="ignore"):
        steps = np.minimum((y * (f32(1) / scale)).astype(f32), f32(2**31))
        rounded = np.rint(steps).astype(np.float64) + point if whole else np.rint((steps + f32(point)).astype(f32))
    made: Array = np.clip(np.where(np.isnan(rounded), 0, rounded), 0, 255).astype(np.uint8)
    return made


def _bound(scope: Scope, index: int, scale: np.float32, point: int, missing: int) -> int:
    operand = scope.operand(index)
    if operand is None or operand.data is None:
        return missing
    return int(_quantized(operand.data.astype(f32).reshape(1), scale, point, whole=False)[0])


def _sigmoid(x: Array, exp: Callable[[Array], Array], whole: bool) -> Array:
    e = exp(-x)
    if whole:
        return (f32(1) / (f32(1) + e)).astype(f32)
    return (1 / (1 + e.astype(np.float64))).astype(f32)  # 1.0 is a double in the scalar lambda


def _function(scope: Scope, whole: bool) -> Callable[[Array], Array]:
    """The node's function in float32."""
    op, get = scope.node.op, scope.node.attributes.get
    with np.errstate(all="ignore"):
        slope = f32(get("alpha", 0.01 if op == "LeakyRelu" else 1.0))

    def six(x: Array) -> Array:
        return np.clip((x + f32(3)).astype(f32), f32(0), f32(6))

    def elu(x: Array) -> Array:
        # expm1 of Sleef and of glibc: the exact value rounded once, within their one ulp.
        return np.where(x > 0, x, (np.expm1(np.minimum(x, 0).astype(np.float64)).astype(f32) * slope).astype(f32))

    functions: dict[str, Callable[[Array], Array]] = {
        "LeakyRelu": lambda x: np.where(x > 0, x, (x * slope).astype(f32)),
        "HardSwish": lambda x: ((x * six(x)).astype(f32) / f32(6)).astype(f32),
        "HardSigmoid": lambda x: (six(x) / f32(6)).astype(f32),
        "Sigmoid": lambda x: _sigmoid(x, exp_sleef if whole else exp_c, whole),
        "Tanh": lambda x: np.tanh(x.astype(np.float64)).astype(f32),
        "Elu": elu,
    }
    return functions[op]


def _entries(scope: Scope, whole: bool) -> Array:
    """The node's 256 bytes."""
    (scale, point), (made_scale, made_point) = scope.pair(0), scope.made_pair()
    plain = ((BYTES - f32(point)) * scale).astype(f32)
    # Sigmoid alone dequantizes without a fused multiply-add.
    fused = whole and scope.node.op != "Sigmoid"
    x = _fma(BYTES, scale, f32(scale * f32(-point))) if fused else plain
    return _quantized(_function(scope, whole)(x), made_scale, made_point, whole=whole)


def memory(graph: Graph, name: str) -> str:
    """How torch lays a stored value out: ``rows`` as its shape says, ``channels`` last, or ``turned``, as no kernel goes through it."""
    node = graph.producers.get(name)
    if node is None or not graph.tensors[name].shape:
        return "rows"
    if node.op in {"Conv", "ConvTranspose"}:
        # A convolution of one dimension is one of two whose height is dropped again.
        return "turned" if len(graph.tensors[name].shape) == 3 else "channels"
    if node.op == "Transpose":
        plain = memory(graph, node.inputs[0]) == "rows" and list(node.attributes.get("perm", ())) == [0, 3, 1, 2]
        return "channels" if plain else "turned"
    if node.op in FOLLOWING:
        found = memory(graph, node.inputs[0])
        return "rows" if found == "turned" else found
    return "rows"


@register_eager("Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu")
def function(scope: Scope) -> Kernel:
    """A function of one byte."""
    tables = _entries(scope, True), _entries(scope, False)
    if np.array_equal(*tables):
        return looked_up(tables[0])
    layout, block = memory(scope.graph, scope.node.inputs[0]), _block(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        behind = _behind(x.shape, layout, block)
        made: Array = tables[0][x]
        made[behind] = tables[1][x[behind]]
        return made

    return adapt(run)


def _block(scope: Scope) -> int:
    """Elements that one turn of an elementwise kernel takes: two vectors of bytes, four times as many as of float32."""
    return 4 * COLUMNS[scope.dialect.formulas["DynamicQuantizeLSTM"]]


def _behind(shape: tuple[int, ...], layout: str, block: int) -> tuple[Array, ...]:
    """Where the elements lie that no whole vector takes: the last in memory, or all of a `turned` value."""
    size = math.prod(shape)
    left = size if layout == "turned" else size % block
    if layout != "channels" or len(shape) < 3:
        return np.unravel_index(np.arange(size - left, size), shape)
    batch, *space, channel = np.unravel_index(np.arange(size - left, size), (shape[0], *shape[2:], shape[1]))
    return batch, channel, *space


@register_eager("Add")
def add(scope: Scope) -> Kernel:
    """quantized.add: behind the last whole vector ``rint(f32(f32(a + b) * f32(1 / s)) + z)`` of plain dequantized values."""
    whole = elementwise.binary(scope)
    (a_scale, a_point), (b_scale, b_point), (scale, point) = scope.pair(0), scope.pair(1), scope.made_pair()
    a, b = ((BYTES - f32(p)) * s for s, p in ((a_scale, a_point), (b_scale, b_point)))
    total = (a[:, None] + b[None]).astype(f32)
    low = elementwise.floor_of(scope, "uint8", point)
    table = np.maximum(_quantized(total, scale, point, whole=False), 0 if low is None else low[0]).astype(np.uint8)
    every = np.arange(256, dtype=np.uint8)
    pairs: list[Array | None] = [np.repeat(every, 256), np.tile(every, 256)]
    if np.array_equal(whole(pairs, [None], Settings())[0].reshape(256, 256), table):
        return whole
    layouts = [memory(scope.graph, name) for name in scope.node.inputs[:2]]
    layout = layouts[0] if layouts[0] == layouts[1] else "turned"

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        left, right = (np.asarray(present(one)) for one in operands[:2])
        made = np.array(whole(operands, [None], settings)[0])
        if left.shape == right.shape:
            behind = _behind(left.shape, layout, _block(scope))
            made[behind] = table[left[behind], right[behind]]
        return made

    return adapt(run)


@register_eager("Clip")
def clamp(scope: Scope) -> Kernel:
    """quantized clamp and relu6: bounds are stored values."""
    scale, point = scope.pair(0)
    low, high = _bound(scope, 1, scale, point, 0), _bound(scope, 2, scale, point, 255)
    return looked_up(np.minimum(np.maximum(np.arange(256), low), high).astype(np.uint8))


@register_eager("PRelu")
def slopes(scope: Scope) -> Kernel:
    """quantized.prelu: integers, requantized by ``f32(f32(sx * sw) * f32(1 / so))``."""
    (scale, point), (made_scale, made_point) = scope.pair(0), scope.made_pair()
    weight_scale, weight_point = scope.pair(1)
    one = int(_quantized(np.ones(1, f32), weight_scale, weight_point, whole=False)[0]) - weight_point
    multiplier = f32(f32(scale * weight_scale) * (f32(1) / made_scale))

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x, weights = (present(given).astype(np.int32) for given in operands[:2])
        weights = weights.reshape(1, -1, *[1] * (x.ndim - 2)) if weights.size > 1 else weights.reshape(())
        acc = np.maximum(x - point, 0) * one + np.minimum(x - point, 0) * (weights - weight_point)
        made: Array = np.clip(np.rint((acc.astype(f32) * multiplier).astype(f32)) + made_point, 0, 255).astype(np.uint8)
        return made

    return adapt(run)


@register_eager("float:Tanh")
def float_tanh(scope: Scope) -> Kernel:
    """tanh of floats: MKL's."""
    variant = TANH[scope.dialect.formulas["DynamicQuantizeLSTM"]]
    return adapt(lambda operands, settings: mkl.tanh(present(operands[0]), variant))


@register_eager("float:Sigmoid")
def float_sigmoid(scope: Scope) -> Kernel:
    """Sigmoid of floats, on one thread: of a whole tensor, or row by row where gates are added in place into cut rows."""
    columns, graph = COLUMNS[scope.dialect.formulas["DynamicQuantizeLSTM"]], scope.graph
    maker = graph.producers.get(scope.node.inputs[0])
    added = () if maker is None or maker.op != "Add" else maker.inputs
    # What a state of zeros brings is a constant.
    parts = [graph.producers.get(name) for name in added if graph.constant(name) is None]
    rows = bool(parts) and all(one is not None and one.op == "Split" for one in parts)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        return sigmoid(x.reshape(-1, x.shape[-1]) if rows else x.reshape(1, -1), columns).reshape(x.shape)

    return adapt(run)


def _constants(scope: Scope, first: int, count: int) -> list[Array]:
    found = [scope.operand(index) for index in range(first, first + count)]
    return [one.data.astype(f32).reshape(-1) for one in found if one is not None and one.data is not None]


@register_eager("BatchNormalization")
def batch_normalization(scope: Scope) -> Kernel:
    """quantized.batch_norm: one factor and one offset a channel, in steps of the result.

    ``rint(fma(q - z, f32(f32(r w) * (sx / so)), f32(f32(b - f32(f32(m r) w)) / so))) + z'`` with r = f32(1 / sqrt(f32(v + epsilon)));
    the ratio of scales and the division are in float64.
    """
    (scale, point), (made_scale, made_point) = scope.pair(0), scope.made_pair()
    weight, bias, mean, variance = _constants(scope, 1, 4)
    epsilon = f32(scope.node.attributes.get("epsilon", 1e-5))
    with np.errstate(all="ignore"):
        inverse = (f32(1) / np.sqrt((variance + epsilon).astype(f32))).astype(f32)
        factor = ((inverse * weight).astype(np.float64) * (float(scale) / float(made_scale))).astype(f32)
        offset = (
            (bias - ((mean * inverse).astype(f32) * weight).astype(f32)).astype(np.float64) / float(made_scale)
        ).astype(f32)
    steps = _fma((BYTES - f32(point))[None], factor[:, None], offset[:, None])
    floor = made_point if any(part.op == "Relu" for part in scope.node.body) else 0
    table = np.maximum(_quantized(steps, f32(1), made_point, whole=True), floor).astype(np.uint8)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        channels = np.arange(x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))
        return np.asarray(table[channels, x])

    return adapt(run)


def _sums(x: Array) -> tuple[Array, Array]:
    """Of rows, and of their squares: integers, exact below 2^63."""
    wide = x.astype(np.int64)
    return wide.sum(-1), (wide * wide).sum(-1)


def _float_sums(x: Array, groups: int) -> tuple[Array, Array]:
    """The same of groups of channels, in float32, each channel's first: for images of LARGE pixels and more, channels last."""
    wide = x.astype(f32).reshape(x.shape[0], groups, -1, int(np.prod(x.shape[2:])))
    # accumulate adds in order; sum would not.
    each = (np.add.accumulate(part, -1)[..., -1] for part in (wide, wide * wide))
    first, second = (np.add.accumulate(part, -1)[..., -1].reshape(-1) for part in each)
    return first, second


def _moments(
    sums: tuple[Array, Array], size: int, scale: np.float32, point: int, epsilon: float
) -> tuple[Array, Array]:
    """Mean in steps above the zero point, and ``s / sqrt(variance + epsilon)``, of rows of `size` values."""
    count = f32(size)
    shifted, squares = ((one.astype(f32) / count).astype(f32) for one in sums)
    variance = np.maximum((squares - (shifted * shifted).astype(f32)).astype(f32), f32(0))
    spread = ((variance * scale).astype(f32) * scale).astype(f32).astype(np.float64)
    with np.errstate(all="ignore"):
        return (shifted - f32(point)).astype(f32), (float(scale) / np.sqrt(spread + epsilon)).astype(f32)


@register_eager("LayerNormalization")
def layer_normalization(scope: Scope) -> Kernel:
    """quantized.layer_norm over the last dimensions: ``f32(f32(f32(d - mean) f) w) + b``, d = q - z."""
    node, (scale, point), (made_scale, made_point) = scope.node, scope.pair(0), scope.made_pair()
    epsilon = float(f32(node.attributes.get("epsilon", 1e-5)))
    weight, *rest = _constants(scope, 1, 2)
    bias = rest[0] if rest else np.zeros_like(weight)
    block = 2 * COLUMNS[scope.dialect.formulas["DynamicQuantizeLSTM"]]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        rows = x.reshape(-1, weight.size)
        mean, factor = _moments(_sums(rows), weight.size, scale, point, epsilon)
        off = ((rows.astype(f32) - f32(point)) - mean[:, None]).astype(f32)
        y = (((off * factor[:, None]).astype(f32) * weight).astype(f32) + bias).astype(f32)
        behind = weight.size // block * block
        parts = [
            _quantized(part, made_scale, made_point, whole=whole)
            for part, whole in ((y[:, :behind], True), (y[:, behind:], False))
        ]
        return np.concatenate(parts, axis=1).reshape(x.shape)

    return adapt(run)


@register_eager("GroupNormalization", "InstanceNormalization")
def group_normalization(scope: Scope) -> Kernel:
    """quantized.group_norm and instance_norm; channels last, ``d f + f32(b - f32(f mean))`` in its place."""
    node, (scale, point), (made_scale, made_point) = scope.node, scope.pair(0), scope.made_pair()
    epsilon = float(f32(node.attributes.get("epsilon", 1e-5)))
    weight, bias = _constants(scope, 1, 2)
    last = memory(scope.graph, node.inputs[0]) == "channels"
    block = 2 * COLUMNS[scope.dialect.formulas["DynamicQuantizeLSTM"]]

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        x = present(operands[0])
        batch, channels = x.shape[:2]
        groups = int(node.attributes.get("num_groups", channels))
        rows = x.reshape(batch * groups, -1)
        large = last and int(np.prod(x.shape[2:])) >= LARGE
        sums = _float_sums(x, groups) if large else _sums(rows)
        mean, factor = _moments(sums, rows.shape[1], scale, point, epsilon)
        shape = (batch, channels, *[1] * (x.ndim - 2))
        mean, factor = (np.repeat(one.reshape(batch, groups), channels // groups, 1) for one in (mean, factor))
        gain = (factor * weight).astype(f32)
        d = x.astype(f32) - f32(point)
        if last:
            offset = ((-gain * mean).astype(f32) + bias).astype(f32)
            y = ((d * gain.reshape(shape)).astype(f32) + offset.reshape(shape)).astype(f32)
        else:
            off = (d - mean.reshape(shape)).astype(f32)
            y = ((off * gain.reshape(shape)).astype(f32) + bias.reshape(1, -1, *shape[2:])).astype(f32)
        if not last:
            return _quantized(y, made_scale, made_point, whole=True)
        # Vectors run over a group's channels, or over all of a large image's.
        along = channels if large else channels // groups
        behind = (np.arange(channels) % along >= along // block * block).reshape(1, -1, *shape[2:])
        both = (_quantized(y, made_scale, made_point, whole=whole) for whole in (False, True))
        return np.where(behind, *both)

    return adapt(run)
