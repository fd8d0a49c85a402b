"""Whole models beside other runtimes: batch 1, one pinned thread, process CPU time, calls interleaved in one process.

Each runtime runs the integer form that it is best at: onnxruntime the QDQ export with its exact kernels
(``session.x64quantprecision=1``), LiteRT its default interpreter on a TFLite file. A contender's outputs are compared with
ours in its own dialect, bit for bit, before anything is timed.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hwq
from hwq.benchmark.rounds import pinned
from hwq.graph import Array, Graph

__all__ = ["Contender", "Row", "contenders", "geometric_mean", "measure"]

# A sample whose CPU time is below this share of its wall time was disturbed, and is dropped where enough others are left.
UNDISTURBED = 0.97
ENOUGH = 5
# CPU seconds of one sample: long beside the clock's steps, short beside a scheduler's time slice.
SAMPLE_SECONDS = 0.001


@dataclass(frozen=True)
class Contender:
    """One runtime with one model loaded: `run` is one inference on fixed data, `output` what it last gave."""

    runtime: str
    run: Callable[[], object]
    output: Callable[[], Array]
    ours: Callable[[], Array] | None = None


@dataclass(frozen=True)
class Row:
    """One contender's result on one model.

    Attributes
    ----------
    model, runtime : str
    path : str
        Kernel path that ours ran on.
    microseconds : float
        Median CPU time of one inference.
    ratio : float
        Median over interleaved samples of its time over ours: above 1, ours is faster.
    exact : bool or None
        Whether our outputs in its dialect are its bits; None for ours.
    samples : int
        Rounds of samples behind the ratio.
    undisturbed : bool
        Whether no other work took the core during them.
    """

    model: str
    runtime: str
    path: str
    microseconds: float
    ratio: float
    exact: bool | None
    samples: int
    undisturbed: bool


def contenders(model: str, *, threads: int = 1, seed: int = 0) -> list[Contender]:
    """Ours first, then every runtime that is installed and can run the model's integer form.

    Parameters
    ----------
    model : str
        A ``.tflite`` file (LiteRT), or anything else that `hwq.load` reads (onnxruntime): a float model is quantized
        to INT8 with seeded normal data.
    """
    graph = hwq.load(model)
    if str(model).endswith(".tflite"):
        return _beside_litert(graph, Path(model), threads, seed)
    return _beside_onnxruntime(graph, threads, seed)


def _data(graph: Graph, seed: int, count: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        shape = [int(dim) if isinstance(dim, int) and index else count for index, dim in enumerate(tensor.shape)]
        if tensor.dtype in {"int8", "uint8", "int16"}:
            info = np.iinfo(tensor.dtype)
            made[name] = random.integers(info.min, info.max + 1, shape).astype(tensor.dtype)
        else:
            made[name] = random.standard_normal(shape).astype(np.float32)
    return made


def _ours(graph: Graph, dialect: str | None, feeds: dict[str, Array], threads: int) -> Contender:
    session = hwq.compile(graph, dialect).session(threads)
    given: Any = next(iter(feeds.values())) if len(feeds) == 1 else feeds
    out: Any = session(given)
    return Contender("hwq", lambda: session(given, out=out), lambda: _first(out))


def _first(out: Any) -> Array:
    return np.asarray(next(iter(out.values())) if isinstance(out, dict) else out)


def _beside_onnxruntime(graph: Graph, threads: int, seed: int) -> list[Contender]:
    if not any(tensor.quantization is not None for tensor in graph.tensors.values()):
        graph = hwq.quantize(graph, hwq.Plan.uniform(), hwq.calibrate(graph, _data(graph, seed, 2)))
    feeds = _data(graph, seed + 1, 1)
    found = [_ours(graph, "ort", feeds, threads)]
    try:
        import onnxruntime
    except ImportError:
        return found
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    with tempfile.TemporaryDirectory() as folder:
        hwq.export(graph, Path(folder) / "model.onnx", format="qdq")
        runtime = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
    # Buffers bound once: onnxruntime's own way to leave Python's costs out.
    binding = runtime.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for output in runtime.get_outputs():
        binding.bind_output(output.name)
    found.append(
        Contender(
            "onnxruntime",
            lambda: runtime.run_with_iobinding(binding),
            lambda: np.asarray(binding.copy_outputs_to_cpu()[0]),
            found[0].output,
        )
    )
    return found


def _beside_litert(graph: Graph, path: Path, threads: int, seed: int) -> list[Contender]:
    feeds = _data(graph, seed + 1, 1)
    found = [_ours(graph, "litert-xnnpack", feeds, threads)]
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return found
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    for detail, array in zip(details, feeds.values(), strict=True):
        interpreter.set_tensor(detail["index"], array)
    made = interpreter.get_output_details()[0]["index"]
    found.append(
        Contender("litert", interpreter.invoke, lambda: np.array(interpreter.get_tensor(made)), found[0].output)
    )
    return found


def _sample(run: Callable[[], object], calls: int, threads: int) -> tuple[float, bool]:
    """Seconds of one call, and whether it had the core for itself; wall time where several threads share the work."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return (cpu if threads == 1 else wall) / calls, cpu >= UNDISTURBED * wall


def measure(name: str, runs: Sequence[Contender], *, seconds: float = 2.0, threads: int = 1) -> list[Row]:
    """Time contenders on one model, the first being ours.

    Parameters
    ----------
    name : str
        What the rows call the model.
    runs : sequence of Contender
        From `contenders`.
    seconds : float
        For all of them together.
    threads : int
        With more than one, nothing is pinned and times are wall times.
    """
    exact: list[bool | None] = []
    for one in runs:
        one.run()
        exact.append(None if one.ours is None else one.output().tobytes() == one.ours().tobytes())
    with pinned() if threads == 1 else contextlib.nullcontext():
        calls = [max(1, round(SAMPLE_SECONDS / max(_sample(one.run, 3, threads)[0], 1e-7))) for one in runs]
        rounds: list[list[tuple[float, bool]]] = []
        end = time.perf_counter() + seconds
        while len(rounds) < ENOUGH or time.perf_counter() < end:
            rounds.append([_sample(one.run, count, threads) for one, count in zip(runs, calls, strict=True)])
    alone = [row for row in rounds if all(undisturbed for _, undisturbed in row)]
    kept = [[cost for cost, _ in row] for row in (alone if len(alone) >= ENOUGH else rounds)]
    return [
        Row(
            name,
            one.runtime,
            hwq.kernels.isa(),
            statistics.median(row[index] for row in kept) * 1e6,
            statistics.median(row[index] / row[0] for row in kept),
            exact[index],
            len(kept),
            len(alone) >= ENOUGH,
        )
        for index, one in enumerate(runs)
    ]


def geometric_mean(rows: Sequence[Row]) -> float | None:
    """Over models, of the fastest other runtime's time over ours; None where nothing else ran."""
    best: dict[str, float] = {}
    for row in rows:
        if row.exact is not None:
            best[row.model] = min(row.ratio, best.get(row.model, row.ratio))
    return statistics.geometric_mean(best.values()) if best else None
