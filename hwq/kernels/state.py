"""The floating-point state that arithmetic assumes, around Python code that computes with NumPy between kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hwq import _kernels

__all__ = ["default_state"]


@contextmanager
def default_state() -> Iterator[None]:
    """Nearest even, subnormals kept, no traps and no warnings of NumPy, in this thread; the caller's state comes back. Also a decorator.

    Examples
    --------
    >>> with default_state():
    ...     float(1.0 + 2.0**-60)
    1.0
    """
    before = _kernels.enter_state()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        _kernels.leave_state(before)
