"""The drift localizer: defects planted in one layer of another run are found, with the layer, the element and the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import hwq
from hwq.cli import app
from hwq.difference import localize
from hwq.errors import Error
from hwq.hypotheses import RULES, layer
from hwq.importers.onnx import read
from hwq.verification.onnx_builder import Builder

f32 = np.float32
Planted = Callable[[dict[str, np.ndarray], hwq.Graph, Any], np.ndarray]
# 0.5 * 41 / 2^n over 41 / 2^n is exactly 1/2; by the float32 reciprocal of the divisor it is not.
ODD = f32(41 / 512)


def net(
    rng: np.random.Generator,
    sx: Any = 0.1,
    zx: int = 120,
    sw: Any = None,
    sc: Any = 0.5,
    add: Any = (0.4, 7),
    mul: Any = (3.0, 31),
    small: bool = False,
):  # type: ignore[no-untyped-def]
    """x -> Q, Conv, Add, Mul, Flatten, Gemm, Softmax; float bias in the convolution, every scale given."""
    b = Builder(rng, False)
    x = (rng.integers(-2000, 2000, (8, 4, 8, 8)) * f32(sx) / 16).astype(f32)
    q0 = b.quantized(b.feed(x), f32(sx), np.uint8(zx))
    high = 16 if small else 128
    w = rng.integers(-high, high, (4, 4, 3, 3)).astype(np.int8)
    scale = np.full(4, 0.01, f32) if sw is None else np.full(4, sw, f32)
    weights = b.dequantized(b.constant(w), scale, np.zeros(4, np.int8), axis=0)
    bias = b.constant((rng.standard_normal(4) * 300 * float(sx) * float(scale[0])).astype(f32))
    conv = b.add("Conv", b.dequantized(q0, f32(sx), np.uint8(zx)), weights, bias, pads=[1, 1, 1, 1])
    d1 = b.dequantized(b.quantized(conv, f32(sc), np.uint8(131)), f32(sc), np.uint8(131))
    other = b.dequantized(b.constant(rng.integers(0, 256, (1, 4, 8, 8)).astype(np.uint8)), f32(0.3), np.uint8(100))
    d2 = b.dequantized(
        b.quantized(b.add("Add", d1, other), f32(add[0]), np.uint8(add[1])), f32(add[0]), np.uint8(add[1])
    )
    third = b.dequantized(b.constant(rng.integers(0, 256, (1, 4, 8, 8)).astype(np.uint8)), f32(0.25), np.uint8(99))
    d3 = b.dequantized(
        b.quantized(b.add("Mul", d2, third), f32(mul[0]), np.uint8(mul[1])), f32(mul[0]), np.uint8(mul[1])
    )
    flat = b.add("Flatten", d3)
    d4 = b.dequantized(b.quantized(flat, f32(mul[0]), np.uint8(mul[1])), f32(mul[0]), np.uint8(mul[1]))
    dense = b.dequantized(b.constant(rng.integers(-128, 128, (256, 32)).astype(np.int8)), f32(0.01), np.int8(0))
    d5 = b.dequantized(b.quantized(b.add("MatMul", d4, dense), f32(1.5), np.uint8(111)), f32(0.1), np.uint8(111))
    out = b.quantized(b.add("Softmax", d5, axis=-1), f32(1 / 255), np.uint8(0))
    return read(b.model(out)), b.feeds


def observed(
    graph: hwq.Graph, feeds: dict[str, np.ndarray], op: str, planted: Planted
) -> tuple[dict[str, np.ndarray], str]:
    """Every value of a run with one defective layer, and that layer's name: the layers after it compute as they should."""
    program = hwq.compile(graph)
    values, where = dict(feeds), ""
    for node in program.graph.nodes:
        alone = layer(program.graph, node)
        operands = {name: values[name] for name in alone.inputs}
        made = hwq.compile(alone, program.dialect.name)(operands)
        results = made if isinstance(made, dict) else {node.outputs[0]: made}
        if node.op == op and not where:
            where = node.name
            results[node.outputs[0]] = planted(operands, program.graph, node)
        values |= results
    assert where
    return {name: value for name, value in values.items() if name not in feeds}, where


