"""One-op ONNX models for tests, and onnxruntime's answer to them."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Array],
    constants: dict[str, Array],
    outputs: list[str],
    opset: int = 17,
    dynamic: bool = False,
) -> onnx.ModelProto:
    """A model that takes `inputs` (their first dimension open with `dynamic`) and holds `constants`."""
    stated = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), ["N", *value.shape[1:]] if dynamic else value.shape
        )
        for name, value in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        stated,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run_onnxruntime(model: onnx.ModelProto, inputs: dict[str, Array], *, optimize: bool = False) -> list[Array]:
    """Outputs by onnxruntime's CPU provider with its exact integer kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))
