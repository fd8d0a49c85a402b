"""Quantized transposed convolutions, in every mode: the convolution of the same mode, over the input spread out or by its phases.

The Python step spreads the input, its zero point between the elements, under the filters turned around. The C steps leave the input
as it is: output positions o of one phase, o mod stride, are a convolution of stride 1, and all phases together one whose filters lie
side by side; then every position is put where it belongs. A filter's tap that a phase lacks is the weights' zero point, so both have
the same sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwq.errors import NotSupportedYet
from hwq.execution.emission import Site
from hwq.execution.steps import Kernel, Scope, Settings, build, present, register, writing
from hwq.graph import Array, Graph, Quantization, Tensor
from hwq.kernels.packing import spatial
from hwq.ops import dims
from hwq.ops.transposed import Footprint, footprint_of

__all__: list[str] = []


@register("ConvTranspose", "hwq::ConvTranspose")
def conv_transpose(scope: Scope) -> Kernel:
    """The kernel of the convolution that it comes to.

    Raises
    ------
    NotSupportedYet
        Computed weights or biases.
    """
    node, weights, bias = scope.node, scope.operand(1), scope.operand(2)
    if weights is None or weights.data is None or (bias is not None and bias.data is None):
        what = "weights" if weights is None or weights.data is None else "biases"
        raise NotSupportedYet(f"a quantized ConvTranspose with computed {what}", where=f"node {node.name}")
    kernel, layout = weights.data.shape[2:], _Layout(scope)
    steps = (1,) * len(kernel)
    dilations = dims.ints_attribute(node, "dilations", steps, len(kernel), 1)
    turned = layout.convolution(_taps(Footprint(kernel, steps, dilations, (0,) * len(kernel), ()), turned=True))
    inner = build(turned, scope.dialect, turned.nodes[0])
    point = scope.pair(0)[1] if node.domain != "hwq" else None
    known: dict[tuple[_Taps, ...], tuple[Graph, Kernel]] = {}

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        where = footprint_of(node, x.shape[2:], kernel)
        wide = _spread(x, where, present(operands[4]) if point is None else point)
        given = [wide, *(turned.tensors[name].data if name else None for name in turned.nodes[0].inputs[1:3])]
        return inner([*given, *operands[3:]], [out], settings)[0]

    def emit(site: Site) -> bool:
        where = footprint_of(node, site.space(0), kernel)
        taps = _taps(where)
        if taps not in known:
            made = layout.convolution(taps)
            known[taps] = made, build(made, scope.dialect, made.nodes[0])
        graph, convolution = known[taps]
        return _emit(site, graph, convolution, where, taps)

    return writing(run, emit)


@dataclass(frozen=True)
class _Taps:
    """One dimension of the convolution that makes all phases of a stride: the tap of the transposed filter at (phase, place)."""

    stride: int
    begin: int
    dilation: int
    count: int
    last: int  # the furthest element behind a position that is read
    at: tuple[tuple[int, int, int], ...]  # (phase, tap, place)

    def end(self, size: int, made: int) -> int:
        """Elements behind the image that the last positions read."""
        return max(-(-made // self.stride) - size + self.last, 0)


def _taps(where: Footprint, turned: bool = False) -> tuple[_Taps, ...]:
    """Element i adds tap t at ``i * stride + t * dilation - begin``: position o of phase p reads ``o + (p + begin - t * dilation) /
    stride`` where that is whole; `turned`: as if all were one phase that `_spread` begins."""
    found = []
    for taps, stride, dilation, cut in zip(where.kernel, where.strides, where.dilations, where.begin, strict=True):
        first = (taps - 1) * dilation if turned else cut
        reach = {
            (phase, tap): (phase + first - tap * dilation) // stride
            for phase in range(stride)
            for tap in range(taps)
            if (phase + first - tap * dilation) % stride == 0
        }
        low, high = min(0, *reach.values()), max(reach.values())
        step = math.gcd(*(one - low for one in reach.values()), high - low) or 1
        at = tuple((phase, tap, (one - low) // step) for (phase, tap), one in reach.items())
        found.append(_Taps(stride, -low, step, (high - low) // step + 1, high, at))
    return tuple(found)


class _Layout:
    """A transposed convolution's constants as those of the convolution of its phases."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self.groups = int(scope.node.attributes.get("group", 1))

    def convolution(self, taps: tuple[_Taps, ...]) -> Graph:
        """A graph of the one node, padded for no shape yet."""
        scope, node = self.scope, self.scope.node
        weights, stored = scope.operand(1), scope.quantization(1)
        assert weights is not None and weights.data is not None
        scales, points = stored.scales(), stored.zero_points()
        rest: Array | int = 0 if stored.block is not None else points.reshape(-1, 1)
        data = self.laid(weights.data, taps, rest)
        if stored.block is not None:
            quantization = dataclasses.replace(
                stored, scale=self.laid(scales, taps, 1), zero_point=self.laid(points, taps, 0), axis=1
            )
        elif scales.size == 1:
            quantization = stored
        else:
            quantization = Quantization(
                stored.dtype, self.columns(scales, taps), self.columns(points, taps), axis=0, storage=stored.storage
            )
        made = [dataclasses.replace(weights, name="weights", shape=data.shape, data=data, quantization=quantization)]
        names = [node.inputs[0], "weights", *node.inputs[2:]]
        bias = scope.operand(2)
        if bias is not None and bias.data is not None:
            each = np.broadcast_to(bias.data.reshape(-1), (weights.data.shape[1] * self.groups,))
            wide = self.columns(each.reshape(self.groups, -1), taps)
            made.append(Tensor("bias", bias.dtype, wide.shape, wide, bias.quantization))
            names[2] = "bias"
        attributes = {"group": self.groups, "dilations": [one.dilation for one in taps]}
        inner = dataclasses.replace(node, op="Conv", inputs=tuple(names), attributes=attributes)
        given = {name for name in (*names, *inner.outputs) if name} - {one.name for one in made}
        bounds = {name for part in node.body for name in part.inputs if name} - given - {one.name for one in made}
        tensors = [
            *made,
            *(scope.graph.tensors[name] for name in sorted(given | bounds) if name in scope.graph.tensors),
        ]
        return Graph([inner], tensors, [name for name in names if name in given], inner.outputs, form="lowered", source=scope.graph.source)  # fmt: skip

    def columns(self, values: Array, taps: Sequence[_Taps]) -> Array:
        """One value a filter of a group, or of each (groups, filters), as one a column of (group, phase, filter)."""
        phases = math.prod(one.stride for one in taps)
        rows = np.broadcast_to(values, (self.groups, values.shape[-1]))
        return np.ascontiguousarray(np.repeat(rows[:, None], phases, axis=1)).reshape(-1)

    def laid(self, values: Array, taps: Sequence[_Taps], rest: Array | int) -> Array:
        """[C, filters, *kernel] as [(group, phase, filter), C / groups, *taps]; `rest` where a phase has no tap."""
        depth, each = values.shape[0] // self.groups, values.shape[1]
        grouped = values.reshape(self.groups, depth, *values.shape[1:]).swapaxes(1, 2)
        strides, counts = ([getattr(one, field) for one in taps] for field in ("stride", "count"))
        made = np.empty((self.groups, *strides, each, depth, *counts), values.dtype)
        made[...] = np.asarray(rest).reshape(*np.shape(rest), *(1,) * len(taps))
        for places in np.ndindex(*(len(one.at) for one in taps)):
            phase, tap, place = zip(*(one.at[index] for one, index in zip(taps, places, strict=True)), strict=True)
            made[(slice(None), *phase, slice(None), slice(None), *place)] = grouped[(..., *tap)]
        return made.reshape(-1, depth, *counts)


