"""The benchmark holds every contender against int64 before it times it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hwq import kernels
from hwq.benchmark import rounds
from hwq.benchmark.kernels import compare


def test_ours_are_exact_and_a_wrong_one_is_marked() -> None:
    rows = list(compare("int8 256", quick=True))
    ours = [row for row in rows if row.ours]
    assert ours and all(row.exact and row.error == 0 for row in ours)
    want = np.zeros((2, 4))
    bad = rounds.Contender("off by two", lambda: want + 2, want)
    (row,) = rounds.measure("int8 2x3x4", 24, [bad], 0.01)
    assert not row.exact and row.error == 2 and row.wrong == 1 and row.verdict == "WRONG by 2 in 100.0%"


def test_the_best_peer_is_exact_and_not_ours() -> None:
    def row(name: str, ours: bool, exact: bool, gmacs: float) -> rounds.Row:
        return rounds.Row("int8 1x1x1", name, ours, exact, 0.0, 0.0, gmacs, None, 5)

    rows = [
        row("hwq", True, True, 9),
        row("saturating", False, False, 8),
        row("sound", False, True, 5),
        row("numpy float32", False, True, 7),
    ]
    found = rounds.best_peer(rows, "int8 1x1x1")
    assert found is not None and found.contender == "sound"


def test_register_loops_stand_for_macs() -> None:
    from hwq.kernels.paths import ceiling

    assert ceiling("no such scheme", 10) == 0
    if "avx2" in kernels.available_isas():
        assert ceiling("int8-avx2", 10) == 10 * 8 * 32


def test_the_register_loop_runs_as_long_as_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of steps of 10 us that only the loop moves: a nanosecond a round."""
    run = [0]

    def loop(scheme: str, count: int) -> int:
        run[0] += count
        return count

    monkeypatch.setattr(rounds, "ceiling", loop)
    monkeypatch.setattr(rounds.time, "process_time", lambda: run[0] // 10_000 * 1e-5)
    assert rounds._loop_rounds("any") == pytest.approx(rounds.SAMPLE_SECONDS / 1e-9, rel=0.02)


def test_a_cold_call_does_not_size_the_samples() -> None:
    calls = 0

    def run() -> np.ndarray:
        nonlocal calls
        calls += 1
        end = time.process_time() + (0.02 if calls <= 2 else 0)
        while time.process_time() < end:
            pass
        return np.zeros(1)

    row, *_ = rounds.measure("case", 1, [rounds.Contender("a", run, np.zeros(1))], 0.0)
    assert row.exact and calls > 100  # five samples of 2 ms each


def test_convolutions_of_ours_are_exact() -> None:
    rows = list(compare("14x14", quick=True))
    assert {row.case for row in rows} >= {"conv 1x1 14x14x256->1024", "depthwise 3x3 14x14x512"}
    assert all(row.exact and row.error == 0 for row in rows if row.ours)
