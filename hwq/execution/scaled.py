"""C steps of products whose weights have scales in groups, or meet float activations: rows as they lie, or gathered from windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.execution.emission import Site, geometry
from hwq.execution.gathering import Matrix
from hwq.kernels.wide_steps import Place, Rows
from hwq.kernels.windows import Geometry
from hwq.ops import spatial

__all__ = ["Reading", "emit_relu", "emit_scaled", "shared_by"]

_PIXEL: Geometry = tuple((fill, fill, fill) for fill in (1, 1, 1, 1, 0, 1))


@dataclass(frozen=True)
class Reading:
    """How stored activations are read.

    Attributes
    ----------
    zero_point : int
        Of static bytes.
    points : int, optional
        The value that holds zero points found at run time; then bytes become floats.
    each : int
        Rows that share one of them.
    """

    zero_point: int = 0
    points: int | None = None
    each: int = 0


def shared_by(site: Site, scales: int) -> int | None:
    """Rows of the result that share one of the scales that input `scales` holds: all, or one's own; None in other forms."""
    shape, given = site.shape(0), site.shape(scales)
    if math.prod(given) == 1:
        return math.prod(_rows(site))
    convolution = site.node.op in {"Conv", "ConvTranspose"}
    own = (shape[0], *(1,) * (len(shape) - 1)) if convolution else (*shape[:-1], 1)
    return math.prod(_rows(site)[1:]) if given == own else None


def _rows(site: Site) -> tuple[int, ...]:
    """Images and positions, or rows and 1."""
    if site.node.op in {"Conv", "ConvTranspose"}:
        return site.made_shape()[0], math.prod(site.made_shape()[2:])
    return math.prod(site.shape(0)[:-1]), 1


def emit_scaled(
    site: Site, matrices: Sequence[Matrix], finishes: Sequence[kernels.Epilogue], read: Reading, made: int | None = None
) -> int | None:
    """Write the product down: a matrix and an epilogue a group of a convolution, columns side by side.

    Returns the value of the result (`made`, where it is given), or None, with nothing asked for, in a form that only NumPy takes.
    """
    node, dtype, shape = site.node, site.dtype(0), site.shape(0)
    convolution = node.op == "Conv"
    if dtype not in {np.dtype(one) for one in (np.float32, np.uint8, np.int8)} or (not convolution and len(shape) < 2):
        return None
    taps, depth = 1, shape[-1]
    place, images, plain = _PIXEL, math.prod(shape[:-1]), True
    if convolution:
        windows = spatial.windows_of(node, shape[2:], site.shape(1)[2:])
        taps, depth = math.prod(windows.kernel), shape[1] // len(matrices)
        place, images = geometry(windows, shape[2:]), shape[0]
        plain = taps == 1 and len(matrices) == 1 and windows.strides == (1,) * len(windows.kernel) and windows.sizes == shape[2:]  # fmt: skip
    x = site.read(0, convolution)
    y = site.make(convolution) if made is None else made
    floats = dtype == np.float32
    outputs, element = sum(matrix.packed.n for matrix in matrices), np.dtype(finishes[0].dtype).itemsize
    for group, (matrix, finish) in enumerate(zip(matrices, finishes, strict=True)):
        block, width = matrix.layout(taps, depth)
        centered = not floats and (read.points is not None or matrix.packed.dtype in {"int8", "uint8"})
        rows: int | Rows = Rows(
            place, images, shape[1] if convolution else depth, group * depth, depth, block, width, dtype,
            read.zero_point, centered, read.each if centered and read.points is not None else 0,
        )  # fmt: skip
        if plain and not centered and width == block == depth:
            rows = math.prod(_rows(site))
        _append(site, x, y, matrix, finish, rows, read, outputs, group * matrices[0].packed.n * element)
    return y


def _append(
    site: Site, x: int, y: int, matrix: Matrix, finish: kernels.Epilogue, rows: int | Rows, read: Reading, stride: int, offset: int
) -> None:  # fmt: skip
    kind = np.dtype(np.float32) if isinstance(rows, Rows) and rows.centered else site.dtype(0)
    reads = [x] if read.points is None else [x, read.points]
    point = 0 if kind == np.float32 else read.zero_point

    def behind(found: Place) -> Place:
        assert isinstance(found, tuple)  # a value that is made lies in the arena or in the caller's array
        return found[0], found[1] + offset

    site.step(reads, y, lambda steps, at: steps.gemm_scaled(
        at(x), matrix.packed, rows, kind, a_zero_point=point, zero_points=None if read.points is None else at(read.points),
        stride=stride, epilogue=finish, out=behind(at(y))))  # fmt: skip


def emit_relu(site: Site, y: int) -> None:
    """The Relu that a group of float results swallowed, in place."""
    if any(part.op == "Relu" for part in site.node.body):
        size = math.prod(site.made_shape())
        site.step([y], y, lambda steps, at: steps.map("relu", size, at(y), None, out=at(y)))
