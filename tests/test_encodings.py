"""Other tools' plans: read from what the tools wrote, written back with the same float32 bits, refused when damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from encoding_facts import facts
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.encodings import Encoding, dialect_for, encodings_of, encodings_of_graph, save, to_plan
from hwq.errors import Error, NotSupportedYet
from hwq.exporters.encodings import write
from hwq.graph import Graph
from hwq.importers.encodings import read_plan
from hwq.plan import Plan

GOLDEN = Path(__file__).parent / "golden" / "encodings"
AIMET = sorted(GOLDEN.glob("aimet-*.json"))
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
# NVIDIA's description of sampleINT8.
CACHE = """TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""


def of_file(path: Path) -> dict[str, dict[str, Any]]:
    """Each tensor's scales (float64) and unsigned or typed offsets as AIMET's file says them, read on its own."""
    table, made = json.loads(path.read_text()), {}
    if "encodings" in table:
        return {one["name"]: {"scale": one["y_scale"], "dtype": one["output_dtype"]} for one in table["encodings"]}
    for key in ("activation_encodings", "param_encodings"):
        group = table[key]
        entries = group.items() if isinstance(group, dict) else ((one["name"], one) for one in group)
        for name, one in entries:
            scale = [part["scale"] for part in one] if isinstance(one, list) else one["scale"]
            made[name] = {"scale": scale if len(scale) > 1 else scale[0]}
    return made


@pytest.mark.parametrize("path", AIMET, ids=lambda path: path.stem)
@pytest.mark.parametrize("with_model", [True, False])
def test_aimet_files_keep_their_scales(path: Path, with_model: bool, cnn: Graph, tmp_path: Path) -> None:
    found = read_plan(path, cnn if with_model else None)
    assert found.format == f"AIMET {path.stem[-5:]}"
    given = {one.tensor: one for one in encodings_of(found.plan)}
    for name, wanted in of_file(path).items():
        if name in ("low", "high") and with_model:
            assert any(name in note for note in found.left_out)
            continue
        assert np.array_equal(given[name].scale, np.asarray(wanted["scale"], np.float32))
        assert given[name].dtype == wanted.get("dtype", given[name].dtype)
    assert {name for name, one in given.items() if one.weight} >= {"w1", "w2", "w3", "w4"}
    # What hwq writes of it is read back bit for bit.
    for version in VERSIONS[:2]:
        write(given.values(), tmp_path / f"{version}.json", f"aimet-{version}")
        assert facts(encodings_of(read_plan(tmp_path / f"{version}.json").plan)) == facts(given.values())


@pytest.mark.parametrize("precision", ["w8a8", "w4a16"])
def test_aimet_versions_agree(precision: str, cnn: Graph) -> None:
    made = [
        facts(encodings_of(read_plan(GOLDEN / f"aimet-{precision}-{version}.json", cnn).plan)) for version in VERSIONS
    ]
    # Version 2.0.0 also derives the outputs of operators that only move values.
    assert made[0] == made[1] == {name: made[2][name] for name in made[0]}
    assert set(made[2]) - set(made[0]) == {"p1", "f1"}


def test_an_imported_plan_quantizes_with_those_scales(cnn: Graph, tmp_path: Path) -> None:
    found = read_plan(GOLDEN / "aimet-w8a8-1.0.0.json", cnn)
    q = hwq.quantize(cnn, found.plan)
    wanted, made = facts(encodings_of(found.plan)), facts(encodings_of_graph(q))
    # c2 lies inside a fused step and is stored all the same, because the file gives it a scale.
    for name, one in wanted.items():
        assert made[name] == one
    # f1 has no scale of its own and only moves what g1 stores; the product behind it wants it stored.
    assert made["f1"][3:5] == made["g1"][3:5]
    # Out as encodings and as QDQ, and in again.
    for version in ("", "-0.6.1", "-2.0.0"):
        hwq.export(q, tmp_path / f"q{version}.encodings", format=f"aimet{version}")
        again = facts(encodings_of(read_plan(tmp_path / f"q{version}.encodings", cnn).plan))
        assert {name: again[name] for name in wanted} == wanted
    hwq.export(q, tmp_path / "q.onnx", format="qdq")
    again = facts(encodings_of(read_plan(tmp_path / "q.onnx").plan))
    assert {name: again[name] for name in wanted} == wanted
    assert hwq.quantize(cnn, Plan.of(hwq.load(tmp_path / "q.onnx"))).hash == hwq.quantize(cnn, Plan.of(q)).hash


