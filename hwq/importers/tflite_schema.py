"""Numbers of the TFLite schema (tensorflow/lite/schema/schema.fbs, version 3): types, operators and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = [
    "ACTIVATIONS",
    "CONTROL_FLOW",
    "CUSTOM",
    "DETAILS",
    "ENUMS",
    "IDENTIFIER",
    "OPERATORS",
    "OPTION_FIELDS",
    "PADDINGS",
    "TENSOR_TYPES",
    "Field",
    "Operator",
]

IDENTIFIER = b"TFL3"  # at byte 4 of the file
CUSTOM = 32
# Operators that run other subgraphs.
CONTROL_FLOW: Mapping[int, str] = MappingProxyType(
    {
        31: "CALL",
        118: "IF",
        119: "WHILE",
        200: "STABLEHLO_WHILE",
        206: "STABLEHLO_COMPOSITE",
        209: "STABLEHLO_CASE",
    }
)

# TensorType: the name of `hwq.graph.BITS`, or None for what no tensor of numbers is.
TENSOR_TYPES: tuple[str | None, ...] = (
    "float32", "float16", "int32", "uint8", "int64", None, "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", None, None, "uint32", "uint16", "int4", "bfloat16", "int2", "uint4", "float8e4m3fn",
    "float8e5m2",
)  # fmt: skip
UNNUMERIC: Mapping[int, str] = MappingProxyType({5: "STRING", 13: "RESOURCE", 14: "VARIANT"})
PADDINGS = ("SAME", "VALID")
ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
DETAILS = ("NONE", "CustomQuantization", "BlockwiseQuantization", "MultiAxisQuantization")
ENUMS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "padding": PADDINGS, "activation": ACTIVATIONS, "weights_format": ("DEFAULT", "SHUFFLED4x16INT8"),
    "mirror_mode": ("REFLECT", "SYMMETRIC"), "kernel_type": ("FULL", "BASIC"),
})  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One option: its attribute's name, its index in the options table, its kind (a scalar, an enum or ``ints``)."""

    name: str
    index: int
    kind: str
    default: bool | int | float = 0


@dataclass(frozen=True)
class Operator:
    """One builtin operator: its name and the member of the BuiltinOptions union that belongs to it (0: none)."""

    name: str
    options: int = 0


_WINDOW = (Field("padding", 0, "padding"), Field("stride_w", 1, "int32"), Field("stride_h", 2, "int32"))
_DILATION = (Field("dilation_w", 5, "int32", 1), Field("dilation_h", 6, "int32", 1))
_ACTIVATION = (Field("activation", 0, "activation"),)
_CELL = (
    Field("activation", 0, "activation"),
    Field("cell_clip", 1, "float32", 0.0),
    Field("projection_clip", 2, "float32", 0.0),
)

