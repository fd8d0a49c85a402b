"""Dialects: which rounding, fusion rule and nonlinear formula each runtime uses, op by op.

A *rounding* is one formula (R1..R7, see kernels/README.md). A *dialect* is a named table of them, verified against one
version of one runtime. Variants are names, never options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from hwq.errors import Error, NotSupportedYet

__all__ = ["DIALECTS", "Dialect", "dialects", "find"]


@dataclass(frozen=True)
class Dialect:
    """One runtime's arithmetic.

    Attributes
    ----------
    name, summary : str
    runtime : str
        Program and version whose bits it names.
    status : {"verified", "documented, unverified", "not supported yet"}
        Verified means: outputs compared with that runtime, `evidence` says how many.
    evidence : str
        What was compared, and what differed.
    roundings : mapping of op to rounding
        How an accumulator becomes an output: ``fp32 gemmlowp f64 ruy mbqm64 xnn-fixed single``; ``*`` is the rest.
    formulas : mapping of op to formula name
        Elementwise and nonlinear ops: names of formulas in `hwq.kernels`.
    fused : frozenset of op
        Ops that the runtime fuses with the Q/DQ around them; every other op is a float island.
    weight_dtypes, activation_dtypes : frozenset
        Stored types that the runtime's integer kernels accept.
    weight_minimum : int
        Lowest int8 weight (TFLite forbids -128).
    symmetric_weights, symmetric_activations : bool
        Whether zero points must be 0.
    bias_dtype : str
        ``int32`` (scale = input scale * weight scale) or ``float32``.
    groups : bool
        Whether integer kernels take weights with several scales along the sum.
    integers : bool
        Whether an operator of floats between stored values is refused.
    tied : frozenset of op
        Ops beyond those that only move values whose inputs and output must share one scale.
    fixed : mapping of op to (scale, zero point)
        int8 outputs whose quantization the runtime prescribes.
    """

    name: str
    summary: str
    runtime: str
    status: str
    evidence: str = ""
    roundings: Mapping[str, str] = field(default_factory=dict)
    formulas: Mapping[str, str] = field(default_factory=dict)
    fused: frozenset[str] = frozenset()
    weight_dtypes: frozenset[str] = frozenset({"int8"})
    activation_dtypes: frozenset[str] = frozenset({"int8", "uint8"})
    weight_minimum: int = -128
    symmetric_weights: bool = False
    symmetric_activations: bool = False
    bias_dtype: str = "int32"
    groups: bool = False
    integers: bool = False
    tied: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def floats(self) -> bool:
        """Whether every operator between a DQ and a Q runs in float32, so that stored weights may have any granularity."""
        return not self.fused and not self.roundings and not self.symmetric_weights

    @property
    def usable(self) -> bool:
        """Whether hwq can execute it today."""
        return self.status != "not supported yet"


ORT_RUNTIME = "onnxruntime 1.31.1, CPU execution provider, x86-64"
UNVERIFIED = "documented, unverified"
# TensorFlow Lite's int8 specification: ops with one scale in and out, and outputs with a prescribed scale.
LITERT_TIED = frozenset({"AveragePool", "Concat"})
LITERT_FIXED = MappingProxyType({"Softmax": (1 / 256, -128), "Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0)})

_ORT = Dialect(
    name="ort",
    summary="onnxruntime at its default optimisation level with its exact kernels (session.x64quantprecision=1)",
    runtime=ORT_RUNTIME,
    status="verified",
    evidence="76,599,179 values of 76 kinds of one-op models, a million each, random and on ties, float products, 1-D and transposed convolutions, sums, means, BatchNormalization and functions, float and integer LSTM on one "
    "thread among them: 0 differ; by the width of the CPU's vectors, as AVX2 computes them (verified under qemu; ort-avx512 is the other): float 2-D Conv (17 % within 10 ulp of AVX-512's), Softmax of more than 16 elements, "
    "means of channels in blocks; not reproduced: LogSoftmax, whose logarithm is the C library's (2 % within 2 ulp); float Log, Sin and Cos 4 of 1.8 million within 1, behind a last whole vector; a float Conv whose sum with another image the optimizer fuses (ulps); MatMulNBits of 4 bits and a single row 90 % within 15 ulp, at accuracy level 4 80 % within 5, by the CPU too (bounds that --verify checks); "
    "1,541,945 values on a CPU without VNNI: 0 differ (there the option leaves "
    "uint8 x int8 products saturated where weights are an input, in QLinearMatMul with a zero point a column, ConvInteger of int8: compared as uint8 x uint8)",
    roundings=MappingProxyType({"*": "fp32"}),
    formulas=MappingProxyType(
        {
            "Add": "ort-add",
            "Mul": "ort-mul",
            "Softmax": "ort-softmax",
            "float-product": "mlas",
            "float-average": "mlas",
            "float-reduce": "eigen",
            "float-function": "mlas",
            "float-lanes": "8",
            "float-blocks": "8",
        }
    ),
    fused=frozenset(
        {
            "Conv",
            "MatMul",
            "Gemm",
            "Add",
            "Mul",
            "Sigmoid",
            "LeakyRelu",
            "Softmax",
            "AveragePool",
            "GlobalAveragePool",
            "Concat",
        }
    ),
    weight_dtypes=frozenset({"int8", "uint8"}),
)

FBGEMM_EVIDENCE = (
    "2,575,472 values of 25 kinds of eager modules over all 8 bits, dynamic LSTM with the functions of an AVX2 CPU among them: 0 differ "
    "(tanh: 0 of all 2^32 arguments); with AVX-512 the LSTM is torch-fbgemm-avx512's; without VNNI fbgemm's products saturate beyond "
    "7 bits, which is torch-fbgemm-avx2-saturating; qnnpack is not reproduced"
)
PT2E_EVIDENCE = (
    "940,032 values of 9 kinds of decomposed operators, ranges taken at run time among them: 0 differ; the order of float products is torch's own (a quantized linear: "
    "1 of 106,496, by a step); NaN has no defined stored value there"
)

_FBGEMM = Dialect(name="torch-fbgemm", summary="PyTorch eager quantized modules, fbgemm engine on x86-64 with VNNI (exact products)",
                  runtime="torch 2.13.0, CPU, x86-64", status="verified", evidence=FBGEMM_EVIDENCE, roundings=MappingProxyType({"*": "fp32"}),
                  formulas=MappingProxyType({"QuantizeLinear": "torch-tensor", "Add": "torch-add", "Mul": "torch-mul",
                                             "DynamicQuantizeMatMul": "fbgemm", "DynamicQuantizeLSTM": "aten-avx2",
                                             "depthwise": "fbgemm"}),
                  fused=frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul"}), activation_dtypes=frozenset({"uint8"}), bias_dtype="float32")  # fmt: skip

_HWQ = replace(
    _ORT,
    name="hwq",
    summary="hwq's own: as ort, and every mode of a plan runs on its kernels: 2 to 4 bits, groups of scales, int16 and run-time activations, exact tables of functions of a byte, interpolated ones of 16 bits",
    runtime="hwq itself",
    status="exact by definition",
    evidence="sums, means and softmax equal to ort where onnxruntime has an integer kernel; else integer sums are exact (64 bits and rounding R2 for "
    "int16 activations), float sums in the order of kernels/README.md; tables of bytes round the function's exact value, of 16 bits are within one step of it",
    formulas=MappingProxyType(
        {**_ORT.formulas, "weight-only": "groups", "table": "exact", "float-function": "exact", "float-blocks": "0"}
    ),
    weight_dtypes=_ORT.weight_dtypes | {"int4", "uint4", "int2", "uint2"},
    activation_dtypes=_ORT.activation_dtypes | {"int16", "uint16"},
    groups=True,
)

_TABLE = (
    _ORT,
    _HWQ,
    replace(
        _HWQ,
        name="hwq-integer",
        summary="as hwq, and nothing between stored values is a float: LayerNormalization, softmax, means, sums and products of 8 and 16 bits run on integers; what cannot is refused by name",
        evidence="integers alone, so exact on every CPU; ratios of scales are fixed point (kernels/README.md); products with constant weights requantize as hwq does",
        integers=True,
    ),
    replace(
        _ORT,
        name="ort-avx512",
        summary="ort where onnxruntime computes floats in vectors of 16: float convolutions, means of blocked channels and softmax differ by ulps",
        runtime="onnxruntime 1.31.1, CPU execution provider, x86-64 with AVX-512",
        evidence="9,825,813 values of every kind of one-op model that ort is verified on, float Conv, Softmax and means among them: 0 differ; rates as ort",
        formulas=MappingProxyType({**_ORT.formulas, "float-lanes": "16", "float-blocks": "16"}),
    ),
    Dialect(
        name="ort-unfused",
        summary="onnxruntime with optimisation off: every Q and DQ runs, every op between them is float32",
        runtime=ORT_RUNTIME,
        status="verified",
        evidence="77,599,933 values of 77 kinds of one-op models, a million each, float Conv among them: 0 differ; rates as ort; 1,541,945 on a CPU without VNNI, uint8 x int8 products as uint8 x uint8: 0 differ",
        formulas=MappingProxyType({**_ORT.formulas, "float-blocks": "0"}),
        fused=frozenset(),
        weight_dtypes=frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4"}),
        activation_dtypes=frozenset({"int8", "uint8", "int16", "uint16"}),
    ),
    Dialect(
        name="onnx",
        summary="the ONNX standard, as its reference evaluator reads it: nothing is fused",
        runtime="onnx 1.23.2, reference evaluator",
        status="verified",
        evidence="724,913 values of quantization operators: 0 differ; the 45 quantization node tests of onnx.backend.test: all pass; floats in our own order",
        formulas=MappingProxyType({"requantize": "reference-evaluator"}),
        weight_dtypes=frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4"}),
        activation_dtypes=frozenset({"int8", "uint8", "int16", "uint16"}),
    ),
    replace(
        _ORT,
        name="ort-avx2-saturating",
        summary="onnxruntime's default u8 x s8 kernels on an x86-64 CPU without VNNI: neighboring products saturate in int16",
        runtime="onnxruntime 1.31.1, CPU execution provider, x86-64 with AVX2 and without VNNI (VNNI and AVX-512 hidden: python -m hwq.masking)",
        evidence="8,132,872 values of 76 kinds of one-op models (73 kinds, 3,036,283 values under qemu), rates as ort, both products of DynamicQuantizeLSTM among them: 0 differ; every test image of ResNet-8 and DS-CNN, 41,940 outputs: 0 differ",
        formulas=MappingProxyType({**_ORT.formulas, "u8s8-product": "saturating-pairs"}),
    ),
    Dialect(name="litert-ref", summary="LiteRT's reference kernels (BUILTIN_REF)", runtime="ai-edge-litert 2.3.0", status="verified",
            evidence="23,672,364 values of 243 kinds of random one-op models, and earlier 2,084,638 of 97 kinds with AVX-512 masked: 0 differ; every layer of nine integer models on 100 random inputs each, "
            "48,355,200 values: 0 differ; hybrid kernels on halves of their own range: 301,807, 0 differ; float MEAN and SUM exact; int8 SUM as the runtime does it, which reads and "
            "writes int8 as uint8 there; its int16 SUM is uninitialised memory and refused; 40 kinds of functions at 60,000 values each, 64 of movements at 20,000: 0 differ; "
            "10,000 random networks of 2 to 12 operators (8 and 16 bits, hybrid, float), the values that the runtime keeps: 0 differ but in two (of one the runtime itself gives other values when it keeps all tensors); by ulps: float SOFTMAX, LOGISTIC, LOG and EXP 1 % at most, SIN, COS and LOG_SOFTMAX 2 %, TANH 20 % within 4, GELU 60 % within 8, LSTM of floats with time first and several rows 20 % within 64 (bounds that --verify checks); "
            "LSTM and SVDF of int8, hybrid and float 211,000 over sequences, calls and resets: 0 differ",
            roundings=MappingProxyType({"FULLY_CONNECTED": "f64", "*": "gemmlowp"}),
            weight_minimum=-127, symmetric_weights=True, tied=LITERT_TIED, fixed=LITERT_FIXED),
    Dialect(name="litert-ref-fixedfc", summary="older TensorFlow Lite: as litert-ref, FULLY_CONNECTED in fixed point",
            runtime="TensorFlow Lite before FULLY_CONNECTED took float64 scales", status=UNVERIFIED,
            roundings=MappingProxyType({"*": "gemmlowp"}),
            weight_minimum=-127, symmetric_weights=True, tied=LITERT_TIED, fixed=LITERT_FIXED),
    Dialect(name="litert-xnnpack", summary="LiteRT's default interpreter on x86-64: XNNPACK, and optimised kernels for what it refuses",
            runtime="ai-edge-litert 2.3.0", status="verified except float functions and some float TRANSPOSE_CONV",
            evidence="23,265,135 values of 243 kinds of random one-op models, and earlier 2,084,638 of 97 kinds with AVX-512 masked: 0 differ; every layer of eight integer models on 100 random inputs each, "
            "48,355,000 values: 0 differ; 40 kinds of functions at 60,000 values each, 64 of movements at 20,000, 10,000 random networks of 2 to 12 operators: 0 differ but in two (as litert-ref); broadcast ADD of any ratio of scales 1,089,037: 0 differ; float MEAN, SUM and HARD_SWISH exact on a CPU with AVX2 (with AVX-512 30 % of MEAN and SUM over the last axis "
            "by ulps: XNNPACK takes 16 at a time); by ulps, with bounds that --verify checks: float TRANSPOSE_CONV with SAME padding and strides beyond the filter 5 % within 4, float LOGISTIC 60 % within 4, "
            "SOFTMAX and TANH 70 % within 8, EXP 70 % within 16, GELU 60 % within 8, SQRT, LOG, LOG_SOFTMAX, SIN and COS 80 % within 4, LSTM of floats with time first and several rows 20 % within 64; float DEPTHWISE_CONV_2D of 1, 2, 5 to 8 and 10 to 24 taps: signs of zeros, and NaN beside infinities (XNNPACK's kernels multiply neighbors by zero weights up to 3, 4, 9 and 25 taps); LSTM and SVDF of int8, hybrid and float as litert-ref",
            roundings=MappingProxyType({"*": "fp32"}),
            weight_minimum=-127, symmetric_weights=True, tied=LITERT_TIED, fixed=LITERT_FIXED),
    _FBGEMM,
    replace(_FBGEMM, name="torch-fbgemm-avx512", summary="torch-fbgemm where ATen and MKL run their AVX-512 functions: LSTM gates alone differ",
            runtime="torch 2.13.0, CPU, Intel x86-64 with AVX512-VNNI", evidence="1,327,232 values of 13 kinds of eager modules over all 8 bits: 0 differ (tanh: 0 of all 2^32 arguments)",
            formulas=MappingProxyType({**_FBGEMM.formulas, "DynamicQuantizeLSTM": "aten-avx512"})),
    replace(_FBGEMM, name="torch-fbgemm-avx512-amd", summary="torch-fbgemm where ATen runs AVX-512 and MKL, as on AMD's CPUs, AVX2: LSTM gates alone differ",
            runtime="torch 2.13.0, CPU, AMD x86-64 with AVX512-VNNI (Zen 4 and later)", evidence="2,575,472 values of 25 kinds of eager modules over all 8 bits: 0 differ",
            formulas=MappingProxyType({**_FBGEMM.formulas, "DynamicQuantizeLSTM": "aten-avx512-mkl-avx2"})),
    replace(_FBGEMM, name="torch-fbgemm-avx2-saturating",
            summary="torch-fbgemm on an x86-64 CPU without VNNI: neighboring uint8 x int8 products saturate in int16",
            runtime="torch 2.13.0, CPU, x86-64 with AVX2 and without VNNI (VNNI and AVX-512 hidden: python -m hwq.masking)", evidence="2,575,472 values of 25 kinds of eager modules over all 8 bits, dynamic LSTM among them: 0 differ",
            formulas=MappingProxyType({**_FBGEMM.formulas, "u8s8-product": "saturating-pairs"})),
    Dialect(name="torch-pt2e", summary="PyTorch PT2E reference decomposition: Q and DQ around float32 operators",
            runtime="torch 2.13.0, CPU", status="verified", evidence=PT2E_EVIDENCE,
            formulas=MappingProxyType({"QuantizeLinear": "torch-fake"}), bias_dtype="float32"),
    Dialect(name="tensorrt", summary="TensorRT's documented INT8 rules: no zero points, rint(clip(x / s)); products in float32 between Q and DQ",
            runtime="TensorRT 10 (documentation)", status=UNVERIFIED,
            evidence="NVIDIA's documentation only: no runtime to compare with, and it promises no bits of its own",
            symmetric_weights=True, symmetric_activations=True, activation_dtypes=frozenset({"int8"})),
)  # fmt: skip

DIALECTS: Mapping[str, Dialect] = MappingProxyType({dialect.name: dialect for dialect in _TABLE})


def dialects() -> Mapping[str, Dialect]:
    """Every dialect by name, those not supported yet included."""
    return DIALECTS


def find(name: str, *, usable: bool = False) -> Dialect:
    """The dialect called `name`.

    Raises
    ------
    Error
        There is none, or with `usable` hwq cannot execute it yet.
    """
    if name not in DIALECTS:
        raise Error("there is no such dialect", where=f"dialect {name}", remedy=f"one of: {', '.join(DIALECTS)}")
    if usable and not DIALECTS[name].usable:
        raise NotSupportedYet(
            f"dialect {name}",
            why="its arithmetic is documented but not built",
            remedy=f"one of: {', '.join(key for key, dialect in DIALECTS.items() if dialect.usable)}",
        )
    return DIALECTS[name]
