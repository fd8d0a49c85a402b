"""Machine files: strict reading, units, names, what is counted as recalled or assumed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hwq.errors import Error
from hwq.simulators.catalogue import accelerators, find
from hwq.simulators.machine_file import read_accelerator
from hwq.simulators.quantity import CONFIDENCES, UNITS

FOLDER = Path(__file__).parent.parent / "hwq" / "simulators" / "accelerators"
FILES = sorted(FOLDER.glob("*.toml"))
GOOD = (FOLDER / "systolic.toml").read_text()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(text)
    return path


def numbers(record, path=""):
    """Every leaf of a TOML record that is a number or a table with a value, found without hwq's reader."""
    for key, value in record.items():
        spot = f"{path}.{key}" if path else key
        if isinstance(value, dict) and "value" in value:
            yield spot, value
        elif isinstance(value, dict):
            yield from numbers(value, spot)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield spot, value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_unit_source_and_confidence(path):
    record = tomllib.loads(path.read_text())
    assert record.pop("schema") == 1
    found = list(numbers(record))
    assert len(found) >= 10
    for spot, number in found:
        assert isinstance(number, dict), f"{spot} is a bare number"
        assert set(number) == {"value", "unit", "source", "confidence"}, spot
        assert number["unit"] in UNITS and number["confidence"] in CONFIDENCES and len(number["source"]) > 8, spot
    machine = read_accelerator(path)
    assert machine.name == path.stem
    assert sum(machine.confidences.values()) == len(found)
    for level in CONFIDENCES:
        assert machine.confidences[level] == sum(number["confidence"] == level for _, number in found)


def test_the_required_machines_are_there_and_resolve_by_alias():
    table = accelerators()
    assert {"tpu-v1", "t4", "ethos-u55-128"} <= set(table)
    assert find("TPU v1") is find("tpu-v1") is table["TPU v1"]
    assert find("nvidia T4").name == "t4"
    assert find(find("t4")) is find("t4")
    assert find(FOLDER / "t4.toml").hash == find("t4").hash


def test_peaks_equal_the_data_sheets():
    # TPU v1: 92 TOPS int8 (2 operations a MAC). T4: 130 TOPS int8, 65 TFLOPS fp16, 8.1 fp32, at the boost clock.
    assert find("tpu-v1").peak_macs_per_second("int8") * 2 / 1e12 == pytest.approx(91.75, rel=1e-4)
    t4, a100 = find("t4"), find("a100")
    boost, boost_a100 = t4.value("clock") / t4.clock, a100.value("clock") / a100.clock
    for precision, tera in (("int8", 130), ("int4", 260), ("float16", 65), ("float32", 8.1)):
        assert t4.peak_macs_per_second(precision) * boost * 2 / 1e12 == pytest.approx(tera, rel=0.006)
    for precision, tera in (("int8", 624), ("int4", 1248), ("float16", 312), ("float32", 19.5)):
        assert a100.peak_macs_per_second(precision) * boost_a100 * 2 / 1e12 == pytest.approx(tera, rel=0.002)
    assert find("ethos-u55-128").peak_macs_per_second("int8") == 128 * 500e6


def test_units_are_converted():
    tpu = find("tpu-v1")
    assert (tpu.value("clock"), tpu.value("dram.bandwidth"), tpu.value("buffer.capacity")) == (700e6, 34e9, 24 * 2**20)
    assert tpu.value("host.latency") == pytest.approx(1e-5)


def test_arrays_by_name():
    machine = find("systolic:8x16:os")
    assert (machine.value("array.rows"), machine.value("array.cols")) == (8, 16)
    assert machine.choices["array.dataflow"] == "os" and machine.name == "systolic:8x16:os"
    assert find("tpu-v1:128x128").choices["array.dataflow"] == "ws"
    assert machine.hash != find("systolic:16x8:os").hash
    for bad in ("t4:8x8", "systolic:0x8", "systolic:8x8:xs", "nothing", "systolic:", "", "x" * 5000):
        with pytest.raises(Error):
            find(bad)


def test_unsupported_precisions_say_why():
    for name, precision, word in (
        ("tpu-v1", "float16", "integer"),
        ("tpu-v1", "int4", "int4"),
        ("ethos-u55-128", "float16", "integer"),
        ("t4", "bfloat16", "Ampere"),
        ("t4", "int2", "t4 has no int2"),
    ):
        with pytest.raises(Error) as caught:
            find(name).resolve(precision)
        assert word in caught.value.why and caught.value.remedy
    assert find("cpu-avx2").resolve("int4") == "int8"


