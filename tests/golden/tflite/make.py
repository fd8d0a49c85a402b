"""Writes models.npz and outputs.npz beside it: one-op TFLite files, inputs, and what LiteRT makes of them.

Run with ``python tests/golden/tflite/make.py`` where ai-edge-litert is installed. Every expectation comes from the
runtime; of hwq only the writer of files is used. provenance.json says which version on which machine.
"""

from __future__ import annotations

import json
import platform
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import moves  # noqa: E402, F401
import pointwise  # noqa: E402, F401
import products  # noqa: E402, F401
import states  # noqa: E402, F401
from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: E402
from cases import CASES  # noqa: E402

RESOLVERS = {"ref": OpResolverType.BUILTIN_REF, "default": OpResolverType.AUTO}
# Each model runs so often in one interpreter, so that state is carried from run to run.
RUNS = 2


def draw(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], run: int) -> np.ndarray:
    """All of the type's range for integers; floats on a grid that hits ties in the first run, normal in the second."""
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        low, high = (info.min, info.max + 1) if dtype.itemsize < 4 else (-1000, 1000)
        values = rng.integers(low, high, shape)
        if dtype.itemsize == 1 and np.prod(shape) == 256:
            values = (np.arange(256) + info.min).reshape(shape)
        return values.astype(dtype)
    if run == 0:
        return (rng.integers(-400, 400, shape) / 40).astype(dtype)
    return (rng.standard_normal(shape) * 3).astype(dtype)


def run(model: bytes, resolver: OpResolverType, feeds: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The outputs of each run."""
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for arrays in feeds:
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        found.append([interpreter.get_tensor(detail["index"]).copy() for detail in interpreter.get_output_details()])
    return found


def main() -> None:
    models, arrays = {}, {}
    failed = []
    for name, build in CASES.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        model = build(rng)
        try:
            interpreter = Interpreter(model_content=model, experimental_op_resolver_type=RESOLVERS["ref"])
            interpreter.allocate_tensors()
            details = interpreter.get_input_details()
            feeds = [
                [draw(rng, np.dtype(d["dtype"]), tuple(d["shape"]), index) for d in details] for index in range(RUNS)
            ]
            results = {key: run(model, resolver, feeds) for key, resolver in RESOLVERS.items()}
        except (RuntimeError, ValueError) as error:
            failed.append((name, str(error).splitlines()[-1][:200]))
            continue
        models[name] = np.frombuffer(model, np.uint8)
        for index in range(RUNS):
            for place, array in enumerate(feeds[index]):
                arrays[f"{name}/{index}/in{place}"] = array
            for key, found in results.items():
                for place, array in enumerate(found[index]):
                    arrays[f"{name}/{index}/{key}{place}"] = array
    for name, why in failed:
        print(f"LiteRT refuses {name}: {why}", file=sys.stderr)
    np.savez_compressed(HERE / "models.npz", **models)
    np.savez_compressed(HERE / "outputs.npz", **arrays)
    facts = {
        "command": "python tests/golden/tflite/make.py",
        "runtime": f"ai-edge-litert {version('ai-edge-litert')}",
        "resolvers": {"ref": "BUILTIN_REF", "default": "AUTO (XNNPACK delegate), one thread"},
        "machine": platform.machine(),
        "python": platform.python_version(),
        "models": len(models),
        "values": {
            key: int(sum(a.size for n, a in arrays.items() if n.split("/")[2].startswith(key))) for key in RESOLVERS
        },
    }
    (HERE / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
