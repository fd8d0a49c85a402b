"""Exact integer and fixed-order float kernels on NumPy arrays; the arithmetic is told in kernels/README.md.

Every function checks its operands, releases the GIL, gives the same bits on every path and thread count, and neither
reads nor changes the caller's floating-point state.

Examples
--------
>>> import numpy as np
>>> from hwq import kernels
>>> weights = kernels.pack(np.array([[1, -2], [3, 4]], np.int8))
>>> kernels.gemm(np.array([[10, 20]], np.uint8), weights)
array([[70, 60]], dtype=int32)
"""

from hwq.kernels.chains import Chain, conv_chain, pack_chain, scale_sums
from hwq.kernels.elementwise import (
    add,
    binary,
    dequantize,
    fake_quantize,
    lut,
    mul,
    pack_int4,
    quantize,
    sub,
    unpack_int4,
)
from hwq.kernels.epilogue import ROUNDINGS, Binary, Epilogue, quantize_multiplier, requantize
from hwq.kernels.half import narrow, widen
from hwq.kernels.histograms import histogram, ranges
from hwq.kernels.int16 import gemm_int16, lut_int16
from hwq.kernels.packing import Packed, pack, pack_conv, pack_float
from hwq.kernels.paths import available_isas, isa, matrix, use_isa
from hwq.kernels.planes import Planes, gemm_planes, pack_planes
from hwq.kernels.products import gemm, gemm_saturating, gemm_sequential, matmul, matmul_f32, matmul_f64, sum_f32
from hwq.kernels.rows import dynamic_quantize, layer_norm, softmax
from hwq.kernels.state import default_state
from hwq.kernels.windows import average_pool, conv2d, max_pool

__all__ = [
    "ROUNDINGS",
    "Binary",
    "Chain",
    "Epilogue",
    "Packed",
    "Planes",
    "add",
    "available_isas",
    "average_pool",
    "binary",
    "conv2d",
    "conv_chain",
    "default_state",
    "dequantize",
    "dynamic_quantize",
    "fake_quantize",
    "gemm",
    "gemm_int16",
    "gemm_planes",
    "gemm_saturating",
    "gemm_sequential",
    "histogram",
    "isa",
    "layer_norm",
    "lut",
    "lut_int16",
    "matmul",
    "matmul_f32",
    "matmul_f64",
    "matrix",
    "max_pool",
    "mul",
    "narrow",
    "pack",
    "pack_chain",
    "pack_conv",
    "pack_float",
    "pack_int4",
    "pack_planes",
    "quantize",
    "quantize_multiplier",
    "ranges",
    "requantize",
    "scale_sums",
    "softmax",
    "sub",
    "sum_f32",
    "unpack_int4",
    "use_isa",
    "widen",
]
