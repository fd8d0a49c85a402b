"""The command line: verbs, JSON, exit codes, files whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from onnx import helper
from typer.testing import CliRunner

from hwq import demo
from hwq.cli import app

VERBS = [
    "demo",
    "inspect",
    "calibrate",
    "quantize",
    "lower",
    "run",
    "compare",
    "estimate",
    "report",
    "export",
    "accelerators",
    "dialects",
]
LATER = ["check", "search", "diff", "fit"]


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{arguments}: exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def parsed(*arguments: object) -> dict:
    envelope = json.loads(run(*arguments, "--json").stdout)
    assert envelope["schema_version"] == 1 and envelope["verb"].startswith(str(arguments[0]))
    return envelope["result"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Digits as a user's own files: model, calibration and test images, and the quantized model of the first steps."""
    place = tmp_path_factory.mktemp("cli")
    digits = demo.data()
    (place / "model.onnx").write_bytes(Path(demo.model_path()).read_bytes())
    np.savez(place / "calibration.npz", image=digits.calibration)
    np.savez(place / "test.npz", x=(digits.images[:200] * 16).astype(np.uint8), y=digits.labels[:200])
    run("calibrate", place / "model.onnx", "--data", place / "calibration.npz", "-o", place / "cal.npz")
    run("quantize", place / "model.onnx", "--calibration", place / "cal.npz", "-o", place / "q.onnx")
    return place


@pytest.mark.parametrize("verb", VERBS + LATER)
def test_every_verb_explains_itself(verb: str) -> None:
    assert "Usage:" in run(verb, "--help").stdout


@pytest.mark.parametrize("verb", LATER)
def test_what_comes_later_says_so(verb: str) -> None:
    assert "not supported yet" in run(verb, "x", code=2).stderr


def test_inspect(folder) -> None:
    result = parsed("inspect", folder / "model.onnx")
    # 9216 + 9216 + 32768 + 4608 + 32768 + 9216 + 65536 + 640: the architecture table of hwq/demo/train.py, layer by layer.
    assert result["macs"] == 163_968 and result["batch"] == 1
    assert sum(row["macs"] for row in result["layers"]) == result["macs"]
    assert parsed("inspect", folder / "model.onnx", "--batch", 4)["macs"] == 4 * 163_968
    assert "MACs" in run("inspect", "zoo:mobilenet_v1").stdout


def test_quantized_bytes_are_a_quarter(folder) -> None:
    result = parsed("quantize", folder / "model.onnx", "--calibration", folder / "cal.npz", "-o", folder / "q2.onnx")
    assert 0.2 < result["quantized_bytes"] / result["float_bytes"] < 0.4
    assert (folder / "q2.onnx").read_bytes() == (folder / "q.onnx").read_bytes()


def test_run_gives_accuracy_and_outputs(folder) -> None:
    result = parsed(
        "run",
        folder / "q.onnx",
        "--data",
        folder / "test.npz",
        "--input-scale",
        0.0625,
        "-o",
        folder / "out.npz",
        "--overwrite",
    )
    assert result["samples"] == 200 and result["accuracy"] >= 0.97 and result["dialect"] == "ort"
    (outputs,) = np.load(folder / "out.npz").values()
    assert outputs.shape == (200, 10)
    again = parsed(
        "run",
        folder / "q.onnx",
        "--data",
        folder / "test.npz",
        "--input-scale",
        0.0625,
        "--threads",
        2,
        "-o",
        folder / "out2.npz",
        "--overwrite",
    )
    assert again["accuracy"] == result["accuracy"]
    assert np.load(folder / "out2.npz").files and np.array_equal(
        outputs, next(iter(np.load(folder / "out2.npz").values()))
    )


def test_compare(folder) -> None:
    result = parsed(
        "compare", folder / "model.onnx", folder / "q.onnx", "--data", folder / "test.npz", "--input-scale", 0.0625
    )
    text = json.dumps(result)
    assert "agreement" in text and "sqnr" in text.lower()
    assert (
        "SQNR"
        in run(
            "compare", folder / "model.onnx", folder / "q.onnx", "--data", folder / "test.npz", "--input-scale", 0.0625
        ).stdout
    )


def test_lower_prints_groups(folder) -> None:
    result = parsed("lower", folder / "q.onnx", "--to", "ort")
    assert any("QuantizeLinear" in group["body"] and group["op"] == "Conv" for group in result["groups"])
    assert "Conv" in run("lower", folder / "q.onnx", "--to", "gpu").stdout


def test_estimate(folder) -> None:
    result = parsed("estimate", "zoo:resnet50", "--on", "tpu-v1,t4", "--precision", "int8", "--batch", 8)
    assert len(result) == 2 and all(one["seconds"] > 0 and one["macs"] == 8 * 4_089_184_256 for one in result)
    run("estimate", folder / "q.onnx", "--on", "ethos-u55-128", "--csv", folder / "layers.csv")
    assert (folder / "layers.csv").read_text().count("\n") > 8
    assert "ms" in run("estimate", folder / "q.onnx", "--on", "t4").stdout


