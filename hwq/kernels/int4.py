"""Weights of at most 4 bits: packed two to a byte, one scale and zero point for every column and group of k."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.epilogue import Epilogue, check_columns, finishing, residual_operand
from hwq.kernels.operands import (
    ANY_BIAS,
    NAMES,
    TYPES,
    Array,
    align,
    array_of,
    dense,
    floats,
    int32_bias,
    output,
    over_tiles,
    zero_point,
)
from hwq.kernels.scaled import in_strips

__all__ = ["gemm_int4", "pack_nibbles"]

_PLAIN, _FLOAT = Epilogue(), Epilogue(kind="float", multipliers=1.0)


def pack_nibbles(
    weights: Array, k: int, n: int, strides: tuple[int, int], bits: int, points: Any, group: int | None, scales: Any
) -> tuple[_kernels.PackedS4, Array, Array, Array, int]:
    """The door, the packed bytes, the overflow proof's two sums per column, and the group; weights lie in their range."""
    offset = 8 if weights.dtype == np.int8 else 0
    if group is not None and (group < 1 or (group % 32 and group < k)):
        raise Error(f"a group of {group} k", why="groups are multiples of 32, or all of k")
    if (group is None) != (scales is None) and group is not None:
        raise Error("groups need scales", remedy="pass scales of shape (groups of k, N)")
    block = -(-max(k if group is None else min(group, k), 1) // 32) * 32
    blocks = -(-k // block)
    lo = -(2 ** (bits - 1)) if offset else 0
    given = array_of(points, "zero_point")
    if given.dtype.kind not in "iu" or (given.size and not (lo <= given.min() and given.max() < lo + 2**bits)):
        raise Error(f"zero points must be integers of {bits} bits", why=f"they are {given.dtype} {given.shape}")
    wide = np.zeros((blocks, -(-n // 16) * 16), np.int32)
    try:
        wide[:, :n] = given.astype(np.int32) + offset
    except ValueError:
        raise Error(f"zero_point has shape {given.shape}", why=f"there are {blocks} groups and {n} columns") from None
    factors = None
    if scales is not None:
        values = floats(scales, np.float32)
        if values.shape != (blocks, n) or not np.isfinite(values).all():
            raise Error(f"scales must be finite and of shape {(blocks, n)}", why=f"they are {values.shape}")
        factors = np.zeros(wide.shape, np.float32)
        factors[:, :n] = values
        factors = in_strips(factors)
    stored = weights.view(np.uint8) + np.uint8(offset)
    nibbles = align(_kernels.packed_s4_bytes(k, n), np.uint8)
    sums, ordered = np.empty(wide.size, np.int32), in_strips(wide)
    door = _kernels.PackedS4(stored, k, n, *strides, block, factors, ordered, nibbles, sums)
    square = weights.reshape(k, n) if strides[1] == 1 else weights.reshape(n, k).T
    centered = square.astype(np.int64) - (np.repeat(wide, block, 0)[:k, :n] - offset)
    for array in (nibbles, sums, ordered, factors):
        if array is not None:
            array.flags.writeable = False
    return door, nibbles, np.maximum(centered, 0).sum(0), np.maximum(-centered, 0).sum(0), block


def gemm_int4(
    a: Any,
    packed: Any,
    a_zero_point: int,
    bias: Any,
    epilogue: Epilogue | None,
    residual: Any,
    out: Array | None,
    threads: int,
    wrap: bool,
    terms: tuple[Any, ...],
) -> Array:
    """`gemm` for weights packed with at most 4 bits; see there."""
    given = dense(a, "a", ["uint8", "int8", "float32"])
    if not given.ndim or given.shape[-1] != packed.k:
        raise Error(f"a has shape {given.shape}", why=f"the weights have K = {packed.k}")
    is_float = NAMES[given.dtype] == "float32"
    if is_float and not packed.scaled:
        raise Error("float32 activations need weights packed with scales")
    point = 0 if is_float else zero_point(a_zero_point, given.dtype, "a_zero_point")
    if packed.scaled:
        if bias is not None:
            raise Error("a bias of scaled weights is the epilogue's float_bias")
        finish = finishing(epilogue, _FLOAT)
        if finish.kind == "int32" or (finish.kind == "requant" and finish.rounding != "fp32"):
            raise Error(
                "scaled weights give float sums", remedy="an epilogue of kind float, or requant with rounding fp32"
            )
        if finish.lut is not None or finish.residual is not None or finish.dtype in ("int16", "uint16"):
            raise Error("scaled weights take no table, no residual and no 16-bit output")
        if packed.group * 255 * 15 > 2**31 - 1:
            raise Error(f"the int32 accumulator of a group of {packed.group} may overflow", remedy="smaller groups")
        offsets = None
    else:
        finish, offsets = finishing(epilogue, _PLAIN), int32_bias(bias, packed.n)
        if not wrap:
            packed.check_overflow(NAMES[given.dtype], point, offsets)
    check_columns(finish, packed.n)
    shape = (*given.shape[:-1], packed.n)
    second = residual_operand(residual, finish, shape)
    result = output(out, shape, finish.dtype, given, second, offsets)
    rows, n, kind, door, ending = math.prod(shape[:-1]), packed.n, TYPES[given.dtype], packed.door, finish._door

    def run(a: Array, bias: Array | None, residual: Array | None, out: Array | None) -> Array:
        result = np.empty(shape, finish.dtype) if out is None else out

        def work(row: int, count: int, strip: int, strips: int) -> None:
            _kernels.gemm_s4(a, kind, row, count, point, door, strip, strips, bias, ending, residual, result)

        over_tiles(rows, n, threads, work)
        return result

    spare = ANY_BIAS if packed.scaled else packed.spare(NAMES[given.dtype], wrap)
    packed._calls.remember(given, offsets, second, out, epilogue, terms, spare, run)
    return run(given, offsets, second, result)
