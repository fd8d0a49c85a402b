"""Work records against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from hwq.errors import Error
from hwq.graph import Graph, Node, Quantization, Tensor
from hwq.ops.base import lookup
from hwq.work import Work, columns

F = np.float32


def quantized(
    dtype: str, count: int | None = None, axis: int | None = None, block: int | None = None, zero: int | None = None
) -> Quantization:
    """A quantization with `count` scales; `zero` None is symmetric."""
    shape = () if count is None else (count,)
    points = None if zero is None else np.full(shape, zero, np.int32)
    return Quantization(dtype, np.ones(shape, F), points, axis, block)


def tensor(
    name: str, *shape: Any, dtype: str = "float32", how: Quantization | None = None, constant: bool = False
) -> Tensor:
    data = np.zeros(shape, np.int8 if dtype.startswith("int4") else dtype) if constant else None
    return Tensor(name, dtype, shape, data, how)


def work_of(node: Node, *tensors: Tensor) -> Work:
    constants = {one.name for one in tensors if one.constant}
    inputs = [name for name in node.inputs if name and name not in constants]
    graph = Graph(
        [node], tensors, inputs, [name for name in node.outputs if name], form="lowered" if node.body else "source"
    )
    return lookup(node).work(node, graph)


def conv(name: str = "c", **attributes: Any) -> Node:
    return Node("Conv", name, ("x", "w", "b"), ("y",), attributes, layout="NCHW")


def test_float_convolution() -> None:
    """ResNet's first layer: 112 x 112 positions x 7 x 7 x 3 taps x 64 filters = 118 013 952 MACs (published)."""
    work = work_of(
        conv(pads=(3, 3, 3, 3), strides=(2, 2)),
        tensor("x", 1, 3, 224, 224),
        tensor("w", 64, 3, 7, 7, constant=True),
        tensor("b", 64, constant=True),
        tensor("y", 1, 64, 112, 112),
    )
    assert (work.kind, work.precision, work.macs) == ("gemm", "float32", 118_013_952)
    assert (work.groups, work.m, work.k, work.n) == (1, 12544, 147, 64)
    assert (work.batch, work.input_h, work.input_w, work.input_c) == (1, 224, 224, 3)
    assert (work.output_h, work.output_w, work.output_c) == (112, 112, 64)
    assert (work.kernel_h, work.kernel_w, work.stride_h, work.stride_w) == (7, 7, 2, 2)
    assert (work.input_bytes, work.weight_bytes, work.output_bytes, work.bias_bytes) == (
        602_112,
        37_632,
        3_211_264,
        256,
    )
    assert work.epilogue_operations == 64 * 12544  # the bias
    assert (work.zero_point_operations, work.scale_bytes, work.other_elements, work.weight_is_activation) == (
        0,
        0,
        0,
        False,
    )


def test_fused_integer_convolution() -> None:
    """4 x 4 x 8 outputs: bias 1 + Clip 2 + requantize 3 + residual 2 = 8 operations on each of 128 accumulators."""
    body = (Node("DequantizeLinear", "d", (), ("a",)), Node("Conv", "c", ("a",), ("b1",)), Node("Clip", "k", (), ("e",)), Node("Add", "p", (), ("f",)),
            Node("QuantizeLinear", "q", (), ("y",)))  # fmt: skip
    node = Node(
        "Conv", "c", ("x", "w", "b", "low", "high", "r"), ("y",), {"pads": (1, 1, 1, 1)}, layout="NCHW", body=body
    )
    work = work_of(node, tensor("x", 1, 6, 4, 4, dtype="uint8", how=quantized("uint8", zero=3)),
                   tensor("w", 8, 6, 3, 3, dtype="int8", how=quantized("int8", 8, 0), constant=True), tensor("b", 8, dtype="int32", constant=True),
                   tensor("low", constant=True), tensor("high", constant=True), tensor("r", 1, 8, 4, 4, dtype="uint8", how=quantized("uint8", zero=3)),
                   tensor("y", 1, 8, 4, 4, dtype="uint8", how=quantized("uint8", zero=3)))  # fmt: skip
    assert (work.precision, work.macs, work.fused) == ("int8", 16 * 54 * 8, ("Clip", "Add"))
    assert work.epilogue_operations == 8 * 128
    assert (work.input_bytes, work.weight_bytes, work.other_bytes, work.output_bytes) == (96, 432, 128, 128)
    assert work.bias_bytes == 32
    assert work.scale_bytes == (4 + 1) + 8 * 4 + (4 + 1)
    assert work.zero_point_operations == 0  # symmetric constant weights: the activation's zero point is in the bias


