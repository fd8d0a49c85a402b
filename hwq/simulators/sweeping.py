"""A sweep on disk: parts as they come, resumed where it stopped, put together as CSV or Parquet.

Beside ``sweep.csv`` lies ``sweep.csv.parts/`` while the sweep runs: the request and one ``.npz`` a finished part. A sweep of
the same request takes the parts that are there; the finished file replaces the folder, whole or not at all.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.files import refuse_existing, write_atomically
from hwq.simulators.exploration import COLUMNS, Task, compute_part, pareto

if TYPE_CHECKING:
    from hwq.progress import Progress

__all__ = ["Summary", "sweep"]

Column = NDArray[Any]
# Rows kept for a picture.
SAMPLE = 4000
# Parts that an executor holds at once, so that a huge space does not fill its memory.
_IN_FLIGHT = 64


@dataclass(frozen=True, eq=False)
class Summary:
    """What a sweep found.

    Attributes
    ----------
    file : Path
    configurations, points : int
        `points` counts layers times configurations.
    resumed : int
        Parts that were there already.
    front : dict of column to array
        Configurations that no other beats in time and energy, quickest first.
    sample : dict of column to array
        Some configurations, evenly chosen, for a picture.
    """

    file: Path
    configurations: int
    points: int
    resumed: int
    front: dict[str, Column]
    sample: dict[str, Column]


def sweep(
    task: Task,
    out: Path,
    *,
    executor: concurrent.futures.Executor | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Evaluate every configuration of a task and write one row each.

    Parameters
    ----------
    task : Task
    out : path
        ``.csv`` or ``.parquet``.
    executor : concurrent.futures.Executor, optional
        Computes the parts; the rows and their order do not depend on it.
    overwrite : bool
        Replace a finished file, and drop the parts of another request.
    progress : callable, optional
        Called as ``progress(done, total, "sweep: parts")``.

    Raises
    ------
    Error
        Another suffix, a file that exists, parts of another request, no pyarrow for Parquet.
    """
    _check(out, overwrite)
    folder = out.with_name(out.name + ".parts")
    _open(folder, task, overwrite)
    missing = [part for part in range(task.parts) if not _is_whole(_file(folder, part))]
    done = resumed = task.parts - len(missing)
    for part, table in _computed(task, missing, executor):
        with write_atomically(_file(folder, part), overwrite=True) as stream:
            np.savez(stream, **table)  # type: ignore[arg-type]
        done += 1
        if progress is not None:
            progress(done, task.parts, "sweep: parts")
    summary = _assemble(task, out, folder, resumed, overwrite)
    shutil.rmtree(folder)
    return summary


def _check(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in {".csv", ".parquet"}:
        raise Error("a sweep writes .csv or .parquet", where=str(out))
    refuse_existing(out, overwrite)
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise Error(
                "Parquet needs pyarrow", where=str(out), remedy="pip install 'hwq[parquet]', or name a .csv"
            ) from error


def _open(folder: Path, task: Task, overwrite: bool) -> None:
    from hwq import __version__

    request = {"version": __version__, "hashes": dict(task.hashes), "space": json.loads(json.dumps(asdict(task.space))),
               "macs": task.macs, "columns": list(COLUMNS), "parts": task.parts}  # fmt: skip
    note = folder / "request.json"
    if note.exists() and json.loads(note.read_text()) != request:
        if not overwrite:
            raise Error("the parts that lie here are of another sweep", where=str(folder),
                        remedy="pass --overwrite to drop them, or choose another name")  # fmt: skip
        shutil.rmtree(folder)
    if not note.exists():
        with write_atomically(note, overwrite=True, mode="w") as stream:
            json.dump(request, stream)


def _file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.npz"


def _is_whole(file: Path) -> bool:
    return file.exists() and zipfile.is_zipfile(file)


def _computed(
    task: Task, missing: list[int], executor: concurrent.futures.Executor | None
) -> Iterator[tuple[int, dict[str, Column]]]:
    if executor is None:
        for part in missing:
            yield part, compute_part(task, part)
        return
    waiting = iter(missing)
    running = {executor.submit(compute_part, task, part): part for part in itertools.islice(waiting, _IN_FLIGHT)}
    while running:
        ready, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in ready:
            yield running.pop(future), future.result()
            for part in waiting:
                running[executor.submit(compute_part, task, part)] = part
                break


def _assemble(task: Task, out: Path, folder: Path, resumed: int, overwrite: bool) -> Summary:
    fronts, samples = [], []
    every = max(1, len(task.space) // SAMPLE)
    with write_atomically(out, overwrite=overwrite) as stream:
        writer = _Csv(stream) if out.suffix.lower() == ".csv" else _Parquet(stream)
        first = 0
        for part in range(task.parts):
            with np.load(_file(folder, part)) as loaded:
                table = {name: loaded[name] for name in COLUMNS}
            writer.write(table)
            fronts.append(_rows(table, pareto(table["seconds"], table["picojoules"])))
            samples.append(_rows(table, (np.arange(len(table["rows"])) + first) % every == 0))
            first += len(table["rows"])
        writer.close()
    front = {name: np.concatenate([one[name] for one in fronts]) for name in COLUMNS}
    front = _rows(front, pareto(front["seconds"], front["picojoules"]))
    front = _rows(front, np.argsort(front["seconds"], kind="stable"))
    sample = {name: np.concatenate([one[name] for one in samples]) for name in COLUMNS}
    return Summary(out, len(task.space), task.points, resumed, front, sample)


def _rows(table: dict[str, Column], chosen: Column) -> dict[str, Column]:
    return {name: values[chosen] for name, values in table.items()}


class _Csv:
    """Numbers as Python writes them: exact."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        stream.write((",".join(COLUMNS) + "\r\n").encode())

    def write(self, table: dict[str, Column]) -> None:
        lists = [list(map(str, table[name].tolist())) for name in COLUMNS]
        self.stream.write("".join(",".join(row) + "\r\n" for row in zip(*lists, strict=True)).encode())

    def close(self) -> None:
        pass


class _Parquet:
    """One row group a part."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.writer: Any = None

    def write(self, table: dict[str, Column]) -> None:
        import pyarrow
        import pyarrow.parquet

        found = pyarrow.table({name: pyarrow.array(values) for name, values in table.items()})
        if self.writer is None:
            self.writer = pyarrow.parquet.ParquetWriter(self.stream, found.schema)
        self.writer.write_table(found)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
