"""Graph, Tensor and Quantization: what they hold, refuse and keep."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwq.errors import Error
from hwq.graph import BITS, Graph, Node, Quantization, Tensor, carrier, with_tensors

F = np.float32


def chain(count: int = 3) -> Graph:
    names = [f"t{index}" for index in range(count + 1)]
    nodes = [Node("Relu", f"n{index}", (names[index],), (names[index + 1],)) for index in range(count)]
    return Graph(nodes, [Tensor(name, shape=("N", 4)) for name in names], [names[0]], [names[-1]], name="chain")


def test_nodes_are_sorted_and_stable() -> None:
    graph = chain()
    shuffled = Graph(graph.nodes[::-1], graph.tensors.values(), graph.inputs, graph.outputs)
    assert [node.name for node in shuffled] == ["n0", "n1", "n2"] == [node.name for node in graph]
    twins = [Node("Relu", f"r{index}", ("x",), (f"y{index}",)) for index in range(50)]
    parallel = Graph(twins, [Tensor("x"), *(Tensor(f"y{index}") for index in range(50))], ["x"], ["y0"])
    assert [node.name for node in parallel] == [f"r{index}" for index in range(50)]


def test_long_graphs_need_no_recursion() -> None:
    assert len(chain(20_000)) == 20_000


@pytest.mark.parametrize(("nodes", "word"), [
    ([Node("Relu", "a", ("x",), ("y",)), Node("Relu", "b", ("x",), ("y",))], "twice"), ([Node("Relu", "a", ("x",), ("x",))], "twice"),
    ([Node("Add", "a", ("x", "z"), ("y",)), Node("Relu", "b", ("y",), ("z",))], "cycle"), ([Node("Relu", "a", ("ghost",), ("y",))], "nothing makes"),
    ([Node("Relu", "a", ("x",), ("undeclared",))], "declare"), ([], "no node")])  # fmt: skip
def test_graphs_that_cannot_be(nodes: list[Node], word: str) -> None:
    tensors = [Tensor("x"), Tensor("y"), Tensor("z")]
    outputs = ["y"] if nodes else ["nowhere"]
    with pytest.raises(Error, match=word):
        Graph(nodes, tensors, ["x"], outputs)


def test_neighbors() -> None:
    graph = chain()
    assert graph.producers["t2"].name == "n1" and [node.name for node in graph.consumers["t2"]] == ["n2"]
    assert "t0" not in graph.producers and graph.node("n1").op == "Relu"
    with pytest.raises(Error, match="no such node"):
        graph.node("n9")


def test_everything_is_immutable() -> None:
    data = np.ones(3, F)
    tensor = Tensor("w", shape=(3,), data=data)
    assert tensor.data is not None
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0] = 2
    node = Node("Relu", "r", (), (), {"a": 1})
    with pytest.raises(TypeError):
        node.attributes["a"] = 2  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.name = "other"  # type: ignore[misc]


def test_bytes_count_packed_bits() -> None:
    assert (
        Tensor("w", "int4", (3, 3)).bytes == 5
        and Tensor("w", "uint2", (9,)).bytes == 3
        and Tensor("w", "bfloat16", (3,)).bytes == 6
    )
    assert Tensor("w", "float32", (3,), quantization=Quantization("int8")).bytes == 3
    with pytest.raises(Error, match="open dimensions"):
        _ = Tensor("x", shape=("N", 3)).elements


def test_every_type_has_a_carrier() -> None:
    for dtype, bits in BITS.items():
        kind = carrier(dtype)
        assert kind.itemsize * 8 >= bits and (bits < 8 or dtype == "string" or kind.itemsize * 8 == bits)


def test_quantization_reads_its_parts() -> None:
    per_channel = Quantization("int8", np.array([1, 2], F), np.array([0, 3], np.int8), 0)
    assert (per_channel.granularity, per_channel.bits, per_channel.symmetric, per_channel.known) == (
        "channel",
        8,
        False,
        True,
    )
    assert Quantization("int4", np.ones((2, 3), F), None, 1, 32).granularity == "group"
    dynamic = Quantization("uint8", "scale of x", "point of x")
    assert dynamic.dynamic and not dynamic.known and not dynamic.symmetric
    for unset in (dynamic, Quantization("int8")):
        with pytest.raises(Error, match="scale"):
            unset.scales()


def everything() -> Graph:
    """A graph with every kind of value that a file must carry."""
    strings = np.empty(2, object)
    strings[:] = ["a", "é\0"]
    attributes: dict[str, Any] = {"i": 1, "f": 0.1, "s": "text", "t": (1, 2.5, "x"), "a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": b"\x00\xff",
                                  "n": float("nan"), "h": np.ones(2, carrier("bfloat16")), "e": ()}  # fmt: skip
    inner = Node("Conv", "inner", ("x",), ("q",), {"group": 2})
    nodes = [Node("Conv", "=1+1", ("x", "w", ""), ("y",), attributes, "own", "from/here", "NHWC", (inner,))]
    tensors = [Tensor("x", shape=("N", 3)), Tensor("w", "int4", (2, 2), np.array([[1, -8], [7, 0]], np.int8), Quantization("int4", np.ones((2, 1), F), None, 1, 2, "packed")),
               Tensor("y", "uint8", ("N", 2), None, Quantization("uint8", "run time", "zero")), Tensor("text", "string", (2,), strings),
               Tensor("?", known_shape=False), Tensor("empty", shape=(0, 3), data=np.zeros((0, 3), F)), Tensor("scalar", "float16", (), np.array(1.5, np.float16)),
               Tensor("f8", "float8e4m3fn", (2,), np.ones(2, carrier("float8e4m3fn")))]  # fmt: skip
    return Graph(
        nodes,
        tensors,
        ["x"],
        ["y"],
        name="all",
        form="lowered",
        dialect="litert-ref",
        source={"file": "a.onnx", "opset": 17},
    )


def test_saved_graphs_load_equal(tmp_path: Path) -> None:
    graph = everything()
    graph.save(tmp_path / "g.npz")
    again = Graph.load(tmp_path / "g.npz")
    assert again.hash == graph.hash and again.to_text() == graph.to_text()
    assert (again.name, again.form, again.dialect, again.inputs, again.outputs, again.source) == (
        graph.name,
        graph.form,
        graph.dialect,
        graph.inputs,
        graph.outputs,
        graph.source,
    )
    one, two = graph.nodes[0], again.nodes[0]
    assert (one.op, one.name, one.inputs, one.outputs, one.domain, one.origin, one.layout) == (
        two.op,
        two.name,
        two.inputs,
        two.outputs,
        two.domain,
        two.origin,
        two.layout,
    )
    for name, value in one.attributes.items():
        np.testing.assert_equal(two.attributes[name], value)
    assert two.body[0].attributes == {"group": 2}
    for name, tensor in graph.tensors.items():
        other = again.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.known_shape) == (other.dtype, other.shape, other.known_shape)
        np.testing.assert_array_equal(np.asarray(tensor.data), np.asarray(other.data))
    assert (
        again.tensors["y"].quantization == dataclasses.replace(again.tensors["y"].quantization)
        or again.tensors["y"].quantization.scale == "run time"
    )  # type: ignore[type-var, union-attr]


def test_saving_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    chain().save(path)
    before = path.read_bytes()
    with pytest.raises(Error, match="exists"):
        everything().save(path)
    assert path.read_bytes() == before
    everything().save(path, overwrite=True)
    assert Graph.load(path).name == "all" and [file.name for file in tmp_path.iterdir()] == ["g.npz"]


def test_hash_sees_structure_and_values_but_no_addresses() -> None:
    assert everything().hash == everything().hash and chain().hash != chain(4).hash
    graph = everything()
    scale = Quantization("int4", np.full((2, 1), np.nextafter(F(1), F(2)), F), None, 1, 2, "packed")
    for name, change in (
        ("w", {"data": np.array([[1, -8], [7, 1]], np.int8)}),
        ("w", {"quantization": scale}),
        ("x", {"shape": ("M", 3)}),
    ):
        assert with_tensors(graph, {name: dataclasses.replace(graph.tensors[name], **change)}).hash != graph.hash
    assert graph.replace(dialect="ort").hash != graph.hash
    node = dataclasses.replace(graph.nodes[0], attributes={**graph.nodes[0].attributes, "f": 0.2})
    assert graph.replace(nodes=[node]).hash != graph.hash


def test_graphs_cross_processes() -> None:
    assert pickle.loads(pickle.dumps(everything())).hash == everything().hash


def test_text_is_one_line_a_node() -> None:
    lines = chain().to_text().splitlines()
    assert (
        len(lines) == 6
        and "n1: t2:float32[Nx4] = Relu(t1)" in lines[3]
        and repr(chain()) == "<Graph chain: 3 nodes, source form, dialect ort>"
    )


def test_parameters_are_weights_not_shapes_or_single_numbers() -> None:
    tensors = [Tensor("x", shape=(2, 3)), Tensor("w", shape=(3, 4), data=np.ones((3, 4), F)), Tensor("epsilon", data=np.ones((), F)),
               Tensor("shape", "int64", (2,), np.array([2, 4])), Tensor("y", shape=(2, 4)), Tensor("z", shape=(2, 4))]  # fmt: skip
    graph = Graph(
        [Node("MatMul", "m", ("x", "w"), ("y",)), Node("Reshape", "r", ("y", "shape"), ("z",))], tensors, ["x"], ["z"]
    )
    assert (graph.parameters, graph.parameter_bytes) == (12, 48)
