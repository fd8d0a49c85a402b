"""Dialects are verified against the installed runtimes, and a planted error is found."""

from __future__ import annotations

import dataclasses
import itertools
import types

import pytest

from hwq import masking
from hwq.dialect import DIALECTS
from hwq.errors import Error
from hwq.verification import avx2, verifiable, verify

pytest.importorskip("onnxruntime")
RUNTIMES = {"ort": "onnxruntime", "ort-unfused": "onnxruntime", "onnx": "onnx"}


def test_the_width_of_vectors_is_the_dialect_s_or_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float convolutions, means and softmax: exact where the runtime's vectors are as wide as the dialect's."""
    from hwq.verification import onnx_dialects

    own = {8: "ort", 16: "ort-avx512"}[onnx_dialects.lanes()]
    monkeypatch.setattr(onnx_dialects, "CASES", {})
    monkeypatch.setattr(onnx_dialects, "RATES", {})
    made = verify(own, values=20_000)
    assert made.passed and made.differing == 0 and made.values >= 60_000
    assert all(case.rate_only for case in verify("ort", values=1).cases) == (own != "ort")
    monkeypatch.setattr(onnx_dialects, "lanes", lambda: 8)
    with pytest.raises(Error, match="cannot be verified on this CPU"):
        verify("ort-avx512", values=1)


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_installed_runtime_agrees(dialect: str) -> None:
    made = verify(dialect, values=1)
    assert made.passed, [case for case in made.cases if case.differing or case.failure]
    assert made.runtime == RUNTIMES[dialect] and made.version
    assert made.values > 100_000 and made.differing == 0
    assert all(case.values for case in made.cases)


@pytest.mark.parametrize("dialect", ["ort", "ort-unfused"])
def test_exact_products_are_verified_without_vnni(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On such a CPU onnxruntime is asked for the same integers unsigned; elsewhere both answers are one."""
    import numpy as np

    from hwq.verification import onnx_dialects
    from hwq.verification.unsigned import OPERANDS, unsigned

    mixed = {}
    for name, draw in onnx_dialects.CASES.items():
        model, feeds = onnx_dialects.drawn(name, draw, 0)
        other, moved = unsigned(model, feeds)
        if other is not model:
            mixed[name] = draw
            assert all(value.dtype != np.int8 for value in moved.values())
    assert {name.split(" ")[0] for name in mixed} == set(OPERANDS)
    monkeypatch.setattr(avx2, "has_vnni", lambda: False)
    monkeypatch.setattr(onnx_dialects, "CASES", mixed)
    monkeypatch.setattr(onnx_dialects, "RATES", {})
    made = verify(dialect, values=1)
    assert made.passed and "uint8 x uint8" in made.command


def test_planted_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwq.verification import onnx_dialects

    wrong = dataclasses.replace(DIALECTS["ort"], formulas={**DIALECTS["ort"].formulas, "Add": "torch-add"})
    monkeypatch.setattr("hwq.dialect.DIALECTS", types.MappingProxyType({**DIALECTS, "ort": wrong}))
    monkeypatch.setattr(
        onnx_dialects, "CASES", {name: draw for name, draw in onnx_dialects.CASES.items() if "Add" in name}
    )
    made = verify("ort", values=100_000)
    assert not made.passed and made.differing > 0


def test_what_has_no_runtime_is_refused() -> None:
    assert set(RUNTIMES) <= set(verifiable())
    with pytest.raises(Error, match="cannot be verified"):
        verify("tensorrt")
    with pytest.raises(Error, match="no such dialect"):
        verify("nothing")


def test_saturating_dialect_needs_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avx2, "has_vnni", lambda: True)
    monkeypatch.setattr(avx2, "emulator", lambda: None)
    monkeypatch.setattr(masking, "maskable", lambda: False)
    with pytest.raises(Error, match="cannot be verified on this CPU"):
        verify("ort-avx2-saturating", values=1)


@pytest.mark.skipif(not masking.maskable(), reason="neither CPUID faulting nor glibc")
def test_a_masked_cpu_verifies_it() -> None:
    told: list[str] = []
    made = verify("ort-avx2-saturating", values=1, progress=lambda done, total, name: told.append(name))
    assert made.passed, [case for case in made.cases if case.differing or case.failure]
    assert made.values > 100_000 and {case.name for case in made.cases} == set(told)


