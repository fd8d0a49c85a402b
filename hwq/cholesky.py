"""Inverse Cholesky factors in one order of operations, so that what rests on them is the same on every CPU.

LAPACK's order, and with it the last bits, depends on the CPU that a BLAS finds. Here products are `hwq.kernels.matmul_f64`'s chains, and
all else is elementwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq import kernels

__all__ = ["inverse_factor", "product"]

Floats = NDArray[np.float64]

# Columns that are eliminated one by one before a product brings them to the rest.
BLOCK = 64


def inverse_factor(matrix: Floats) -> Floats:
    """Upper triangular U with ``inv(matrix) = U^T U``, of one symmetric positive definite matrix (..., K, K) or several.

    With J the exchange matrix and ``J A J = L L^T``, ``A = (J L J)(J L J)^T``, so ``U = J L^-1 J``: no inverse is factored.
    """
    left = np.array(matrix[..., ::-1, ::-1], order="C")
    size = left.shape[-1]
    inverse = np.zeros_like(left)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        before = left[..., start:stop, :start]
        # The block's columns as rows, so that each step reads and writes whole rows of memory.
        panel = np.array(np.swapaxes(left[..., start:, start:stop], -1, -2), order="C")
        made = np.zeros((*left.shape[:-2], stop - start, stop))
        made[..., start:] = np.eye(stop - start)
        if start:
            panel -= product(before, np.swapaxes(left[..., start:, :start], -1, -2))
            made[..., :start] = -product(before, inverse[..., :start, :start])
        for column in range(stop - start):
            panel[..., column, column:] /= np.sqrt(panel[..., column, column, None])
            row, rest = panel[..., column, :], slice(column + 1, stop - start)
            panel[..., rest, column + 1 :] -= row[..., rest, None] * row[..., None, column + 1 :]
            made[..., column, :] /= row[..., column, None]
            made[..., rest, :] -= row[..., rest, None] * made[..., column, None, :]
        left[..., start:, start:stop] = np.swapaxes(panel, -1, -2)
        inverse[..., start:stop, :stop] = made
    return np.asarray(inverse[..., ::-1, ::-1])


def product(left: Floats, right: Floats) -> Floats:
    """``left @ right`` of two matrices, or of as many as lead both, in the fixed order."""
    if left.ndim == 2:
        return kernels.matmul_f64(left, right)
    return np.stack([kernels.matmul_f64(one, other) for one, other in zip(left, right, strict=True)])
