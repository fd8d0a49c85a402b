"""Bad plans and bad calibration data: each gives one clear error, and nothing is written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import TensorProto, helper

import hwq
from hwq.calibration import Calibration
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph
from hwq.plan import Plan


@pytest.fixture(scope="module")
def cal(cnn: Graph) -> Calibration:
    return hwq.calibrate(cnn, tiny.images(4))


def refused(action, *words: str) -> Error:
    """The Error that `action` raises; it names what, where, and holds no traceback of something else."""
    with pytest.raises(Error) as caught:
        action()
    assert not isinstance(caught.value, NotSupportedYet)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    assert (len(text) < 3000 and text.isprintable()) or "\n" in text
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    return caught.value


# Plan files

FILES = {
    "unknown key": ("schema = 1\nfrobnicate = 3\n", ["unknown key", "frobnicate"]),
    "unknown nested key": ("schema = 1\n[default]\nweights = { bits = 8 }\n", ["unknown key", "default.weights.bits"]),
    "unknown key in a rule": (
        'schema = 1\n[[layers]]\nmatch = { op = "Conv" }\nweights = { dtyp = "int8" }\n',
        ["dtyp"],
    ),
    "unknown transform": ("schema = 1\n[transforms]\nmagic = true\n", ["unknown key", "transforms.magic"]),
    "bad dtype": ('schema = 1\n[default]\nweights = { dtype = "int7" }\n', ["default.weights.dtype", "int7"]),
    "bad dtype in a rule": (
        'schema = 1\n[[layers]]\nmatch = { op = "Conv" }\nactivations = { dtype = "int9" }\n',
        ["int9"],
    ),
    "wrong type": ('schema = 1\n[default]\nweights = { symmetric = "yes" }\n', ["default.weights.symmetric"]),
    "not TOML": ("schema = = 1\n", ["cannot be read as TOML"]),
    "JSON": ('{"schema": 1}', ["cannot be read as TOML"]),
    "duplicate key": ("schema = 1\nschema = 1\n", ["cannot be read as TOML"]),
    "wrong schema": ("schema = 2\n", ["schema"]),
    "schema that is true": ("schema = true\n", ["schema"]),
    "integer of 5000 digits": ("schema = " + "9" * 5000, ["cannot be read as TOML"]),
    "unknown dialect": ('schema = 1\ndialect = "fortran"\n', ["fortran", "one of"]),
    "empty match": ("schema = 1\n[[layers]]\nmatch = {}\n", ["layers.0.match", "needs name, op or tensor"]),
    "missing match": ('schema = 1\n[[layers]]\nweights = { dtype = "int8" }\n', ["layers.0.match"]),
    "scale of zero": ('schema = 1\n[[layers]]\nmatch = { op = "Conv" }\nweights = { scale = 0.0 }\n', ["not be 0"]),
    "negative scale": (
        'schema = 1\n[[layers]]\nmatch = { op = "Conv" }\nactivations = { scale = [0.1, -0.1] }\n',
        ["above 0"],
    ),
    "NaN scale": ("schema = 1\n[default]\nactivations = { scale = nan }\n", ["default.activations.scale"]),
    "infinite scale": ("schema = 1\n[default]\nactivations = { scale = inf }\n", ["default.activations.scale"]),
    "no scales": ('schema = 1\n[[layers]]\nmatch = { op = "Conv" }\nweights = { scale = [] }\n', ["empty"]),
    "group of one": ("schema = 1\n[default]\nweights = { granularity = { group = 1 } }\n", ["group"]),
    "percentile": ("schema = 1\n[default]\nactivations = { percentile = 101.0 }\n", ["percentile"]),
    "smoothing": ("schema = 1\n[transforms]\nsmooth = 1.5\n", ["transforms.smooth"]),
    "scale of no method": ('schema = 1\n[default]\nweights = { scale = "best" }\n', ["default.weights.scale"]),
    "deep nesting": ("schema = 1\nx = " + "[" * 100_000, ["cannot be read as TOML"]),
    "layers is a table": ("schema = 1\n[layers]\nmatch = 1\n", ["layers"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_plan_files(kind: str, tmp_path: Path) -> None:
    text, words = FILES[kind]
    path = tmp_path / "plan.toml"
    path.write_text(text)
    refused(lambda: Plan.load(path), "plan.toml", *words)


def test_plans_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(bytes(range(256)))
    refused(lambda: Plan.load(tmp_path / "binary.toml"), "cannot be read as TOML")
    refused(lambda: Plan.load(tmp_path / "absent.toml"), "no such file")
    refused(lambda: Plan.load(tmp_path), "not a regular file")
    with (tmp_path / "huge.toml").open("wb") as stream:
        stream.truncate(1 << 30)
    refused(lambda: Plan.load(tmp_path / "huge.toml"), "more than the bound")


def rule(match: dict, **sides: dict) -> Plan:
    return Plan._checked({"schema": 1, "layers": [{"match": match, **sides}]}, "test")


@pytest.mark.parametrize(
    "match",
    [
        {"name": "conv9"},
        {"op": "ConvTranspose"},
        {"tensor": "nothing"},
        {"name": "conv1", "op": "Gemm"},
        {"name": "<script>"},
        {"name": "\x1b[31m"},
        {"name": "$\\frac{1$"},
        {"name": "=1+1"},
        {"name": "conv[/a]"},
        {"name": "x" * 1_000_000},
        {"tensor": "*" * 3000 + "!"},
    ],
)
def test_rules_that_fit_no_layer(match: dict, cnn: Graph, cal: Calibration) -> None:
    refused(lambda: hwq.quantize(cnn, rule(match, weights={"dtype": "uint8"}), cal), "fits no layer", "layers.0.match")


# Plan against model and dialect


@pytest.mark.parametrize(
    "plan, words",
    [
        (rule({"tensor": "w1"}, weights={"scale": [0.1, 0.2]}), ["2 scales are given, 8 are needed", "w1"]),
        (
            rule({"tensor": "w1"}, weights={"granularity": "tensor", "scale": [0.1, 0.2]}),
            ["2 scales are given, 1 are needed"],
        ),
        (
            rule({"tensor": "w1"}, weights={"scale": [0.1] * 7 + [-0.1]}),
            ["scales below 0 beside stored activations", "w1"],
        ),
        (rule({"tensor": "w1"}, weights={"scale": 0.1, "zero_point": [0] * 7}), ["7 zero points are given"]),
        (rule({"tensor": "w1"}, weights={"scale": 0.1, "zero_point": 128}), ["zero point", "-128 to 127"]),
        (rule({"tensor": "r1"}, activations={"scale": 0.1, "zero_point": 256}), ["zero point", "0 to 255"]),
        (rule({"tensor": "r1"}, activations={"scale": 0.1, "zero_point": -1}), ["zero point", "0 to 255"]),
        (rule({"tensor": "r1"}, activations={"scale": [0.1, 0.2]}), ["2 scales for one tensor", "r1"]),
        (rule({"tensor": "r1"}, activations={"scale": 1e-60}), ["positive finite float32"]),
        (rule({"tensor": "r1"}, activations={"scale": 1e60}), ["positive finite float32"]),
        (rule({"tensor": "w1"}, weights={"scale": 1e-30}), ["bias does not fit into int32"]),
        (Plan.uniform(weights="int4"), ["contradict", "int4", "weights.dtype"]),
        (Plan.uniform(activations="int16"), ["contradict", "int16", "activations.dtype"]),
        (Plan.uniform(dialect="tensorrt"), ["contradict", "tensorrt"]),
        (Plan.uniform(dialect="litert-ref", symmetric=False, activations="int8"), ["contradict", "weights.symmetric"]),
        (Plan.uniform(dialect="litert-ref", weights="uint8"), ["contradict", "weights.dtype"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_plans_that_contradict_the_model_or_the_dialect(
    plan: Plan, words: list[str], cnn: Graph, cal: Calibration
) -> None:
    refused(lambda: hwq.quantize(cnn, plan, cal), *words)


def test_a_searched_range_is_held_to_the_dialect_too(cnn: Graph, cal: Calibration) -> None:
    for plan in (
        Plan.uniform(dialect="tensorrt", observer="coordinate"),
        Plan.uniform(activations="int4", observer="coordinate"),
    ):
        refused(lambda plan=plan: hwq.quantize(cnn, plan, cal, tiny.images(4)), "contradict")


def test_bad_files_of_given_values(cnn: Graph, cal: Calibration, tmp_path: Path) -> None:
    def given(reference: str) -> Plan:
        path = tmp_path / "plan.toml"
        rule({"tensor": "w1"}, weights={"scale": reference}).save(path, overwrite=True)
        return Plan.load(path)

    np.savez(tmp_path / "e.npz", text=np.array(["a"] * 8), nan=np.full(8, np.nan), zero=np.zeros(8), many=np.ones(9))
    for name, word in (
        ("text", "scales are numbers"),
        ("nan", "finite float32 other than 0"),
        ("zero", "finite float32 other than 0"),
        ("many", "9 scales"),
        ("gone", "no array gone"),
    ):
        refused(lambda name=name: hwq.quantize(cnn, given(f"file:e.npz#{name}"), cal), word)
    refused(lambda: hwq.quantize(cnn, given("file:absent.npz#x"), cal), "no such file")
    with pytest.raises(Error):
        given("file:e.npz")  # without a name


def test_a_range_that_nothing_gives(cnn: Graph) -> None:
    refused(lambda: hwq.quantize(cnn, Plan.uniform()), "no range", "calibration")


def test_graphs_that_cannot_be_quantized(cnn: Graph, cal: Calibration) -> None:
    q = hwq.quantize(cnn, Plan.uniform(), cal)
    refused(lambda: hwq.quantize(q, Plan.uniform()), "quantized already")
    refused(lambda: hwq.quantize(cnn.replace(form="lowered"), Plan.uniform()), "lowered")
    refused(
        lambda: hwq.quantize(hwq.load("zoo:mobilenet_v1", weights=False), Plan.uniform(activations="float32")),
        "no values",
    )
    poisoned = tiny.cnn()
    weights = np.frombuffer(poisoned.graph.initializer[0].raw_data, np.float32).copy()
    weights[5] = np.nan
    poisoned.graph.initializer[0].raw_data = weights.tobytes()
    refused(lambda: hwq.quantize(tiny.graph(poisoned), Plan.uniform(activations="float32")), "NaN or infinity", "w1")


# Data


def spoiled(value: float, sample: int = 3) -> np.ndarray:
    x = tiny.images(6)
    x[sample, 1, 2, 3] = value
    return x


DATA = {
    "NaN": (lambda: spoiled(np.nan), ["nan", "input x", "sample 3"]),
    "infinity": (lambda: spoiled(-np.inf), ["-inf", "input x", "sample 3"]),
    "NaN in a later batch": (lambda: [tiny.images(2), spoiled(np.nan, 0)], ["batches[1]", "sample 0"]),
    "uint8 images": (lambda: np.zeros((2, 3, 8, 8), np.uint8), ["uint8", "float32", "astype"]),
    "float64": (lambda: np.zeros((2, 3, 8, 8)), ["float64", "float32"]),
    "channels last": (lambda: np.zeros((2, 8, 8, 3), np.float32), ["shape [2, 8, 8, 3]", "input x"]),
    "no batch axis": (lambda: np.zeros((3, 8, 8), np.float32), ["shape [3, 8, 8]"]),
    "no samples": (lambda: np.zeros((0, 3, 8, 8), np.float32), ["empty"]),
    "objects": (lambda: np.array([[None]], object), ["object"]),
    "texts": (lambda: np.array(["a", "b"]), ["float32"]),
    "nothing": (lambda: [], ["no batches"]),
    "spent generator": (lambda: iter(()), ["no batches"]),
    "a number": (lambda: 3.0, ["cannot be a float"]),
    "bytes": (lambda: b"abc", ["cannot be a bytes"]),
    "None": (lambda: None, ["cannot be a NoneType"]),
    "list of lists": (lambda: [[1.0, 2.0]], ["a batch is a list"]),
    "missing input": (lambda: {}, ["nothing for the model's input x"]),
    "unknown input": (lambda: {"x": tiny.images(1), "z": tiny.images(1)}, ["no input z"]),
    "wrong name": (lambda: {"image": tiny.images(1)}, ["nothing for the model's input x", "image"]),
    "hostile name": (lambda: {"\x1b]0;pwned\x07" * 50_000: tiny.images(1)}, ["nothing for the model's input x"]),
    "absent file": (lambda: "/nonexistent/data.npz", ["no such file"]),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_data(kind: str, cnn: Graph) -> None:
    make, words = DATA[kind]
    refused(lambda: hwq.calibrate(cnn, make()), *words)


def test_inputs_that_disagree() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], "sum")]
    graph = tiny.graph(tiny.model(nodes, {"a": ["N", 2], "b": ["N", 2]}, {"y": ["N", 2]}, {}))
    one = np.ones((2, 2), np.float32)
    refused(lambda: hwq.calibrate(graph, one), "2 inputs", "give a dict")
    refused(lambda: hwq.calibrate(graph, {"a": one}), "input b")
    refused(lambda: hwq.calibrate(graph, {"a": one, "b": np.ones((3, 2), np.float32)}), "shape [3, 2]")
    tokens = tiny.model(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        {"ids": ["N", 3]},
        {"y": ["N", 3, 4]},
        {"table": np.ones((5, 4))},
        dtypes={"ids": TensorProto.INT64},
    )
    refused(lambda: hwq.calibrate(tiny.graph(tokens), np.zeros((1, 3), np.int32)), "int32", "int64")
    refused(lambda: hwq.calibrate(tiny.graph(tokens), np.full((1, 3), 7, np.int64)), "node")


def test_archives(cnn: Graph, tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused(lambda: hwq.calibrate(cnn, write("empty.npz", b"")), "empty.npz")
    refused(lambda: hwq.calibrate(cnn, write("random.npz", np.random.default_rng(0).bytes(5000))), "random.npz")
    stream = io.BytesIO()
    np.savez(stream, x=tiny.images(2))
    refused(lambda: hwq.calibrate(cnn, write("cut.npz", stream.getvalue()[:-300])), "cut.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], object))
    refused(lambda: hwq.calibrate(cnn, tmp_path / "objects.npz"), "objects.npz")
    np.savez(tmp_path / "two.npz", images_=tiny.images(2), more=tiny.images(2))
    refused(lambda: hwq.calibrate(cnn, tmp_path / "two.npz"), "nothing for the model's input x", "images_")
    whole = stream.getvalue()
    locked = bytearray(whole)  # bit 0 of the flags, in the member's header and in the directory: encrypted
    locked[6] |= 1
    locked[locked.find(b"PK\x01\x02") + 8] |= 1
    refused(lambda: hwq.calibrate(cnn, write("locked.npz", bytes(locked))), "locked.npz", "encrypted")
    flipped = bytearray(whole)
    flipped[whole.find(b"PK\x01\x02") - 9] ^= 255
    refused(lambda: hwq.calibrate(cnn, write("flipped.npz", bytes(flipped))), "flipped.npz", "CRC")
    # A member that claims 40 GB of zeros: refused by its claim, before a byte is unpacked.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**10,)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1 << 20))
    raw = (tmp_path / "bomb.npz").read_bytes()
    size = (len(header.getvalue()) + (1 << 20)).to_bytes(4, "little")
    write("bomb.npz", raw.replace(size, (0xFFFFFFF0).to_bytes(4, "little")))
    refused(lambda: hwq.calibrate(cnn, tmp_path / "bomb.npz"), "bomb.npz")
    (tmp_path / "void").mkdir()
    refused(lambda: hwq.calibrate(cnn, tmp_path / "void"), "no batches")


def test_damaged_calibrations(cnn: Graph, cal: Calibration, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=tiny.images(1))
    refused(lambda: Calibration.load(tmp_path / "data.npz"), "no calibration")
    cal.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as arrays:
        parts = dict(arrays)
    for name, changed in {
        "header": {"hwq_calibration": np.frombuffer(b"{", np.uint8)},
        "version": {
            "hwq_calibration": np.frombuffer(
                parts["hwq_calibration"].tobytes().replace(b'"version": 1', b'"version": 9'), np.uint8
            )
        },
        "short": {"histogram": parts["histogram"][:-1]},
        "nan": {"ranges": np.full_like(parts["ranges"], np.nan)},
        "zero": {"count": np.zeros_like(parts["count"])},
        "channels": {"channels": parts["channels"] + 1},
        "exponent": {"exponent": parts["exponent"][:-1]},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **{**parts, **changed})
        refused(lambda name=name: Calibration.load(tmp_path / f"{name}.npz"), f"{name}.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:2000])
    refused(lambda: Calibration.load(tmp_path / "cut.npz"), "cut.npz")


def test_a_callback_that_raises_stops_the_work_and_nothing_is_left(cnn: Graph) -> None:
    def stop(done: int, total: int | None, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hwq.calibrate(cnn, tiny.images(2), progress=stop)
