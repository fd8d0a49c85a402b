"""Calibration against NumPy on the same values: ranges, histograms, moments, whatever the batching."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import hwq
from hwq.batches import cut, feeds
from hwq.calibration import Calibration
from hwq.errors import Error
from hwq.graph import Graph
from hwq.ops.evaluate import evaluate
from hwq.statistics import BINS, observe


def relu() -> Graph:
    return tiny.graph(
        tiny.model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": ["N", 4]}, {"y": ["N", 4]}, {})
    )


def reference_histogram(values: np.ndarray, width: float) -> np.ndarray:
    """Counts by NumPy's own histogram over the same power-of-two edges, in float64."""
    edges = np.arange(-BINS // 2, BINS // 2 + 1) * width
    return np.histogram(values.astype(np.float64), edges)[0]


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=5000) * 3,
        np.abs(np.random.default_rng(1).normal(size=5000)) * 1e-6,
        np.array([-1.0, -2.0, -1e-30, 0.0, 2.0, 1024.0]),
        np.array([3e38, -3e38, 1e-45, -1e-45]),
        np.array([1e-45, 3e-45, -2e-45]),
        np.zeros(7),
        -np.arange(1, 9.0),
    ],
    ids=["normal", "tiny", "powers", "huge", "denormal", "zeros", "negative"],
)
def test_one_array(values: np.ndarray) -> None:
    values = values.astype(np.float32)
    seen = observe(values)
    assert (seen.minimum, seen.maximum, seen.count) == (values.min(), values.max(), values.size)
    assert seen.mean == pytest.approx(values.astype(np.float64).mean())
    assert seen.squares == pytest.approx((values.astype(np.float64) ** 2).sum())
    assert np.array_equal(seen.histogram, reference_histogram(values, seen.width))
    # At least a quarter of the bins cover the largest magnitude, so 2048 cover |x| (unless the width is the finest).
    assert np.abs(values).max() / seen.width >= BINS / 4 or seen.exponent == -149


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
        min_size=1,
        max_size=5,
    )
)
def test_merging_in_any_order_is_one_pass(parts: list[list[float]]) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    together = observe(np.concatenate(arrays))
    for order in (arrays, arrays[::-1]):
        merged = observe(order[0])
        for part in order[1:]:
            merged = merged.merge(observe(part))
        assert merged.exponent == together.exponent
        assert np.array_equal(merged.histogram, together.histogram)
        assert (merged.minimum, merged.maximum, merged.count) == (together.minimum, together.maximum, together.count)


def test_growth_over_many_orders_of_magnitude() -> None:
    random = np.random.default_rng(3)
    parts = [(random.normal(size=300) * 10.0**power).astype(np.float32) for power in range(-9, 9, 2)]
    cal = hwq.calibrate(relu(), [part.reshape(-1, 4) for part in parts])
    seen = cal["x"]
    assert np.array_equal(seen.histogram, reference_histogram(np.concatenate(parts), seen.width))


def test_every_tensor_equals_numpy_on_the_values(cnn: Graph) -> None:
    x = tiny.images(20)
    values = evaluate(cnn, {"x": x}, intermediates=True)
    cal = hwq.calibrate(cnn, x)
    assert set(cal.tensors) == {"x", *(name for node in cnn for name in node.outputs)}
    for name, seen in cal.tensors.items():
        value = x if name == "x" else values[name]
        assert (seen.minimum, seen.maximum, seen.count) == (value.min(), value.max(), value.size), name
        assert np.array_equal(seen.histogram, reference_histogram(value, seen.width)), name
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        assert np.array_equal(seen.minima, value.min(axis=axes)) and np.array_equal(
            seen.maxima, value.max(axis=axes)
        ), name
        assert np.allclose(seen.means, value.mean(axis=axes, dtype=np.float64)), name


def test_the_batching_changes_nothing(cnn: Graph) -> None:
    x = tiny.images(30)
    whole = hwq.calibrate(cnn, x)
    for other in (
        hwq.calibrate(cnn, [x[:1], x[1:20], x[20:]]),
        hwq.calibrate(cnn, ({"x": part} for part in np.split(x, 10))),
        hwq.calibrate(cnn, x[12:], resume=hwq.calibrate(cnn, x[:12])),
        hwq.calibrate(cnn, x[20:]).merge(hwq.calibrate(cnn, x[:20])),
    ):
        assert other.samples == 30 and other.graph == whole.graph
        for name, seen in whole.tensors.items():
            assert np.array_equal(other[name].histogram, seen.histogram), name
            assert np.array_equal(other[name].minima, seen.minima) and np.array_equal(
                other[name].maxima, seen.maxima
            ), name
            assert other[name].mean == pytest.approx(seen.mean, rel=1e-12, abs=1e-12)