# BuiltinOptions: the options that mean something to the operator's value. A union member that is absent here has none.
OPTION_FIELDS: Mapping[int, tuple[Field, ...]] = MappingProxyType(
    {
        1: (
            *_WINDOW,
            Field("activation", 3, "activation"),
            Field("dilation_w", 4, "int32", 1),
            Field("dilation_h", 5, "int32", 1),
            Field("bias_type", 6, "type"),
        ),
        2: (*_WINDOW, Field("depth_multiplier", 3, "int32"), Field("activation", 4, "activation"), *_DILATION),
        5: (
            *_WINDOW,
            Field("filter_w", 3, "int32"),
            Field("filter_h", 4, "int32"),
            Field("activation", 5, "activation"),
        ),
        6: (
            Field("rank", 0, "int32"),
            Field("activation", 1, "activation"),
            Field("asymmetric_inputs", 2, "bool", False),
        ),
        8: (
            *_ACTIVATION,
            Field("weights_format", 1, "weights_format"),
            Field("keep_dims", 2, "bool", False),
            Field("asymmetric_inputs", 3, "bool", False),
            Field("bias_type", 4, "type"),
        ),
        9: (Field("beta", 0, "float32", 0.0),),
        10: (Field("axis", 0, "int32"), Field("activation", 1, "activation")),
        11: (*_ACTIVATION, Field("power_of_two_scale", 1, "bool", True)),
        15: (Field("align_corners", 2, "bool", False), Field("half_pixel_centers", 3, "bool", False)),
        17: (Field("new_shape", 0, "ints"),),
        19: (Field("block_size", 0, "int32"),),
        21: _ACTIVATION,
        23: (Field("axis", 0, "int32"), Field("batch_dims", 1, "int32")),
        27: (Field("keep_dims", 0, "bool", False),),
        28: (*_ACTIVATION, Field("power_of_two_scale", 1, "bool", True)),
        29: _ACTIVATION,
        30: (Field("axes", 0, "ints"),),
        32: (
            Field("begin_mask", 0, "int32"),
            Field("end_mask", 1, "int32"),
            Field("ellipsis_mask", 2, "int32"),
            Field("new_axis_mask", 3, "int32"),
            Field("shrink_axis_mask", 4, "int32"),
            Field("offset", 5, "bool", False),
        ),
        35: (Field("count", 0, "int32"),),
        37: (Field("from", 0, "type"), Field("to", 1, "type")),
        40: (Field("to", 0, "type"),),
        49: (*_WINDOW, Field("activation", 3, "activation"), Field("bias_type", 4, "type")),
        55: (Field("to", 0, "type"),),
        57: (Field("to", 0, "type"),),
        61: (Field("axis", 0, "int32"),),
        59: (Field("count", 0, "int32"), Field("axis", 1, "int32")),
        64: (Field("count", 0, "int32"), Field("axis", 1, "int32")),
        71: (
            *_CELL,
            Field("time_major", 3, "bool", False),
            Field("asymmetric_inputs", 4, "bool", False),
            Field("diagonal_recurrence", 5, "bool", False),
        ),
        74: (Field("align_corners", 0, "bool", False), Field("half_pixel_centers", 1, "bool", False)),
        75: (Field("alpha", 0, "float32", 0.0),),
        77: (Field("mode", 0, "mirror_mode"),),
        79: (Field("count", 0, "int32"),),
        87: (Field("axis", 0, "int32"), Field("batch", 1, "int32")),
        94: (Field("block_size", 0, "int32"),),
        101: (
            Field("transpose_first", 0, "bool", False),
            Field("transpose_second", 1, "bool", False),
            Field("asymmetric_inputs", 2, "bool", False),
        ),
        102: (Field("exclusive", 0, "bool", False), Field("reverse", 1, "bool", False)),
        103: (Field("subgraph", 0, "int32"),),
        116: (Field("approximate", 0, "bool", False),),
    }
)

