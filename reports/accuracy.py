"""Quantization methods on real networks, executed with hwq's integer kernels, beside the toolkits that are installed.

Choices are made on calibration data only (`hwq.validation.accuracy`); this page adds the bars and says which are met.

Run: python reports/accuracy.py   (needs HWQ_SHARED)
     python reports/accuracy.py --peer-python PYTHON   (its NNCF, torchao, AIMET too; may be repeated)
     python reports/accuracy.py --network NAME         (that network alone; the others' rows stay)
     python reports/accuracy.py --own                  (hwq's rows alone; those of other toolkits stay)
     python reports/accuracy.py --page   (the page again from rows.csv and facts.json)
     python reports/accuracy.py --speed  (the table of times again)
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

import hwq
from hwq.comparison.statistics import distributions
from hwq.files import write_atomically
from hwq.ops.evaluate import evaluate
from hwq.plan import Plan
from hwq.validation.accuracy import measure
from hwq.validation.methods import Method
from hwq.validation.networks import NETWORKS

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HWQ_SHARED", ROOT.parent / "shared")) / "models"
FOLDER = Path(__file__).with_suffix("")

# (model, group, quantity, bound, the best figure of another toolkit as published or measured before)
BARS = [
    ("ResNet-8", "W8A8 static", "agreement", 0.985, "97.9 %, onnxruntime percentile"),
    ("ResNet-8", "W8A8 static", "kl", 0.012, "0.0140, onnxruntime percentile"),
    ("DS-CNN", "W8A8 static", "agreement", 0.993, "99.2 %, onnxruntime percentile"),
    ("DS-CNN", "W8A8 static", "kl", 0.006, "0.0093, onnxruntime percentile"),
    ("ResNet-8", "W4A8", "accuracy", 0.865, "85.55 % after 299 s, AIMET AdaRound"),
    ("ResNet-8", "W4A8", "seconds", 30.0, "299 s, AIMET AdaRound"),
    ("DS-CNN", "W4A8", "agreement", 0.98, "97.7 %, AIMET AdaRound"),
    ("ResNet-8", "W8 dynamic", "agreement", 0.987, "98.7 %, ai-edge-quantizer"),
    ("DS-CNN", "W8 dynamic", "agreement", 0.992, "99.2 %, onnxruntime"),
]


GROUPS = {
    "W8A8 static": "8-bit weights a channel, 8-bit activations with calibrated ranges",
    "W8 dynamic": "8-bit weights a channel, ranges of activations found at run time, one sample at a time",
    "W4A8": "4-bit weights a channel, 8-bit activations, no training and no labels",
}


def bars(rows) -> list[str]:
    """Which of the bars that were set beforehand are met."""
    chosen = {(row["model"], row["group"]): row for row in rows if row["chosen"] == "True"}
    lines = ["| network | group | what | hwq | met | bar | other toolkits |", "|---|---|---|---|---|---|---|"]
    for model, group, quantity, bound, others in BARS:
        row = chosen.get((model, group))
        if row is None:
            continue
        value = float(row[quantity])
        least = quantity in {"kl", "seconds"}
        met = value <= bound if least else value >= bound
        shown = {"kl": f"{value:.4f}", "seconds": f"{value:.1f} s"}.get(quantity, f"{value:.2%}")
        wanted = {"kl": f"at most {bound}", "seconds": f"under {bound:.0f} s"}.get(quantity, f"at least {bound:.1%}")
        p = f", p = {float(row['p']):.2g}" if quantity == "accuracy" else ""
        lines.append(
            f"| {model} | {group} | {quantity} | {shown}{p} | {'yes' if met else '**no**'} | {wanted} | {others} |"
        )
    return lines


def matrix(rows, group) -> list[str]:
    """Every method on every network: agreement and KL."""
    mine = [row for row in rows if row["group"] == group]
    models = list(dict.fromkeys(row["model"] for row in mine))
    lines = [
        f"### {group}: {GROUPS[group]}",
        "",
        f"| method | {' | '.join(models)} |",
        f"|{'---|' * (len(models) + 1)}",
    ]
    for method, own in dict.fromkeys((row["method"], row["by"] == "hwq") for row in mine):
        cells = []
        for model in models:
            found = [row for row in mine if (row["model"], row["method"]) == (model, method)]
            text = f"{float(found[0]['agreement']):.2%} / {float(found[0]['kl']):.4f}" if found else ""
            cells.append(f"**{text}**" if found and found[0]["chosen"] == "True" else text)
        lines.append(f"| {'hwq: ' if own else ''}{method} | {' | '.join(cells)} |")
    return [*lines, ""]


def detail(rows, facts) -> list[str]:
    """One folded table a network, every figure."""
    lines = []
    for model, protocol in facts["protocols"].items():
        mine = [row for row in rows if row["model"] == model]
        lines += [f"<details><summary><b>{model}</b>: n = {mine[0]['samples']}, float accuracy {float(mine[0]['float_accuracy']):.2%}; {protocol}</summary>", "",
                  "| group | method | by | accuracy | McNemar p | agreement | KL | CPU s | bytes | KL held back |",
                  f"|{'---|' * 10}"]  # fmt: skip
        for row in mine:
            star = " **(chosen)**" if row["chosen"] == "True" else ""
            held = f"{float(row['held_back_kl']):.4f}" if row["held_back_kl"] else ""
            size = f"{int(row['bytes']):,}" if int(row["bytes"]) else ""
            lines.append(
                f"| {row['group']} | {row['method']}{star} | {row['by']} | {float(row['accuracy']):.2%} | {float(row['p']):.2g} "
                f"| {float(row['agreement']):.2%} | {float(row['kl']):.4f} | {float(row['seconds']):.1f} | {size} | {held} |"
            )
        lines += ["", "</details>", ""]
    return lines


def spread(rows) -> str:
    """How far apart the plans stand between which a bar was decided."""
    near = [
        float(row["agreement"])
        for row in rows
        if (row["model"], row["group"], row["by"]) == ("DS-CNN", "W4A8", "hwq") and "bias" in row["method"]
    ]
    if not near:
        return "one sample is a tenth of a point."
    return (
        f"on DS-CNN at W4A8 the plans that correct biases agree on {100 * min(near):.1f} to {100 * max(near):.1f} % "
        "(one sample is 0.11 point), and 100 samples choose."
    )


def page(rows, facts) -> str:
    peers = sorted({row["by"] for row in rows if row["by"] != "hwq"})
    protocols = [
        f"* {model}: n = {next(row['samples'] for row in rows if row['model'] == model)}; {protocol}."
        for model, protocol in facts["protocols"].items()
    ]
    return f"""# Accuracy: quantization methods on real networks

