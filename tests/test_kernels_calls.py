"""Remembered calls: what changes between two calls on the same weights is noticed, and nothing else is checked twice."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hwq import kernels
from hwq.errors import Error

RNG = np.random.default_rng(11)
EPILOGUE = kernels.Epilogue(kind="requant", multipliers=np.linspace(1e-3, 1e-2, 18), zero_point=2)
ADD = kernels.Binary(
    formula="ort-add", a_scale=0.1, b_scale=0.2, scale=0.3, a_dtype="int8", b_dtype="int8", dtype="int8"
)
JOINED = kernels.Epilogue(kind="requant", multipliers=0.01, residual=ADD)


def signed(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def nibbles(*shape: int) -> np.ndarray:
    return RNG.integers(-8, 8, shape).astype(np.int8)


def floats(*shape: int) -> np.ndarray:
    return RNG.random(shape, np.float32)


BIAS = RNG.integers(-1000, 1000, 18).astype(np.int32)
X = signed(2, 6, 5, 18)
INT8, INT4 = signed(64, 18), nibbles(64, 18)
SCALES = floats(2, 18)

# name: fresh weights, the call, its operands
CALLS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "int8": (lambda: kernels.pack(INT8), kernels.gemm, {"a": signed(3, 64), "a_zero_point": 5, "bias": BIAS, "epilogue": EPILOGUE, "out": np.zeros((3, 18), np.int8)}),
    "residual": (lambda: kernels.pack(INT8), kernels.gemm, {"a": signed(3, 64), "epilogue": JOINED, "residual": signed(3, 18), "out": np.zeros((3, 18), np.int8)}),
    "new out": (lambda: kernels.pack(INT8), kernels.gemm, {"a": signed(1, 3, 64), "bias": BIAS}),
    "int4": (lambda: kernels.pack(INT4, bits=4), kernels.gemm, {"a": signed(1, 64), "bias": BIAS, "out": np.zeros((1, 18), np.int32)}),
    "int4 groups": (lambda: kernels.pack(INT4, bits=4, group=32, scales=SCALES), kernels.gemm, {"a": signed(3, 64), "a_zero_point": 5}),
    "int4 x float": (lambda: kernels.pack(INT4, bits=4, group=32, scales=SCALES), kernels.gemm, {"a": floats(3, 64), "out": np.zeros((3, 18), np.float32)}),
    "int8 x float": (lambda: kernels.pack(INT8, group=32, scales=SCALES), kernels.gemm, {"a": floats(3, 64)}),
    "float": (lambda: kernels.pack_float(floats(64, 18)), kernels.gemm, {"a": floats(3, 64), "bias": floats(18)}),
    "conv": (lambda: kernels.pack_conv(signed(18, 18, 3, 3)), kernels.conv2d, {"x": X, "pads": (1, 1, 1, 1), "layout": "NHWC", "bias": BIAS, "epilogue": EPILOGUE}),
    "depthwise": (lambda: kernels.pack_conv(signed(18, 1, 3, 3), groups=18), kernels.conv2d, {"x": X, "pads": 1, "layout": "NHWC", "a_zero_point": -7, "out": np.zeros((2, 6, 5, 18), np.int32)}),
    "float conv": (lambda: kernels.pack_conv(floats(18, 18, 1, 1)), kernels.conv2d, {"x": floats(2, 18, 4, 3), "strides": [1, 2]}),
}  # fmt: skip


def first(call: Any, operands: dict[str, Any]) -> str:
    return "x" if call is kernels.conv2d else "a"


def fortran(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array) if array.ndim > 1 and array.shape[0] > 1 else array[..., ::-1]


# What may change from one call to the next, each from the operands before.
CHANGES: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "nothing": lambda n, o: {},
    "values": lambda n, o: {n: o[n][::-1].copy()},
    "another dtype": lambda n, o: {n: o[n].view(np.uint8)},
    "a list": lambda n, o: {n: o[n].tolist()},
    "a subclass": lambda n, o: {n: np.ma.masked_array(o[n])},
    "not dense": lambda n, o: {n: fortran(o[n])},
    "more rows": lambda n, o: {n: np.concatenate([o[n], o[n]]), "out": None, "residual": None, "epilogue": EPILOGUE},
    "rows that out has not": lambda n, o: {n: np.concatenate([o[n], o[n]])},
    "another rank": lambda n, o: {n: o[n].reshape(-1)},
    "more k": lambda n, o: {n: np.concatenate([o[n], o[n]], -1)},
    "byte order": lambda n, o: {n: o[n].astype(o[n].dtype.newbyteorder(">"))},
    "a zero point": lambda n, o: {"a_zero_point": o.get("a_zero_point", 0) + 1},
    "an array of one as zero point": lambda n, o: {"a_zero_point": np.array([9])},
    "a float as zero point": lambda n, o: {"a_zero_point": 5.0},
    "True as zero point": lambda n, o: {"a_zero_point": True},
    "a zero point outside": lambda n, o: {"a_zero_point": 1000},
    "no bias": lambda n, o: {"bias": None},
    "a bias": lambda n, o: {"bias": BIAS[::-1].copy()},
    "a wide bias": lambda n, o: {"bias": BIAS.astype(np.int64)},
    "a long bias": lambda n, o: {"bias": np.zeros(19, np.int32)},
    "a bias that may overflow": lambda n, o: {"bias": np.full(18, 2**31 - 1, np.int32)},
    "the least bias": lambda n, o: {"bias": np.full(18, -(2**31), np.int32)},
    "no epilogue": lambda n, o: {"epilogue": None, "out": None, "residual": None},
    "another epilogue": lambda n, o: {"epilogue": kernels.Epilogue(kind="float", multipliers=2.0), "out": None},
    "an epilogue of other columns": lambda n, o: {"epilogue": kernels.Epilogue(kind="float", multipliers=np.ones(7))},
    "no residual": lambda n, o: {"residual": None},
    "an unasked residual": lambda n, o: {"residual": signed(3, 18)},
    "another out": lambda n, o: {"out": None if o.get("out") is None else np.zeros_like(o["out"])},
    "no out": lambda n, o: {"out": None},
    "out of another dtype": lambda n, o: {"out": np.zeros((3, 18), np.int16)},
    "out that is no array": lambda n, o: {"out": [0]},
    "threads": lambda n, o: {"threads": 2},
    "no threads": lambda n, o: {"threads": 0},
    "True as threads": lambda n, o: {"threads": True},
    "strides": lambda n, o: {"strides": (1, 1)},
    "strides of floats": lambda n, o: {"strides": (1.0, 1.0)},
    "strides of arrays": lambda n, o: {"strides": (np.array([1]), np.array([2, 2]))},
    "pads": lambda n, o: {"pads": [1, 0, 1, 0]},
    "layout": lambda n, o: {"layout": "NCHW", "out": None},
    "no layout": lambda n, o: {"layout": "CHWN"},
}  # fmt: skip


def outcome(call: Any, packed: Any, name: str, operands: dict[str, Any]) -> tuple[str, Any, Any]:
    rest = {key: value for key, value in operands.items() if key != name}
    try:
        made = call(operands[name], packed, **rest)
    except (Error, TypeError, ValueError) as error:
        return type(error).__name__, str(error), None
    return made.dtype.name, made.shape, made.tobytes()


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("kind", CALLS)
def test_a_change_has_the_outcome_of_a_first_call(kind: str, how: str) -> None:
    make, call, operands = CALLS[kind]
    name = first(call, operands)
    try:
        changed = {**operands, **CHANGES[how](name, operands)}
    except (ValueError, TypeError):
        pytest.skip("these operands have no such change")
    packed = make()
    before = outcome(call, packed, name, operands)
    if how == "another dtype" and operands[name].dtype == np.int8:  # in place: the same array as in the call before
        same = operands[name].copy()
        outcome(call, packed, name, {**operands, name: same})
        same.dtype = np.uint8
        changed[name] = same
    fresh = dataclasses.replace(packed)  # the same weights, no memory
    assert outcome(call, packed, name, changed) == outcome(call, fresh, name, changed)
    assert outcome(call, packed, name, operands) == before


@pytest.mark.parametrize("kind", CALLS)
def test_a_repeated_call_is_not_checked_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, call, operands = CALLS[kind]
    packed, name = make(), first(call, operands)
    want = outcome(call, packed, name, operands)
    for module in ("products", "windows", "int4", "scaled"):
        monkeypatch.setattr(f"hwq.kernels.{module}.dense", None)
    other = {
        **operands,
        name: operands[name].copy(),
        "bias": None if operands.get("bias") is None else operands["bias"].copy(),
    }
    assert outcome(call, packed, name, other) == want


def test_an_out_that_overlaps_an_input_is_refused_after_one_that_did_not() -> None:
    memory = np.zeros(300, np.int8)
    a, square = memory[:256].reshape(16, 16), kernels.pack(signed(16, 16))
    epilogue = kernels.Epilogue(kind="requant", multipliers=0.01)
    kernels.gemm(a, square, epilogue=epilogue, out=np.zeros((16, 16), np.int8))
    for first in (0, 40):
        with pytest.raises(Error, match="out overlaps an input"):
            kernels.gemm(a, square, epilogue=epilogue, out=memory[first : first + 256].reshape(16, 16))
    a, second = signed(16, 16), a.copy()
    kernels.gemm(a, square, epilogue=JOINED, residual=second, out=np.zeros((16, 16), np.int8))
    with pytest.raises(Error, match="out overlaps an input"):
        kernels.gemm(a, square, epilogue=JOINED, residual=second, out=second)


def test_an_out_that_became_read_only_is_refused() -> None:
    a, packed, out = signed(3, 64), kernels.pack(INT8), np.zeros((3, 18), np.int32)
    kernels.gemm(a, packed, out=out)
    out.flags.writeable = False
    with pytest.raises(Error, match="writable"):
        kernels.gemm(a, packed, out=out)


def test_a_bias_that_changes_in_place_is_read_anew() -> None:
    a, packed, bias = signed(3, 64), kernels.pack(INT8), BIAS.copy()
    one = kernels.gemm(a, packed, bias=bias)
    bias += 1
    assert np.array_equal(kernels.gemm(a, packed, bias=bias), one + 1)
    spare = 2**31 - 255 * int(np.abs(INT8.astype(np.int64)).sum(0).max())
    for size in (spare - 1, 1 - spare):  # the greatest that is proven for every activation and zero point
        bias[:] = size
        assert np.array_equal(kernels.gemm(a, packed, bias=bias), one - BIAS + size)
    for size in (2**31 - 1, -(2**31)):
        bias[3] = size
        with pytest.raises(Error, match="may overflow"):
            kernels.gemm(a, packed, bias=bias)
        assert np.array_equal(
            kernels.gemm(a, packed, bias=bias, wrap=True),
            kernels.gemm(a, dataclasses.replace(packed), bias=bias, wrap=True),
        )


def test_remembering_keeps_no_operand_and_no_weights_alive() -> None:
    gc.disable()
    try:
        for kind, (make, call, operands) in CALLS.items():
            packed, name = make(), first(call, operands)
            watched = {key: value.copy() for key, value in operands.items() if isinstance(value, np.ndarray)}
            outcome(call, packed, name, {**operands, **watched})
            gone = [weakref.ref(value) for value in (packed, *watched.values())]
            del packed
            watched.clear()
            assert [ref() for ref in gone] == [None] * len(gone), kind
    finally:
        gc.enable()


def test_threads_that_call_with_other_shapes_do_not_disturb_each_other() -> None:
    packed = kernels.pack(INT8)
    inputs = [signed(rows, 64) for rows in range(1, 9)]
    wanted = [a.astype(np.int64) @ INT8.astype(np.int64) + 3 * rows for rows, a in enumerate(inputs)]

    def many(rows: int) -> bool:
        bias = np.full(18, 3 * rows, np.int32)
        return all(np.array_equal(kernels.gemm(inputs[rows], packed, bias=bias), wanted[rows]) for _ in range(300))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, range(8)))
