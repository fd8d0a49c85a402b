"""Verification: a dialect against the runtime that it names, again, on this machine.

Cases are one-op models with random and tie-adversarial data, built by code; the expectation is always the installed
runtime's own output. A dialect without a runtime here, or whose runtime computes otherwise on this CPU, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hwq.dialect import find
from hwq.errors import Error
from hwq.progress import Progress

__all__ = ["VALUES", "Case", "Verification", "verifiable", "verify"]

# Values compared in each case, at least, where the caller does not say.
VALUES = 100_000


@dataclass(frozen=True)
class Case:
    """One kind of model.

    Attributes
    ----------
    name : str
    values, differing : int
        Output elements compared bit for bit, and how many differ.
    rate_only : bool
        Its float order is the runtime's own: the rate is stated and no promise is made.
    failure : str
        Why it could not be compared; empty where it was.
    """

    name: str
    values: int
    differing: int
    rate_only: bool = False
    failure: str = ""


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
        """Whether every promised case was compared and equal."""
        return bool(self.cases) and not any(
            case.failure or (case.differing and not case.rate_only) for case in self.cases
        )

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