@pytest.mark.parametrize("dialect", ["litert-ref", "litert-xnnpack"])
def test_installed_litert_agrees(dialect: str) -> None:
    pytest.importorskip("ai_edge_litert")
    made = verify(dialect, values=1)
    assert made.passed, [case for case in made.cases if case.differing or case.failure]
    assert made.runtime == "ai-edge-litert" and made.version and made.values > 10_000


def test_integers_are_padded_as_onnxruntime_pads_them() -> None:
    """quantize_static's QOperator form pads stored bytes with a stored constant."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    import hwq
    from hwq.importers.onnx import read

    constants = {"s": np.float32(0.05), "z": np.uint8(100), "p": np.array([0, 0, 1, 0, 0, 2, 0, 1]), "v": np.uint8(7)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Pad", ["q", "p", "v"], ["padded"]),
        helper.make_node("DequantizeLinear", ["padded", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2, None, None]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    x = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for dialect in ("ort", "ort-unfused"):
        np.testing.assert_array_equal(hwq.execute(read(data), x, dialect), session.run(None, {"x": x})[0])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("columns", [1, 2, 5])
def test_shares_beyond_the_type_leave_softmax_as_onnxruntime_s(dtype: str, columns: int) -> None:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    import hwq
    from hwq.importers.onnx import read

    kind = TensorProto.INT8 if dtype == "int8" else TensorProto.UINT8
    for scale in (1 / 512, 1 / 300, 1 / 256, 1 / 128):
        constants = {
            "s": np.float32(0.05),
            "z": np.array(3, dtype),
            "so": np.float32(scale),
            "zo": np.array(np.iinfo(dtype).min, dtype),
        }
        node = helper.make_node(
            "QLinearSoftmax", ["q", "s", "z", "so", "zo"], ["y"], domain="com.microsoft", axis=-1, opset=13
        )
        ends = [helper.make_tensor_value_info(name, kind, [40, columns]) for name in ("q", "y")]
        graph = helper.make_graph(
            [node], "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
        )
        domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        data = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
        info = np.iinfo(dtype)
        x = np.random.default_rng(0).integers(info.min, info.max + 1, (40, columns)).astype(dtype)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(hwq.execute(read(data), x, "ort"), session.run(None, {"q": x})[0])


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_axes_decide_the_order_of_sums(op: str) -> None:
    """Axes of size 1, one image alone, sums of -0: each takes another of onnxruntime's loops."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    import hwq
    from hwq.importers.onnx import read

    rng = np.random.default_rng(0)
    shapes = (((1, 7, 4), (1,)), ((10, 1, 3), (0, 2)), ((8, 1), (0,)), ((6, 6, 1), (1,)), ((9, 2, 1, 8, 8), (1, 3)), ((5, 11, 3), (0, 2)),
              ((17, 3), (0,)), ((17, 257), (0,)), ((257, 3), (0,)), ((4, 300, 5), (1,)), ((40, 27), (1,)), ((7, 9, 5), (0, 1, 2)))  # fmt: skip
    for (shape, axes), zeros in itertools.product(shapes, (False, True)):
        x = rng.standard_normal(shape).astype(np.float32) if not zeros else -np.zeros(shape, np.float32)
        # Neg makes the operand lie in onnxruntime's own memory, whose alignment is known.
        nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node(op, ["n", "axes"], ["y"], keepdims=0)]
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape)), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]  # fmt: skip
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.array(axes), "axes")])
        data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        (want,) = session.run(None, {"x": -x})
        found = hwq.execute(read(data), -x, "ort")
        np.testing.assert_array_equal(found.view(np.uint32), want.view(np.uint32), err_msg=f"{shape} {axes} {zeros}")


def test_kinds_with_a_rate_have_bounds() -> None:
    from hwq.verification import Case, Verification

    def passed(**changes: float) -> bool:
        case = dataclasses.replace(Case("SOFTMAX float32", 1000, 70, True, "", 3.0, 0.1, 4.0), **changes)
        return Verification("litert-xnnpack", "LiteRT", "2", "run", (Case("ADD int8", 10, 0), case)).passed

    assert passed() and not passed(differing=101) and not passed(distance=5.0) and not passed(rate_only=False)


def test_a_rate_beyond_its_bound_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert")
    from hwq.verification import Bound, litert_dialects, tflite_models

    draw = tflite_models.FLOATS["TANH float32"][0]
    case = litert_dialects._compare("TANH float32", draw, 1, "litert-xnnpack", Bound(0.0001, 8))
    assert case.values >= 20_000 and case.differing and 0 < case.distance < 8 and not case.passed
