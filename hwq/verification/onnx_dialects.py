"""How the ONNX dialects are verified: by onnxruntime (`ort`, `ort-avx512`, `ort-unfused`, `ort-avx2-saturating`) and by onnx's evaluator.

``ort`` names onnxruntime's exact kernels: session.x64quantprecision=1 asks for them on every x86-64 CPU, and what it does
not reach without VNNI is asked for unsigned (`hwq.verification.unsigned`). What
``ort-avx2-saturating`` names is the default of a CPU without VNNI; others are masked, or run it under qemu.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from hwq import masking
from hwq.dialect import find
from hwq.errors import Error
from hwq.execution import execute
from hwq.graph import Array
from hwq.importers.onnx import read
from hwq.progress import Progress
from hwq.verification import RATE_VALUES, Case, Verification, Verifier, apart, avx2, masked
from hwq.verification.onnx_builder import Builder
from hwq.verification.onnx_models import BOUNDS, CASES, RATES, VECTORS, Draw
from hwq.verification.unsigned import unsigned

__all__ = [
    "VERIFIERS",
    "drawn",
    "evaluator_outputs",
    "onnxruntime_outputs",
    "saturating_outputs",
]

# Cases that the standard's evaluator computes: its own operators, and float ones whose order leaves no choice.
STANDARD = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger",
            "ConvInteger", "QDQ Add", "QDQ Mul", "QDQ Concat", "island Relu", "island MaxPool")  # fmt: skip
# Dialects of exact products: on a CPU without VNNI onnxruntime is asked for the same integers unsigned.
EXACT = ("ort", "ort-avx512", "ort-unfused")
# Kinds whose bits need no width without onnxruntime's optimizer, which blocks the channels of images.
UNBLOCKED = ("island Conv", "float AveragePool")


def drawn(name: str, draw: Draw, index: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model of a case and its inputs; every second one on ties."""
    builder = Builder(np.random.default_rng([index, zlib.crc32(name.encode())]), ties=bool(index % 2))
    made = draw(builder)
    return builder.model(made), builder.feeds


def differing(ours: Array, theirs: Array) -> int:
    """Elements whose bits differ; NaN is NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return max(ours.size, theirs.size, 1)
    same = ours.view(f"u{ours.itemsize}") == theirs.view(f"u{theirs.itemsize}")
    if ours.dtype.kind == "f":
        same |= np.isnan(ours) & np.isnan(theirs)
    return int(ours.size - np.count_nonzero(same))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Error(
            f"{package} is not installed", why="the dialect is compared with it", remedy=f"pip install {package}"
        ) from None


def onnxruntime_outputs(model: onnx.ModelProto, feeds: Mapping[str, Array], dialect: str) -> Array:
    """The first output of a session with the options that the dialect names."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if dialect != "ort-avx2-saturating":
        options.add_session_config_entry("session.x64quantprecision", "1")
    if dialect == "ort-unfused":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


@functools.cache
def lanes() -> int:
    """Floats in the vectors of the installed onnxruntime on this CPU: with 8 the least exponentials of softmax are 0, with 16 not."""
    given = np.array([[0, -95]], np.float32)
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, given.shape)
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return 16 if onnxruntime_outputs(made, {"x": given}, "ort")[0, 1] else 8


def promised(name: str, dialect: str, width: int) -> bool:
    """Whether a dialect promises a kind's bits beside a runtime of such vectors."""
    if name in RATES:
        return False
    free = name not in VECTORS or (dialect == "ort-unfused" and name in UNBLOCKED)
    return free or int(find(dialect).formulas["float-lanes"]) == width