def test_quantiles_lie_within_a_bin_of_the_exact_ones() -> None:
    values = np.random.default_rng(5).normal(size=40000).astype(np.float32)
    seen = observe(values)
    for share in (0.0, 0.001, 0.25, 0.5, 0.9, 0.9999, 1.0):
        assert abs(seen.quantile(share) - np.quantile(values, share)) <= 2 * seen.width
    assert seen.quantile(0.0) == values.min() and seen.quantile(1.0) == values.max()


def patches(x: np.ndarray, weight: np.ndarray, group: int, pad: int, stride: int, dilation: int) -> np.ndarray:
    """(group, rows, K) by plain loops."""
    channels, size = weight.shape[1], weight.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = (size - 1) * dilation + 1
    found: list[list[np.ndarray]] = [[] for _ in range(group)]
    for image in padded:
        for i in range(0, padded.shape[2] - reach + 1, stride):
            for j in range(0, padded.shape[3] - reach + 1, stride):
                for g in range(group):
                    window = image[
                        g * channels : (g + 1) * channels, i : i + reach : dilation, j : j + reach : dilation
                    ]
                    found[g].append(window.reshape(-1))
    return np.array(found, np.float64)


@pytest.mark.parametrize("group, pad, stride, dilation", [(1, 1, 1, 1), (2, 0, 2, 1), (4, 2, 1, 2)])
def test_second_moments_of_convolutions(group: int, pad: int, stride: int, dilation: int) -> None:
    random = np.random.default_rng(7)
    weight = random.normal(size=(4, 4 // group, 3, 3))
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], "conv", group=group, pads=[pad] * 4, strides=[stride] * 2, dilations=[dilation] * 2
    )
    graph = tiny.graph(tiny.model([node], {"x": ["N", 4, 9, 9]}, {"y": ["N", 4, "h", "w_"]}, {"w": weight}))
    x = random.normal(size=(3, 4, 9, 9)).astype(np.float32)
    cal = hwq.calibrate(graph, [x[:1], x[1:]], moments=True)
    rows = patches(x, weight, group, pad, stride, dilation)
    made = cal.moments["conv"]
    assert made.count == rows.shape[1]
    assert np.allclose(made.matrix, rows.transpose(0, 2, 1) @ rows)
    assert np.allclose(made.total, rows.sum(axis=1))


def test_second_moments_of_products() -> None:
    graph, x = tiny.graph(tiny.mlp()), tiny.rows(9)
    cal = hwq.calibrate(graph, x, moments=True)
    flat = x.reshape(-1, 16).astype(np.float64)
    assert set(cal.moments) == {"up", "down"} and cal.moments["up"].count == 36
    assert np.allclose(cal.moments["up"].matrix, flat.T @ flat)
    assert not hwq.calibrate(graph, x).moments


def test_moments_beyond_the_bound_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwq.calibration.MOMENT_BYTES", 8 * 16 * 17)
    cal = hwq.calibrate(tiny.graph(tiny.mlp()), tiny.rows(2), moments=True)
    assert set(cal.moments) == {"up"} and cal.skipped == ("down",)


def test_saving_and_loading(cnn: Graph, tmp_path: Path) -> None:
    cal = hwq.calibrate(cnn, tiny.images(5), moments=True)
    cal.save(tmp_path / "cal.npz")
    back = Calibration.load(tmp_path / "cal.npz")
    assert back.hash == cal.hash and back.samples == 5 and list(back.tensors) == list(cal.tensors)
    assert np.array_equal(back["r1"].histogram, cal["r1"].histogram) and back["r1"].axis == cal["r1"].axis
    assert back.merge(back).samples == 10
    assert hwq.calibrate(cnn, tiny.images(6)).hash != cal.hash
    with pytest.raises(Error, match="exists already"):
        cal.save(tmp_path / "cal.npz")
    assert "5 samples" in str(cal) and "r1" in str(cal)


def test_every_form_of_data(cnn: Graph, tmp_path: Path) -> None:
    x = tiny.images(6)
    np.savez(tmp_path / "named.npz", x=x, y=np.arange(6))
    np.savez(tmp_path / "single.npz", whatever=x)
    np.save(tmp_path / "array.npy", x)
    (tmp_path / "folder").mkdir()
    for index in range(3):
        np.save(tmp_path / "folder" / f"{index}.npy", x[2 * index : 2 * index + 2])
    expected = hwq.calibrate(cnn, x)["y"].histogram
    files = [tmp_path / "named.npz", str(tmp_path / "single.npz"), tmp_path / "array.npy", tmp_path / "folder"]
    for batches in (*files, [x[:3], {"x": x[3:]}], [tmp_path / "array.npy"], iter([x])):
        assert np.array_equal(hwq.calibrate(cnn, batches)["y"].histogram, expected)


