"""Drift: where a model's run parts from another runtime's, how far, and which documented rule explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph, Node
from hwq.hypotheses import RULES, Hypothesis, hypotheses, layer
from hwq.names import display_name

__all__ = ["Difference", "Explanation", "LayerDifference", "localize"]


@dataclass(frozen=True)
class LayerDifference:
    """One value that both runs hold.

    Attributes
    ----------
    layer, op, tensor, dtype : str
    elements, differing : int
    own : int
        Elements that differ although the layer is fed with the other run's operands: what it adds itself.
    largest : float
        Largest distance: steps for integers, absolute for floats.
    first : (int, ...) or None
        Index of the first element that differs.
    ours, theirs : float or None
        Its values.
    """

    layer: str
    op: str
    tensor: str
    dtype: str
    elements: int
    differing: int
    own: int
    largest: float
    first: tuple[int, ...] | None
    ours: float | None
    theirs: float | None


@dataclass(frozen=True)
class Explanation:
    """A rule and how well it does: `explained` of the `differing` elements come out as observed, `broken` others do not."""

    rule: str
    detail: str
    explained: int
    differing: int
    broken: int

    @property
    def exact(self) -> bool:
        """Whether the rule gives the observed output, bit for bit."""
        return self.explained == self.differing and not self.broken


@dataclass(frozen=True)
class Difference:
    """Where two runs part.

    Attributes
    ----------
    model, dialect, against : str
    layers : tuple of LayerDifference
        Values that both hold, in execution order.
    explanations : tuple of Explanation
        For the first layer that differs, best first.
    """

    model: str
    dialect: str
    against: str
    layers: tuple[LayerDifference, ...]
    explanations: tuple[Explanation, ...]

    @property
    def first(self) -> LayerDifference | None:
        """The first layer that differs."""
        return next((one for one in self.layers if one.differing), None)

    @property
    def rule(self) -> str:
        """The rule that explains it, ``unexplained``, or empty where nothing differs."""
        if self.first is None:
            return ""
        best = self.explanations[0] if self.explanations else None
        # A rule that is not exact must explain most of what differs, and break little.
        good = best is not None and (best.exact or best.explained - best.broken > best.differing // 2)
        return best.rule if best is not None and good else "unexplained"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        first = self.first
        return {
            "model": self.model,
            "dialect": self.dialect,
            "against": self.against,
            "first": None if first is None else vars(first),
            "rule": self.rule,
            "layers": [vars(one) for one in self.layers],
            "explanations": [{**vars(one), "exact": one.exact} for one in self.explanations],
        }

    def __str__(self) -> str:
        first = self.first
        if first is None:
            return f"{display_name(self.model)}: all {len(self.layers)} values equal {display_name(self.against)}, bit for bit"
        lines = [
            f"{display_name(self.model)} in {self.dialect} against {display_name(self.against)}: first difference in layer "
            f"{display_name(first.layer)} ({first.op}), tensor {display_name(first.tensor)}",
            f"  element {list(first.first or ())}: {first.ours:g} here, {first.theirs:g} there; "
            f"{first.differing} of {first.elements} elements differ, by {first.largest:g} at most",
        ]
        if self.rule == "unexplained":
            lines.append("  no documented rule explains it")
        else:
            best = self.explanations[0]
            how = "exactly" if best.exact else f"for {best.explained} of {best.differing} elements"
            lines.append(f"  rule: {best.rule} ({best.detail}), {how}: {RULES[best.rule]}")
        later = sum(1 for one in self.layers if one.own and one is not first)
        if later:
            lines.append(f"  {later} later layers add differences of their own")
        return "\n".join(lines)


def localize(
    graph: Graph,
    feeds: Mapping[str, Array] | Array,
    observed: Mapping[str, Array],
    *,
    dialect: str | None = None,
    against: str = "dump",
) -> Difference:
    """Compare a run with what another runtime made of the same inputs, layer by layer.

    Parameters
    ----------
    graph : Graph
        Quantized, in source form.
    feeds : array, or mapping of input name to array
    observed : mapping of value name to array
        What the other runtime holds: any values of the model, stored integers or floats, by the model's own names.
    dialect : str, optional
        Default ``graph.dialect``.
    against : str
        The other run's name.

    Returns
    -------
    Difference

    Raises
    ------
    Error
        No value of the dump is a value of the model, or one has another shape.
    """
    program = compile(graph, dialect)
    given = dict(feeds) if isinstance(feeds, Mapping) else {graph.inputs[0]: np.asarray(feeds)}
    _, ours = program(given, intermediates=True)
    known = {**ours, **given}
    found: list[LayerDifference] = []
    explanations: tuple[Explanation, ...] = ()
    for node in program.graph.nodes:
        for name in (one for one in node.outputs if one and one in ours and one in observed):
            theirs = _fitting(name, ours[name], observed[name])
            differs = _differing(ours[name], theirs)
            count = int(np.count_nonzero(differs))
            operands = {
                one: _fitting(one, known[one], observed[one]) if one in observed else known[one]
                for one in node.inputs
                if one in known
            }
            own = _own(program, node, operands, name, theirs) if count else 0
            if count and not explanations and not any(one.differing for one in found) and name == node.outputs[0]:
                explanations = _explained(program, node, operands, ours[name], theirs)
            found.append(_record(node, name, ours[name], theirs, differs, own))
    if not found:
        raise Error(
            "no value of the dump is a value of the model",
            where=against,
            why=f"it holds {', '.join(list(observed)[:5])}; the model has {', '.join(list(ours)[:5])}",
            remedy="dump values by the model's own names",
        )
    return Difference(graph.name, program.dialect.name, against, tuple(found), explanations)


def _fitting(name: str, ours: Array, theirs: Array) -> Array:
    """The other run's value in our type: wider integers are taken where they fit."""
    value = np.asarray(theirs)
    if value.shape != ours.shape:
        raise Error(f"the dump has shape {list(value.shape)}, the model {list(ours.shape)}", where=f"value {name}")
    if value.dtype == ours.dtype:
        return value
    with np.errstate(all="ignore"):
        cast = value.astype(ours.dtype)
    if value.dtype.kind not in "iuf" or not np.array_equal(cast.astype(np.float64), value.astype(np.float64)):
        raise Error(f"the dump has dtype {value.dtype}, the model {ours.dtype}", where=f"value {name}")
    return cast


