"""A layer's moments, and the integer problem that they pose (`hwq.rounding`): target, candidates' errors, rounding.

Groups lead every array; channels of a group stand together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.cholesky import product
from hwq.graph import Array
from hwq.rounding import Quadratic, coordinate, gptq
from hwq.statistics import Moments

__all__ = ["Data", "Problem"]

Floats = NDArray[np.float64]

# Inputs of a group up to which the channels of all groups are rounded side by side, each with its own copy of the matrix.
SMALL = 64
# Where the variance is less than this share of the second moment, float32 products are taken about the mean.
VARYING = 1e-2
# Share of the second moment that its difference from the squared mean may be off by.
CANCELLED = 1e-10


class Data:
    """Means of x and x^, H and E[x x^^T] of one layer, about the means if they are corrected; groups lead each.

    H and E[x x^^T] are in a unit of their own: what is done with them does not depend on it.
    """

    def __init__(self, mean: Floats, mean_after: Floats, moment: Floats, cross: Floats):
        self.mean, self.mean_after, self.moment, self.cross = mean, mean_after, moment, cross

    @staticmethod
    def of(before: Array, after: Array, center: bool) -> Data:
        """From the rows (groups, rows, K) of both."""
        mean, mean_after = (rows.mean(axis=1, dtype=np.float64) for rows in (before, after))
        # Squares of float32 leave float32 from 2^64 on and below 2^-75; a power of two takes nothing away.
        largest = max(abs(float(edge)) for rows in (before, after) for edge in (rows.min(), rows.max()))
        unit = float(np.exp2(np.frexp(largest)[1])) if largest else 1.0
        moment, cross = (_product(one, after, None, None, unit) for one in (after, before))
        if center:
            units, units_after = mean / unit, mean_after / unit
            size = np.trace(moment.sum(axis=0))
            moment = moment - units_after[:, :, None] * units_after[:, None, :]
            cross = cross - units[:, :, None] * units_after[:, None, :]
            if np.trace(moment.sum(axis=0)) < VARYING * size:
                moment, cross = (
                    _product(one, after, about, mean_after, unit)
                    for one, about in ((after, mean_after), (before, mean))
                )
        return Data(mean, mean_after, moment, cross)

    @staticmethod
    def known(found: Moments, center: bool) -> Data:
        """From a calibration's second moments: x^ = x."""
        mean, moment = found.total / found.count, found.matrix / found.count
        if center:
            # What the subtraction rounds stays below what is added (1e-16 a term), so inputs that hardly vary keep H positive.
            size = moment.diagonal(axis1=1, axis2=2).mean(axis=1)[:, None, None]
            moment = moment - mean[:, :, None] * mean[:, None, :] + CANCELLED * size * np.eye(moment.shape[1])
        return Data(mean, mean, moment, moment)

    def target(self, weights: Floats) -> Floats:
        """T, the least-squares weights for x^; `weights` are (channels, K), channels of a group together."""
        groups = len(self.moment)
        split = weights.reshape(groups, -1, weights.shape[1])
        quadratic = Quadratic(self.moment)
        right = self.cross + quadratic.matrix - self.moment
        return quadratic.solved(product(split, right)).reshape(weights.shape)


def _product(left: Array, right: Array, off: Floats | None, off_right: Floats | None, unit: float) -> Floats:
    """Mean over the rows of the outer products about `off` and `off_right`, in float64 over slices of float32."""
    total = np.zeros((left.shape[0], left.shape[2], right.shape[2]))
    for start in range(0, left.shape[1], 4096):
        rows, others = (
            (one[:, start : start + 4096] - (0.0 if about is None else about[:, None, :])) / unit
            for one, about in ((left, off), (right, off_right))
        )
        total += kernels.matmul_f32(rows.astype(np.float32).transpose(0, 2, 1), others.astype(np.float32))
    return np.asarray(total / right.shape[1])


class Problem:
    """A layer's quadratic problem: one matrix for all channels, one for each, or one for the channels of each group."""

    def __init__(self, data: Data, channels: int):
        moment, each = data.moment, channels // len(data.moment)
        self.diagonal = np.repeat(np.diagonal(moment, axis1=1, axis2=2), each, axis=0)
        if len(moment) == 1:
            self.parts = [(slice(None), Quadratic(moment[0]))]
        elif moment.shape[1] <= SMALL:
            self.parts = [(slice(None), Quadratic(np.repeat(moment, each, axis=0)))]
        else:
            self.parts = [(slice(at * each, (at + 1) * each), Quadratic(one)) for at, one in enumerate(moment)]

    def rounded(
        self, weights: Floats, steps: Floats, points: Floats, low: int, high: int, start: Floats | None = None
    ) -> Floats:
        """By GPTQ; by coordinate descent from `start`."""
        made = []
        for rows, one in self.parts:
            given = weights[rows], steps[rows], points[rows], low, high, one
            made.append(gptq(*given) if start is None else coordinate(*given, start=start[rows]))
        return np.concatenate(made)

    def error(self, weights: Floats, stored: Floats, steps: Floats, points: Floats) -> Floats:
        """Of every channel."""
        return np.concatenate([one.error(weights[r], stored[r], steps[r], points[r]) for r, one in self.parts])
