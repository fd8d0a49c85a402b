"""The litert dialects against the installed LiteRT: random models of one operator, every output value compared."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.execution import execute
from hwq.graph import Array, Graph, carrier
from hwq.importers.tflite import read
from hwq.kernels import available_isas
from hwq.progress import Progress
from hwq.verification import RATE_VALUES, Bound, Case, Verification, Verifier, apart

__all__ = ["VERIFIERS", "litert_outputs"]

RESOLVERS = {"litert-ref": "BUILTIN_REF", "litert-xnnpack": "AUTO"}
# BUILTIN_REF of 2.3.0 reads uint8 images of RESIZE_BILINEAR in float; LiteRT refuses a per-tensor scale of some hybrid
# filters. A refused model is drawn again, this often at most.
REDRAWS = 20


def litert_outputs(model: bytes, feeds: Sequence[Array], dialect: str) -> list[Array]:
    """LiteRT's outputs, one thread.

    Raises
    ------
    Error
        It refuses the model.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = getattr(OpResolverType, RESOLVERS[dialect])
    try:
        interpreter: Any = Interpreter(model_content=model, experimental_op_resolver_type=resolver, num_threads=1)
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), feeds, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise Error("LiteRT refuses this model", why=str(error)[:200]) from error
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


def _halves(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Floats whose quantization over the range of their own row (image) falls on halves or beside them, zero points too."""
    rows, count = shape[0] if shape else 1, int(np.prod(shape[1:]))
    made = np.empty((rows, count), np.float32)
    for row in made:
        low, high = -rng.uniform(0, 9) * rng.integers(0, 2), rng.uniform(0, 9) * rng.integers(0, 2)
        ends = np.array([low, high if rng.random() < 0.7 else -low], np.float32)
        step = (ends[1] - ends[0]) / np.float32(rng.choice([254, 255]))
        near = ((rng.integers(-128, 128, count) + 0.5) * float(step)).astype(np.float32)
        beside = (near.view(np.int32) + rng.integers(-2, 3, count, np.int32)).view(np.float32)
        near = np.clip(np.where(near == 0, near, beside), *ends)
        near[: min(2, count)] = ends[: min(2, count)]
        row[:] = rng.permutation(near)
    return made.reshape(shape)


def _floats(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    kind = rng.integers(0, 3)
    if kind == 0:
        return np.asarray(rng.integers(-400, 400, shape) / 40)
    return np.asarray(3 * rng.standard_normal(shape)) if kind == 1 else _halves(rng, shape)


def _draw(rng: np.random.Generator, graph: Graph) -> list[Array]:
    """All of the type's range for integers, sometimes its ends alone; floats on a grid of ties, normal, or on halves of their own range."""
    found = []
    for name in graph.inputs:
        tensor = graph.tensors[name]
        shape, kind = tuple(int(dim) for dim in tensor.shape), carrier(tensor.dtype)
        values: Array
        if kind.kind == "f":
            values = _floats(rng, shape)
        else:
            info = np.iinfo(kind)
            values = rng.choice([info.min, info.max], shape) if rng.random() < 0.2 else rng.integers(info.min, info.max + 1, shape)  # fmt: skip
        found.append(np.asarray(values).astype(kind))
    return found


def _compare(name: str, draw: Any, values: int, dialect: str, bound: Bound | None) -> Case:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    compared = wrong = done = refused = 0
    distance, values = 0.0, values if bound is None else max(values, RATE_VALUES)
    try:
        while compared < values or done < 2:
            model = draw(rng)
            graph = read(model, name)
            feeds = _draw(rng, graph)
            try:
                (theirs,) = litert_outputs(model, feeds, dialect)
            except Error:
                refused += 1
                if refused > REDRAWS * (done + 1):
                    raise
                continue
            ours = np.asarray(execute(graph, dict(zip(graph.inputs, feeds, strict=True)), dialect))
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                raise Error(f"LiteRT makes {theirs.dtype} {theirs.shape}, hwq {ours.dtype} {ours.shape}")
            equal = (ours == theirs) | ((ours != ours) & (theirs != theirs))
            compared, wrong, done = compared + theirs.size, wrong + int((~equal).sum()), done + 1
            distance = max(distance, apart(ours, theirs))
    except Exception as error:  # whatever the runtime raises belongs to this case alone
        return Case(name, compared, wrong, bound is not None, f"{type(error).__name__}: {str(error)[:300]}")
    if bound is None:
        return Case(name, compared, wrong, distance=distance)
    return Case(name, compared, wrong, True, "", distance, bound.share, bound.distance)


def _with_litert(dialect: str, values: int, progress: Progress | None) -> Verification:
    try:
        installed = version("ai-edge-litert")
        import ai_edge_litert.schema_py_generated  # noqa: F401
    except (PackageNotFoundError, ImportError) as error:
        raise Error(
            f"dialect {dialect} cannot be verified here", why=f"LiteRT: {error}", remedy="pip install ai-edge-litert"
        ) from error
    from hwq.verification.tflite_models import CASES, FLOATS, WIDE

    wide = any(path.startswith("avx512") for path in available_isas())
    tables = [
        *((name, draw, None) for name, draw in CASES.items()),
        *((name, draw, bounds.get(dialect)) for name, (draw, bounds) in FLOATS.items()),
        *((name, draw, bounds.get(dialect) if wide else None) for name, (draw, bounds) in WIDE.items()),
    ]
    cases = []
    for done, (name, draw, bound) in enumerate(tables, start=1):
        cases.append(_compare(name, draw, values, dialect, bound))
        if progress is not None:
            progress(done, len(tables), name)
    command = f"Interpreter(experimental_op_resolver_type={RESOLVERS[dialect]}, num_threads=1)"
    return Verification(dialect, "ai-edge-litert", installed, command, tuple(cases))


VERIFIERS: Mapping[str, Verifier] = dict.fromkeys(RESOLVERS, _with_litert)
