"""Every mode of a plan in the dialect hwq, against readings of the source form in NumPy that share no code with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny
from onnx import helper
from test_kernels_int4 import fma

import hwq
from hwq import numerics
from hwq.errors import Error
from hwq.graph import Graph
from hwq.plan import Plan

Table = dict[str, object]
# name: (weights, activations)
MODES: dict[str, tuple[Table, Table]] = {
    "static uint8": ({}, {}),
    "static int8": ({}, {"dtype": "int8"}),
    "static int8 symmetric": ({}, {"dtype": "int8", "symmetric": True}),
    "static int4 channel": ({"dtype": "int4"}, {}),
    "static int4 groups": ({"dtype": "int4", "granularity": {"group": 4}}, {}),
    "static uint4 groups": ({"dtype": "uint4", "symmetric": False, "granularity": {"group": 5}}, {}),
    "static int8 groups": ({"granularity": {"group": 3}}, {}),
    "static int16": ({}, {"dtype": "int16", "symmetric": True}),
    "static uint16": ({}, {"dtype": "uint16"}),
    "static int16 uint8": ({"dtype": "uint8", "symmetric": False}, {"dtype": "int16", "symmetric": True}),
    "static int16 int4": ({"dtype": "int4", "granularity": "tensor"}, {"dtype": "int16", "symmetric": True}),
    "dynamic": ({}, {"mode": "dynamic"}),
    "dynamic row": ({}, {"mode": "dynamic", "granularity": "row"}),
    "dynamic token int8": ({}, {"mode": "dynamic", "granularity": "token", "dtype": "int8", "symmetric": True}),
    "dynamic int8": ({}, {"mode": "dynamic", "dtype": "int8", "symmetric": True}),
    "dynamic int4": ({"dtype": "int4"}, {"mode": "dynamic"}),
    "dynamic row int4 groups": ({"dtype": "int4", "granularity": {"group": 4}}, {"mode": "dynamic", "granularity": "row"}),
    "weight-only int8": ({}, {"mode": "float"}),
    "weight-only int8 tensor": ({"granularity": "tensor"}, {"mode": "float"}),
    "weight-only int8 groups": ({"granularity": {"group": 4}}, {"mode": "float"}),
    "weight-only int4": ({"dtype": "int4"}, {"mode": "float"}),
    "weight-only uint4 groups": ({"dtype": "uint4", "symmetric": False, "granularity": {"group": 4}}, {"mode": "float"}),
    "float16": ({"dtype": "float16"}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
}  # fmt: skip
INTEGER = [name for name in MODES if not name.startswith(("weight", "float", "bfloat"))]


def plan_of(name: str, dialect: str = "hwq") -> Plan:
    weights, activations = MODES[name]
    table = {"schema": 1, "dialect": dialect, "default": {"weights": weights, "activations": activations}}
    return Plan._checked(table, "test")


def layer(kind: str, seed: int = 0) -> tuple[Graph, np.ndarray]:
    """One layer with a bias and a clamp, and inputs of several samples; K = 18 (or channels) is no multiple of any group."""
    random = np.random.default_rng(seed)
    if kind == "gemm":
        shapes, weight, attributes, op = (4, 18), (18, 7), {}, "Gemm"
    elif kind == "matmul":
        shapes, weight, attributes, op = (2, 3, 18), (18, 7), {}, "MatMul"
    else:
        depth = kind == "depthwise"
        shapes, op = (3, 6, 5, 4), "Conv"
        weight = (6, 1, 3, 3) if depth else (7, 6, 3, 2)
        attributes = {"group": 6 if depth else 1, "pads": [1, 1, 1, 0], "strides": [1, 2], "name": "layer"}
    attributes.setdefault("name", "layer")
    inputs = ["x", "w"] if kind == "matmul" else ["x", "w", "b"]
    nodes = [helper.make_node(op, inputs, ["c"], **attributes), helper.make_node("Relu", ["c"], ["y"], "relu")]
    constants = {
        "w": random.normal(size=weight)
        * random.uniform(0.2, 1.5, weight[-1:] if op != "Conv" else (weight[0], 1, 1, 1))
    }
    if len(inputs) > 2:
        constants["b"] = random.normal(size=weight[0] if op == "Conv" else weight[1]) * 0.3
    x = random.normal(size=(40, *shapes[1:])).astype(np.float32) * random.uniform(
        0.3, 2.0, (40, *(1,) * (len(shapes) - 1))
    ).astype(np.float32)
    graph = tiny.graph(
        tiny.model(nodes, {"x": ["N", *shapes[1:]]}, {"y": ["N", *["d"] * (len(shapes) - 1)]}, constants)
    )
    return graph, x


class Reading:
    """The source form's own numbers, looked up by hand."""

    def __init__(self, q: Graph):
        self.q = q
        self.node = next(node for node in q.nodes if node.op.removesuffix("Integer") in {"Conv", "Gemm", "MatMul"})

    def constant(self, name: str) -> np.ndarray:
        data = self.q.tensors[name].data
        assert data is not None
        return np.asarray(data)

    def pair(self, op: str, place: int) -> tuple[np.ndarray, np.ndarray, str]:
        node = [node for node in self.q.nodes if node.op == op][place]
        return self.constant(node.inputs[1]), self.constant(node.inputs[2]), self.q.tensors[node.inputs[2]].dtype

    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None, int | None]:
        """(stored, scale, zero point, axis, block) of the layer's weights, behind DQ or in an integer operator."""
        if self.node.op.endswith("Integer"):
            tensor = self.q.tensors[self.node.inputs[1]]
            assert tensor.quantization is not None
            return (
                self.constant(tensor.name),
                tensor.quantization.scales(),
                tensor.quantization.zero_points(),
                tensor.quantization.axis,
                None,
            )
        maker = self.q.producers[self.node.inputs[1]]
        scale, zero = self.constant(maker.inputs[1]), self.constant(maker.inputs[2]).astype(np.int64)
        axis = maker.attributes.get("axis") if scale.ndim else None
        return self.constant(maker.inputs[0]), scale, zero, axis, maker.attributes.get("block_size")

    def terms(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Operands as (rows, groups of columns) of a plain sum: a (P, T, C), w (T, C, N), scale and zero alike, per column group.

        Depthwise convolutions come back with one channel a column: a (P, T, N).
        """
        w, scale, zero, axis, block = self.weights()
        spread = [np.asarray(values) for values in (scale, zero)]
        if axis is None:
            spread = [np.broadcast_to(values.reshape(()), w.shape) for values in spread]
        elif block is None:
            shape = [-1 if place == axis else 1 for place in range(w.ndim)]
            spread = [np.broadcast_to(values.reshape(shape), w.shape) for values in spread]
        else:
            spread = [np.repeat(values, block, axis=axis).take(range(w.shape[axis]), axis=axis) for values in spread]
        scale, zero = spread
        centered = w.astype(np.int64) - zero.astype(np.int64)
        if "Conv" not in self.node.op:
            return a.reshape(-1, 1, a.shape[-1]), centered[None], scale[None], block or w.shape[0]
        get = self.node.attributes.get
        top, left, bottom, right = get("pads")
        image = np.pad(a, [(0, 0), (0, 0), (top, bottom), (left, right)])
        kernel, steps = w.shape[2:], get("strides")
        counts = [(image.shape[2 + d] - kernel[d]) // steps[d] + 1 for d in range(2)]
        taps = []
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            part = image[:, :, i : i + counts[0] * steps[0] : steps[0], j : j + counts[1] * steps[1] : steps[1]]
            taps.append(part[:, :, : counts[0], : counts[1]].transpose(0, 2, 3, 1).reshape(-1, a.shape[1]))
        rows = np.stack(taps, 1)  # (P, T, C)
        flat = [values.reshape(*values.shape[:2], -1).transpose(2, 1, 0) for values in (centered, scale)]  # (T, C/g, O)
        return rows, flat[0], flat[1], block or w.shape[1]


def sums(rows: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Exact (P, N), depthwise too."""
    if w.shape[1] == 1 and rows.shape[2] > 1:
        return np.einsum("ptn,tn->pn", rows, w[:, 0])
    return np.einsum("ptc,tcn->pn", rows, w)


def grouped(rows: np.ndarray, w: np.ndarray, scale: np.ndarray, block: int) -> np.ndarray:
    """``y = fma(f32(acc), scale, y)`` in order of tap and block."""
    y = np.zeros((rows.shape[0], w.shape[2]), np.float32)
    for tap, first in itertools.product(range(w.shape[0]), range(0, w.shape[1], block)):
        acc = rows[:, tap, first : first + block] @ w[tap, first : first + block]
        y = fma(acc.astype(np.float32), np.ascontiguousarray(np.broadcast_to(scale[tap, first], y.shape)), y)
    return y


def put_back(flat: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(P, N) in the shape of the result."""
    return (
        np.moveaxis(flat.reshape(y.shape[0], *y.shape[2:], y.shape[1]), -1, 1) if y.ndim == 4 else flat.reshape(y.shape)
    )


def away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


f32 = np.float32


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", [name for name in INTEGER if name.startswith("static")])
def test_static_integers_have_no_difference(name: str, kind: str) -> None:
    graph, x = layer(kind)
    q = hwq.quantize(graph, plan_of(name), hwq.calibrate(graph, x))
    program = hwq.compile(q)
    assert not [node for node in program.graph.nodes if node.op in {"Conv", "Gemm", "MatMul", "Relu"} and not node.body]
    y, read = program(x), Reading(q)
    (sa, za, a_type), (sy, zy, y_type) = read.pair("QuantizeLinear", 0), read.pair("QuantizeLinear", -1)
    low, high = {"u8": (0, 255), "i8": (-128, 127), "i16": (-32768, 32767), "u16": (0, 65535)}[
        a_type.replace("nt", "").replace("ui", "u")
    ]
    assert y_type == a_type
    stored = np.clip(np.rint(x / sa).astype(np.int64) + int(za), low, high) - int(za)
    rows, w, scale, block = read.terms(stored)
    acc = sums(rows, w)
    bias = f32(0) if kind == "matmul" else None
    wide, groups = a_type.endswith("16"), read.weights()[4] is not None
    column = scale[0, 0]
    if bias is None:
        name_of_bias = read.node.inputs[2]
        if name_of_bias in q.producers:  # int32 with scale sa * sw
            dequantize = q.producers[name_of_bias]
            assert np.array_equal(
                np.broadcast_to(read.constant(dequantize.inputs[1]), column.shape), (sa * column).astype(f32)
            )
            acc = acc + read.constant(dequantize.inputs[0])
            bias = f32(0)
        else:
            bias = read.constant(name_of_bias)
    if groups:
        real = (grouped(rows, w, scale, block) + (bias / sa).astype(f32)).astype(f32) * f32(sa / sy)
        made = np.rint(np.clip(real, low - int(zy), high - int(zy))).astype(np.int64) + int(zy)
    elif wide:
        assert not np.any(bias)
        made = away(acc.astype(np.float64) * (column.astype(np.float64) * np.float64(sa) / np.float64(sy))).astype(
            np.int64
        ) + int(zy)
    else:
        assert not np.any(bias)
        m = ((sa * column).astype(f32) / sy).astype(f32)
        made = np.rint(np.clip(acc.astype(f32) * m, low - int(zy), high - int(zy))).astype(np.int64) + int(zy)
    made = np.clip(made, max(low, int(zy)), high)  # the ReLU
    assert np.array_equal(put_back((made - int(zy)).astype(f32) * sy, y), y)


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", [name for name in INTEGER if name.startswith("dynamic")])
def test_run_time_integers_have_no_difference(name: str, kind: str) -> None:
    graph, x = layer(kind)
    q = hwq.quantize(graph, plan_of(name))
    y = hwq.execute(q, x)
    activations = MODES[name][1]
    axes = None
    if activations.get("granularity", "tensor") != "tensor":
        axes = (1, 2, 3) if x.ndim == 4 else (x.ndim - 1,)
    low, high = (np.minimum(x.min(axes, keepdims=True), 0), np.maximum(x.max(axes, keepdims=True), 0))
    if activations.get("dtype") == "int8":
        s = (np.maximum(-low, high) / f32(127)).astype(f32)
        stored = np.clip(np.rint(x / s), -127, 127).astype(np.int64)
    else:
        s = ((high - low).astype(f32) / f32(255)).astype(f32)
        z = np.clip(np.rint(-low / s), 0, 255).astype(np.int64)
        stored = np.clip(np.rint(x / s).astype(np.int64) + z, 0, 255) - z
    read = Reading(q)
    rows, w, scale, block = read.terms(stored)
    bias = graph.tensors["b"].data if kind != "matmul" else None
    s = np.broadcast_to(s, (*x.shape[:-1], 1)) if x.ndim < 4 else np.broadcast_to(s, (x.shape[0], 1, *y.shape[2:]))
    step = s.reshape(-1, 1)
    if read.weights()[4] is not None:
        made = grouped(rows, w, scale, block) * step
    else:
        made = sums(rows, w).astype(f32) * (step * scale[0, 0]).astype(f32)
    made = made if bias is None else made + bias
    assert np.array_equal(put_back(np.maximum(made, 0), y), y)


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", [name for name in MODES if name.startswith("weight")])
def test_weight_only_in_its_order(name: str, kind: str) -> None:
    graph, x = layer(kind)
    q = hwq.quantize(graph, plan_of(name))
    y, read = hwq.execute(q, x), Reading(q)
    rows, w, scale, block = read.terms(x)
    bias = graph.tensors["b"].data if kind != "matmul" else f32(0)
    if "Conv" in read.node.op:  # the fixed order over real values, k = (tap, channel)
        real = w.astype(f32) * scale
        if kind == "depthwise":
            made = numerics.dot_f32(rows.transpose(0, 2, 1), real[:, 0].T[None])
        else:
            made = numerics.dot_f32(rows.reshape(len(rows), 1, -1), real.reshape(-1, w.shape[2]).T[None])
    else:
        made = np.zeros((rows.shape[0], w.shape[2]), f32)
        for first in range(0, w.shape[1], block):
            chain = np.zeros_like(made)
            for k in range(first, min(first + block, w.shape[1])):
                chain = fma(rows[:, 0, k, None], w[0, k].astype(f32), chain)
            made = fma(chain, np.broadcast_to(scale[0, first], chain.shape), made)
    assert np.array_equal(put_back(np.maximum(made + bias, 0), y), y)


@pytest.mark.parametrize("kind", ["gemm", "matmul", "conv", "depthwise"])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bit_floats_round_operands_and_result(name: str, kind: str) -> None:
    import ml_dtypes

    graph, x = layer(kind)
    y = hwq.execute(hwq.quantize(graph, plan_of(name)), x)
    half = np.float16 if name == "float16" else ml_dtypes.bfloat16

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(half).astype(f32)

    w = rounded(np.asarray(graph.tensors["w"].data))
    bias = rounded(np.asarray(graph.tensors["b"].data)) if kind != "matmul" else f32(0)
    if "w" in graph.tensors and x.ndim == 4:
        scaleless = Reading.__new__(Reading)
        scaleless.q, scaleless.node = graph, graph.node("layer")
        scaleless.weights = lambda: (np.zeros(w.shape, np.int64), f32(1), np.int64(0), None, None)  # type: ignore[method-assign]
        rows = scaleless.terms(rounded(x))[0]
        flat = w.reshape(*w.shape[:2], -1)
        if kind == "depthwise":
            made = numerics.dot_f32(rows.transpose(0, 2, 1), flat[:, 0][None])
        else:
            made = numerics.dot_f32(
                rows.reshape(len(rows), 1, -1), flat.transpose(0, 2, 1).reshape(w.shape[0], -1)[None]
            )
    else:
        made = numerics.dot_f32(rounded(x).reshape(-1, 1, x.shape[-1]), w.T[None])
    assert np.array_equal(put_back(np.maximum(rounded(made + bias), 0), y), y)


def test_modes_mix_in_one_plan() -> None:
    graph, x = tiny.graph(tiny.cnn()), tiny.images(9)
    rules = [
        ("conv1", {"dtype": "float16"}, {}),
        ("depthwise", {}, {"dtype": "int16", "symmetric": True}),
        ("pointwise", {"dtype": "int4", "granularity": {"group": 4}}, {"mode": "dynamic", "granularity": "row"}),
        ("dense", {"dtype": "int4"}, {"mode": "float"}),
    ]
    layers = [{"match": {"name": name}, "weights": weights, "activations": how} for name, weights, how in rules]
    plan = Plan._checked({"schema": 1, "dialect": "hwq", "layers": layers}, "test")
    q = hwq.quantize(graph, plan, hwq.calibrate(graph, tiny.images(64)))
    program = hwq.compile(q)
    y, seen = program(x, intermediates=True)
    assert np.abs(y - hwq.execute(graph, x)).max() < 0.05
    kinds = {node.name: node.kind for node in program.graph.nodes}
    assert (
        kinds["pointwise"] == "hwq::Conv"
        and program.graph.tensors[program.graph.node("conv1").inputs[0]].dtype == "float16"
    )
    assert np.array_equal(program.session()(x), y)
    assert len(seen) >= len(program.graph.nodes)


@pytest.mark.parametrize(
    ("weights", "activations", "words"),
    [
        ({}, {"mode": "dynamic", "dtype": "int8"}, ["symmetric", "int8"]),
        ({}, {"mode": "dynamic", "symmetric": True}, ["uint8", "run time"]),
        ({}, {"mode": "dynamic", "dtype": "int4"}, ["int4", "run time"]),
        ({}, {"granularity": "row"}, ["granularity", "dynamic"]),
        ({}, {"dtype": "int4"}, ["contradict", "int4"]),
        ({"granularity": {"group": 4}}, {"dtype": "int16", "symmetric": True}, ["groups", "int16"]),
    ],
)
def test_odd_plans_are_told(weights: Table, activations: Table, words: list[str]) -> None:
    graph, x = layer("conv")
    plan = Plan._checked(
        {"schema": 1, "dialect": "hwq", "default": {"weights": weights, "activations": activations}}, "test"
    )
    with pytest.raises(Error) as caught:
        hwq.quantize(graph, plan, hwq.calibrate(graph, x))
    assert all(word in str(caught.value) for word in words), caught.value
    assert caught.value.remedy


def test_a_run_time_rule_without_products_is_told() -> None:
    graph, _ = layer("conv")
    layers = [{"match": {"op": "Relu", "name": "nothing*"}, "activations": {"mode": "dynamic"}}]
    plan = Plan._checked({"schema": 1, "layers": layers}, "test")
    with pytest.raises(Error):
        hwq.quantize(graph, plan)
    cnn = tiny.graph(tiny.cnn())
    plan = Plan._checked(
        {"schema": 1, "layers": [{"match": {"op": "MaxPool"}, "activations": {"mode": "dynamic"}}]}, "test"
    )
    with pytest.raises(Error, match="no product"):
        hwq.quantize(cnn, plan, hwq.calibrate(cnn, tiny.images(8)))


def test_float16_overflow_is_told() -> None:
    graph, x = layer("gemm")
    for scale, place in ((1e6, "constant w"), (1.0, "tensor")):
        big = graph.replace(tensors=[
            tensor if tensor.name != "w" else hwq.Tensor("w", "float32", tensor.shape, np.asarray(tensor.data) * f32(scale))
            for tensor in graph.tensors.values()
        ])  # fmt: skip
        cal = hwq.calibrate(big, x * f32(1e6))
        with pytest.raises(Error, match="float16") as caught:
            hwq.quantize(big, plan_of("float16"), cal)
        assert place in str(caught.value) and "bfloat16" in caught.value.remedy


def test_one_bound_for_exact_groups() -> None:
    from hwq import scales
    from hwq.kernels import scaled
    from hwq.lowering import own

    assert scales.EXACT_GROUP == own.EXACT_GROUP == scaled.EXACT_GROUP
    assert 255 * 255 * scaled.EXACT_GROUP < 2**24


def odd(form: str) -> tuple[Graph, np.ndarray]:
    random = np.random.default_rng(3)
    convolutions: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
        "one dimension": ((6, 9), (5, 6, 3), {"pads": [1, 1]}),
        "three dimensions": ((3, 4, 5, 4), (5, 3, 2, 2, 2), {}),
        "groups, dilated": ((8, 6, 6), (6, 4, 3, 3), {"group": 2, "dilations": [2, 1]}),
        "same padding": ((5, 7, 7), (4, 5, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        "two a channel": ((4, 6, 6), (8, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    }
    if form in convolutions:
        shape, weight, attributes = convolutions[form]
        node, constants = (
            helper.make_node("Conv", ["x", "w", "b"], ["y"], "c", **attributes),
            {"b": random.normal(size=weight[0])},
        )
        made = ["N", *["d"] * len(shape)]
    else:
        shape, weight, made, constants = {
            "scaled": ((20,), (20, 6), ["N", 6], {"b": random.normal(size=(1, 6))}),
            "weights left": ((20, 5), (6, 20), ["N", 6, 5], {}),
            "stacked weights": ((3, 20), (1, 20, 6), ["N", 3, 6], {}),
            "vector": ((20,), (20,), ["N"], {}),
        }[form]
        inputs = ["w", "x"] if form == "weights left" else ["x", "w", *constants]
        extra = {"alpha": 0.5, "beta": 2.0} if form == "scaled" else {}
        node = helper.make_node("Gemm" if extra else "MatMul", inputs, ["y"], "m", **extra)
    graph = tiny.graph(
        tiny.model([node], {"x": ["N", *shape]}, {"y": made}, {"w": random.normal(size=weight), **constants})
    )
    return graph, random.normal(size=(16, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    "form",
    ["one dimension", "three dimensions", "groups, dilated", "same padding", "two a channel", "scaled", "weights left",
     "stacked weights", "vector"],
)  # fmt: skip
def test_odd_forms_have_the_values_of_the_source_form(form: str) -> None:
    graph, x = odd(form)
    cal = hwq.calibrate(graph, x)
    for name in ("static uint8", "static int4 groups", "static int16", "dynamic", "dynamic row", "dynamic row int4 groups",
                 "weight-only int8 groups", "float16"):  # fmt: skip
        q = hwq.quantize(graph, plan_of(name), cal)
        program = hwq.compile(q)
        y, plain = program(x), hwq.execute(q, x, dialect="onnx")
        step = 1.01 / 255 if name.startswith("static") else 2e-3 if name == "float16" else 1e-5
        assert np.abs(y - plain).max() <= step * 2 * np.abs(plain).max(), name
        assert np.array_equal(program.session(threads=2)(x), y), name
        assert program(x[:0]).shape == (0, *y.shape[1:]), name
        left = [node for node in program.graph.nodes if node.op in {"Conv", "Gemm", "MatMul"} and not node.body]
        assert not left or name == "float16" or "Conv" not in {node.op for node in left}, name