def test_zero_points_cost_sums() -> None:
    """Asymmetric weights need a sum of every row of activations: m x k = 10 x 20. Two activations need columns too: 20 x 5."""
    a, b, y = (
        tensor("a", 10, 20, dtype="uint8", how=quantized("uint8", zero=3)),
        {"dtype": "uint8", "how": quantized("uint8", zero=7)},
        tensor("y", 10, 5, dtype="int32"),
    )
    node = Node("MatMul", "m", ("a", "b"), ("y",))
    fixed = work_of(node, a, tensor("b", 20, 5, constant=True, **b), y)
    moving = work_of(node, a, tensor("b", 20, 5, **b), y)
    assert (fixed.zero_point_operations, fixed.weight_is_activation) == (200, False)
    assert (moving.zero_point_operations, moving.weight_is_activation) == (300, True)
    assert fixed.epilogue_operations == 0  # raw int32 accumulators


@pytest.mark.parametrize(("activation", "weight", "precision", "accumulator"), [
    ("int8", "int8", "int8", 32), ("uint8", "int8", "int8", 32), ("int8", "int4", "int8", 32), ("int4", "int4", "int4", 32), ("int16", "int8", "int16", 64),
    ("float32", "int8", "float32", 32), ("float16", "int4", "float16", 32), ("bfloat16", "bfloat16", "bfloat16", 32), ("float8e4m3fn", "float8e5m2", "float8", 32)])  # fmt: skip
def test_precision(activation: str, weight: str, precision: str, accumulator: int) -> None:
    def of(name: str, dtype: str, *shape: int) -> Tensor:
        return Tensor(name, dtype, shape, None, quantized(dtype) if dtype.startswith(("int", "uint")) else None)

    graph = Graph(
        [Node("MatMul", "m", ("a", "b"), ("y",))],
        [of("a", activation, 4, 32), of("b", weight, 32, 8), tensor("y", 4, 8)],
        ["a"],
        ["y"],
    )
    work = lookup(graph.nodes[0]).work(graph.nodes[0], graph)
    assert (work.precision, work.accumulator_bits, work.weight_is_activation) == (precision, accumulator, False)
    assert work.weight_bits == graph.tensors["b"].bits and work.weight_bytes == (32 * 8 * work.weight_bits + 7) // 8


def test_a_transposed_convolution_multiplies_every_input_by_every_tap() -> None:
    """2 x 5 x 5 inputs of 8 channels in 2 groups, 3 filters a group of 3 x 3 taps: 50 x 4 x 27 products a group."""
    node = Node("ConvTranspose", "t", ("x", "w"), ("y",), {"strides": (2, 2), "group": 2})
    work = work_of(node, tensor("x", 2, 8, 5, 5), tensor("w", 8, 3, 3, 3, constant=True), tensor("y", 2, 6, 11, 11))
    assert work.macs == 2 * 50 * 4 * 27
    assert (work.groups, work.m, work.k, work.n) == (2, 50, 4, 27)


def test_blocked_weights_scale_partial_sums() -> None:
    """Weight-only int4, blocks of 32 along K = 128: 4 scaled partial sums for each of 2 x 16 outputs, 4 x 16 scales."""
    how = Quantization("int4", np.ones((4, 16), F), None, 0, 32, "packed")
    work = work_of(
        Node("MatMul", "m", ("a", "b"), ("y",)),
        tensor("a", 2, 128),
        tensor("b", 128, 16, dtype="int4", how=how, constant=True),
        tensor("y", 2, 16),
    )
    assert (work.precision, work.weight_bits, work.weight_bytes, work.scale_bytes) == ("float32", 4, 1024, 256)
    assert work.epilogue_operations == 2 * 16 * 4


