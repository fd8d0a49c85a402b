"""Whole graphs: shapes with open dimensions, folding, feeds, and values between the nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import model_of, run_onnxruntime

from hwq.errors import Error
from hwq.graph import Node
from hwq.importers.onnx import read
from hwq.ops import dims
from hwq.ops.evaluate import evaluate, fold, infer_shapes

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle")
RNG = np.random.default_rng(4)
F = np.float32


def data(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(F)


def test_folding_keeps_the_values() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["i"]), helper.make_node("Conv", ["i", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
             helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], "norm"), helper.make_node("Relu", ["n"], ["r"]),
             helper.make_node("Dropout", ["r"], ["d"]), helper.make_node("Transpose", ["wt"], ["tw"], perm=[1, 0]),
             helper.make_node("Flatten", ["d"], ["f"]), helper.make_node("Gemm", ["f", "tw"], ["q"], "dense"),
             helper.make_node("BatchNormalization", ["q", "g2", "b2", "m2", "v2"], ["z"], "norm2"), helper.make_node("Identity", ["z"], ["y"])]  # fmt: skip
    x = data(2, 3, 6, 6)
    constants = {"w": data(4, 3, 3, 3), "g": data(4), "b": data(4), "m": data(4), "v": np.abs(data(4)) + F(0.1), "wt": data(5, 144),
                 "g2": data(5), "b2": data(5), "m2": data(5), "v2": np.abs(data(5)) + F(0.1)}  # fmt: skip
    model = model_of(nodes, {"x": x}, constants, ["y"], dynamic=True)
    graph = read(model)
    folded = fold(graph)
    assert [node.op for node in folded] == ["Conv", "Relu", "Flatten", "Gemm"]
    assert folded.nodes[0].origin == "conv" and folded.outputs == ("y",)
    expected = run_onnxruntime(model, {"x": x})[0]
    for one in (graph, folded):
        np.testing.assert_allclose(evaluate(one, {"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_open_dimensions_pass_through() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"], axis=0), helper.make_node("Unsqueeze", ["n", "zero1"], ["n1"]),
             helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0), helper.make_node("Reshape", ["x", "t"], ["r"]),
             helper.make_node("Transpose", ["r"], ["p"], perm=[0, 2, 1]), helper.make_node("MatMul", ["r", "p"], ["m"]),
             helper.make_node("ReduceMean", ["m"], ["y"], axes=[2], keepdims=0)]  # fmt: skip
    x = data(3, 4, 10)
    constants = {"zero": np.array(0), "zero1": np.array([0]), "rest": np.array([8, -1])}
    model = model_of(nodes, {"x": x}, constants, ["y"], dynamic=True)
    graph = read(model)
    assert (
        graph.tensors["r"].shape == ("N", 8, 5)
        and graph.tensors["m"].shape == ("N", 8, 8)
        and graph.tensors["y"].shape == ("N", 8)
    )
    np.testing.assert_allclose(
        evaluate(graph, {"x": x})["y"], run_onnxruntime(model, {"x": x})[0], rtol=1e-4, atol=1e-5
    )
    bound = infer_shapes(graph, batch=3)
    assert [node.op for node in bound] == ["Reshape", "Transpose", "MatMul", "ReduceMean"]
    np.testing.assert_array_equal(bound.constant("t"), [3, 8, -1])
    assert infer_shapes(graph, {"x": (7, 4, 10)}).tensors["y"].shape == (7, 8)


def test_fixed_batches_can_be_changed() -> None:
    """An export with batch 1 repeats the 1 in its Reshape targets."""
    nodes = [helper.make_node("Reshape", ["x", "t"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    graph = read(model_of(nodes, {"x": data(1, 4, 6)}, {"t": np.array([1, 24])}, ["y"]))
    x = data(5, 4, 6)
    wide = infer_shapes(graph, batch=5)
    assert wide.tensors["y"].shape == (5, 24) and graph.tensors["y"].shape == (1, 24)
    np.testing.assert_array_equal(evaluate(wide, {"x": x})["y"], np.maximum(x, 0).reshape(5, 24))


def test_a_fixed_batch_that_is_part_of_the_values_stays() -> None:
    graph = read(
        model_of([helper.make_node("Add", ["x", "p"], ["y"], "place")], {"x": data(2, 4)}, {"p": data(2, 4)}, ["y"])
    )
    with pytest.raises(Error, match="exported with batch 2 and cannot run with 5"):
        infer_shapes(graph, batch=5)


def test_expand_to_minus_one_keeps_open_dimensions() -> None:
    """What torch exports for ``x.expand(n, -1)``: Where(Equal(target, -1), ones, target)."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"], axis=0), helper.make_node("Concat", ["n", "minus"], ["t"], axis=0),
             helper.make_node("Equal", ["t", "two"], ["e"]), helper.make_node("Where", ["e", "ones", "t"], ["w"]), helper.make_node("Expand", ["row", "w"], ["y"])]  # fmt: skip
    constants = {
        "zero": np.array([0]),
        "minus": np.array([-1]),
        "two": np.array([-1, -1]),
        "ones": np.array([1, 1]),
        "row": data(1, 6),
    }
    model = model_of(nodes, {"x": data(3, 2)}, constants, ["y"], dynamic=True)
    graph = read(model)
    assert graph.tensors["y"].shape == ("N", 6)
    np.testing.assert_array_equal(evaluate(graph, {"x": data(3, 2)})["y"], np.repeat(constants["row"], 3, 0))
    counted = read(model_of([helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]), helper.make_node("Range", ["zero", "n", "one"], ["y"])],
                            {"x": data(3, 2)}, {"zero": np.array(0), "one": np.array(1)}, ["y"], dynamic=True))  # fmt: skip
    assert counted.tensors["y"].shape == ("N",) and evaluate(counted, {"x": data(3, 2)})["y"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("shapes", "batch", "word"), [({"ghost": (1,)}, None, "no such input"), ({"x": (1, 2)}, None, "does not fit"), ({"x": (2, 9)}, None, "does not fit"),
                                                       ({"x": (-1, 4)}, None, "does not fit"), ({}, 0, "not positive"), ({"x": (2, 4), "z": (3, 4)}, None, "both")])  # fmt: skip