def test_replace_changes_one_number_and_the_hash():
    base = find("systolic")
    fast = base.replace({"dram.bandwidth": 25.6e9})
    assert fast.value("dram.bandwidth") == 25.6e9 and base.value("dram.bandwidth") == 12.8e9
    assert fast.hash != base.hash and fast.quantities["dram.bandwidth"].source == "given by the caller"
    for values in ({"dram.bandwith": 1.0}, {"array.rows": 1.5}, {"clock": -1.0}, {"clock": float("nan")}):
        with pytest.raises(Error):
            base.replace(values)


CLOCK = 'clock = { value = 1, unit = "GHz", source = "free parameter", confidence = "assumed" }'

BAD = {
    "not toml": ("= =", "TOML"),
    "empty": ("", "schema"),
    "wrong schema": (GOOD.replace("schema = 1", "schema = 2"), "schema"),
    "boolean schema": (GOOD.replace("schema = 1", "schema = true"), "schema"),
    "unknown family": (GOOD.replace('family = "systolic"', 'family = "tensor"'), "family"),
    "unknown key": (GOOD.replace("[buffer]", "[bufer]"), "bufer.capacity"),
    "missing unit": (GOOD.replace('unit = "GHz", ', ""), "unit is missing"),
    "missing source": (GOOD.replace(CLOCK, CLOCK.replace('source = "free parameter", ', "")), "source is missing"),
    "missing confidence": (GOOD.replace(CLOCK, CLOCK.replace(', confidence = "assumed"', "")), "confidence is missing"),
    "odd confidence": (GOOD.replace(CLOCK, CLOCK.replace('"assumed"', '"sure"')), "sure"),
    "unknown unit": (GOOD.replace('"GHz"', '"furlong"'), "furlong"),
    "wrong dimension": (GOOD.replace('"GHz"', '"GB/s"'), "bandwidth"),
    "bare number": (GOOD.replace(CLOCK, "clock = 1"), "bare int"),
    "zero": (GOOD.replace("clock = { value = 1", "clock = { value = 0"), "positive"),
    "negative": (GOOD.replace("clock = { value = 1", "clock = { value = -1"), "positive"),
    "infinite": (GOOD.replace("clock = { value = 1", "clock = { value = inf"), "positive"),
    "nan": (GOOD.replace("clock = { value = 1", "clock = { value = nan"), "positive"),
    "boolean": (GOOD.replace("clock = { value = 1", "clock = { value = true"), "positive"),
    "text": (GOOD.replace("clock = { value = 1", 'clock = { value = "1"'), "positive"),
    "half a row": (GOOD.replace("rows = { value = 32", "rows = { value = 32.5"), "whole"),
    "missing clock": (GOOD.replace(CLOCK, ""), "clock is missing"),
    "missing dataflow": (GOOD.replace('dataflow = "ws"', ""), "array.dataflow is missing"),
    "odd dataflow": (GOOD.replace('dataflow = "ws"', 'dataflow = "rs"'), "rs"),
    "no precisions": (re.sub(r"\[precisions\](.|\n)*", "", GOOD), "precisions"),
    "precision of nothing": (GOOD + "int2 = {}\n", "int2"),
    "precision of odd unit": (GOOD.replace("MAC/MAC int8", "MAC/cycle"), "relative rate"),
    "runs as nothing": (GOOD + 'int2 = { runs_as = "int3", why = "x" }\n', "runs_as"),
    "odd support": (GOOD + '[support]\nSoftmax = { level = "slow", why = "x" }\n', "support"),
    "support without why": (GOOD + '[support]\nSoftmax = { level = "host" }\n', "support"),
    "host without a rate": (GOOD + '[support]\nSoftmax = { level = "host", why = "x" }\n', "host.rate is missing"),
    "aliases of numbers": (GOOD.replace("aliases = []", "aliases = [1]"), "aliases"),
    "no name": (GOOD.replace('name = "systolic"', "", 1), "name"),
    "text in quantity place": (GOOD.replace(CLOCK, 'clock = "fast"'), "clock"),
    "deep": ("a = " + "[" * 5000 + "]" * 5000, "TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_machine_files_are_one_clear_error(tmp_path, case):
    text, word = BAD[case]
    assert text != GOOD
    path = write(tmp_path, text)
    with pytest.raises(Error) as caught:
        read_accelerator(path)
    assert word in str(caught.value) and str(path) in caught.value.where


def test_bad_bytes_and_paths(tmp_path):
    path = tmp_path / "machine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    for bad in (path, tmp_path, tmp_path / "none.toml"):
        with pytest.raises(Error):
            find(bad)


def test_reading_machines_imports_no_execution():
    code = "import sys, hwq.simulators as s; s.find('t4'); print([m for m in sys.modules if m.startswith('hwq.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "hwq.kernels" not in loaded and "hwq.execution" not in loaded and "hwq._" not in loaded
