"""Rounding weights to their grid so that the layer's output, not the weight, is nearest: GPTQ and coordinate descent.

For one output channel with weights w and stored integers q (scale s, zero point z) the error of the layer's output is

    E |(w^ - w) x|^2 = d H d,   d = s (q - z) - w,   H = E[x x^T]   (`hwq.statistics.Moments`)

and channels do not meet, so every channel is a quadratic problem over integers, solved for all channels at once.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.cholesky import inverse_factor, product

__all__ = ["Quadratic", "coordinate", "gptq", "nearest"]

Floats = NDArray[np.float64]

# The least damping: so that inputs that never vary do not decide (Frantar et al. 2022).
DAMPING = 0.01
# Passes of the descent; each only lowers the error, and small layers settle in a few.
PASSES = 20
# Columns whose corrections are gathered before they reach the rest (memory traffic, no arithmetic).
BLOCK = 64


class Quadratic:
    """H of one layer: one (K, K) matrix for all channels, or one for each, (channels, K, K), as in a depthwise layer.

    `damping` is the share of the mean diagonal that is added to H; one number, or one a channel.
    """

    def __init__(self, moment: NDArray[Any], damping: float | Floats = DAMPING):
        diagonal = np.diagonal(moment, axis1=-2, axis2=-1)
        mean = diagonal.mean(axis=-1)
        mean = np.where(mean > 0.0, mean, 1.0)
        self.matrix: Floats = moment + (damping * mean)[..., None, None] * np.eye(moment.shape[-1])
        self.shared = moment.ndim == 2

    @cached_property
    def diagonal(self) -> Floats:
        """H_kk, of shape (K,) or (channels, K)."""
        return np.asarray(np.diagonal(self.matrix, axis1=-2, axis2=-1))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Columns by falling H_kk."""
        weight = self.diagonal if self.shared else self.diagonal.mean(axis=0)
        return np.argsort(-weight, kind="stable")

    @cached_property
    def factor(self) -> Floats:
        """Upper triangular U with inv(H) = U^T U, in `order`."""
        ordered = self.matrix[..., self.order[:, None], self.order]
        return inverse_factor(ordered)

    def solved(self, rows: Floats) -> Floats:
        """``rows inv(H)``: rows of (n, K) under the shared matrix, of (channels, n, K) under each its own."""
        upper = self.factor
        made = np.empty(rows.shape)
        made[..., self.order] = product(product(rows[..., self.order], np.swapaxes(upper, -1, -2)), upper)
        return made

    def times(self, difference: Floats) -> Floats:
        """``d H`` for each channel."""
        if self.shared:
            return product(difference, self.matrix)
        return np.asarray((difference[:, :, None] * self.matrix).sum(axis=1))

    def column(self, k: int, channels: NDArray[np.int64]) -> Floats:
        """Row k of H for these channels."""
        return np.asarray(self.matrix[k] if self.shared else self.matrix[channels, k])

    def error(self, weights: Floats, stored: Floats, scale: Floats, zero: Floats) -> Floats:
        """``d H d`` of every channel."""
        difference = (stored - zero) * scale - weights
        return np.asarray((self.times(difference) * difference).sum(axis=1))


def nearest(weights: Floats, scale: Floats, zero: Floats, low: int, high: int) -> Floats:
    """Integers nearest to the weights: ``clip(rint(w / s) + z)``. All arrays are (channels, K) or broadcast to it."""
    return np.asarray(np.clip(np.rint(weights / scale) + zero, low, high))


def gptq(weights: Floats, scale: Floats, zero: Floats, low: int, high: int, quadratic: Quadratic) -> Floats:
    """Integers by GPTQ (Frantar et al., arXiv 2210.17323): column by column, each error handed on to the columns after it.

    Columns go in the order of falling H_kk. `scale` and `zero` broadcast to (channels, K): groups are fixed before.
    """
    order, factor = quadratic.order, quadratic.factor
    # Columns lead, so that each step reads and writes whole rows of memory.
    left = np.ascontiguousarray(weights.T[order])
    steps, zeros = (np.broadcast_to(one, weights.shape).T for one in (scale, zero))
    stored = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        handed = np.zeros((stop - start, left.shape[1]))
        for column in range(start, stop):
            step, point = steps[order[column]], zeros[order[column]]
            stored[column] = np.clip(np.rint(left[column] / step) + point, low, high)
            row = np.moveaxis(factor[..., column, column:stop], -1, 0)
            off = (left[column] - (stored[column] - point) * step) / row[0]
            left[column:stop] -= (row[:, None] if quadratic.shared else row) * off
            handed[column - start] = off
        rest = factor[..., start:stop, stop:]
        if quadratic.shared:
            left[stop:] -= product(rest.T, handed)
        else:
            left[stop:] -= (rest * handed.T[:, :, None]).sum(axis=1).T
    made = np.empty(weights.shape)
    made[:, order] = stored.T
    return made


def coordinate(
    weights: Floats, scale: Floats, zero: Floats, low: int, high: int, quadratic: Quadratic, start: Floats | None = None
) -> Floats:
    """Integers by coordinate descent on ``d H d``, from `start` (default: the better of nearest and GPTQ, by channel).

    With the other weights fixed, the best integer of weight k is the one nearest to ``q_k - g_k / (s H_kk)``, g = H d.
    Each pass visits every weight; it ends when a pass changes nothing, so the result is a minimum in every single weight.
    """
    if start is None:
        plain = nearest(weights, scale, zero, low, high)
        other = gptq(weights, scale, zero, low, high, quadratic)
        better = quadratic.error(weights, plain, scale, zero) <= quadratic.error(weights, other, scale, zero)
        start = np.where(better[:, None], plain, other)
    stored = start.copy()
    steps, zeros = np.broadcast_to(scale, weights.shape), np.broadcast_to(zero, weights.shape)
    gradient = quadratic.times((stored - zeros) * steps - weights)
    slope = 1.0 / (quadratic.diagonal * steps)
    for _ in range(PASSES):
        changed = 0
        for k in quadratic.order:
            now = stored[:, k]
            wanted = now - gradient[:, k] * slope[:, k]
            best = np.clip(np.rint(wanted), low, high)
            # A tie at one half gains nothing: stay, so that the descent ends.
            moved = np.flatnonzero((best != now) & (np.abs(wanted - now) - np.abs(wanted - best) > 1e-9))
            if moved.size:
                changed += moved.size
                move = (best[moved] - now[moved]) * steps[moved, k]
                stored[moved, k] = best[moved]
                gradient[moved] += move[:, None] * quadratic.column(int(k), moved)
        if not changed:
            break
    return stored
