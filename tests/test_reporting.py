"""Reports: one offline page, whole or not at all, the same bytes every time, safe with any name."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import hwq
from hwq import reporting
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.reporting import cost_plots, distributions, drawing, meeting, page, plots, serialization, tables
from hwq.reporting.records import (
    Calibrated,
    ComparedLayer,
    Comparison,
    Cost,
    CostLayer,
    Footprint,
    Histogram,
    Planned,
    Records,
    Unsupported,
)

HOSTILE = [
    "<script>alert(1)</script>",
    r"$\frac{1$",
    "=1+1",
    "conv[/a]",
    "\x1b[31mred\x1b[0m",
    "‮rtl",
    "url(#x)",
    "#0100fe",
    "y" * 1_000_000,
    '" onload="x',
]
PLAIN = ["stem/conv", "block/depthwise", "block/pointwise", "pool", "head/dense"]
# name, macs, bytes, seconds: 2 MAC/byte and 1 GMAC/s for the first, worked by hand.
NUMBERS = [
    (1_000, 500.0, 1e-6),
    (40_000, 1_000.0, 4e-6),
    (90_000, 0.0, 3e-6),
    (0, 2_000.0, 1e-6),
    (5_000, 5_000.0, 1e-6),
]


def cost(
    names: list[str], machine: str = "array", precision: str = "int8", model: str = "net", **changes: object
) -> Cost:
    numbers = [NUMBERS[index % len(NUMBERS)] for index in range(len(names))]
    layers = tuple(
        CostLayer(
            name,
            "Conv",
            precision,
            "compute",
            ("Relu",),
            f"{name}_quantized",
            (name,),
            seconds,
            macs,
            moved,
            10.0 * macs + moved,
            0.25,
        )
        for name, (macs, moved, seconds) in zip(names, numbers, strict=True)
    )
    total = sum(layer.seconds for layer in layers)
    moved = sum(layer.dram_bytes for layer in layers)
    macs = sum(layer.macs for layer in layers)
    values: dict[str, object] = {
        "model": model,
        "machine": machine,
        "family": "systolic",
        "precision": precision,
        "batch": 1,
        "seconds": total,
        "interval_seconds": (0.5 * total, 2 * total),
        "macs": macs,
        "cycles": 100,
        "utilization": 0.25,
        "bound": "compute",
        "validity": "not validated",
        "traffic_bytes": {"dram": {"weight": 0.75 * moved, "input": 0.25 * moved}, "buffer": {"sum": 3 * moved}},
        "energy_picojoules": {"mac": 10.0 * macs, "dram": 20.0 * moved, "static": 1e5},
        "energy_interval_picojoules": (5.0 * macs, 40.0 * moved + 1e6),
        "peaks": {precision: 1e11},
        "bandwidth": 1e9,
        "offchip": "dram",
        "layers": layers,
        "confidence": {"read": 1, "recalled": 4, "assumed": 2, "fitted": 0},
        "notes": ("static energy is left out",),
        "hashes": {"graph": "a" * 64, "plan": "b" * 64, "machine": "c" * 64},
    }
    return Cost(**(values | changes))  # type: ignore[arg-type]


def comparison(names: list[str], model: str = "net") -> Comparison:
    levels = [30.0, 12.5, math.inf, 41.0, 22.0]
    layers = tuple(
        ComparedLayer(name, "Conv", (name,), levels[i % len(levels)], 0.999, 2.0) for i, name in enumerate(names)
    )
    return Comparison(model, 500, 0.99, 0.0012, 0.98, 0.976, 0.6, layers, {"graph": "a" * 64})


def records(names: list[str], model: str = "net") -> Records:
    counts, edges = np.histogram(np.random.default_rng(0).normal(size=5000), 60)
    histograms = tuple(
        Histogram(name, kind, edges, counts.astype(np.float64), (-1.5, 2.5), 0.07, "int8")
        for name, kind in zip(names, ("activation", "weight", "activation"), strict=False)
    )
    costs = [cost(names, machine, model=model) for machine in ("array", "chip")]
    costs += [cost(names[:2], "chip", precision, f"{model} two") for precision in ("float16", "int8")]
    return Records(
        costs=tuple(costs),
        comparisons=(comparison(names, model),),
        histograms=histograms,
        footprints=(Footprint(model, "source", "float32", 5, 1000, 4000, "ort", "d" * 64),),
        plans=(Planned('schema = 1\n# <b> & "x"', "e" * 64),),
        unsupported=(Unsupported(f"{model} two", "array", "float16", "integers only <b>"),),
        calibrations=(Calibrated("3 samples", 3, 5, "f" * 64),),
    )


def rendered(found: Records) -> str:
    return page.render(found, title=None, command="hwq demo --out <x>", json_name="report.json", csv_name="layers.csv")


@pytest.fixture(scope="module")
def plain() -> str:
    return rendered(records(PLAIN))


@pytest.fixture(scope="module")
def hostile() -> str:
    return rendered(records(HOSTILE, model="<img src=x>"))


VOID = {"meta", "br", "link", "hr", "img", "input"}


class Reader(html.parser.HTMLParser):
    """Every element with its attributes and text; fails on a tag that is closed out of order or never."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def figures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg .*?</svg>", text, re.DOTALL)]


