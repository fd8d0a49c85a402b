"""Sweeps: every row is the estimate of its machine; interrupted, spread and killed sweeps give the same bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tiny import cnn
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.cli.exploration import read_range
from hwq.errors import Error
from hwq.importers.onnx import read
from hwq.simulators import exploration, find, sweeping
from hwq.simulators.exploration import COLUMNS, Space, compute_part, pareto, prepare_task
from hwq.simulators.sweeping import sweep

PLAN = hwq.Plan.uniform()
SPACE = Space(
    arrays=tuple((rows, cols) for rows in (4, 8, 30) for cols in (4, 16, 64)),
    dataflows=("ws", "os", "is"),
    sram_bytes=(600, 4096, 1 << 17),
    bandwidths=(1e8, 12.8e9),
)


def _task(space: Space = SPACE, batch: int = 1) -> exploration.Task:
    return prepare_task(read(cnn().SerializeToString()), "systolic", space, PLAN, batch)


def test_every_row_is_the_estimate_of_its_machine() -> None:
    graph, task = read(cnn().SerializeToString()), _task()
    table = {name: np.concatenate([compute_part(task, part)[name] for part in range(task.parts)]) for name in COLUMNS}
    assert len(table["rows"]) == len(SPACE) == 162 and task.points == 162 * task.layers
    for at in np.random.default_rng(0).choice(len(SPACE), 30, replace=False):
        row = {name: values[at] for name, values in table.items()}
        machine = find(f"systolic:{row['rows']}x{row['cols']}:{row['dataflow']}").replace(
            {"buffer.capacity": float(row["sram_bytes"]), "dram.bandwidth": float(row["dram_bytes_per_second"])}
        )
        found = hwq.estimate(graph, machine, plan=PLAN)
        assert row["cycles"] == found.cycles
        for name in ("dram", "buffer"):
            assert row[f"{name}_bytes"] == sum(found.traffic[name].values())
        assert row["accumulator_bytes"] == sum(found.traffic["accumulators"].values())
        low, high = found.picojoules_band
        assert (row["picojoules_low"], row["picojoules"], row["picojoules_high"]) == pytest.approx(
            (low, found.picojoules, high), rel=1e-12
        )
        assert (row["seconds"], row["utilization"]) == pytest.approx((found.seconds, found.mac_utilization), rel=1e-12)


def test_the_front_is_what_nothing_beats() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        x, y = random.integers(0, 12, (2, 40)).astype(float)
        front = pareto(x, y)
        for at in range(40):
            beaten = ((x <= x[at]) & (y <= y[at]) & ((x < x[at]) | (y < y[at]))).any()
            assert not (front[at] and beaten)
            assert (
                front[at]
                or beaten
                or any(front[other] and x[other] == x[at] and y[other] == y[at] for other in range(40))
            )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploration, "PART_POINTS", 1)


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    task = _task()
    assert task.parts == 27
    sweep(task, tmp_path / "whole.csv")
    calls: list[int] = []

    def broken(task: exploration.Task, part: int) -> dict[str, np.ndarray]:
        calls.append(part)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return compute_part(task, part)

    monkeypatch.setattr(sweeping, "compute_part", broken)
    with pytest.raises(KeyboardInterrupt):
        sweep(task, tmp_path / "cut.csv")
    assert not (tmp_path / "cut.csv").exists()
    seen: list[tuple[int, int | None, str]] = []
    found = sweep(task, tmp_path / "cut.csv", progress=lambda *told: seen.append(told))
    assert found.resumed == 9 and seen[-1] == (27, 27, "sweep: parts") and len(seen) == 18
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.csv", "whole.csv"]
    # Parts of another request are not mixed in.
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        sweep(task, tmp_path / "other.csv")
    with pytest.raises(Error, match="another sweep"):
        sweep(_task(batch=2), tmp_path / "other.csv")


def test_parquet_holds_the_same_numbers(tmp_path: Path, small_parts: None) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    task = _task()
    sweep(task, tmp_path / "s.csv")
    sweep(task, tmp_path / "s.parquet")
    table = parquet.read_table(tmp_path / "s.parquet").to_pydict()
    lines = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert lines[0] == list(table) == list(COLUMNS)
    assert [[str(table[name][at]) for name in COLUMNS] for at in range(len(SPACE))] == lines[1:]


def test_a_killed_worker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweeping, "_IN_FLIGHT", 6)
    task = _task()
    sweep(task, tmp_path / "alone.csv")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        process = next(iter(cluster.workers.values())).pid
        killed: list[int] = []

        def kill(done: int, total: int | None, label: str) -> None:
            if done == 5 and not killed:
                killed.append(process)
                os.kill(process, signal.SIGKILL)

        sweep(task, tmp_path / "spread.csv", executor=client.get_executor(), progress=kill)
        assert killed
    assert (tmp_path / "spread.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(cnn().SerializeToString())
    words = ["sweep", str(tmp_path / "m.onnx"), "--arrays", "8..32", "--sram", "4KiB..16KiB", "--dataflow", "ws,os",
             "--bandwidth", "1,12.8", "-o", str(tmp_path / "s.csv"), "--plot", str(tmp_path / "p.svg"), "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["result"]
    assert told["configurations"] == 9 * 3 * 2 * 2 == len((tmp_path / "s.csv").read_text().splitlines()) - 1
    seconds = [row["seconds"] for row in told["front"]]
    assert seconds == sorted(seconds) and seconds
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert CliRunner().invoke(app, words).exit_code == 2  # never overwritten unasked
    for wrong in (["--arrays", "9..3"], ["--arrays", "x"], ["--dataflow", "rs"], ["--on", "t4"], ["--executor", "spark://x"],
                  ["-o", str(tmp_path / "s.txt")], ["--sram", "0"]):  # fmt: skip
        assert CliRunner().invoke(app, [*words, *wrong, "--overwrite"]).exit_code == 2, wrong


def test_ranges() -> None:
    assert read_range("8..64", "x") == [8, 16, 32, 64]
    assert read_range("8..16:4,100", "x") == [8, 12, 16, 100]
    assert read_range("64KiB..256KiB", "x") == [1 << 16, 1 << 17, 1 << 18]
    for text in ("", "8..", "5..1", "8:2", "1..1000000000000:1", "-1", "nan", "1e9"):
        with pytest.raises(Error):
            read_range(text, "x")
