"""Rounding for the layer's output: brute force on small layers, and what the methods promise one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwq.cholesky import inverse_factor
from hwq.rounding import Quadratic, coordinate, gptq, nearest


def problem(seed: int, channels: int, k: int, rows: int = 200):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, k)) @ (np.eye(k) + 0.5 * rng.normal(size=(k, k)))
    weights = rng.normal(size=(channels, k))
    scale = np.abs(weights).max(axis=1, keepdims=True) / 7
    return weights, scale, Quadratic(x.T @ x / rows)


def of(quadratic, weights, stored, scale):
    return quadratic.error(weights, stored, scale, np.zeros((1, 1)))


@pytest.mark.parametrize("seed", range(8))
def test_descent_ends_where_no_single_weight_can_improve(seed):
    weights, scale, quadratic = problem(seed, 5, 12)
    stored = coordinate(weights, scale, np.zeros((1, 1)), -8, 7, quadratic)
    error = of(quadratic, weights, stored, scale)
    for k, move in itertools.product(range(12), (-1, 1)):
        other = stored.copy()
        other[:, k] = np.clip(other[:, k] + move, -8, 7)
        assert (of(quadratic, weights, other, scale) >= error - 1e-9).all()


@pytest.mark.parametrize("seed", range(8))
def test_descent_is_no_worse_than_gptq_or_nearest(seed):
    weights, scale, quadratic = problem(seed, 6, 40)
    zero = np.zeros((1, 1))
    best = of(quadratic, weights, coordinate(weights, scale, zero, -8, 7, quadratic), scale)
    plain = of(quadratic, weights, nearest(weights, scale, zero, -8, 7), scale)
    greedy = of(quadratic, weights, gptq(weights, scale, zero, -8, 7, quadratic), scale)
    assert (best <= np.minimum(plain, greedy) + 1e-9).all() and greedy.sum() < plain.sum()


def test_close_to_the_best_of_all_roundings():
    # Every rounding up or down of six weights; the descent reaches within 5 % of the best on average.
    ratios = []
    for seed in range(40):
        weights, scale, quadratic = problem(seed, 1, 6)
        base = np.floor(weights / scale)
        every = np.array([base[0] + bits for bits in itertools.product((0, 1), repeat=6)])
        errors = quadratic.error(np.repeat(weights, len(every), 0), every, scale, np.zeros((1, 1)))
        found = of(quadratic, weights, coordinate(weights, scale, np.zeros((1, 1)), -64, 63, quadratic), scale)
        ratios.append(float(found[0] / errors.min()))
    assert np.mean(ratios) < 1.05


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (64, 64), (200, 200), (3, 9, 9), (2, 70, 70)])
def test_inverse_factors_are_upper_triangles_of_the_inverse(shape):
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(*shape[:-2], 3 * shape[-1], shape[-1]))
    matrix = np.swapaxes(rows, -1, -2) @ rows
    upper = inverse_factor(matrix)
    assert np.array_equal(upper, np.triu(upper))
    assert np.allclose(np.swapaxes(upper, -1, -2) @ upper @ matrix, np.eye(shape[-1]), atol=1e-10)
    quadratic, right = Quadratic(matrix), rng.normal(size=(*shape[:-2], 4, shape[-1]))
    assert np.allclose(quadratic.solved(right) @ quadratic.matrix, right)


def test_independent_inputs_leave_nothing_to_gain():
    weights, scale, _ = problem(3, 4, 9)
    quadratic, zero = Quadratic(np.eye(9)), np.zeros((1, 1))
    expected = nearest(weights, scale, zero, -8, 7)
    assert np.array_equal(gptq(weights, scale, zero, -8, 7, quadratic), expected)
    assert np.array_equal(coordinate(weights, scale, zero, -8, 7, quadratic), expected)


def test_a_moment_for_each_channel_equals_one_at_a_time():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 50, 9))
    moments = rows.transpose(0, 2, 1) @ rows / 50
    weights = rng.normal(size=(6, 9))
    scale = np.abs(weights).max(axis=1, keepdims=True) / 3
    together = Quadratic(moments)
    stored = coordinate(weights, scale, np.zeros((1, 1)), -4, 3, together)
    error = together.error(weights, stored, scale, np.zeros((1, 1)))
    for channel in range(6):
        one, row = Quadratic(moments[channel]), slice(channel, channel + 1)
        alone = coordinate(weights[row], scale[row], np.zeros((1, 1)), -4, 3, one)
        # The order of the columns may differ, so the minima may; neither may be far off.
        assert error[channel] <= 1.5 * one.error(weights[row], alone, scale[row], np.zeros((1, 1)))[0] + 1e-12
    assert np.allclose(together.times(weights)[2], weights[2] @ together.matrix[2])


def test_a_dead_input_does_not_break_the_descent():
    weights, scale, _ = problem(0, 3, 5)
    moment = np.diag([0.0, 1.0, 0.0, 2.0, 0.5])
    for rounded in (gptq, coordinate):
        stored = rounded(weights, scale, np.zeros((1, 1)), -8, 7, Quadratic(moment))
        assert np.isfinite(stored).all() and np.array_equal(stored, np.rint(stored))
    assert np.isfinite(gptq(weights, scale, np.zeros((1, 1)), -8, 7, Quadratic(np.zeros((5, 5))))).all()
