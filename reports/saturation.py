"""What onnxruntime's default u8 x s8 kernels make of a good INT8 model on an x86-64 CPU without VNNI.

There AVX2 multiplies bytes with VPMADDUBSW, which adds neighboring products (k = 2i, 2i + 1) with int16 saturation. The
arithmetic of `saturating` below was compared with onnxruntime 1.31.1 on such a CPU (0 of 4096 MatMul outputs, 0 of 256
QLinearConv outputs differ; k runs over kernel row, kernel column, channel; depthwise is exact there). This script puts it
into our program in place of the exact product, layer by layer, so the report can be made on any CPU. On this CPU's own
onnxruntime both settings are run too.

Run: python reports/saturation.py   (needs HWQ_SHARED, and onnxruntime for the last two columns)
"""

from __future__ import annotations

import csv
import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import hwq
from hwq.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HWQ_SHARED", ROOT.parent / "shared")) / "models"
FOLDER = Path(__file__).with_suffix("")
# Rows of a product that are expanded pair by pair at once: 2048 rows x 400 pairs x 64 columns of int32 are 210 MB.
ROWS = 2048
SATURATED = {"pairs": 0, "clipped": 0}


def saturating(a, b, *, a_zero_point, b_zero_points):
    """VPMADDUBSW, VPMADDWD with ones, VPADDD: int32 sums of int16-saturated pairs; zero points are corrected after."""
    a32, b32 = a.astype(np.int32), b.astype(np.int32)
    if b.shape[1] == 1:  # one output channel a group: depthwise, which onnxruntime computes exactly
        return (a32 - np.int32(a_zero_point)) @ (b32 - b_zero_points.astype(np.int32))
    if a.shape[1] % 2:
        a32, b32 = np.pad(a32, ((0, 0), (0, 1))), np.pad(b32, ((0, 1), (0, 0)))
    even, odd = b32[0::2], b32[1::2]
    acc = np.empty((len(a), b.shape[1]), np.int32)
    for start in range(0, len(a), ROWS):
        part = a32[start : start + ROWS]
        # |255 * 127 * 2| = 64770 and 255 * -128 * 2 = -65280 fit int32; the clip is the instruction's.
        pairs = part[:, 0::2, None] * even + part[:, 1::2, None] * odd
        SATURATED["pairs"] += pairs.size
        SATURATED["clipped"] += int(np.count_nonzero((pairs > 32767) | (pairs < -32768)))
        acc[start : start + ROWS] = pairs.clip(-32768, 32767).sum(axis=1, dtype=np.int32)
    correction = np.int32(a_zero_point) * b.astype(np.int32).sum(axis=0, dtype=np.int32)
    rows = a.astype(np.int32).sum(axis=1, dtype=np.int32)[:, None]
    return acc - correction - (rows - np.int32(a.shape[1] * a_zero_point)) * b_zero_points.astype(np.int32)


def keyword_spotting():
    """DS-CNN: 100 samples calibrate, 900 are scored (the protocol of the models' own notes)."""
    arrays = np.load(SHARED / "kws" / "kws_mfcc_1000.npz")
    features = ((arrays["x_int8"].astype(np.float32) - 83) * np.float32(0.5847029)).reshape(-1, 1, 49, 10)
    order = np.random.default_rng(0).permutation(1000)
    return (
        "DS-CNN",
        SHARED / "kws" / "ds_cnn_f32.onnx",
        features[order[:100]],
        features[order[100:]],
        arrays["y"][order[100:]],
    )


def image_classification():
    """ResNet-8: 500 images calibrate, 1017 are scored."""
    train, test = np.load(SHARED / "ic" / "cifar10_train3000.npz"), np.load(SHARED / "ic" / "cifar10_test1017.npz")
    images = [array["x"].transpose(0, 3, 1, 2).astype(np.float32) for array in (train, test)]
    return "ResNet-8", SHARED / "ic" / "resnet8_f32.onnx", images[0][::6], images[1], test["y"]


def onnxruntime_accuracy(graph, feeds, labels, exact: bool) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        hwq.export(graph, str(path), format="qdq")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return accuracy(session.run(None, {graph.inputs[0]: feeds})[0], labels)


def accuracy(outputs, labels) -> float:
    return float((outputs.argmax(axis=1) == labels).mean())


