"""One-op models of what onnxruntime leaves in floats: islands between DQ and Q, sums, normalizations, MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hwq.verification.onnx_models import Builder

__all__ = ["batch_normalization", "island", "layer_normalization", "matmul_nbits", "reduction"]

# onnxruntime's own domain.
OWN = "com.microsoft"


def island(op: str, **attributes: Any) -> Callable[[Builder], str]:
    """A float operator that onnxruntime leaves between DQ and Q."""

    def draw(b: Builder) -> str:
        shape = (8, 16, 16, 8) if op == "MaxPool" else (128, 128)
        real = b.dequantized(b.feed(b.stored(shape)), b.scale(), b.point())
        return b.quantized(b.add(op, real, **attributes), b.scale(), b.point())

    return draw


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


def layer_normalization(b: Builder) -> str:
    real = b.dequantized(b.feed(b.stored((128, 128))), b.scale(), b.point())
    weights = [b.constant(b.rng.standard_normal(128).astype(np.float32)) for _ in range(2)]
    return b.quantized(b.add("LayerNormalization", real, *weights), b.scale(0.01, 0.03), b.point())