def test_a_fixed_batch_is_cut_to_size() -> None:
    graph = tiny.graph(tiny.model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}, {}))
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    assert hwq.calibrate(graph, x).samples == 8
    assert [len(piece["x"]) for feed in feeds(graph, x) for piece in cut(graph, feed)] == [2, 2, 2, 2]
    with pytest.raises(Error, match="shape"):
        hwq.calibrate(graph, x[:5])


def test_progress_is_reported(cnn: Graph) -> None:
    seen: list[tuple[int, int | None, str]] = []
    hwq.calibrate(cnn, tiny.images(130), progress=lambda done, total, what: seen.append((done, total, what)))
    assert seen[-1] == (130, 130, "calibrate: samples") and len(seen) == 3
    seen.clear()
    hwq.calibrate(
        cnn, iter([tiny.images(3), tiny.images(2)]), progress=lambda done, total, what: seen.append((done, total, what))
    )
    assert [entry[:2] for entry in seen] == [(3, None), (5, None)]


def test_memory_does_not_grow_with_the_data(cnn: Graph) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        hwq.calibrate(cnn, (tiny.images(16, seed) for seed in range(count)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.2 * peak(4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_is_read_piece_by_piece_with_the_bits_of_its_array(
    cnn: Graph, tmp_path: Path, save: Callable[..., None]
) -> None:
    def peak(count: int) -> int:
        save(tmp_path / "x.npz", x=tiny.images(count), y=np.zeros(count))
        tracemalloc.start()
        found = hwq.calibrate(cnn, tmp_path / "x.npz")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.hash == hwq.calibrate(cnn, tiny.images(count)).hash
        return most

    assert peak(1300) < 1.2 * peak(130)


def test_a_bad_sample_of_a_file_is_named_by_its_place(cnn: Graph, tmp_path: Path) -> None:
    x = tiny.images(200)
    x[131, 0, 2, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(Error, match=r"x\.npy, input x, sample 131, element \[0, 2, 1\]: the data hold nan"):
        hwq.calibrate(cnn, tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.asfortranarray(tiny.images(6)))
    whole = hwq.calibrate(cnn, tmp_path / "x.npy")["y"]
    assert np.array_equal(whole.histogram, hwq.calibrate(cnn, tiny.images(6))["y"].histogram)
    np.save(tmp_path / "x.npy", x[:0])
    with pytest.raises(Error, match="empty"):
        hwq.calibrate(cnn, tmp_path / "x.npy")


@pytest.mark.parametrize("stop", [1, 3])
def test_going_on_from_a_saved_calibration_changes_no_bit(cnn: Graph, tmp_path: Path, stop: int) -> None:
    batches = [tiny.images(5, seed) * np.float32(0.3 + seed) for seed in range(5)]
    whole = hwq.calibrate(cnn, iter(batches), moments=True)
    hwq.calibrate(cnn, iter(batches[:stop]), moments=True).save(tmp_path / "part.npz")
    rest = hwq.calibrate(cnn, iter(batches[stop:]), moments=True, resume=Calibration.load(tmp_path / "part.npz"))
    assert (rest.samples, rest.hash) == (25, whole.hash)


def test_an_overflow_inside_the_model_names_tensor_and_sample() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"], "exp"), helper.make_node("Relu", ["e"], ["y"], "relu")]
    graph = tiny.graph(tiny.model(nodes, {"x": ["N", 2]}, {"y": ["N", 2]}, {}))
    x = np.zeros((200, 2), np.float32)
    x[131, 1] = 1000.0
    with pytest.raises(Error, match=r"tensor e made by node exp, sample 131: the value is inf"):
        hwq.calibrate(graph, x)


def test_calibrations_of_other_graphs_do_not_mix(cnn: Graph) -> None:
    own, other = hwq.calibrate(cnn, tiny.images(2)), hwq.calibrate(relu(), np.ones((1, 4), np.float32))
    with pytest.raises(Error, match="different graphs"):
        own.merge(other)
    with pytest.raises(Error, match="another graph"):
        hwq.calibrate(cnn, tiny.images(2), resume=other)
    with pytest.raises(Error, match="another graph"):
        hwq.quantize(cnn, hwq.Plan.uniform(), other)
    with pytest.raises(Error, match="moments"):
        hwq.calibrate(cnn, tiny.images(2), moments=True, resume=own)


def test_a_graph_without_weights_cannot_be_calibrated() -> None:
    graph = hwq.load("zoo:mobilenet_v1", weights=False)
    with pytest.raises(Error, match="no values"):
        hwq.calibrate(graph, np.zeros((1, 3, 224, 224), np.float32))