def has_vnni() -> bool:
    try:
        return any(word in Path("/proc/cpuinfo").read_text() for word in ("avx512_vnni", "avx_vnni"))
    except OSError:
        return False


def rows():
    for name, path, calibration, test, labels in (keyword_spotting(), image_classification()):
        graph = hwq.load(str(path))
        floating = hwq.execute(graph, test)
        for granularity in ("channel", "tensor"):
            plan = hwq.Plan.uniform(weights="int8", activations="uint8", granularity=granularity, dialect="ort")
            quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, calibration))
            SATURATED.update(pairs=0, clipped=0)
            exact = hwq.execute(quantized, test)
            broken = hwq.compile(quantized, gemm=saturating)(test)
            yield {
                "model": name,
                "weights": f"int8 per {granularity}",
                "samples": len(test),
                "float_accuracy": accuracy(floating, labels),
                "exact_accuracy": accuracy(exact, labels),
                "saturating_accuracy": accuracy(broken, labels),
                "outputs_differing": float((exact != broken).mean()),
                "pairs_saturated": SATURATED["clipped"] / SATURATED["pairs"],
                "onnxruntime_default_here": onnxruntime_accuracy(quantized, test, labels, exact=False),
                "onnxruntime_exact_here": onnxruntime_accuracy(quantized, test, labels, exact=True),
            }


def page(table) -> str:
    heads = ["model", "weights", "float", "exact INT8 (hwq, `ort`)", "default kernels, CPU without VNNI", "outputs that differ",
             "pairs that saturate", "onnxruntime default, this CPU", "onnxruntime exact, this CPU"]  # fmt: skip
    keys = ["float_accuracy", "exact_accuracy", "saturating_accuracy", "outputs_differing", "pairs_saturated",
            "onnxruntime_default_here", "onnxruntime_exact_here"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in table:
        shown = [
            "not installed"
            if row[key] is None
            else f"{row[key]:.3%}"
            if key == "pairs_saturated"
            else f"{row[key]:.2%}"
            for key in keys
        ]
        lines.append(f"| {row['model']} ({row['samples']} samples) | {row['weights']} | {' | '.join(shown)} |")
    return f"""# Saturation: the same model, another CPU, another answer

A good static INT8 model (uint8 activations, int8 weights, min-max, calibrated on its own training samples), run three ways. *Default kernels* are onnxruntime 1.31.1's u8 x s8 products on an
x86-64 CPU with AVX2 and without VNNI: neighboring products are added with int16 saturation (VPMADDUBSW), 255 x 127 + 255 x 127 becomes 32767 instead of 64770. `session.x64quantprecision=1`, a CPU with VNNI,
and hwq on every CPU give the exact sum.

{chr(10).join(lines)}

The middle columns are computed by hwq with the saturating product in the place of the exact one, layer by layer; the last two are onnxruntime itself on the machine that made this page,
{"which has VNNI, so its default kernels are exact here" if has_vnni() else "which has no VNNI"}.
Made by `python reports/saturation.py`; numbers in [rows.csv](rows.csv), picture in [accuracy.svg](accuracy.svg). Models and data: mlcommons/tiny (Apache-2.0), CIFAR-10 test images, Speech Commands
features; evaluated, not shipped.

![accuracy by arithmetic](accuracy.svg)
"""


def picture(table) -> str:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "saturation"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    bars = [
        ("float32", "float_accuracy", "#8c8c8c"),
        ("exact INT8", "exact_accuracy", "#0072b2"),
        ("saturating INT8", "saturating_accuracy", "#d55e00"),
    ]
    for index, (label, key, color) in enumerate(bars):
        places = [place + 0.26 * (index - 1) for place in range(len(table))]
        drawn = axes.bar(places, [100 * row[key] for row in table], width=0.24, color=color, label=label)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.set_xticks(range(len(table)), [f"{row['model']}\n{row['weights']}" for row in table])
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 109)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def main() -> None:
    if not SHARED.is_dir():
        sys.exit(f"reports/saturation.py: no models at {SHARED}; set HWQ_SHARED. The folder stays as it is.")
    table = list(rows())
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    for name, text in {"index.md": page(table), "rows.csv": stream.getvalue(), "accuracy.svg": picture(table)}.items():
        with write_atomically(FOLDER / name, overwrite=True, mode="w") as file:
            file.write(text)
    print(stream.getvalue())


if __name__ == "__main__":
    main()
