"""Quantization: hand-worked scales, the structure that onnxruntime fuses, real models, cost-only graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

import hwq
from hwq.errors import NotSupportedYet
from hwq.graph import Graph
from hwq.observers import activation_range, affine, weight_affine
from hwq.ops.evaluate import evaluate
from hwq.plan import Activations, Plan, Weights
from hwq.statistics import observe


@pytest.fixture(scope="module")
def cal(cnn: Graph) -> hwq.Calibration:
    return hwq.calibrate(cnn, tiny.images(32))


def plan_of(**table) -> Plan:
    return Plan._checked({"schema": 1, **table}, "test")


# Scales by hand


@pytest.mark.parametrize(
    "low, high, dtype, symmetric, scale, zero",
    [
        (-1.0, 3.0, "uint8", False, 4 / 255, 64),  # 255 / 4 = 63.75
        (-1.0, 3.0, "int8", False, 4 / 255, -64),  # -128 + 63.75 = -64.25
        (0.0, 6.0, "uint8", False, 6 / 255, 0),
        (0.5, 6.0, "uint8", False, 6 / 255, 0),  # widened to zero
        (-6.0, -2.0, "uint8", False, 6 / 255, 255),
        (-1.0, 3.0, "int8", True, 3 / 127, 0),
        (-1.0, 3.0, "uint8", True, 3 / 127, 128),
        (0.0, 3.0, "uint8", True, 3 / 255, 0),
        (-4.0, 3.0, "int16", True, 4 / 32767, 0),
        (-1.0, 2.0, "int4", True, 2 / 7, 0),
        (0.0, 0.0, "uint8", False, 1.0, 0),
        (0.0, 0.0, "int8", False, 1.0, -128),
        (-1e-45, 1e-45, "uint8", False, 2.0**-126, 0),
    ],
)
def test_affine_by_hand(low: float, high: float, dtype: str, symmetric: bool, scale: float, zero: int) -> None:
    made = affine(low, high, dtype, symmetric)
    assert made == (np.float32(scale), zero) and isinstance(made[0], np.float32)


# The tool's symmetric uint8 is [0, 254] around 127, ours [0, 255] around 128, so that pair is not compared.
@pytest.mark.parametrize("dtype, symmetric", [("uint8", False), ("int8", False), ("int8", True)])
def test_affine_equals_onnxruntime_s_tool(dtype: str, symmetric: bool) -> None:
    utilities = pytest.importorskip(
        "onnxruntime.quantization.quant_utils", reason="onnxruntime's quantization tool is the oracle here"
    )
    random = np.random.default_rng(0)
    qmin, qmax = (0, 255) if dtype == "uint8" else (-127, 127) if symmetric else (-128, 127)
    for low, high in np.sort(random.normal(size=(50, 2)) * 5, axis=1):
        zero, scale = utilities.compute_scale_zp(
            np.float64(low), np.float64(high), np.int64(qmin), np.int64(qmax), symmetric
        )
        made = affine(float(low), float(high), dtype, symmetric)
        assert made[0] == np.float32(scale) and made[1] == int(zero)


def test_weights_by_hand() -> None:
    groups = np.array([[-1.0, 0.5], [0.0, 0.0], [2.54, -1.0]], np.float32)
    scale, zero = weight_affine(groups, Weights())
    assert np.array_equal(scale, np.float32([1 / 127, 0.0, np.float64(np.float32(2.54)) / 127])) and not zero.any()
    scale, zero = weight_affine(groups, Weights(dtype="uint8", symmetric=False))
    assert np.array_equal(scale, np.float32([1.5 / 255, 0.0, (np.float64(np.float32(2.54)) + 1) / 255]))
    assert list(zero) == [170, 0, 72]  # 255 / 1.5 = 170; 255 / 3.54 = 72.03
    scale, _ = weight_affine(groups, Weights(dtype="int4"))
    assert scale[0] == np.float32(1 / 7)


def test_searching_the_scale_lowers_the_error() -> None:
    random = np.random.default_rng(2)
    groups = np.concatenate([random.normal(size=(6, 200)), 9 * np.ones((6, 1))], axis=1).astype(np.float32)

    def error(scale: np.ndarray) -> np.ndarray:
        step = scale[:, None].astype(np.float64)
        return np.square(np.clip(np.rint(groups / step), -8, 7) * step - groups).sum(axis=1)

    plain, _ = weight_affine(groups, Weights(dtype="int4"))
    searched, _ = weight_affine(groups, Weights(dtype="int4", scale="mse"))
    best = np.min([error(plain * np.float32(share)) for share in np.linspace(0.3, 1.0, 71)], axis=0)
    assert (error(searched) < error(plain)).all() and np.allclose(error(searched), best, rtol=1e-3)


def test_observers_by_their_definitions() -> None:
    values = np.append(np.random.default_rng(1).normal(size=1_000_000), 12.0).astype(np.float32)
    seen = observe(values)
    assert activation_range(seen, Activations()) == (values.min(), 12.0)
    low, high = activation_range(seen, Activations(observer="percentile", percentile=99.9))
    assert (
        abs(low - np.quantile(values, 0.001)) < 2 * seen.width
        and abs(high - np.quantile(values, 0.999)) < 2 * seen.width
    )
    # Nothing of a ReLU's output is cut at zero.
    assert activation_range(observe(np.abs(values)), Activations(observer="percentile"))[0] == 0.0

    def error(ends: tuple[float, float]) -> float:
        scale, zero = affine(*ends, "uint8", False)
        step = float(scale)
        return float(np.square((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step - values).sum())

    searched = activation_range(seen, Activations(observer="mse"))
    assert error(searched) < 0.7 * error((float(values.min()), 12.0))
    brute = min(error((low, high)) for low in np.linspace(-5, -2, 13) for high in np.linspace(2, 12, 21))
    assert error(searched) < 1.05 * brute


def test_scales_and_integers_by_numpy(cnn: Graph, cal: hwq.Calibration) -> None:
    q = hwq.quantize(cnn, Plan.uniform(), cal)
    value = evaluate(cnn, {"x": tiny.images(32)}, intermediates=True)["r1"]
    sx = np.float32(float(value.max()) / 255)
    assert q.constant("r1_scale") == sx and q.constant("r1_zero_point") == 0
    w, b = cnn.constant("w2"), cnn.constant("b2")
    sw = (np.abs(w).max(axis=(1, 2, 3)).astype(np.float64) / 127).astype(np.float32)
    assert np.array_equal(q.constant("w2_scale"), sw)
    assert np.array_equal(q.constant("w2_quantized"), np.rint(w / sw[:, None, None, None]).astype(np.int8))
    assert np.array_equal(q.constant("b2_scale"), sx * sw) and (sx * sw).dtype == np.float32
    assert np.array_equal(q.constant("b2_quantized"), np.rint(b.astype(np.float64) / (sx * sw)).astype(np.int32))
    # Softmax has the range of its function.
    assert q.constant("y_scale") == np.float32(1 / 255) and q.constant("y_zero_point") == 0


def test_the_input_quantized_at_the_evaluator_equals_onnxruntime(
    cnn: Graph, cal: hwq.Calibration, tmp_path: Path
) -> None:
    """The whole QDQ graph in float, ours against onnxruntime without fusion: equal but for float accumulation order."""
    q, x = hwq.quantize(cnn, Plan.uniform(), cal), tiny.images(64, seed=5)
    hwq.export(q, tmp_path / "q.onnx")
    theirs = tiny.session(tmp_path / "q.onnx", fused=False).run(None, {"x": x})[0]
    assert np.mean(np.abs(evaluate(q, {"x": x})["y"] - theirs) > 1e-6) < 0.01


def test_zero_and_nearly_dead_channels() -> None:
    proto = tiny.cnn()
    graph = tiny.graph(proto)
    w, b = graph.constant("w1").copy(), graph.constant("b1").copy()
    w[0], b[0] = 0.0, 0.7  # only a bias
    w[1] = 0.0
    b[1] = 0.0
    w[2], b[2] = 1e-30, 5.0  # bias / (sx * amax / 127) would pass 2^31
    graph = with_constants(graph, w1=w, b1=b)
    x = tiny.images(16)
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, x))
    scale, bias = q.constant("w1_scale"), q.constant("b1_quantized")
    assert (scale > 0).all() and np.abs(bias.astype(np.int64)).max() <= 2**30 and bias[1] == 0
    assert np.allclose(bias * q.constant("b1_scale"), b, rtol=1e-3, atol=1e-3)


def test_a_layer_of_zeros_keeps_its_bias() -> None:
    graph = tiny.graph(tiny.cnn())
    graph = with_constants(graph, w1=np.zeros((8, 3, 3, 3), np.float32))
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, tiny.images(4)))
    assert np.allclose(q.constant("b1_quantized") * q.constant("b1_scale"), graph.constant("b1"), atol=1e-5)


def with_constants(graph: Graph, **values: np.ndarray) -> Graph:
    import dataclasses

    return graph.replace(
        tensors=[dataclasses.replace(t, data=values.get(t.name, t.data)) for t in graph.tensors.values()]
    )


def test_constant_and_denormal_activations_are_guarded() -> None:
    graph = tiny.graph(tiny.cnn())
    for x in (
        np.zeros((2, 3, 8, 8), np.float32),
        np.full((2, 3, 8, 8), 1e-42, np.float32),
        np.full((2, 3, 8, 8), 3e4, np.float32),
    ):
        q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, x))
        scales = [t.quantization.scales() for t in q.tensors.values() if t.quantization]
        assert all((s >= 2.0**-126).all() and np.isfinite(s).all() for s in scales)
        assert np.isfinite(evaluate(q, {"x": x})["y"]).all()


def test_group_scales_by_numpy() -> None:
    graph = tiny.graph(tiny.mlp())
    q = hwq.quantize(graph, Plan.uniform(weights="int4", granularity=8, activations="float32"))
    w = graph.constant("w1")  # (16, 24), summed over axis 0
    scale = (np.abs(w).reshape(2, 8, 24).max(axis=1).astype(np.float64) / 7).astype(np.float32)
    assert np.array_equal(q.constant("w1_scale"), scale)
    stored = np.clip(np.rint(w / np.repeat(scale, 8, axis=0)), -8, 7)
    assert np.array_equal(q.constant("w1_quantized"), stored)
    assert dict(q.producers["w1_dequantized"].attributes) == {"axis": 0, "block_size": 8}


@pytest.mark.parametrize(
    ("dtype", "stored", "largest"), [("int3", "int4", 3), ("int5", "int8", 15), ("int6", "int8", 31)]
)
def test_widths_that_no_file_has_are_stored_in_the_next(
    dtype: str, stored: str, largest: int, cnn: Graph, cal: hwq.Calibration
) -> None:
    q = hwq.quantize(cnn, hwq.Plan.uniform(dtype, "uint8", dialect="hwq"), cal)
    weights = [one for one in q.tensors.values() if one.data is not None and one.dtype == stored and len(one.shape) > 1]
    assert weights and {one.quantization.dtype for one in weights} == {stored}
    assert max(int(np.abs(one.data).max()) for one in weights) == largest
    assert all(-largest - 1 <= one.data.min() for one in weights)


@pytest.mark.parametrize(
    "table, key",
    [
        ({"default": {"activations": {"granularity": "row"}}}, "activations.granularity"),
    ],
)
def test_what_is_not_built_is_named_and_never_replaced(table: dict, key: str, cnn: Graph, cal: hwq.Calibration) -> None:
    with pytest.raises(NotSupportedYet, match="not supported yet") as caught:
        hwq.quantize(cnn, plan_of(**table), cal)
    assert key in str(caught.value)


# Real models


def real(kind: str) -> tuple[Graph, np.ndarray, np.ndarray, np.ndarray, float]:
    """Graph, calibration inputs, test inputs, labels, floor of agreement: the protocols of the models' README."""
    if kind == "resnet8":
        train = np.load(tiny.shared("models", "ic", "cifar10_train3000.npz"))["x"][::6]
        test = np.load(tiny.shared("models", "ic", "cifar10_test1017.npz"))
        turned = [np.ascontiguousarray(part.transpose(0, 3, 1, 2), np.float32) for part in (train, test["x"])]
        return hwq.load(tiny.shared("models", "ic", "resnet8_f32.onnx")), *turned, test["y"].reshape(-1), 0.97
    data = np.load(tiny.shared("models", "kws", "kws_mfcc_1000.npz"))
    x = ((data["x_int8"].astype(np.float32) - 83) * np.float32(0.5847029)).reshape(-1, 1, 49, 10)
    order = np.random.default_rng(0).permutation(1000)
    graph = hwq.load(tiny.shared("models", "kws", "ds_cnn_f32.onnx"))
    return graph, x[order[:100]], x[order[100:]], data["y"].reshape(-1)[order[100:]], 0.985


@pytest.mark.parametrize("kind", ["resnet8", "ds_cnn"])
def test_static_int8_of_the_real_models(kind: str, tmp_path: Path) -> None:
    graph, calibration, x, y, floor = real(kind)
    q = hwq.quantize(graph, Plan.uniform(), hwq.calibrate(graph, calibration))
    hwq.export(q, tmp_path / "q.onnx")
    hwq.export(graph, tmp_path / "float.onnx")
    plain, theirs = (
        tiny.session(tmp_path / file).run(None, {graph.inputs[0]: x})[0] for file in ("float.onnx", "q.onnx")
    )
    ours = hwq.execute(q, x)
    assert np.array_equal(ours, theirs)
    plain, made = plain.argmax(axis=1), ours.argmax(axis=1)
    agreement, before, after = np.mean(plain == made), np.mean(plain == y), np.mean(made == y)
    print(f"{kind}: agreement {agreement:.4f}, accuracy float {before:.4f}, int8 {after:.4f}")
    assert agreement >= floor and abs(after - before) <= 0.01
