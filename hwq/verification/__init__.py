"""Verification: a dialect against the runtime that it names, again, on this machine.

Cases are one-op models with random and tie-adversarial data, built by code; the expectation is always the installed
runtime's own output. A dialect without a runtime here, or whose runtime computes otherwise on this CPU, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.dialect import find
from hwq.errors import Error
from hwq.graph import Array
from hwq.progress import Progress

__all__ = ["RATE_VALUES", "VALUES", "Bound", "Case", "Verification", "apart", "verifiable", "verify"]

# Values compared in each case, at least, where the caller does not say; a rate needs so many to mean something.
VALUES = 100_000
RATE_VALUES = 20_000


@dataclass(frozen=True)
class Case:
    """One kind of model.

    Attributes
    ----------
    name : str
    values, differing : int
        Output elements compared bit for bit, and how many differ.
    rate_only : bool
        Its float order is the runtime's own: a rate and a distance are promised, not the bits.
    failure : str
        Why it could not be compared; empty where it was.
    distance : float
        Largest difference, in `apart`'s units.
    allowed_share, allowed_distance : float
        Bounds of a kind with a rate: values that may differ, of all, and how far.
    """

    name: str
    values: int
    differing: int
    rate_only: bool = False
    failure: str = ""
    distance: float = 0.0
    allowed_share: float = 0.0
    allowed_distance: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it was compared and is equal, or within its bounds."""
        within = self.differing <= self.allowed_share * self.values and self.distance <= self.allowed_distance
        return not self.failure and (within if self.rate_only else not self.differing)


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it went.

    Attributes
    ----------
    dialect, runtime, version : str
    command : str
        How the runtime was run.
    cases : tuple of Case
    """

    dialect: str
    runtime: str
    version: str
    command: str
    cases: tuple[Case, ...]

    @property
    def values(self) -> int:
        """Values compared in the promised cases."""
        return sum(case.values for case in self.cases if not case.rate_only)

    @property
    def differing(self) -> int:
        """Values that differ in the promised cases."""
        return sum(case.differing for case in self.cases if not case.rate_only)

    @property
    def passed(self) -> bool:
        """Whether every case was compared, and is equal or within its bounds."""
        return bool(self.cases) and all(case.passed for case in self.cases)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "dialect": self.dialect,
            "runtime": self.runtime,
            "version": self.version,
            "command": self.command,
            "passed": self.passed,
            "values": self.values,
            "differing": self.differing,
            "cases": [vars(case) for case in self.cases],
        }


@dataclass(frozen=True)
class Bound:
    """What a kind with a rate may differ by.

    Attributes
    ----------
    share : float
        Values that may differ, of all.
    distance : float
        How far, in `apart`'s units.
    """

    share: float
    distance: float


def apart(ours: Array, theirs: Array) -> float:
    """The largest difference: steps of integers, of floats units in the last place of 1 or a larger output."""
    if not theirs.size or ours.shape != theirs.shape:
        return 0.0 if ours.shape == theirs.shape else math.inf
    wide = [np.nan_to_num(values.astype(np.float64)) for values in (ours, theirs)]
    finite = np.abs(wide[1][np.isfinite(theirs)])
    unit = float(np.spacing(np.float32(min(finite.max(initial=1), 1e38)))) if theirs.dtype.kind == "f" else 1.0
    return float(np.abs(wide[0] - wide[1]).max()) / unit


Verifier = Callable[[str, int, Progress | None], Verification]


def _verifiers() -> Mapping[str, Verifier]:
    from hwq.verification import litert_dialects, onnx_dialects, torch_dialects

    return {**onnx_dialects.VERIFIERS, **litert_dialects.VERIFIERS, **torch_dialects.VERIFIERS}


def verifiable() -> tuple[str, ...]:
    """Dialects that have a verifier."""
    return tuple(_verifiers())


def verify(name: str, *, values: int = VALUES, progress: Progress | None = None) -> Verification:
    """Compare a dialect with its runtime.

    Parameters
    ----------
    name : str
        A dialect.
    values : int
        Values to compare in each case, at least.
    progress : callable, optional

    Returns
    -------
    Verification

    Raises
    ------
    Error
        There is no such dialect, no way to verify it, or its runtime is not installed or computes otherwise here.
    """
    dialect = find(name)
    verifier = _verifiers().get(name)
    if verifier is None:
        raise Error(
            f"dialect {name} cannot be verified",
            why=f"it is {dialect.status}: {dialect.evidence or dialect.runtime}",
            remedy=f"one of: {', '.join(_verifiers())}",
        )
    if values < 1:
        raise Error(f"values = {values} must be at least 1")
    return verifier(name, values, progress)
