"""What every verb shares: errors become one message and exit code 2, results become a table or JSON."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

import hwq
from hwq.errors import Error
from hwq.names import display_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["SCHEMA_VERSION", "console", "emit", "guarded", "progress", "table"]

# Version of the JSON envelope that --json prints; raised when a key changes its meaning or goes.
SCHEMA_VERSION = 1
GOOD, FAILED, BAD_INPUT = 0, 1, 2
# Parameters that name what a verb writes.
WRITTEN = ("out", "csv", "plot", "repair")


def guarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an Error into a message on standard error and exit code 2; HWQ_DEBUG=1 shows the traceback instead."""

    @functools.wraps(verb)
    def run(*arguments: Any, **keywords: Any) -> Any:
        try:
            _refuse_existing(keywords)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of NaN and overflow: the results show them
                return verb(*arguments, **keywords)
        except Error as error:
            if os.environ.get("HWQ_DEBUG"):
                raise
            typer.echo(f"hwq: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from None
        except MemoryError:
            typer.echo("hwq: out of memory\n  remedy: a smaller --batch, fewer samples, or a smaller model", err=True)
            raise typer.Exit(BAD_INPUT) from None
        except BrokenPipeError:
            # The reader has gone (| head): point standard output at nothing, so that the interpreter's last flush is quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(GOOD) from None
        except OSError as error:
            if os.environ.get("HWQ_DEBUG"):
                raise
            # What no reader or writer named: standard output on a full disk, a folder that vanished.
            named = f"{display_name(error.filename)}: " if error.filename else ""
            typer.echo(f"hwq: {named}{error.strerror or error}", err=True)
            raise typer.Exit(BAD_INPUT) from None

    return run


def _refuse_existing(keywords: dict[str, Any]) -> None:
    """What a verb would write is refused before its work, not behind it; verbs that take a folder look inside themselves."""
    for path in (keywords.get(name) for name in WRITTEN):
        if path is not None:
            from hwq.files import refuse_existing

            refuse_existing(path, keywords.get("overwrite", True) or os.path.isdir(path))


def emit(verb: str, result: Any, show: Callable[[Console], None], as_json: bool) -> None:
    """Print `result` as JSON in the common envelope, or let `show` draw it."""
    if as_json:
        envelope = {"schema_version": SCHEMA_VERSION, "hwq_version": hwq.__version__, "verb": verb, "result": result}
        typer.echo(json.dumps(envelope, indent=2, default=_plain, allow_nan=False))
    else:
        show(console())


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value)


def console(stderr: bool = False) -> Console:
    """A rich console; plain and wide when the output is no terminal, so that piped tables are not cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()  # None: started with the stream closed
    return Console(stderr=stderr, width=None if terminal else 160, highlight=False, soft_wrap=False)


def table(title: str, *columns: str) -> Table:
    """A table whose columns after the first are numbers, right-aligned."""
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", header_style="bold", expand=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return drawn


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A progress callback ``(done, total, what)``: a bar with ETA on a terminal, silence elsewhere but for one line."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task(what, total=None)

        def report(done: int, total: int | None = None, what: str = what) -> None:
            bars.update(task, completed=done, total=total, description=what)

        yield report


def _lines(what: str) -> Callable[..., None]:
    told = {"tenth": -1}

    def report(done: int, total: int | None = None, what: str = what) -> None:
        tenth = 10 * done // total if total else 0
        if total and tenth != told["tenth"]:
            told["tenth"] = tenth
            typer.echo(f"{what}: {done} of {total}", err=True)

    return report
