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
from hwq.progress import Progress
from hwq.verification import Case, Verification, Verifier

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


def _draw(rng: np.random.Generator, graph: Graph) -> list[Array]:
    """All of the type's range for integers, sometimes its ends alone; floats on a grid of ties, or normal."""
    found = []
    for name in graph.inputs:
        tensor = graph.tensors[name]
        shape, kind = tuple(int(dim) for dim in tensor.shape), carrier(tensor.dtype)
        if kind.kind == "f":
            values: Array = (
                rng.integers(-400, 400, shape) / 40 if rng.random() < 0.5 else 3 * rng.standard_normal(shape)
            )
        else:
            info = np.iinfo(kind)
            values = rng.choice([info.min, info.max], shape) if rng.random() < 0.2 else rng.integers(info.min, info.max + 1, shape)  # fmt: skip
        found.append(np.asarray(values).astype(kind))
    return found


def _compare(name: str, draw: Any, values: int, dialect: str, rate_only: bool) -> Case:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    compared = wrong = done = refused = 0
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
    except Exception as error:  # whatever the runtime raises belongs to this case alone
        return Case(name, compared, wrong, rate_only, f"{type(error).__name__}: {str(error)[:300]}")
    return Case(name, compared, wrong, rate_only)


def _with_litert(dialect: str, values: int, progress: Progress | None) -> Verification:
    try:
        installed = version("ai-edge-litert")
        import ai_edge_litert.schema_py_generated  # noqa: F401
    except (PackageNotFoundError, ImportError) as error:
        raise Error(
            f"dialect {dialect} cannot be verified here", why=f"LiteRT: {error}", remedy="pip install ai-edge-litert"
        ) from error
    from hwq.verification.tflite_models import CASES, FLOATS

    tables = [
        *((name, draw, False) for name, draw in CASES.items()),
        *((name, draw, True) for name, draw in FLOATS.items()),
    ]
    cases = []
    for done, (name, draw, rate_only) in enumerate(tables, start=1):
        cases.append(_compare(name, draw, values, dialect, rate_only))
        if progress is not None:
            progress(done, len(tables), name)
    command = f"Interpreter(experimental_op_resolver_type={RESOLVERS[dialect]}, num_threads=1)"
    return Verification(dialect, "ai-edge-litert", installed, command, tuple(cases))


VERIFIERS: Mapping[str, Verifier] = dict.fromkeys(RESOLVERS, _with_litert)