def _emit(site: Site, graph: Graph, convolution: Kernel, where: Footprint, taps: tuple[_Taps, ...]) -> bool:
    """The convolution of all phases, then each where it belongs."""
    if convolution.emit is None:
        return False
    node, shape, space = graph.nodes[0], site.made_shape(), site.space(0)
    ends = [one.end(size, int(made)) for one, size, made in zip(taps, space, where.sizes, strict=True)]
    begins, strides = [one.begin for one in taps], [one.stride for one in taps]
    counts = [size + one.begin + end - (one.count - 1) * one.dilation
              for one, size, end in zip(taps, space, ends, strict=True)]  # fmt: skip
    phases = math.prod(strides)
    plain = phases == 1 and tuple(counts) == shape[2:]
    name, real = node.outputs[0], site.tensors[node.outputs[0]]
    between = name if plain else f"{name} of phases"
    inner = dataclasses.replace(
        node, outputs=(between,), attributes={**node.attributes, "pads": [*begins, *ends], "kernel_shape": [one.count for one in taps]}
    )  # fmt: skip
    made = dataclasses.replace(real, name=between, shape=(shape[0], shape[1] * phases, *counts))
    tensors: Mapping[str, Tensor] = {**site.tensors, **{one: graph.tensors[one] for one in ("weights", "bias") if one in graph.tensors}, between: made}  # fmt: skip
    if not convolution.emit(Site(graph, inner, tensors, site.emission)):
        return False
    if plain:
        return True
    x, y = site.emission.held[between, True], site.make(True)
    size = shape[1] // node.attributes["group"] * site.emission.values[x].dtype.itemsize
    given, to, by = spatial(counts, 1), spatial(shape[2:], 1), spatial(strides, 1)
    groups = int(node.attributes["group"])
    site.step([x], y, lambda steps, at: steps.phases(at(x), shape[0], given, to, by, groups, size, out=at(y)))
    return True


def _spread(x: Array, where: Footprint, value: Array | int) -> Array:
    """`x` [N, C, *space] with `value` between its elements and around them, so that windows of stride 1 make `where`."""
    reach = [(taps - 1) * step for taps, step in zip(where.kernel, where.dilations, strict=True)]
    made = np.empty((*x.shape[:2], *(int(size) + far for size, far in zip(where.sizes, reach, strict=True))), x.dtype)
    made[...] = value
    to, given = [slice(None)] * 2, [slice(None)] * 2
    for size, stride, far, cut, wide in zip(
        x.shape[2:], where.strides, reach, where.begin, made.shape[2:], strict=True
    ):
        first = far - cut  # of element 0
        skipped = max(-(first // stride), 0)
        begin = first + skipped * stride
        count = max(min(size - skipped, -(-(wide - begin) // stride)), 0)
        to.append(slice(begin, begin + (count - 1) * stride + 1, stride) if count else slice(0, 0))
        given.append(slice(skipped, skipped + count))
    made[tuple(to)] = x[tuple(given)]
    return made
