"""The entropy calibration against a plain reading of its description, bin by bin, and what it does to known shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwq.entropy import BINS_LIMIT, entropy_clip, folded_histogram
from hwq.observers import activation_range
from hwq.plan import Activations
from hwq.statistics import observe


def by_hand(histogram, width, levels):
    """Migacz's pseudocode in lists and loops; nothing of hwq."""
    h = [float(count) for count in histogram]
    h[0] = h[1]
    best, least = None, math.inf
    for i in range(levels, len(h) + 1):
        p = h[:i]
        p[i - 1] += sum(h[i:])
        q = [0.0] * i
        per = i // levels
        for level in range(levels):
            first, last = level * per, (level + 1) * per if level < levels - 1 else i
            filled = [j for j in range(first, last) if h[j] > 0]
            for j in filled:
                q[j] = sum(h[first:last]) / len(filled)

        def smooth(values):
            total = sum(values)
            if total <= 0:
                return None
            shares = [value / total for value in values]
            zeros = sum(share == 0 for share in shares)
            given = 1e-4 * zeros
            made = [1e-4 if share == 0 else share - given * share for share in shares]
            return made if min(made) > 0 else None

        a, b = smooth(p), smooth(q)
        if a is None or b is None:
            continue
        divergence = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        if divergence < least - 1e-15:
            best, least = i, divergence
    return (best + 0.5) * width


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [8, 16])
def test_equals_the_pseudocode(seed, levels):
    rng = np.random.default_rng(seed)
    histogram = np.floor(1e4 * np.exp(-np.arange(120) / rng.uniform(5, 40))) * rng.integers(0, 3, 120)
    histogram[:2] += 5
    histogram[-1] = 3
    assert entropy_clip(histogram, 0.25, levels) == pytest.approx(by_hand(histogram, 0.25, levels))


def test_the_real_numbers_once():
    x = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)
    histogram, width = folded_histogram(observe(x))
    assert 1024 <= len(histogram) <= BINS_LIMIT and histogram.sum() == x.size
    histogram, width = histogram.reshape(-1)[:400], width
    assert entropy_clip(histogram, width) == pytest.approx(by_hand(histogram, width, 128))


def test_an_outlier_is_clipped():
    x = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    x[0] = 40.0
    how = Activations(dtype="int8", observer="kl", symmetric=True)
    low, high = activation_range(observe(x), how)
    assert 2.5 < high < 8 and low == pytest.approx(-high, rel=0.3)


def test_the_clip_stays_inside_the_range():
    for x in ([0.0, 1.0, 2.0], [-3.0, 0.5], [1e-30, 2e-30]):
        values = np.array(x, np.float32)
        low, high = activation_range(observe(values), Activations(observer="kl"))
        assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0) and high > low
    assert activation_range(observe(np.zeros(4, np.float32)), Activations(observer="kl")) == (0.0, 0.0)


def test_sixteen_bits_have_a_level_for_every_bin():
    x = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    x[0] = 40.0
    whole = activation_range(observe(x), Activations(dtype="int16", observer="minmax", symmetric=True))
    assert activation_range(observe(x), Activations(dtype="int16", observer="kl", symmetric=True)) == whole
