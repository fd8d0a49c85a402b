"""Matrix products of the kernel benchmark: the cases, and for each of them ours and every other runtime's contender."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

from hwq import kernels, numerics
from hwq.benchmark import litert, onnxruntime
from hwq.benchmark.rounds import Contender
from hwq.kernels.operands import Array

__all__ = ["CASES", "Product"]

# Activations that MatMulNBits rounds to int8 with one scale, at accuracy level 4.
BLOCK = 32


@dataclass(frozen=True)
class Product:
    """m x k x n of `kind` int8, int4, int4-float or float32; `group` of the scales of 4-bit weights, 0: one a column.

    With `threads`, ours alone: on one thread and on so many, by the wall's time.
    """

    kind: str
    m: int
    k: int
    n: int
    group: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """``int8 64x1024x1024``."""
        group = f" group {self.group}" if self.group else ""
        shared = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.kind}{group} {self.m}x{self.k}x{self.n}{shared}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.k * self.n

    def contenders(self) -> list[Contender]:
        """Ours first, then every runtime that is installed."""
        rng = np.random.default_rng(self.m * self.k + self.n)
        if self.kind == "float32":
            return _floats(self, rng)
        if self.kind == "int4-float":
            return _weight_only(self, rng)
        if self.kind == "int4":
            return _four_bits(self, rng)
        return _shared(self, rng) if self.threads > 1 else _eight_bits(self, rng)


CASES = (
    Product("int8", 64, 1024, 1024),
    Product("int8", 128, 768, 3072),
    Product("int8", 256, 256, 256),
    Product("int8", 512, 512, 512),
    Product("int8", 1024, 1024, 1024),
    Product("int8", 1, 4096, 4096),
    Product("int8", 1024, 1024, 1024, threads=2),
    Product("int4", 64, 1024, 1024),
    Product("int4", 512, 512, 512),
    Product("int4", 64, 1024, 1024, 32),
    Product("int4", 1, 4096, 4096),
    Product("int4-float", 64, 1024, 1024, 32),
    Product("int4-float", 1, 4096, 4096, 32),
    Product("float32", 256, 256, 256),
    Product("float32", 512, 512, 512),
)


def exact(a: Array, w: Array) -> Array:
    """Products of integers by float64, which is exact below 2^53."""
    return np.asarray(a.astype(np.float64) @ w.astype(np.float64)).astype(np.int64)


def requantized(acc: Array, columns: int) -> tuple[kernels.Epilogue, Array, Array]:
    """The epilogue that takes the accumulators to int8, their int8 reading by NumPy, and the scales."""
    scales = np.full(columns, 60.0 / max(float(np.abs(acc).max()), 1.0), np.float32)
    want = numerics.requantize(acc.astype(np.int32), "fp32", multipliers=scales, clamp=(-128, 127))
    return kernels.Epilogue(kind="requant", rounding="fp32", multipliers=scales, dtype="int8"), want, scales


def _int8(case: Product, rng: np.random.Generator) -> tuple[Array, Array]:
    a = rng.integers(-128, 128, (case.m, case.k)).astype(np.int8)
    return a, rng.integers(-127, 128, (case.k, case.n)).astype(np.int8)  # TFLite forbids -128; the kernels do not care


def _eight_bits(case: Product, rng: np.random.Generator) -> list[Contender]:
    a, w = _int8(case, rng)
    acc = exact(a, w)
    finish, want, scales = requantized(acc, case.n)
    packed, unsigned = kernels.pack(w), a.view(np.uint8) ^ 0x80
    out, second = np.empty((case.m, case.n), np.int8), np.empty((case.m, case.n), np.int8)
    found = [
        Contender("hwq s8s8", lambda: kernels.gemm(a, packed, epilogue=finish, out=out), want, 0, "int8", True),
        Contender(
            "hwq u8s8",
            lambda: kernels.gemm(unsigned, packed, a_zero_point=128, epilogue=finish, out=second),
            want,
            0,
            "int8",
            True,
        ),
    ]
    with contextlib.suppress(ImportError):
        for name, run, shift in onnxruntime.products(a, w, scales):
            found.append(Contender(name, run, want.astype(np.int16) + shift))
    with contextlib.suppress(ImportError):
        found.append(Contender("LiteRT s8s8", litert.product(a, w, scales), want))
    found.append(_numpy(a.astype(np.float32), w.astype(np.float32), acc))
    return found


def _shared(case: Product, rng: np.random.Generator) -> list[Contender]:
    a, w = _int8(case, rng)
    finish, want, _ = requantized(exact(a, w), case.n)
    packed = kernels.pack(w)

    def on(threads: int) -> Contender:
        out = np.empty((case.m, case.n), np.int8)
        label = f"hwq s8s8, {threads} thread{'s' if threads > 1 else ''}"
        return Contender(
            label,
            lambda: kernels.gemm(a, packed, epilogue=finish, out=out, threads=threads),
            want,
            ours=True,
            threads=threads,
        )

    return [on(1), on(case.threads)]


def _four_bits(case: Product, rng: np.random.Generator) -> list[Contender]:
    """int8 activations. The others take floats and round them; theirs are such that nothing is lost by it."""
    m, k, n, group = case.m, case.k, case.n, case.group
    w = rng.integers(-8, 8, (k, n)).astype(np.int8)
    a = rng.integers(-127, 128, (m, k)).astype(np.int8)
    found: list[Contender] = []
    size = group or BLOCK
    steps = rng.uniform(0.5, 1.5, (k // size, n)).astype(np.float32) if group else np.ones((k // size, n), np.float32)
    if group:
        scaled, result, wide = kernels.pack(w, bits=4, group=group, scales=steps), np.empty((m, n), np.float32), None
        wide = _by_groups(a, w, steps, size)
        run = lambda: kernels.gemm(a, scaled, out=result)  # noqa: E731
        found.append(Contender("hwq s8s4", run, wide, _tolerance(wide, k), "int4", True))
    else:
        finish, want, _ = requantized(exact(a, w), n)
        packed, out = kernels.pack(w, bits=4), np.empty((m, n), np.int8)
        found.append(
            Contender("hwq s8s4", lambda: kernels.gemm(a, packed, epilogue=finish, out=out), want, 0, "int4", True)
        )
    blocks = a.copy()
    blocks[:, ::BLOCK] = 127  # the greatest of every block: its scale is 1
    wide = _by_groups(blocks, w, steps, size)
    with contextlib.suppress(ImportError):
        call = onnxruntime.weight_only_product(blocks.astype(np.float32), w, steps, size, 4)
        found.append(Contender(f"onnxruntime MatMulNBits int8, group {size}", call, wide, _tolerance(wide, k)))
    if not group:
        rows = a.copy()
        rows[:, 0], rows[:, 1] = -128, 127  # 255 steps of 1
        wide = exact(rows, w)
        with contextlib.suppress(ImportError):
            call = litert.weight_only_product(rows.astype(np.float32), w, np.ones(n, np.float32))
            found.append(Contender("LiteRT f32 x int4", call, wide, _tolerance(wide, k)))
            found.append(Contender("LiteRT s8s8", litert.product(a, w, finish.multipliers), want))
    return found


def _weight_only(case: Product, rng: np.random.Generator) -> list[Contender]:
    m, k, n, group = case.m, case.k, case.n, case.group
    w = rng.integers(-8, 8, (k, n)).astype(np.int8)
    a = rng.standard_normal((m, k)).astype(np.float32)
    steps = rng.uniform(0.5, 1.5, (k // group, n)).astype(np.float32)
    packed, out = kernels.pack(w, bits=4, group=group, scales=steps), np.empty((m, n), np.float32)
    wide = _by_groups(a, w, steps, group)
    found = [
        Contender("hwq f32s4", lambda: kernels.gemm(a, packed, out=out), wide, _tolerance(wide, k), "float32", True)
    ]
    with contextlib.suppress(ImportError):
        for label, level in (("float32", 1), ("int8", 4)):
            call = onnxruntime.weight_only_product(a, w, steps, group, level)
            found.append(Contender(f"onnxruntime MatMulNBits {label}, group {group}", call, wide, _tolerance(wide, k)))
    return found


def _floats(case: Product, rng: np.random.Generator) -> list[Contender]:
    a = rng.standard_normal((case.m, case.k)).astype(np.float32)
    w = rng.standard_normal((case.k, case.n)).astype(np.float32)
    packed, out, wide = kernels.pack_float(w), np.empty((case.m, case.n), np.float32), _wide(a, w)
    bound = _tolerance(wide, case.k)
    return [
        Contender("hwq float32, fixed order", lambda: kernels.gemm(a, packed, out=out), wide, bound, "float32", True),
        _numpy(a, w, wide),
    ]


def _numpy(a: Array, w: Array, want: Array) -> Contender:
    """NumPy's float32 product on the same values: the speed that integers must beat."""
    out = np.empty((len(a), w.shape[1]), np.float32)
    return Contender("numpy float32", lambda: np.matmul(a, w, out=out), want, _tolerance(want, len(w)))


def _wide(a: Array, w: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ w.astype(np.float64))


def _by_groups(a: Array, w: Array, steps: Array, size: int) -> Array:
    parts = (
        _wide(a[:, i : i + size], w[i : i + size]) * steps[i // size].astype(np.float64) for i in range(0, len(w), size)
    )
    return np.asarray(sum(parts))


def _tolerance(want: Array, k: int) -> float:
    """K rounding errors of float32 at the greatest result."""
    return float(np.abs(want).max()) * k * 2.0**-24