def test_depthwise_and_grouped_convolution() -> None:
    depthwise = work_of(
        conv(group=6, pads=(1, 1, 1, 1)),
        tensor("x", 2, 6, 5, 5),
        tensor("w", 12, 1, 3, 3, constant=True),
        tensor("b", 12, constant=True),
        tensor("y", 2, 12, 5, 5),
    )
    assert (depthwise.kind, depthwise.groups, depthwise.m, depthwise.k, depthwise.n, depthwise.macs) == (
        "depthwise",
        6,
        50,
        9,
        2,
        5400,
    )
    grouped = work_of(
        conv(group=2),
        tensor("x", 1, 6, 5, 5),
        tensor("w", 4, 3, 3, 3, constant=True),
        tensor("b", 4, constant=True),
        tensor("y", 1, 4, 3, 3),
    )
    assert (grouped.kind, grouped.groups, grouped.m, grouped.k, grouped.n) == ("gemm", 2, 9, 27, 2)


def test_layouts_agree() -> None:
    first = work_of(
        conv(strides=(2, 1)),
        tensor("x", 2, 3, 9, 8),
        tensor("w", 4, 3, 3, 2, constant=True),
        tensor("b", 4, constant=True),
        tensor("y", 2, 4, 4, 7),
    )
    second = work_of(
        Node("Conv", "c", ("x", "w", "b"), ("y",), {"strides": (2, 1)}, layout="NHWC"),
        tensor("x", 2, 9, 8, 3),
        tensor("w", 4, 3, 2, 3, constant=True),
        tensor("b", 4, constant=True),
        tensor("y", 2, 4, 7, 4),
    )
    assert first == second


def test_products() -> None:
    """BERT-base at 128 tokens: scores 12 x 128 x 64 x 128; a projection 128 x 768 x 768."""
    node = Node("MatMul", "m", ("a", "b"), ("y",))
    scores = work_of(node, tensor("a", 1, 12, 128, 64), tensor("b", 1, 12, 64, 128), tensor("y", 1, 12, 128, 128))
    assert (scores.groups, scores.m, scores.k, scores.n, scores.weight_is_activation, scores.weight_elements) == (
        12,
        128,
        64,
        128,
        True,
        12 * 64 * 128,
    )
    projection = work_of(node, tensor("a", 8, 128, 768), tensor("b", 768, 768, constant=True), tensor("y", 8, 128, 768))
    assert (projection.groups, projection.m, projection.batch, projection.output_w, projection.macs) == (
        1,
        1024,
        8,
        128,
        1024 * 768 * 768,
    )
    swapped = work_of(node, tensor("a", 10, 20, constant=True), tensor("b", 20, 5), tensor("y", 10, 5))
    assert (
        swapped.m,
        swapped.k,
        swapped.n,
        swapped.weight_elements,
        swapped.input_elements,
        swapped.weight_is_activation,
    ) == (5, 20, 10, 200, 100, False)
    gemm = work_of(
        Node("Gemm", "g", ("a", "b", "c"), ("y",), {"transB": 1}),
        tensor("a", 4, 32),
        tensor("b", 10, 32, constant=True),
        tensor("c", 10, constant=True),
        tensor("y", 4, 10),
    )
    assert (gemm.m, gemm.k, gemm.n, gemm.batch, gemm.bias_bytes, gemm.epilogue_operations) == (4, 32, 10, 4, 40, 40)


def test_vectors_moves_and_views() -> None:
    image, small = tensor("x", 1, 8, 6, 6), tensor("y", 1, 8, 3, 3)
    pool = work_of(
        Node("MaxPool", "p", ("x",), ("y",), {"kernel_shape": (2, 2), "strides": (2, 2)}, layout="NCHW"), image, small
    )
    assert (pool.kind, pool.vector_operations, pool.kernel_h, pool.stride_w, pool.macs) == ("vector", 72 * 4, 2, 2, 0)
    mean = work_of(Node("GlobalAveragePool", "p", ("x",), ("y",), layout="NCHW"), image, tensor("y", 1, 8, 1, 1))
    assert mean.vector_operations == 288
    add = work_of(Node("Add", "a", ("x", "z"), ("y",)), image, tensor("z", 1, 8, 6, 6), tensor("y", 1, 8, 6, 6))
    assert (add.kind, add.vector_operations, add.input_elements, add.other_elements) == ("vector", 288, 288, 288)
    biased = work_of(
        Node("Add", "a", ("x", "z"), ("y",)), image, tensor("z", 8, 1, 1, constant=True), tensor("y", 1, 8, 6, 6)
    )
    assert (biased.weight_elements, biased.other_elements) == (8, 0)
    softmax = work_of(Node("Softmax", "s", ("x",), ("y",)), tensor("x", 4, 10), tensor("y", 4, 10))
    assert softmax.vector_operations == 5 * 40
    moved = work_of(Node("Transpose", "t", ("x",), ("y",), {"perm": (0, 2, 3, 1)}), image, tensor("y", 1, 6, 6, 8))
    assert (moved.kind, moved.input_bytes, moved.output_bytes, moved.vector_operations) == ("move", 1152, 1152, 0)
    view = work_of(Node("Flatten", "f", ("x",), ("y",)), image, tensor("y", 1, 288))
    assert (view.kind, view.input_bytes, view.output_bytes) == ("none", 0, 0)
    table = work_of(
        Node("Gather", "g", ("w", "x"), ("y",)),
        tensor("w", 30522, 768, constant=True),
        tensor("x", 1, 128, dtype="int64"),
        tensor("y", 1, 128, 768),
    )
    assert (table.kind, table.weight_elements, table.output_elements) == (
        "move",
        128 * 768,
        128 * 768,
    )  # only the rows that are read


