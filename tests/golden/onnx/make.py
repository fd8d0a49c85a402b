"""Writes outputs.npz and provenance.json beside it: what onnxruntime and onnx's evaluator make of one-op models.

Run with ``python tests/golden/onnx/make.py`` where onnxruntime, and on a CPU with VNNI also qemu-user-static, are installed
(half a minute), on a CPU with AVX-512: what follows from the width of vectors is recorded with 16 floats and with 8. Models and inputs are drawn by hwq/verification/onnx_models.py, by seeds that provenance.json holds with a
hash of what they drew; every expectation comes from a runtime. Outputs are kept as a hash of all bytes and their first
elements, to show where a difference begins.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hwq.verification import onnx_dialects as runtimes
from hwq.verification.onnx_models import CASES, VECTORS

HERE = Path(__file__).resolve().parent
# Elements kept of every output.
HEAD = 1024
DRAWS = 2


def drawn_hash(model: Any, feeds: dict[str, Any]) -> str:
    """sha256 of constants, attributes and inputs: whatever else a writer of ONNX files puts beside them does not count."""
    made = hashlib.sha256()
    for tensor in model.graph.initializer:
        made.update(tensor.name.encode() + tensor.raw_data)
    for node in model.graph.node:
        made.update(" ".join([node.op_type, *node.input, *node.output]).encode())
    for name, value in feeds.items():
        made.update(name.encode() + value.tobytes())
    return made.hexdigest()


def recorded(value: Any) -> dict[str, Any]:
    """The facts of one output."""
    return {
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "sha256": hashlib.sha256(value.tobytes()).hexdigest(),
    }


def main() -> None:
    """Run everything."""
    if runtimes.lanes() != 16:
        sys.exit("onnxruntime computes floats in vectors of 8 on this CPU: use one with AVX-512")
    facts: dict[str, Any] = {}
    heads: dict[str, Any] = {}
    values = 0

    def keep(key: str, dialect: str, value: Any) -> None:
        nonlocal values
        value = np.asarray(value)
        values += value.size
        facts[key][dialect] = recorded(value)
        if facts[key].get("ort", {}).get("sha256") != facts[key][dialect]["sha256"] or dialect == "ort":
            heads[f"{key}|{dialect}"] = value.reshape(-1)[:HEAD]

    for name, draw in CASES.items():
        for index in range(DRAWS):
            model, feeds = runtimes.drawn(name, draw, index)
            key = f"{name}#{index}"
            facts[key] = {"drawn": drawn_hash(model, feeds)}
            for dialect in ("ort", "ort-unfused"):
                keep(key, dialect, runtimes.onnxruntime_outputs(model, feeds, dialect))
            if name.startswith(runtimes.STANDARD) and "ToFloat" not in name:
                keep(key, "onnx", runtimes.evaluator_outputs(model, feeds, "onnx"))
    for name, draw in VECTORS.items():
        for index in range(DRAWS):
            model, feeds = runtimes.drawn(name, draw, index)
            facts[f"{name}#{index}"] = {"drawn": drawn_hash(model, feeds)}
            keep(f"{name}#{index}", "ort-avx512", runtimes.onnxruntime_outputs(model, feeds, "ort-avx512"))
    kinds = {**CASES, **VECTORS}
    prepared = {
        f"{name}#{index}": runtimes.drawn(name, draw, index) for name, draw in kinds.items() for index in range(DRAWS)
    }
    outputs, command = runtimes.saturating_outputs(prepared)
    for key in prepared:
        keep(key, "ort-avx2-saturating", outputs[f"{key}|out|0"])
    np.savez_compressed(HERE / "outputs.npz", **heads)
    provenance = {
        "command": "python tests/golden/onnx/make.py",
        "runtimes": {
            "ort": f"onnxruntime {version('onnxruntime')}, session.x64quantprecision=1, one thread",
            "ort-avx512": f"onnxruntime {version('onnxruntime')}, as ort, on a CPU with AVX-512",
            "ort-unfused": f"onnxruntime {version('onnxruntime')}, ORT_DISABLE_ALL, one thread",
            "ort-avx2-saturating": f"onnxruntime {version('onnxruntime')}, default options, one thread; {command}",
            "onnx": f"onnx {version('onnx')} ReferenceEvaluator",
        },
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "models": len(kinds),
        "values": values,
        "outputs": facts,
    }
    (HERE / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    print(len(facts), "models", values, "values", file=sys.stderr)


if __name__ == "__main__":
    main()
