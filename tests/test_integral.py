"""Dialect `hwq-integer`: nothing between stored values is a float; within a step of the same file computed in floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hwq
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor

WIDTH = 24
TYPES = ["uint8", "int8", "int16", "uint16"]


def _plan(activations: str, **more: object) -> hwq.Plan:
    symmetric = activations == "int16"
    return hwq.Plan.uniform("int8", activations, symmetric_activations=symmetric, dialect="hwq-integer", **more)  # type: ignore[arg-type]


def _block() -> Graph:
    """A block of a transformer: position, two normalizations, attention, a GELU, residual sums, a mean over tokens."""
    random = np.random.default_rng(3)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.normal(size=(rows, columns)) / rows**0.5).astype(np.float32)

    constants = {
        "wi": matrix(6, WIDTH), "pos": random.normal(size=(5, WIDTH)).astype(np.float32), "wq": matrix(WIDTH, WIDTH),
        "wk": matrix(WIDTH, WIDTH), "wv": matrix(WIDTH, WIDTH), "bq": random.normal(size=WIDTH).astype(np.float32),
        "wo": matrix(WIDTH, WIDTH), "g": random.uniform(0.5, 2, WIDTH).astype(np.float32), "root": np.array(WIDTH**-0.5, np.float32),
        "b": random.normal(size=WIDTH).astype(np.float32), "wu": matrix(WIDTH, 2 * WIDTH), "wd": matrix(2 * WIDTH, WIDTH),
        "axis": np.array([1]), "wc": matrix(WIDTH, 4),
    }  # fmt: skip
    steps = [
        ("MatMul", "x wi", "e", {}), ("Add", "e pos", "x0", {}), ("LayerNormalization", "x0 g b", "n1", {"axis": -1, "epsilon": 1e-5}),
        ("MatMul", "n1 wq", "q0", {}), ("Add", "q0 bq", "q", {}), ("MatMul", "n1 wk", "k", {}), ("MatMul", "n1 wv", "v", {}),
        ("Transpose", "k", "kt", {"perm": (0, 2, 1)}), ("MatMul", "q kt", "s0", {}), ("Mul", "s0 root", "s", {}),
        ("Softmax", "s", "p", {"axis": -1}), ("MatMul", "p v", "m", {}), ("MatMul", "m wo", "a", {}), ("Add", "x0 a", "x1", {}),
        ("LayerNormalization", "x1 g", "n2", {"axis": -1, "epsilon": 1e-5}), ("MatMul", "n2 wu", "u", {}), ("Gelu", "u", "h", {}),
        ("MatMul", "h wd", "d", {}), ("Add", "x1 d", "x2", {}), ("ReduceMean", "x2 axis", "c", {"keepdims": 0}), ("MatMul", "c wc", "y", {}),
    ]  # fmt: skip
    shapes = {"p": ("N", 5, 5), "s": ("N", 5, 5), "s0": ("N", 5, 5), "kt": ("N", WIDTH, 5), "u": ("N", 5, 2 * WIDTH),
              "h": ("N", 5, 2 * WIDTH), "c": ("N", WIDTH), "y": ("N", 4)}  # fmt: skip
    nodes = [Node(op, f"n_{out}", tuple(given.split()), (out,), attributes) for op, given, out, attributes in steps]
    tensors = [Tensor("x", shape=("N", 5, 6))]
    tensors += [Tensor(name, str(value.dtype), value.shape, value) for name, value in constants.items()]
    tensors += [Tensor(out, shape=shapes.get(out, ("N", 5, WIDTH))) for _, _, out, _ in steps]
    return Graph(nodes, tensors, ["x"], ["y"])


def _data(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def _sqnr(real: np.ndarray, made: np.ndarray) -> float:
    return float(
        10 * np.log10(np.square(real, dtype=np.float64).sum() / np.square(real - made, dtype=np.float64).sum())
    )


@pytest.mark.parametrize("activations", TYPES)
def test_a_transformer_block_is_integers_from_end_to_end(activations: str, tmp_path: Path) -> None:
    graph, x = _block(), _data(40, 5, 6)
    q = hwq.quantize(graph, _plan(activations), hwq.calibrate(graph, x))
    program = hwq.compile(q)
    low = program.graph
    assert [node.op for node in low.nodes if low.tensors[node.outputs[0]].dtype == "float32"] == ["DequantizeLinear"]
    assert {"LayerNormalization", "Softmax", "ReduceMean", "Table"} <= {node.op for node in low.nodes}
    made, real = program(x), hwq.execute(graph, x)
    # The same file with floats between Q and DQ is the best that these scales allow.
    floats = hwq.execute(q, x, "ort-unfused")
    assert _sqnr(real, made) > _sqnr(real, floats) - 1.0
    assert np.array_equal(made, program(x, intermediates=True)[0])
    assert np.array_equal(made[3:4], program(x[3:4]))  # no sample depends on its batch
    with hwq.kernels.use_isa("ref"):
        assert np.array_equal(hwq.compile(q)(x[:9]), made[:9])
    path = tmp_path / "integers.onnx"
    hwq.export(q, path, format="qdq")
    again = hwq.load(str(path))
    assert again.dialect == "hwq-integer" and np.array_equal(hwq.execute(again, x), made)
    assert hwq.Plan.of(again).dialect == "hwq-integer"


@pytest.mark.parametrize("made", TYPES)
@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("op", ["LayerNormalization", "Softmax", "Add", "Sub", "Mul", "ReduceMean", "Concat"])
def test_every_operator_of_every_mix_of_types_is_within_a_step(op: str, given: str, made: str) -> None:
    """Against the operator in float64 on the dequantized values, over random scales and zero points."""
    random = np.random.default_rng(sum(map(ord, op + given + made)))

    def stored(name: str, dtype: str, span: float, middle: bool) -> list[Tensor]:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        zero = (low + high + 1) // 2 + int((high - low) * random.uniform(-0.1, 0.1)) if middle else low
        return [Tensor(f"{name}s", data=np.array(span / (high - low), np.float32)), Tensor(f"{name}z", dtype, data=np.array(zero, dtype))]  # fmt: skip

    shape = (7, 12)
    two = op in {"Add", "Sub", "Mul", "Concat"}
    names = ["a", "b"] if two else ["a"]
    result = (14, 12) if op == "Concat" else (7, 1) if op == "ReduceMean" else shape
    attributes = {"LayerNormalization": {"epsilon": 1e-3}, "Concat": {"axis": 0}, "ReduceMean": {"axes": (1,), "keepdims": 1}}.get(op, {})  # fmt: skip
    extra = ["g", "b0"] if op == "LayerNormalization" else []
    nodes, tensors = [], [Tensor("y", shape=result), Tensor("r", shape=result), Tensor("rq", made, result)]
    for name in names:
        nodes += [Node("QuantizeLinear", f"q{name}", (name, f"{name}s", f"{name}z"), (f"{name}q",)), Node("DequantizeLinear", f"d{name}", (f"{name}q", f"{name}s", f"{name}z"), (f"{name}d",))]  # fmt: skip
        tensors += [Tensor(name, shape=shape), Tensor(f"{name}q", given, shape), Tensor(f"{name}d", shape=shape), *stored(name, given, 6.0, True)]  # fmt: skip
    tensors += [Tensor("g", shape=(12,), data=random.uniform(0.2, 2, 12).astype(np.float32)), Tensor("b0", shape=(12,), data=random.normal(size=12).astype(np.float32))] if extra else []  # fmt: skip
    tensors += stored("r", made, 1.0 if op == "Softmax" else 9.0, op != "Softmax")
    nodes += [Node(op, "f", (*(f"{name}d" for name in names), *extra), ("r",), attributes), Node("QuantizeLinear", "qr", ("r", "rs", "rz"), ("rq",)), Node("DequantizeLinear", "dr", ("rq", "rs", "rz"), ("y",))]  # fmt: skip
    graph = Graph(nodes, tensors, names, ["y"], dialect="hwq-integer")
    feeds = {name: random.normal(0, 1.2, shape).astype(np.float32) for name in names}
    program = hwq.compile(graph)
    assert [node.op for node in program.graph.nodes].count("DequantizeLinear") == 1
    got, wanted = program(feeds), hwq.execute(graph, feeds, "ort-unfused")
    got, wanted = (one["y"] if isinstance(one, dict) else one for one in (got, wanted))
    step = float(graph.tensors["rs"].data)  # type: ignore[arg-type]
    # Of 16 bits: LayerNormalization keeps 1/1024 of a deviation, gamma up to 2; int16 softmax interpolates (LiteRT's own).
    allowed = {"LayerNormalization": 2.0 / 1024, "Softmax": 3e-4 if given.endswith("16") else 5e-5}.get(op, 0.0)
    assert np.abs(np.asarray(got, np.float64) - wanted).max() <= step * 1.01 + allowed


def test_an_image_network_keeps_relus_between_sums_and_means(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = {f"w{i}": random.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32) for i in range(2)}
    pads = {"pads": (1, 1, 1, 1), "kernel_shape": (3, 3)}
    nodes = [
        Node("Conv", "c0", ("x", "w0"), ("a",), pads), Node("Conv", "c1", ("a", "w1"), ("b",), pads), Node("Add", "s", ("a", "b"), ("c",)),
        Node("Relu", "r", ("c",), ("d",)), Node("MaxPool", "m", ("d",), ("e",), {"kernel_shape": (2, 2), "strides": (2, 2)}),
        Node("GlobalAveragePool", "g", ("e",), ("y",)),
    ]  # fmt: skip
    shapes = {"e": ("N", 4, 4, 4), "y": ("N", 4, 1, 1)}
    tensors = [Tensor("x", shape=("N", 4, 8, 8)), *(Tensor(k, shape=v.shape, data=v) for k, v in weights.items())]
    tensors += [Tensor(name, shape=shapes.get(name, ("N", 4, 8, 8))) for name in "abcdey"]
    graph, x = Graph(nodes, tensors, ["x"], ["y"]), _data(6, 4, 8, 8)
    for activations in TYPES:
        q = hwq.quantize(graph, _plan(activations), hwq.calibrate(graph, x))
        made = hwq.execute(q, x)
        assert _sqnr(hwq.execute(graph, x), made) > _sqnr(hwq.execute(graph, x), hwq.execute(q, x, "ort-unfused")) - 1


def test_what_has_no_integer_kernel_is_refused_by_name() -> None:
    graph, x = _block(), _data(9, 5, 6)
    nodes = [
        Node("RMSNormalization", "odd", ("x1", "g"), ("n2",)) if node.name == "n_n2" else node for node in graph.nodes
    ]
    strange = graph.replace(nodes=nodes)
    plan, cal = _plan("int8"), hwq.calibrate(strange, x)
    with pytest.raises(Error, match="no integer kernel for this RMSNormalization") as caught:
        hwq.quantize(strange, plan, cal)
    assert 'dialect = "hwq"' in str(caught.value)
    half = hwq.Plan.uniform("int8", "float32", dialect="hwq-integer")
    float_layers = hwq.quantize(graph, half, hwq.calibrate(graph, x))
    hwq.compile(float_layers)  # nothing is stored between, so nothing leaves the integers


def test_estimates_count_the_tables_of_an_integer_softmax() -> None:
    from hwq.ops.base import lookup
    from hwq.ops.inference import infer_shapes

    graph, x = _block(), _data(9, 5, 6)
    for activations, reads, table in (("int8", 1, 4 * 256), ("int16", 2, 4 * 513)):
        q = infer_shapes(hwq.quantize(graph, _plan(activations), hwq.calibrate(graph, x)), {"x": (2, 5, 6)})
        low = hwq.lower(q, "hwq-integer")
        works = {node.op: lookup(node).work(node, low) for node in low.nodes}
        assert (works["Softmax"].lookups, works["Softmax"].table_bytes) == (2 * 5 * 5 * reads, table)
        assert works["Table"].lookups == 2 * 5 * 2 * WIDTH * reads
        assert hwq.estimate(q, "ethos-u55-128").cycles > 0