Every hwq row is executed with integer kernels (dialect `hwq`), one thread. *Agreement* is the share of samples whose largest output stands where float's does; *KL* the mean divergence of float's
probabilities from the quantized ones; *McNemar p* the exact two-sided test of accuracy against float (one sample is 0.1 point: differences of accuracy with p > 0.05 say nothing).

Candidates of a group are made from three quarters of the calibration samples and judged by their KL on the last, every quarter in its turn (*KL held back*); the best is **chosen**, made again from all of them, and scored once beside
the others. No scored sample takes part in a choice.

Again: `HWQ_SHARED=... python reports/accuracy.py [--peer-python PYTHON]`; anywhere: `hwq validate --family accuracy [--peer-python PYTHON]` (without the models it scores the package's
digits network). PYTHON is the interpreter of an environment that has NNCF, torchao with onnx2torch, or AIMET (`pip install nncf onnx onnxruntime`; `aimet-onnx`); hwq itself needs none of them.

## Bars

{chr(10).join(bars(rows))}

The last column quotes the best figure of another toolkit that was measured under the same protocol before; AIMET's AdaRound takes minutes and was not run again. Rows of other toolkits stay until they are run again (`--own` measures hwq's alone). Agreement, KL and accuracy do not depend on the machine's
load or its CPU; seconds do. Two plans as near to float as one another still differ in two to four samples of 900 at the margin, and any change of method moves those: a bar that is met by a few samples is met by luck as
well: {spread(rows)}

## Methods and networks

Each cell: agreement / KL. **Bold**: chosen on calibration data.

{chr(10).join(line for group in GROUPS for line in matrix(rows, group))}
{chr(10).join(protocols)}

![agreement with float](accuracy.svg)

## Every figure

*CPU s* is the processor time of calibration and quantization, measured while other programs ran. *bytes* counts constants as stored.

