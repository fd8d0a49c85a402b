"""One-op models of what onnxruntime leaves in floats: islands between DQ and Q, sums, normalizations, MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hwq.verification.onnx_builder import Builder

__all__ = [
    "FUNCTIONS", "NEARLY", "average", "batch_normalization", "float_layer_normalization", "function", "instance_normalization", "island", "layer_normalization", "line", "matmul_nbits", "matmul_nbits_bytes", "matmul_nbits_points", "own_gelu", "product", "reduction", "softmax", "tanh_gelu", "transposed",
]  # fmt: skip

# onnxruntime's own domain.
OWN = "com.microsoft"
FUNCTIONS = ("Sigmoid", "Tanh", "Erf", "Exp", "HardSigmoid", "HardSwish", "Softsign", "Elu", "Celu", "Gelu")
# Exact but for what lies behind the last whole vector: there the C library's function rounds, which is no exact one.
NEARLY = ("Log", "Sin", "Cos")


def island(op: str, **attributes: Any) -> Callable[[Builder], str]:
    """A float operator that onnxruntime leaves between DQ and Q."""

    def draw(b: Builder) -> str:
        shape = (8, 16, 16, 8) if op == "MaxPool" else (128, 128)
        real = b.dequantized(b.feed(b.stored(shape)), b.scale(), b.point())
        return b.quantized(b.add(op, real, **attributes), b.scale(), b.point())

    return draw


def function(op: str, **attributes: Any) -> Callable[[Builder], str]:
    """A float function of dequantized numbers, its floats as they are: small ends of vectors, and large arguments with ties."""

    def draw(b: Builder) -> str:
        shape = (int(b.rng.integers(50, 500)), int(b.rng.integers(1, 40)))
        return b.add(
            op, b.dequantized(b.feed(b.stored(shape)), b.scale() * (4 if b.ties else 1), b.point()), **attributes
        )

    return draw


def tanh_gelu(b: Builder) -> str:
    """GELU by its approximation."""
    return function("Gelu", approximate="tanh")(b)


def own_gelu(b: Builder) -> str:
    """onnxruntime's own GELU."""
    return function("Gelu", domain=OWN)(b)


def softmax(columns: tuple[int, int], op: str = "Softmax") -> Callable[[Builder], str]:
    """A float softmax or its logarithm; its sum runs in as many lanes as the CPU has."""

    def draw(b: Builder) -> str:
        shape = (int(b.rng.integers(50, 500)), int(b.rng.integers(*columns)))
        x = b.feed(b.stored(shape))
        # Down to exponentials of 0, which are a CPU's own too.
        scale = b.scale() * (16 if b.ties and columns[1] > 17 else 1)
        return b.add(op, b.dequantized(x, scale, b.point()), axis=-1)

    return draw


def average(b: Builder) -> str:
    """A float mean of windows or of the whole image: of 1 to 3 dimensions, channels in whole blocks or not, before opset 19 or later."""
    b.opset = int(b.rng.choice([13, 17, 21]))
    rank = int(b.rng.choice([1, 2, 2, 2, 3]))
    space = tuple(int(one) for one in b.rng.integers(5, 14, rank))
    real = b.dequantized(b.feed(b.stored((2, int(b.rng.choice([3, 8, 16, 32])), *space))), b.scale(), b.point())
    if b.rng.random() < 0.2:
        return b.add("GlobalAveragePool", real)
    kernel = [int(one) for one in b.rng.integers(1, 5, rank)]
    pads = [int(b.rng.integers(0, one)) for one in (*kernel, *kernel)]
    flags: dict[str, Any] = {"count_include_pad": int(b.rng.integers(0, 2)), "ceil_mode": int(b.rng.integers(0, 2))}
    strides = [int(one) for one in b.rng.integers(1, 4, rank)]
    return b.add("AveragePool", real, kernel_shape=kernel, strides=strides, pads=pads, **flags)