FLOATS = st.floats(2.0**-126, 2.0**100, width=32, allow_nan=False, allow_infinity=False)
TYPES = ("int4", "uint4", "int8", "uint8", "int16", "uint16")


@st.composite
def encodings(draw: Any) -> list[Encoding]:
    made = []
    for index in range(draw(st.integers(1, 4))):
        weight = draw(st.booleans())
        dtype = draw(st.sampled_from(TYPES[:5] if weight else TYPES))
        channels = draw(st.integers(1, 3)) if weight else 0
        bits = int("".join(filter(str.isdigit, dtype)))
        low = 0 if dtype.startswith("u") else -(1 << (bits - 1))
        scale = np.array(draw(st.lists(FLOATS, min_size=max(channels, 1), max_size=max(channels, 1))), np.float32)
        point = np.array([draw(st.integers(low, low + (1 << bits) - 1)) for _ in scale], np.int64)
        shape: tuple[int, ...] = (channels,) if channels else ()
        made.append(Encoding(f"t{index}/[*]?", weight, dtype, scale.reshape(shape), point.reshape(shape), 0 if channels else None))  # fmt: skip
    return made


@settings(max_examples=60, deadline=None)
@given(encodings(), st.sampled_from(VERSIONS))
def test_any_scale_survives_every_version(found: list[Encoding], version: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write(found, path, f"aimet-{version}")
        if version == "0.6.1":
            # One entry a channel: a single channel reads as the whole tensor, in AIMET as here.
            found = [one if one.scale.size > 1 else _plain(one) for one in found]
        if version == "2.0.0":
            table = json.loads(path.read_text())
            for entry, one in zip(table["encodings"], found, strict=True):
                assert np.array_equal(np.asarray(entry["y_scale"], np.float32), one.scale)
            # Without the model, types and axes say what is a weight.
            found = [one for one in found if one.weight == (one.axis is not None or one.dtype.startswith("int"))]
            table["encodings"] = [
                entry for entry in table["encodings"] if entry["name"] in {one.tensor for one in found}
            ]
            path.write_text(json.dumps(table))
            if not found:
                return
        plan = read_plan(path).plan
        assert facts(encodings_of(plan)) == facts(found)
        plan.save(Path(folder) / "p.toml")
        assert facts(encodings_of(Plan.load(Path(folder) / "p.toml"))) == facts(found)


def _plain(one: Encoding) -> Encoding:
    return Encoding(one.tensor, one.weight, one.dtype, one.scale.reshape(()), one.zero_point.reshape(()), None)


def test_a_double_between_two_floats_is_rounded_once(tmp_path: Path) -> None:
    entry = {
        "name": "x",
        "dtype": "INT",
        "bw": 8,
        "is_sym": False,
        "enc_type": "PER_TENSOR",
        "scale": [0.1],
        "offset": [-3],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.0.0", "activation_encodings": [entry], "param_encodings": []}))
    one = next(encodings_of(read_plan(path).plan))
    assert one.scale == np.float32(0.1) and one.zero_point == 3
    write([one], tmp_path / "b.json", "aimet")
    assert json.loads((tmp_path / "b.json").read_text())["activation_encodings"][0]["scale"] == [float(np.float32(0.1))]
    # An old file without scale: (max - min) / 255 and rint(min / scale).
    old = {"version": "0.6.1", "param_encodings": {}, "activation_encodings": {"x": [
        {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "min": -1.0, "max": 4.1}]}}  # fmt: skip
    path.write_text(json.dumps(old))
    one = next(encodings_of(read_plan(path).plan))
    assert one.scale == np.float32(5.1 / 255) and one.zero_point == 50


def test_blocks_in_version_2(tmp_path: Path) -> None:
    graph = tiny.graph(tiny.mlp())
    table = tomllib_plan({"match": {"name": "up"}, "weights": {"dtype": "int4", "granularity": {"group": 8}}})
    q = hwq.quantize(graph, table)
    hwq.export(q, tmp_path / "q.encodings", format="aimet")
    entry = json.loads((tmp_path / "q.encodings").read_text())["encodings"][0]
    assert (entry["axis"], entry["block_size"], np.shape(entry["y_scale"])) == (0, 8, (2, 24))
    found = read_plan(tmp_path / "q.encodings", graph)
    assert facts(encodings_of(found.plan))["w1"][3] == q.constant("w1_scale").reshape(-1).astype("<f4").tobytes()
    again = hwq.quantize(graph, found.plan)
    assert np.array_equal(again.constant("w1_scale"), q.constant("w1_scale"))
    assert np.array_equal(again.constant("w1_quantized"), q.constant("w1_quantized"))


@pytest.mark.parametrize(("name", "versions"), [("blocks", VERSIONS), ("lpbq", VERSIONS[1:])])
def test_blocks_of_every_version(name: str, versions: tuple[str, ...]) -> None:
    """1.0.0 lists them channel by channel, 0.6.1 as they lie in the weight, 2.0.0 says the shape; LPBQ's are products."""
    graph = tiny.graph(tiny.mlp())
    plans = [read_plan(GOLDEN / f"{name}-{version}.json", graph).plan for version in versions]
    made = [facts(encodings_of(plan)) for plan in plans]
    assert all({tensor: one[tensor] for tensor in made[0]} == made[0] for one in made)
    entries = {one["name"]: one for one in json.loads((GOLDEN / f"{name}-2.0.0.json").read_text())["encodings"]}
    for weight, shape in (("w1", (2, 24)), ("w2", (3, 7))):
        one = entries[weight]
        wanted = np.array(one["y_scale"] if name == "blocks" else one["per_block_int_scale"])
        wanted = wanted if name == "blocks" else wanted * np.array(one["per_channel_float_scale"])
        q = hwq.quantize(graph, plans[0])
        assert np.array_equal(q.constant(f"{weight}_scale"), wanted.astype(np.float32)) and wanted.shape == shape
        assert q.tensors[f"{weight}_quantized"].dtype == "int4" and q.dialect == "hwq"
    with pytest.raises(NotSupportedYet, match="shape is not known"):
        read_plan(GOLDEN / f"{name}-1.0.0.json")


@pytest.mark.parametrize("version", VERSIONS)
def test_blocks_of_convolutions_hold_for_all_positions_of_the_kernel(version: str, tmp_path: Path) -> None:
    graph = tiny.graph(tiny.hourglass())
    q = hwq.quantize(graph, read_plan(GOLDEN / f"kernels-{version}.json", graph).plan)
    entries = {one["name"]: one for one in json.loads((GOLDEN / "kernels-2.0.0.json").read_text())["encodings"]}
    for weight, shape in (("w1", (6, 4, 1, 1)), ("w2", (3, 4, 1, 1))):
        wanted = np.array(entries[weight]["y_scale"], np.float32)
        made = q.constant(f"{weight}_scale")
        assert wanted.shape == shape and made is not None
        assert np.array_equal(made, np.broadcast_to(wanted, made.shape))
    theirs = np.array(json.loads((GOLDEN / "kernels-outputs.json").read_text()), np.float64)
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)  # what AIMET saw
    # Activations of 16 bits: what is left is that AIMET adds in float32.
    assert np.abs(np.asarray(hwq.execute(q, x)) - theirs).max() < 1e-3 * np.abs(theirs).max()
    hwq.export(q, tmp_path / "q.encodings", format="aimet")
    again = {one["name"]: one for one in json.loads((tmp_path / "q.encodings").read_text())["encodings"]}
    for name in ("w1", "w2"):
        assert np.array_equal(*(np.array(one[name]["y_scale"], np.float32) for one in (again, entries)))


def test_values_that_only_move_keep_the_scale_of_their_source() -> None:
    """Versions before 2.0.0 say nothing of them, and the readers of one value may be stored in other types."""
    graph = tiny.graph(tiny.attention())
    x = np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)  # what AIMET saw
    made = []
    for version in VERSIONS:
        q = hwq.quantize(graph, read_plan(GOLDEN / f"attention-{version}.json", graph).plan)  # without a calibration
        made.append(hwq.execute(q, x))
        scales = facts(encodings_of_graph(q))
        assert all(scales[name][1:5] == scales["qkv"][1:5] for name in ("qt", "kt", "vt"))
        second = [node for node in q.nodes if node.op == "QuantizeLinear" and node.inputs[0].endswith("_dequantized")]
        assert not second
    real = hwq.execute(graph, x)
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
    assert np.square(made[0] - real).sum() < 1e-3 * np.square(real).sum()


