"""Verbs that are promised and not built yet: each says so and exits with 2."""

from __future__ import annotations

import typer

from hwq.cli.console import guarded
from hwq.errors import NotSupportedYet

__all__ = ["attach"]

_LATER = {
    "check": "whether a machine supports every layer of a plan, and what a fallback costs",
    "search": "the Pareto front of plans on a machine",
    "diff": "what changes between two plans: layers, bits, cost",
    "fit": "fit a machine file's open constants to measurements (fit MACHINE.toml)",
}


def attach(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb, what in _LATER.items():
        app.command(verb, help=f"(not supported yet) {what}.", context_settings={"ignore_unknown_options": True})(
            _verb(verb, what)
        )


def _verb(verb: str, what: str):  # type: ignore[no-untyped-def]
    @guarded
    def not_yet(arguments: list[str] = typer.Argument(None, hidden=True)) -> None:  # noqa: B008
        raise NotSupportedYet(f"hwq {verb}: {what}")

    return not_yet
