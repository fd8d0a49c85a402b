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
    sums = _Sums(counts)
    divergences = np.concatenate([_divergences(sums, step, levels) for step in range(1, len(counts) // levels + 1)])
    best = int(np.argmin(divergences)) + levels if np.isfinite(divergences).any() else len(counts)
    return (best + 0.5) * width


class _Sums:
    """Sums over the first j bins, j = 0 ..., of H, of its filled bins and of H log H."""

    def __init__(self, counts: Floats):
        filled = counts > 0.0
        self.counts = counts
        self.mass, self.filled, self.entropy = (
            np.concatenate([[0.0], np.cumsum(part)])
            for part in (counts, filled, counts * np.log(np.where(filled, counts, 1.0)))
        )


def _divergences(sums: _Sums, step: int, levels: int) -> Floats:
    """``KL(P || Q)`` of every i with ``i // levels = step``, in closed form over the sums.

    All these candidates share their levels but the last, which grows bin by bin. With a_P, a_Q what smoothing leaves of a
    filled bin, T the total and C_i the mass of the first i bins, every bin but the last of P contributes
    ``a_P / T (h log(h / q) + h log(a_P C_i / (T a_Q)))``, and a level of mass M in m filled bins has q = M / m.
    """
    counts, total = sums.counts, sums.mass[-1]
    sizes = np.arange(step * levels, min((step + 1) * levels, len(counts) + 1))
    edges = np.arange(levels) * step
    inner = [array[edges[1:]] - array[edges[:-1]] for array in (sums.mass, sums.filled, sums.entropy)]
    outer = [array[sizes] - array[edges[-1]] for array in (sums.mass, sums.filled, sums.entropy)]
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = float(np.where(inner[1] > 0.0, inner[2] - inner[0] * np.log(inner[0] / inner[1]), 0.0).sum())
        level = outer[0] / outer[1]
        own = np.where(outer[1] > 0.0, outer[2] - outer[0] * np.log(level), 0.0)
        last, beyond, inside = counts[sizes - 1], total - sums.mass[sizes], sums.mass[sizes]
        empty = sizes - sums.filled[sizes]
        keeps = 1.0 - SMOOTHING * empty
        edge = last + beyond
        filled = np.where((last == 0.0) & (edge > 0.0), keeps + SMOOTHING, keeps)
        turn = np.log(filled * inside / (total * keeps))
        spread = shared + own - np.where(last > 0.0, last * np.log(last / level), 0.0) + (inside - last) * turn
        share = edge * filled / total
        at_edge = np.where(
            last > 0.0,
            share * (np.log(edge / level) + turn),
            np.where(edge > 0.0, share * np.log(share / SMOOTHING), 0.0),
        )
        found = filled / total * spread + at_edge
    return np.where((inside > 0.0) & (filled > 0.0) & (keeps > 0.0) & np.isfinite(found), found, np.inf)