def test_the_dialect_has_integer_kernels_where_there_are_any() -> None:
    assert dialect_for(["int8"], ["uint8"]) == dialect_for([], []) == "ort"
    assert {
        dialect_for(["int4"], ["uint8"]),
        dialect_for(["int8"], ["uint16"]),
        dialect_for(["int4"], ["uint8"], True),
    } == {"hwq"}
    assert dialect_for(["int4"], ["uint16"], True) == dialect_for(["int16"], ["uint8"]) == "ort-unfused"


def tomllib_plan(*rules: dict[str, Any]) -> Plan:
    off = {"weights": {"dtype": "float32"}, "activations": {"dtype": "float32", "mode": "float"}}
    return Plan.model_validate({"dialect": "hwq", "default": off, "layers": list(rules)})


def test_many_scales_lie_beside_the_plan(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = [Encoding(f"w{at}", True, "int8", random.uniform(1e-6, 1, 9000).astype(np.float32), random.integers(-3, 4, 9000))
             for at in range(2)]  # fmt: skip
    found.append(Encoding("x", False, "uint8", np.float32(0.1) * np.ones((), np.float32), np.array(7, np.int64)))
    save(to_plan(found), tmp_path / "p.toml")
    assert (tmp_path / "p.toml").stat().st_size < 2000 and (tmp_path / "p.npz").exists()
    assert facts(encodings_of(Plan.load(tmp_path / "p.toml"))) == facts(found)
    with pytest.raises(Error, match="exists"):
        save(to_plan(found), tmp_path / "p.toml")
    save(to_plan(found[2:]), tmp_path / "small.toml")
    assert not (tmp_path / "small.npz").exists()


def test_tensorrt_caches(tmp_path: Path) -> None:
    path = tmp_path / "int8.cache"
    path.write_text(CACHE + "unused: 0\nshort: 1\n(Unnamed Layer* 64) [Shuffle]_output: 3c56713e\n")
    found = read_plan(path)
    assert (found.format, found.plan.dialect) == ("TensorRT calibration cache", "tensorrt")
    given = {one.tensor: one for one in encodings_of(found.plan)}
    for line in CACHE.splitlines()[1:]:
        name, digits = line.split(": ")
        assert given[name].scale.tobytes() == np.float32(struct.unpack("!f", bytes.fromhex(digits))[0]).tobytes()
    assert given["short"].scale == np.array(1, np.uint32).view(np.float32)
    assert "(Unnamed Layer* 64) [Shuffle]_output" in given and any("unused" in note for note in found.left_out)
    write(encodings_of(found.plan), tmp_path / "again.cache", "tensorrt")
    lines = (tmp_path / "again.cache").read_text().splitlines()
    assert lines[1:] == [line for line in path.read_text().splitlines()[1:] if line != "unused: 0"]
    assert facts(encodings_of(read_plan(tmp_path / "again.cache").plan)) == facts(given.values())


def test_a_cache_quantizes_a_model(cnn: Graph, tmp_path: Path) -> None:
    names = ("x", "r1", "r2", "r3", "p1", "g1", "f1", "l1")
    lines = [f"{name}: {int(np.float32(0.011 * (at + 1)).view(np.uint32)):x}" for at, name in enumerate(names)]
    (tmp_path / "c").write_text("\n".join(["TRT-8401-EntropyCalibration2", *lines, "elsewhere: 3c008912"]))
    found = read_plan(tmp_path / "c", cnn)
    assert any("elsewhere" in note for note in found.left_out)
    made = facts(encodings_of_graph(hwq.quantize(cnn, found.plan)))
    for at, name in enumerate(names):
        assert made[name][1:4] == ("int8", (), np.float32(0.011 * (at + 1)).astype("<f4").tobytes())
    assert made["w1"][:3] == (True, "int8", (8,))


def _entry(**changes: Any) -> str:
    entry = {
        "name": "x",
        "dtype": "INT",
        "bw": 8,
        "is_sym": False,
        "enc_type": "PER_TENSOR",
        "scale": [0.5],
        "offset": [-3],
    }
    entry.update(changes)
    return json.dumps({"version": "1.0.0", "activation_encodings": [entry], "param_encodings": []})


NAN = '{"version": "1.0.0", "activation_encodings": [{"name": "x", "bw": 8, "scale": [NaN], "offset": [0]}]}'
HOSTILE = {
    "empty": "", "cut": _entry()[:-20], "text": "hello", "number": "3", "nan": NAN, "infinite": NAN.replace("NaN", "Infinity"),
    "negative": _entry(scale=[-0.5]), "zero": _entry(scale=[0.0]), "tiny": _entry(scale=[1e-60]), "huge": _entry(scale=[1e60]),
    "bool": _entry(scale=[True]), "words": _entry(scale=["1"]), "none": _entry(scale=None), "offset-far": _entry(offset=[-1e30]),
    "offset-out": _entry(offset=[-256]), "offset-half": _entry(offset=[-3.5]), "offset-positive": _entry(offset=[4]),
    "two-offsets": _entry(offset=[-3, -4]), "bits": _entry(bw=7), "bits-huge": _entry(bw=10**400), "no-name": _entry(name=""),
    "half-pair": _entry().replace('"x"', '"\\ud800"'), "name-number": _entry(name=4), "lpbq": _entry(enc_type="LPBQ"),
    "deep": "[" * 100_000, "deep-table": '{"encodings": ' + "[" * 5000 + "]" * 5000 + "}", "nothing": "{}", "empty-list": "[]",
    "long-integer": '{"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": ' + "9" * 5000 + "}]}",
    "ragged": '{"encodings": [{"name": "x", "output_dtype": "int8", "axis": 0, "y_scale": [[1, 2], [3]]}]}',
    "type": '{"encodings": [{"name": "x", "output_dtype": "int99", "y_scale": 1}]}', "list": '{"encodings": {}}',
    "points": '{"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": 1, "y_zero_point": 256}]}',
    "version": '{"version": "9.9", "encodings": []}', "channels": _entry(enc_type="PER_CHANNEL", scale=[1, 2], offset=[0, 0]),
    "twice": json.dumps({"encodings": [{"name": "x", "output_dtype": "uint8", "y_scale": s} for s in (1, 2)]}),
    "cache-cut": "TRT-8401-EntropyCalibration2\nx: 3c00\ny", "cache-empty": "TRT-8401-EntropyCalibration2\n",
    "cache-nan": "TRT-8401-EntropyCalibration2\nx: 7fc00000\n", "cache-negative": "TRT-8401-EntropyCalibration2\nx: bc008912\n",
    "cache-infinite": "TRT-8401-EntropyCalibration2\nx: 7f800000\n", "cache-word": "TRT-8401-EntropyCalibration2\nx: zz\n",
    "cache-long": "TRT-8401-EntropyCalibration2\nx: 123456789\n", "cache-header": "TRT-\nx: 3c008912\n",
    "recipe-text": '["a"]', "recipe-empty": "[{}]", "recipe-algorithm": '[{"regex": ".*", "operation": "*", "algorithm_key": "OCTAV"}]',
    "recipe-bits": '[{"regex": ".*", "operation": "*", "algorithm_key": "MSE", "op_config": {"weight_tensor_config": {"num_bits": "8"}}}]',
    "recipe-config": '[{"regex": ".*", "operation": "*", "algorithm_key": "MSE", "op_config": 3}]',
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_damaged_files_give_one_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text(HOSTILE[name])
    with pytest.raises(Error) as caught:
        read_plan(path)
    assert str(path) in str(caught.value) or caught.value.where
    ran = CliRunner().invoke(app, ["plan", "import", str(path), "-o", str(tmp_path / "plan.toml")])
    assert ran.exit_code == 2 and not (tmp_path / "plan.toml").exists()
    assert "Traceback" not in ran.output


def test_cut_files_never_crash(tmp_path: Path) -> None:
    text = (GOLDEN / "aimet-w8a8-1.0.0.json").read_bytes()
    path = tmp_path / "f"
    for end in range(0, len(text) - 1, 97):
        path.write_bytes(text[:end])
        with pytest.raises(Error):
            read_plan(path)
    path.write_bytes(b'{"\xff": 1}')
    with pytest.raises(Error, match="UTF-8"):
        read_plan(path)
    with pytest.raises(Error, match="cannot be read"):
        read_plan(tmp_path / "missing")


def test_what_a_file_cannot_say_is_refused(cnn: Graph, tmp_path: Path) -> None:
    uneven = Encoding("x", False, "uint8", np.float32(1) * np.ones(()), np.array(3, np.int64))
    with pytest.raises(Error, match="without zero points"):
        write([uneven], tmp_path / "c", "tensorrt")
    channels = Encoding("w", True, "int8", np.ones(3, np.float32), np.zeros(3, np.int64))
    with pytest.raises(Error, match="axis"):
        write([channels], tmp_path / "e", "aimet-2.0.0")
    with pytest.raises(NotSupportedYet, match="one scale a channel"):
        to_plan([Encoding("x", False, "int8", np.ones(3, np.float32), np.zeros(3, np.int64))])
    with pytest.raises(Error, match="not quantized"):
        hwq.export(cnn, tmp_path / "e", format="aimet")
    with pytest.raises(Error, match="gives no scale"):
        write(encodings_of(Plan.uniform()), tmp_path / "e", "aimet")
    assert not list(tmp_path.iterdir())


def test_the_command_line(tmp_path: Path) -> None:
    onnx.save(tiny.cnn(), tmp_path / "m.onnx")
    run = CliRunner().invoke
    source, plan = str(GOLDEN / "aimet-w8a8-0.6.1.json"), str(tmp_path / "p.toml")
    made = run(app, ["plan", "import", source, "--model", str(tmp_path / "m.onnx"), "-o", plan, "--json"])
    assert made.exit_code == 0, made.output
    result = json.loads(made.stdout)["result"]
    assert (result["format"], result["tensors"], result["scales"]) == ("AIMET 0.6.1", 13, 38)
    shown = run(app, ["plan", "show", plan])
    assert shown.exit_code == 0 and "13 tensors with given scales" in shown.output
    assert run(app, ["plan", "export", plan, "-o", str(tmp_path / "e.json"), "--format", "aimet-0.6.1"]).exit_code == 0
    again = read_plan(tmp_path / "e.json").plan
    assert facts(encodings_of(again)) == facts(encodings_of(Plan.load(plan)))
    quantized = run(app, ["export", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "x.encodings"), "--format", "aimet"])
    assert quantized.exit_code == 2 and "not quantized" in quantized.output
    assert run(app, ["plan", "export", plan, "-o", str(tmp_path / "z"), "--format", "nope"]).exit_code == 2
