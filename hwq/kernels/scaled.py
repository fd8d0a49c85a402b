"""int8 weights with a scale and a zero point for every column and group of k: float activations, or bytes exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns, finishing
from hwq.kernels.operands import ANY_BIAS, RANGES, Array, align, array_of, dense, output, over_tiles, zero_point

__all__ = ["EXACT_GROUP", "gemm_scaled", "in_strips", "pack_scaled"]

_FLOAT = Epilogue(kind="float", multipliers=1.0)
# The longest group whose sums of products of bytes float32 holds exactly: 255 * 255 * 256 < 2^24.
EXACT_GROUP = 256


def in_strips(values: Array) -> Array:
    """(groups, columns) to strips x groups x 16; columns are a multiple of 16."""
    return np.ascontiguousarray(values.reshape(values.shape[0], values.shape[1] // 16, 16).transpose(1, 0, 2)).reshape(
        -1
    )


def pack_scaled(
    weights: Array, k: int, n: int, strides: tuple[int, int], points: Any, group: int | None, scales: Any
) -> tuple[_kernels.PackedS8, Array, int]:
    """The door, the packed bytes, and the group."""
    if group is not None and (group < 1 or (group % 4 and group < k)):
        raise Error(f"a group of {group} k", why="groups of 8-bit weights are multiples of 4, or all of k")
    block = -(-max(k if group is None else min(group, k), 1) // 4) * 4
    blocks = -(-k // block)
    lo, hi = RANGES[weights.dtype.name]
    given = array_of(points, "zero_point")
    if given.dtype.kind not in "iu" or (given.size and not (lo <= given.min() and given.max() <= hi)):
        raise Error(f"zero points must be integers of {weights.dtype}", why=f"they are {given.dtype} {given.shape}")
    values = array_of(scales, "scales")
    if values.dtype != np.float32 or values.shape != (blocks, n) or not np.isfinite(values).all():
        raise Error(
            f"scales must be finite float32 of shape {(blocks, n)}", why=f"they are {values.dtype} {values.shape}"
        )
    wide, factors = (np.zeros((blocks, -(-n // 16) * 16), dtype) for dtype in (np.int32, np.float32))
    try:
        wide[:, :n] = given.astype(np.int32) - (128 if weights.dtype == np.uint8 else 0)
    except ValueError:
        raise Error(f"zero_point has shape {given.shape}", why=f"there are {blocks} groups and {n} columns") from None
    factors[:, :n] = values
    quads = align(_kernels.packed_bytes(k, n), np.int8)
    scratch, wider = (np.empty(n, np.int32) for _ in range(3)), (np.empty(n, np.int64) for _ in range(2))
    kind = _kernels.TYPES[weights.dtype.name]
    _kernels.pack(weights, kind, 0, k, n, *strides, 0, np.zeros(n, np.int32), quads, *scratch, *wider)
    ordered = in_strips(factors), in_strips(wide)
    for array in (quads, *ordered):
        array.flags.writeable = False
    return _kernels.PackedS8(k, n, block, quads, *ordered), quads, block


def gemm_scaled(
    a: Any,
    packed: Any,
    a_zero_point: int,
    bias: Any,
    epilogue: Epilogue | None,
    out: Array | None,
    threads: int,
    terms: tuple[Any, ...],
) -> Array:
    """`gemm` for 8-bit weights packed with scales; see there."""
    given = dense(a, "a", ["uint8", "int8", "float32"])
    as_given = given.dtype == np.float32
    if not given.ndim or given.shape[-1] != packed.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {packed.k}")
    if not as_given:
        if packed.group > EXACT_GROUP:
            raise Error(
                f"groups of {packed.group} are too long for integer activations",
                why="a sum of products of bytes must stay below 2^24",
                remedy=f"groups of at most {EXACT_GROUP}; or pack without scales and let the epilogue scale",
            )
        point = zero_point(a_zero_point, given.dtype, "a_zero_point")
        given = given.astype(np.float32) - np.float32(point)
    if bias is not None:
        raise Error("a bias of scaled weights is the epilogue's float_bias")
    finish = finishing(epilogue, _FLOAT)
    if finish.kind == "int32" or (finish.kind == "requant" and finish.rounding != "fp32"):
        raise Error("scaled weights give float sums", remedy="an epilogue of kind float, or requant with rounding fp32")
    if finish.lut is not None or finish.residual is not None or finish.dtype in ("int16", "uint16"):
        raise Error("scaled weights take no table, no residual and no 16-bit output")
    check_columns(finish, packed.n)
    shape = (*given.shape[:-1], packed.n)
    result = output(out, shape, finish.dtype, given)
    rows, n, door, ending = math.prod(shape[:-1]), packed.n, packed.door, finish._door

    def run(a: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        result = np.empty(shape, finish.dtype) if out is None else out

        def work(row: int, count: int, strip: int, strips: int) -> None:
            _kernels.gemm_f32s8(a, row, count, door, strip, strips, ending, result)

        over_tiles(rows, n, threads, work)
        return result

    if as_given:
        packed._calls.remember(given, None, None, out, epilogue, terms, ANY_BIAS, run)
    return run(given, None, None, result)
