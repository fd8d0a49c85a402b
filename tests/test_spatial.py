"""The row-stationary closed form equals a walk through its loops; the mapper finds the authors' mappings on AlexNet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwq.errors import Error
from hwq.plan import Plan
from hwq.simulators import estimate, find
from hwq.simulators.row_stationary import Mapping7, Shape, evaluate, find_mapping
from hwq.simulators.spatial import parameters
from hwq.validation.systolic import convolution
from hwq.zoo import build

EYERISS = parameters(find("eyeriss")) | {"input_bits": 16}
PLAN = Plan.uniform(weights="int16", activations="int16", symmetric=True, granularity="tensor")
# Chen et al., JSSC 2017, table of mapping parameters of AlexNet's layers (recalled): m, n, e, p, q, r, t.
PUBLISHED = {
    "conv1": (Shape(4, 3, 96, 1, 227, 11, 11, 55, 55, 4), Mapping7(96, 1, 7, 16, 1, 1, 2)),
    "conv2": (Shape(4, 48, 128, 2, 31, 5, 5, 27, 27, 1), Mapping7(64, 1, 27, 16, 2, 1, 1)),
    "conv4": (Shape(4, 192, 192, 2, 15, 3, 3, 13, 13, 1), Mapping7(64, 4, 13, 16, 3, 2, 2)),
    "conv5": (Shape(4, 192, 128, 2, 15, 3, 3, 13, 13, 1), Mapping7(64, 4, 13, 16, 3, 2, 2)),
}


def parts(whole: int, size: int) -> list[range]:
    return [range(start, min(start + size, whole)) for start in range(0, whole, size)]


def walk(shape: Shape, mapping: Mapping7) -> dict[str, int]:
    """The loops one after another, each word counted when it moves; strips and images are always whole."""
    m, n, e, p, q, r, t = (getattr(mapping, name) for name in "mneptqr".replace("ptqr", "pqrt"))
    moved = dict.fromkeys(("input", "filter", "output", "buffer_input", "buffer_filter", "buffer_sum", "passes"), 0)
    rows = (e - 1) * shape.U + shape.R
    for _, images, _, block in itertools.product(
        range(shape.G), parts(shape.N, n), parts(shape.E, e), parts(shape.M, m)
    ):
        done: set[int] = set()
        for channels in parts(shape.C, q * r):
            strip = len(images) * len(channels) * rows * shape.W
            moved["input"] += strip
            for filters in parts(len(block), p * t):
                moved["passes"] += 1
                moved["buffer_input"] += strip
                weights = len(filters) * len(channels) * shape.R * shape.S
                moved["filter"] += weights
                moved["buffer_filter"] += weights
                sums = len(images) * len(filters) * e * shape.F
                moved["buffer_sum"] += sums * (1 if filters.start not in done else 2)
                done.add(filters.start)
    moved["output"] = shape.G * shape.N * shape.M * shape.E * shape.F
    return moved


@pytest.mark.parametrize("seed", range(60))
def test_the_closed_form_equals_a_walk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draw = lambda low, high: int(rng.integers(low, high + 1))  # noqa: E731
    n, R, S, U, E, F = draw(1, 3), draw(1, 5), draw(1, 5), draw(1, 2), draw(1, 9), draw(1, 9)
    shape = Shape(n * draw(1, 2), draw(1, 12), draw(1, 20), draw(1, 2), (F - 1) * U + S, R, S, E, F, U)
    p, q, r, t = draw(1, 4), draw(1, 3), draw(1, 2), draw(1, 3)
    mapping = Mapping7(p * t * draw(1, 3), n, draw(1, E), p, q, r, t)
    cost = evaluate(shape, mapping, EYERISS)
    found = walk(shape, mapping)
    # A block of m channels that is cut at M runs fewer inner passes than the closed form counts: compare where M is whole.
    whole = shape.M % mapping.m == 0
    for name in ("filter", "output", "buffer_filter", "buffer_sum", "input"):
        assert getattr(cost, name) == found[name], name
    if whole:
        assert cost.passes == found["passes"] and cost.buffer_input == found["buffer_input"]
    else:
        assert cost.passes >= found["passes"] and cost.buffer_input >= found["buffer_input"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_mapper_finds_the_published_mapping(name: str) -> None:
    shape, mapping = PUBLISHED[name]
    found = find_mapping(shape, EYERISS)
    assert found is not None and found[0] == mapping


def test_no_mapping_that_fits_moves_less() -> None:
    # Brute force over every mapping of a small layer on a small array.
    given = {"rows": 4, "cols": 5, "input_spad": 6, "filter_spad": 24, "sum_spad": 4, "buffer": 16 * 400, "input_bits": 16,
             "sum_bits": 16}  # fmt: skip
    shape = Shape(2, 5, 7, 1, 8, 3, 3, 6, 6, 1)
    best = None
    for e, n, q, p, r, t in itertools.product(range(1, 7), (1, 2), range(1, 3), range(1, 5), range(1, 6), range(1, 6)):
        sets = (4 // 3) * (5 // e) if e <= 5 else (4 // 3) // 2
        if r * t > sets or p * q * 3 > 24:
            continue
        for m in range(p * t, 8, p * t):
            if (m * e * 6 * n + min(q * r, 5) * (e + 2) * 8 * n) * 16 > given["buffer"]:
                continue
            cost = evaluate(shape, Mapping7(m, n, e, p, q, r, t), given)
            best = min(best or (cost.dram, cost.buffer), (cost.dram, cost.buffer))
    found = find_mapping(shape, given)
    assert found is not None and (found[1].dram, found[1].buffer) == best


def test_conv3_moves_less_than_with_the_published_mapping() -> None:
    shape = Shape(4, 256, 384, 1, 15, 3, 3, 13, 13, 1)
    found = find_mapping(shape, EYERISS)
    published = evaluate(shape, Mapping7(64, 4, 13, 16, 4, 1, 4), EYERISS)
    assert found is not None and found[1].dram == published.dram and found[1].buffer < published.buffer


def test_larger_buffers_never_move_more() -> None:
    shape = PUBLISHED["conv4"][0]
    moved = [
        found[1].dram
        for size in (40, 70, 100, 200, 800)
        if (found := find_mapping(shape, EYERISS | {"buffer": size * 8000}))
    ]
    assert len(moved) == 5 and moved == sorted(moved, reverse=True)


def test_every_kind_of_layer_is_mapped() -> None:
    # Kernels taller than the array and wider than a scratchpad, depthwise, dense, attention.
    for shape in ((3, 64, 8, 25, 1, 0, 1), (16, 20, 16, 3, 2, 1, 16), (8, 1, 10, 1, 1, 0, 1)):
        layer = next(one for one in estimate(convolution(shape, "c"), "eyeriss", plan=PLAN).layers if one.op == "Conv")
        assert layer.macs > 0 and layer.seconds >= layer.macs / (168 * 200e6)
    found = estimate(build("bert_base", weights=False), "eyeriss", plan=PLAN)
    assert found.seconds >= found.macs / (168 * 200e6)


def test_a_row_that_does_not_fit_is_told() -> None:
    with pytest.raises(Error, match="row-stationary"):
        estimate(convolution((1, 60_000, 1, 3, 1, 1, 1), "wide"), "eyeriss", plan=PLAN)


def test_compression_divides_dram_bytes_alone() -> None:
    graph = convolution((48, 27, 64, 5, 1, 2, 1), "c")
    plain, packed = (
        next(one for one in estimate(graph, machine, plan=PLAN).layers if one.op == "Conv")
        for machine in (find("eyeriss"), find("eyeriss").replace({"dram.compression": 2.0}))
    )
    for name, size in plain.traffic["dram"].items():
        assert packed.traffic["dram"][name] == -(-size // 2)
    assert packed.traffic["buffer"] == plain.traffic["buffer"]