def _differing(one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return np.asarray((one != other) & ~(np.isnan(one) & np.isnan(other)))
    return np.asarray(one != other)


def _own(program: Program, node: Node, operands: dict[str, Array], name: str, theirs: Array) -> int:
    alone = layer(program.graph, node)
    if not set(alone.inputs) <= set(operands):
        return 0
    made = compile(alone, program.dialect.name)({one: operands[one] for one in alone.inputs})
    value = made[name] if isinstance(made, dict) else made
    return int(np.count_nonzero(_differing(np.asarray(value), theirs)))


def _record(node: Node, name: str, ours: Array, theirs: Array, differs: Array, own: int) -> LayerDifference:
    first = largest = None
    if differs.any():
        first = tuple(int(index) for index in np.argwhere(differs)[0]) if differs.ndim else ()
        with np.errstate(all="ignore"):
            largest = float(np.nanmax(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))))
    return LayerDifference(
        node.name, node.op, name, str(ours.dtype), ours.size, int(np.count_nonzero(differs)), own, largest or 0.0, first,
        None if first is None else float(ours[first]), None if first is None else float(theirs[first]))  # fmt: skip


def _explained(
    program: Program, node: Node, operands: dict[str, Array], ours: Array, theirs: Array
) -> tuple[Explanation, ...]:
    differs = _differing(ours, theirs)
    count = int(np.count_nonzero(differs))
    found: list[Explanation] = []
    for one in hypotheses(program.graph, program.source, node, operands):
        if one.value.shape != theirs.shape:
            continue
        found.append(_scored(one, ours, theirs, differs, count))
    order = list(RULES)
    best: dict[str, Explanation] = {}
    for explanation in found:
        kept = best.get(explanation.rule)
        if kept is None or explanation.explained - explanation.broken > kept.explained - kept.broken:
            best[explanation.rule] = explanation
    return tuple(
        sorted(best.values(), key=lambda one: (not one.exact, -(one.explained - one.broken), order.index(one.rule)))
    )


def _scored(one: Hypothesis, ours: Array, theirs: Array, differs: Array, count: int) -> Explanation:
    missed = _differing(one.value.astype(theirs.dtype), theirs)
    return Explanation(
        one.rule, one.detail, int(np.count_nonzero(differs & ~missed)), count, int(np.count_nonzero(missed & ~differs))
    )
