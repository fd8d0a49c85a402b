"""The least-squares weights and the damping of a layer, against NumPy's own least squares and formulas written out."""

from __future__ import annotations

import numpy as np
import pytest

from hwq.rounding import DAMPING
from hwq.transforms.problem import MOST_DAMPING, SLICES, Data


def rows(seed, count, k=6, groups=1, mean=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, count, k)) @ (np.eye(k) + 0.4 * rng.normal(size=(groups, k, k))) + mean
    after = x + 0.05 * rng.normal(size=x.shape)
    return x.astype(np.float32), after.astype(np.float32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("center", [False, True])
def test_the_target_is_the_least_squares_fit_of_the_sum(center, groups):
    x, after = rows(0, 4000, groups=groups, mean=1.5)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(groups, 4, 6))
    beside = (after @ rng.normal(size=(groups, 6, 4)) * 0.1 + 0.02 * rng.normal(size=(groups, 4000, 4))).astype(
        np.float32
    )
    for off in (None, beside):
        data = Data.of(x, after, center, off)
        data.damping = np.full(groups, 1e-12)
        found = data.target(weights.reshape(-1, 6)).reshape(groups, 4, 6)
        for group in range(groups):
            wanted = x[group].astype(np.float64) @ weights[group].T + (0.0 if off is None else off[group])
            inputs = after[group].astype(np.float64)
            if center:
                inputs = np.column_stack([inputs, np.ones(len(inputs))])
            fitted = np.linalg.lstsq(inputs, wanted, rcond=None)[0].T
            assert np.allclose(found[group], fitted[:, :6], atol=1e-4)
            if center:
                mean = data.aside_mean if off is None else data.aside_mean.reshape(groups, -1)[group]
                bias = weights[group] @ data.mean[group] + mean - found[group] @ data.mean_after[group]
                assert np.allclose(bias, fitted[:, 6], atol=1e-3)


def test_damping_is_ledoit_and_wolf_s_over_slices():
    _, after = rows(2, 320, k=20)
    data = Data.of(after, after, True)
    x = after[0].astype(np.float64) - after[0].mean(axis=0, dtype=np.float64)
    moment = x.T @ x / len(x)
    parts = [part.T @ part / len(part) for part in np.split(x, SLICES)]
    error = np.mean([np.square(part - moment).sum() for part in parts]) / (SLICES - 1)
    share = error / np.square(moment - np.trace(moment) / 20 * np.eye(20)).sum()
    assert data.damping == pytest.approx(share / (1 - share), rel=1e-3) and data.damping > DAMPING


def test_few_samples_are_damped_more_and_many_are_damped_least():
    found = [float(Data.of(*rows(3, count, k=16), True).damping[0]) for count in (24, 96, 1536, 60000)]
    assert MOST_DAMPING >= found[0] > found[1] > found[2] >= found[3] == DAMPING
    one = Data.of(*rows(3, 1, k=16), True)
    assert np.isfinite(one.damping).all() and np.isfinite(one.target(np.ones((2, 16)))).all()


@pytest.mark.parametrize("size", [2.0**-90, 1.0, 2.0**100])
def test_the_unit_of_the_inputs_changes_nothing(size):
    x, after = rows(4, 500)
    weights = np.random.default_rng(5).normal(size=(3, 6))
    beside = np.random.default_rng(6).normal(size=(1, 500, 3)).astype(np.float32)
    plain, scaled = (
        Data.of(*(one * np.float32(by) for one in (x, after)), True, beside * np.float32(by)) for by in (1.0, size)
    )
    assert np.array_equal(plain.damping, scaled.damping)
    assert np.allclose(plain.target(weights), scaled.target(weights), rtol=1e-9)