def facts(graph: hwq.Graph, name: str) -> tuple[Any, int]:
    quantization = graph.tensors[name].quantization
    assert quantization is not None
    return f32(quantization.scales().reshape(-1)[0]), int(quantization.zero_points().reshape(-1)[0])


def u8(value: Any) -> np.ndarray:
    return np.clip(value, 0, 255).astype(np.uint8)


def away(value: Any) -> Any:
    return np.sign(value) * np.floor(np.abs(value) + 0.5)


def quantize(how: Callable[[Any, Any, int], Any]) -> Planted:
    return lambda operands, graph, node: u8(how(next(iter(operands.values())), *facts(graph, node.outputs[0])))


def accumulators(
    operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any, saturate: bool = False
) -> tuple[Any, Any, Any, int]:
    """By hand: sums of a 3x3 convolution (k over tap, channel) or a product, the scales' product, the output's scale and point."""
    x, w = next(iter(operands.values())), graph.tensors[node.inputs[1]].data
    assert w is not None
    (sx, zx), (sw, _), (sy, zy) = (
        facts(graph, node.inputs[0]),
        facts(graph, node.inputs[1]),
        facts(graph, node.outputs[0]),
    )
    if node.op == "Conv":
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zx)
        rows = np.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=-1)
        a, b = (
            rows.transpose(0, 2, 3, 4, 1).reshape(-1, 36).astype(np.int64),
            w.transpose(2, 3, 1, 0).reshape(36, 4).astype(np.int64),
        )
    else:
        a, b = x.astype(np.int64), w.astype(np.int64)
    if saturate:
        total = sum(np.clip(a[:, k : k + 2] @ b[k : k + 2], -32768, 32767) for k in range(0, a.shape[1], 2))
    else:
        total = a @ b
    total = total - zx * b.sum(axis=0)
    return total, f32(sx * sw), sy, zy


def product(how: Callable[..., Any], saturate: bool = False, float_bias: bool = False) -> Planted:
    def planted(operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any) -> np.ndarray:
        acc, scale, sy, zy = accumulators(operands, graph, node, saturate)
        bias = graph.tensors[node.inputs[2]].data if len(node.inputs) > 2 else None
        if float_bias:
            made = how(acc, scale, sy, zy)
        else:
            made = how(acc + (0 if bias is None else bias.astype(np.int64)), scale, sy, zy)
        made = u8(made)
        return np.ascontiguousarray(made.reshape(8, 8, 8, 4).transpose(0, 3, 1, 2)) if node.op == "Conv" else made

    return planted


def gemmlowp(acc: Any, scale: Any, sy: Any, zy: int) -> Any:
    """In Python's own integers: the nearest of acc * m / 2^31, then of that over 2^n, ties away from zero."""
    real = float(scale) / float(sy)
    exponent = int(np.floor(np.log2(real))) + 1
    m = round(real / 2.0**exponent * 2**31)
    high = (acc * m + 2**30) >> 31
    half = 1 << (-exponent - 1)
    return np.where(high >= 0, (high + half) >> -exponent, -((-high + half) >> -exponent)) + zy


def binary_pairs(operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any) -> Any:
    values = [operands[name] if name in operands else graph.tensors[name].data for name in node.inputs]
    (sa, za), (sb, zb), (sc, zc) = (facts(graph, name) for name in (*node.inputs, node.outputs[0]))
    return (*(np.asarray(value).astype(f32) for value in values), sa, za, sb, zb, sc, zc)


def unfused_add(operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any) -> np.ndarray:
    a, b, sa, za, sb, zb, sc, zc = binary_pairs(operands, graph, node)
    ra, rb = f32(sa / sc), f32(sb / sc)
    fixed = f32(f32(zc) - f32(f32(ra * f32(za)) + f32(rb * f32(zb))))
    return u8(np.rint(((a * ra).astype(f32) + ((b * rb).astype(f32) + fixed).astype(f32)).astype(f32)))


