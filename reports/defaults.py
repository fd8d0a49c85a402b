"""What a verb quantizes by where the user says nothing: eight bits, no choice made for the network.

Candidates are made from three quarters of each network's calibration samples and judged by their KL and agreement with float on
the last quarter; while fewer than 500 have judged, the next quarter has its turn. No scored sample is looked at. Dialect `ort`, as the verbs.

Run: python reports/defaults.py   (needs HWQ_SHARED and scikit-learn)
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

import hwq
from hwq.files import write_atomically
from hwq.plan import Plan
from hwq.samples import Samples
from hwq.validation.choice import divergence, turns
from hwq.validation.networks import NETWORKS

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HWQ_SHARED", ROOT.parent / "shared")) / "models"
FOLDER = Path(__file__).with_suffix("")
# Name: scale of the weights, observer, percentile, whether biases are corrected.
CANDIDATES = {
    "minmax": ("minmax", "minmax", 99.99, False), "minmax, bias": ("minmax", "minmax", 99.99, True),
    "percentile 99.99": ("minmax", "percentile", 99.99, False), "percentile 99.99, bias": ("minmax", "percentile", 99.99, True),
    "percentile 99.999, bias": ("minmax", "percentile", 99.999, True), "mse": ("minmax", "mse", 99.99, False),
    "mse, bias": ("minmax", "mse", 99.99, True), "mse, weights mse": ("mse", "mse", 99.99, False),
    "mse, weights mse, bias": ("mse", "mse", 99.99, True), "kl, bias": ("minmax", "kl", 99.99, True),
    "coordinate, bias": ("minmax", "coordinate", 99.99, True),
}  # fmt: skip


def plan(scale, observer, percentile, corrected):
    table = {
        "schema": 1, "dialect": "ort",
        "default": {"weights": {"dtype": "int8", "scale": scale}, "activations": {"observer": observer, "percentile": percentile}},
        "transforms": {"bias_correction": "empirical"} if corrected else {},
    }  # fmt: skip
    return Plan.model_validate(table)


def networks():
    """Name, float graph, calibration samples."""
    for find in NETWORKS:
        network = find(SHARED)
        if network is not None:
            yield network.name, network.graph, network.calibration
    from sklearn.datasets import load_digits

    graph = hwq.load(str(ROOT / "reports" / "encoder" / "encoder.onnx"))
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    yield "encoder", graph, (load_digits().images[:200] / 16).astype(np.float32).reshape(200, *shape)


def outputs(graph, samples):
    program = hwq.compile(graph)
    return np.concatenate([program(feed) for feed in samples.batches(64)])


def judged(graph, calibration):
    """KL and agreement of every candidate on samples held back from it."""
    name = graph.inputs[0]
    parts = [
        (Samples({name: calibration[~held]}, None), Samples({name: calibration[held]}, None))
        for held in turns(len(calibration))
    ]
    statistics = [hwq.calibrate(graph, kept.batches(64)) for kept, _ in parts]
    real = [outputs(graph, rest) for _, rest in parts]
    for label, settings in CANDIDATES.items():
        kl, same = [], []
        for (kept, rest), seen, wanted in zip(parts, statistics, real, strict=True):
            made = outputs(hwq.quantize(graph, plan(*settings), seen, kept.batches(64)), rest)
            kl.append(divergence(wanted, made))
            same.append(np.mean(wanted.argmax(-1) == made.argmax(-1)))
        yield label, float(np.mean(kl)), float(np.mean(same))


def main():
    rows = [[name, *row] for name, graph, calibration in networks() for row in judged(graph, calibration)]
    if len({row[0] for row in rows}) < len(NETWORKS) + 1:
        print(f"{SHARED} is not there: nothing is written")
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["network", "method", "KL", "agreement"], *([n, m, f"{kl:.6f}", f"{same:.4f}"] for n, m, kl, same in rows)])  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    with write_atomically(FOLDER / "defaults.csv", overwrite=True, mode="w") as stream:
        stream.write(text.getvalue())
    names = list(dict.fromkeys(row[0] for row in rows))
    lines = [
        "# Eight bits without a plan",
        "",
        " ".join(__doc__.split("\n\n")[1].split()),
        "",
        f"| method | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    best = {name: min(kl for n, _, kl, _ in rows if n == name) for name in names}
    ratios = {label: max(kl / best[n] for n, m, kl, _ in rows if m == label) for label in CANDIDATES}
    chosen = min(ratios, key=ratios.__getitem__)
    alone = min((label for label in CANDIDATES if not CANDIDATES[label][3]), key=ratios.__getitem__)
    for label in CANDIDATES:
        cells = [next(f"{kl:.5f} / {same:.2%}" for n, m, kl, same in rows if (n, m) == (name, label)) for name in names]
        lines.append(f"| {f'**{label}**' if label == chosen else label} | {' | '.join(cells)} |")
    lines += ["", "Each cell: mean KL / agreement. The largest KL over the best on any of the networks, by which the default is chosen: "
              + ", ".join(f"{label} {ratio:.2f}" for label, ratio in sorted(ratios.items(), key=lambda item: item[1])) + ".",
              "", f"So `hwq quantize`, `compare` and `report` take **{chosen}** (without samples to run again: {alone}). `hwq plan choose` chooses for the network at hand.", ""]  # fmt: skip
    with write_atomically(FOLDER / "index.md", overwrite=True, mode="w") as stream:
        stream.write("\n".join(lines))


if __name__ == "__main__":
    main()
