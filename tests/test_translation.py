"""The same quantized network in TFLite's operators, held to LiteRT layer by layer; what cannot be carried over is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qdq
import qdq_patterns
import tiny

import hwq
from hwq.errors import Error
from hwq.execution import compile
from hwq.portability import portability
from hwq.translation import translate

DIALECTS = ("litert-ref", "litert-xnnpack")
PATTERNS = (
    "conv", "conv with a float bias", "conv with uint8 weights per tensor", "depthwise", "grouped", "conv relu", "uint8 in, int8 out",
    "MaxPool before Q", "Flatten behind DQ", "int8_activations", "int8_input", "residual_relu", "sums_with_constants", "pools",
    "transposed_in_between", "head", "gemm, int32 bias, Q", "gemm, float32 bias, Relu", "matmul_add", "matmul_of_activations",
    "without_zero_points",
)  # fmt: skip


def differing(graph: hwq.Graph, feeds: dict[str, Any], dialect: str) -> dict[str, int]:
    """Elements that LiteRT makes otherwise, by value; the file is written with every operator's result as an output."""
    pytest.importorskip("ai_edge_litert")
    from hwq.verification.litert_dialects import litert_outputs
    from hwq.verification.tflite_writer import written

    made = translate(graph, dialect).graph
    count = len(next(iter(feeds.values())))
    opened = any(isinstance(dim, str) for dim in made.tensors[made.inputs[0]].shape)
    model, names = written(made, count if opened else None, every=True)
    theirs = litert_outputs(model, [feeds[name] for name in made.inputs], dialect)
    program = compile(made, dialect)
    seen = program(feeds, intermediates=True)[1]
    plain = program(feeds)
    whole = plain if isinstance(plain, dict) else {made.outputs[0]: plain}
    found = {}
    for name, value in zip(names, theirs, strict=True):
        ours = seen[name] if name in seen else whole[name]
        assert ours.shape == value.shape and ours.dtype == value.dtype
        found[name] = int(np.count_nonzero(ours.view(f"u{ours.itemsize}") != value.view(f"u{value.itemsize}")))
    for name, ours in whole.items():
        assert not np.count_nonzero(ours != seen[name])
    return {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_have_litert_s_bits(name: str, dialect: str) -> None:
    builder = qdq.Builder()
    qdq_patterns.PATTERNS[name](builder)
    model = builder.model()
    graph = qdq.graph_of(model)
    assert differing(graph, {key: qdq.feeds(model)[key] for key in graph.inputs}, dialect) == {}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_quantized_cnn_has_litert_s_bits(activations: str, dialect: str) -> None:
    graph = tiny.graph(tiny.cnn())
    x = tiny.images(8)
    plan = hwq.Plan.uniform(activations=activations)
    quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    found = differing(quantized, {quantized.inputs[0]: x}, dialect)
    # Float islands of the default interpreter are within ulps; what is stored has every bit.
    made = translate(quantized, dialect).graph
    assert all(made.tensors[name].dtype == "float32" and dialect == "litert-xnnpack" for name in found)


def test_values_are_found_again() -> None:
    graph = tiny.graph(tiny.cnn())
    x = tiny.images(16)
    quantized = hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, x))
    made = portability(quantized, x, hwq.execute(quantized, x).reshape(16, -1).argmax(axis=1))
    rows = {row.dialect: row for row in made.rows}
    for dialect in (*DIALECTS, "torch-fbgemm"):
        row = rows[dialect]
        assert (
            not row.unavailable and row.accuracy is not None and row.accuracy > 0.8 and row.values == rows["ort"].values
        )
        if row.differing:
            assert row.first_differing and row.first_differing != "an output"


def test_what_tflite_cannot_represent_is_refused() -> None:
    for name, reason in (("gemm_with_alpha", "alpha"), ("weight_quantized_in_the_graph", "constant filters")):
        builder = qdq.Builder()
        qdq_patterns.PATTERNS[name](builder)
        with pytest.raises(Error, match=reason):
            translate(qdq.graph_of(builder.model()), "litert-ref")


def test_int8_activations_become_uint8_for_eager_modules() -> None:
    builder = qdq.Builder()
    qdq_patterns.PATTERNS["int8_activations"](builder)
    graph = qdq.graph_of(builder.model())
    feeds = {key: value for key, value in qdq.feeds(builder.model()).items() if key in graph.inputs}
    made = translate(graph, "torch-fbgemm")
    assert all(tensor.dtype != "int8" or tensor.constant for tensor in made.graph.tensors.values())
    expected, found = (compile(one, dialect)(feeds) for one, dialect in ((graph, "ort"), (made.graph, "torch-fbgemm")))
    scale = np.abs(expected).max() / 127
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 2 * scale
