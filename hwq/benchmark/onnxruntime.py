"""onnxruntime as a contender of the kernel benchmark: one operator a session, buffers bound once, weights prepared beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hwq.kernels.operands import Array

__all__ = ["convolutions", "products", "weight_only_product"]

Run = Callable[[], Array]


def _forms(w: Array) -> Iterator[tuple[str, Array, int, str]]:
    """(name, weights, their zero point, session.x64quantprecision) of each way to run int8 weights; the last saturates on AVX2."""
    yield "onnxruntime u8u8", w.view(np.uint8) ^ 0x80, 128, "0"
    yield "onnxruntime u8s8 x64quantprecision", w, 0, "1"
    yield "onnxruntime u8s8", w, 0, "0"


def _unsigned(x: Array) -> Array:
    """int8 activations as uint8 with zero point 128, which is what its fast kernels want."""
    return x.view(np.uint8) ^ 0x80


def products(a: Array, w: Array, scales: Array) -> Iterator[tuple[str, Run, int]]:
    """(name, call, what its output has beyond int8's) of QLinearMatMul."""
    for label, weights, zero, precision in _forms(w):
        constants = {
            "sa": np.float32(1), "za": np.uint8(128), "w": weights, "sw": scales,
            "zw": np.full(w.shape[1], zero, weights.dtype), "sy": np.float32(1), "zy": np.uint8(128),
        }  # fmt: skip
        names = ["a", "sa", "za", "w", "sw", "zw", "sy", "zy"]
        out = np.empty((len(a), w.shape[1]), np.uint8)
        yield label, _session("QLinearMatMul", names, {"a": _unsigned(a)}, constants, out, precision=precision), 128


def convolutions(
    x: Array, w: Array, scales: Array, strides: Sequence[int], pads: Sequence[int], groups: int
) -> Iterator[tuple[str, Run, int]]:
    """(name, call, what its output has beyond int8's) of its channel-last QLinearConv, the one that it runs inside a network.

    x is (N, H, W, C), w (O, kH, kW, C / groups).
    """
    sides = [
        (x.shape[1 + d] + pads[d] + pads[2 + d] - w.shape[1 + d]) // strides[d] + 1 for d in (0, 1)
    ]  # fmt: skip
    for label, weights, zero, precision in _forms(np.ascontiguousarray(w.transpose(0, 3, 1, 2))):
        constants = {
            "sa": np.float32(1), "za": np.uint8(128), "w": weights, "sw": scales, "zw": weights.dtype.type(zero),
            "sy": np.float32(1), "zy": np.uint8(128),
        }  # fmt: skip
        names = ["x", "sa", "za", "w", "sw", "zw", "sy", "zy"]
        out = np.empty((len(x), *sides, len(w)), np.uint8)
        given = {"strides": list(strides), "pads": list(pads), "group": groups, "channels_last": 1}
        yield (
            label,
            _session(
                "QLinearConv", names, {"x": _unsigned(x)}, constants, out, "com.microsoft", precision=precision, **given
            ),
            128,
        )


def weight_only_product(a: Array, w: Array, scales: Array, group: int, level: int) -> Run:
    """MatMulNBits: float activations, 4-bit weights with one scale a group (`scales`: groups x N).

    At accuracy level 4 it rounds activations to int8, block by block; at level 1 it computes in float32.
    """
    k, n = w.shape
    stored = (w.T + 8).astype(np.uint8).reshape(n, k // group, group)
    constants = {
        "w": np.ascontiguousarray(stored[..., 0::2] | stored[..., 1::2] << 4),
        "s": np.ascontiguousarray(scales.T).reshape(-1),
    }
    out = np.empty((len(a), n), np.float32)
    given = {"K": k, "N": n, "bits": 4, "block_size": group, "accuracy_level": level}
    return _session("MatMulNBits", ["a", "w", "s"], {"a": a}, constants, out, "com.microsoft", **given)


def _session(
    op: str,
    names: Sequence[str],
    feeds: Mapping[str, Array],
    constants: Mapping[str, Any],
    out: Array,
    domain: str = "",
    precision: str = "0",
    **attributes: Any,
) -> Run:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain, **attributes)],
        "one",
        [helper.make_tensor_value_info(name, kind(array.dtype), array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info("y", kind(out.dtype), out.shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", precision)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    return call