def late_zero_mul(operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any) -> np.ndarray:
    a, b, sa, za, sb, zb, sc, zc = binary_pairs(operands, graph, node)
    return u8(np.rint((((a - f32(za)) * (b - f32(zb))) * f32(f32(sa * sb) / sc)).astype(f32)) + zc)


def float_softmax(operands: dict[str, np.ndarray], graph: hwq.Graph, node: Any) -> np.ndarray:
    (sx, zx), (sy, zy) = facts(graph, node.inputs[0]), facts(graph, node.outputs[0])
    real = (next(iter(operands.values())).astype(np.float64) - zx) * np.float64(sx)
    powers = np.exp(real - real.max(axis=-1, keepdims=True))
    made = (powers / powers.sum(axis=-1, keepdims=True)).astype(f32)
    return u8(np.rint((made / sy).astype(f32)) + zy)


def real_bias(graph: hwq.Graph) -> Any:
    return next(graph.constant(node.inputs[2]) for node in graph.nodes if node.op == "Conv")


TIES = {"sx": 0.25, "zx": 121, "sw": 1 / 64, "sc": 1 / 64, "small": True}
# rule, operator, the network's numbers, what the other runtime computes there.
DEFECTS: dict[str, tuple[str, str, dict[str, Any], Planted]] = {
    "quantize by reciprocal": ("division or reciprocal", "QuantizeLinear", {"sx": ODD, "zx": 120}, quantize(lambda x, s, z: np.rint((x * (f32(1) / s)).astype(f32)) + z)),
    "quantize, zero point first": ("zero-point order", "QuantizeLinear", {"zx": 121}, quantize(lambda x, s, z: np.rint((x / s).astype(f32) + f32(z)))),
    "quantize, ties away": ("rounding", "QuantizeLinear", {"zx": 120}, quantize(lambda x, s, z: away((x / s).astype(f32)) + z)),
    "quantize, fused": ("fused multiply-add", "QuantizeLinear", {"zx": 121}, quantize(lambda x, s, z: np.rint((x.astype(np.float64) * np.float64(f32(1) / s) + z).astype(f32)))),
    "conv saturates": ("saturation", "Conv", {}, product(lambda acc, s, sy, z: np.rint(acc.astype(f32) * f32(s / sy)) + z, saturate=True)),
    "conv, zero point first": ("zero-point order", "Conv", TIES, product(lambda acc, s, sy, z: np.rint(acc.astype(f32) * f32(s / sy) + f32(z)))),
    "conv, fixed point": ("rounding", "Conv", TIES, product(gemmlowp)),
    "conv by reciprocal": ("division or reciprocal", "Conv", {"sx": 0.5, "sw": ODD, "sc": ODD, "small": True},
                           product(lambda acc, s, sy, z: np.rint(acc.astype(f32) * f32(s * (f32(1) / sy))) + z)),
    "matmul towards zero": ("rounding", "MatMul", {}, product(lambda acc, s, sy, z: np.trunc(acc.astype(f32) * f32(s / sy)) + z)),
    "matmul saturates": ("saturation", "MatMul", {}, product(lambda acc, s, sy, z: np.rint(acc.astype(f32) * f32(s / sy)) + z, saturate=True)),
    "add without fma": ("fused multiply-add", "Add", {"sc": f32(0.3), "add": (f32(4.2), 0)}, unfused_add),
    "mul, zero point last": ("zero-point order", "Mul", {"add": (0.5, 8), "mul": (0.25, 33)}, late_zero_mul),
    "softmax in floats": ("resolver", "Softmax", {}, float_softmax),
}  # fmt: skip


