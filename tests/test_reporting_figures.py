"""Figures, tables and files of a report say what the records say: checked against numbers worked by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from report_records import HOSTILE, PLAIN, comparison, cost, records, small

import hwq
from hwq import reporting
from hwq.reporting import cost_plots, distributions, drawing, meeting, page, plots, serialization, tables
from hwq.reporting.records import Cost, Records


def test_an_axis_without_a_label_is_refused() -> None:
    with drawing.canvas("x", 200, 100) as canvas:
        canvas.axes[0].set_ylabel("time, ms")
        with pytest.raises(ValueError, match="no label"):
            canvas.finish("t", "c", "d")


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_light_and_dark_have_contrast() -> None:
    """WCAG 2.1: text 4.5:1, marks 3:1."""
    sheet = (Path(reporting.__file__).with_name("report.css")).read_text()
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    assert "prefers-color-scheme: dark" in sheet
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", scheme))
        for ground in ("paper", "raised"):
            for name, colour in colours.items():
                bright, dim = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
                least = 4.5 if name in {"ink", "muted", "accent", "warn"} else 3.0 if name.startswith("s") else 1.0
                assert (bright + 0.05) / (dim + 0.05) >= least, (name, colour, ground)


def test_hostile_names_in_csv_and_json() -> None:
    found = records(HOSTILE, model="@SUM(A1)")
    stream = io.StringIO(newline="")
    meeting.write_csv(stream, found.costs, found.comparisons)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert [row["layer"] for row in rows[: len(HOSTILE)]][2] == "'=1+1" and rows[0]["model"] == "'@SUM(A1)"
    assert "\x1b" not in stream.getvalue() and len(stream.getvalue()) < 100_000
    document = json.loads(serialization.to_json(found))
    assert (
        document["costs"][0]["layers"][0]["name"] == HOSTILE[0]
        and len(document["costs"][0]["layers"][8]["name"]) <= 4000
    )


def test_csv_columns_name_their_units_and_hold_the_numbers() -> None:
    found = records(PLAIN)
    stream = io.StringIO(newline="")
    meeting.write_csv(stream, found.costs, found.comparisons)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert {
        "time_seconds",
        "macs",
        "dram_bytes",
        "energy_picojoules",
        "mac_utilization_percent",
        "sqnr_db",
        "max_error_lsb",
    } <= set(rows[0])
    first = rows[0]
    assert (float(first["time_seconds"]), int(first["macs"]), float(first["dram_bytes"]), float(first["sqnr_db"])) == (
        1e-6,
        1000,
        500.0,
        30.0,
    )
    # 1 us of 10 us.
    assert float(first["share_of_time_percent"]) == pytest.approx(10.0)
    assert len(rows) == sum(len(one.layers) for one in found.costs)
    alone = dataclasses.replace(found, costs=())
    stream = io.StringIO(newline="")
    meeting.write_csv(stream, alone.costs, alone.comparisons)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert len(rows) == len(PLAIN) and rows[1]["sqnr_db"] == "12.5" and rows[1]["time_seconds"] == ""


def test_json_has_a_schema_and_only_what_json_knows() -> None:
    text = serialization.to_json(records(PLAIN), command="hwq demo")
    document = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (
        document["schema_version"] == 1
        and document["hwq_version"] == hwq.__version__
        and document["command"] == "hwq demo"
    )
    one = document["costs"][0]
    assert (
        one["seconds"] == pytest.approx(1e-5)
        and one["dram_bytes"] == 8500.0
        and one["inferences_per_second"] == pytest.approx(1e5)
    )
    assert document["comparisons"][0]["layers"][2]["sqnr_db"] == "inf"


def test_roofline_dots_are_where_the_numbers_say() -> None:
    drawn = ElementTree.fromstring(cost_plots.roofline("r", [cost(PLAIN)]).svg)
    told = {
        element.findtext("title", "").split(" ")[0]: element for element in drawn if element.find("title") is not None
    }
    assert set(told) == {"stem/conv", "block/depthwise", "block/pointwise", "head/dense"}, (
        "layers without MACs have no place"
    )
    assert "2 MAC/byte, 1 GMAC/s, 10 % of the time" in told["stem/conv"].findtext("title", "")
    assert told["block/pointwise"].tag == "path" and "no DRAM traffic" in told["block/pointwise"].findtext("title", "")
    x = {name: float(element.get("cx", "nan")) for name, element in told.items() if element.tag == "circle"}
    y = {name: float(element.get("cy", "nan")) for name, element in told.items() if element.tag == "circle"}
    # Logarithmic axes: 2 -> 40 MAC/byte is log10(20) decades, 2 -> 1 one of log10(2); 1 -> 10 GMAC/s a decade up.
    assert (x["block/depthwise"] - x["stem/conv"]) / (x["stem/conv"] - x["head/dense"]) == pytest.approx(
        math.log10(20) / math.log10(2), rel=0.01
    )
    assert (y["stem/conv"] - y["block/depthwise"]) / (y["stem/conv"] - y["head/dense"]) == pytest.approx(
        1 / math.log10(5), rel=0.01
    )
    # Area is the share of the time: 4 us against 1 us is twice the radius.
    assert float(told["block/depthwise"].get("r", 0)) == pytest.approx(
        2 * float(told["stem/conv"].get("r", 0)), rel=0.01
    )
    words = " ".join(element.text or "" for element in drawn.iter("text"))
    assert "int8 100 GMAC/s" in words and "DRAM 1 GB/s" in words


def test_layers_of_machines_that_fuse_differently_share_one_axis() -> None:
    fewer = cost(["stem/conv", "pool", "head/dense"], "chip")
    drawn = plots.layers("l", [cost(PLAIN), fewer], comparison(PLAIN), "net")
    shown = [element.text for element in ElementTree.fromstring(drawn.svg).iter("text") if element.text in PLAIN]
    assert shown == PLAIN
    assert "12.5 dB at block/depthwise" in drawn.description
    swapped = plots.layers("l", [fewer, cost(PLAIN)], comparison(PLAIN), "net")
    shown = [element.text for element in ElementTree.fromstring(swapped.svg).iter("text") if element.text in PLAIN]
    assert shown == PLAIN


def test_many_layers_keep_the_costliest_and_the_worst() -> None:
    names = [f"layer{index}" for index in range(plots.MAX_LAYERS + 60)]
    many = cost(names)
    slow = dataclasses.replace(many.layers[299], seconds=1.0)
    many = dataclasses.replace(many, layers=(*many.layers[:299], slow))
    found = comparison(names)
    bad = dataclasses.replace(found.layers[7], sqnr_db=-3.0)
    found = dataclasses.replace(found, layers=(*found.layers[:7], bad, *found.layers[8:]))
    drawn = plots.layers("l", [many], found, "net")
    texts = {element.text for element in ElementTree.fromstring(drawn.svg).iter("text")}
    assert {"layer299", "layer7"} <= texts and "60 cheaper and more precise layers are left out" in drawn.caption


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0303, "0.0303"),
        (33055.4, "33,055"),
        (999.9, "1000"),
        (1.5e-6, "1.50e-06"),
        (None, "–"),
        (math.inf, "exact"),
        (math.nan, "–"),
        (12.345, "12.3"),
        (-3.0, "-3.00"),
    ],
)
def test_numbers_in_tables(value: float | None, text: str) -> None:
    assert tables.number(value).text == text


@pytest.mark.parametrize(
    ("value", "text"), [(46.0e12, "46 T"), (999.6e6, "1 G"), (0.5, "500 m"), (0, "0"), (3.2e11, "320 G"), (12, "12")]
)
def test_si_prefixes(value: float, text: str) -> None:
    assert drawing.si(value) == text


def test_histograms_count_everything_and_clip_where_the_type_does() -> None:
    graph = small()
    data = np.random.default_rng(4).normal(size=(500, 4)).astype(np.float32)
    calibration = hwq.calibrate(graph, data)
    quantized = hwq.quantize(
        graph, hwq.Plan.uniform("int8", "uint8", granularity="channel", observer="percentile"), calibration
    )
    found = {histogram.tensor: histogram for histogram in distributions.choose([calibration], [graph, quantized], [])}
    scale, zero = float(quantized.constant("x_scale")), int(quantized.constant("x_zero_point"))
    histogram = found["x"]
    assert histogram.counts.sum() == data.size
    assert histogram.clip == pytest.approx((-zero * scale, (255 - zero) * scale))
    exact = np.mean((data < (-zero - 0.5) * scale) | (data > (255 - zero + 0.5) * scale))
    assert histogram.clipped_share == pytest.approx(exact, abs=2 / data.size)
    # Weights stand in steps of their channel: the largest of each channel is 127 steps.
    steps = found["w"]
    assert (
        steps.kind == "weight"
        and steps.counts.sum() == 8
        and steps.clip == (-128.0, 127.0)
        and steps.clipped_share == 0.0
    )
    assert max(abs(steps.edges[0]), steps.edges[-1]) == pytest.approx(127.0, rel=1e-5)


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_of_an_accuracy(right: int, of: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert tables.wilson(right / of, of) == pytest.approx((low, high), abs=5.1e-5)


def _layers_of(changes: dict[str, object]) -> Cost:
    found = cost(PLAIN)
    return dataclasses.replace(found, layers=tuple(dataclasses.replace(layer, **changes) for layer in found.layers))


@pytest.mark.parametrize(
    "found",
    [
        Records(
            costs=(dataclasses.replace(cost(PLAIN), layers=(), seconds=0.0, traffic_bytes={}, energy_picojoules={}),)
        ),
        Records(costs=(dataclasses.replace(_layers_of({"seconds": 0.0, "macs": 0, "dram_bytes": 0.0}), seconds=0.0),)),
        Records(costs=(dataclasses.replace(cost(PLAIN), bandwidth=None, peaks={}),)),
        Records(
            costs=(dataclasses.replace(_layers_of({"macs": 10**18, "dram_bytes": 1e18, "seconds": 1e9}), seconds=5e9),)
        ),
        Records(costs=(_layers_of({"name": "n", "key": "k", "outputs": ("k",)}),), comparisons=(comparison(PLAIN),)),
        Records(
            comparisons=(
                dataclasses.replace(comparison(PLAIN), layers=(), accuracy_float=None, gained=None, lost=None),
            )
        ),
        Records(
            costs=(cost(PLAIN), cost(["q"], model="other")), comparisons=(comparison(["z"], "third"), comparison(PLAIN))
        ),
        *(
            Records(
                costs=(cost(PLAIN),),
                comparisons=(
                    dataclasses.replace(
                        comparison(PLAIN),
                        layers=tuple(dataclasses.replace(one, sqnr_db=level) for one in comparison(PLAIN).layers),
                    ),
                ),
            )
            for level in (math.inf, -math.inf, math.nan)
        ),
    ],
)
def test_extremes_make_a_page(found: Records) -> None:
    text = page.render(found, title=None, command=None, json_name="report.json", csv_name="layers.csv")
    assert text.endswith("</html>\n") and "nan" not in " ".join(re.findall(r' (?:d|cx|cy|r|x|y)="[^"]*"', text))
    json.loads(serialization.to_json(found), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