def evaluator_outputs(model: onnx.ModelProto, feeds: Mapping[str, Array], dialect: str) -> Array:
    """The first output of onnx's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        found: Any = ReferenceEvaluator(model).run(None, dict(feeds))
        return np.asarray(found[0])


def _compare(name: str, draw: Draw, values: int, dialect: str) -> Case:
    rate_only = dialect != "onnx" and not promised(name, dialect, lanes())
    values, distance = max(values, RATE_VALUES) if rate_only else values, 0.0
    outputs = evaluator_outputs if dialect == "onnx" else onnxruntime_outputs
    exact = dialect in EXACT and not avx2.has_vnni()
    compared = wrong = index = 0
    try:
        while compared < values or index < 2:
            model, feeds = drawn(name, draw, index)
            theirs = outputs(*(unsigned(model, feeds) if exact else (model, feeds)), dialect)
            ours = np.asarray(execute(read(model), feeds, dialect))
            compared, wrong, index = compared + theirs.size, wrong + differing(ours, theirs), index + 1
            distance = max(distance, apart(ours, theirs))
    except Exception as error:  # whatever the runtime raises belongs to this case alone
        return Case(name, compared, wrong, rate_only, f"{type(error).__name__}: {str(error)[:300]}")
    return _case(name, rate_only, compared, wrong, distance)


def _case(name: str, rate_only: bool, compared: int, wrong: int, distance: float) -> Case:
    if not rate_only:
        return Case(name, compared, wrong, distance=distance)
    bound = BOUNDS[name]
    return Case(name, compared, wrong, True, "", distance, bound.share, bound.distance)


def _native(dialect: str, values: int, progress: Progress | None) -> Verification:
    table = (
        CASES
        if dialect != "onnx"
        else {name: draw for name, draw in CASES.items() if name.startswith(STANDARD) and "ToFloat" not in name}
    )
    rates = {**VECTORS, **RATES} if dialect != "onnx" else {}
    cases: list[Case] = []
    for done, (name, draw) in enumerate([*table.items(), *rates.items()], start=1):
        cases.append(_compare(name, draw, values, dialect))
        if progress is not None:
            progress(done, len(table) + len(rates), name)
    package, command = (
        ("onnx", "onnx.reference.ReferenceEvaluator") if dialect == "onnx" else ("onnxruntime", "InferenceSession")
    )
    if dialect in EXACT and not avx2.has_vnni():
        command += " (uint8 x int8 products as uint8 x uint8: this CPU has no VNNI)"
    return Verification(dialect, package, _version(package), command, tuple(cases))


def _with_onnxruntime(dialect: str, values: int, progress: Progress | None) -> Verification:
    _version("onnxruntime")
    return _native(dialect, values, progress)


def _with_avx512(dialect: str, values: int, progress: Progress | None) -> Verification:
    _version("onnxruntime")
    if lanes() != 16:
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why="onnxruntime computes floats in vectors of 8 here",
            remedy="use a CPU with AVX-512",
        )
    return _native(dialect, values, progress)


def _with_onnx(dialect: str, values: int, progress: Progress | None) -> Verification:
    return _native(dialect, values, progress)


def _saturating(dialect: str, values: int, progress: Progress | None) -> Verification:
    version = _version("onnxruntime")
    if masking.maskable() and not masking.masked():
        return masked.verify(dialect, values, progress)
    if not avx2.has_vnni():
        return _native(dialect, values, progress)
    prepared = dict(_prepared(values))
    made, command = saturating_outputs(prepared)
    cases: dict[str, Case] = {}
    for done, (key, (model, feeds)) in enumerate(prepared.items(), start=1):
        name = key.rpartition("#")[0]
        rate_only = not promised(name, dialect, 8)
        before = cases.get(name, Case(name, 0, 0, rate_only))
        if f"{key}|failure" in made:
            cases[name] = Case(name, before.values, before.differing, before.rate_only, str(made[f"{key}|failure"]))
            continue
        theirs = made[f"{key}|out|0"]
        if before.failure:
            continue
        ours = np.asarray(execute(read(model), feeds, dialect))
        wrong, distance = before.differing + differing(ours, theirs), max(before.distance, apart(ours, theirs))
        cases[name] = _case(name, rate_only, before.values + theirs.size, wrong, distance)
        if progress is not None:
            progress(done, len(prepared), name)
    return Verification(dialect, "onnxruntime", version, command, tuple(cases.values()))


def saturating_outputs(
    prepared: Mapping[str, tuple[onnx.ModelProto, Mapping[str, Array]]],
) -> tuple[dict[str, Array], str]:
    """onnxruntime's default outputs of models on a CPU without VNNI, in a process of its own.

    Returns
    -------
    dict
        ``KEY|out|0`` for every model, or ``KEY|failure``.
    str
        How it was run.

    Raises
    ------
    Error
        This CPU has VNNI, cannot be masked, and there is no emulator.
    """
    command, told = avx2.command("ort-avx2-saturating", Path(__file__).with_name("emulated.py"))
    arrays = {
        f"{key}|model": np.frombuffer(model.SerializeToString(), np.uint8) for key, (model, _) in prepared.items()
    }
    arrays |= {f"{key}|in|{name}": value for key, (_, feeds) in prepared.items() for name, value in feeds.items()}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "models.npz", Path(folder) / "outputs.npz"
        np.savez(source, **arrays)  # type: ignore[arg-type]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run([*command, str(source), str(target)], env=environment, capture_output=True, text=True)
        if run.returncode or not target.is_file():
            raise Error(
                "onnxruntime failed", where=told, why=run.stderr[-500:] or None, remedy="use a CPU without VNNI"
            )
        return dict(np.load(target)), told


def _prepared(values: int) -> Iterator[tuple[str, tuple[onnx.ModelProto, dict[str, Any]]]]:
    """Cases whose products are uint8 x int8, and the others once: an emulated CPU is a hundred times slower."""
    for name, draw in {**CASES, **VECTORS, **RATES}.items():
        mixed = any(
            word in name
            for word in ("uint8 int8", "int8 uint8", "QGemm", "Gemm", "Conv", "QDQ MatMul", "Dynamic", "ToFloat")
        )
        for index in range(max(2, min(-(-values // 4096), 24)) if mixed else 2):
            yield f"{name}#{index}", drawn(name, draw, index)


VERIFIERS: Mapping[str, Verifier] = {
    "ort": _with_onnxruntime,
    "ort-avx512": _with_avx512,
    "ort-unfused": _with_onnxruntime,
    "ort-avx2-saturating": _saturating,
    "onnx": _with_onnx,
}
