"""Drift: where a model's run parts from another runtime's, how far, and which documented rule explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.alignment import align, unsigned_name
from hwq.errors import Error
from hwq.execution import Program, compile
from hwq.graph import Array, Graph, Node
from hwq.hypotheses import RULES, Hypothesis, hypotheses, layer
from hwq.names import display_name

__all__ = ["Difference", "Explanation", "LayerDifference", "localize"]

# Dialects that may stand for one another: a dump can be a whole run of another one.
RUNTIMES = (
    ("ort", "ort-avx2-saturating", "ort-unfused", "onnx"),
    ("litert-ref", "litert-xnnpack", "litert-ref-fixedfc"),
    ("torch-fbgemm", "torch-fbgemm-avx2-saturating", "torch-fbgemm-avx512"),
)
# Layers that a dump leaves out and that rules are tried on.
MOST_HIDDEN = 12


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
    """A rule and how well it does: `explained` of the `differing` elements come out as observed, `broken` others do not.

    `layer` is the one that the rule was applied to: the first that differs, or one before it that the dump leaves out.
    """

    rule: str
    detail: str
    explained: int
    differing: int
    broken: int
    layer: str = ""

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
    unseen : tuple of str
        Layers between the first that differs and the values before it that both hold: the runs may part in any of them.
    notes : tuple of str
        What was read otherwise than it lay in the dump, and what of it is no value of the model.
    """

    model: str
    dialect: str
    against: str
    layers: tuple[LayerDifference, ...]
    explanations: tuple[Explanation, ...]
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> LayerDifference | None:
        """The first layer that differs."""
        return next((one for one in self.layers if one.differing), None)

    @property
    def best(self) -> Explanation | None:
        """The rule that explains the first difference: exactly, or most of what differs while it breaks little."""
        best = self.explanations[0] if self.explanations else None
        good = best is not None and (best.exact or best.explained - best.broken > best.differing // 2)
        return best if good else None

    @property
    def rule(self) -> str:
        """The rule that explains it, ``unexplained``, or empty where nothing differs."""
        if self.first is None:
            return ""
        return "unexplained" if self.best is None else self.best.rule

    @property
    def layer(self) -> str:
        """The layer where the runs part: where the rule applies, else the first that differs; empty where none does."""
        if self.first is None:
            return ""
        return self.first.layer if self.best is None else self.best.layer or self.first.layer

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        first = self.first
        return {
            "model": self.model,
            "dialect": self.dialect,
            "against": self.against,
            "first": None if first is None else vars(first),
            "layer": self.layer,
            "rule": self.rule,
            "unseen": list(self.unseen),
            "notes": list(self.notes),
            "layers": [vars(one) for one in self.layers],
            "explanations": [{**vars(one), "exact": one.exact} for one in self.explanations],
        }

    def __str__(self) -> str:
        first, best = self.first, self.best
        notes = [f"  note: {note}" for note in self.notes]
        if first is None:
            told = f"{display_name(self.model)}: all {len(self.layers)} values equal {display_name(self.against)}, bit for bit"
            return "\n".join([told, *notes])
        lines = [
            f"{display_name(self.model)} in {self.dialect} against {display_name(self.against)}: first difference in layer "
            f"{display_name(first.layer)} ({first.op}), tensor {display_name(first.tensor)}",
            f"  element {list(first.first or ())}: {first.ours:g} here, {first.theirs:g} there; "
            f"{first.differing} of {first.elements} elements differ, by {first.largest:g} at most",
        ]
        if self.unseen:
            names = ", ".join(display_name(name, 40) for name in self.unseen[:6])
            lines.append(f"  {len(self.unseen)} layers before it are not in the dump ({names}): it may begin in them")
        if best is None:
            lines.append("  no documented rule explains it")
        else:
            how = "exactly" if best.exact else f"for {best.explained} of {best.differing} elements"
            where = f" in layer {display_name(best.layer)}" if best.layer not in {"", first.layer} else ""
            lines.append(f"  rule{where}: {best.rule} ({best.detail}), {how}: {RULES[best.rule]}")
            equal = [one for one in self.explanations[1:] if best.exact and one.exact]
            if equal:
                lines.append(f"  as well, on these values: {', '.join(f'{one.rule} ({one.detail})' for one in equal)}")
        later = sum(1 for one in self.layers if one.own and one is not first)
        if later:
            lines.append(f"  {later} later layers add differences of their own")
        return "\n".join([*lines, *notes])


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
        No value of the dump is a value of the model, one has another shape or type, or it was made from other inputs.
    """
    program = compile(graph, dialect)
    given = dict(feeds) if isinstance(feeds, Mapping) else {graph.inputs[0]: np.asarray(feeds)}
    _, ours = program(given, intermediates=True)
    known = {**ours, **given}
    aligned = align(program.graph, program.source, ours, observed)
    _check_inputs(given, observed, against)
    theirs = {name: aligned.values.get(name, value) for name, value in known.items()}
    found: list[LayerDifference] = []
    first: tuple[Node, str] | None = None
    for node in program.graph.nodes:
        for name in (one for one in node.outputs if one in aligned.values):
            differs = _differing(ours[name], theirs[name])
            own = _own(program, node, theirs, name) if differs.any() else 0
            if differs.any() and first is None:
                first = node, name
            found.append(_record(node, name, ours[name], theirs[name], differs, own))
    if not found:
        raise Error(
            "no value of the dump is a value of the model",
            where=against,
            why=f"it holds {', '.join(list(observed)[:5])}; the model has {', '.join(list(ours)[:5])}",
            remedy="dump values by the model's own names",
        )
    notes = list(aligned.notes)
    if aligned.foreign:
        names = ", ".join(display_name(name, 40) for name in aligned.foreign[:5])
        notes.append(f"{len(aligned.foreign)} values of the dump are none of the model's: {names}")
    hidden = [] if first is None else _hidden(program.graph, first[0], theirs, aligned.values)
    explanations: tuple[Explanation, ...] = ()
    if first is not None:
        whole = _whole_runs(graph, program, given, observed, found, first[1])
        single = _explained(program, *first, hidden, ours, theirs)
        several = bool(hidden) or sum(bool(one.own) for one in found) > 1
        explanations = (*whole, *single) if several else (*single, *whole)
        if not several:  # a rule of one layer is named before a whole run
            explanations = tuple(sorted(explanations, key=lambda one: not one.exact))
    unseen = tuple(node.name for node in hidden)
    return Difference(graph.name, program.dialect.name, against, tuple(found), explanations, unseen, tuple(notes))


def _check_inputs(given: Mapping[str, Array], observed: Mapping[str, Array], against: str) -> None:
    """A dump that holds its inputs must hold these."""
    for name, mine in given.items():
        theirs = np.asarray(observed.get(name, mine))
        if theirs.shape == mine.shape and theirs.dtype == mine.dtype and _differing(mine, theirs).any():
            raise Error(
                "the dump was made from other inputs",
                where=f"{against}, input {name}",
                why=f"{np.count_nonzero(_differing(mine, theirs))} of {mine.size} elements differ from the data",
                remedy="give the data that the dump was made from",
            )


def _hidden(graph: Graph, node: Node, known: Mapping[str, Array], held: Mapping[str, Array]) -> list[Node]:
    """Layers whose results lie between a node and the values before it that the dump holds, in execution order."""
    asked, found = [node], set[str]()
    while asked:
        for name in asked.pop().inputs:
            maker = graph.producers.get(name)
            if maker is None or name not in known:  # what depends on constants alone is none of the run's values
                continue
            if maker.name not in found and not any(one in held for one in maker.outputs):
                found.add(maker.name)
                asked.append(maker)
    return [one for one in graph.nodes if one.name in found]


def _differing(one: Array, other: Array) -> Array:
    if one.dtype.kind == "f":
        return np.asarray((one != other) & ~(np.isnan(one) & np.isnan(other)))
    return np.asarray(one != other)


def _own(program: Program, node: Node, theirs: Mapping[str, Array], name: str) -> int:
    made = _made(program, node, theirs)
    return 0 if made is None else int(np.count_nonzero(_differing(made[name], theirs[name])))


def _made(program: Program, node: Node, operands: Mapping[str, Array]) -> dict[str, Array] | None:
    """One layer's results from given operands; None where it cannot run alone."""
    alone = layer(program.graph, node)
    if not set(alone.inputs) <= set(operands):
        return None
    made = compile(alone, program.dialect.name)({one: operands[one] for one in alone.inputs})
    return {alone.outputs[0]: np.asarray(made)} if not isinstance(made, dict) else dict(made)


def _record(node: Node, name: str, ours: Array, theirs: Array, differs: Array, own: int) -> LayerDifference:
    first = largest = None
    if differs.any():
        first = tuple(int(index) for index in np.argwhere(differs)[0]) if differs.ndim else ()
        with np.errstate(all="ignore"):
            largest = float(np.nanmax(np.abs(ours.astype(np.float64) - theirs.astype(np.float64))[differs], initial=0))
    return LayerDifference(
        node.name, node.op, name, str(ours.dtype), ours.size, int(np.count_nonzero(differs)), own, largest or 0.0, first,
        None if first is None else float(ours[first]), None if first is None else float(theirs[first]))  # fmt: skip


def _explained(
    program: Program, node: Node, name: str, hidden: list[Node], ours: Mapping[str, Array], theirs: Mapping[str, Array]
) -> tuple[Explanation, ...]:
    """Every rule applied to the first layer that differs, and to those before it that the dump leaves out."""
    differs = _differing(ours[name], theirs[name])
    found: list[Explanation] = []
    for one in _rules(program, node, theirs, name):
        found.append(_scored(one, ours[name], theirs[name], differs, node.name))
    for index, other in enumerate(hidden[:MOST_HIDDEN]):
        for one in _rules(program, other, theirs, other.outputs[0]):
            value = _behind(program, [*hidden[index + 1 :], node], {**theirs, other.outputs[0]: one.value}).get(name)
            if value is not None:
                moved = Hypothesis(one.rule, one.detail, value)
                found.append(_scored(moved, ours[name], theirs[name], differs, other.name))
    # The reference kernels round in fixed point or ties away: a formula in floats must explain more than rounding so does.
    order = ["rounding", *RULES] if program.dialect.name.startswith("litert-ref") else list(RULES)
    best: dict[str, Explanation] = {}
    for explanation in found:
        kept = best.get(explanation.rule)
        if kept is None or explanation.explained - explanation.broken > kept.explained - kept.broken:
            best[explanation.rule] = explanation
    return tuple(
        sorted(best.values(), key=lambda one: (not one.exact, -(one.explained - one.broken), order.index(one.rule)))
    )


def _rules(program: Program, node: Node, theirs: Mapping[str, Array], name: str) -> list[Hypothesis]:
    """The hypotheses about a node that change its first output."""
    operands = {one: theirs[one] for one in node.inputs if one in theirs}
    if name != node.outputs[0]:
        return []
    observed = theirs[name]
    found = hypotheses(program.graph, program.source, node, operands, observed)
    return [one for one in found if one.value.shape == observed.shape]


def _behind(program: Program, nodes: list[Node], values: dict[str, Array]) -> dict[str, Array]:
    """Values once the given nodes have run again from changed operands."""
    for node in nodes:
        made = _made(program, node, values)
        if made is not None:
            values |= made
    return values


def _scored(one: Hypothesis, ours: Array, theirs: Array, differs: Array, where: str) -> Explanation:
    missed = _differing(one.value.astype(theirs.dtype), theirs)
    count = int(np.count_nonzero(differs))
    explained, broken = int(np.count_nonzero(differs & ~missed)), int(np.count_nonzero(missed & ~differs))
    return Explanation(one.rule, one.detail, explained, count, broken, where)


def _whole_runs(
    graph: Graph,
    program: Program,
    given: Mapping[str, Array],
    observed: Mapping[str, Array],
    found: list[LayerDifference],
    first: str,
) -> tuple[Explanation, ...]:
    """Other dialects of the model's runtime that give every value of the dump."""
    for dialects in RUNTIMES:
        for other in dialects if program.dialect.name in dialects else ():
            if other == program.dialect.name:
                continue
            try:
                there = compile(graph, other)
                _, made = there(given, intermediates=True)
                values = align(there.graph, there.source, made, observed).values
            except Error:
                continue  # that runtime cannot represent the graph, or holds other values
            same = values and not any(_differing(made[name], value).any() for name, value in values.items())
            held = {unsigned_name(name) for name in values}
            if same and {unsigned_name(one.tensor) for one in found if one.differing} <= held:
                count = next(one.differing for one in found if one.tensor == first)
                rule = "saturation" if other.endswith("saturating") else "resolver"
                return (Explanation(rule, f"the whole run is that of {other}", count, count, 0, ""),)
    return ()
