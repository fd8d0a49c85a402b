"""Our products beside every other exact runtime: each contender is first held against int64, then all are timed in turn.

Time is processor time of this process on one core; a contender's figure is the median of its samples, and samples whose processor
time is under 0.97 of the wall's (something else had the core) are dropped. GMAC/s: 10^9 multiply-accumulates a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq import kernels, numerics
from hwq.benchmark import peers
from hwq.kernels.operands import Array
from hwq.kernels.paths import ceiling

__all__ = ["CASES", "Case", "Row", "compare"]

SECONDS, QUICK_SECONDS, WHOLE = 1.0, 0.15, 0.97


@dataclass(frozen=True)
class Case:
    """One product: `kind` int8, int4, int4-float or float32; m x k x n; `group` of the scales of 4-bit weights, 0: none."""

    kind: str
    m: int
    k: int
    n: int
    group: int = 0

    @property
    def name(self) -> str:
        """``int8 64x1024x1024``."""
        return f"{self.kind}{f' group {self.group}' if self.group else ''} {self.m}x{self.k}x{self.n}"

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.k * self.n


SHAPES = ((64, 1024, 1024), (128, 768, 3072), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024))
CASES = (
    *(Case("int8", *shape) for shape in SHAPES),
    Case("int8", 1, 4096, 4096),
    Case("int4", 64, 1024, 1024),
    Case("int4", 512, 512, 512),
    Case("int4", 64, 1024, 1024, 32),
    Case("int4", 1, 4096, 4096),
    Case("int4-float", 1, 4096, 4096, 32),
    Case("float32", 256, 256, 256),
    Case("float32", 512, 512, 512),
)


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes
    ----------
    case, contender : str
    ours, exact : bool
    error : float
        Greatest difference from the int64 reading, in units of the output (LSB of int8).
    wrong : float
        Share of outputs that differ.
    gmacs : float
        GMAC/s, median.
    ceiling : float or None
        Share of the scheme's register-only loop, measured between the samples; ours only.
    samples : int
        Samples that counted.
    """

    case: str
    contender: str
    ours: bool
    exact: bool
    error: float
    wrong: float
    gmacs: float
    ceiling: float | None
    samples: int

    @property
    def verdict(self) -> str:
        """``EXACT``, or ``WRONG`` with the error."""
        return "EXACT" if self.exact else f"WRONG by {self.error:.3g} in {self.wrong:.1%}"


@dataclass
class _Contender:
    name: str
    run: Callable[[], Array]
    want: Array
    tolerance: float = 0.0
    scheme: str | None = None
    ours: bool = False


