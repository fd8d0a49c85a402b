"""Scores and their statistics."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hwq.names import csv_cell
from hwq.validation.measurements import Measurement

__all__ = ["Score", "Scoreboard"]


@dataclass(frozen=True)
class Score:
    """One row of a scoreboard.

    Attributes
    ----------
    row : Measurement
    quantity : str
        What is compared, where it is not the row's own metric (a share of the matrix time, say).
    unit : str
    measured, estimate : float or None
        None where the row is not scored.
    points : bool
        The two are percentages: their error is a difference in points, not a ratio.
    reason : str
        Why the row is not scored; empty if it is.
    inputs : mapping of str to float
        Measured quantities that the estimate was given (named inputs), by what they are.
    fitted : bool
        A constant of the machine was fitted to this row.
    """

    row: Measurement
    quantity: str = ""
    unit: str = ""
    measured: float | None = None
    estimate: float | None = None
    points: bool = False
    reason: str = ""
    inputs: Mapping[str, float] = field(default_factory=dict)
    fitted: bool = False

    @property
    def error(self) -> float | None:
        """Estimate less measured in points, or over measured less 1; None where the row is not scored."""
        if self.measured is None or self.estimate is None:
            return None
        return self.estimate - self.measured if self.points else self.estimate / self.measured - 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.row.id,
            "device": self.row.device,
            "model": self.row.model,
            "batch": self.row.batch,
            "metric": self.row.metric,
            "quantity": self.quantity or self.row.metric,
            "unit": self.unit or self.row.unit,
            "measured": self.row.value if self.measured is None else self.measured,
            "estimate": self.estimate,
            "error": self.error,
            "error_unit": None if self.error is None else "points" if self.points else "fraction",
            "reason": self.reason or None,
            "inputs": dict(self.inputs),
            "fitted": self.fitted,
            "confidence": self.row.confidence,
            "source": self.row.source,
        }


@dataclass(frozen=True)
class Scoreboard:
    """Every row of a family's measurement files with its estimate, or the reason why there is none."""

    family: str
    scores: tuple[Score, ...]

    @property
    def scored(self) -> tuple[Score, ...]:
        """Rows that have an estimate."""
        return tuple(score for score in self.scores if score.estimate is not None)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Ids of the rows that constants were fitted to."""
        return tuple(score.row.id for score in self.scores if score.fitted)

    def statistics(self) -> list[dict[str, Any]]:
        """By device and quantity: n, mean, median, 90th percentile and worst of \\|error\\|, share within 10 and 25 %.

        Rows that constants were fitted to are counted apart.
        """
        groups: dict[tuple[str, str, bool, bool], list[Score]] = {}
        for score in self.scored:
            key = score.row.device, score.quantity or score.row.metric, score.points, score.fitted
            groups.setdefault(key, []).append(score)
        return [
            {"device": device, "quantity": quantity, "fitted": fitted, "error_unit": "points" if points else "fraction"}
            | _summary([abs(score.error or 0.0) for score in found], points)
            for (device, quantity, points, fitted), found in groups.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: statistics, ids of fitted rows, every row."""
        return {
            "family": self.family,
            "rows": len(self.scores),
            "scored": len(self.scored),
            "fitted_ids": list(self.fitted),
            "statistics": self.statistics(),
            "scores": [score.to_dict() for score in self.scores],
        }

    def to_csv(self) -> str:
        """One line a row."""
        records = [score.to_dict() for score in self.scores]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        heads = [name for name in (records[0] if records else {"id": ""}) if name != "inputs"]
        writer.writerow(heads)
        for record in records:
            writer.writerow([csv_cell("" if record[name] is None else record[name]) for name in heads])
        return stream.getvalue()


def _summary(errors: Sequence[float], points: bool) -> dict[str, Any]:
    ordered = sorted(errors)
    shares = {} if points else {
        "within_10_percent": sum(error <= 0.10 for error in errors) / len(errors),
        "within_25_percent": sum(error <= 0.25 for error in errors) / len(errors),
    }  # fmt: skip
    return {
        "n": len(errors),
        "mean": statistics.fmean(errors),
        "median": statistics.median(errors),
        "p90": ordered[max(0, math.ceil(0.9 * len(ordered)) - 1)],
        "worst": ordered[-1],
    } | shares