# BuiltinOperator: those that `hwq.ops` knows, by code.
OPERATORS: Mapping[int, Operator] = MappingProxyType({
    0: Operator("ADD", 11), 1: Operator("AVERAGE_POOL_2D", 5), 2: Operator("CONCATENATION", 10),
    3: Operator("CONV_2D", 1), 4: Operator("DEPTHWISE_CONV_2D", 2), 5: Operator("DEPTH_TO_SPACE", 94),
    6: Operator("DEQUANTIZE", 38), 7: Operator("EMBEDDING_LOOKUP"), 8: Operator("FLOOR"), 9: Operator("FULLY_CONNECTED", 8), 11: Operator("L2_NORMALIZATION", 12), 14: Operator("LOGISTIC"),
    17: Operator("MAX_POOL_2D", 5), 18: Operator("MUL", 21), 19: Operator("RELU"), 20: Operator("RELU_N1_TO_1"),
    21: Operator("RELU6"), 22: Operator("RESHAPE", 17), 23: Operator("RESIZE_BILINEAR", 15),
    25: Operator("SOFTMAX", 9), 26: Operator("SPACE_TO_DEPTH", 19), 27: Operator("SVDF", 6), 28: Operator("TANH"),
    34: Operator("PAD", 22), 36: Operator("GATHER", 23), 37: Operator("BATCH_TO_SPACE_ND", 24),
    38: Operator("SPACE_TO_BATCH_ND", 25), 39: Operator("TRANSPOSE", 26), 40: Operator("MEAN", 27),
    41: Operator("SUB", 28), 42: Operator("DIV", 29), 43: Operator("SQUEEZE", 30),
    44: Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", 71), 45: Operator("STRIDED_SLICE", 32), 47: Operator("EXP", 33), 48: Operator("TOPK_V2", 34),
    49: Operator("SPLIT", 35), 50: Operator("LOG_SOFTMAX", 36), 53: Operator("CAST", 37), 54: Operator("PRELU"),
    55: Operator("MAXIMUM", 39), 56: Operator("ARG_MAX", 40), 57: Operator("MINIMUM", 39), 58: Operator("LESS", 41),
    59: Operator("NEG", 42), 60: Operator("PADV2", 43), 61: Operator("GREATER", 44),
    62: Operator("GREATER_EQUAL", 45), 63: Operator("LESS_EQUAL", 46), 64: Operator("SELECT", 47),
    65: Operator("SLICE", 48), 66: Operator("SIN"), 67: Operator("TRANSPOSE_CONV", 49), 69: Operator("TILE", 51),
    70: Operator("EXPAND_DIMS", 52), 71: Operator("EQUAL", 53), 72: Operator("NOT_EQUAL", 54), 73: Operator("LOG"),
    74: Operator("SUM", 27), 75: Operator("SQRT"), 76: Operator("RSQRT"), 77: Operator("SHAPE", 55),
    78: Operator("POW", 56), 79: Operator("ARG_MIN", 57), 81: Operator("REDUCE_PROD", 27),
    82: Operator("REDUCE_MAX", 27), 83: Operator("PACK", 59), 84: Operator("LOGICAL_OR", 60), 85: Operator("ONE_HOT", 61),
    86: Operator("LOGICAL_AND", 62), 87: Operator("LOGICAL_NOT", 63), 88: Operator("UNPACK", 64),
    89: Operator("REDUCE_MIN", 27), 90: Operator("FLOOR_DIV", 65), 91: Operator("REDUCE_ANY", 27), 92: Operator("SQUARE", 66), 93: Operator("ZEROS_LIKE", 67), 94: Operator("FILL", 68), 95: Operator("FLOOR_MOD", 72), 96: Operator("RANGE", 73),
    97: Operator("RESIZE_NEAREST_NEIGHBOR", 74), 98: Operator("LEAKY_RELU", 75),
    99: Operator("SQUARED_DIFFERENCE", 76), 100: Operator("MIRROR_PAD", 77), 101: Operator("ABS", 78),
    102: Operator("SPLIT_V", 79), 104: Operator("CEIL"), 105: Operator("REVERSE_V2", 81), 106: Operator("ADD_N", 82), 107: Operator("GATHER_ND", 83), 108: Operator("COS", 84), 110: Operator("RANK", 86), 111: Operator("ELU"), 112: Operator("REVERSE_SEQUENCE", 87),
    114: Operator("QUANTIZE", 89), 116: Operator("ROUND"), 117: Operator("HARD_SWISH", 91),
    122: Operator("SCATTER_ND", 97), 123: Operator("SELECT_V2", 98), 124: Operator("DENSIFY", 99), 126: Operator("BATCH_MATMUL", 101), 128: Operator("CUMSUM", 102), 129: Operator("CALL_ONCE", 103),
    130: Operator("BROADCAST_TO", 104), 140: Operator("REDUCE_ALL", 27), 142: Operator("VAR_HANDLE", 111), 143: Operator("READ_VARIABLE", 112),
    144: Operator("ASSIGN_VARIABLE", 113),
    150: Operator("GELU", 116), 151: Operator("DYNAMIC_UPDATE_SLICE", 117), 152: Operator("RELU_0_TO_1"), 158: Operator("SIGN", 123),
})  # fmt: skip
