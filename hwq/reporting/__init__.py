"""Reports: any mix of hwq's nouns in, one offline HTML page, its numbers as JSON and its layers as CSV out."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwq.errors import Error
from hwq.files import PathLike, write_atomically
from hwq.reporting.records import Unsupported

if TYPE_CHECKING:
    from hwq.progress import Progress

__all__ = ["Unsupported", "report"]

# Estimates on one page: more make it slow to open, and a sweep wants its own table.
MAX_ITEMS = 400


def report(
    items: Iterable[Any],
    path: PathLike,
    *,
    overwrite: bool = False,
    title: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Path, Path]:
    """Write one offline HTML page, and beside it its numbers (JSON) and its layers (CSV): all three files or none.

    Equal items give equal bytes: no clock, no machine name, no random identifier gets in.

    Parameters
    ----------
    items : iterable
        Any mix, in any order, of `Estimate`, `Comparison`, `Calibration`, `Graph`, `Plan`, `SteppedRun`, `Difference` and
        `Unsupported`. The
        model that was compared, else the first that was costed, is in focus and gets every figure. Histograms need a
        Calibration, and their clip lines also a quantized graph (given, or held by an estimate).
    path : path
        The page, such as ``report.html``. ``report.json`` and ``layers.csv`` lie beside it, whatever the page is
        called: one folder holds one report.
    overwrite : bool
        Replace files that exist.
    title : str, optional
        Heading of the page; default: the model's name.
    command : str, optional
        The command that makes the page again, printed in its header.
    progress : Progress, optional
        Called after each figure.

    Returns
    -------
    tuple of Path
        The page, the JSON file, the CSV file.

    Raises
    ------
    Error
        Nothing to report, an item of another kind, a path that is no ``.html`` file, or a file that exists already.
    """
    from hwq.reporting import reading
    from hwq.reporting.meeting import write_csv
    from hwq.reporting.page import render
    from hwq.reporting.serialization import to_json

    page = Path(path)
    if page.suffix.lower() not in {".html", ".htm"}:
        raise Error(
            "a report is an .html file",
            where=str(page),
            remedy=f"name it {page.with_suffix('.html').name or 'report.html'}",
        )
    numbers, layers = page.with_name("report.json"), page.with_name("layers.csv")
    found = list(items)
    if len(found) > MAX_ITEMS:
        raise Error(
            f"a report takes at most {MAX_ITEMS} items, these are {len(found)}",
            where=str(page),
            remedy="split them over several reports, or use hwq sweep for tables of many configurations",
        )
    for beside in (numbers, layers):
        if beside.exists() and not overwrite:
            raise Error(
                "another report lies in this folder, the file exists already",
                where=str(beside),
                why=f"{numbers.name} and {layers.name} of a page lie beside it",
                remedy="give each page a folder of its own, or pass --overwrite (overwrite=True)",
            )
    records = reading.read(found)
    with contextlib.ExitStack() as files:
        # Opened first, put in place last: whoever sees the page finds the other two beside it.
        streams = [
            files.enter_context(write_atomically(target, overwrite=overwrite, mode="w"))
            for target in (page, numbers, layers)
        ]
        text = io.StringIO(newline="")
        write_csv(text, records.costs, records.comparisons)
        html = render(
            records, title=title, command=command, json_name=numbers.name, csv_name=layers.name, progress=progress
        )
        for stream, content in zip(streams, (html, to_json(records, command=command), text.getvalue()), strict=True):
            stream.write(content)
    return page, numbers, layers