def test_scalesim(folder) -> None:
    (folder / "s.cfg").write_text(
        "[general]\nrun_name = tiny\n[architecture_presets]\nArrayHeight: 4\nArrayWidth: 4\nIfmapSramSzkB: 1\n"
        "FilterSramSzkB: 1\nOfmapSramSzkB: 1\nIfmapOffset: 0\nFilterOffset: 10000000\nOfmapOffset: 20000000\n"
        "Dataflow: os\nBandwidth: 10\nMemoryBanks: 1\n[run_presets]\nInterfaceBandwidth: CALC\n"
    )
    (folder / "t.csv").write_text("Layer,M,N,K,\nfirst,8,4,5,\n")
    result = parsed("scalesim", "-c", folder / "s.cfg", "-t", folder / "t.csv", "-p", folder / "out", "-i", "gemm")
    # Two folds of K + R + C - 2 = 11 cycles, less one: SCALE-Sim prints the index of the last cycle.
    assert result["layers"] == [{"layer": "first", "total_cycles": 21, "stall_cycles": 0}]
    assert len(result["files"]) == 3 and all(Path(file).exists() for file in result["files"])


def test_export_and_report(folder) -> None:
    run("export", folder / "q.onnx", "-o", folder / "again.onnx")
    run(
        "report",
        folder / "model.onnx",
        "--data",
        folder / "test.npz",
        "--input-scale",
        0.0625,
        "--on",
        "t4",
        "-o",
        folder / "report" / "r.html",
    )
    assert (
        "<svg" in (folder / "report" / "r.html").read_text()
        and (folder / "report" / "report.json").exists()
        and (folder / "report" / "layers.csv").exists()
    )


def test_lists(folder) -> None:
    assert {"tpu-v1", "t4", "ethos-u55-128"} <= {row["name"] for row in parsed("accelerators")}
    shown = parsed("accelerators", "show", "tpu-v1")
    assert all(row["unit"] is not None and row["source"] and row["confidence"] for row in shown["quantities"])
    assert {row["name"] for row in parsed("dialects")} >= {"ort", "ort-unfused", "litert-ref", "tensorrt"}
    assert "onnxruntime" in run("dialects").stdout


