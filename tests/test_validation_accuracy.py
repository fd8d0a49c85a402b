"""The scoreboard of methods: on the package's digits network, and the committed report against its own rule of choice."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import SHARED
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.errors import Error
from hwq.validation import accuracy, validate
from hwq.validation.contenders import contend, installed, stored_bytes
from hwq.validation.methods import METHODS
from hwq.validation.networks import digits, wide_image_classification

REPORT = Path(__file__).resolve().parent.parent / "reports" / "accuracy" / "rows.csv"
FEW = tuple(one for one in METHODS if (one.group, one.name) in {
    ("W8A8 static", "minmax"), ("W8A8 static", "mse, bias"), ("W8A8 static", "percentile, bias"), ("W4A8", "mse"),
})  # fmt: skip


def small(_folder=None):
    whole = digits(None)
    return dataclasses.replace(
        whole, calibration=whole.calibration[:60], images=whole.images[:200], labels=whole.labels[:200]
    )


@pytest.fixture(scope="module")
def board():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "NETWORKS", (small,))
        return accuracy.measure(methods=FEW, toolkits=False)


def test_rows_are_what_their_words_say(board):
    network = small()
    row = next(one for one in board.rows if one.method == "mse" and one.group == "W4A8")
    method = next(one for one in FEW if one.name == "mse")
    q = hwq.quantize(
        network.graph, method.on(network.graph), hwq.calibrate(network.graph, network.calibration), network.calibration
    )
    made, wanted = hwq.execute(q, network.images), hwq.execute(network.graph, network.images)
    compared = hwq.compare(network.graph, q, network.images, labels=network.labels)
    assert row.samples == 200 and row.accuracy == (made.argmax(1) == network.labels).mean()
    assert row.agreement == (made.argmax(1) == wanted.argmax(1)).mean() == pytest.approx(compared.agreement)
    assert row.kl == pytest.approx(compared.kl, rel=1e-6)
    assert (row.p, row.gained, row.lost) == (compared.mcnemar_p, compared.gained, compared.lost)
    assert row.bytes < next(one for one in board.rows if one.group == "float32").bytes / 4


def test_one_candidate_a_group_is_chosen_by_what_was_held_back(board):
    for group in {row.group for row in board.rows} - {"float32"}:
        inside = [row for row in board.rows if row.group == group]
        held = [row for row in inside if row.held_back_kl is not None]
        assert [row.chosen for row in held] == [
            row.held_back_kl == min(one.held_back_kl for one in held) for row in held
        ]
        assert not any(row.chosen for row in inside if row.held_back_kl is None)


def test_the_choice_sees_no_scored_sample(monkeypatch, board):
    network = small()
    shuffled = dataclasses.replace(network, images=network.images[::-1] * 0.5, labels=network.labels[::-1])
    monkeypatch.setattr(accuracy, "NETWORKS", (lambda _folder: shuffled,))
    again = accuracy.measure(methods=FEW, toolkits=False)
    assert [(one.held_back_kl, one.chosen) for one in again.rows] == [
        (one.held_back_kl, one.chosen) for one in board.rows
    ]
    assert [one.agreement for one in again.rows] != [one.agreement for one in board.rows]


def test_onnxruntime_is_measured_in_the_same_run():
    there = installed()
    if "onnxruntime" not in there:
        pytest.skip("onnxruntime is not installed")
    name = "onnxruntime min-max"
    made = contend(small(), there["onnxruntime"].python, [name])[name]
    assert made.outputs.shape == (200, 10) and (made.outputs.argmax(1) == small().labels).mean() > 0.98
    assert made.seconds > 0 and 8_000 < made.bytes < 20_000


def test_another_python_is_asked_what_it_has(tmp_path):
    python = tmp_path / "python"
    said = {"--versions": {"nncf": "9.9"}, "*": {"error": "RuntimeError: no"}}
    cases = ";; ".join(f"{word}) echo '{json.dumps(answer)}'" for word, answer in said.items())
    python.write_text(f'#!/bin/sh\ncase "$2" in {cases};; esac\n')
    python.chmod(0o755)
    found = installed([python])
    assert (found["nncf"].python, found["nncf"].version) == (str(python), "9.9")
    assert contend(small(), str(python), ["NNCF, fast bias correction"]) == {
        "NNCF, fast bias correction": "RuntimeError: no"
    }
    with pytest.raises(Error, match="did not run"):
        installed([tmp_path / "nothing"])


def test_a_channels_last_model_is_turned():
    path = SHARED / "models"
    network = wide_image_classification(path)
    if network is None:
        pytest.skip("needs the real models of HWQ_SHARED")
    original = hwq.load(str(path / "ic" / "pretrainedResnet_large_float.tflite"))
    few = network.images[:3]
    np.testing.assert_allclose(
        hwq.execute(network.graph, few), hwq.execute(original, few.transpose(0, 2, 3, 1)), atol=1e-5
    )


def test_bytes_count_four_bits_as_half():
    network = small()
    sizes = [
        stored_bytes(
            hwq.quantize(
                network.graph,
                hwq.Plan.uniform(weights, dialect="hwq"),
                hwq.calibrate(network.graph, network.calibration[:8]),
            )
        )
        for weights in ("int8", "int4")
    ]
    weights = sum(one.elements for one in network.graph.tensors.values() if one.constant and len(one.shape) > 1)
    assert sizes[0] - sizes[1] == pytest.approx(weights / 2, rel=0.05)  # zero points are half as long too


def test_the_command_prints_one_json_document(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "NETWORKS", (small,))
    monkeypatch.setattr(accuracy.measure, "__kwdefaults__", {**accuracy.measure.__kwdefaults__, "methods": FEW[:1]})
    done = CliRunner().invoke(
        app,
        ["validate", "--family", "accuracy", "--data", str(tmp_path), "--json", "--csv", str(tmp_path / "rows.csv")],
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)["result"]
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert len(rows) == len(result["rows"]) >= 2 and result["machine"]["flags"]
    missing = CliRunner().invoke(app, ["validate", "--family", "accuracy", "--data", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2 and "no such folder" in missing.output


def test_published_measurements_are_another_matter():
    with pytest.raises(Error, match="measured, not read"):
        validate("accuracy")


def test_the_committed_report_keeps_its_rule():
    rows = list(csv.DictReader(REPORT.read_text().splitlines()))
    assert {"digits", "DS-CNN", "ResNet-8"} <= {row["model"] for row in rows}
    for model in {row["model"] for row in rows}:
        for group in {row["group"] for row in rows} - {"float32"}:
            held = [row for row in rows if row["model"] == model and row["group"] == group and row["held_back_kl"]]
            best = min(held, key=lambda row: float(row["held_back_kl"]))
            assert [row["method"] for row in held if row["chosen"] == "True"] == [best["method"]]
    # Accuracy and McNemar's counts belong together.
    for row in rows:
        change = (int(row["gained"]) - int(row["lost"])) / int(row["samples"])
        assert float(row["accuracy"]) - float(row["float_accuracy"]) == pytest.approx(change, abs=1e-5)
        assert 0 <= float(row["p"]) <= 1 and np.isfinite(float(row["kl"]))
