"""`hwq scalesim` against SCALE-Sim itself: rows here and in ../shared, its files of both versions, hostile ones."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import SHARED

from hwq.errors import Error, NotSupportedYet
from hwq.simulators.scalesim import LayerReport, estimate_compute, run, simulate, write_reports
from hwq.simulators.scalesim_files import Configuration, Layer, read_configuration, read_topology

HERE = Path(__file__).parent / "golden" / "scalesim"
GOLDEN = SHARED / "golden" / "scalesim"
REPORTS = ("COMPUTE_REPORT", "BANDWIDTH_REPORT", "DETAILED_ACCESS_REPORT")

CONFIG_2 = """[general]
run_name = "small"
[architecture_presets]
ArrayHeight:    8
ArrayWidth:     4
IfmapSramSzkB:    1
FilterSramSzkB:   1
OfmapSramSzkB:    1
IfmapOffset:    0
FilterOffset:   10000000
OfmapOffset:    20000000
Dataflow : os
Bandwidth : 10,10
MemoryBanks: 1
[run_presets]
InterfaceBandwidth: USER
"""
CONFIG_3 = CONFIG_2.replace('"small"', "small").replace("[run_presets]", """[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 6
IfmapSRAMBankNum: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 5
FilterSRAMBankNum: 1
[sparsity]
SparsitySupport : false
[run_presets]
UseRamulatorTrace: False""")  # fmt: skip


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def _golden(name: str) -> list[dict[str, str]]:
    if not GOLDEN.is_dir():
        pytest.skip("no ../shared/golden/scalesim here (set HWQ_SHARED)")
    return _read(GOLDEN / name)


def _shared_layer(row: dict[str, str]) -> Layer:
    names = ("ifmap_h", "ifmap_w", "filt_h", "filt_w", "channels", "num_filt", "stride_h", "stride_w")
    return Layer(row["layer"], *(int(row[name]) for name in names))


def test_report_lines_equal_the_tool(tmp_path: Path) -> None:
    rows = _read(HERE / "rows.csv")
    assert len(rows) >= 100
    for row in rows:
        number = {key: int(value) for key, value in row.items() if value.isdigit()}
        bandwidths = (number["ifmap_reads"], number["filter_reads"], number["writes"])
        config = Configuration(
            "run", number["rows"], number["cols"], row["dataflow"],
            number["ifmap_kb"], number["filter_kb"], number["ofmap_kb"], bandwidths if row["mode"] == "USER" else None,
        )  # fmt: skip
        layer = Layer(
            "x", number["ifmap_h"], number["ifmap_w"], number["filter_h"], number["filter_w"],
            number["channels"], number["filters"], number["stride"], number["stride"],
        )  # fmt: skip
        write_reports([simulate(layer, config)], tmp_path, overwrite=True)
        for name in REPORTS:
            assert (tmp_path / f"{name}.csv").read_text().splitlines()[1] == row[name], (row, name)


def _shared_cells(report: LayerReport) -> dict[str, float]:
    cells: dict[str, float] = {
        "macs": report.macs,
        "cycles_incl_prefetch": report.cycles_with_prefetch,
        "total_cycles": report.total_cycles,
        "stall_cycles": report.stall_cycles,
        "overall_util_pct": report.overall_utilization,
        "mapping_eff_pct": report.mapping_efficiency,
        "compute_util_pct": report.compute_utilization,
    }
    for name, port, sram in zip(("ifmap", "filter", "ofmap"), (report.ifmap, report.filter, report.ofmap),
                                report.sram_bandwidths, strict=True):  # fmt: skip
        verb = "writes" if name == "ofmap" else "reads"
        cells |= {
            f"avg_sram_{name}_bw": sram, f"avg_dram_{name}_bw": port.dram_bandwidth,
            f"sram_{name}_start": port.sram_start, f"sram_{name}_stop": port.sram_stop,
            f"sram_{name}_{verb}": port.sram_words,
            f"dram_{name}_start": port.dram_start, f"dram_{name}_stop": port.dram_stop,
            f"dram_{name}_{verb}": port.dram_words,
        }  # fmt: skip
    return cells


def test_every_shared_row_is_identical() -> None:
    rows = _golden("full_runs.csv")
    for row in rows:
        bandwidth = int(row["read_bandwidth"])
        config = Configuration(
            "run", int(row["array_rows"]), int(row["array_cols"]), row["dataflow"], int(row["ifmap_sram_kb"]),
            int(row["filter_sram_kb"]), int(row["ofmap_sram_kb"]),
            (bandwidth, bandwidth, int(row["bandwidth"])) if row["mode"] == "USER" else None,
        )  # fmt: skip
        cells = _shared_cells(simulate(_shared_layer(row), config))
        wrong = {key: (value, row[key]) for key, value in cells.items() if value != float(row[key])}
        assert not wrong, (row["network"], row["layer"], row["dataflow"], row["mode"], wrong)
    assert len(rows) == 613


def test_every_shared_compute_row_is_identical_by_engine_and_closed_form() -> None:
    rows = _golden("compute_runs.csv")
    assert len(rows) == 668
    for row in rows:
        layer, size = _shared_layer(row), (int(row["array_rows"]), int(row["array_cols"]))
        closed = {key: column[0] for key, column in estimate_compute([layer], *size, row["dataflow"]).items()}
        for mine, theirs in (("total_cycles", "total_cycles"), ("demand_rows", "demand_rows"),
                             ("ifmap_words", "sram_ifmap_reads"), ("filter_words", "sram_filter_reads"),
                             ("ofmap_words", "sram_ofmap_writes")):  # fmt: skip
            assert closed[mine] == int(row[theirs]), (row, mine)
        assert closed["mapping_efficiency"] == pytest.approx(float(row["mapping_eff_pct"]), rel=1e-12)
        assert closed["compute_utilization"] == pytest.approx(float(row["compute_util_pct"]), rel=1e-9)
    for row in rows[::25]:  # SRAM so large that nothing stalls
        config = Configuration("x", int(row["array_rows"]), int(row["array_cols"]), row["dataflow"],
                               1 << 14, 1 << 14, 1 << 14, None)  # fmt: skip
        report = simulate(_shared_layer(row), config)
        assert (report.total_cycles, report.stall_cycles) == (int(row["total_cycles"]), 0)
        assert report.compute_utilization == float(row["compute_util_pct"])
        assert report.mapping_efficiency == float(row["mapping_eff_pct"])


# ResNet-50 (He et al. 2016, table 1): stem, then per stage blocks of 1x1, 3x3, 1x1 and one projection; 224 x 224 input.
# Inputs are cut to what the windows cover, (out - 1) x stride + filter: the tool rounds a partial window up.
def _resnet50() -> list[Layer]:
    layers = [Layer("conv1", 229, 229, 7, 7, 3, 64, 2, 2)]
    channels = 64
    for stage, (blocks, width, size) in enumerate(((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7))):
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            name, big = f"s{stage}b{block}", size * stride
            layers.append(Layer(name + "a", big, big, 1, 1, channels, width, 1, 1))
            reach = (size - 1) * stride
            layers.append(Layer(name + "b", reach + 3, reach + 3, 3, 3, width, width, stride, stride))
            layers.append(Layer(name + "c", size, size, 1, 1, width, 4 * width, 1, 1))
            if block == 0:
                layers.append(Layer(name + "d", reach + 1, reach + 1, 1, 1, channels, 4 * width, stride, stride))
            channels = 4 * width
    return [*layers, Layer("fc", 1, 1, 1, 1, 2048, 1000, 1, 1)]


def test_whole_resnet50_by_the_memory_model_and_by_closed_forms() -> None:
    layers = _resnet50()
    assert len(layers) == 54
    config = Configuration("x", 32, 32, "ws", 64, 64, 64, (10, 10, 10))
    reports = [simulate(layer, config) for layer in layers]
    closed = estimate_compute(layers, 32, 32, "ws")
    stalls = np.array([report.stall_cycles for report in reports])
    np.testing.assert_array_equal(closed["total_cycles"] + stalls, [report.total_cycles for report in reports])
    assert sum(report.macs for report in reports) == pytest.approx(4.09e9, rel=0.01)  # the published 4.1 GMAC


def test_files_of_both_versions(tmp_path: Path) -> None:
    (tmp_path / "3.cfg").write_text(CONFIG_3)
    (tmp_path / "2.cfg").write_text(CONFIG_2.replace('"small"', "small"))
    new, old = read_configuration(tmp_path / "3.cfg"), read_configuration(tmp_path / "2.cfg")
    assert (new.bandwidths, old.bandwidths) == ((6, 5, 10), (10, 10, 10))
    assert (new.rows, new.cols, new.dataflow, new.ifmap_kb, new.run_name) == (8, 4, "os", 1, "small")
    (tmp_path / "3.csv").write_text(
        "Layer name,h,w,fh,fw,c,n,Strides, Sparsity,\n a, 9, 8, 3, 2, 4, 5, 2, 1:1,\n\nDPb,4,4,1,1,2,1,1,\n"
    )
    (tmp_path / "2.csv").write_text("Layer name,h,w,fh,fw,c,n,Stride height,Stride width\na,9,8,3,2,4,5,2,1\n")
    (tmp_path / "g.csv").write_text("Layer, M, N, K,\nqkv, 12, 30, 20,\n")
    assert [layer.sizes for layer in read_topology(tmp_path / "3.csv")] == [
        (9, 8, 3, 2, 4, 5, 2, 2), (4, 4, 1, 1, 1, 1, 1, 1), (4, 4, 1, 1, 1, 1, 1, 1)]  # fmt: skip
    assert [layer.name for layer in read_topology(tmp_path / "3.csv")] == ["a", "DPbChannel_0", "DPbChannel_1"]
    assert read_topology(tmp_path / "2.csv")[0].sizes == (9, 8, 3, 2, 4, 5, 2, 1)
    assert read_topology(tmp_path / "g.csv") == [Layer("qkv", 12, 20, 1, 20, 1, 30, 1, 1)]
    done = run(tmp_path / "3.cfg", tmp_path / "g.csv", tmp_path / "out")
    assert [path.name for path in done.files] == [f"{name}.csv" for name in REPORTS]
    assert done.layers[0].macs == 12 * 20 * 30
    with pytest.raises(Error, match="exists"):
        run(tmp_path / "3.cfg", tmp_path / "g.csv", tmp_path / "out")
    seen: list[tuple[int, int | None, str]] = []
    run(tmp_path / "3.cfg", tmp_path / "3.csv", progress=lambda *step: seen.append(step))
    assert seen[-1] == (3, 3, "scalesim: layers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ArrayHeight:    8", "ArrayHeight: 0"), "range"),
        (("ArrayHeight:    8", "ArrayHeight: 1e9"), "whole number"),
        (("ArrayHeight:    8", ""), "missing"),
        (("= small", "= ../../etc"), "folder"),
        (("= small", "= %(x)s/../.."), "folder"),
        (("Dataflow : os", "Dataflow : rs"), "dataflow"),
        (("USER", "GUESS"), "InterfaceBandwidth"),
        (("[general]", "general"), "not a SCALE-Sim"),
        (("BankNum: 2", "BankNum: 4"), "multiple"),
    ],
)
def test_bad_configurations(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "c.cfg").write_text(CONFIG_3.replace(*change))
    with pytest.raises(Error, match=message):
        read_configuration(tmp_path / "c.cfg")


def test_features_that_are_not_modelled(tmp_path: Path) -> None:
    for old, new in (("SparsitySupport : false", "SparsitySupport : true"), ("Trace: False", "Trace: True"),
                     ("IfmapCustomLayout: False", "IfmapCustomLayout: True")):  # fmt: skip
        (tmp_path / "c.cfg").write_text(CONFIG_3.replace(old, new))
        with pytest.raises(NotSupportedYet):
            read_configuration(tmp_path / "c.cfg")


@pytest.mark.parametrize(
    "text",
    [
        "", "header\n", "h\na,3,3,5,1,1,1,1,\n", "h\na,3,3,1,1,1,1,\n", "h\na,3,3,1,1,1,x,1,\n",
        "h\na,3,-3,1,1,1,1,1,\n",
        "h\na,99999999999999999999,3,1,1,1,1,1,\n", "h\nDP,3,3,1,1,1000000,1,1,\n", "h,M,N,K\na,1,2,\n",
        "a,h,w,f,f,c,n,s,Batch\na,3,3,1,1,1,1,1,8,\n", "h\n" + "a,3,3,1,1,1,1,1,\n" * 100_001,
    ],
)  # fmt: skip
def test_bad_topologies(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(Error):
        read_topology(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Error, match="text"):
        read_topology(tmp_path / "t.csv")


def test_layers_beyond_the_bounds_are_refused_at_once() -> None:
    config = Configuration("x", 32, 32, "os", 64, 64, 64, None)
    huge = (1 << 31) - 1
    for sizes in ((huge, huge, 1, 1, 1, 1), (1, 1, 1, 1, huge, huge), (40_000, 40_000, 1, 1, 1, 1),
                  (huge, 1, huge, 1, huge, huge), (huge, 1, 1, 1, 1, 1)):  # fmt: skip
        layer = Layer("x", *sizes, 1, 1)
        started = time.process_time()
        with pytest.raises(Error, match="cannot be simulated"):
            simulate(layer, config)
        assert time.process_time() - started < 1
    with pytest.raises(Error, match="words"):
        simulate(Layer("e", 1000, 1000, 1, 1, 64, 4096, 1, 1), config, max_words=1 << 30)
    with pytest.raises(Error, match="one cycle"):
        simulate(Layer("f", 1, 1, 1, 1, 1, 1, 1, 1), Configuration("x", 1, 1, "os", 1, 1, 1, None))