def compare(
    only: str | None = None, *, quick: bool = False, progress: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Measure the cases whose name contains `only`; peers that are not installed are left out.

    Parameters
    ----------
    only : str, optional
    quick : bool
        A tenth of the time and small shapes only.
    progress : callable, optional
        Told the name of each case.
    """
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(before)})
    try:
        for case in CASES:
            if (only and only not in case.name) or (quick and case.macs > 70e6):
                continue
            if progress is not None:
                progress(case.name)
            yield from _measure(case, _contenders(case), QUICK_SECONDS if quick else SECONDS)
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)


def _contenders(case: Case) -> list[_Contender]:
    rng = np.random.default_rng(case.m * case.k + case.n)
    m, k, n = case.m, case.k, case.n
    if case.kind == "float32":
        return _float_contenders(rng, m, k, n)
    if case.kind.startswith("int4"):
        return _int4_contenders(case, rng)
    a = rng.integers(-128, 128, (m, k)).astype(np.int8)
    w = rng.integers(-128, 128, (k, n)).astype(np.int8)
    w[w == -128] = -127  # TFLite forbids it; the kernels do not care
    acc = _exact(a, w)
    scales = np.full(n, 60.0 / max(float(np.abs(acc).max()), 1.0), np.float32)
    want = numerics.requantize(acc.astype(np.int32), "fp32", multipliers=scales, clamp=(-128, 127))
    finish = kernels.Epilogue(kind="requant", rounding="fp32", multipliers=scales, dtype="int8")
    packed, out = kernels.pack(w), np.empty((m, n), np.int8)
    found = [_Contender("hwq s8s8", lambda: kernels.gemm(a, packed, epilogue=finish, out=out), want, 0, "int8", True)]
    unsigned, second = a.view(np.uint8) ^ 0x80, np.empty((m, n), np.int8)
    found.append(
        _Contender(
            "hwq u8s8",
            lambda: kernels.gemm(unsigned, packed, a_zero_point=128, epilogue=finish, out=second),
            want,
            0,
            "int8",
            True,
        )
    )
    try:
        for name, run, shift in peers.onnxruntime_products(a, w, scales):
            found.append(_Contender(name, run, want.astype(np.int16) + shift))
    except ImportError:
        pass
    try:
        found.append(_Contender("LiteRT s8s8", peers.litert(a, w, scales), want))
    except ImportError:
        pass
    found.append(_Contender("numpy float32", peers.numpy_float(a, w), acc, float(np.abs(acc).max()) * k * 2.0**-24))
    return found


def _int4_contenders(case: Case, rng: np.random.Generator) -> list[_Contender]:
    m, k, n, group = case.m, case.k, case.n, case.group
    w = rng.integers(-8, 8, (k, n)).astype(np.int8)
    a = rng.integers(-128, 128, (m, k)).astype(np.int8)
    floats = rng.standard_normal((m, k)).astype(np.float32)
    found: list[_Contender] = []
    if not group:
        acc = _exact(a, w)
        scales = np.full(n, 60.0 / max(float(np.abs(acc).max()), 1.0), np.float32)
        finish = kernels.Epilogue(kind="requant", rounding="fp32", multipliers=scales, dtype="int8")
        want = numerics.requantize(acc.astype(np.int32), "fp32", multipliers=scales, clamp=(-128, 127))
        packed, out = kernels.pack(w, bits=4), np.empty((m, n), np.int8)
        found.append(
            _Contender("hwq s8s4", lambda: kernels.gemm(a, packed, epilogue=finish, out=out), want, 0, "int4", True)
        )
    else:
        steps = rng.uniform(0.5, 1.5, (k // group, n)).astype(np.float32)
        scaled, result = kernels.pack(w, bits=4, group=group, scales=steps), np.empty((m, n), np.float32)
        left = floats if case.kind == "int4-float" else a
        parts = [
            _exact_float(left[:, i : i + group], w[i : i + group]) * steps[i // group].astype(np.float64)
            for i in range(0, k, group)
        ]
        wide = np.sum(parts, axis=0)
        bound = float(np.abs(wide).max()) * k * 2.0**-24
        label = "hwq f32s4" if case.kind == "int4-float" else "hwq s8s4"
        found.append(
            _Contender(
                label, lambda: kernels.gemm(left, scaled, out=result), wide, bound, "int4" if m > 1 else None, True
            )
        )
    try:
        size = group or 32
        steps = np.ones((k // size, n), np.float32) if not group else steps
        truth = sum(
            _exact_float(floats[:, i : i + size], w[i : i + size]) * steps[i // size].astype(np.float64)
            for i in range(0, k, size)
        )
        found.append(
            _Contender(
                f"onnxruntime MatMulNBits {size}",
                peers.onnxruntime_bits(floats, w, steps, size),
                np.asarray(truth),
                float(np.abs(truth).max()) * k * 2.0**-24,
            )
        )
    except ImportError:
        pass
    if not group:
        try:
            found.append(_Contender("LiteRT s8s8", peers.litert(a, w, scales), want))
        except ImportError:
            pass
    return found


def _float_contenders(rng: np.random.Generator, m: int, k: int, n: int) -> list[_Contender]:
    a, w = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    packed, out, wide = kernels.pack_float(w), np.empty((m, n), np.float32), a.astype(np.float64) @ w.astype(np.float64)
    bound = float(np.abs(wide).max()) * k * 2.0**-24
    return [
        _Contender("hwq float32, fixed order", lambda: kernels.gemm(a, packed, out=out), wide, bound, "float32", True),
        _Contender("numpy float32", peers.numpy_float(a, w), wide, bound),
    ]


def _exact(a: Array, w: Array) -> Array:
    """int64 products by float64, which is exact below 2^53."""
    return np.asarray(a.astype(np.float64) @ w.astype(np.float64)).astype(np.int64)


def _exact_float(a: Array, w: Array) -> Array:
    return np.asarray(a.astype(np.float64) @ w.astype(np.float64))


def _measure(case: Case, contenders: list[_Contender], seconds: float) -> Iterator[Row]:
    verdicts: list[tuple[bool, float, float]] = []
    for one in contenders:
        difference = np.abs(np.asarray(one.run(), np.float64) - one.want)
        verdicts.append(
            (
                bool((difference <= one.tolerance).all()),
                float(difference.max()),
                float((difference > one.tolerance).mean()),
            )
        )
    scheme_of = _schemes()
    samples: list[list[float]] = [[] for _ in contenders]
    shares: list[list[float]] = [[] for _ in contenders]
    calls = []
    for one in contenders:
        start = time.process_time()
        one.run()
        calls.append(max(1, int(0.002 / max(time.process_time() - start, 1e-6))))
    end, rounds = time.perf_counter() + seconds * len(contenders), 0
    while rounds < 5 or (time.perf_counter() < end and rounds < 400):
        rounds += 1
        for i, one in enumerate(contenders):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[i]):
                one.run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if cpu < WHOLE * wall:
                continue
            rate = case.macs * calls[i] / cpu * 1e-9
            samples[i].append(rate)
            scheme = scheme_of.get(one.scheme or "")
            if scheme is not None:
                start = time.process_time()
                macs = ceiling(scheme, 4000)
                shares[i].append(rate / (macs / (time.process_time() - start) * 1e-9))
    for one, verdict, rates, share in zip(contenders, verdicts, samples, shares, strict=True):
        yield Row(
            case.name,
            one.name,
            one.ours,
            *verdict,
            float(np.median(rates)) if rates else float("nan"),
            float(np.median(share)) if share else None,
            len(rates),
        )


def _schemes() -> dict[str, str]:
    """The register-only loop of the path in use, for each kind of product; what has none is left out."""
    path = kernels.isa()
    vector = "avx512vnni" if path == "avx512vnni" else "avx2"
    named: dict[str, str] = {}
    if path in ("avx2", "avx512vnni"):
        named = {
            "int8": f"int8-{vector}",
            "int4": "int8-avx512vnni" if path == "avx512vnni" else "int4-avx2",
            "float32": "float32-avx2",
        }
    return named


def best_peer(rows: list[Row], case: str) -> Row | None:
    """The fastest exact contender of a case that is not ours; float32 does not count as one of integers."""
    others: list[Any] = [
        row for row in rows if row.case == case and not row.ours and row.exact and row.gmacs == row.gmacs
    ]
    integers = [row for row in others if "float32" not in row.contender or case.startswith("float32")]
    return max(integers, key=lambda row: row.gmacs, default=None)