{chr(10).join(detail(rows, facts))}
{tried(facts)}
Measured by `python reports/accuracy.py` with hwq {facts["machine"]["hwq"]}, NumPy {facts["machine"]["numpy"]} on a CPU with {facts["machine"]["flags"]} (path {facts["machine"]["path"]}).
Beside it: {", ".join(peers)} (torchao reads the file through onnx2torch); onnxruntime ran with exact integer products, AIMET and torchao simulate integers in float. Left out: {"; ".join(facts["absent"]) or "nothing"}.
The other float models of the collection have no labelled data to both calibrate and score (`trained_lstm_float`: ten images). Models and data: mlcommons/tiny (Apache-2.0), CIFAR-10, Speech Commands features,
scikit-learn's digits; evaluated, only the digits are shipped.
"""


def tried(facts) -> str:
    """What was tried beside and did not win a row, and how long all observers take."""
    lines = ["## All observers, equalization and bias correction", "",
             "Processor time of calibration, then of one quantization with each observer, then of one with equalization (what it changed is measured again) and bias correction; the least of three runs.", "",
             "| network | calibrate | minmax | percentile | mse | kl | coordinate | equalize, bias | all | without coordinate | bar |", f"|{'---|' * 11}"]  # fmt: skip
    for model, parts in facts["speed"].items():
        whole, bar = sum(parts.values()), {"ResNet-8": "5 s", "DS-CNN": "1 s"}.get(model, "")
        lines.append(
            f"| {model} | {' | '.join(f'{value:.2f}' for value in parts.values())} | {whole:.2f} | {whole - parts['coordinate']:.2f} | {bar} |"
        )
    lines += ["", "## Tried, and left out", "",
              "Static W8A8 with int8 weights by their largest value, ranges by the observer alone (the rows `minmax`, `percentile`, `mse`, `kl` above are the same plan):", "",
              "| network | observer | agreement | KL |", "|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {one['model']} | {one['name']} | {one['agreement']:.2%} | {one['kl']:.4f} |" for one in facts["tried"]
    ]
    lines += ["", "By KL neither comes before `mse` and `percentile` anywhere. ACIQ's agreement on ResNet-8 is above that of every observer alone, at twice their KL, and below the chosen plan's; on DS-CNN it is last: so neither is an observer. "
              "AdaRound, HQQ and PACT: [measured at four bits](../tried/index.md).", ""]  # fmt: skip
    return "\n".join(lines)


def speed(network) -> dict[str, float]:
    """Processor seconds of each part, the least of three runs."""
    parts: dict[str, float] = {}

    def timed(name, work, *arguments):
        begun = time.process_time()
        made = work(*arguments)
        parts[name] = min(time.process_time() - begun, parts.get(name, np.inf))
        return made

    for _ in range(3):
        cal = timed("calibrate", hwq.calibrate, network.graph, network.calibration)
        for observer in ("minmax", "percentile", "mse", "kl", "coordinate"):
            timed(observer, quantized, network, cal, observer)
        timed("equalize, bias", quantized, network, cal, "mse", {"equalize": True, "bias_correction": "empirical"})
    return parts


def quantized(network, cal, observer, transforms=None, layers=()):
    table = {
        "schema": 1,
        "dialect": "hwq",
        "default": {"activations": {"observer": observer}},
        "transforms": transforms or {},
        "layers": list(layers),
    }
    plan = Method("", "", Plan.model_validate(table)).on(network.graph) if not layers else Plan.model_validate(table)
    return hwq.quantize(network.graph, plan, cal, network.calibration)


def other_observers(network):
    """Moving average of the batches' ranges (rate 0.01, as torch and onnxruntime; batches of 8) and ACIQ's Laplace clip."""
    graph, cal = network.graph, hwq.calibrate(network.graph, network.calibration)
    averages: dict[str, np.ndarray] = {}
    for start in range(0, len(network.calibration), 8):
        values = evaluate(graph, {graph.inputs[0]: network.calibration[start : start + 8]}, intermediates=True)
        values[graph.inputs[0]] = network.calibration[start : start + 8]
        for name, value in values.items():
            ends = np.array([min(float(value.min()), 0.0), max(float(value.max()), 0.0)])
            averages[name] = ends if name not in averages else 0.99 * averages[name] + 0.01 * ends
    wanted = hwq.execute(graph, network.images)
    for name, find in (
        ("moving average", lambda tensor: averages[tensor]),
        ("ACIQ, Laplace", lambda tensor: aciq(cal[tensor])),
    ):
        base = quantized(network, cal, "minmax")
        points = {
            tensor.removesuffix("_quantized"): one
            for tensor, one in base.tensors.items()
            if one.dtype == "uint8" and not one.constant
        }
        rules = (
            [{"match": {"op": "Softmax"}, "activations": {"mode": "float"}}]
            if any(node.op == "Softmax" for node in graph.nodes)
            else []
        )
        for tensor in points:
            if tensor not in cal.tensors or tensor not in averages:
                continue
            low, high = find(tensor)
            scale = max(high - low, 1e-12) / 255
            rules.append(
                {
                    "match": {"tensor": tensor},
                    "activations": {
                        "scale": float(np.float32(scale)),
                        "zero_point": int(np.clip(np.rint(-low / scale), 0, 255)),
                    },
                }
            )
        made = hwq.execute(quantized(network, cal, "minmax", None, rules), network.images)
        p, q = distributions(wanted.astype(np.float64), made.astype(np.float64))
        yield {
            "model": network.name,
            "name": name,
            "agreement": float((made.argmax(-1) == wanted.argmax(-1)).mean()),
            "kl": float((p * np.log(p / q)).sum(-1).mean()),
        }


def aciq(seen) -> tuple[float, float]:
    """Mean +- c b, b = E|x - mean|; for 8 bits c solves 2 exp(-c) = 2 c / (3 * 4^8) (Banner et al. 2019, equation 10); a side that holds nothing stays at zero."""
    centers = (seen.edges[:-1] + seen.edges[1:]) / 2
    deviation = float((seen.histogram * np.abs(centers - seen.mean)).sum() / seen.count)
    clip = 9.0
    for _ in range(50):
        clip = math.log(3 * 4**8 / clip)
    return max(seen.mean - clip * deviation, min(seen.minimum, 0.0)), min(
        seen.mean + clip * deviation, max(seen.maximum, 0.0)
    )


def picture(rows) -> str:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "accuracy"
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(4.2 * len(models), 4.4), layout="constrained", squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model and row["group"] != "float32"]
        for by, color in (("hwq", "#0072b2"), ("other", "#d55e00")):
            part = [row for row in mine if (row["by"] == "hwq") == (by == "hwq")]
            for group, marker in (("W8A8 static", "o"), ("W8 dynamic", "^"), ("W4A8", "s")):
                these = [row for row in part if row["group"] == group]
                axis.scatter(
                    [max(float(row["seconds"]), 0.01) for row in these],
                    [max(100.0 - 100.0 * float(row["agreement"]), 0.05) for row in these],
                    marker=marker, color=color, s=[70 if row["chosen"] == "True" else 22 for row in these],
                    label=f"{by}, {group}" if these else None, alpha=0.85,
                )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(model)
        axis.set_xlabel("CPU seconds to quantize")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("samples that disagree with float, % (0 drawn at 0.05)")
    axes[0][-1].legend(frameon=False, fontsize=8)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def write(rows, facts) -> None:
    texts = {
        "index.md": page(rows, facts),
        "accuracy.svg": picture(rows),
        "facts.json": json.dumps(facts, indent=1) + "\n",
    }
    for name, text in texts.items():
        with write_atomically(FOLDER / name, overwrite=True, mode="w") as file:
            file.write(text)


def read():
    return list(csv.DictReader((FOLDER / "rows.csv").read_text().splitlines())), json.loads(
        (FOLDER / "facts.json").read_text()
    )


def main() -> None:
    wanted = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    wanted.add_argument("--peer-python", action="append", default=[], metavar="PYTHON")
    wanted.add_argument("--network", action="append", metavar="NAME")
    wanted.add_argument("--own", action="store_true")
    wanted.add_argument("--page", action="store_true")
    wanted.add_argument("--speed", action="store_true")
    asked = wanted.parse_args()
    if asked.page:
        write(*read())
        return
    if not SHARED.is_dir():
        sys.exit(f"reports/accuracy.py: no models at {SHARED}; set HWQ_SHARED. The folder stays as it is.")
    networks = [network for find in NETWORKS if (network := find(SHARED)) is not None]
    if asked.speed:
        rows, facts = read()
        facts["speed"] = {network.name: speed(network) for network in networks if not network.brief}
        write(rows, facts)
        return
    board = measure(
        SHARED, toolkits=not asked.own, pythons=asked.peer_python, networks=asked.network,
        progress=lambda what: print(what, flush=True),
    )  # fmt: skip
    made = list(csv.DictReader(board.to_csv().splitlines()))
    facts = {key: value for key, value in board.to_dict().items() if key in {"machine", "protocols", "absent"}}
    if asked.own:
        rows, before = read()
        made += [row for row in rows if row["by"] != "hwq" and row["model"] in facts["protocols"]]
        made.sort(key=lambda row: [*GROUPS].index(row["group"]) if row["group"] in GROUPS else -1)
        facts["absent"] = before["absent"]
    if asked.network:
        rows, before = read()
        made = [row for row in rows if row["model"] not in facts["protocols"]] + made
        facts = {**before, **facts, "protocols": before["protocols"] | facts["protocols"],
                 "absent": sorted({*before["absent"], *facts["absent"]})}  # fmt: skip
    else:
        small = [network for network in networks if not network.brief]
        facts["speed"] = {network.name: speed(network) for network in small}
        facts["tried"] = [row for network in small for row in other_observers(network)]
    keep(made, facts)


def keep(rows, facts) -> None:
    """Write the folder, networks in the protocols' order."""
    order = list(facts["protocols"])
    rows = sorted(rows, key=lambda row: order.index(row["model"]))
    text = io.StringIO()
    lines = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    FOLDER.mkdir(exist_ok=True)
    with write_atomically(FOLDER / "rows.csv", overwrite=True, mode="w") as file:
        file.write(text.getvalue())
    write(rows, facts)


if __name__ == "__main__":
    main()