def test_quantize_and_dequantize_count_their_scales() -> None:
    scale, point = tensor("s", 8, constant=True), tensor("z", 8, dtype="uint8", constant=True)
    work = work_of(
        Node("QuantizeLinear", "q", ("x", "s", "z"), ("y",)),
        tensor("x", 1, 8, 6, 6),
        scale,
        point,
        tensor("y", 1, 8, 6, 6, dtype="uint8", how=quantized("uint8", 8, 1, zero=1)),
    )
    assert (work.kind, work.vector_operations, work.input_bytes, work.output_bytes, work.scale_bytes) == (
        "vector",
        3 * 288,
        1152,
        288,
        40,
    )


def test_quantized_operators_of_onnx() -> None:
    names = ("x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b")
    zero = tensor("xz", dtype="uint8", constant=True)
    made = {"xs": tensor("xs", constant=True), "ws": tensor("ws", constant=True), "ys": tensor("ys", constant=True), "yz": dataclasses.replace(zero, name="yz"),
            "wz": tensor("wz", dtype="int8", constant=True), "b": tensor("b", 4, dtype="int32", constant=True), "xz": zero,
            "x": tensor("x", 1, 3, 5, 5, dtype="uint8"), "w": tensor("w", 4, 3, 3, 3, dtype="int8", constant=True), "y": tensor("y", 1, 4, 3, 3, dtype="uint8")}  # fmt: skip
    work = work_of(Node("QLinearConv", "c", names, ("y",), layout="NCHW"), *made.values())
    assert (work.precision, work.macs, work.weight_elements, work.bias_bytes, work.other_elements) == (
        "int8",
        9 * 27 * 4,
        108,
        16,
        0,
    )


def test_open_dimensions_are_one_error() -> None:
    with pytest.raises(Error, match="open dimensions"):
        work_of(Node("Relu", "r", ("x",), ("y",)), tensor("x", "N", 3), tensor("y", "N", 3))


def test_columns() -> None:
    works = [
        work_of(Node("Relu", "r", ("x",), ("y",)), tensor("x", size, 3), tensor("y", size, 3)) for size in (1, 2, 4)
    ]
    table = columns(works)
    np.testing.assert_array_equal(table["output_bytes"], [12, 24, 48])
    assert (
        table["macs"].dtype == np.int64
        and table["weight_is_activation"].dtype == np.bool_
        and list(table["kind"]) == ["vector"] * 3
    )


def test_every_operator_states_its_work() -> None:
    """Every node of every network in the zoo, at batch 2: MACs are the loop nest's, bytes the tensors'."""
    from hwq import zoo
    from hwq.ops.evaluate import infer_shapes

    for name in ("mobilenet_v2", "yolov8n", "bert_base"):
        graph = infer_shapes(zoo.build(name, weights=False), batch=2)
        for node in graph:
            work = lookup(node).work(node, graph)
            assert work.macs == (work.groups * work.m * work.k * work.n if work.kind in {"gemm", "depthwise"} else 0)
            if work.kind not in {"none"}:
                assert work.output_bytes == sum(graph.tensors[output].bytes for output in node.outputs)
