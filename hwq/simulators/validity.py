"""How far a machine's estimates were from measurements: a table of residuals beside its file.

``hwq validate --write-residuals`` writes ``accelerators/NAME.residuals.csv`` with the columns ``id`` (of the
measurement) and ``log_ratio`` (natural logarithm of measured over estimated seconds).
"""

from __future__ import annotations

import csv
import functools
import io
import math
from pathlib import Path

from hwq.errors import Error
from hwq.files import read_bytes
from hwq.simulators.accelerator import Accelerator

__all__ = ["LEAST", "interval_factors", "read_residuals"]

# Fewer residuals than this give no interval.
LEAST = 10

# Bound on a residual table: some 100,000 rows.
MAX_BYTES = 8 << 20


def interval_factors(machine: Accelerator, level: float = 0.9) -> tuple[float, float] | None:
    """Factors on the estimated seconds between which `level` of the residuals lie, or None with fewer than `LEAST`.

    The ends are order statistics: of n residuals those of rank ``floor((n + 1) (1 - level) / 2)`` from either end, at
    least the outermost.

    Raises
    ------
    Error
        `level` is not between 0 and 1, or the table is damaged.
    """
    if not 0.0 < level < 1.0:
        raise Error(f"the level {level!r} is not between 0 and 1", remedy="0.9 asks for the middle nine tenths")
    source = Path(machine.source).with_suffix(".residuals.csv")
    if not machine.source or not source.is_file():
        return None
    residuals = read_residuals(str(source))
    if len(residuals) < LEAST:
        return None
    rank = max(1, math.floor((len(residuals) + 1) * (1.0 - level) / 2.0))
    return math.exp(residuals[rank - 1]), math.exp(residuals[-rank])


@functools.lru_cache(maxsize=64)
def read_residuals(path: str) -> tuple[float, ...]:
    """The residuals of a table, sorted.

    Raises
    ------
    Error
        No such file, no ``log_ratio`` column, or a value that is not a finite number.
    """
    rows = csv.DictReader(io.StringIO(read_bytes(path, MAX_BYTES).decode("utf-8", "replace")))
    try:
        values = sorted(float(row["log_ratio"]) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise Error("this residual table is damaged", where=path, why=f"{type(error).__name__}: {error}") from None
    if not all(math.isfinite(value) for value in values):
        raise Error("a residual is not finite", where=path)
    return tuple(values)
