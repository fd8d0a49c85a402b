"""The stepped array against plain products, the kernels, the closed forms, and a register-by-register reading."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from hwq import kernels
from hwq.errors import Error
from hwq.simulators.dataflow import DATAFLOWS, OVERLAPS, evaluate
from hwq.simulators.stepped_gemm import SteppedGemm
from hwq.simulators.stepping import Array, Step, parse_array, step

COUNTS = ("folds", "cycles", "load", "fill", "stream", "drain", "a_reads", "b_reads", "sum_reads", "sum_writes")


def _operand(random: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def _check(done: Step, a: np.ndarray, b: np.ndarray, **options: int) -> None:
    """The counts of the closed form, the product in int64, and every multiplication exactly once."""
    np.testing.assert_array_equal(done.out, (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32))
    x = done.array
    costs = evaluate(*a.shape, b.shape[1], x.rows, x.cols, x.dataflow, overlap=x.overlap, **options)
    assert {name: getattr(done, name) for name in COUNTS} == {name: int(getattr(costs, name)) for name in COUNTS}
    assert done.multiplications == a.size * b.shape[1] * done.passes
    assert done.utilization == pytest.approx(float(costs.utilization), rel=1e-12)


def _shape(random: np.random.Generator, largest: int) -> tuple[int, int, int]:
    return tuple(int(size) for size in np.exp(random.uniform(0, np.log(largest), 3)).round())


def test_a_thousand_layers_equal_kernels_and_closed_forms() -> None:
    random = np.random.default_rng(2024)
    for at in range(1200):
        m, k, n = _shape(random, 150)
        array = Array(*(int(side) for side in random.integers(1, 41, 2)), DATAFLOWS[at % 3], OVERLAPS[at // 3 % 3])
        a = _operand(random, (m, k), np.uint8 if at % 2 else np.int8)
        b = _operand(random, (k, n), np.int8)
        done = step(array, a, b)
        _check(done, a, b)
        np.testing.assert_array_equal(done.out, kernels.gemm(a, kernels.pack(b)))


def test_every_register_moved_on_its_own_gives_the_same() -> None:
    random = np.random.default_rng(7)
    for at in range(400):
        m, k, n = _shape(random, 30)
        array = Array(*(int(side) for side in random.integers(1, 10, 2)), DATAFLOWS[at % 3], OVERLAPS[at // 3 % 3])
        pack = 1 + at % 2
        a, b = _operand(random, (m, k), np.uint8), random.integers(-8, 8, (k, n)).astype(np.int8)
        fast = step(array, a, b, pack=pack, pictures=True, bins=23)
        slow = step(array, a, b, pack=pack, pictures=True, bins=23, reference=True)
        _check(fast, a, b, pack=pack)
        for name in [field.name for field in fields(Step)]:
            if name not in {
                "load",
                "fill",
                "stream",
                "drain",
            }:  # phases are a reading of the schedule, not of registers
                np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=name)


def test_one_product_by_hand() -> None:
    # 2 x 2 array, one tile. Load 2; then row 0 of A meets column 0 in cycles 2 and 3 and leaves at 3, column 1 at 4;
    # rows 1 and 2 follow: the last sum leaves in cycle 6, so 7 cycles. 12 MACs in 4 PEs: each works 3 cycles.
    a, b = np.array([[1, 2], [3, 4], [5, 6]], np.uint8), np.array([[1, -1], [2, 3]], np.int8)
    done = step(Array(2, 2, "ws"), a, b, pictures=True, bins=100)
    assert done.out.tolist() == [[5, 5], [11, 9], [17, 13]]
    assert (done.cycles, done.load, done.fill, done.stream, done.drain) == (7, 2, 1, 3, 1)
    assert done.occupancy is not None and done.occupancy.tolist() == [[3, 3], [3, 3]]
    assert done.timeline is not None and (done.timeline * 2).tolist() == [[0, 0, 1, 2, 2, 1, 0], [0, 0, 0, 1, 2, 2, 1]]
    assert (done.a_reads, done.b_reads, done.sum_reads, done.sum_writes) == (6, 4, 0, 6)


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_narrow_and_wide_operands(dataflow: str) -> None:
    random = np.random.default_rng(3)
    for _ in range(40):
        m, k, n = _shape(random, 60)
        array = Array(*(int(side) for side in random.integers(1, 20, 2)), dataflow)
        four = random.integers(-8, 8, (m, k)).astype(np.int8), random.integers(-8, 8, (k, n)).astype(np.int8)
        packed = step(array, *four, pack=2)
        _check(packed, *four, pack=2)
        assert packed.cycles <= step(array, *four).cycles
        byte, word = _operand(random, (m, k), np.int8), _operand(random, (k, n), np.int16)
        for a, b, passes in (
            (byte, word, {"b_passes": 2}),
            (word.T, byte.T, {"a_passes": 2}),
            (_operand(random, (m, k), np.int16), word, {"a_passes": 2, "b_passes": 2}),
        ):
            _check(step(array, a, b), a, b, **passes)


def test_sums_wrap() -> None:
    # 255 x 127 x 70000 exceeds 2^31: the accumulators wrap as ONNX and TFLite define.
    a, b = np.full((2, 70_000), 255, np.uint8), np.full((70_000, 2), 127, np.int8)
    for dataflow in DATAFLOWS:
        _check(step(Array(16, 16, dataflow), a, b), a, b)


def test_strided_operands_are_read_in_place() -> None:
    random = np.random.default_rng(1)
    a, b = _operand(random, (40, 31), np.int8), _operand(random, (17, 60), np.int8)
    for dataflow in DATAFLOWS:
        done = step(Array(8, 8, dataflow), a[::-2, 3:20], b[:, ::3])
        np.testing.assert_array_equal(done.out, a[::-2, 3:20].astype(int) @ b[:, ::3].astype(int))


def test_pictures_add_up() -> None:
    random = np.random.default_rng(4)
    for at in range(60):
        m, k, n = _shape(random, 80)
        array = Array(*(int(side) for side in random.integers(1, 12, 2)), DATAFLOWS[at % 3], OVERLAPS[at // 3 % 3])
        done = step(
            array, _operand(random, (m, k), np.uint8), _operand(random, (k, n), np.int8), pictures=True, bins=17
        )
        assert done.occupancy is not None and done.timeline is not None and done.timeline.shape[1] <= 17
        assert done.occupancy.sum() == m * k * n
        spans = np.full(done.timeline.shape[1], done.bin_cycles)
        spans[-1] = done.cycles - done.bin_cycles * (spans.size - 1)
        assert (done.timeline * spans).sum() * array.cols == pytest.approx(m * k * n)
        assert done.timeline.max() <= 1


def test_the_gemm_protocol_takes_zero_points() -> None:
    random = np.random.default_rng(9)
    gemm = SteppedGemm(Array(8, 8, "os"))
    a, b = _operand(random, (30, 50), np.uint8), _operand(random, (50, 9), np.int8)
    points = random.integers(-128, 128, 9).astype(np.int32)
    want = (a.astype(np.int64) - 113) @ (b.astype(np.int64) - points)
    np.testing.assert_array_equal(gemm(a, b, a_zero_point=113, b_zero_points=points), want)
    np.testing.assert_array_equal(gemm(a, b, a_zero_point=113, b_zero_points=np.zeros(9, np.int32)),
                                  (a.astype(np.int64) - 113) @ b)  # fmt: skip
    assert [(one.m, one.k, one.n, one.products) for one in gemm.layers.values()] == [(30, 50, 9, 2)]


def test_arrays_are_named_in_one_line() -> None:
    assert parse_array("systolic:32x16") == Array(32, 16)
    assert parse_array("systolic:256x256:os:stationary") == Array(256, 256, "os", "stationary")
    assert parse_array(str(Array(3, 4, "is", "none"))) == Array(3, 4, "is", "none")
    for text in ("systolic", "systolic:8", "systolic:8x0", "systolic:8x8:rs", "systolic:8x8:ws:all", "tpu:8x8",
                 "systolic:8x-8",
                 "systolic:9999x9999", "systolic:1" + "0" * 5000 + "x1", "systolic:8x8:ws:folds:1"):  # fmt: skip
        with pytest.raises(Error):
            parse_array(text)


def test_bad_operands_are_told() -> None:
    one = np.ones((4, 4), np.int8)
    for a, b in ((one.astype(np.float32), one), (one[0], one), (one[:0], one), (one, one[:3]), (one[:, :0], one[:0]),
                 (one.astype(np.int32), one)):  # fmt: skip
        with pytest.raises(Error):
            step(Array(8, 8), a, b)
    wide = np.full((4, 4), 100, np.int8)
    with pytest.raises(Error, match="4 bits"):
        step(Array(8, 8), wide, wide, pack=2)
    with pytest.raises(Error, match="stepped"):
        step(Array(4096, 4096), one, one, max_bytes=1 << 20)
