"""Our kernels beside every other runtime, whole networks too, on this CPU and on one that shows AVX2 alone: index.md, rows.json and bar plots in reports/kernels/.

A run replaces the parts of its own processor; those of others stay, each with its versions and date.

Run: make bench   (under five minutes on a quiet machine; onnxruntime and ai-edge-litert come with the test extra; TFLite networks need HWQ_SHARED)
"""

from __future__ import annotations

import datetime
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from hwq import kernels, masking
from hwq.benchmark import models
from hwq.benchmark.kernels import compare
from hwq.benchmark.rounds import Row, best_peer
from hwq.files import write_atomically

FOLDER = Path(__file__).with_suffix("")
# Networks of $HWQ_SHARED/models, then of the zoo.
FILES = (
    "ic/pretrainedResnet_quant.tflite",
    "kws/kws_ref_model.tflite",
    "ic/pretrainedResnet_large_int8.tflite",
    "ic/resnet8_f32.onnx",
    "kws/ds_cnn_f32.onnx",
)
ZOO = ("zoo:mobilenet_v2", "zoo:resnet50")
NETWORK_SECONDS = 2.0


def processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def versions() -> str:
    found = []
    for name in ("onnxruntime", "ai-edge-litert", "numpy"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def ratio(rows: Sequence[Row], row: Row) -> float | None:
    peer = best_peer(rows, row.case)
    return row.gmacs / peer.gmacs if row.ours and peer else None


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| case | contender | GMAC/s | of the scheme's register-only loop | against int64 | to the best exact peer |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, found = "" if row.ceiling is None else f"{row.ceiling:.0%}", ratio(rows, row)
        against = "" if found is None else f"{found:.2f}"
        lines.append(f"| {row.case} | {row.contender} | {row.gmacs:.1f} | {share} | {row.verdict} | {against} |")
    return lines


def summary(rows: Sequence[Row]) -> list[str]:
    """Geometric means over the cases of a kind, of the faster of our signednesses."""
    lines = []
    for label, prefix in (
        ("int8 GEMM", "int8 "),
        ("int4 GEMM and GEMV", "int4 "),
        ("convolution 1x1", "conv 1x1"),
        ("convolution 3x3", "conv 3x3"),
        ("depthwise 3x3", "depthwise"),
    ):
        best: dict[str, float] = {}
        for row in rows:
            found = ratio(rows, row)
            if found is not None and row.case.startswith(prefix) and not row.case.startswith("int8 1x"):
                best[row.case] = max(found, best.get(row.case, 0.0))
        if best:
            mean, least = statistics.geometric_mean(best.values()), min(best.values())
            lines.append(
                f"* {label}: {mean:.2f} times the best exact peer, least {least:.2f} ({len(best)} shapes, geometric mean)."
            )
    return lines


def networks() -> list[models.Row]:
    shared = Path(os.environ.get("HWQ_SHARED", "../shared")) / "models"
    names = [str(shared / name) for name in FILES if (shared / name).is_file()]
    rows = []
    for name in (*names, *ZOO):
        print(f"{kernels.isa()}: {name}", file=sys.stderr)
        rows += models.measure(Path(name).name, models.contenders(name), seconds=NETWORK_SECONDS)
    return rows


def network_table(rows: Sequence[models.Row]) -> list[str]:
    lines = ["| network, batch 1 | runtime | µs | its time / ours | our bits are its bits |", "|---|---|---|---|---|"]
    for row in rows:
        bits = "" if row.exact is None else "yes" if row.exact else "NO"
        lines.append(f"| {row.model} | {row.runtime} | {row.microseconds:,.0f} | {row.ratio:.2f} | {bits} |")
    mean = models.geometric_mean(rows)
    return lines if mean is None else [*lines, "", f"* Geometric mean against the other runtime: {mean:.2f}."]


def plot(rows: Sequence[Row]) -> bytes:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"  # text as text
    figure, axis = plt.subplots(figsize=(9, 1 + 0.16 * len(rows)))
    at, ticks, names = 0.0, [], []
    for case in dict.fromkeys(row.case for row in rows):
        for row in (r for r in rows if r.case == case):
            color = "#1f77b4" if row.ours else "#999999" if row.exact else "#d62728"
            axis.barh(at, row.gmacs, color=color)
            ticks.append(at)
            names.append(f"{case}  {row.contender}")
            at -= 1
        at -= 0.6
    axis.set_yticks(ticks, names, fontsize=6)
    axis.set_ylim(at, 1)
    axis.set_xlabel("GMAC/s; blue: hwq, grey: exact peers, red: wrong")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    with write_atomically(path, overwrite=True) as stream:
        stream.write(content)


def measured() -> dict[str, Any]:
    """Every case and network on the CPU that this process sees."""
    rows = list(compare(progress=lambda name: print(f"{kernels.isa()}: {name}", file=sys.stderr)))
    return {
        "processor": processor(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "path": kernels.isa(),
        "rows": [asdict(row) for row in rows],
        "networks": [asdict(row) for row in networks()],
    }


def measured_on_avx2() -> dict[str, Any]:
    """The same in a process that sees an AVX2-only CPU."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "rows.json"
        subprocess.run(masking.command(__file__, str(part)), check=True)
        found: dict[str, Any] = json.loads(part.read_text())
    return found


def section(part: dict[str, Any]) -> list[str]:
    rows, whole = [Row(**row) for row in part["rows"]], [models.Row(**row) for row in part["networks"]]
    picture = "-".join(re.findall(r"[a-z0-9]+", f"{part['processor']} {part['path']}".lower())) + ".svg"
    write(FOLDER / picture, plot(rows))
    lines = ["", f"## {part['processor']}: path {part['path']}", "", f"{part['date']}, {part['versions']}.", ""]
    return [*lines, *summary(rows), "", *network_table(whole), "", *table(rows), "", f"![{part['path']}]({picture})"]


def main() -> None:
    if len(sys.argv) > 1:  # the masked process
        Path(sys.argv[1]).write_text(json.dumps(measured()))
        return
    parts = [measured()]
    if parts[0]["path"] != "avx2" and masking.maskable():
        parts.append(measured_on_avx2())
    FOLDER.mkdir(exist_ok=True)
    kept = json.loads((FOLDER / "rows.json").read_text())["parts"] if (FOLDER / "rows.json").is_file() else []
    here = {(part["processor"], part["path"]) for part in parts}
    parts += [part for part in kept if (part["processor"], part["path"]) not in here]
    lines = [
        "# Kernels and networks beside every other runtime",
        "",
        "`make bench`: one pinned thread, processor time, contenders interleaved, medians. Products and convolutions leave "
        "requantized to int8 unless the case says float, through the public Python API, weights packed beforehand. Each contender is first held "
        "against int64: EXACT, or WRONG with its greatest error and the share of outputs; floats are EXACT within K rounding errors. "
        "Networks: our dialect is the runtime's, onnxruntime with `session.x64quantprecision`, LiteRT as it comes. Path avx2 on a processor that has more: every contender is "
        "shown neither AVX-512 nor VNNI, AVX-VNNI or AMX (`hwq bench --cpu avx2`: by CPUID faulting, or every CPUID replaced), so each runs the kernels that it has for such a CPU.",
    ]
    for part in parts:
        lines += section(part)
    write(FOLDER / "index.md", ("\n".join(lines) + "\n").encode())
    write(FOLDER / "rows.json", (json.dumps({"parts": parts}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
