"""One-op TFLite models against what LiteRT made of them: no differing value, floats within stated distances.

The files, the inputs and the outputs of both resolvers are in golden/tflite, with version and command beside them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

import hwq
from hwq.importers.tflite import read

GOLDEN = Path(__file__).resolve().parent / "golden" / "tflite"
MODELS = np.load(GOLDEN / "models.npz")
RECORDED = np.load(GOLDEN / "outputs.npz")
RUNS = 2
RESOLVERS = {"litert-ref": "ref", "litert-xnnpack": "default"}

# Float operators whose order of sums, or whose exp and tanh, are the runtime's own: largest distance in units of the last
# place of the largest magnitude in the output.
ULPS = {
    "litert-ref": {"tanh_float": 1},
    "litert-xnnpack": {
        "depthwise_hybrid": 1, "average_pool_float_relu": 2, "sum_float": 3, "mean_float": 1, "softmax_float_beta": 5,
        "sqrt_float": 1, "hard_swish_float": 1, "tanh_float": 2, "logistic_float": 1, "resize_bilinear_float32": 1,
        "resize_bilinear_float32_half_pixel": 5, "resize_bilinear_float32_align_corners": 1,
    },
}  # fmt: skip


def outputs(name: str, dialect: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ours, LiteRT's) of every output of every run; state is carried from run to run."""
    graph = read(MODELS[name].tobytes(), name)
    session = hwq.compile(graph, dialect).session()
    found = []
    for run in range(RUNS):
        made = session({entry: RECORDED[f"{name}/{run}/in{place}"] for place, entry in enumerate(graph.inputs)})
        made = made if isinstance(made, dict) else {graph.outputs[0]: made}
        for place, output in enumerate(graph.outputs):
            found.append((made[output], RECORDED[f"{name}/{run}/{RESOLVERS[dialect]}{place}"]))
    return found


@pytest.mark.parametrize("dialect", RESOLVERS)
@pytest.mark.parametrize("name", MODELS.files)
def test_outputs_are_the_runtimes(name: str, dialect: str) -> None:
    for ours, theirs in outputs(name, dialect):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if name in ULPS[dialect]:
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
            unit = np.spacing(np.nanmax(np.abs(theirs)))
            assert np.nanmax(np.abs(ours.astype(np.float64) - theirs)) <= ULPS[dialect][name] * unit
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_only_floats_are_excused() -> None:
    for names in ULPS.values():
        for name in names:
            assert RECORDED[f"{name}/0/ref0"].dtype == np.float32
    assert len(MODELS.files) >= 150


def test_state_is_the_sessions() -> None:
    graph = read(MODELS["lstm_int8"].tobytes(), "lstm_int8")
    program = hwq.compile(graph)
    x = RECORDED["lstm_int8/0/in0"]
    session = program.session()
    first, second = session(x).copy(), session(x).copy()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(program(x), first)
    np.testing.assert_array_equal(program(x), first)
    session.reset()
    np.testing.assert_array_equal(session(x), first)
    np.testing.assert_array_equal(session(x), second)


def test_a_run_that_fails_leaves_the_state() -> None:
    graph = read(MODELS["svdf_int8"].tobytes(), "svdf_int8")
    session, other = (hwq.compile(graph).session() for _ in range(2))
    x = RECORDED["svdf_int8/0/in0"]
    session(x), other(x)
    with pytest.raises(hwq.Error):
        session(x[:, :-1])
    np.testing.assert_array_equal(session(x), other(x))


def test_older_fully_connected_is_fixed_point() -> None:
    name = "fully_connected_int8_ties"
    graph = read(MODELS[name].tobytes(), name)
    x = RECORDED[f"{name}/0/in0"]
    new, old = (hwq.execute(graph, x, dialect=dialect) for dialect in ("litert-ref", "litert-ref-fixedfc"))
    assert np.abs(new.astype(int) - old).max() == 1
    assert "unverified" in hwq.dialects()["litert-ref-fixedfc"].status


def test_dialects_keep_to_their_models() -> None:
    graph = read(MODELS["conv_int8_ties"].tobytes(), "conv_int8_ties")
    x = RECORDED["conv_int8_ties/0/in0"]
    with pytest.raises(hwq.Error, match="TFLite's own"):
        hwq.execute(graph, x, dialect="ort")
    with pytest.raises(hwq.Error, match="TFLite models only"):
        hwq.compile(tiny.graph(tiny.mlp()), "litert-ref")