def draw(name: str) -> tuple[str, str, hwq.Graph, dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """The first network in which the defect shows at all."""
    rule, op, numbers, planted = DEFECTS[name]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        graph, feeds = net(rng, **numbers)
        dump, where = observed(graph, feeds, op, planted)
        program = hwq.compile(graph)
        right = program(feeds, intermediates=True)[1]
        made = program.graph.node(where).outputs[0]
        if (right[made] != dump[made]).any():
            return rule, where, graph, feeds, dump, made
    raise AssertionError(f"{name} never shows")


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_defect(name: str) -> None:
    rule, where, graph, feeds, dump, made = draw(name)
    found = localize(graph, feeds, dump)
    assert found.first is not None and found.first.layer == where and found.first.tensor == made
    assert found.rule == rule, [vars(one) for one in found.explanations[:4]]
    assert found.explanations[0].exact
    right = hwq.compile(graph)(feeds, intermediates=True)[1][made]
    index = tuple(np.argwhere(right != dump[made])[0])
    assert found.first.first == index and (found.first.ours, found.first.theirs) == (right[index], dump[made][index])
    assert found.first.largest == np.abs(right.astype(int) - dump[made].astype(int)).max()
    assert found.first.own == found.first.differing and all(
        not one.own for one in found.layers if one is not found.first
    )
    assert where in str(found) and rule in str(found)


def test_float_bias_is_named() -> None:
    graph, feeds = net(np.random.default_rng(3), sc=0.01, small=True)
    bias = real_bias(graph)

    def fbgemm(acc: Any, s: Any, sy: Any, z: int) -> Any:
        return np.rint((acc.astype(f32) + (bias / s).astype(f32)).astype(f32) * f32(s / sy)) + z

    dump, where = observed(graph, feeds, "Conv", product(fbgemm, float_bias=True))
    found = localize(graph, feeds, dump)
    assert found.first is not None and found.first.layer == where and found.rule == "bias quantized"


def test_equal_runs_and_foreign_dumps() -> None:
    graph, feeds = net(np.random.default_rng(0))
    right = hwq.compile(graph)(feeds, intermediates=True)[1]
    found = localize(graph, feeds, right)
    assert found.first is None and found.rule == "" and "all" in str(found)
    noisy = {name: value.copy() for name, value in right.items()}
    conv = next(node for node in hwq.compile(graph).graph.nodes if node.op == "Conv").outputs[0]
    noisy[conv] = (noisy[conv] ^ np.random.default_rng(1).integers(0, 64, noisy[conv].shape)).astype(np.uint8)
    assert localize(graph, feeds, noisy).rule == "unexplained"
    with pytest.raises(Error, match="no value of the dump"):
        localize(graph, feeds, {"nothing": np.zeros(3)})
    with pytest.raises(Error, match="has shape"):
        localize(graph, feeds, {conv: np.zeros(3)})
    with pytest.raises(Error, match="has dtype"):
        localize(graph, feeds, {conv: right[conv].astype(np.float64) + 0.5})
    assert set(RULES) >= {rule for rule, *_ in DEFECTS.values()}


def test_report_draws_differences_by_depth(tmp_path: Path) -> None:
    _, where, graph, feeds, dump, _ = draw("conv saturates")
    page, numbers, _ = hwq.report([localize(graph, feeds, dump, against="device <b>")], tmp_path / "r.html")
    text = page.read_text()
    assert "Where runs part" in text and "saturation" in text and where in text and "device <b>" not in text
    told = json.loads(numbers.read_text())
    assert where in json.dumps(told)


def test_command_and_plot(tmp_path: Path) -> None:
    rule, where, graph, feeds, dump, _ = draw("conv saturates")
    hwq.export(graph, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **feeds)
    np.savez(tmp_path / "dump.npz", **dump)
    arguments = ["compare", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npz"), "--against"]
    result = CliRunner().invoke(
        app, [*arguments, str(tmp_path / "dump.npz"), "--plot", str(tmp_path / "p.svg"), "--json"]
    )
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)["result"]
    assert found["rule"] == rule and found["first"]["layer"] == where
    assert "<svg" in (tmp_path / "p.svg").read_text()
    page = tmp_path / "page" / "drift.html"
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "dump.npz"), "-o", str(page)]).exit_code == 1
    assert "Where runs part" in page.read_text() and where in page.read_text() and "<svg" in page.read_text()
    refused = CliRunner().invoke(app, [*arguments, str(tmp_path / "dump.npz"), "-o", str(tmp_path / "d.csv")])
    assert refused.exit_code == 2 and "writes an offline page" in refused.output
    pytest.importorskip("onnxruntime")
    assert "bit for bit" in CliRunner().invoke(app, [*arguments, "ort"]).output
