"""Resource variables of TFLite files: LiteRT's values over many calls, in every layer, and files that no variable explains."""

from __future__ import annotations

import numpy as np
import pytest

import hwq
from hwq.importers.tflite import read

pytest.importorskip("ai_edge_litert")
pytest.importorskip("flatbuffers")
RNG = np.random.default_rng(3)
SCHEME = {"scale": 2.0**-4, "zero": -3}


def stream(damage: str = "") -> bytes:
    """The last two of all frames so far beside the new ones, through a convolution; a counter that is read, assigned and read again."""
    from hwq.verification.tflite_builder import Builder, options

    b = Builder()
    main = b.graph
    b.operator("CALL_ONCE", [], [], options("CallOnce", initSubgraphIndex=1))
    x = b.tensor("int8", [1, 3, 1, 4], name="x", **SCHEME)
    frames, count = b.variable("frames"), b.variable("count")
    past, whole, kept = (
        b.tensor("int8", [1, size, 1, 4], name=name, **SCHEME)
        for size, name in ((2, "past"), (5, "whole"), (2, "kept"))
    )
    b.operator("READ_VARIABLE", [frames], [past], options("ReadVariable"))
    b.operator("CONCATENATION", [past, x], [whole], options("Concatenation", axis=1))
    begin, end, step = (b.constant(part) for part in ([0, 3, 0, 0], [1, 5, 1, 4], [1, 1, 1, 1]))
    b.operator("STRIDED_SLICE", [whole, begin, end, step], [kept], options("StridedSlice"))
    b.operator("ASSIGN_VARIABLE", [frames, whole if damage == "shape" else kept], [], options("AssignVariable"))
    y = b.tensor("int8", [1, 3, 1, 8], scale=2.0**-1, zero=5, name="y")
    w = b.tensor("int8", [8, 3, 1, 4], np.random.default_rng(0).integers(-127, 128, (8, 3, 1, 4)), [2.0**-6] * 8)
    bias = b.tensor("int32", [8], np.arange(8), [2.0**-10] * 8)
    window = dict(padding="VALID", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    b.operator("CONV_2D", [whole, w, bias], [y], options("Conv2D", **window))
    before, after, twice = (b.tensor("float32", [2], name=name) for name in ("before", "after", "twice"))
    b.operator("READ_VARIABLE", [count], [before], options("ReadVariable"))
    total = b.tensor("float32", [2], name="total")
    b.operator("ADD", [before, b.constant([1, 2], "float32")], [total], options("Add"))
    b.operator("ASSIGN_VARIABLE", [count, total], [], options("AssignVariable"))
    b.operator("READ_VARIABLE", [count], [after], options("ReadVariable"))
    b.operator("ADD", [after, total], [twice], options("Add"))
    b.operator("ASSIGN_VARIABLE", [count, after], [], options("AssignVariable"))
    b.graph = b.subgraph("once")
    first = b.tensor("int8", [1, 2, 1, 4], np.arange(8) - 4, **SCHEME)
    b.operator("ASSIGN_VARIABLE", [b.variable("frames"), first], [], options("AssignVariable"))
    if damage == "computed":
        number = b.tensor("float32", [2])
        b.operator("ADD", [b.constant([1, 1], "float32"), b.constant([1, 1], "float32")], [number], options("Add"))
        b.operator("ASSIGN_VARIABLE", [b.variable("count"), number], [], options("AssignVariable"))
    elif damage != "unset":
        start = b.constant([0.5, -1], "float32")
        b.operator("ASSIGN_VARIABLE", [b.variable("count"), start], [], options("AssignVariable"))
    b.graph = main
    return b.finish([x], [y, twice, frames] if damage == "output" else [y, twice, past, whole, before, after])


@pytest.mark.parametrize("dialect", ["litert-ref", "litert-xnnpack"])
def test_values_of_many_calls(dialect: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    data = stream()
    reference = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF} if dialect == "litert-ref" else {}
    interpreter = Interpreter(model_content=data, **reference)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    names = {one["name"]: one["index"] for one in interpreter.get_tensor_details()}
    wanted = ["y", "twice", "past", "whole", "before", "after"]
    session = hwq.compile(read(data, "m"), dialect=dialect).session()
    first = []
    for _ in range(12):
        x = RNG.integers(-128, 128, (1, 3, 1, 4)).astype(np.int8)
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        made = session(x)
        first.append((x, made))
        for name in wanted:
            np.testing.assert_array_equal(made[name], interpreter.get_tensor(names[name]))
    session.reset()
    for x, made in first:
        for name, value in session(x).items():
            np.testing.assert_array_equal(value, made[name])


def test_a_call_starts_from_the_first_value() -> None:
    program, x = hwq.compile(read(stream(), "m")), RNG.integers(-128, 128, (1, 3, 1, 4)).astype(np.int8)
    np.testing.assert_array_equal(program(x)["twice"], np.array([3, 2], np.float32))
    np.testing.assert_array_equal(program(x)["twice"], np.array([3, 2], np.float32))


def test_verbs_take_it(tmp_path: object) -> None:
    from hwq.observation import litert_values

    path = f"{tmp_path}/m.tflite"
    with open(path, "wb") as stream_:
        stream_.write(stream())
    graph, x = hwq.load(path), RNG.integers(-128, 128, (1, 3, 1, 4)).astype(np.int8)
    assert set(litert_values(path, {"x": x})) >= {"past", "y", "twice"}
    assert hwq.estimate(graph, "ethos-u55-128").seconds > 0
    with pytest.raises(hwq.Error, match="state"):
        hwq.export(graph, f"{tmp_path}/m.onnx")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("shape", "hwq keeps a variable's type and shape"),
        ("computed", "runs once holds ADD"),
        ("unset", "no first value"),
        ("output", "t[0-9]+"),
    ],
)
def test_refused(damage: str, told: str) -> None:
    with pytest.raises(hwq.Error, match=told):
        read(stream(damage), "m")


def test_of_several_subgraphs_the_first_is_read() -> None:
    """A file of several signatures; what the others hold is not looked at, loops in the first are refused by name."""
    from hwq.verification.tflite_builder import Builder, options

    b = Builder()
    x, y = b.tensor("float32", [2]), b.tensor("float32", [2])
    loop = options("While", condSubgraphIndex=1, bodySubgraphIndex=1)
    first, second = b.graph, b.subgraph("second")
    for graph, op, made in ((first, "ABS", None), (second, "WHILE", loop)):
        b.graph = graph
        b.operator(op, [x], [y], made)
    b.graph = first
    graph = read(b.finish([x], [y]), "two.tflite")
    assert [node.op for node in graph.nodes] == ["ABS"] and graph.source["subgraphs"] == 2
    b.operator("WHILE", [x], [y], loop)
    with pytest.raises(hwq.Error, match="control flow operator WHILE"):
        read(b.finish([x], [y]), "loop.tflite")
