"""FP16 and BF16 products and convolutions: float32 sums in the fixed order over exact operands, the result rounded once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwq import kernels
from hwq.execution.emission import Site, geometry
from hwq.execution.gathering import convolved
from hwq.execution.steps import Kernel, Scope, Settings, interpret, present, writing
from hwq.graph import Array, carrier
from hwq.ops import spatial

__all__ = ["HALVES", "cast", "convolution", "elements", "product"]

HALVES = frozenset({"float16", "bfloat16"})


def product(scope: Scope) -> Kernel:
    """A matrix times a matrix of weights, with a bias that joins before the rounding; other forms as `hwq.ops` computes them."""
    node, a, b, bias = scope.node, scope.operand(0), scope.operand(1), scope.operand(2)
    assert a is not None and b is not None
    get = node.attributes.get
    plain = not get("transA", 0) and get("alpha", 1.0) == 1.0 and get("beta", 1.0) == 1.0
    if a.dtype != b.dtype or not plain or not b.known_shape or len(b.shape) != 2:
        return interpret(scope)
    if bias is not None and (bias.data is None or bias.data.size != b.shape[0 if get("transB", 0) else 1]):
        return interpret(scope)
    layout = "NK" if get("transB", 0) else "KN"
    fixed = None if b.data is None else kernels.pack_float(b.data, layout=layout)
    offsets = None if bias is None or bias.data is None else bias.data.reshape(-1)

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        x = present(operands[0])
        packed = kernels.pack_float(present(operands[1]), layout=layout) if fixed is None else fixed
        made = kernels.gemm(np.atleast_2d(x), packed, bias=offsets, threads=settings.threads)
        return made[0] if x.ndim == 1 else made

    def emit(site: Site) -> bool:
        if fixed is None or len(site.shape(0)) < 2:
            return False
        real = None if offsets is None else np.ascontiguousarray(offsets, np.float32)
        x, y, rows = wide(site, 0), site.make(), math.prod(site.shape(0)[:-1])
        made = site.scratch(site.made_shape(), np.dtype(np.float32))
        site.step([x], made, lambda steps, at: steps.gemm_f32(at(x), fixed, rows, bias=real, out=at(made)))
        narrow(site, made, y)
        return True

    return writing(run, emit)


def convolution(scope: Scope) -> Kernel:
    """A convolution by constant weights, packed once; other forms as `hwq.ops` computes them."""
    node, x, weights, bias = scope.node, scope.operand(0), scope.operand(1), scope.operand(2)
    assert x is not None and weights is not None
    if x.dtype != weights.dtype or weights.data is None or not 3 <= len(weights.shape) <= 5:
        return interpret(scope)
    if node.layout == "NHWC" or (bias is not None and bias.data is None):
        return interpret(scope)
    packed = kernels.pack_conv(weights.data, groups=int(node.attributes.get("group", 1)))
    offsets = None if bias is None else bias.data

    def run(operands: Sequence[Array | None], out: Array | None, settings: Settings) -> Array:
        return convolved(scope, present(operands[0]), packed, settings, out, bias=offsets)

    def emit(site: Site) -> bool:
        if node.body:
            return False
        real = None if offsets is None else np.ascontiguousarray(offsets.reshape(-1), np.float32)
        windows = spatial.windows_of(node, site.space(0), packed.kernel)
        x, y, batch = wide(site, 0, True), site.make(True), site.shape(0)[0]
        made = site.scratch(site.made_shape(), np.dtype(np.float32))
        site.step([x], made, lambda steps, at: steps.conv(
            at(x), packed, geometry(windows, site.space(0)), batch, np.float32, layout="NHWC", bias=real, out=at(made)))  # fmt: skip
        narrow(site, made, y)
        return True

    return writing(run, emit)


def wide(site: Site, index: int, last: bool = False) -> int:
    """An operand of 16-bit floats as float32, in a form."""
    x = site.read(index, last)
    value = site.emission.values[x]
    made, size, name = site.scratch(value.shape, np.dtype(np.float32)), math.prod(value.shape), value.dtype.name
    site.step([x], made, lambda steps, at: steps.cast(at(x), size, name, widen=True, out=at(made)))
    return made


def narrow(site: Site, made: int, y: int) -> None:
    """A float32 result rounded to the type of `y`."""
    value = site.emission.values[y]
    size, name = math.prod(value.shape), value.dtype.name
    site.step([made], y, lambda steps, at: steps.cast(at(made), size, name, widen=False, out=at(y)))


def elements(site: Site, formula: str, count: int, last: bool) -> bool:
    """One operation an element of 16-bit floats: exact in float32 but for the one rounding at its end, so rounded once.

    A sum, difference or product of two significands of p bits, rounded to 24 bits and then to p, is rounded as if at once where
    24 >= 2 p + 2 (Figueroa 1995): 11 bits of float16, 8 of bfloat16.
    """
    reads, y, size = [wide(site, index, last) for index in range(count)], site.make(last), math.prod(site.made_shape())
    made = site.scratch(site.emission.values[y].shape, np.dtype(np.float32))
    site.step(reads, made, lambda steps, at: steps.map(
        formula, size, at(reads[0]), at(reads[1]) if count > 1 else None, out=at(made)))  # fmt: skip
    narrow(site, made, y)
    return True


def cast(site: Site) -> bool:
    """Between float32 and a 16-bit float, as it lies."""
    given, made = site.dtype(0).name, carrier(site.tensors[site.node.outputs[0]].dtype).name
    if {given, made} not in ({"float32", "float16"}, {"float32", "bfloat16"}):
        return False
    last = site.is_last(0)
    x, y = site.read(0, last), site.make(last)
    size, name, widen = math.prod(site.made_shape()), made if given == "float32" else given, made == "float32"
    site.step([x], y, lambda steps, at: steps.cast(at(x), size, name, widen=widen, out=at(y)))
    return True
