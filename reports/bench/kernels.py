"""Our products beside every other runtime on this machine: table, rows and a bar plot in reports/kernels/.

Run: make bench   (onnxruntime and ai-edge-litert come with the test extra)
"""

from __future__ import annotations

import csv
import io
import math
import platform
from dataclasses import asdict
from pathlib import Path

from hwq import kernels
from hwq.benchmark.products import Row, best_peer, compare
from hwq.files import write_atomically
from hwq.kernels.paths import available_isas

FOLDER = Path(__file__).parents[1] / "kernels"


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def table(rows: list[Row], path: str) -> list[str]:
    lines = [
        "",
        f"## Path {path}",
        "",
        "| case | contender | GMAC/s | of the scheme's register-only loop | against int64 | to the best exact peer |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        peer = best_peer(rows, row.case)
        share = "" if row.ceiling is None else f"{row.ceiling:.0%}"
        ratio = f"{row.gmacs / peer.gmacs:.2f}" if row.ours and peer else ""
        lines.append(f"| {row.case} | {row.contender} | {row.gmacs:.1f} | {share} | {row.verdict} | {ratio} |")
    ratios = [
        row.gmacs / peer.gmacs
        for row in rows
        if row.contender == "hwq s8s8" and (peer := best_peer(rows, row.case)) and not row.case.startswith("int8 1x")
    ]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        lines += [
            "",
            f"int8 GEMM, s8s8 against the best exact peer, geometric mean of {len(ratios)} shapes: {mean:.2f}.",
        ]
    return lines


def plot(rows: list[Row]) -> bytes:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(row.case for row in rows))
    figure, axis = plt.subplots(figsize=(9, 0.5 + 0.32 * len(rows)))
    at, ticks, names = 0.0, [], []
    for case in cases:
        for row in (r for r in rows if r.case == case):
            color = "#1f77b4" if row.ours else "#999999" if row.exact else "#d62728"
            axis.barh(at, row.gmacs, color=color)
            ticks.append(at)
            names.append(f"{case}  {row.contender}")
            at -= 1
        at -= 0.6
    axis.set_yticks(ticks, names, fontsize=6)
    axis.set_xlabel("GMAC/s, one thread; blue: hwq, grey: exact peers, red: wrong")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def main() -> None:
    lines = [
        "# Products beside every other runtime",
        "",
        f"`make bench` on {processor()}: one pinned thread, processor time, interleaved, medians; requantized int8 out unless the case says "
        "float; weights packed beforehand. Each contender is first held against int64. Float contenders are EXACT within K rounding errors.",
    ]
    text, every = io.StringIO(), []
    writer = None
    for path in [name for name in available_isas() if name != "ref"]:
        with kernels.use_isa(path):
            rows = list(compare())
        lines += table(rows, path)
        every.append((path, rows))
        for row in rows:
            record = {"path": path, **asdict(row)}
            writer = writer or csv.DictWriter(text, list(record), lineterminator="\n")
            if not text.tell():
                writer.writeheader()
            writer.writerow(record)
    FOLDER.mkdir(exist_ok=True)
    for path, rows in every:
        write_atomically(FOLDER / f"{path}.svg", plot(rows), overwrite=True)
        lines += ["", f"![{path}]({path}.svg)"]
    write_atomically(FOLDER / "index.md", ("\n".join(lines) + "\n").encode(), overwrite=True)
    write_atomically(FOLDER / "rows.csv", text.getvalue().encode(), overwrite=True)


if __name__ == "__main__":
    main()