def test_shapes_that_cannot_be_bound(shapes: dict[str, Any], batch: int | None, word: str) -> None:
    graph = read(
        model_of(
            [helper.make_node("Add", ["x", "z"], ["y"])], {"x": data(2, 4), "z": data(2, 4)}, {}, ["y"], dynamic=True
        )
    )
    with pytest.raises(Error, match=word):
        infer_shapes(graph, shapes, batch)


FEEDS = {"missing": {}, "unknown": {"x": np.ones((2, 4), F), "q": np.ones(1, F)}, "wrong type": {"x": np.ones((2, 4))}, "wrong rank": {"x": np.ones(4, F)},
         "wrong size": {"x": np.ones((2, 5), F)}, "objects": {"x": np.array([object()])}}  # fmt: skip


@pytest.mark.parametrize("name", FEEDS)
def test_feeds_are_checked(name: str) -> None:
    graph = read(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": data(2, 4)}, {}, ["y"], dynamic=True))
    with pytest.raises(Error, match="input"):
        evaluate(graph, FEEDS[name])


def test_intermediates_and_progress() -> None:
    graph = read(
        model_of(
            [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])],
            {"x": data(2, 4)},
            {},
            ["y"],
        )
    )
    seen: list[tuple[int, int | None, str]] = []
    x = data(2, 4)
    found = evaluate(graph, {"x": x}, intermediates=True, progress=lambda *report: seen.append(report))
    np.testing.assert_array_equal(found["a"], np.maximum(x, 0))
    assert set(found) == {"a", "y"} and seen == [(1, 2, "evaluate: nodes"), (2, 2, "evaluate: nodes")]


def test_dimension_arithmetic() -> None:
    assert (
        dims.product(["N", 3, 4]) == "12*N"
        and dims.quotient(["12*N"], ["N", 4]) == 3
        and dims.quotient(["N"], ["M"]) is None
    )
    assert dims.product([]) == 1 and dims.product([0, "N"]) == 0 and dims.quotient([7], [2]) is None
    assert dims.offset("N", 0) == "N" and dims.offset("N", 2) == "(N)+2" and dims.total(["N", 1, 2]) == "(N)+3"
    assert dims.window(7, 3, 2, 2) == 4 and dims.window(7, 2, 2, 0, True) == 4 and dims.window("H", 3, 1, 2) == "H"
    assert len(str(dims.product(["x" * 70, "y" * 70]))) < 90
    node = Node("Add", "a", (), ())
    assert dims.broadcast(node, [("N", 1, 3), (5, 1)]) == ("N", 5, 3) and dims.broadcast(node, [("N",), (4,)]) == (4,)
    with pytest.raises(Error, match="broadcast"):
        dims.broadcast(node, [(2, 3), (4,)])
