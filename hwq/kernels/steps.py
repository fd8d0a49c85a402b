"""Steps: kernels called one after another in C, over memory that the caller owns; no Python between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.chains import SCALES, UNBOUNDED, Chain, Clamp
from hwq.kernels.elementwise import FORMULAS, _parameters
from hwq.kernels.epilogue import Binary, Epilogue, check_columns, clamp_bounds
from hwq.kernels.half import HALVES
from hwq.kernels.operands import RANGES, TYPES, Array, int32_bias, zero_point
from hwq.kernels.packing import Packed, spatial
from hwq.kernels.rows import DYNAMIC, exponentials
from hwq.kernels.wide_steps import Place, WideSteps
from hwq.kernels.windows import Geometry

__all__ = ["ARENA", "FIRST_ARRAY", "Place", "Steps"]

# Bases: the arena, then the arrays that a caller hands over, in order.
ARENA, FIRST_ARRAY = 1, 2
_LAYOUTS = ("NCHW", "NHWC")  # the C enum's order
_MAPS = ("relu", "add", "sub", "mul")  # likewise


class Steps(WideSteps):
    """A list of kernel calls whose operands are places. Methods append one step; afterwards it is only read.

    Nothing is checked but what the C code relies on: places must be aligned to their elements and hold what the
    shapes say.

    Parameters
    ----------
    capacity : int
        Most steps that it will hold.
    """

    def __init__(self, capacity: int):
        self._door = _kernels.Program(capacity)

    def __len__(self) -> int:
        return int(self._door.count)

    def gemm(
        self,
        a: Place,
        packed: Packed,
        rows: int,
        dtype: DTypeLike,
        *,
        a_zero_point: int,
        bias: Any,
        epilogue: Epilogue,
        residual: Place | None = None,
        out: Place,
    ) -> None:
        """`hwq.kernels.gemm` of `rows` dense rows of `dtype`; accumulators may wrap."""
        kind = np.dtype(dtype)
        check_columns(epilogue, packed.n)
        if (residual is None) != (epilogue.residual is None) or packed.kernel or packed.dtype == "float32":
            raise Error("these weights and this epilogue do not make a step")
        self._door.gemm(
            a,
            kind == np.int8,
            rows,
            zero_point(a_zero_point, kind, "a_zero_point"),
            packed.door,
            int32_bias(bias, packed.n),
            epilogue._door,
            residual,
            out,
        )

    def cast(self, x: Place, size: int, dtype: str, *, widen: bool, out: Place) -> None:
        """`hwq.kernels.widen` of `size` elements of ``float16`` or ``bfloat16``, or `narrow` to them."""
        self._door.cast(x, HALVES[dtype], widen, size, out)

    def products(
        self,
        a: Place,
        b: Place,
        shape: tuple[int, int, int, int],
        dtypes: tuple[DTypeLike, DTypeLike],
        *,
        shared: tuple[bool, bool] = (False, False),
        transposed: bool = False,
        a_zero_point: int,
        b_zero_points: Array | None,
        bias: Any,
        epilogue: Epilogue,
        out: Place,
    ) -> None:
        """``a @ b`` of activations; accumulators may wrap.

        Parameters
        ----------
        shape : (batch, m, k, n)
        dtypes : of a and b
        shared : (bool, bool)
            Whether all of the batch read one a, one b.
        transposed : bool
            b lies as (n, k).
        """
        batch, m, k, n = shape
        kind, other = (np.dtype(one) for one in dtypes)
        check_columns(epilogue, n)
        points = None
        if b_zero_points is not None and np.any(b_zero_points):
            points = np.ascontiguousarray(np.broadcast_to(b_zero_points.reshape(-1), (n,)), np.int32)
        a_step, b_step = 0 if shared[0] else m * k, 0 if shared[1] else k * n
        self._door.products(
            a, kind == np.int8, zero_point(a_zero_point, kind, "a_zero_point"), b, TYPES[other], points, batch, m, k, n, a_step, b_step,
            transposed, int32_bias(bias, n), epilogue._door, out,
        )  # fmt: skip

    def gemm_f32(self, a: Place, packed: Packed, rows: int, *, bias: Array | None, out: Place) -> None:
        """`hwq.kernels.gemm` with float32 weights."""
        self._door.gemm_f32(a, rows, packed.k, packed.n, packed.data, bias, out)

    def conv(
        self,
        x: Place,
        packed: Packed,
        geometry: Geometry,
        batch: int,
        dtype: DTypeLike,
        *,
        layout: str,
        a_zero_point: int = 0,
        bias: Any = None,
        epilogue: Epilogue | None = None,
        residual: Place | None = None,
        out: Place,
    ) -> None:
        """`hwq.kernels.conv2d`; accumulators may wrap. `geometry` as the door takes it: see `window`."""
        kind = np.dtype(dtype)
        is_float = kind == np.float32
        channels = packed.groups * (packed.k // math.prod(packed.kernel))
        if not is_float:
            assert epilogue is not None
            check_columns(epilogue, packed.columns)
        self._door.conv(
            geometry,
            batch,
            channels,
            packed.columns,
            packed.groups,
            _LAYOUTS.index(layout),
            TYPES[kind],
            0 if is_float else zero_point(a_zero_point, kind, "a_zero_point"),
            x,
            packed.door,
            packed.data if packed.depthwise else None,
            packed.data if is_float and not packed.depthwise else None,
            bias if is_float else int32_bias(bias, packed.columns),
            None if epilogue is None else epilogue._door,
            residual,
            out,
        )

    def pool(
        self,
        x: Place,
        kind: str,
        geometry: Geometry,
        end: Sequence[int],
        batch: int,
        channels: int,
        dtype: DTypeLike,
        *,
        layout: str,
        count_include_pad: bool = False,
        clamp: tuple[int, int] | None = None,
        out: Place,
    ) -> None:
        """`hwq.kernels.max_pool` or `average_pool` (kind ``max`` or ``average``), or means of floats in groups of nine (``nines``)."""
        stored = np.dtype(dtype)
        lo, hi = (0, 0) if stored == np.float32 else clamp_bounds(clamp, stored.name)
        code = 3 if kind == "nines" else 0 if kind == "max" else 2 if stored == np.float32 else 1
        layouts = _LAYOUTS.index(layout)
        self._door.pool(
            geometry, spatial(end, 0), batch, channels, layouts, TYPES[stored], code, count_include_pad, lo, hi, x, out
        )

    def binary(self, operator: Binary, size: int, a: Place, a_step: int, b: Place, b_step: int, out: Place) -> None:
        """`hwq.kernels.binary` of `size` elements; a step of 0 repeats the operand's one element."""
        self._door.binary(operator._door, size, a, a_step, b, b_step, out)

    def quantize(
        self,
        x: Place,
        outer: int,
        inner: int,
        scale: Any,
        zero_point: Any,
        dtype: DTypeLike,
        *,
        formula: str = "onnx",
        out: Place,
    ) -> None:
        """`hwq.kernels.quantize` of outer x channels x inner; as many channels as there are scales."""
        stored = np.dtype(dtype)
        channels = max(np.size(scale), np.size(zero_point))
        scales, points = _parameters(scale, zero_point, channels, 0)
        lo, hi = RANGES[stored.name]
        code = FORMULAS.index(formula)
        self._door.scale(False, code, outer, channels, inner, x, scales, points, lo, hi, TYPES[stored], out)

    def dequantize(
        self, x: Place, outer: int, inner: int, scale: Any, zero_point: Any, dtype: DTypeLike, *, out: Place
    ) -> None:
        """`hwq.kernels.dequantize` of outer x channels x inner."""
        channels = max(np.size(scale), np.size(zero_point))
        scales, points = _parameters(scale, zero_point, channels, 0)
        self._door.scale(True, 0, outer, channels, inner, x, scales, points, 0, 0, TYPES[np.dtype(dtype)], out)

    def lut(self, x: Place, size: int, dtype: DTypeLike, table: Array, *, out: Place) -> None:
        """`hwq.kernels.lut`."""
        self._door.lut(x, np.dtype(dtype) == np.int8, table, size, out)

    def transpose(self, x: Place, element: int, outer: int, rows: int, columns: int, *, out: Place) -> None:
        """Turn each of `outer` matrices of rows x columns elements of 1, 2 or 4 bytes."""
        self._door.transpose(x, element, outer, rows, columns, out)

    def copy(self, x: Place, runs: int, size: int, from_stride: int, to_stride: int, *, out: Place) -> None:
        """Copy `runs` runs of `size` bytes."""
        self._door.copy(x, runs, size, from_stride, to_stride, out)

    def map(self, formula: str, size: int, a: Place, b: Place | None, *, out: Place) -> None:
        """One float32 operation of `size` elements: ``relu`` (of a alone), ``add``, ``sub`` or ``mul``; may be in place."""
        self._door.map(_MAPS.index(formula), size, a, b, out)

    def dynamic_quantize(
        self, x: Place, rows: int, columns: int, *, formula: str = "onnx", out: Place, scale: Place, zero_point: Place
    ) -> None:
        """`hwq.kernels.dynamic_quantize` of dense rows; zero points in bytes."""
        self._door.dynamic(x, list(DYNAMIC).index(formula), rows, columns, out, scale, zero_point)

    def conv_chain(
        self, x: Place, chain: Chain, geometry: Geometry, batch: int, *, bias: Array | None, clamp: Clamp, out: Place
    ) -> None:
        """`hwq.kernels.conv_chain`."""
        self._door.chain(geometry, batch, *chain.door, *clamp, x, chain.data, bias, out)

    def scale_sums(
        self,
        acc: Place,
        rows: int,
        each: int,
        scale: Place,
        zero_point: Place | None,
        *,
        sums: Array | None,
        factors: Array,
        bias: Array | None,
        clamp: Clamp = UNBOUNDED,
        formula: str = "xnnpack",
        points: DTypeLike = np.int8,
        out: Place,
    ) -> None:
        """`hwq.kernels.scale_sums`, `each` rows to a scale and, with column sums, a zero point."""
        code = SCALES.index(formula)
        kind = TYPES[np.dtype(points)]
        self._door.sums(code, kind, acc, rows, len(factors), each, scale, zero_point, sums, factors, bias, *clamp, out)

    def scaled(self, scale: Place, zero_point: Place, *, by_image: bool = False) -> None:
        """The step appended last, a product, takes its zero point and, with a float epilogue, a scale of its factors at run time;
        a convolution perhaps one of each an image."""
        self._door.scaled(scale, zero_point, by_image)

    def mean(
        self,
        x: Place,
        outer: int,
        count: int,
        inner: int,
        dtype: DTypeLike,
        zero_point: int,
        *,
        epilogue: Epilogue,
        out: Place,
    ) -> None:
        """The exact integer sum of (x - zero point) over the middle dimension, then the epilogue."""
        self._door.mean(x, TYPES[np.dtype(dtype)], zero_point, outer, count, inner, epilogue._door, out)

    def softmax_by_table(
        self,
        x: Place,
        rows: int,
        columns: int,
        dtype: DTypeLike,
        table: Array,
        inverse: float,
        zero_point: int,
        *,
        out: Place,
    ) -> None:
        """onnxruntime's QLinearSoftmax of dense rows: float32 exponentials by distance to the largest, entry 255 last."""
        kind = TYPES[np.dtype(dtype)]
        self._door.softmax(x, _kernels.Softmax(2, kind, kind, 0.0, 0.0, table, inverse, zero_point), rows, columns, out)

    def softmax_tflite(
        self,
        x: Place,
        rows: int,
        columns: int,
        dtype: DTypeLike,
        made: DTypeLike,
        scale: float,
        beta: float,
        *,
        out: Place,
    ) -> None:
        """LiteRT's fixed-point softmax of dense rows of 8 bits."""
        kinds = TYPES[np.dtype(dtype)], TYPES[np.dtype(made)]
        self._door.softmax(x, _kernels.Softmax(0, *kinds, scale, beta, None, 0.0, 0), rows, columns, out)

    def softmax_xnnpack(
        self,
        x: Place,
        rows: int,
        columns: int,
        dtype: DTypeLike,
        scale: float,
        beta: float,
        made: tuple[float, int],
        *,
        out: Place,
    ) -> None:
        """LiteRT's default softmax of dense rows of 8 bits; `made`: scale and zero point of the result."""
        kind = TYPES[np.dtype(dtype)]
        door = _kernels.Softmax(3, kind, kind, made[0], beta, exponentials(scale, beta), 0.0, made[1])
        self._door.softmax(x, door, rows, columns, out)
