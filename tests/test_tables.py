"""Functions of one stored value in dialect `hwq`: of a byte one table, exactly rounded; int16 by samples; costs count the reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.graph import Graph, Node, Tensor
from hwq.ops import functions, unary

mpmath = pytest.importorskip("mpmath", reason="mpmath comes with torch")
mpmath.mp.dps = 50


def _mish(x: Any) -> Any:
    return x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x)))


# Another library's functions at 50 digits, spelled otherwise than ours.
REAL: dict[str, Callable[[Any], Any]] = {
    "Sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "Tanh": mpmath.tanh,
    "Gelu": lambda x: x * mpmath.ncdf(x),
    "Swish": lambda x: x / (1 + mpmath.exp(-x)),
    "HardSwish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "HardSigmoid": lambda x: min(max(mpmath.mpf(float(np.float32(0.2))) * x + 0.5, 0), 1),
    "Exp": mpmath.exp,
    "Erf": mpmath.erf,
    "Softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "Elu": lambda x: x if x >= 0 else mpmath.expm1(x),
    "LeakyRelu": lambda x: x if x >= 0 else x * mpmath.mpf(float(np.float32(0.01))),
    "Mish": _mish,
    "Softsign": lambda x: x / (1 + abs(x)),
    "Neg": lambda x: -x,
    "Abs": abs,
}


def _rounded(value: Any, low: int, high: int) -> int:
    """Nearest, ties to even; mpmath's own nint does that."""
    return int(min(max(mpmath.nint(value), low), high))


@pytest.mark.parametrize("op", REAL)
@pytest.mark.parametrize("given", [("int8", 0.0625, 3), ("uint8", 0.0231, 117)])
def test_every_entry_is_exactly_rounded(op: str, given: tuple[str, float, int]) -> None:
    kind, scale, zero = given
    scale = float(np.float32(scale))
    function = unary.chain_function([Node(op, "f", ("x",), ("y",))], "x", "y", {})
    made_scale = float(np.float32(0.0078125 if op in {"Sigmoid", "Tanh", "Erf"} else 0.03125))
    table = unary.table(function, (*given[:1], scale, zero), ("uint8", made_scale, 120))
    lowest = -128 if kind == "int8" else 0
    wanted = [
        _rounded(REAL[op](mpmath.mpf(scale) * (q - zero)) / mpmath.mpf(made_scale), -120, 135) + 120
        for q in range(lowest, lowest + 256)
    ]
    assert table.dtype == np.uint8 and table.tolist() == wanted


def test_ties_go_to_even_and_are_found_exactly() -> None:
    # x / 2 in steps of 1: every odd x is a tie; and 0.1 as float32 is no tenth.
    half = unary.chain_function([Node("Mul", "f", ("x", "c"), ("y",))], "x", "y", {"c": np.float32(0.5)})
    table = unary.table(half, ("int8", 1.0, 0), ("int8", 1.0, 0))
    assert table.tolist() == [round(Fraction(q, 2)) for q in range(-128, 128)]
    tenth = Fraction(float(np.float32(0.1)))
    scaled = unary.chain_function([Node("Mul", "f", ("x", "c"), ("y",))], "x", "y", {"c": np.float32(0.1)})
    made = unary.table(scaled, ("int8", 1.0, 0), ("int8", 0.2, 0))
    assert made.tolist() == [round(q * tenth / Fraction(0.2)) for q in range(-128, 128)]
    # rsqrt of 1, 4, 16 and of the rest; of 0 and below it saturates as infinity and NaN do.
    chain = [Node("Sqrt", "a", ("x",), ("h",)), Node("Reciprocal", "b", ("h",), ("y",))]
    root = unary.table(unary.chain_function(chain, "x", "y", {}), ("int8", 1.0, 0), ("int8", 0.25, 0))
    assert root[128:].tolist() == [127, *(int(mpmath.nint(4 / mpmath.sqrt(q))) for q in range(1, 128))]
    assert set(root[:128].tolist()) == {-128}


