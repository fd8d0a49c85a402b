"""The scoreboard: estimates against published measurements, one module for every family's CSV, rules and statistics.

A family's rules (`hwq.validation.systolic`, ...) say for each row what the machine model estimates, or why the row is not
scored. An estimate is made from device, model, batch and named inputs, never from the value that it is scored against.
"""

from __future__ import annotations

import importlib

from hwq.errors import Error, NotSupportedYet
from hwq.files import PathLike
from hwq.validation.measurements import folder_of, read_measurements
from hwq.validation.scoring import Score, Scoreboard

__all__ = ["FAMILIES", "Score", "Scoreboard", "validate"]

# Families with rules, and the measurement files that they read; the others come later.
FAMILIES = {"systolic": ("tpu_systolic.csv",)}
LATER = ("gpu", "npu", "cpu")


def validate(family: str, folder: PathLike | None = None) -> Scoreboard:
    """Score a family of machine models against every row of its measurement files.

    Parameters
    ----------
    family : str
        ``systolic``.
    folder : path, optional
        Where the measurement files lie; default ``$HWQ_SHARED/validation``.

    Returns
    -------
    Scoreboard
        One `Score` a row, in the order of the files.

    Raises
    ------
    Error
        There is no such family or folder, or a file is damaged.
    """
    if family == "accuracy":
        raise Error(
            "accuracy is measured, not read from files of measurements",
            remedy="hwq.validation.accuracy.measure(FOLDER)",
        )
    if family in LATER:
        raise NotSupportedYet(f"validation of {family}: its rules are not built")
    if family not in FAMILIES:
        raise Error("there is no such family", where=f"family {family}", remedy=f"one of: {', '.join(FAMILIES)}")
    where = folder_of(folder)
    rows = read_measurements(where, FAMILIES[family])
    rules = importlib.import_module(f"hwq.validation.{family}").rules(rows, where)
    return Scoreboard(family, tuple(rules.score(row) for row in rows))
