"""Closed forms against a cycle-by-cycle reading of the schedule, and against SCALE-Sim's published counts."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from tiny import SHARED

from hwq.errors import Error
from hwq.simulators.dataflow import DATAFLOWS, OVERLAPS, evaluate


def _walk(m: int, k: int, n: int, rows: int, cols: int, dataflow: str, overlap: str) -> int:
    """Last cycle + 1, from when each PE may start: a scheduler in plain loops that knows no formula."""
    on_rows, on_cols, temporal = {"ws": (k, n, m), "is": (k, m, n), "os": (m, n, k)}[dataflow]
    folds = -(-on_rows // rows) * -(-on_cols // cols)
    bus: set[tuple[int, int]] = set()  # (column, cycle) in which a result bus is taken
    start, end, loaded = 0, 0, 0
    for fold in range(folds):
        earliest = end if overlap != "folds" or fold == 0 else start + temporal
        if dataflow != "os":
            # Without a second register the load waits for the array to be empty; with one, for the wavefront before.
            loaded = (end if overlap == "none" or fold == 0 else start) + rows
            earliest = max(earliest, loaded)
        while True:
            taken = set()
            if dataflow == "os":
                taken = {(c, earliest + temporal - 1 + r + c) for r in range(rows) for c in range(cols)}
            if not taken & bus:
                break
            earliest += 1
        bus |= taken
        start = earliest
        end = max(start + (temporal - 1) + r + c + 1 for r in range(rows) for c in range(cols))
    return end


@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_cycles_equal_a_plain_walk(dataflow: str, overlap: str) -> None:
    random = np.random.default_rng(5)
    for _ in range(60):
        m, k, n = (int(value) for value in random.integers(1, 20, 3))
        rows, cols = (int(value) for value in random.integers(1, 7, 2))
        costs = evaluate(m, k, n, rows, cols, dataflow, overlap=overlap)
        assert int(costs.cycles) == _walk(m, k, n, rows, cols, dataflow, overlap), (m, k, n, rows, cols)


def test_one_fold_by_hand() -> None:
    # 4 x 4 array, A 8 x 4, B 4 x 4: load 4, first sum after 4 rows, 8 rows, last column 3 later: 4 + 3 + 8 + 3 = 18.
    costs = evaluate(8, 4, 4, 4, 4, "ws")
    assert (costs.load, costs.fill, costs.stream, costs.drain, costs.cycles) == (4, 3, 8, 3, 18)
    assert (costs.a_reads, costs.b_reads, costs.sum_reads, costs.sum_writes) == (32, 16, 0, 32)
    assert costs.utilization == 128 / (16 * 18)


def test_tpu_tile_hides_its_load_from_256_rows_on() -> None:
    # 256 x 256 tiles: shorter streams expose the rest of the 256 cycles that a tile takes to shift in.
    below, at = (evaluate(m, 2560, 256, 256, 256, "ws") for m in (200, 256))
    assert (below.load, at.load) == (256 + 9 * 56, 256)


def test_narrow_and_wide_operands() -> None:
    whole = evaluate(30, 64, 20, 8, 8, "ws")
    packed = evaluate(30, 64, 20, 8, 8, "ws", pack=2)
    assert packed.cycles == evaluate(30, 32, 20, 8, 8, "ws").cycles < whole.cycles
    assert packed.macs == whole.macs
    wide = evaluate(30, 64, 20, 8, 8, "ws", a_passes=2)
    assert wide.stream == 2 * whole.stream and wide.a_reads == 2 * whole.a_reads and wide.macs == whole.macs


def test_scalesim_rows_without_its_deviations() -> None:
    folder = SHARED / "golden" / "scalesim"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden/scalesim here (set HWQ_SHARED)")
    for name, stalls in (("full_runs.csv", True), ("compute_runs.csv", False)):
        with open(folder / name, newline="") as stream:
            table = list(csv.DictReader(stream))
        for dataflow in DATAFLOWS:
            lines = [row for row in table if row["dataflow"] == dataflow]
            m, k, n, rows, cols, a, b, writes, total = (
                np.array([int(row[key]) for row in lines])
                for key in ("M", "K", "N", "array_rows", "array_cols", "sram_ifmap_reads", "sram_filter_reads",
                            "sram_ofmap_writes", "total_cycles")
            )  # fmt: skip
            stall = np.array([int(row["stall_cycles"]) for row in lines]) if stalls else 0
            costs = evaluate(m, k, n, rows, cols, dataflow, overlap="none")
            phantom = costs.folds * (rows + cols) if dataflow == "os" else 0
            np.testing.assert_array_equal(costs.cycles - 1 + stall, total)
            np.testing.assert_array_equal(costs.a_reads, a)
            np.testing.assert_array_equal(costs.b_reads, b)
            np.testing.assert_array_equal(costs.sum_writes + phantom, writes)
            np.testing.assert_allclose(costs.mapping_efficiency * 100, [float(row["mapping_eff_pct"]) for row in lines])


def test_efficiencies_are_shares() -> None:
    random = np.random.default_rng(7)
    m, k, n = random.integers(1, 300, (3, 5000))
    rows, cols = random.integers(1, 65, (2, 5000))
    for dataflow in DATAFLOWS:
        for overlap in OVERLAPS:
            costs = evaluate(m, k, n, rows, cols, dataflow, overlap=overlap, pack=2)
            assert np.all(costs.utilization <= costs.mapping_efficiency) and np.all(costs.mapping_efficiency <= 1)
            assert np.all(costs.cycles == costs.load + costs.fill + costs.stream + costs.drain)


@pytest.mark.parametrize(
    "arguments", [(0, 1, 1, 8, 8), (1.5, 1, 1, 8, 8), ([1, 2], [1, 2, 3], 1, 8, 8), (1 << 22, 1 << 22, 1 << 22, 8, 8)]
)
def test_bad_shapes_are_told(arguments: tuple[object, ...]) -> None:
    with pytest.raises(Error):
        evaluate(*arguments)
    with pytest.raises(Error, match="dataflow"):
        evaluate(1, 1, 1, 8, 8, "rs")
    with pytest.raises(Error, match="overlap"):
        evaluate(1, 1, 1, 8, 8, overlap="all")
