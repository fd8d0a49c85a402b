"""Operators that take, put, choose and contract by index: the bits of onnxruntime's, ties and repeated indices included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import hwq
from hwq.importers.onnx import read

onnxruntime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(7)
X = RNG.integers(-3, 4, (5, 6, 7)).astype(np.float32)
ALONG = RNG.integers(-6, 6, (5, 4, 7))
PLACES = RNG.integers(-5, 5, (4, 1))
BOXES = RNG.uniform(0, 1, (2, 40, 4)).astype(np.float32)
SCORES = (RNG.integers(0, 9, (2, 3, 40)) / 8).astype(np.float32)  # ties
IMAGE = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
GRID = RNG.uniform(-1.4, 1.4, (2, 4, 7, 2)).astype(np.float32)
WIDE = RNG.standard_normal((3, 4, 50)).astype(np.float32)
OTHER = RNG.standard_normal((3, 50, 6)).astype(np.float32)


def model(
    op: str, feeds: Mapping[str, Any], outputs: int, constants: tuple[str, ...], **attributes: Any
) -> onnx.ModelProto:
    names = [f"y{index}" for index in range(outputs)]
    kinds = [onnx.ValueInfoProto(name=name) for name in names]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), [f"{name}{i}" for i in range(value.ndim)]
        )
        for name, value in feeds.items()
        if name not in constants
    ]
    held = [onnx.numpy_helper.from_array(feeds[name], name) for name in constants]
    graph = helper.make_graph([helper.make_node(op, list(feeds), names, "it", **attributes)], "g", inputs, kinds, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def both(
    op: str, feeds: Mapping[str, Any], outputs: int = 1, constants: tuple[str, ...] = (), **attributes: Any
) -> list[Any]:
    made = model(op, feeds, outputs, constants, **attributes)
    given = {name: value for name, value in feeds.items() if name not in constants}
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, given)
    result = hwq.execute(read(made), given)
    ours = [result] if isinstance(result, np.ndarray) else list(result.values())
    assert len(ours) == len(theirs) == outputs
    return list(zip(ours, theirs, strict=True))


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gather along": ("GatherElements", {"x": X, "i": ALONG}, {"axis": 1}),
    "gather nd": ("GatherND", {"x": X, "i": RNG.integers(-5, 5, (3, 2, 2))}, {"constants": ("i",)}),
    "gather nd, common axis": ("GatherND", {"x": X, "i": RNG.integers(-6, 6, (5, 3, 1))}, {"batch_dims": 1, "constants": ("i",)}),
    "scatter along": ("ScatterElements", {"x": X, "i": ALONG, "u": RNG.standard_normal(ALONG.shape).astype(np.float32)}, {"axis": 1}),
    "scatter along, added": ("ScatterElements", {"x": X, "i": ALONG, "u": RNG.standard_normal(ALONG.shape).astype(np.float32)},
                             {"axis": 1, "reduction": "add"}),
    "scatter along, multiplied": ("ScatterElements", {"x": X, "i": ALONG, "u": RNG.standard_normal(ALONG.shape).astype(np.float32)},
                                  {"axis": -2, "reduction": "mul"}),
    "scatter nd": ("ScatterND", {"x": X, "i": PLACES, "u": RNG.standard_normal((4, 6, 7)).astype(np.float32)}, {}),
    "scatter nd, added": ("ScatterND", {"x": X, "i": PLACES, "u": RNG.standard_normal((4, 6, 7)).astype(np.float32)}, {"reduction": "add"}),
    "scatter nd, largest": ("ScatterND", {"x": X, "i": PLACES, "u": RNG.standard_normal((4, 6, 7)).astype(np.float32)}, {"reduction": "max"}),
    "top": ("TopK", {"x": X, "k": np.array([3])}, {"outputs": 2, "axis": 1}),
    "top, constant": ("TopK", {"x": X, "k": np.array([5])}, {"outputs": 2, "axis": -1, "constants": ("k",)}),
    "top, smallest": ("TopK", {"x": X, "k": np.array([4])}, {"outputs": 2, "largest": 0}),
    "top, all": ("TopK", {"x": X, "k": np.array([5])}, {"outputs": 2, "axis": 0}),
    "top, one": ("TopK", {"x": X, "k": np.array([1])}, {"outputs": 2, "axis": 2}),
    "nonzero": ("NonZero", {"x": X}, {}),
    "nonzero, bool": ("NonZero", {"x": X > 1}, {}),
    "one hot": ("OneHot", {"i": RNG.integers(-9, 9, (4, 5)), "d": np.array([6]), "v": np.array([-1, 2], np.float32)}, {"axis": 1}),
    "compress": ("Compress", {"x": X, "c": np.array([True, False, True, True])}, {"axis": 1}),
    "compress, flat": ("Compress", {"x": X, "c": np.array([True, False, True, True])}, {}),
    "running sum": ("CumSum", {"x": WIDE, "a": np.array(2)}, {}),
    "running sum, back": ("CumSum", {"x": WIDE, "a": np.array(-2)}, {"reverse": 1, "exclusive": 1}),
    "reverse": ("ReverseSequence", {"x": X, "l": np.array([0, 1, 3, 6, 2])}, {"batch_axis": 0, "time_axis": 1}),
    "modulo": ("Mod", {"a": X, "b": X[::-1] + np.float32(0.5)}, {"fmod": 1}),
    "modulo, integers": ("Mod", {"a": ALONG, "b": np.where(ALONG == 0, 5, -ALONG[::-1]) | 1}, {}),
    "bits": ("BitwiseXor", {"a": ALONG, "b": ALONG[::-1].copy()}, {}),
    "mean": ("Mean", {"a": WIDE, "b": WIDE[::-1].copy(), "c": WIDE[:1]}, {}),
    "product": ("Einsum", {"a": WIDE, "b": OTHER}, {"equation": "bik,bkj->bij"}),
    "product, turned": ("Einsum", {"a": WIDE, "b": OTHER}, {"equation": "bik, bkj -> jbi"}),
    "outer": ("Einsum", {"a": WIDE[0, 0], "b": WIDE[1, 1]}, {"equation": "i,j->ij"}),
    "positions": ("Einsum", {"a": WIDE, "b": OTHER[0]}, {"equation": "...d,df->...f"}),
    "kept": ("NonMaxSuppression", {"b": BOXES, "s": SCORES, "n": np.array([9]), "o": np.array([0.3], np.float32), "l": np.array([0.25], np.float32)}, {}),
    "kept, centres": ("NonMaxSuppression", {"b": BOXES, "s": SCORES, "n": np.array([30]), "o": np.array([0.1], np.float32)}, {"center_point_box": 1}),
    "kept, none": ("NonMaxSuppression", {"b": BOXES, "s": SCORES}, {}),
    "finite": ("IsInf", {"x": np.array([np.inf, -np.inf, np.nan, 1], np.float32)}, {"detect_negative": 0}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_bits(name: str) -> None:
    op, feeds, options = CASES[name]
    for ours, theirs in both(op, feeds, **options):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid(mode: str, padding: str, aligned: int) -> None:
    made = model("GridSample", {"x": IMAGE, "g": GRID}, 1, (), mode=mode, padding_mode=padding, align_corners=aligned)
    made.opset_import[0].version = 16
    feeds = {"x": IMAGE, "g": GRID}
    (theirs,) = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
    np.testing.assert_allclose(hwq.execute(read(made), feeds), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("op", "feeds", "options"),
    [
        ("GatherElements", {"x": X, "i": ALONG + 6}, {"axis": 1}),
        ("GatherND", {"x": X, "i": PLACES - 5}, {"constants": ("i",)}),
        ("ScatterND", {"x": X, "i": PLACES, "u": X[:4, :3]}, {}),
        ("TopK", {"x": X, "k": np.array([99])}, {"outputs": 2}),
        ("TopK", {"x": X, "k": np.array([-1])}, {"outputs": 2, "constants": ("k",)}),
        ("Einsum", {"x": X, "y": X}, {"equation": "abc,bad"}),
        ("Einsum", {"x": X, "y": X}, {"equation": "a.c,abc->a"}),
        ("Mod", {"a": ALONG, "b": ALONG * 0}, {}),
        ("OneHot", {"i": ALONG, "d": np.array([-2]), "v": np.array([0, 1], np.float32)}, {"constants": ("d",)}),
        ("NonMaxSuppression", {"b": BOXES[:, :3], "s": SCORES}, {}),
    ],
)
def test_refused(op: str, feeds: dict[str, Any], options: dict[str, Any]) -> None:
    constants = options.pop("constants", ())
    with pytest.raises(hwq.Error, match="it"):
        made = read(model(op, feeds, options.pop("outputs", 1), constants, **options))
        hwq.execute(made, {name: value for name, value in feeds.items() if name not in constants})
