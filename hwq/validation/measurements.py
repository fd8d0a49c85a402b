"""Published measurements: one CSV row each, read strictly."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hwq.errors import Error
from hwq.files import PathLike, read_bytes
from hwq.names import display_name

__all__ = ["COLUMNS", "FOLDER", "Measurement", "folder_of", "read_measurements", "read_table"]

# The environment variable under whose folder ``validation/`` the files are looked for.
FOLDER = "HWQ_SHARED"

COLUMNS = (
    "id", "group", "device", "n_chips", "model", "input_shape", "precision", "batch", "threads", "scenario", "runtime",
    "metric", "value", "unit", "kind", "source", "confidence", "notes",
)  # fmt: skip

# Bound on a measurement file: some 100,000 rows.
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Measurement:
    """One row. `chips` and `batch` are None where the source does not state them; `value` is in `unit`."""

    id: str
    device: str
    chips: int | None
    model: str
    precision: str
    batch: int | None
    scenario: str
    metric: str
    value: float
    unit: str
    source: str
    confidence: str


def folder_of(folder: PathLike | None) -> Path:
    """The folder that was given, or ``$HWQ_SHARED/validation``."""
    if folder is None and not os.environ.get(FOLDER):
        raise Error(
            "no measurements were named",
            why="hwq ships no copy of other people's tables",
            remedy=f"--data FOLDER, or the environment variable {FOLDER} whose folder validation/ holds them",
        )
    found = Path(folder) if folder is not None else Path(os.environ[FOLDER]) / "validation"
    if not found.is_dir():
        raise Error("there is no such folder of measurements", where=str(found))
    return found


def read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file that has at least the columns `required`."""
    text = read_bytes(path, MAX_BYTES).decode("utf-8", "replace")
    try:
        reader = csv.DictReader(io.StringIO(text), strict=True)
        rows = [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except csv.Error as error:
        raise Error("this table is damaged", where=str(path), why=str(error)) from None
    missing = [name for name in required if name not in (reader.fieldnames or ())]
    if missing:
        raise Error(f"this table lacks the columns {', '.join(missing)}", where=str(path))
    return rows


def read_measurements(folder: Path, names: Sequence[str]) -> tuple[Measurement, ...]:
    """Every row of the files `names` in `folder`.

    Raises
    ------
    Error
        A file or column is missing, an id stands twice, or a value is no finite number.
    """
    found: dict[str, Measurement] = {}
    for name in names:
        path = folder / name
        for line, row in enumerate(read_table(path, COLUMNS), 2):
            where = f"{path}, line {line}"
            if row["id"] in found:
                raise Error(f"the id {display_name(row['id'])} stands twice", where=where)
            found[row["id"]] = Measurement(
                row["id"], row["device"], _whole(row["n_chips"], where), row["model"], row["precision"],
                _whole(row["batch"], where), row["scenario"], row["metric"], _number(row["value"], where), row["unit"],
                row["source"], row["confidence"],
            )  # fmt: skip
    return tuple(found.values())


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Error(f"{display_name(text)} is no finite number", where=where)
    return value


def _whole(text: str, where: str) -> int | None:
    return None if not text.strip() else int(_number(text, where))
