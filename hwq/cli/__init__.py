"""The command line: one verb, then the model; the machine is always ``--on MACHINE[,MACHINE]``.

Exit codes: 0 good, 1 a constraint or check failed, 2 bad input or usage. Every verb imports its rooms when it runs, so
that ``hwq --help`` stays quick.
"""

from __future__ import annotations

import typer

from hwq.cli import benchmark, bits, costs, evidence, exploration, later, models, plans, runtimes

__all__ = ["app", "main"]

app = typer.Typer(
    name="hwq",
    help="What does this quantization plan compute, bit for bit, and what will it cost?",
    epilog="Start with `hwq demo`. MODEL is an .onnx or .tflite file or zoo:NAME (zoo:resnet50, zoo:mobilenet_v2, zoo:bert_base, ...). "
    "Every verb takes --json. Exit codes: 0 good, 1 a check failed, 2 bad input or usage.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        import hwq

        typer.echo(f"hwq {hwq.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for room in (
    costs.DEMO,
    *models.VERBS,
    *bits.VERBS,
    *runtimes.VERBS,
    *costs.VERBS,
    *evidence.VERBS,
    *benchmark.VERBS,
    *exploration.VERBS,
):
    app.command(room.__name__.rstrip("_"))(room)
costs.attach(app)
plans.attach(app)
later.attach(app)


def main() -> None:
    """Entry point of the ``hwq`` command."""
    app(prog_name="hwq")
