"""Packed weights: laid out once for every path, with what the overflow proof needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.half import half_name, widen
from hwq.kernels.int4 import pack_nibbles
from hwq.kernels.operands import ANY_BIAS, RANGES, TYPES, Array, align, array_of, dense, integer, one_of
from hwq.kernels.scaled import pack_scaled

__all__ = ["Packed", "pack", "pack_conv", "pack_float"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """Immutable packed weights of a GEMM or a convolution.

    Attributes
    ----------
    k, n, groups : int
        Products per output, output columns per group, groups.
    dtype : str
        ``int8``, ``uint8``, ``float32``, ``float16`` or ``bfloat16``, as given; the last two are held widened.
    kernel : tuple of int
        Spatial kernel of a convolution, or ``()``.
    depthwise : bool
        One channel per group: held as taps x outputs instead of strips.
    positive, negative : int64 array (groups * n,)
        Per column, sum of max(w - zw, 0) and of max(zw - w, 0).
    column_sums : int64 array (groups * n,)
        Per column, sum of (w - zw).
    group : int
        k per scale and zero point of scaled weights and of those of at most 4 bits; 0 otherwise.
    scaled : bool
        Packed with scales.
    """

    k: int
    n: int
    groups: int = 1
    dtype: str = "int8"
    kernel: tuple[int, ...] = ()
    depthwise: bool = False
    positive: Array
    negative: Array
    data: Array
    door: Any = None
    group: int = 0
    scaled: bool = False
    _calls: _kernels.Calls = field(init=False, repr=False, default_factory=_kernels.Calls)

    def __copy__(self) -> Packed:
        return self

    def __deepcopy__(self, memo: object) -> Packed:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        raise Error("packed weights belong to their process", remedy="pickle the weights and pack them again")

    @property
    def columns(self) -> int:
        """Output columns of all groups together."""
        return self.n * self.groups

    @property
    def column_sums(self) -> Array:
        """Per column, the sum of (w - zw), int64."""
        return self.positive - self.negative

    @property
    def nbytes(self) -> int:
        """Bytes of the packed layout, padding included."""
        return int(self.data.nbytes)

    def accumulator_range(self, dtype: str, zero_point: int, bias: Array | None = None) -> tuple[Array, Array]:
        """Least and greatest accumulator of each column over all activations of `dtype`: exact, int64.

        Padding counts as activations equal to the zero point, so it never widens the range.
        """
        lo, hi = RANGES[dtype]
        below, above = lo - zero_point, hi - zero_point
        offset = 0 if bias is None else bias.astype(np.int64)
        return (
            offset + below * self.positive - above * self.negative,
            offset + above * self.positive - below * self.negative,
        )

    @cached_property
    def _reach(self) -> int:
        """The greatest sum of |w - zw| of a column."""
        return int((self.positive + self.negative).max(initial=0))

    def spare(self, dtype: str, wrap: bool) -> int:
        """A bias smaller than this in size lets no activation of `dtype` overflow the int32 accumulator."""
        lo, hi = RANGES[dtype]  # an activation parts from a zero point of its type by hi - lo at most
        return ANY_BIAS if wrap else max(2**31 - (hi - lo) * self._reach, 0)

    def check_overflow(self, dtype: str, zero_point: int, bias: Array | None = None) -> None:
        """Raise where some activation of `dtype` would overflow the int32 accumulator.

        Raises
        ------
        Error
            Names the column and its bounds.
        """
        size = 0 if bias is None or not bias.size else max(int(bias.max()), -int(bias.min()))
        if size < self.spare(dtype, wrap=False):
            return
        least, most = self.accumulator_range(dtype, zero_point, bias)
        bad = np.flatnonzero((least < -(2**31)) | (most > 2**31 - 1))
        if bad.size:
            first = int(bad[0])
            raise Error(
                f"the int32 accumulator may overflow in {bad.size} of {self.columns} columns",
                why=f"column {first} can reach [{int(least[first])}, {int(most[first])}] with {dtype} activations and "
                f"zero point {zero_point}",
                remedy="split k, or pass wrap=True for the wrap-around that ONNX and TFLite define",
            )


def _freeze(*arrays: Array) -> None:
    for array in arrays:
        array.flags.writeable = False


def _integers(weights: Any, bits: int) -> Array:
    given = array_of(weights, "weights")
    if given.dtype.name in ("int4", "uint4", "int2", "uint2"):  # ml_dtypes
        given = given.astype(np.uint8 if given.dtype.name.startswith("u") else np.int8)
    given = dense(given, "weights", ["int8", "uint8"])
    bits = integer(bits, "bits")
    if not 1 <= bits <= 8:
        raise Error(f"bits must lie in 1..8, not {bits}")
    lo, hi = (0, 2**bits - 1) if given.dtype == np.uint8 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if bits < 8 and given.size and not (lo <= given.min() and given.max() <= hi):
        raise Error(f"a weight lies outside the {bits}-bit range [{lo}, {hi}]")
    return given


def _zero_points(zero_point: Any, columns: int, dtype: np.dtype[Any]) -> Array:
    given = array_of(zero_point, "zero_point")
    if given.dtype.kind not in "iu" or (given.size != 1 and given.shape != (columns,)):
        raise Error(
            f"zero_point must be one integer, or one for each of {columns} columns",
            why=f"it is {given.dtype} {given.shape}",
        )
    lo, hi = RANGES[dtype.name]
    if given.size and not (lo <= given.min() and given.max() <= hi):
        raise Error(f"a weight zero point does not fit {dtype.name}")
    return np.ascontiguousarray(np.broadcast_to(given.reshape(-1), (columns,)), np.int32)


def _pack(
    weights: Array, k: int, n: int, groups: int, strides: tuple[int, int, int], points: Array, kernel: tuple[int, ...]
) -> Packed:
    """strides: elements between k, columns, groups."""
    columns = groups * n
    quads = align(groups * _kernels.packed_bytes(k, n), np.int8)
    stored, sums, products = (np.empty(columns, np.int32) for _ in range(3))
    positive, negative = np.empty(columns, np.int64), np.empty(columns, np.int64)
    for group in range(groups):
        _kernels.pack(
            weights,
            TYPES[weights.dtype],
            group * strides[2],
            k,
            n,
            strides[0],
            strides[1],
            group,
            points,
            quads,
            stored,
            sums,
            products,
            positive,
            negative,
        )
    _freeze(quads, stored, sums, products, positive, negative)
    door = _kernels.Packed(
        k, n, groups, quads, stored if stored.any() else None, sums, products, int((positive + negative).max(initial=0))
    )
    return Packed(
        k=k,
        n=n,
        groups=groups,
        dtype=weights.dtype.name,
        kernel=kernel,
        positive=positive,
        negative=negative,
        data=quads,
        door=door,
    )


def pack(
    weights: Any,
    *,
    zero_point: Any = 0,
    layout: str = "KN",
    bits: int = 8,
    group: int | None = None,
    scales: Any = None,
) -> Packed:
    """Pack the weights of an integer GEMM.

    Parameters
    ----------
    weights : int8 or uint8 array (K, N), or (N, K) with layout ``NK``
        Also ml_dtypes int4, uint4.
    zero_point : int or array (N,)
        In the weights' own range. With groups also (groups of k, N).
    layout : {"KN", "NK"}
    bits : int
        Weights of at most 4 bits are held two to a byte; those of 5 to 7 only have their range checked.
    group : int, optional
        k per scale and zero point, all by default; a multiple of 32 with at most 4 bits, else of 4, with scales.
    scales : float32 array (groups of k, N), optional
        Exact integer sums of a group become ``y = fma(f32(acc), scale, y)``, in increasing k; float activations, see `gemm`.

    Returns
    -------
    Packed

    Raises
    ------
    Error
        Wrong dtype, rank, range or zero point.
    """
    given, bits = _integers(weights, bits), integer(bits, "bits")
    group = None if group is None else integer(group, "group")
    one_of(layout, ("KN", "NK"), "layout")
    if given.ndim != 2:
        raise Error(f"weights must be 2-D in layout KN or NK, not {given.shape} in {layout}")
    k, n = given.shape if layout == "KN" else given.shape[::-1]
    strides = (n, 1, 0) if layout == "KN" else (1, k, 0)
    if bits <= 4:
        door, data, positive, negative, block = pack_nibbles(given, k, n, strides[:2], bits, zero_point, group, scales)
        _freeze(positive, negative)
        return Packed(
            k=k,
            n=n,
            dtype="uint4" if given.dtype == np.uint8 else "int4",
            positive=positive,
            negative=negative,
            data=data,
            door=door,
            group=block,
            scaled=scales is not None,
        )
    if scales is not None:
        whole, quads, block = pack_scaled(given, k, n, strides[:2], zero_point, group, scales)
        none = np.zeros(0, np.int64)
        _freeze(none)
        return Packed(
            k=k,
            n=n,
            dtype=given.dtype.name,
            positive=none,
            negative=none,
            data=quads,
            door=whole,
            group=block,
            scaled=True,
        )
    if group is not None:
        raise Error("groups need scales", remedy="pass scales of shape (groups of k, N)")
    return _pack(given, k, n, 1, strides, _zero_points(zero_point, n, given.dtype), ())


def pack_float(weights: Any, *, layout: str = "KN") -> Packed:
    """Pack a float matrix (K, N) (or (N, K) with layout ``NK``) for `gemm` in the fixed order.

    float32, or float16 and bfloat16, which multiply activations of their own type.
    """
    half = half_name(weights)
    given = widen(weights) if half else dense(weights, "weights", ["float32"])
    one_of(layout, ("KN", "NK"), "layout")
    if given.ndim != 2:
        raise Error(f"weights must be 2-D in layout KN or NK, not {given.shape} in {layout}")
    k, n = given.shape if layout == "KN" else given.shape[::-1]
    data = align(_kernels.packed_f32_floats(k, n), np.float32)
    _kernels.pack_f32(given, 0, k, n, n if layout == "KN" else 1, 1 if layout == "KN" else k, 0, data)
    return _float(k, n, 1, data, (), False, half)


def _float(
    k: int, n: int, groups: int, data: Array, kernel: tuple[int, ...], depthwise: bool, half: str | None
) -> Packed:
    none = np.zeros(0, np.int64)
    _freeze(data, none)
    return Packed(
        k=k,
        n=n,
        groups=groups,
        dtype=half or "float32",
        kernel=kernel,
        depthwise=depthwise,
        positive=none,
        negative=none,
        data=data,
    )


def pack_conv(weights: Any, *, zero_point: Any = 0, groups: int = 1, layout: str = "OIHW", bits: int = 8) -> Packed:
    """Pack the weights of a convolution with one to three spatial dimensions; float32 weights pack for the fixed order.

    Parameters
    ----------
    weights : int8, uint8, float32, float16 or bfloat16 array (O, I / groups, *kernel), or (O, *kernel, I / groups) with layout ``OHWI``
    zero_point : int or array (O,)
        Of integer weights.
    groups : int
        Divides O. With one channel per group (float32: and one output) the convolution is depthwise.
    layout : {"OIHW", "OHWI"}
        Also read for one and three spatial dimensions.
    bits : int
        As in `pack`.
    """
    half = half_name(weights)
    given = widen(weights) if half else array_of(weights, "weights")
    given = dense(given, "weights", ["float32"]) if given.dtype == np.float32 else _integers(given, bits)
    one_of(layout, ("OIHW", "OHWI"), "layout")
    if not 3 <= given.ndim <= 5:
        raise Error(
            f"weights must have one to three spatial dimensions in layout OIHW or OHWI, not {given.shape} in {layout}"
        )
    groups = integer(groups, "groups")
    if groups < 1 or given.shape[0] % groups:
        raise Error(f"{groups} groups do not divide {given.shape[0]} output channels")
    if layout == "OIHW":
        given = np.ascontiguousarray(np.moveaxis(given, 1, -1))  # the packed order of k: tap, then channel
    outputs, kernel, depth = given.shape[0], tuple(int(s) for s in given.shape[1:-1]), given.shape[-1]
    k, n = int(np.prod(kernel)) * depth, outputs // groups
    depthwise = depth == 1 and groups > 1 and (n == 1 or given.dtype != np.float32)
    if given.dtype == np.float32:
        if depthwise:
            return _float(
                k, n, groups, np.ascontiguousarray(given.reshape(outputs, k).T).reshape(-1), kernel, True, half
            )
        data = align(groups * _kernels.packed_f32_floats(k, n), np.float32)
        for group in range(groups):
            _kernels.pack_f32(given, group * n * k, k, n, 1, k, group, data)
        return _float(k, n, groups, data, kernel, False, half)
    points = _zero_points(zero_point, outputs, given.dtype)
    if depthwise:
        centered = given.reshape(outputs, k).astype(np.int64) - points[:, None]
        taps = np.ascontiguousarray(centered.T, np.int16).reshape(-1)
        positive, negative = np.maximum(centered, 0).sum(1), np.maximum(-centered, 0).sum(1)
        _freeze(taps, positive, negative)
        return Packed(
            k=k,
            n=n,
            groups=groups,
            dtype=given.dtype.name,
            kernel=kernel,
            depthwise=True,
            positive=positive,
            negative=negative,
            data=taps,
        )
    return _pack(given, k, n, groups, (1, k, n * k), points, kernel)


def spatial(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Up to three spatial values, absent outer ones filled."""
    return (fill,) * (3 - len(values)) + tuple(values)  # type: ignore[return-value]
