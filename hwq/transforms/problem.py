"""A layer's moments, and the integer problem that they pose (`hwq.rounding`): target, candidates' errors, rounding.

Groups lead every array; channels of a group stand together.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from hwq import kernels
from hwq.cholesky import product
from hwq.graph import Array
from hwq.rounding import DAMPING, Quadratic, coordinate, gptq
from hwq.statistics import Moments

__all__ = ["Data", "Problem"]

Floats = NDArray[np.float64]

# Inputs of a group up to which the channels of all groups are rounded side by side, each with its own copy of the matrix.
SMALL = 64
# Slices of the rows whose moments are compared to tell how sure their mean is; rows of one sample stand together.
SLICES = 16
# Rows of a slice at most: float32 sums of so many products are added in float64.
SLICE = 4096
# Damping beyond this share of the mean diagonal leaves weights nearly as they are.
MOST_DAMPING = 1.0
# Share of the second moment that its difference from the squared mean may be off by.
CANCELLED = 1e-10


class Data:
    """Means of x and x^, H and E[x x^^T] of one layer, about the means if they are corrected; groups lead each.

    `aside`, `aside_mean`: E[r x^^T] (channels, K) and E[r] (channels,), where the layer's output is added to another value that the
    quantized model has off by r = s - s^ already: the sum is to be near, so W x + r is what W^ x^ is to meet.

    H, E[x x^^T] and E[r x^^T] are in a unit of their own: what is done with them does not depend on it. `damping`: one number a group.
    """

    def __init__(
        self, mean: Floats, mean_after: Floats, moment: Floats, cross: Floats, damping: Floats,
        aside: Floats | None = None, aside_mean: Floats | float = 0.0,
    ):  # fmt: skip
        self.mean, self.mean_after, self.moment, self.cross = mean, mean_after, moment, cross
        self.damping, self.aside, self.aside_mean = damping, aside, aside_mean

    @staticmethod
    def of(before: Array, after: Array, center: bool, beside: Array | None = None) -> Data:
        """From the rows (groups, rows, K) of both, and r (groups, rows, channels of a group)."""
        mean, mean_after = (rows.mean(axis=1, dtype=np.float64) for rows in (before, after))
        # Squares of float32 leave float32 from 2^64 on and below 2^-75; a power of two takes nothing away.
        largest = max(abs(float(edge)) for rows in (before, after) for edge in (rows.min(), rows.max()))
        unit = max(float(np.exp2(np.frexp(largest)[1])), 2.0**-126) if largest else 1.0  # whose reciprocal is a float32
        x, x_after = _about(before, mean, center, unit), _about(after, mean_after, center, unit)
        moment, error = _product(x_after, x_after)
        damping = np.maximum(DAMPING, _uncertainty(moment, error))
        cross, _ = _product(x, x_after)
        if beside is None:
            return Data(mean, mean_after, moment, cross, damping)
        off = beside.mean(axis=1, dtype=np.float64)
        aside, _ = _product(_about(beside, off, center, unit), x_after)
        return Data(mean, mean_after, moment, cross, damping, aside.reshape(-1, aside.shape[-1]), off.reshape(-1))

    @staticmethod
    def known(found: Moments, center: bool) -> Data:
        """From a calibration's second moments: x^ = x."""
        mean, moment = found.total / found.count, found.matrix / found.count
        if center:
            # What the subtraction rounds stays below what is added (1e-16 a term), so inputs that hardly vary keep H positive.
            size = moment.diagonal(axis1=1, axis2=2).mean(axis=1)[:, None, None]
            moment = moment - mean[:, :, None] * mean[:, None, :] + CANCELLED * size * np.eye(moment.shape[1])
        return Data(mean, mean, moment, moment, np.full(len(moment), DAMPING))

    def target(self, weights: Floats) -> Floats:
        """T, the least-squares weights for x^; `weights` are (channels, K), channels of a group together."""
        groups = len(self.moment)
        split = weights.reshape(groups, -1, weights.shape[1])
        quadratic = Quadratic(self.moment, self.damping)
        right = product(split, self.cross + quadratic.matrix - self.moment)
        if self.aside is not None:
            right += self.aside.reshape(right.shape)
        return quadratic.solved(right).reshape(weights.shape)


def _about(rows: Array, mean: Floats, center: bool, unit: float) -> Array:
    """The rows less their means, in the unit, as float32."""
    off = (mean if center else np.zeros_like(mean))[:, None, :].astype(np.float32)
    return np.asarray((rows - off) * np.float32(1.0 / unit))


def _product(left: Array, right: Array) -> tuple[Floats, Floats]:
    """Mean of the rows' outer products (groups, columns, columns), and its squared error as slices of the rows tell it (groups,)."""
    count = left.shape[1]
    cuts = np.linspace(0, count, max(min(SLICES, count), -(-count // SLICE)) + 1).astype(int).tolist()
    total = np.zeros((len(left), left.shape[2], right.shape[2]))
    squares = np.zeros(len(left))
    for start, stop in itertools.pairwise(cuts):
        part = kernels.matmul_f32(left[:, start:stop].transpose(0, 2, 1), right[:, start:stop]).astype(np.float64)
        total += part
        squares += np.square(part).sum(axis=(1, 2)) / (stop - start)
    mean = total / count
    spread = squares / count - np.square(mean).sum(axis=(1, 2))
    return mean, np.maximum(spread, 0.0) / max(len(cuts) - 2, 1)


def _uncertainty(moment: Floats, error: Floats) -> Floats:
    """The damping under which H is nearest to the true one, a group (Ledoit and Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices", theorem 2.1): ``share m I + (1 - share) H`` with m the mean of H's diagonal and
    share = H's squared error over its squared distance from m I.
    """
    size = moment.shape[-1]
    level = np.trace(moment, axis1=1, axis2=2) / size
    distance = np.square(moment - level[:, None, None] * np.eye(size)).sum(axis=(1, 2))
    share = np.minimum(error / np.where(distance > 0.0, distance, 1.0), MOST_DAMPING / (1.0 + MOST_DAMPING))
    return np.asarray(share / (1.0 - share))


class Problem:
    """A layer's quadratic problem: one matrix for all channels, one for each, or one for the channels of each group."""

    def __init__(self, data: Data, channels: int):
        moment, each = data.moment, channels // len(data.moment)
        self.diagonal = np.repeat(np.diagonal(moment, axis1=1, axis2=2), each, axis=0)
        if len(moment) == 1:
            self.parts = [(slice(None), Quadratic(moment[0], data.damping[0]))]
        elif moment.shape[1] <= SMALL:
            self.parts = [(slice(None), Quadratic(np.repeat(moment, each, axis=0), np.repeat(data.damping, each)))]
        else:
            self.parts = [
                (slice(at * each, (at + 1) * each), Quadratic(one, data.damping[at])) for at, one in enumerate(moment)
            ]

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
