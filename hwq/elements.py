"""Element types: how many bits each takes in memory, and the NumPy dtype that carries it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["BITS", "carrier", "stored_type"]

# Bits of one element as stored in a runtime's memory (int4: two elements a byte, low nibble first).
BITS: Mapping[str, int] = MappingProxyType({
    "bool": 8, "string": 0,
    "int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16,
    "int32": 32, "uint32": 32, "int64": 64, "uint64": 64,
    "float4e2m1": 4, "float8e4m3fn": 8, "float8e4m3fnuz": 8, "float8e5m2": 8, "float8e5m2fnuz": 8, "float8e8m0": 8,
    "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "complex64": 64, "complex128": 128,
})  # fmt: skip

# Names in ml_dtypes of the floats that NumPy lacks.
_SMALL_FLOATS: Mapping[str, str] = MappingProxyType({
    "bfloat16": "bfloat16", "float4e2m1": "float4_e2m1fn", "float8e4m3fn": "float8_e4m3fn", "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2", "float8e5m2fnuz": "float8_e5m2fnuz", "float8e8m0": "float8_e8m0fnu",
})  # fmt: skip

# Widths that a plan may name and no file format stores: the next wider type holds them, its range cut to theirs.
_STORED: Mapping[str, str] = MappingProxyType({"int3": "int4", "int5": "int8", "int6": "int8"})


def stored_type(dtype: str) -> str:
    """The type that holds weights of `dtype`: int4 for int3, int8 for int5 and int6, itself otherwise."""
    return _STORED.get(dtype, dtype)


def carrier(dtype: str) -> np.dtype[Any]:
    """NumPy dtype that holds elements of `dtype`, one a slot; sub-byte integers are carried by int8 / uint8."""
    if dtype in {"int2", "int4"} or dtype in _STORED:
        return np.dtype(np.int8)
    if dtype in {"uint2", "uint4"}:
        return np.dtype(np.uint8)
    if dtype == "string":
        return np.dtype(object)
    if dtype in _SMALL_FLOATS:
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _SMALL_FLOATS[dtype]))
        return small
    return np.dtype(dtype)
