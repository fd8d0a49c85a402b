"""What placement asks of an operator by its name: is it a product, a sum, a clamp, a move, a function of one operand."""

from __future__ import annotations

__all__ = ["CLAMPS", "ELEMENTWISE", "MATRIX", "MOVES", "ROWS", "UNARY", "VIEWS"]

MATRIX = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})
CLAMPS = frozenset({"Relu", "Clip"})
# One operand in, another range out.
UNARY = frozenset(
    {
        "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "com.microsoft::Gelu", "Swish",
        "Softmax", "AveragePool", "GlobalAveragePool",
    }
)  # fmt: skip
# What dialects without floats between stored values compute on integers too.
ROWS = frozenset({"LayerNormalization", "ReduceMean"})
# Values change place, or some are chosen: the scale of the (first) input stays exact.
MOVES = frozenset(
    {
        "MaxPool",
        "GlobalMaxPool",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Split",
        "Gather",
        "Identity",
        "Dropout",
        "Expand",
        "Tile",
        "Pad",
        "Resize",
        "ReduceMax",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
# Moves through which an integer consumer pulls the quantization back to its source.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout"})
