"""The same integer products with both operands unsigned, which onnxruntime multiplies exactly on every x86-64 CPU.

Without VNNI its uint8 x int8 products saturate in int16. session.x64quantprecision=1 rewrites some of them, not weights that
are an input, not QLinearMatMul with a zero point a column, not ConvInteger of int8 images, and nothing with optimisation off.
``q - z = (q + 128) - (z + 128)``: an int8 operand and its zero point move by 128 and no sum changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hwq.graph import Array

__all__ = ["unsigned"]

# Operands and their zero points, by place among a node's inputs.
OPERANDS: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "QLinearMatMul": ((0, 2), (3, 5)),
        "QLinearConv": ((0, 2), (3, 5)),
        "QGemm": ((0, 2), (3, 5)),
        "MatMulInteger": ((0, 2), (1, 3)),
        "ConvInteger": ((0, 2), (1, 3)),
        "MatMulIntegerToFloat": ((0, 4), (1, 5)),
        "DynamicQuantizeMatMul": ((1, 3),),
        "DynamicQuantizeLSTM": ((1, 9), (2, 11)),
    }
)


def unsigned(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node and its inputs with int8 operands stored as uint8, where one operand is unsigned already.

    Parameters
    ----------
    model : onnx.ModelProto
    feeds : mapping of str to array

    Returns
    -------
    tuple of (model, feeds)
        As given where no product mixes the types.
    """
    (node, *others), arrays = model.graph.node, dict(feeds)
    places = OPERANDS.get(node.op_type, ())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values = {**constants, **arrays}
    signed = [(data, point) for data, point in places if values[node.input[data]].dtype == np.int8]
    # An LSTM multiplies both weights by what it quantizes itself, which is uint8.
    if others or not signed or (len(signed) == 2 and node.op_type != "DynamicQuantizeLSTM"):
        return model, arrays
    made = onnx.ModelProto.FromString(model.SerializeToString())
    given = list(made.graph.node[0].input)
    for data, point in signed:
        given += [""] * max(0, point + 1 - len(given))
        if not given[point]:
            given[point] = "point of zero"
            made.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), given[point]))
        for name in (given[data], given[point]):
            if name in arrays:
                arrays[name] = _moved(arrays[name])
        for tensor in made.graph.initializer:
            if tensor.name in constants and tensor.name in (given[data], given[point]):
                tensor.CopyFrom(numpy_helper.from_array(_moved(constants[tensor.name]), tensor.name))
        for value in made.graph.input:
            if value.name in (given[data], given[point]):
                value.type.tensor_type.elem_type = TensorProto.UINT8
    del made.graph.node[0].input[:]
    made.graph.node[0].input.extend(given)
    return made, arrays


def _moved(values: Array) -> Array:
    return (values.astype(np.int16) + 128).astype(np.uint8)
