"""The entropy (KL) calibration of TensorRT: the clip after which 128 levels tell most about the distribution of |x|.

Migacz, "8-bit inference with TensorRT", GTC 2017, s7310: of a histogram H of |x| with at most 2048 bins of width w,

* for i = 128 ... : P = H[0..i), with everything beyond added to its last bin; Q merges H[0..i), without what lies beyond,
  into 128 levels (i // 128 bins each, the last takes the rest) and spreads every level evenly over its bins that are not
  empty; both are normalised and smoothed (1e-4 on empty bins, taken from the others in proportion);
* the clip is ``(m + 0.5) w`` for the i = m of least ``KL(P || Q)``.

The first bin, where a ReLU puts its zeros, counts as much as the second. A tensor without negative values that is stored
unsigned has 256 levels in the place of 128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwq.statistics import BINS, Statistics

__all__ = ["BINS_LIMIT", "LEVELS", "entropy_clip", "folded_histogram"]

LEVELS = 128
BINS_LIMIT = 2048
SMOOTHING = 1e-4

Floats = NDArray[np.float64]


def folded_histogram(statistics: Statistics) -> tuple[Floats, float]:
    """Histogram of |x| over at most `BINS_LIMIT` bins, and their width; two neighbours are merged as often as needed."""
    half = BINS // 2
    magnitudes = statistics.histogram[half:] + statistics.histogram[:half][::-1]
    used = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 0
    width = statistics.width
    while used > BINS_LIMIT:
        magnitudes = magnitudes.reshape(-1, 2).sum(axis=1)
        used, width = -(-used // 2), 2 * width
    return magnitudes[:used].astype(np.float64), width


def entropy_clip(histogram: Floats, width: float, levels: int = LEVELS) -> float:
    """The clip of least divergence; the whole range where the histogram has no more bins than levels."""
    counts = histogram.copy()
    if len(counts) <= levels:
        return len(counts) * width
    counts[0] = counts[1]
    best, least = len(counts), np.inf
    beyond = np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
    for size in range(levels, len(counts) + 1):
        reference = counts[:size].copy()
        reference[-1] += beyond[size]
        divergence = _divergence(reference, _requantized(counts[:size], levels))
        if divergence < least:
            best, least = size, divergence
    return (best + 0.5) * width


def _requantized(counts: Floats, levels: int) -> Floats:
    step = len(counts) // levels
    level = np.minimum(np.arange(len(counts)) // step, levels - 1)
    starts = np.arange(levels) * step
    filled = counts > 0
    masses, members = np.add.reduceat(counts, starts), np.add.reduceat(filled.astype(np.float64), starts)
    spread = np.divide(masses, members, out=np.zeros(levels), where=members > 0)
    return np.asarray(np.where(filled, spread[level], 0.0))


def _divergence(left: Floats, right: Floats) -> float:
    p, q = _smoothed(left), _smoothed(right)
    if p is None or q is None:
        return float(np.inf)
    return float((p * np.log(p / q)).sum())


def _smoothed(counts: Floats) -> Floats | None:
    total = counts.sum()
    if total <= 0:
        return None
    share = counts / total
    empty = share == 0
    zeros, others = int(empty.sum()), len(share) - int(empty.sum())
    taken = SMOOTHING * zeros / others
    made = np.where(empty, SMOOTHING, share - taken * share * others)
    return np.asarray(made) if (made > 0).all() else None
