"""Writes saturation.npz: what onnxruntime's default kernels make of two INT8 models on a CPU without VNNI, every test image.

Run with ``HWQ_SHARED=... python tests/golden/onnx/make_saturation.py`` where onnxruntime is installed: on an x86-64 CPU with
AVX2 and without VNNI, or where qemu-x86_64-static is, which emulates one (3 minutes). The models are quantized by hwq
(min-max, uint8 activations, int8 weights) and written as QDQ; every expectation comes from onnxruntime. The file holds
outputs and a hash of each model's constants, no weights and no images.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import hwq
from hwq.exporters.onnx import to_model
from hwq.verification import avx2

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent.parent / "reports"))
import saturation  # noqa: E402

CHUNK = 100


def constants_hash(graph: hwq.Graph) -> str:
    """sha256 of the names and bytes of every constant of the exported model."""
    made = hashlib.sha256()
    for tensor in sorted(to_model(graph).graph.initializer, key=lambda one: one.name):
        made.update(tensor.name.encode() + tensor.raw_data)
    return made.hexdigest()


def models(only: str = "") -> Any:
    """(key, quantized graph, test data, labels), as reports/saturation.py has them; all, or the one called `only`."""
    for data in (saturation.keyword_spotting, saturation.image_classification):
        name, path, calibration, test, labels = data()
        if only and not only.startswith(f"{name}|"):
            continue
        graph = hwq.load(str(path))
        for granularity in ("channel", "tensor"):
            if only and only != f"{name}|{granularity}":
                continue
            plan = hwq.Plan.uniform(weights="int8", activations="uint8", granularity=granularity, dialect="ort")
            yield (
                f"{name}|{granularity}",
                hwq.quantize(graph, plan, hwq.calibrate(graph, calibration)),
                test,
                labels,
            )


def run(graph: hwq.Graph, test: Any) -> tuple[Any, str]:
    """The default session's outputs, in a process of its own."""
    command, told = avx2.command("ort-avx2-saturating", HERE.parent.parent.parent / "hwq/verification/emulated.py")
    model = np.frombuffer(to_model(graph).SerializeToString(), np.uint8)
    arrays = {}
    for first in range(0, len(test), CHUNK):
        key = f"{first:06d}"
        arrays[f"{key}|model"] = model
        arrays[f"{key}|in|{graph.inputs[0]}"] = test[first : first + CHUNK]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)
        subprocess.run([*command, str(source), str(target)], check=True, stderr=subprocess.DEVNULL)
        made = np.load(target)
        outputs = np.concatenate([made[f"{key}|out|0"] for key in sorted({name.split("|")[0] for name in arrays})])
    return outputs, told


def main() -> None:
    """Write outputs, hashes and provenance."""
    arrays, facts = {}, {}
    for key, graph, test, _ in models():
        arrays[key], told = run(graph, test)
        facts[key] = {"constants": constants_hash(graph), "samples": len(test), "command": told}
        print(key, facts[key], flush=True)
    np.savez_compressed(HERE / "saturation.npz", **arrays)
    provenance = {
        "command": "python tests/golden/onnx/make_saturation.py",
        "runtime": f"onnxruntime {version('onnxruntime')}, default session options, one thread",
        "models": facts,
    }
    (HERE / "saturation.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
