"""Portability: one quantized model on every runtime and CPU class side by side, and what its weights alone prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.batches import Batches, cut, feeds
from hwq.dialect import find
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph
from hwq.lowering import lower
from hwq.names import display_name
from hwq.overflow import Proof, prove
from hwq.progress import Progress
from hwq.translation import Translation, Value, in_onnx, translate

__all__ = ["DIALECTS", "Portability", "Row", "portability"]

# Runtimes and CPU classes that are tried where the caller names none.
DIALECTS = ("ort", "ort-avx2-saturating", "ort-unfused", "litert-ref", "litert-xnnpack", "torch-fbgemm",
            "torch-fbgemm-avx2-saturating")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One runtime.

    Attributes
    ----------
    dialect, runtime, status : str
    accuracy : float or None
        Share of labels that the first output's largest element meets; None without labels.
    agreement : float or None
        Share of samples whose largest output stands where the reference's does.
    values, differing : int
        Output elements compared with the reference, bit for bit.
    first_differing : str
        The first stored or float value, in execution order, that differs; empty where none does.
    unavailable : str
        Why it could not run; empty where it did.
    """

    dialect: str
    runtime: str
    status: str
    accuracy: float | None = None
    agreement: float | None = None
    values: int = 0
    differing: int = 0
    first_differing: str = ""
    unavailable: str = ""


@dataclass(frozen=True)
class Portability:
    """What `portability` found.

    Attributes
    ----------
    model, reference : str
        The reference is the graph's own dialect: the others are compared with it.
    samples : int
    rows : tuple of Row
    proofs : tuple of Proof
        One a quantized product; empty where onnxruntime cannot represent the graph.
    """

    model: str
    reference: str
    samples: int
    rows: tuple[Row, ...]
    proofs: tuple[Proof, ...]

    @property
    def safe(self) -> bool:
        """Whether every product is proved safe on every CPU."""
        return all(proof.verdict == "safe on every CPU" for proof in self.proofs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "reference": self.reference,
            "samples": self.samples,
            "safe": self.safe,
            "rows": [vars(row) for row in self.rows],
            "proofs": [proof.to_dict() for proof in self.proofs],
        }

    def __str__(self) -> str:
        lines = [f"{display_name(self.model)}: {self.samples} samples, compared with {self.reference}"]
        for row in self.rows:
            if row.unavailable:
                lines.append(f"  {row.dialect:<20} -  {display_name(row.unavailable, limit=160)}")
                continue
            right = "" if row.accuracy is None else f"accuracy {row.accuracy:.2%}, "
            where = f", first in {display_name(row.first_differing)}" if row.first_differing else ""
            lines.append(
                f"  {row.dialect:<20} {right}agreement {row.agreement or 0:.2%}, "
                f"{row.differing} of {row.values} outputs differ{where}"
            )
        for proof in self.proofs:
            lines.append(f"  {display_name(proof.layer)} ({proof.op}): {proof.verdict}: {proof.reason}")
            if proof.witness is not None:
                one = proof.witness
                lines.append(
                    f"    breaks at {one.place}, output channel {one.column}: weights {one.weights}, activations 255 where they "
                    f"push outwards: {one.exact} becomes {one.saturated}"
                )
        return "\n".join(lines)


def portability(
    graph: Graph,
    batches: Batches,
    labels: Any = None,
    *,
    dialects: Sequence[str] = DIALECTS,
    progress: Progress | None = None,
) -> Portability:
    """Run a quantized model as every runtime computes it.

    Parameters
    ----------
    graph : Graph
        Quantized, in source form; its own dialect is the reference.
    batches : array, mapping, path, or iterable of them
    labels : integer array (samples,), optional
    dialects : sequence of str
    progress : callable, optional
        Called as ``progress(done, total, dialect)``.

    Returns
    -------
    Portability

    Raises
    ------
    Error
        The model cannot run in its own dialect, the labels do not fit, or there is no such dialect.
    """
    pieces = [piece for feed in feeds(graph, batches) for piece in cut(graph, feed)]
    samples = sum(next(iter(piece.values())).shape[0] for piece in pieces)
    classes = None if labels is None else np.asarray(labels).reshape(-1)
    if classes is not None and len(classes) != samples:
        raise Error(f"{len(classes)} labels were given for {samples} samples", where="labels")
    reference = compile(graph)
    names = [graph.dialect, *(name for name in dialects if name != graph.dialect)]
    expected = [_run(reference, piece) for piece in pieces]
    rows = []
    for done, name in enumerate(names, start=1):
        rows.append(_row(graph, name, reference, pieces, expected, classes))
        if progress is not None:
            progress(done, len(names), name)
    return Portability(graph.name, graph.dialect, samples, tuple(rows), _proofs(graph))