@pytest.mark.parametrize(
    ("op", "scale", "made", "above"),
    [("Softplus", 0.5, 1.0, True), ("Gelu", 1.0, 4.0, False), ("Mish", 1.0, 2.0, False), ("Swish", 1.0, 2.0, False)],
)
def test_what_comes_nearer_to_a_tie_than_any_digits_show_keeps_its_side(
    op: str, scale: float, made: float, above: bool
) -> None:
    """softplus(x) > x, and GELU, Mish and x sigmoid(x) stay below x: by 10^-3000 and less where x / 2 is halfway."""
    function = unary.chain_function([Node(op, "f", ("x",), ("y",))], "x", "y", {})
    table = unary.table(function, ("int8", scale, 0), ("int8", made, 0))
    halves = [q for q in range(40, 128) if Fraction(q * scale) / Fraction(made) % 1 == Fraction(1, 2)]
    assert len(halves) >= 22
    for q in halves:
        assert table[128 + q] == math.floor(q * scale / made) + above, q
    # At 0 a sigmoid is a half: a tie, and to the even.
    sigmoid = unary.chain_function([Node("Sigmoid", "f", ("x",), ("y",))], "x", "y", {})
    assert unary.table(sigmoid, ("int8", 1.0, 0), ("int8", 1.0, 0))[127:130].tolist() == [0, 0, 1]


def _graph(nodes: list[Node], constants: dict[str, float], last: str, more: str = "") -> Graph:
    """A convolution, a chain of `nodes` from its result "c" to `last`, and another convolution."""
    random = np.random.default_rng(0)
    w = [random.normal(0, 0.4, (4, 4, 1, 1)).astype(np.float32) for _ in range(2)]
    shape = ("N", 4, 5, 5)
    tensors = [
        Tensor("x", shape=shape),
        Tensor("w0", shape=(4, 4, 1, 1), data=w[0]),
        Tensor("w1", shape=(4, 4, 1, 1), data=w[1]),
    ]
    tensors += [Tensor(name, shape=shape) for name in ["c", "y", *(node.outputs[0] for node in nodes)]]
    tensors += [Tensor(name, data=np.asarray(value, np.float32)) for name, value in constants.items()]
    every = [Node("Conv", "first", ("x", "w0"), ("c",)), *nodes, Node("Conv", "second", (last, "w1"), ("y",))]
    if more:
        tensors.append(Tensor(more, shape=shape))
    return Graph(every, tensors, ["x", *filter(None, [more])], ["y"])


