"""Checks and conversions that every kernel's operands pass, and the split of rows over threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hwq import _kernels
from hwq.errors import Error

Array = NDArray[Any]
Run = Callable[[Array, Array | None, Array | None, Array | None], Array]  # of a, bias, residual and out, all checked

TYPES: dict[np.dtype[Any], int] = {np.dtype(name): code for name, code in _kernels.TYPES.items()}
NAMES: dict[np.dtype[Any], str] = {dtype: dtype.name for dtype in TYPES}  # numpy makes a name anew at every asking
RANGES = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
}

ANY_BIAS = 2**32  # more than the size of every int32


def dense(array: Any, name: str, dtypes: Sequence[DTypeLike]) -> Array:
    """`array` as a C-contiguous, native-endian array of one of `dtypes`; copied only where it must be."""
    if type(array) is np.ndarray and array.flags.c_contiguous and NAMES.get(array.dtype) in dtypes:
        return array  # a small product takes microseconds: nothing to do, nothing done
    given = array_of(array, name)
    if given.dtype.newbyteorder("=") not in [np.dtype(d) for d in dtypes]:
        raise Error(f"{name} has dtype {given.dtype}", remedy=f"pass {' or '.join(np.dtype(d).name for d in dtypes)}")
    return np.ascontiguousarray(given, given.dtype.newbyteorder("=")).reshape(given.shape)


def array_of(value: Any, name: str) -> Array:
    """What NumPy makes of `value`."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise Error(f"{name} is no array", why=str(error)) from None


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Uninitialized.

    Raises
    ------
    Error
        No address space holds such a shape; what only memory does not hold is a MemoryError.
    """
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        raise Error(f"a result of shape {shape} is too large", why=str(error)) from None


def in_memory_order(array: Array) -> Array | None:
    """The elements of a dense array as one line, without a copy, whatever the order of its axes; None if it has gaps."""
    lines = array.ravel(order="K")
    return lines if np.may_share_memory(lines, array) else None


def align(count: int, dtype: Any) -> Array:
    """Uninitialized, on a 64-byte boundary."""
    size = np.dtype(dtype).itemsize
    raw = np.empty(count * size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * size].view(dtype)


def output(out: Array | None, shape: tuple[int, ...], dtype: DTypeLike, *inputs: Array | None) -> Array:
    """`out` itself after checks, or a new array."""
    if out is None:
        return empty(shape, dtype)
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or (NAMES.get(out.dtype) != dtype and out.dtype != np.dtype(dtype))
    ):
        raise Error(
            f"out must be an array of shape {shape} and dtype {np.dtype(dtype).name}",
            why=f"it is {getattr(out, 'shape', type(out).__name__)} {getattr(out, 'dtype', '')}",
        )
    flags = out.flags
    if not flags.c_contiguous or not flags.writeable:
        raise Error("out must be C-contiguous and writable")
    for array in inputs:
        if array is not None and np.may_share_memory(out, array):
            raise Error("out overlaps an input", remedy="pass another array")
    return out


def zero_point(value: Any, dtype: np.dtype[Any], name: str) -> int:
    """A zero point inside the range of its type."""
    point = integer(value, name)
    lo, hi = RANGES[NAMES[dtype]]
    if not lo <= point <= hi:
        raise Error(f"{name} {point} does not fit {dtype.name}")
    return point


def floats(values: Any, dtype: DTypeLike, shape: tuple[int, ...] | None = None) -> Array:
    """`values` as a fresh dense array of a float type, rounded to nearest whatever state the caller computes in."""
    state = _kernels.enter_float_state()
    try:
        return np.array(values if shape is None else np.broadcast_to(values, shape), dtype, order="C")
    except (TypeError, ValueError) as error:
        raise Error("scales are no numbers", why=str(error)) from None
    finally:
        _kernels.set_float_state(state)


def integer(value: Any, name: str) -> int:
    """A Python int from any integer scalar or one-element array."""
    if type(value) is int:
        return value
    given = array_of(value, name)
    if given.size != 1 or given.dtype.kind not in "iu":
        raise Error(f"{name} must be one integer")
    return int(given.reshape(())[()])


def real(value: Any, name: str) -> float:
    """A Python float from any real scalar or one-element array."""
    if type(value) is float:
        return value
    given = array_of(value, name)
    if given.size != 1 or given.dtype.kind not in "iuf":
        raise Error(f"{name} must be one number")
    return float(given.reshape(())[()])


def interval(bounds: Any, name: str) -> tuple[float, float]:
    """Two numbers, the second at least the first."""
    try:
        lo, hi = (real(bound, name) for bound in bounds)
    except (TypeError, ValueError):
        raise Error(f"{name} must be two numbers") from None
    if not lo <= hi:
        raise Error(f"{name} ({lo}, {hi}) holds no value")
    return lo, hi


def dtype_of(given: Any, name: str) -> np.dtype[Any]:
    """What NumPy takes for a dtype."""
    try:
        made: np.dtype[Any] = np.dtype(given)
    except (TypeError, ValueError, IndexError) as error:
        raise Error(f"{name} is no dtype", why=str(error)) from None
    return made


def one_of(value: Any, options: Iterable[str], what: str) -> str:
    """A name among others; `what` they name."""
    if not isinstance(value, str) or value not in options:
        raise Error(f"there is no {what} {value}", remedy=f"one of: {', '.join(options)}")
    return value


def sizes(value: int | Sequence[int], count: int, name: str, least: int) -> tuple[int, ...]:
    """`count` integers below 2^31, each at least `least`; one integer stands for all."""
    try:
        given = (value,) * count if isinstance(value, int) else tuple(integer(v, name) for v in value)
    except TypeError:
        raise Error(f"{name} must be {count} integers") from None
    if len(given) != count or any(not least <= v < 2**31 for v in given):
        raise Error(f"{name} must be {count} integers of at least {least}, below 2^31", why=f"it is {given}")
    return given


def int32_bias(bias: Any, columns: int) -> Array | None:
    """Bias as int32, one per column."""
    if bias is None:
        return None
    given = dense(bias, "bias", ["int32", "int64"])
    if given.shape != (columns,):
        raise Error(f"bias has shape {given.shape}", why=f"there are {columns} output columns")
    if given.dtype == np.int64:
        if given.size and (given.min() < -(2**31) or given.max() >= 2**31):
            raise Error("bias does not fit int32")
        given = given.astype(np.int32)
    return given


# Threads that all callers share: as many as the machine has processors, or some, so that any count of threads is really split.
_WORKERS = max(os.cpu_count() or 1, 64) - 1
_LOCK = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """In a forked child there are no threads, and the lock may be held by one of them."""
    global _pool, _LOCK
    _pool, _LOCK = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def over_ranges(count: int, threads: int, work: Callable[[int, int], None], *, grain: int = 1) -> None:
    """Call ``work(first, last)`` on a static split of range(count) into at most `threads` runs of whole `grain`.

    Runs that find no thread, because the system gives no more or the interpreter is closing, are the caller's own. Whatever
    interrupts the caller, nobody writes any more when this has returned.

    Raises
    ------
    Error
        `threads` is not an integer, or below 1.
    """
    global _pool
    threads = integer(threads, "threads")
    if threads < 1:
        raise Error(f"threads must be at least 1, not {threads}")
    runs = 1 if threads == 1 else min(threads, units := -(-count // grain), _WORKERS + 1)
    if runs <= 1:
        work(0, count)
        return
    pending = deque((units * i // runs * grain, min(count, units * (i + 1) // runs * grain)) for i in range(runs))
    inside, is_open, gate = 0, True, threading.Condition()
    problems: list[BaseException] = []

    def serve() -> None:
        while True:
            try:
                first, last = pending.popleft()
            except IndexError:
                return
            work(first, last)

    def help_out() -> (
        None
    ):  # may begin when the caller is gone: a pool that got no thread has it in its queue nevertheless
        nonlocal inside
        with gate:
            if not is_open:
                return
            inside += 1
        try:
            serve()
        except BaseException as error:
            problems.append(error)
        finally:
            with gate:
                inside -= 1
                gate.notify_all()

    waiting: list[Future[None]] = []
    try:
        with _LOCK:
            if _pool is None:
                _pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="hwq-kernels")
            pool = _pool
        with suppress(RuntimeError):
            for _ in range(1, runs):
                waiting.append(pool.submit(help_out))
        serve()
    finally:
        pending.clear()
        for future in waiting:
            future.cancel()
        while True:
            try:
                with gate:
                    is_open = False
                    gate.wait_for(lambda: not inside)
                break
            except BaseException as error:  # a signal's: the runs go on, and so do we
                problems.append(error)
    if problems:
        raise problems[0]


def over_tiles(rows: int, columns: int, threads: int, work: Callable[[int, int, int, int], None]) -> None:
    """Call ``work(first_row, rows, first_strip, strips)`` on runs of rows, or of strips where rows are too few to split."""
    strips, threads = -(-columns // _kernels.STRIP), integer(threads, "threads")
    if threads == 1:
        work(0, rows, 0, strips)
    elif rows >= 4 * threads or strips < threads:
        over_ranges(rows, threads, lambda first, last: work(first, last - first, 0, strips), grain=4)
    else:
        over_ranges(strips, threads, lambda first, last: work(0, rows, first, last - first))
