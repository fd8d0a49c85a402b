"""Training through the integer arithmetic: 8, 4 and 3 bit weights on the demo's digits, 4 bits on ResNet-8.

Digits: the demo model and the 1297 images of its training part; the 500 test images are scored once. ResNet-8 (needs
HWQ_SHARED): the plan rounds its 4-bit weights against 500 images (scale "seq-mse", rounding "coordinate", empirical bias
correction), then it learns from its float model on the training images and their mirror images, without labels. Rates and
temperatures are tried on 4585 of the 5085 and judged by their KL on the other 500; the best then trains on all 5085 and the
1017 test images are scored once. Every row's converted graph is run by the integer kernels, and its tensors are compared with
the trained module's: `bits` says how many of them differ.

Run: python reports/qat.py
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import hwq
import hwq.demo
import hwq.qat
from hwq.demo.train import split
from hwq.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HWQ_SHARED", ROOT.parent / "shared")) / "models"
FOLDER = Path(__file__).with_suffix("")
HEADER = ["model", "method", "accuracy %", "agreement %", "mean KL", "p", "bits", "seconds"]
# Rates beyond these were seen to leave the rounding's minimum for good.
RESNET = [{"epochs": 1, "rate": rate, "temperature": temperature, "batch": 64} for temperature in (1.0, 4.0) for rate in (1e-4, 5e-4, 2e-3)]  # fmt: skip
DIGITS = {"epochs": 12, "rate": 1e-2, "batch": 64}
PLAN = """schema = 1
dialect = "hwq"
[default]
weights = { dtype = "int4", scale = "seq-mse", rounding = "coordinate" }
activations = { dtype = "uint8", observer = "mse" }
[transforms]
bias_correction = "empirical"
[[layers]]
match = { op = "Softmax" }
activations = { mode = "float" }
"""


def softmax(x):
    """Probabilities, where the model ends in logits."""
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def mcnemar(one, other):
    """Two-sided exact p of paired right and wrong answers."""
    from math import comb

    b, c = int((one & ~other).sum()), int((~one & other).sum())
    n = b + c
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n) if n else 1.0


def row(model, method, graph, real, images, answers, seconds, prepared=None, logits=False):
    """One line of the table."""
    made = np.asarray(hwq.execute(graph, images))
    a, b = (softmax(real), softmax(made)) if logits else (real, made)
    kl = float((a * (np.log(a + 1e-9) - np.log(b + 1e-9))).sum(1).mean())
    different = ""
    if prepared is not None:
        _, seen = hwq.compile(graph)(images[:64], intermediates=True)
        traced = prepared.trace(images[:64])
        different = f"{sum(not np.array_equal(traced[name], value) for name, value in seen.items())} of {len(seen)}"
    right = [values.argmax(1) == answers for values in (real, made)] if answers is not None else None
    line = [model, method, "" if right is None else f"{100 * right[1].mean():.2f}", f"{100 * np.mean(made.argmax(1) == real.argmax(1)):.2f}",
            f"{kl:.4f}", "" if right is None else f"{mcnemar(*right):.2f}", different, f"{seconds:.0f}"]  # fmt: skip
    print(*line, flush=True)
    return line


def digits(rows):
    """W8, W4 and W3 on the demo model, minmax scales: the plain start."""
    from sklearn.datasets import load_digits

    data, graph = hwq.demo.data(), hwq.load(str(hwq.demo.model_path()))
    images = (load_digits().images / 16).astype(np.float32)[:, None]
    training = images[split(len(images))[0]]
    real = np.asarray(hwq.execute(graph, data.images))
    for dtype in ("int8", "int4", "int3"):
        plan = hwq.Plan.uniform(dtype, "uint8", dialect="hwq")
        start = time.process_time()
        prepared = hwq.qat.prepare(graph, plan, batches=data.calibration)
        label = f"W{dtype[-1]}A8"
        rows.append(row("digits", f"{label} post-training", hwq.qat.convert(prepared), real, data.images, data.labels,
                        time.process_time() - start, prepared, logits=True))  # fmt: skip
        hwq.qat.distill(prepared, training, **DIGITS)
        rows.append(row("digits", f"{label} trained", hwq.qat.convert(prepared), real, data.images, data.labels,
                        time.process_time() - start, prepared, logits=True))  # fmt: skip


def learn(graph, plan, calibration, training, setting):
    """The module that learned from its float model on images and their mirror images."""
    import torch

    prepared = hwq.qat.prepare(graph, plan, batches=calibration)
    with torch.no_grad():
        # From the middle of each cell: what coordinate descent chose stays until there is reason to leave.
        for weight in prepared.weights:
            weight.copy_(weight.round())
    random = torch.Generator().manual_seed(1)

    def mirrored(batch):
        return torch.where(torch.rand(len(batch), 1, 1, 1, generator=random) < 0.5, batch.flip(3), batch)

    hwq.qat.distill(prepared, training, augment=mirrored, **setting)
    return prepared


def resnet(rows, choices):
    """W4A8 on ResNet-8."""
    parts = [np.load(SHARED / "ic" / name)["x"] for name in ("cifar10_train3000.npz", "cifar10_train_extra2085.npz")]
    training = np.concatenate(parts).astype(np.float32).transpose(0, 3, 1, 2)
    calibration = training[:3000:6]
    graph = hwq.load(str(SHARED / "ic" / "resnet8_f32.onnx"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.toml").write_text(PLAN)
        plan = hwq.Plan.load(Path(folder) / "plan.toml")

    order = np.random.default_rng(0).permutation(len(training))
    held, rest = training[np.sort(order[:500])], training[np.sort(order[500:])]
    # No image that is held back calibrates either.
    samples = rest[:: len(rest) // 500][:500]
    real = np.asarray(hwq.execute(graph, held))
    start = hwq.qat.convert(hwq.qat.prepare(graph, plan, batches=samples))
    choices.append(["rounding alone", "", *row("held back", "rounding alone", start, real, held, None, 0)[3:5]])
    for setting in RESNET:
        made = hwq.qat.convert(learn(graph, plan, samples, rest, setting))
        line = row(
            "held back", f"rate {setting['rate']}, temperature {setting['temperature']}", made, real, held, None, 0
        )
        choices.append([f"{setting['rate']:g}", f"{setting['temperature']:g}", *line[3:5]])
    best = RESNET[min(range(len(RESNET)), key=lambda i: float(choices[1 + i][3]))]

    test = np.load(SHARED / "ic" / "cifar10_test1017.npz")
    images, answers = test["x"].astype(np.float32).transpose(0, 3, 1, 2), test["y"]
    real = np.asarray(hwq.execute(graph, images))
    start = time.process_time()
    prepared = hwq.qat.prepare(graph, plan, batches=calibration)
    rows.append(row("ResNet-8", "W4A8 post-training", hwq.qat.convert(prepared), real, images, answers,
                    time.process_time() - start, prepared))  # fmt: skip
    start = time.process_time()
    prepared = learn(graph, plan, calibration, training, best)
    rows.append(row("ResNet-8", f"W4A8 trained, rate {best['rate']:g}, temperature {best['temperature']:g}", hwq.qat.convert(prepared),
                    real, images, answers, time.process_time() - start, prepared))  # fmt: skip


def main():
    import torch

    torch.set_num_threads(1)
    rows, choices = [], []
    digits(rows)
    if not SHARED.exists():
        print(f"{SHARED} is not there: ResNet-8 is left out and nothing is written")
        return
    resnet(rows, choices)
    FOLDER.mkdir(exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    with write_atomically(FOLDER / "qat.csv", overwrite=True, mode="w") as stream:
        stream.write(text.getvalue())
    table = [HEADER, *rows]
    tried = [["rate", "temperature", "agreement %", "mean KL"], *choices]
    alone, trained = float(choices[0][3]), min(float(line[3]) for line in choices[1:])
    verdict = (
        "Training lowered the KL of images that it had not seen."
        if trained < alone
        else "Training did not lower the KL of images that it had not seen: four bits that were rounded against data leave it little."
    )
    lines = ["# Training through the integer arithmetic", "", __doc__.split("\n\n")[1].replace("\n", " "), "", *markdown(table), "",
             "Agreement, mean KL and p (McNemar, exact) are against the float model on the same images; seconds are of one core, from the float model on.", "",
             "## What was tried on ResNet-8, on the 500 training images held back", "", *markdown(tried), "", verdict, ""]  # fmt: skip
    with write_atomically(FOLDER / "index.md", overwrite=True, mode="w") as stream:
        stream.write("\n".join(lines))


def markdown(table):
    """A table's lines, its head first."""
    head, *body = ["| " + " | ".join(line) + " |" for line in table]
    return [head, "|" + "---|" * len(table[0]), *body]


if __name__ == "__main__":
    main()