CHAINS: dict[str, tuple[list[Node], dict[str, float], str, Callable[[Any], Any]]] = {
    "silu": ([Node("Sigmoid", "s", ("c",), ("h",)), Node("Mul", "m", ("c", "h"), ("z",))], {}, "z", REAL["Swish"]),
    "gelu": ([Node("Div", "d", ("c", "r"), ("a",)), Node("Erf", "e", ("a",), ("b",)), Node("Add", "p", ("b", "one"), ("g",)),
              Node("Mul", "m", ("c", "g"), ("h",)), Node("Mul", "n", ("h", "half"), ("z",))],
             {"r": math.sqrt(2), "one": 1.0, "half": 0.5}, "z",
             lambda x: x * (mpmath.erf(x / mpmath.mpf(float(np.float32(math.sqrt(2))))) + 1) / 2),
    "tanh": ([Node("Tanh", "t", ("c",), ("z",))], {}, "z", mpmath.tanh),
    "relu behind": ([Node("Tanh", "t", ("c",), ("h",)), Node("Relu", "r", ("h",), ("z",))], {}, "z", lambda x: max(mpmath.tanh(x), 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_a_chain_is_one_table_of_the_program(name: str, activations: str) -> None:
    nodes, constants, last, real = CHAINS[name]
    graph = _graph(nodes, constants, last)
    x = np.random.default_rng(1).normal(0, 2, (6, 4, 5, 5)).astype(np.float32)
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", activations, dialect="hwq"), hwq.calibrate(graph, x))
    assert sum(node.op == "QuantizeLinear" for node in q.nodes) == 4  # x, c, the chain's end, y: nothing inside
    program = hwq.compile(q)
    assert [node.op for node in program.graph.nodes] == ["QuantizeLinear", "Conv", "Table", "Conv", "DequantizeLinear"]
    _, seen = program(x, intermediates=True)
    node = program.graph.nodes[2]
    given, made = (program.graph.tensors[one].quantization for one in (node.inputs[0], node.outputs[0]))
    low = -int(made.zero_points()) if made.dtype == "uint8" else -128 - int(made.zero_points())
    values = np.unique(seen[node.inputs[0]])
    wanted = {
        int(v): _rounded(real(mpmath.mpf(float(given.scales())) * (int(v) - int(given.zero_points())))
                         / mpmath.mpf(float(made.scales())), low, low + 255) + int(made.zero_points())
        for v in values
    }  # fmt: skip
    assert len(wanted) > 100
    assert np.array_equal(np.vectorize(wanted.get)(seen[node.inputs[0]]), seen[node.outputs[0]])
    assert np.array_equal(program(x), program(x, intermediates=True)[0])  # the C loop and the Python steps
    # onnxruntime has no such table: there the chain stays as it was.
    assert not any(one.op == "Table" for one in hwq.lower(q, "ort").nodes)


def test_a_value_that_others_read_is_stored_too() -> None:
    nodes = [
        Node("Sigmoid", "s", ("c",), ("h",)),
        Node("Mul", "m", ("c", "h"), ("z",)),
        Node("Add", "a", ("z", "k"), ("u",)),
    ]
    graph = _graph(nodes, {}, "u", more="k").replace(outputs=["y", "h"])
    x = np.random.default_rng(1).normal(0, 2, (2, 6, 4, 5, 5)).astype(np.float32)
    feeds = {"x": x[0], "k": x[1]}
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", "uint8", dialect="hwq"), hwq.calibrate(graph, [feeds]))
    made = hwq.execute(q, feeds)
    real = hwq.execute(graph, feeds, "onnx")
    assert np.abs(made["h"] - real["h"]).max() < 0.02 and np.abs(made["y"] - real["y"]).max() < 0.2


def test_clamps_alone_are_no_table() -> None:
    graph = _graph(
        [Node("MaxPool", "p", ("c",), ("h",), {"kernel_shape": (1, 1)}), Node("Relu", "r", ("h",), ("z",))], {}, "z"
    )
    x = np.random.default_rng(1).normal(0, 2, (6, 4, 5, 5)).astype(np.float32)
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", "uint8", dialect="hwq"), hwq.calibrate(graph, x))
    assert not any(one.op == "Table" for one in hwq.lower(q, "hwq").nodes)


def test_costs_count_reads_and_bytes_of_tables() -> None:
    nodes, constants, last, _ = CHAINS["silu"]
    graph = _graph(nodes, constants, last)
    x = np.random.default_rng(1).normal(0, 2, (2, 4, 5, 5)).astype(np.float32)
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", "int8", dialect="hwq"), hwq.calibrate(graph, x))
    from hwq.lowering.families import lower_for_family
    from hwq.ops.base import lookup
    from hwq.ops.inference import infer_shapes

    for family in ("systolic", "cpu", "npu"):
        lowered = lower_for_family(infer_shapes(q, {"x": (2, 4, 5, 5)}), family)
        works = [lookup(node).work(node, lowered) for node in lowered.nodes]
        read = [work for work in works if work.lookups]
        assert [(work.lookups, work.table_bytes) for work in read] == [(2 * 4 * 25, 256)], family
    with_table = hwq.estimate(q, "ethos-u55-128", batch=2)
    assert with_table.traffic  # the bytes stand among the scales'
    float_only = hwq.estimate(graph, "ethos-u55-128", plan=hwq.Plan.uniform("int8", "int8"), batch=2)
    assert with_table.cycles <= float_only.cycles * 1.5


INT16: dict[str, tuple[Callable[[Any], Any], tuple[float, int], tuple[float, int], int]] = {
    # int16 in [-8, 8) or [-4, 4), out in Q0.15 or in the input's steps; exponentials over [-10, 0], a softmax's.
    "sigmoid": (functions.sigmoid, (2.0**-12, 0), (2.0**-15, 0), 1),
    "tanh over 4": (np.tanh, (2.0**-13, 0), (2.0**-15, 0), 1),
    "tanh over 8": (np.tanh, (2.0**-12, 0), (2.0**-15, 0), 2),
    "erf over 4": (functions.erf, (2.0**-13, 0), (2.0**-15, 0), 1),
    "exp": (np.exp, (10 / 65535, 32767), (2.0**-14, 0), 1),
    "gelu": (functions.gelu, (2.0**-12, 0), (2.0**-12, 0), 1),
    "silu": (lambda v: v * functions.sigmoid(v), (2.0**-12, 0), (2.0**-12, 0), 1),
    "softplus": (functions.softplus, (2.0**-12, 0), (2.0**-11, 0), 1),
    "elu": (lambda v: np.where(v < 0, np.expm1(np.minimum(v, 0)), v), (2.0**-12, 0), (2.0**-12, 0), 1),
    "reciprocal over [1, 2)": (lambda v: 1 / (1 + v), (2.0**-16, -32768), (2.0**-15, 0), 1),
}


@pytest.mark.parametrize("name", INT16)
def test_int16_tables_stay_within_one_step_where_the_function_bends_little(name: str) -> None:
    from hwq import kernels

    function, given, made, most = INT16[name]
    samples, worst = unary.sample_table(function, given, made)
    x = np.arange(-32768, 32768)
    got = kernels.lut_int16(x.astype(np.int16), samples).astype(np.int64)
    real = np.clip(np.rint(function((x - given[1]) * given[0]) / made[0] + made[1]), -32768, 32767)
    assert np.abs(got - real).max() == worst == most
    # The bound of the docstring tells which functions cannot do better.
    bend = np.abs(np.diff(function((x[::32] - given[1]) * given[0]), 2)).max() * 16 / 16 / made[0]
    assert (worst == 1) or bend > 0.5


SIXTEEN = ["Tanh", "Sigmoid", "Gelu", "Swish", "Exp", "HardSwish", "LeakyRelu"]


def _sixteen(op: str, activations: str, symmetric: bool, scale: float = 1.0) -> tuple[Graph, Any, Any]:
    graph = _graph([Node(op, "t", ("c",), ("z",))], {}, "z")
    x = (np.random.default_rng(1).normal(0, 2, (3, 4, 5, 5)) * scale).astype(np.float32)
    plan = hwq.Plan.uniform("int8", activations, symmetric_activations=symmetric, dialect="hwq")
    return graph, hwq.quantize(graph, plan, hwq.calibrate(graph, x)), x


@pytest.mark.parametrize("op", SIXTEEN)
@pytest.mark.parametrize("activations", ["int16", "uint16"])
def test_a_w8a16_plan_reads_samples_within_one_step(op: str, activations: str) -> None:
    from hwq.ops.table import entries, look_up

    _, q, x = _sixteen(op, activations, activations == "int16")
    program = hwq.compile(q)
    assert [node.op for node in program.graph.nodes] == ["QuantizeLinear", "Conv", "Table", "Conv", "DequantizeLinear"]
    node = program.graph.nodes[2]
    given, made = (program.graph.tensors[one].quantization for one in (node.inputs[0], node.outputs[0]))
    low = int(np.iinfo(activations).min)
    every = np.arange(low, low + 65536).astype(activations)
    table = entries(node, program.graph)
    got = look_up(every, table, activations).astype(np.int64)
    steps = (every.astype(np.int64) - int(given.zero_points())) * float(given.scales())
    real = np.array([float(REAL[op](mpmath.mpf(float(v)))) for v in steps[::61]])
    wanted = np.clip(np.rint(real / float(made.scales())) + int(made.zero_points()), low, low + 65535)
    assert np.abs(got[::61] - wanted).max() <= 1
    # The short table where the function bends little: what TFLite has. A corner, or an end that saturates, takes more.
    if activations == "int16" and op in {"Tanh", "Sigmoid", "Gelu", "Swish", "LeakyRelu"}:
        assert table.size == 513
    assert np.array_equal(program(x), program(x, intermediates=True)[0])


def test_samples_lie_closer_where_513_are_not_enough() -> None:
    from hwq.ops.table import entries

    _, q, _ = _sixteen("Tanh", "int16", True, 4.0)  # over more than [-8, 8) in Q0.15
    low = hwq.lower(q, "hwq")
    assert entries(next(node for node in low.nodes if node.op == "Table"), low).size > 513


def test_costs_of_int16_tables_are_two_reads_of_513_samples() -> None:
    from hwq.lowering.families import lower_for_family
    from hwq.ops.base import lookup
    from hwq.ops.inference import infer_shapes

    _, q, _ = _sixteen("Tanh", "int16", True)
    for family in ("hwq", "systolic", "cpu", "npu"):
        whole = infer_shapes(q, {"x": (2, 4, 5, 5)})
        lowered = hwq.lower(whole, "hwq") if family == "hwq" else lower_for_family(whole, family)
        works = [lookup(node).work(node, lowered) for node in lowered.nodes]
        read = [work for work in works if work.lookups]
        assert [(work.lookups, work.table_bytes) for work in read] == [(2 * 2 * 4 * 25, 2 * 513)], family


@pytest.mark.parametrize("types", [("uint8", "int16"), ("int16", "uint8"), ("uint16", "int8")])
def test_a_table_between_types(types: tuple[str, str]) -> None:
    """A precision border: bytes in and int16 out is 256 entries, from 16 bits to a byte 65,536."""
    from hwq.ops.table import entries

    scales = [(np.array(8 / (255 if one.endswith("8") else 65535), np.float32), np.zeros((), one)) for one in types]
    nodes = [Node("QuantizeLinear", "q", ("x", "s", "z"), ("a",)), Node("DequantizeLinear", "d", ("a", "s", "z"), ("b",)),
             Node("Sigmoid", "f", ("b",), ("c",)), Node("QuantizeLinear", "p", ("c", "t", "u"), ("e",)),
             Node("DequantizeLinear", "g", ("e", "t", "u"), ("y",))]  # fmt: skip
    tensors = [Tensor("x", shape=(5, 40)), Tensor("s", data=scales[0][0]), Tensor("z", types[0], data=scales[0][1]),
               Tensor("t", data=np.array(scales[1][0] / 4)), Tensor("u", types[1], data=scales[1][1]),
               Tensor("a", types[0], (5, 40)), Tensor("e", types[1], (5, 40)), *(Tensor(one, shape=(5, 40)) for one in "bcy")]  # fmt: skip
    graph = Graph(nodes, tensors, ["x"], ["y"], dialect="hwq")
    program = hwq.compile(graph)
    node = next(node for node in program.graph.nodes if node.op == "Table")
    assert entries(node, program.graph).size == (256 if types[0] == "uint8" else 65536)
    x = np.random.default_rng(1).normal(0, 2, (5, 40)).astype(np.float32)
    assert np.abs(program(x) - np.asarray(hwq.execute(graph, x, "ort-unfused"))).max() <= float(scales[1][0] / 4)
