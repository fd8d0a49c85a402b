"""The demo: the whole job on the embedded model, one screen, one report."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from hwq.demo import run as demo
from hwq.errors import Error


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    steps: list[tuple[int, int | None, str]] = []
    started = time.process_time()
    summary = demo.run(folder, progress=lambda *step: steps.append(step))
    return summary, folder, steps, time.process_time() - started


def screen(summary: demo.Summary, **options: object) -> str:
    stream = io.StringIO()
    demo.show(summary, Console(file=stream, width=100, highlight=False, **options))  # type: ignore[arg-type]
    return stream.getvalue()


def test_accuracy_and_agreement(done) -> None:
    summary = done[0]
    assert summary.images >= 300 and summary.calibration_images >= 100
    assert summary.accuracy_float >= 0.97
    assert abs(summary.accuracy_int8 - summary.accuracy_float) <= 0.01 + 1e-9 and summary.agreement >= 0.97
    assert 0.2 < summary.parameter_bytes["int8"] / summary.parameter_bytes["float32"] < 0.4
    assert 0.1 < summary.parameter_bytes["int4"] / summary.parameter_bytes["float32"] < 0.25


def test_every_model_machine_and_precision_has_a_row(done) -> None:
    rows = done[0].rows
    assert len(rows) == len(demo.MACHINES) * (1 + len(demo.MODELS) * len(demo.PRECISIONS))
    for row in rows:
        if row.unsupported:
            assert row.precision != "INT8" and row.milliseconds is None and len(row.unsupported) > 10
            continue
        assert row.inferences_per_second == pytest.approx(1000 / row.milliseconds)
        assert row.dram_megabytes > 0 and row.millijoules > 0 and 0 < row.mac_utilization <= 1 and row.bound
        costs = [milliseconds for _, milliseconds in row.costliest]
        assert len(costs) == 3 and costs == sorted(costs, reverse=True) and sum(costs) <= row.milliseconds * (1 + 1e-9)
    lacking = {(row.machine, row.precision) for row in rows if row.unsupported}
    # TPU v1 and Ethos-U55 have integer multipliers for 8 and 16 bits only; a T4 has tensor cores for all three.
    assert lacking == {
        (machine, precision) for machine in ("tpu-v1", "ethos-u55-128") for precision in ("FP16", "INT4")
    }


def test_weights_once_is_the_least_traffic(done) -> None:
    """ResNet-50's 25.5 million parameters (workloads/totals_check.csv) cross the off-chip memory at least once."""
    widths = {"FP16": 2.0, "INT8": 1.0, "INT4": 0.5}
    for row in done[0].rows:
        if row.model == "resnet50" and not row.unsupported:
            assert row.dram_megabytes >= 25.5 * widths[row.precision] * 0.99
            assert row.milliseconds > 0.03


def test_the_screen_fits_and_names_its_units(done) -> None:
    text = screen(done[0])
    lines = text.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100 and "\x1b" not in text
    for word in (
        "accuracy",
        "agreement",
        " %",
        "bytes",
        "ms",
        "inferences/s",
        "DRAM MB",
        "mJ",
        "MAC utilization %",
        "bound by",
        "three costliest layers",
        "unsupported: FP16 on tpu-v1",
        "unsupported: INT4 on ethos-u55-128",
        "float32",
        "int8",
        "int4",
        "verified",
    ):
        assert word in text, word
    for name in (*demo.MACHINES, *demo.MODELS):
        assert name in text
    assert f"{100 * done[0].accuracy_int8:.2f} %" in text
    assert "\x1b[" in screen(done[0], force_terminal=True)


def test_the_report_lies_in_the_folder(done) -> None:
    summary, folder, _, _ = done
    assert sorted(file.name for file in folder.iterdir()) == ["layers.csv", "report.html", "report.json"]
    assert sorted(summary.files) == sorted(str(file) for file in folder.iterdir())
    text = (folder / "report.html").read_text("utf-8")
    for figure in (
        "layer-chart",
        "roofline-0",
        "roofline-1",
        "roofline-2",
        "focus-traffic",
        "focus-energy",
        "histogram-0",
    ):
        assert f'<figure id="{figure}-figure"' in text, figure
    assert "SQNR, dB" in text and "hwq demo" in text and len(text) < 3_000_000
    document = json.loads((folder / "report.json").read_text())
    assert document["schema_version"] == 1
    assert len(document["costs"]) + len(document["unsupported"]) == len(summary.rows)
    told = document["comparisons"][0]
    assert told["accuracy_quantized"] == summary.accuracy_int8 and told["agreement"] == summary.agreement
    json.dumps(summary.to_dict(), allow_nan=False)


def test_the_report_is_never_overwritten_unasked(done) -> None:
    _, folder, _, _ = done
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    started = time.process_time()
    with pytest.raises(Error, match="exists"):
        demo.run(folder)
    assert time.process_time() - started < 1.0, "refused before the work, not behind it"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_same_demo_writes_the_same_bytes_over_its_own(tmp_path, monkeypatch) -> None:
    """Without the networks of the zoo, whose pages are made by the same code."""
    monkeypatch.setattr(demo, "MODELS", demo.MODELS[:0])
    written = []
    for _ in range(2):
        demo.run(tmp_path, overwrite=True)
        written.append({file.name: file.read_bytes() for file in tmp_path.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 3


def test_progress_counts_to_its_end(done) -> None:
    steps = done[2]
    assert [step[0] for step in steps] == list(range(1, len(steps) + 1)) and {step[1] for step in steps} == {len(steps)}


def test_it_takes_less_than_twenty_seconds(done) -> None:
    assert done[3] < 20.0
