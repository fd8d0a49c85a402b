"""The scoreboard on rows quoted from their papers; an estimate does not depend on the value it is scored against."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import SHARED
from typer.testing import CliRunner

from hwq.cli import app
from hwq.errors import Error, NotSupportedYet
from hwq.validation import validate
from hwq.validation.measurements import COLUMNS

JOUPPI = "Jouppi et al., ISCA 2017, tables 1, 3, 4 and 5"
CHEN = "Chen et al., JSSC 2017, AlexNet layer table"
EYERISS = "Eyeriss v1 (65nm, 168 PE, 1.0V 200MHz)"
# device, model, batch, metric, value, unit, source
ROWS = [
    ("TPU v1", "mlp0", 200, "array_active_cycles_pct", 12.7, "%", JOUPPI),
    ("TPU v1", "mlp0", 200, "weight_stall_cycles_pct", 53.9, "%", JOUPPI),
    ("TPU v1", "mlp0", 200, "weight_shift_cycles_pct", 15.9, "%", JOUPPI),
    ("TPU v1", "mlp0", 200, "non_matrix_cycles_pct", 17.5, "%", JOUPPI),
    ("TPU v1", "mlp0", 200, "host_interaction_time_pct", 21, "%", JOUPPI),
    ("TPU v1", "mlp0", 200, "throughput_tops", 12.3, "TOPS", JOUPPI),
    ("TPU v1", "mlp0", 250, "throughput", 280000, "inf/s", JOUPPI),
    ("TPU v1", "mlp0", 250, "latency_p99", 10, "ms", JOUPPI),
    ("TPU v1", "lstm0", 64, "array_active_cycles_pct", 8.2, "%", JOUPPI),
    ("TPU v1", "lstm0", 64, "weight_stall_cycles_pct", 58.1, "%", JOUPPI),
    ("TPU v1", "lstm0", 64, "weight_shift_cycles_pct", 15.8, "%", JOUPPI),
    ("TPU v1", "lstm0", 64, "non_matrix_cycles_pct", 17.9, "%", JOUPPI),
    ("TPU v1", "lstm0", 64, "throughput_tops", 3.7, "TOPS", JOUPPI),
    ("TPU v1", "lstm1", 96, "array_active_cycles_pct", 10.5, "%", JOUPPI),
    ("TPU v1", "lstm1", 96, "unused_macs_pct", 4.2, "%", JOUPPI),
    ("TPU v1", "lstm1", 96, "non_matrix_cycles_pct", 10.3, "%", JOUPPI),
    ("TPU v1", "lstm1", 96, "throughput_tops", 2.8, "TOPS", JOUPPI),
    ("TPU v1", "cnn0", 8, "useful_macs_pct", 78.2, "%", JOUPPI),
    ("TPU v1", "cnn0", 8, "throughput_tops", 86.0, "TOPS", JOUPPI),
    ("K80", "mlp0", 200, "k80_rel_perf_vs_haswell_die", 2.5, "x", JOUPPI),
    (EYERISS, "alexnet/conv1", 4, "dram_access", 5.0, "MB", CHEN),
    (EYERISS, "alexnet/conv1", 4, "global_buffer_access", 18.5, "MB", CHEN),
    (EYERISS, "alexnet/conv2", 4, "dram_access", 4.0, "MB", CHEN),
    (EYERISS, "alexnet/conv2", 4, "global_buffer_access", 77.6, "MB", CHEN),
    (EYERISS, "alexnet/conv5", 4, "processing_latency", 10.0, "ms", CHEN),
    (EYERISS, "alexnet/conv5", 4, "power", 236, "mW", CHEN),
    (EYERISS, "alexnet/total_conv1_5", 4, "dram_access", 15.4, "MB", CHEN),
    (EYERISS, "vgg16/conv1_1", 3, "dram_access", 15.4, "MB", "no such row in the paper's AlexNet table"),
]  # fmt: skip
APPLICATIONS = "app,fc_layers,conv_layers,weights_million\nmlp0,5,0,20\nlstm0,24,0,52\nlstm1,37,0,34\ncnn0,0,16,8\n"


def folder(path: Path, scale: float = 1.0, only: int | None = None) -> Path:
    lines = [",".join(COLUMNS)]
    for index, (device, model, batch, metric, value, unit, source) in enumerate(ROWS):
        changed = value * scale if index == only else value
        lines.append(
            f'r{index},g,"{device}",1,{model},,int8,{batch},,,,{metric},{changed},{unit},measured,"{source}",recalled,'
        )
    path.mkdir(exist_ok=True)
    (path / "tpu_systolic.csv").write_text("\n".join(lines) + "\n")
    (path / "tpu_v1_apps_inputs.csv").write_text(APPLICATIONS)
    return path


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    return validate("systolic", folder(tmp_path_factory.mktemp("rows") / "v"))


def by(board, model, metric):
    return next(score for score in board.scores if (score.row.model, score.row.metric) == (model, metric))


def test_tpu_counters_are_reproduced(board):
    for model in ("mlp0", "lstm0"):
        assert abs(by(board, model, "weight_shift_cycles_pct").error) <= 1
        assert abs(by(board, model, "array_active_cycles_pct").error) <= 6
        assert abs(by(board, model, "weight_stall_cycles_pct").error) <= 6
        assert abs(by(board, model, "throughput_tops").error) <= 0.15
        assert by(board, model, "throughput_tops").inputs == {
            "non_matrix_cycles_pct": 17.5 if model == "mlp0" else 17.9
        }


def test_eyeriss_bytes_are_reproduced(board):
    for model in ("conv1", "conv2", "total_conv1_5"):
        assert abs(by(board, f"alexnet/{model}", "dram_access").error) <= 0.20
    for model in ("conv1", "conv2"):
        assert abs(by(board, f"alexnet/{model}", "global_buffer_access").error) <= 0.30
    assert abs(by(board, "alexnet/conv5", "processing_latency").error) <= 0.15


@pytest.mark.parametrize(
    "model, metric, words",
    [
        ("lstm1", "throughput_tops", "not derivable"),
        ("lstm1", "array_active_cycles_pct", "other counters"),
        ("cnn0", "throughput_tops", "counters give 71.7 TOPS, the paper's rate is 86"),
        ("mlp0", "latency_p99", "queueing"),
        ("mlp0", "k80_rel_perf_vs_haswell_die", "no machine file names"),
        ("alexnet/conv5", "power", "not modelled"),
        ("vgg16/conv1_1", "dram_access", "no shapes"),
    ],
)
def test_what_is_not_scored_says_why(board, model, metric, words):
    score = by(board, model, metric)
    assert score.estimate is None and words in score.reason


def test_an_estimate_does_not_see_what_it_is_scored_against(board, tmp_path):
    for index, row in enumerate(ROWS):
        if row[3] in {"non_matrix_cycles_pct", "host_interaction_time_pct", "unused_macs_pct"}:
            continue  # named inputs, and the share that decides whether a rate is derivable
        other = validate("systolic", folder(tmp_path / str(index), 1.7, index))
        assert other.scores[index].estimate == board.scores[index].estimate


def test_statistics_count_every_scored_row(board):
    rows = board.statistics()
    assert sum(row["n"] for row in rows) == len(board.scored)
    assert all(row["median"] <= row["p90"] <= row["worst"] for row in rows)
    record = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert len(record["scores"]) == len(ROWS) and record["fitted_ids"] == []
    assert all(score["estimate"] is not None or score["reason"] for score in record["scores"])
    assert board.to_csv().count("\n") == len(ROWS) + 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("12.7", "many"),
        lambda text: text.replace("12.7", "nan"),
        lambda text: text.replace("r1,", "r0,", 1),
        lambda text: text.replace("metric,", "", 1),
        lambda text: text.replace(",200,", ",two hundred,", 1),
    ],
)
def test_damaged_tables_are_told(tmp_path, damage):
    path = folder(tmp_path / "v") / "tpu_systolic.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(Error, match=r"tpu_systolic\.csv"):
        validate("systolic", path.parent)


def test_the_verb_prints_rows_reasons_and_statistics(tmp_path):
    where = folder(tmp_path / "v")
    done = CliRunner().invoke(app, ["validate", "--family", "systolic", "--data", str(where)])
    assert (
        done.exit_code == 0 and "weight_shift share of the matrix time" in done.stdout and "not scored" in done.stdout
    )
    done = CliRunner().invoke(app, ["validate", "--family", "systolic", "--data", str(where), "--json"])
    assert json.loads(done.stdout)["result"]["rows"] == len(ROWS)
    assert CliRunner().invoke(app, ["validate", "--family", "abacus", "--data", str(where)]).exit_code == 2
    assert CliRunner().invoke(app, ["validate", "--family", "systolic", "--data", str(where / "no")]).exit_code == 2


def test_other_families_come_later(tmp_path):
    with pytest.raises(NotSupportedYet):
        validate("gpu", tmp_path)


@pytest.mark.skipif(not (SHARED / "validation").is_dir(), reason="needs the published measurements of HWQ_SHARED")
def test_the_published_rows():
    board = validate("systolic", SHARED / "validation")
    assert len(board.scores) >= 100
    for score in board.scored:
        limit = (
            6
            if score.points
            else {"dram_access": 0.20, "global_buffer_access": 0.30, "throughput_tops": 0.15}.get(score.row.metric)
        )
        if score.row.metric == "weight_shift_cycles_pct":
            limit = 1
        assert limit is None or abs(score.error) <= limit, score.row.id
