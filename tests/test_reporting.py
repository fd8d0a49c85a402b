"""Reports: one offline page, whole or not at all, the same bytes every time, safe with any name."""

from __future__ import annotations

import csv
import html.parser
import io
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from report_records import HOSTILE, PLAIN, records, small

import hwq
from hwq.errors import Error
from hwq.reporting import page
from hwq.reporting.records import Records, Unsupported


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
    # layers, 2 rooflines, traffic, energy, 3 histograms; the other model: 1 roofline, traffic, energy; split, sensitivity,
    # losses, channels of activations and of weights.
    assert len(drawn) == 16 == len(reader.all("figure")) == len(reader.all("figcaption"))
    for name in (
        "layer-chart",
        "roofline-0",
        "roofline-1",
        "focus-traffic",
        "focus-energy",
        "histogram-0",
        "model-0-roofline-0",
        "causes-0-split",
        "causes-0-sensitivity",
        "causes-0-losses",
        "causes-0-activations",
        "causes-0-weights",
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


def test_colours_are_the_pages_own(plain: str) -> None:
    for drawn in figures(plain):
        styles = " ".join(element.get("style", "") for element in drawn.iter())
        assert not re.search(r"#[0-9a-fA-F]{6}", styles) and "var(--ink)" in styles


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