BAD = {
    "no file": ("inspect", "{0}/none.onnx"),
    "a text file": ("inspect", "{0}/text.onnx"),
    "a folder": ("inspect", "{0}"),
    "no such network": ("inspect", "zoo:resnet1000"),
    "no such machine": ("estimate", "zoo:resnet18", "--on", "tpu-v9"),
    "no machine": ("estimate", "zoo:resnet18", "--on", ","),
    "no such precision": ("estimate", "zoo:resnet18", "--on", "t4", "--precision", "int7"),
    "plan and precision": ("estimate", "zoo:resnet18", "--on", "t4", "--precision", "int8", "--plan", "{0}/text.onnx"),
    "a bad plan": ("estimate", "zoo:resnet18", "--on", "t4", "--plan", "{0}/bad.toml"),
    "a bad shape": ("inspect", "{0}/model.onnx", "--shape", "image=a,b"),
    "an unknown input": ("inspect", "{0}/model.onnx", "--shape", "nothing=1,1,8,8"),
    "data of another shape": ("run", "{0}/model.onnx", "--data", "{0}/wrong.npz"),
    "bad labels": ("run", "{0}/model.onnx", "--data", "{0}/labels.npz"),
    "no statistics": ("quantize", "{0}/model.onnx", "-o", "{0}/never.onnx"),
    "statistics of another model": (
        "quantize",
        "{0}/model.onnx",
        "--calibration",
        "{0}/test.npz",
        "-o",
        "{0}/never.onnx",
    ),
    "no such dialect": ("run", "{0}/model.onnx", "--data", "{0}/test.npz", "--dialect", "tpu"),
    "a dialect of later": ("run", "{0}/q.onnx", "--data", "{0}/test.npz", "--dialect", "tensorrt"),
    "an existing file": ("export", "{0}/q.onnx", "-o", "{0}/model.onnx"),
    "encodings of a float model": ("export", "{0}/model.onnx", "-o", "{0}/never.onnx", "--format", "aimet"),
    "no such rules": ("lower", "{0}/model.onnx", "--to", "abacus"),
    "no such accelerator": ("accelerators", "show", "abacus"),
    "verify": ("dialects", "--verify", "abacus"),
    "a machine that cannot be stepped": ("run", "{0}/q.onnx", "--data", "{0}/test.npz", "--on", "t4"),
    "a picture of no array": ("run", "{0}/q.onnx", "--data", "{0}/test.npz", "-o", "{0}/never.svg"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_and_code_2(case: str, folder) -> None:
    (folder / "text.onnx").write_text("hello")
    (folder / "bad.toml").write_text("schema = 1\n[default]\nweigths = {}\n")
    np.savez(folder / "wrong.npz", image=np.zeros((2, 3, 7, 7), np.float32))
    np.savez(folder / "labels.npz", image=np.zeros((2, 1, 8, 8), np.float32), y=np.zeros((2, 2)))
    before = sorted(folder.rglob("*"))
    result = run(*[argument.format(folder) for argument in BAD[case]], code=2)
    told = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert told[0].startswith("hwq: ") and not any(line.startswith("hwq: ") for line in told[1:]), result.stderr
    assert sorted(folder.rglob("*")) == before, "something half-written was left behind"


def test_a_dialect_that_cannot_be_verified_is_a_failed_check() -> None:
    assert "cannot be verified" in run("dialects", "--verify", "tensorrt", code=1).stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_full_and_closed_standard_output(form: list[str]) -> None:
    command = [sys.executable, "-m", "hwq", "accelerators", *form]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2 and result.stderr == "hwq: No space left on device\n"
    assert subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE).stderr == b""


def test_an_existing_file_is_refused_before_the_work(folder, monkeypatch) -> None:
    monkeypatch.setattr("hwq.cli.options.load", lambda *_: pytest.fail("the work began"))
    for verb, option in (("calibrate", "-o"), ("run", "-o"), ("portability", "--repair"), ("compare", "--plot")):
        result = run(verb, folder / "q.onnx", "--data", folder / "test.npz", option, folder / "cal.npz", code=2)
        assert "exists already" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_an_interrupted_verb_leaves_nothing(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((64, 3, 224, 224), np.float32))
    verb = subprocess.Popen([sys.executable, "-m", "hwq", "calibrate", "zoo:resnet18", "--data", str(tmp_path / "x.npy"), "-o",
                             str(tmp_path / "cal.npz")], stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background job ignores it  # fmt: skip
    assert verb.stderr is not None and "samples" in verb.stderr.readline()
    verb.send_signal(signal.SIGINT)
    told = verb.communicate()[1]
    assert verb.returncode == 130 and "Traceback" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_usage_errors_are_code_2() -> None:
    run("inspect", code=2)
    run("estimate", "zoo:resnet18", "--batch", 0, "--on", "t4", code=2)
    run("nonsense", code=2)


@pytest.mark.parametrize("batch", [1, 10, 64])
def test_a_model_of_a_fixed_batch_takes_data_of_any_length(batch: int, tmp_path: Path) -> None:
    """Most exported files fix the batch, at 1 more often than not; the data need not know."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    weight = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    (tmp_path / "m.onnx").write_bytes(
        tiny.model(nodes, {"x": [batch, 16]}, {"y": [batch, 4]}, {"w": weight}).SerializeToString()
    )
    x = np.random.default_rng(1).standard_normal((640, 16)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(640, np.int64))
    (tmp_path / "parts").mkdir()
    for part in range(2):
        np.save(tmp_path / "parts" / f"{part}.npy", x[320 * part : 320 * part + 320])
    model, data, q = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "q.onnx"
    hashes = {parsed("calibrate", model, "--data", given, "-o", tmp_path / f"{index}.npz")["calibration_hash"]
              for index, given in enumerate((data, tmp_path / "parts"))}  # fmt: skip
    assert len(hashes) == 1
    run("quantize", model, "--data", tmp_path / "parts", "-o", q)
    run("run", q, "--data", data, "-o", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as made:
        assert np.abs(made["y"] - x @ weight).max() < 0.3
    run("compare", model, q, "--data", data)
    run("compare", q, "--against", "ort", "--data", data)
    run("portability", q, "--data", data, code=1)
    run("plan", "choose", model, "--data", data, "-o", tmp_path / "p.toml")


def test_open_dimensions_are_asked_for_by_name(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("ReduceMean", ["c"], ["y"], "mean", keepdims=0)]  # fmt: skip
    weights = {"w": random.standard_normal((4, 3, 3, 3))}
    model = tmp_path / "m.onnx"
    model.write_bytes(tiny.model(nodes, {"x": ["N", 3, "H", "W"]}, {"y": []}, weights).SerializeToString())
    for verb in (["inspect", model], ["estimate", model, "--on", "t4"]):
        told = run(*verb, code=2).output
        assert "open dimensions" in told and "--shape x=1,3,H,W" in told.replace("\n", " ").replace("  ", " ")
        for shape in ("x=1,3,9,8", "x=1x3x9x8"):
            run(*verb, "--shape", shape)
    assert parsed("inspect", model, "--shape", "x=1x3x9x8")["inputs"] == {"x": [1, 3, 9, 8]}
    # What is fed binds them too, and an output of one number is compared like any other.
    np.savez(tmp_path / "x.npz", x=random.standard_normal((5, 3, 9, 8)).astype(np.float32))
    assert parsed("compare", model, "--data", tmp_path / "x.npz")["samples"] == 5
    fixed = tmp_path / "fixed.onnx"
    vector = tiny.model([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], {"x": [4]}, {"y": [5]}, {"w": random.standard_normal((4, 5))})  # fmt: skip
    fixed.write_bytes(vector.SerializeToString())
    assert "--batch 4" in run("inspect", fixed, code=2).output
    run("inspect", fixed, "--batch", "4")
