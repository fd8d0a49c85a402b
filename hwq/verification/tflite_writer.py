"""A graph of TFLite operators as a .tflite file for the runtime that verifies it, through the schema's own object API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Graph, Node
from hwq.ops.inference import infer_shapes
from hwq.verification.tflite_builder import Builder, options

__all__ = ["written"]

# The options table of an operator that has one; fields are the schema's names of its attributes.
TABLES: Mapping[str, str] = {
    "CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "FULLY_CONNECTED": "FullyConnected", "BATCH_MATMUL": "BatchMatMul",
    "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "AVERAGE_POOL_2D": "Pool2D", "MAX_POOL_2D": "Pool2D", "MEAN": "Reducer",
    "SUM": "Reducer", "REDUCE_MAX": "Reducer", "REDUCE_MIN": "Reducer", "SOFTMAX": "Softmax", "LEAKY_RELU": "LeakyRelu",
    "CONCATENATION": "Concatenation", "RESHAPE": "Reshape", "SPLIT_V": "SplitV", "GATHER": "Gather", "STRIDED_SLICE": "StridedSlice",
    "RESIZE_BILINEAR": "ResizeBilinear", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighbor", "GELU": "Gelu",
    "HARD_SWISH": "HardSwish", "TRANSPOSE": "Transpose", "PAD": "Pad", "PADV2": "PadV2", "QUANTIZE": "Quantize", "DEQUANTIZE": "Dequantize",
}  # fmt: skip
FIELDS: Mapping[str, tuple[str, ...]] = {
    "strides": ("strideH", "strideW"), "dilations": ("dilationHFactor", "dilationWFactor"), "kernel_shape": ("filterHeight", "filterWidth"),
    "activation": ("fusedActivationFunction",), "padding": ("padding",), "depth_multiplier": ("depthMultiplier",), "keep_dims": ("keepDims", "keepNumDims"),
    "asymmetric_inputs": ("asymmetricQuantizeInputs",), "transpose_first": ("adjX",), "transpose_second": ("adjY",), "beta": ("beta",),
    "alpha": ("alpha",), "axis": ("axis",), "new_shape": ("newShape",), "count": ("numSplits",), "begin_mask": ("beginMask",),
    "end_mask": ("endMask",), "align_corners": ("alignCorners",), "half_pixel_centers": ("halfPixelCenters",), "approximate": ("approximate",),
    "power_of_two_scale": ("potScaleInt16",),
}  # fmt: skip
PAIRED = frozenset({"strides", "dilations", "kernel_shape"})


def written(graph: Graph, batch: int | None = None, every: bool = False) -> tuple[bytes, list[str]]:
    """A graph of the domain ``tflite`` as a file.

    Parameters
    ----------
    graph : Graph
    batch : int, optional
        Binds the open batch.
    every : bool
        Make every operator's result an output of the model.

    Returns
    -------
    tuple of (file, names of its outputs)

    Raises
    ------
    Error
        An operator of another domain, or an open dimension.
    """
    bound = graph if batch is None else infer_shapes(graph, batch=batch)
    b, places = Builder(), dict[str, int]()
    for name, tensor in bound.tensors.items():
        pair = tensor.quantization
        scheme: dict[str, Any] = {}
        if pair is not None:
            scheme = {"scale": pair.scales(), "zero": pair.zero_points().reshape(-1), "axis": pair.axis or 0}
        places[name] = b.tensor(tensor.dtype, tensor.shape, tensor.data, name=name, **scheme)
        _ = tensor.elements  # raises where a dimension is open
    for node in bound.nodes:
        if node.domain != "tflite":
            raise Error("this operator is not TFLite's", where=f"node {node.name} ({node.kind})")
        b.operator(node.op, [places[name] if name else -1 for name in node.inputs], [places[name] for name in node.outputs], _options(node))  # fmt: skip
    made = [name for node in bound.nodes for name in node.outputs] if every else []
    outputs = [*bound.outputs, *(name for name in made if name not in bound.outputs)]
    return b.finish([places[name] for name in bound.inputs], [places[name] for name in outputs]), outputs


def _options(node: Node) -> Any:
    if node.op not in TABLES:
        return None
    made, values = options(TABLES[node.op]), dict[str, Any]()
    for name, value in node.attributes.items():
        for index, field in enumerate(FIELDS.get(name, ())):
            if hasattr(made, field):
                values[field] = value[index] if name in PAIRED else np.asarray(value) if name == "new_shape" else value
    return options(TABLES[node.op], **values)
