"""Systolic and spatial machine models against published counters and bytes: the table, and what is not scored.

Run: python reports/systolic.py   (needs HWQ_SHARED, whose folder validation/ holds the measurements)
"""

from __future__ import annotations

import sys
from pathlib import Path

from hwq.errors import Error
from hwq.files import write_atomically
from hwq.validation import validate

FOLDER = Path(__file__).with_suffix("")


def page(board) -> str:
    lines = [
        "# Systolic and spatial arrays against silicon",
        "",
        f"`hwq validate --family systolic`: {len(board.scored)} of {len(board.scores)} rows scored; rows that constants were fitted to: "
        f"{', '.join(board.fitted) or 'none'}. Named inputs are measured quantities that the estimate was given.",
        "",
        "| device | model | batch | quantity | measured | estimate | unit | error | named inputs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for score in board.scored:
        error = f"{score.error:+.2f} points" if score.points else f"{score.error:+.1%}"
        inputs = ", ".join(f"{name} {value:g}" for name, value in score.inputs.items())
        quantity = score.quantity or score.row.metric
        lines.append(
            f"| {score.row.device} | {score.row.model} | {score.row.batch} | {quantity} | {score.measured:.4g} | "
            f"{score.estimate:.4g} | {score.unit or score.row.unit} | {error} | {inputs} |"
        )
    lines += [
        "",
        "## Errors",
        "",
        "| device | quantity | n | mean | median | p90 | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in board.statistics():
        form = "{:.2f} points" if row["error_unit"] == "points" else "{:.1%}"
        cells = " | ".join(form.format(row[name]) for name in ("mean", "median", "p90", "worst"))
        lines.append(f"| {row['device']} | {row['quantity']} | {row['n']} | {cells} |")
    reasons: dict[str, list[str]] = {}
    for score in board.scores:
        if score.reason:
            reasons.setdefault(score.reason, []).append(score.row.id)
    lines += ["", "## Not scored", ""]
    lines += [f"- {len(ids)} rows ({ids[0]} ...): {reason}" for reason, ids in reasons.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    try:
        board = validate("systolic")
    except Error as error:
        print(f"reports/systolic: skipped: {error.what}", file=sys.stderr)
        return 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in (("index.md", page(board)), ("rows.csv", board.to_csv())):
        with write_atomically(FOLDER / name, overwrite=True, mode="w") as stream:
            stream.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