def _proofs(graph: Graph) -> tuple[Proof, ...]:
    try:
        return prove(lower(in_onnx(graph), "ort"))
    except Error:
        return ()


def _run(program: Program, piece: dict[str, Array]) -> list[Array]:
    made = program(piece)
    return list(made.values()) if isinstance(made, dict) else [made]


def _row(
    graph: Graph,
    name: str,
    reference: Program,
    pieces: list[dict[str, Array]],
    expected: list[list[Array]],
    classes: Array | None,
) -> Row:
    rules = find(name)
    try:
        translation = translate(graph, name) if name != graph.dialect else Translation(graph)
        program = compile(translation.graph, name)
        found = [_run(program, piece) for piece in pieces]
    except Error as error:
        reason = f"{error.what}{f': {error.why}' if error.why else ''}{f' ({error.where})' if error.where else ''}"
        return Row(name, rules.runtime, rules.status, unavailable=reason)
    values = differing = 0
    first = ""
    for piece, ours, theirs in zip(pieces, found, expected, strict=True):
        wrong = sum(int(np.count_nonzero(_differ(one, other))) for one, other in zip(ours, theirs, strict=True))
        values, differing = values + sum(one.size for one in theirs), differing + wrong
        if wrong and not first:
            first = _first(reference, program, piece, translation)
    whole, truth = (np.concatenate([one[0] for one in side]) for side in (found, expected))
    agreement = accuracy = None
    if whole.ndim >= 2:
        chosen = whole.reshape(len(whole), -1).argmax(axis=1)
        agreement = float(np.mean(chosen == truth.reshape(len(truth), -1).argmax(axis=1)))
        accuracy = None if classes is None else float(np.mean(chosen == classes))
    return Row(name, rules.runtime, rules.status, accuracy, agreement, values, differing, first)


def _differ(one: Array, other: Array) -> Array:
    """Where two outputs of one shape have other bits."""
    if one.dtype != other.dtype:
        return np.ones(one.shape, bool)
    if one.dtype.kind == "f":
        return np.asarray(one.view(f"u{one.itemsize}") != other.view(f"u{other.itemsize}"))
    return np.asarray(one != other)


def _first(reference: Program, program: Program, piece: dict[str, Array], translation: Translation) -> str:
    """The first value that both programs make and that differs, in the reference's order."""
    expected, found = (_plain(one(piece, intermediates=True)[1]) for one in (reference, program))
    for node in reference.graph.nodes:
        for name in map(_source_name, node.outputs):
            place = translation.values.get(name, Value(name))
            one, other = expected.get(name), found.get(place.name)
            if (
                one is None
                or other is None
                or one.size != other.size
                or (one.dtype.kind == "f") != (other.dtype.kind == "f")
            ):
                continue
            other = place.restored(other, one.dtype)
            if one.shape == other.shape and np.any(_differ(one, other)):
                return f"{node.name} ({name})"
    return "an output"


# What onnxruntime's lowering calls an int8 value that it stores as uint8, 128 higher (`hwq.lowering.conversion`).
UNSIGNED = "_u8"


def _source_name(name: str) -> str:
    return name.removesuffix(UNSIGNED)


def _plain(made: Mapping[str, Array]) -> dict[str, Array]:
    """Values under their source's names, in their source's type."""
    found = {name: array for name, array in made.items() if not name.endswith(UNSIGNED)}
    for name, array in made.items():
        if name.endswith(UNSIGNED) and array.dtype == np.uint8:
            found.setdefault(_source_name(name), (array.astype(np.int16) - 128).astype(np.int8))
    return found
