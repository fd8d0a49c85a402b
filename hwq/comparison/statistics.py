"""Statistics of two models' outputs: distributions and McNemar's exact test."""

from __future__ import annotations

import math

import numpy as np

from hwq.graph import Array

__all__ = ["PROBABILITY_FLOOR", "decibels", "distributions", "mcnemar", "without_masks"]

# A probability below this counts as this in the divergence, so that one stored as 0 does not make it infinite.
PROBABILITY_FLOOR = 1e-7


def decibels(signal: float, noise: float) -> float:
    """10 log10 of a ratio of powers: infinite where there is no noise, minus infinity where there is nothing else, or more than
    any number.
    """
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def without_masks(real: Array, found: Array) -> tuple[Array, Array]:
    """Both values with 0 in place of the infinities that both hold: equal, and of no power that a ratio could tell."""
    same = np.isinf(real) & (real == found)
    return (np.where(same, 0.0, real), np.where(same, 0.0, found)) if same.any() else (real, found)


def distributions(left: Array, right: Array) -> tuple[Array, Array]:
    """Both outputs as probabilities along the last axis: as they are where the float ones are, else by softmax."""
    sums = left.sum(axis=-1)
    already = bool(np.all(left >= 0)) and bool(np.all(np.abs(sums - 1) < 1e-3))
    return tuple(_floored(one if already else _softmax(one)) for one in (left, right))  # type: ignore[return-value]


def _softmax(x: Array) -> Array:
    most = x.max(axis=-1, keepdims=True)
    powers = np.exp(x - np.where(most == -np.inf, 0.0, most))
    sums = powers.sum(axis=-1, keepdims=True)
    return np.asarray(powers / np.where(sums == 0.0, 1.0, sums))


def _floored(p: Array) -> Array:
    bounded = np.maximum(p, PROBABILITY_FLOOR)
    return np.asarray(bounded / bounded.sum(axis=-1, keepdims=True))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test: two-sided binomial p of a split `gained` : `lost` when both sides are equally likely.

    ``p = min(1, 2 * sum over i <= min(gained, lost) of C(n, i) / 2^n)``, n = gained + lost (McNemar 1947, exact form).
    """
    n, least = gained + lost, min(gained, lost)
    # Whole numbers throughout: C(n, i) and 2^n are exact in Python.
    tail = sum(math.comb(n, i) for i in range(least + 1))
    return min(1.0, 2 * tail / 2**n) if n < 1024 else _long_tail(n, least)


def _long_tail(n: int, least: int) -> float:
    # 2^n leaves float64 above 1023: add logarithms instead.
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(least + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(term) for term in terms))