def product(b: Builder) -> str:
    """A float Gemm with factors, of few rows and columns, whose right operand is a constant or computed."""
    m, k, n = int(b.rng.integers(1, 9)), int(b.rng.integers(1, 600)), int(b.rng.integers(1, 40))
    turned = [int(b.rng.integers(0, 2)) for _ in range(2)]
    left = b.dequantized(b.feed(b.stored((k, m) if turned[0] else (m, k))), b.scale(), b.point())
    weights = b.stored((n, k) if turned[1] else (k, n))
    right = b.constant(weights.astype(np.float32)) if b.ties else b.dequantized(b.feed(weights), b.scale(), b.point())
    bias = [b.constant(b.rng.standard_normal(n).astype(np.float32))] if b.rng.integers(0, 2) else []
    alpha, beta = (float(b.rng.choice([1, 1, 0.5, 1.3])) for _ in range(2))
    return b.add("Gemm", left, right, *bias, alpha=alpha, beta=beta, transA=turned[0], transB=turned[1])


def line(b: Builder) -> str:
    """A float convolution along one dimension: long, as long as its filters, or with padding."""
    groups, length = int(b.rng.choice([1, 3])), int(b.rng.integers(1, 5))
    channels, filters = groups * int(b.rng.choice([1, 2, 20])), groups * int(b.rng.integers(1, 6))
    x = b.stored((int(b.rng.integers(1, 4)), channels, length + int(b.rng.choice([0, 0, 7, 90]))))
    w = b.constant(b.rng.standard_normal((filters, channels // groups, length)).astype(np.float32))
    pads = [int(b.rng.integers(0, 2)) for _ in range(2)] if b.ties else [0, 0]
    return b.add("Conv", b.dequantized(b.feed(x), b.scale(), b.point()), w, group=groups, pads=pads)


def transposed(b: Builder) -> str:
    """A ConvTranspose between DQ and Q in one or two dimensions, whose filters are floats or dequantized."""
    rank, groups = int(b.rng.integers(1, 3)), int(b.rng.choice([1, 1, 2]))
    kernel, strides, space = (tuple(int(size) for size in b.rng.integers(1, high, rank)) for high in (4, 4, 12))
    channels, each = groups * int(b.rng.choice([1, 3, 20, 150])), int(b.rng.integers(1, 7))
    left = b.dequantized(b.feed(b.stored((2, channels, *space))), b.scale(), b.point())
    shape = (channels, each, *kernel)
    if b.ties:
        right = b.dequantized(b.constant(b.stored(shape, "int8")), b.scale(), b.point("int8"))
    else:
        right = b.constant(b.rng.standard_normal(shape).astype(np.float32))
    bias = [b.constant(b.rng.standard_normal(each * groups).astype(np.float32))] if b.rng.integers(0, 2) else []
    spare = [int(b.rng.integers(0, step)) for step in strides]
    padding = b.rng.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER"])
    return b.add(
        "ConvTranspose", left, right, *bias, strides=strides, group=groups, output_padding=spare, auto_pad=str(padding)
    )


def reduction(op: str) -> Callable[[Builder], str]:
    """A float sum or mean over some axes of up to 4: which ones decides its order."""

    def draw(b: Builder) -> str:
        shape = tuple(int(size) for size in b.rng.integers(1, 24, int(b.rng.integers(2, 5))))
        shape = (*shape[:-1], max(shape[-1], 16384 // int(np.prod(shape[:-1]))))
        axes = np.flatnonzero(b.rng.integers(0, 2, len(shape))) - (len(shape) if b.ties else 0)
        axes = axes if 0 < axes.size < len(shape) else np.array([-1])
        real = b.dequantized(b.feed(b.stored(shape)), b.scale(), b.point())
        return b.add(op, real, b.constant(axes.astype(np.int64)), keepdims=int(b.rng.integers(0, 2)))

    return draw


def batch_normalization(b: Builder) -> str:
    channels = int(b.rng.integers(1, 64))
    real = b.dequantized(b.feed(b.stored((4, channels, 9, 8))), b.scale(), b.point())
    gain, bias, mean = (b.constant(b.rng.standard_normal(channels).astype(np.float32)) for _ in range(3))
    variance = b.constant(b.rng.uniform(0.001, 4, channels).astype(np.float32))
    return b.add("BatchNormalization", real, gain, bias, mean, variance, epsilon=1e-5)


def matmul_nbits(bits: int, rows: int) -> Callable[[Builder], str]:
    def draw(b: Builder) -> str:
        k, n, block = (
            32 * int(b.rng.integers(1, 20)),
            int(b.rng.integers(1, 64) if rows > 1 else b.rng.integers(512, 2048)),
            32,
        )
        x = b.feed(b.rng.standard_normal((rows, k)).astype(np.float32))
        packed = b.constant(b.stored((n, k // block, block * bits // 8)))
        scales = b.constant(b.rng.uniform(0.01, 0.1, n * (k // block)).astype(np.float32))
        return b.add(
            "MatMulNBits", x, packed, scales, domain=OWN, K=k, N=n, bits=bits, block_size=block, accuracy_level=0
        )

    return draw


def matmul_nbits_points(b: Builder) -> str:
    """Weights of 2, 4 or 8 bits with zero points, k no multiple of the block: float activations."""
    return _matmul_nbits(b, level=0, rows=int(b.rng.integers(2, 65)))


def matmul_nbits_bytes(b: Builder) -> str:
    """The same at accuracy level 4: activations quantized to int8 by row and block."""
    return _matmul_nbits(b, level=4, rows=int(b.rng.choice([1, 16])))


def _matmul_nbits(b: Builder, level: int, rows: int) -> str:
    k, n, block = int(b.rng.integers(40, 400)), int(b.rng.integers(16, 200)), int(b.rng.choice([16, 32, 64, 128]))
    bits, blocks = int(b.rng.choice([2, 4, 8])), -(-k // block)
    x = b.feed(b.rng.standard_normal((rows, k)).astype(np.float32))
    packed = b.constant(b.stored((n, blocks, block * bits // 8)))
    scales = b.constant(b.rng.uniform(0.01, 0.1, n * blocks).astype(np.float32))
    points = b.constant(b.stored((n * -(-blocks * bits // 8),)))
    bias = ["", b.constant(b.rng.standard_normal(n).astype(np.float32))] if b.ties else []
    sizes = {"K": k, "N": n, "bits": bits, "block_size": block}
    return b.add("MatMulNBits", x, packed, scales, points, *bias, domain=OWN, accuracy_level=level, **sizes)


def layer_normalization(b: Builder) -> str:
    real = b.dequantized(b.feed(b.stored((128, 128))), b.scale(), b.point())
    weights = [b.constant(b.rng.standard_normal(128).astype(np.float32)) for _ in range(2)]
    return b.quantized(b.add("LayerNormalization", real, *weights), b.scale(0.01, 0.03), b.point())


def float_layer_normalization(b: Builder) -> str:
    """Over the last axis or two, of any length, with and without a bias."""
    shape = (
        int(b.rng.integers(20, 200)),
        int(b.rng.integers(1, 6)),
        int(b.rng.choice([1, 3, 7, 8, 13, 20, 31, 64, 100])),
    )
    axis = int(b.rng.choice([-1, 2, 1]))
    real = b.dequantized(b.feed(b.stored(shape)), b.scale(), b.point())
    count = int(b.rng.integers(1, 3))
    weights = [b.constant(b.rng.standard_normal(shape[axis:]).astype(np.float32)) for _ in range(count)]
    return b.add("LayerNormalization", real, *weights, axis=axis)


def instance_normalization(b: Builder) -> str:
    """Of 1 to 3 dimensions."""
    space = tuple(int(size) for size in b.rng.integers(1, 12, int(b.rng.integers(1, 4))))
    channels = int(b.rng.integers(1, 40))
    real = b.dequantized(b.feed(b.stored((4, channels, *space))), b.scale(), b.point())
    gain, bias = (b.constant(b.rng.standard_normal(channels).astype(np.float32)) for _ in range(2))
    return b.add("InstanceNormalization", real, gain, bias)