@pytest.fixture(params=["plain", "hostile"])
def written(request) -> str:
    return request.getfixturevalue(request.param)


def test_the_page_is_well_formed_and_has_every_figure(written: str) -> None:
    reader = Reader(written)
    assert written.startswith('<!doctype html>\n<html lang="en">')
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    drawn = figures(written)
    # layers, 2 rooflines, traffic, energy, 3 histograms; the other model: 1 roofline, traffic, energy.
    assert len(drawn) == 11 == len(reader.all("figure")) == len(reader.all("figcaption"))
    for name in (
        "layer-chart",
        "roofline-0",
        "roofline-1",
        "focus-traffic",
        "focus-energy",
        "histogram-0",
        "model-0-roofline-0",
    ):
        assert name in ids


def test_nothing_points_outside(written: str) -> None:
    reader = Reader(written)
    ids = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    # In markup (tags and style and script), not in text: a name may look like an address.
    for tag, attributes in reader.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "image", "foreignobject", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in {"src", "xmlns", "srcset", "data"}, (tag, name)
            if name in {"href", "xlink:href"}:
                assert value and value[0] == "#" and value[1:] in ids
            for target in re.findall(r"url\(([^)]*)\)", value or "") if name in {"style", "clip-path", "fill"} else []:
                assert target[0] == "#" and target[1:] in ids
    for inside, text in reader.text:
        if inside in {"style", "script"}:
            assert not re.search(r"https?:|//(?! )|@import|url\(|fetch|XMLHttp|import\(", text)
    (policy,) = [meta for meta in reader.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")


UNITS = r", (ms|µs|dB|%|MB|mJ)|MAC/s|MAC per byte of \w+ traffic|LSB|real units|^layer, in|^(memory, )?precision$"


def test_axes_name_quantity_and_unit(plain: str) -> None:
    for drawn in figures(plain):
        named = [
            text
            for element in drawn.iter("text")
            if (text := element.text or "") and re.search(UNITS, text) and not re.search(r"\d", text)
        ]
        assert len(named) >= 2, (drawn.get("id"), named)
        assert drawn.get("role") == "img" and len(drawn.get("aria-label") or "") > 30


def test_an_axis_without_a_label_is_refused() -> None:
    with drawing.canvas("x", 200, 100) as canvas:
        canvas.axes[0].set_ylabel("time, ms")
        with pytest.raises(ValueError, match="no label"):
            canvas.finish("t", "c", "d")


def test_colours_are_the_pages_own(plain: str) -> None:
    for drawn in figures(plain):
        styles = " ".join(element.get("style", "") for element in drawn.iter())
        assert not re.search(r"#[0-9a-fA-F]{6}", styles) and "var(--ink)" in styles


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


def test_tables_and_headings_are_accessible(plain: str) -> None:
    reader = Reader(plain)
    assert all(attributes.get("scope") in {"col", "row"} for attributes in reader.all("th"))
    assert len(reader.all("caption")) == len(reader.all("table")) > 5
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert any(meta.get("name") == "viewport" for meta in reader.all("meta"))


def test_hostile_names_are_text(hostile: str) -> None:
    reader = Reader(hostile)
    assert [tag for tag, _ in reader.elements if tag in {"script", "img", "b"}].count("script") == 1
    assert not reader.all("img") and "\x1b" not in hostile and "‮" not in hostile
    shown = [text for _, text in reader.text]
    assert "<script>alert(1)</script>" in shown and r"$\frac{1$" in shown and "=1+1" in shown and "#0100fe" in shown
    assert len(hostile) < 1_000_000, "a name of a megabyte is cut"
    labels = {element.text for drawn in figures(hostile) for element in drawn.iter("text")}
    assert {r"$\frac{1$", "conv[/a]", "#0100fe"} <= labels


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


def test_users_matplotlib_settings_neither_change_nor_are_changed(plain: str) -> None:
    import matplotlib

    with matplotlib.rc_context(
        {"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path", "text.usetex": False}
    ):
        before = dict(matplotlib.rcParams)
        again = rendered(records(PLAIN))
        assert dict(matplotlib.rcParams) == before
    assert again == plain


# From here on with hwq's own nouns.


def small() -> Graph:
    """relu(x * W) with x of 4 and W of 4 x 2."""
    weights = np.array([[1.0, 0.02], [-0.5, 0.004], [0.25, -0.02], [0.1, 0.01]], np.float32)
    nodes = [Node("MatMul", "dense", ("x", "w"), ("y",)), Node("Relu", "relu", ("y",), ("z",))]
    tensors = [
        Tensor("x", shape=("N", 4)),
        Tensor("w", shape=(4, 2), data=weights),
        Tensor("y", shape=("N", 2)),
        Tensor("z", shape=("N", 2)),
    ]
    return Graph(nodes, tensors, ["x"], ["z"], name="small")


@pytest.fixture(scope="module")
def nouns() -> list[object]:
    graph = small()
    data = np.random.default_rng(3).uniform(-1, 1, (64, 4)).astype(np.float32)
    plan = hwq.Plan.uniform("int8", "uint8", granularity="channel")
    calibration = hwq.calibrate(graph, data)
    quantized = hwq.quantize(graph, plan, calibration)
    compared = hwq.compare(graph, quantized, data)
    return [
        graph,
        quantized,
        plan,
        calibration,
        compared,
        *(hwq.estimate(quantized, name) for name in ("tpu-v1", "t4", "ethos-u55-128")),
    ]


def test_a_report_of_every_noun(nouns, tmp_path) -> None:
    files = hwq.report(nouns, tmp_path / "report.html", command="hwq report small.onnx")
    assert [file.name for file in files] == ["report.html", "report.json", "layers.csv"] and all(
        file.is_file() for file in files
    )
    text = files[0].read_text("utf-8")
    reader = Reader(text)
    estimates = nouns[5:]
    document = json.loads(files[1].read_text("utf-8"))
    for told, estimate in zip(document["costs"], estimates, strict=True):
        assert (
            told["seconds"] == estimate.seconds
            and told["macs"] == estimate.macs
            and told["machine"] == estimate.machine.name
        )
        assert told["total_picojoules"] == pytest.approx(estimate.picojoules)
        assert told["traffic_bytes"] == estimate.traffic
        offchip = estimate.traffic.get("dram", estimate.traffic.get("flash", {}))
        assert sum(layer["dram_bytes"] for layer in told["layers"]) == sum(offchip.values())
    rows = list(csv.DictReader(io.StringIO(files[2].read_text("utf-8"), newline="")))
    for estimate in estimates:
        mine = [row for row in rows if row["machine"] == estimate.machine.name]
        assert sum(float(row["time_seconds"]) for row in mine) == pytest.approx(estimate.seconds)
        assert any(row["sqnr_db"] for row in mine), "error and cost of a layer stand in one row"
    shown = " ".join(data for _, data in reader.text)
    for estimate in estimates:
        assert estimate.machine.hash[:12] in shown and estimate.validity in shown
    for fact in (
        nouns[2].hash[:12],
        "64 samples",
        hwq.__version__,
        "hwq report small.onnx",
        "onnxruntime",
        "not validated",
        "recalled",
    ):
        assert fact in shown, fact
    assert [attributes["id"] for attributes in reader.all("figure")].count("layer-chart-figure") == 1
    assert any((attributes["id"] or "").startswith("histogram-") for attributes in reader.all("figure"))


def test_equal_items_give_equal_bytes(nouns, tmp_path) -> None:
    first = [file.read_bytes() for file in hwq.report(nouns, tmp_path / "a" / "report.html")]
    second = [file.read_bytes() for file in hwq.report(nouns, tmp_path / "b" / "report.html")]
    assert first == second


def test_any_single_noun_makes_a_page(nouns, tmp_path) -> None:
    for index, noun in enumerate([*nouns[:6], Unsupported("small", "tpu-v1", "float16", "integers only")]):
        files = hwq.report([noun], tmp_path / str(index) / "report.html")
        Reader(files[0].read_text("utf-8"))
        assert json.loads(files[1].read_text("utf-8"))["schema_version"] == 1


@pytest.mark.parametrize("items", [[], [object()], ["text"], [None]])
def test_what_cannot_be_shown_is_an_error(items, tmp_path) -> None:
    with pytest.raises(Error):
        hwq.report(items, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_is_an_html_file(nouns, tmp_path) -> None:
    with pytest.raises(Error, match="html"):
        hwq.report(nouns, tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


def test_files_come_whole_and_together(nouns, tmp_path, monkeypatch) -> None:
    hwq.report(nouns[:3], tmp_path / "report.html")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(Error, match="exists"):
        hwq.report(nouns, tmp_path / "report.html")
    (tmp_path / "report.html").unlink()
    with pytest.raises(Error, match="exists"):
        hwq.report(nouns, tmp_path / "report.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layers.csv", "report.json"]
    for name in ("write_csv", "to_json", "render"):
        place = {
            "write_csv": "hwq.reporting.meeting",
            "to_json": "hwq.reporting.serialization",
            "render": "hwq.reporting.page",
        }[name]
        with monkeypatch.context() as patch:
            patch.setattr(f"{place}.{name}", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                hwq.report(nouns, tmp_path / "report.html", overwrite=True)
        found = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        assert found == {name: content for name, content in before.items() if name != "report.html"}
    hwq.report(nouns[:3], tmp_path / "report.html", overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_progress_is_told(nouns, tmp_path) -> None:
    seen: list[tuple[int, int | None]] = []
    hwq.report(nouns, tmp_path / "report.html", progress=lambda done, total, what: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[-1][0] + 1)) and seen[-1][0] == seen[-1][1]


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
