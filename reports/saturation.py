"""What onnxruntime's default u8 x s8 kernels make of a good INT8 model on an x86-64 CPU without VNNI.

There AVX2 multiplies bytes with VPMADDUBSW, which adds neighboring products (k = 2i, 2i + 1) with int16 saturation. hwq
computes it as dialect ort-avx2-saturating on any CPU; onnxruntime's own outputs, recorded on an emulated CPU without VNNI,
stand beside it. On this CPU's own onnxruntime both settings are run too.

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
from hwq.lowering import lower
from hwq.overflow import prove
from hwq.repair import repair

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("HWQ_SHARED", ROOT.parent / "shared")) / "models"
FOLDER = Path(__file__).with_suffix("")
# onnxruntime's own outputs on a CPU without VNNI (tests/golden/onnx/make_saturation.py, under qemu's user emulation).
RECORDED = ROOT / "tests" / "golden" / "onnx" / "saturation.npz"


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
    recorded = np.load(RECORDED)
    for name, path, calibration, test, labels in (keyword_spotting(), image_classification()):
        graph = hwq.load(str(path))
        floating = hwq.execute(graph, test)
        for granularity in ("channel", "tensor"):
            plan = hwq.Plan.uniform(weights="int8", activations="uint8", granularity=granularity, dialect="ort")
            quantized = hwq.quantize(graph, plan, hwq.calibrate(graph, calibration))
            exact = hwq.execute(quantized, test)
            broken = hwq.execute(quantized, test, "ort-avx2-saturating")
            theirs = recorded[f"{name}|{granularity}"]
            proofs = prove(lower(quantized, "ort"))
            mended = hwq.execute(repair(quantized).graph, test, "ort-avx2-saturating")
            yield {
                "model": name,
                "weights": f"int8 per {granularity}",
                "samples": len(test),
                "float_accuracy": accuracy(floating, labels),
                "exact_accuracy": accuracy(exact, labels),
                "saturating_accuracy": accuracy(broken, labels),
                "outputs_differing": float((exact != broken).mean()),
                "pairs_that_can_saturate": sum(one.unsafe_pairs for one in proofs) / sum(one.pairs for one in proofs),
                "recorded_accuracy": accuracy(theirs, labels),
                "differs_from_recorded": int((theirs.view(np.uint32) != broken.view(np.uint32)).sum()),
                "repaired_accuracy": accuracy(mended, labels),
                "repaired_differing": int((mended.view(np.uint32) != exact.view(np.uint32)).sum()),
                "onnxruntime_default_here": onnxruntime_accuracy(quantized, test, labels, exact=False),
                "onnxruntime_exact_here": onnxruntime_accuracy(quantized, test, labels, exact=True),
            }


def page(table) -> str:
    heads = ["model", "weights", "float", "exact INT8 (hwq, `ort`)", "CPU without VNNI (hwq, `ort-avx2-saturating`)", "outputs that differ",
             "pairs that can saturate", "onnxruntime itself there", "outputs where the two differ", "repaired, that CPU", "outputs that differ from exact",
             "onnxruntime default, this CPU", "onnxruntime exact, this CPU"]  # fmt: skip
    keys = ["float_accuracy", "exact_accuracy", "saturating_accuracy", "outputs_differing", "pairs_that_can_saturate",
            "recorded_accuracy", "differs_from_recorded", "repaired_accuracy", "repaired_differing", "onnxruntime_default_here",
            "onnxruntime_exact_here"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in table:
        shown = [
            "not installed" if row[key] is None else str(row[key]) if isinstance(row[key], int) else f"{row[key]:.2%}"
            for key in keys
        ]
        lines.append(f"| {row['model']} ({row['samples']} samples) | {row['weights']} | {' | '.join(shown)} |")
    return f"""# Saturation: the same model, another CPU, another answer

A good static INT8 model (uint8 activations, int8 weights, min-max, calibrated on its own training samples), run three ways. *Default kernels* are onnxruntime 1.31.1's u8 x s8 products on an
x86-64 CPU with AVX2 and without VNNI: neighboring products are added with int16 saturation (VPMADDUBSW), 255 x 127 + 255 x 127 becomes 32767 instead of 64770. `session.x64quantprecision=1`, a CPU with VNNI,
and hwq on every CPU give the exact sum.

{chr(10).join(lines)}

*onnxruntime itself there* is its own default run on an emulated CPU without VNNI (qemu-x86_64-static -cpu EPYC-Rome), every sample; *repaired* is the model after `hwq portability --repair` (weights as uint8) on
that CPU; the last two columns are onnxruntime on the machine that made this page,
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
