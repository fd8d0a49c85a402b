"""Searches and observers against enumeration: AWQ's exponent, the scales of groups, and ranges of strange histograms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import tiny
from onnx import helper

import hwq
from hwq.entropy import entropy_clip, folded_histogram
from hwq.observers import activation_range
from hwq.plan import Activations, Plan
from hwq.statistics import observe

FLOATS = {"dtype": "float32", "mode": "float"}


def chain(seed: int) -> tuple[hwq.Graph, np.ndarray, np.ndarray, np.ndarray]:
    """Two products, some channels between them loud; the graph, samples, and both weights in float64."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(12, 24)), rng.normal(size=(24, 10))
    first[:, rng.permutation(24)[:3]] *= rng.uniform(5, 40, 3)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 12]}, {"y": ["N", 10]}, {"a": first, "b": second}))
    samples = rng.normal(size=(96, 12)).astype(np.float32)
    return graph, samples, first.astype(np.float32).astype(np.float64), second.astype(np.float32).astype(np.float64)


def planned(scale: str, group: int, transforms: dict[str, bool] | None = None) -> Plan:
    """INT4 groups on the second product, everything else float."""
    weights = {"dtype": "int4", "granularity": {"group": group}, "scale": scale}
    return Plan.model_validate({
        "dialect": "hwq", "default": {"weights": {"dtype": "float32"}, "activations": FLOATS},
        "transforms": transforms or {}, "layers": [{"match": {"name": "second"}, "weights": weights}],
    })  # fmt: skip


def stored(weight: np.ndarray, step: np.ndarray, group: int) -> np.ndarray:
    """The weight that INT4 groups along axis 0 with these steps hold."""
    steps = np.repeat(step.astype(np.float32).astype(np.float64), group, axis=0)[: len(weight)]
    return np.clip(np.rint(weight / steps), -8, 7) * steps


def peaks(weight: np.ndarray, group: int) -> np.ndarray:
    return np.stack([np.abs(weight[at : at + group]).max(axis=0) for at in range(0, len(weight), group)]) / 7.0


@pytest.mark.parametrize("seed", range(4))
def test_awq_takes_the_best_exponent_of_its_grid(seed: int) -> None:
    graph, samples, first, second = chain(seed)
    q = hwq.quantize(graph, planned("minmax", 8, {"awq": True}), None, samples)
    held = samples.astype(np.float64) @ first
    size = np.sqrt(np.square(held).mean(axis=0))
    errors = []
    for exponent in range(20):
        raw = size ** (exponent / 20)
        factor = (raw / math.sqrt(raw.max() * raw.min()))[:, None]
        scaled = (second * factor).astype(np.float32).astype(np.float64)
        made = stored(scaled, peaks(scaled, 8), 8) / factor
        errors.append(float(np.square(held @ (made - second)).sum()))
    steps = q.constant("b_scale")
    integers = q.constant("b_quantized")
    changed = q.constant("a")
    assert steps is not None and integers is not None and changed is not None
    ours = samples.astype(np.float64) @ changed @ (integers * np.repeat(steps.astype(np.float64), 8, axis=0))
    found = float(np.square(ours - held @ second).sum())
    assert found == pytest.approx(min(errors), rel=1e-3) and min(errors) < errors[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("group", [4, 8, 10, 24])
def test_scales_of_groups_are_the_best_of_every_column(seed: int, group: int) -> None:
    """seq-MSE of one product on its own: each output column takes the share that loses least on the samples."""
    graph, samples, first, second = chain(seed)
    q = hwq.quantize(graph, planned("seq-mse", group), hwq.calibrate(graph, samples, moments=True))
    held = samples.astype(np.float64) @ first
    second_moment = held.T @ held
    damped = second_moment + 0.01 * np.diag(second_moment).mean() * np.eye(24)  # as hwq.rounding states for moments
    steps, integers = q.constant("b_scale"), q.constant("b_quantized")
    assert steps is not None and integers is not None

    def errors(made: np.ndarray) -> np.ndarray:
        return np.asarray(((made - second) * (damped @ (made - second))).sum(axis=0))

    # A group as long as the sum is one scale a column.
    found = errors(integers * np.repeat(steps.reshape(-1, 10).astype(np.float64), group, axis=0)[:24])
    tried = [errors(stored(second, peaks(second, group) * share, group)) for share in np.linspace(0.4, 1.0, 13)]
    assert (found <= np.min(tried, axis=0) * (1 + 1e-5)).all()


def strange() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=400).astype(np.float32)
    yield "zeros", np.zeros(50, np.float32)
    yield "one value", np.array([3.7], np.float32)
    yield "one value below zero", np.full(40, -2.5, np.float32)
    yield "a spike beside zeros", np.r_[np.zeros(400), 5.0].astype(np.float32)
    yield "a spike beside a constant", np.r_[np.full(400, 1.0), 100.0].astype(np.float32)
    yield "one side", np.abs(normal)
    yield "the other side", -np.abs(normal)
    yield "far from zero", normal * 0.1 + 10
    yield "a huge outlier", np.r_[normal, 1e38].astype(np.float32)
    yield "the largest numbers", np.array([3.4e38, -3.4e38, 1e38], np.float32)
    yield "subnormal", np.array([1e-45, -3e-45, 7e-42], np.float32)
    yield "subnormal and an outlier", np.array([1e-45, 1e-40, 1.0], np.float32)
    yield "two values", np.r_[np.full(60, -1e-3), np.full(60, 7.0)].astype(np.float32)
    yield "heavy tails", (rng.laplace(size=400) ** 5).astype(np.float32)


