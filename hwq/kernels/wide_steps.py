"""Steps of the plan's wider modes: 16 bits as two bytes, scales in groups over gathered rows, normalization, phases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns
from hwq.kernels.operands import RANGES, TYPES, Array
from hwq.kernels.packing import Packed
from hwq.kernels.rows import normalization_terms
from hwq.kernels.windows import Geometry

__all__ = ["Place", "Rows", "WideSteps"]

# (base, offset in bytes), or an array that never moves.
Place = tuple[int, int] | Array
Space = tuple[int, int, int]


@dataclass(frozen=True)
class Rows:
    """Rows of a product with groups of scales, gathered from a channel-last image: k over (tap, block of channels).

    Attributes
    ----------
    geometry : Geometry
        A matrix is an image of one pixel a row.
    images, channels : int
    first, depth : int
        The channels that are read.
    block, width : int
        Channels of a block, and what it is filled up to with activations that stand for 0.
    dtype : dtype of the image
    zero_point : int
        Of bytes; it stands in the padding too.
    centered : bool
        Bytes become floats, less the zero point.
    each : int
        0, or how many centered rows share one of the zero points that the step reads, one a byte.
    """

    geometry: Geometry
    images: int
    channels: int
    first: int
    depth: int
    block: int
    width: int
    dtype: np.dtype[Any]
    zero_point: int = 0
    centered: bool = False
    each: int = 0

    @property
    def count(self) -> int:
        """Rows of all images."""
        return self.images * math.prod(self.geometry[-1])

    @property
    def door(self) -> tuple[Any, ...]:
        """As the door takes it."""
        fields = self.images, self.channels, self.first, self.depth, self.block, self.width, TYPES[self.dtype]
        return (self.geometry, *fields, self.zero_point, self.centered, self.each)


class WideSteps:
    """Part of `hwq.kernels.steps.Steps`."""

    _door: _kernels.Program

    def gemm_scaled(
        self,
        a: Place,
        packed: Packed,
        rows: int | Rows,
        dtype: DTypeLike,
        *,
        a_zero_point: int = 0,
        zero_points: Place | None = None,
        stride: int | None = None,
        epilogue: Epilogue,
        out: Place,
    ) -> None:
        """`hwq.kernels.gemm` with weights packed with scales, of dense rows of `dtype` or of rows gathered as they are needed.

        Parameters
        ----------
        zero_points : Place, optional
            Where `rows` shares them.
        stride : int, optional
            Elements between rows of the result.
        """
        check_columns(epilogue, packed.n)
        if not packed.scaled or epilogue.kind == "int32" or epilogue.residual is not None:
            raise Error("these weights and this epilogue do not make a step")
        count, of = (rows.count, rows.door) if isinstance(rows, Rows) else (rows, None)
        kind = TYPES[np.dtype(dtype)]
        self._door.gemm_scaled(
            a, kind, count, a_zero_point, packed.door, of, zero_points, packed.n if stride is None else stride, epilogue._door, out
        )  # fmt: skip

    def layer_norm(
        self,
        x: Place,
        rows: int,
        dtype: DTypeLike,
        weights: Array,
        bias: Array,
        *,
        weight_scale: float,
        epsilon: float,
        scale: float,
        made: DTypeLike,
        out: Place,
    ) -> None:
        """`hwq.kernels.layer_norm` with an exact variance, of dense rows of stored values: bytes count 256 steps, unsigned ones from
        the middle of their range; the result is clamped to its type, uint16 half its range higher."""
        terms = normalization_terms(weights, bias, weight_scale, "exact", epsilon, scale)
        kind, code = TYPES[np.dtype(dtype)], TYPES[np.dtype(made)]
        self._door.layer_norm(
            x, kind, rows, len(weights), weights, bias, *terms, code, *RANGES[np.dtype(made).name], out
        )

    def phases(
        self, x: Place, images: int, given: Space, made: Space, stride: Space, groups: int, size: int, *, out: Place
    ) -> None:
        """Images of `given` [groups][stride][size] bytes to `made` [groups][size]: position o holds phase o % stride of o // stride."""
        self._door.phases(x, images, given, made, stride, groups, size, out)

    def split(self, x: Place, size: int, dtype: DTypeLike, *, high: Place, low: Place) -> None:
        """int16, or uint16 read 2^15 lower, as 256 times a signed byte and an unsigned one."""
        self._door.split(x, TYPES[np.dtype(dtype)], size, high, low)

    def join(
        self,
        high: Place,
        low: Place,
        rows: int,
        columns: int,
        *,
        bias: Array | None,
        epilogue: Epilogue | None,
        factors: Array | None = None,
        offsets: Array | None = None,
        out: Place,
    ) -> None:
        """``sum = bias + 256 high + low`` of int32; then the epilogue, or ``float32(float64(sum) * factor) + offset``."""
        if epilogue is not None:
            check_columns(epilogue, columns)
        self._door.join(
            high, low, rows, columns, bias, factors, offsets, None if epilogue is None else epilogue._door, out
        )
