"""Contenders timed in turn: each is first held against int64, then all of them run once a round, in an order that changes.

Time is processor time of this process on one core; a contender's figure is the median of its samples, and samples whose processor
time is under 0.97 of the wall's (something else had the core) are dropped, unless fewer than five are left. Where several threads share the work, time is the wall's.
GMAC/s: 10^9 multiply-accumulates a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwq import kernels
from hwq.kernels.operands import Array
from hwq.kernels.paths import ceiling

__all__ = ["Contender", "Row", "best_peer", "measure", "pinned"]

# A sample whose processor time is below this share of the wall's was disturbed.
WHOLE, ENOUGH = 0.97, 5
# Processor seconds of one sample: long beside the clock's steps, short beside a scheduler's time slice.
SAMPLE_SECONDS = 0.002


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
class Contender:
    """A call that gives the work's result, and what it must be.

    Attributes
    ----------
    name : str
    run : callable
    want : array
        The int64 reading.
    tolerance : float
        Greatest difference that still counts as exact: 0 for integers, K rounding errors for floats.
    scheme : str, optional
        int8, int4 or float32: which register-only loop it is measured beside.
    economy : float
        MACs that one product of the loop stands for: 144 / 36 where Winograd's F(4x4, 3x3) runs.
    ours : bool
    threads : int
        Above 1 the wall's time counts.
    """

    name: str
    run: Callable[[], Array]
    want: Array
    tolerance: float = 0.0
    scheme: str | None = None
    ours: bool = False
    economy: float = 1.0
    threads: int = 1


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Keep the process on one of its cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(case: str, macs: int, contenders: Sequence[Contender], seconds: float) -> Iterator[Row]:
    """Check and time contenders on one piece of work.

    Parameters
    ----------
    case : str
        What the rows call the work.
    macs : int
        Its multiply-accumulates.
    contenders : sequence of Contender
    seconds : float
        For each of them.
    """
    verdicts = [_verdict(one) for one in contenders]
    shared = any(one.threads > 1 for one in contenders)
    with contextlib.nullcontext() if shared else pinned():
        rates, shares = _rates(macs, contenders, seconds, shared)
    for one, verdict, rate, share in zip(contenders, verdicts, rates, shares, strict=True):
        ceilings = float(np.median(share)) if share else None
        yield Row(case, one.name, one.ours, *verdict, float(np.median(rate)), ceilings, len(rate))


def _verdict(one: Contender) -> tuple[bool, float, float]:
    difference = np.abs(np.asarray(one.run(), np.float64) - one.want)
    wrong = difference > one.tolerance
    return not bool(wrong.any()), float(difference.max(initial=0)), float(wrong.mean())


def _rates(
    macs: int, contenders: Sequence[Contender], seconds: float, shared: bool
) -> tuple[list[list[float]], list[list[float]]]:
    schemes = {} if shared else {kind: (loop, _loop_rounds(loop)) for kind, loop in _schemes().items()}
    rates: list[list[tuple[float, bool]]] = [[] for _ in contenders]
    shares: list[list[float]] = [[] for _ in contenders]
    calls = [max(1, int(SAMPLE_SECONDS / max(_warm(one), 1e-6))) for one in contenders]
    end, rounds, order = time.perf_counter() + seconds * len(contenders), 0, np.random.default_rng(0)
    while rounds < ENOUGH or (time.perf_counter() < end and rounds < 400):
        rounds += 1
        for i in order.permutation(len(contenders)):  # what ran before leaves its weights in the caches
            one = contenders[i]
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[i]):
                one.run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            rate = macs * calls[i] / (wall if shared else cpu) * 1e-9
            rates[i].append((rate, shared or cpu >= WHOLE * wall))
            scheme = schemes.get(one.scheme or "")
            if scheme is not None:
                start = time.process_time()
                products = ceiling(*scheme)
                shares[i].append(rate / (one.economy * products / (time.process_time() - start) * 1e-9))
    return [_kept(rate) for rate in rates], shares


def _warm(one: Contender) -> float:
    """Processor seconds of a call after others: a cold one would make samples so short that the first calls after another contender decide."""
    spent = []
    for _ in range(3):
        start = time.process_time()
        one.run()
        spent.append(time.process_time() - start)
    return min(spent)


def _loop_rounds(scheme: str) -> int:
    """Rounds of a register-only loop that take as long as a contender's sample."""
    rounds = 1000
    while True:
        start = time.process_time()
        ceiling(scheme, rounds)
        spent = time.process_time() - start
        if spent >= SAMPLE_SECONDS / 2 or rounds > 1 << 40:
            return max(1, int(rounds * SAMPLE_SECONDS / spent)) if spent > 0 else rounds
        rounds *= 2


def _kept(rates: Sequence[tuple[float, bool]]) -> list[float]:
    whole = [rate for rate, undisturbed in rates if undisturbed]
    return whole if len(whole) >= ENOUGH else [rate for rate, _ in rates]


def _schemes() -> dict[str, str]:
    """The register-only loop of the path in use, for each kind of product; what has none is left out."""
    path = kernels.isa()
    vector = "avx512vnni" if path == "avx512vnni" else "avx2"
    named: dict[str, str] = {}
    if path in ("avx2", "avx512vnni"):
        named = {
            "int8": f"int8-{vector}",
            "int4": "int8-avx512vnni" if path == "avx512vnni" else "int4-avx2",
            "float32": f"float32-{vector}",
        }
    return named


def best_peer(rows: Sequence[Row], case: str) -> Row | None:
    """The fastest exact contender of a case that is not ours; NumPy's floats do not count as one of integers."""
    others = [
        row
        for row in rows
        if row.case == case
        and not row.ours
        and row.exact
        and ("numpy" not in row.contender or case.startswith("float32"))
    ]
    return max(others, key=lambda row: row.gmacs, default=None)