STRANGE = list(strange())


def error(values: np.ndarray, low: float, high: float, dtype: str, symmetric: bool) -> float:
    """Mean squared error of storing values in a range, written down on its own."""
    lowest, highest = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7)}[dtype]
    x, low, high = values.astype(np.float64), min(low, 0.0), max(high, 0.0)
    if symmetric:
        zero = 0 if lowest < 0 or low == 0.0 else 128
        step = max(-low, high) / (highest - zero)
    else:
        step = (high - low) / (highest - lowest)
        zero = 0 if step == 0 else int(np.clip(np.rint(lowest - low / np.float32(np.clip(step, 2.0**-126, 2.0**112))), lowest, highest))  # fmt: skip
    if step == 0.0:
        return float(np.square(x).mean())
    step = float(np.float32(np.clip(step, 2.0**-126, 2.0**112)))
    return float(np.square((np.clip(np.rint(x / step) + zero, lowest, highest) - zero) * step - x).mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("name, values", STRANGE, ids=[name for name, _ in STRANGE])
def test_least_squared_error_of_strange_histograms(name: str, values: np.ndarray, dtype: str, symmetric: bool) -> None:
    seen = observe(values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = activation_range(seen, Activations(dtype=dtype, symmetric=symmetric, observer="mse"))
    assert math.isfinite(low) and math.isfinite(high) and low <= 0.0 <= high
    found = error(values, low, high, dtype, symmetric)
    least, most = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    shares = np.linspace(0.02, 1.0, 50)
    ends = [(least * a, most * b) for a in (shares if least < 0 else [1.0]) for b in (shares if most > 0 else [1.0])]
    if symmetric:
        peak = max(-least, most)
        ends = [(-peak * share if least < 0 else 0.0, peak * share) for share in shares]
    best = min(error(values, *pair, dtype, symmetric) for pair in ends)
    # The histogram knows a value to within its bin.
    assert found <= 1.1 * best + seen.width**2


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("name, values", STRANGE, ids=[name for name, _ in STRANGE])
def test_percentiles_of_strange_histograms(name: str, values: np.ndarray, percentile: float) -> None:
    seen, order = observe(values), np.sort(values.astype(np.float64))
    low, high = activation_range(seen, Activations(dtype="int8", observer="percentile", percentile=percentile))
    count, share = len(order), percentile / 100
    below, above = (order[max(math.floor(share * count) - 1, 0)], order[min(math.ceil(share * count), count - 1)])
    assert max(below, 0.0) - seen.width <= high <= max(above, 0.0) + seen.width
    first, last = (
        order[max(math.floor((1 - share) * count) - 1, 0)],
        order[min(math.ceil((1 - share) * count), count - 1)],
    )
    assert min(first, 0.0) - seen.width <= low <= min(last, 0.0) + seen.width


def clip_by_hand(histogram: np.ndarray, levels: int) -> tuple[int, list[float]]:
    """Migacz's candidates one by one, nothing shared between them; the best and every divergence."""
    h = histogram.copy()
    h[0] = h[1]
    found = []
    for size in range(levels, len(h) + 1):
        p = h[:size].copy()
        p[-1] += h[size:].sum()
        q, wide = np.zeros(size), size // levels
        for level in range(levels):
            part = slice(level * wide, (level + 1) * wide if level < levels - 1 else size)
            filled = h[part] > 0
            q[part][filled] = h[part].sum() / max(filled.sum(), 1)
        shares = []
        for one in (p, q):
            if not one.sum() > 0:
                break
            smooth = one / one.sum()
            smooth = np.where(smooth == 0, 1e-4, smooth - 1e-4 * (smooth == 0).sum() * smooth)
            shares += [smooth] if smooth.min() > 0 else []
        found.append(float((shares[0] * np.log(shares[0] / shares[1])).sum()) if len(shares) == 2 else math.inf)
    return int(np.argmin(found)) + levels, found


@pytest.mark.parametrize("name, values", STRANGE, ids=[name for name, _ in STRANGE])
def test_entropy_clip_of_strange_histograms(name: str, values: np.ndarray) -> None:
    histogram, width = folded_histogram(observe(values))
    together = -(-len(histogram) // 160)  # fewer bins: the enumeration is slow
    histogram = np.pad(histogram, (0, -len(histogram) % together)).reshape(-1, together).sum(axis=1)
    assert histogram.size
    for levels in (16, 32):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip = entropy_clip(histogram, width, levels)
        if len(histogram) <= levels:
            assert clip == len(histogram) * width
            continue
        best, every = clip_by_hand(histogram, levels)
        ours = round(clip / width - 0.5)
        if not math.isfinite(min(every)):
            assert ours == len(histogram)
        else:
            assert every[ours - levels] <= every[best - levels] + 1e-9
