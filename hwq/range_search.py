"""The observer "coordinate": each activation's range is the one after which the network's outputs are nearest to float.

All other observers look at one tensor. This one runs the model on a few samples with every activation quantized (weights
stay float: they are rounded later, for these very ranges), and goes through the activations in order: candidates are what
the other observers say and steps around the best of them, and the one with the least loss at the model's outputs stays.
Only what lies behind the changed activation is computed again. Work is bounded by multiplications, not by time, so that the
result does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hwq import kernels
from hwq.batches import Batches
from hwq.errors import Error
from hwq.floating import in_one_type, widened
from hwq.graph import Array, Graph, Node
from hwq.names import display_name
from hwq.observers import affine
from hwq.ops.application import evaluate_node
from hwq.ops.inference import infer_shapes
from hwq.ops.storage import integer_range
from hwq.patches import linears
from hwq.transforms.subsets import pieces_within, thinned

if TYPE_CHECKING:
    from hwq.scales import Scales

__all__ = ["search_ranges"]

# Samples that the losses are taken from: candidates are compared on the same ones, so that few tell them apart.
SAMPLES = 32
# Bytes of all activations of these samples together; fewer samples where they would pass it.
BYTES = 256 << 20
# Multiplications of one search, some seconds of one core; a larger model takes fewer samples, then leaves ranges as they are.
WORK = 3 << 30
# An element that is quantized or passed on costs about as much as so many multiplications.
ELEMENT = 16
# Steps around the best candidate.
STEPS = (0.85, 1.15)
SWEEPS = 2
# Other observers' ranges; one whose step is within this share of the present one is not worth a run.
OBSERVERS = ("minmax", "percentile", "kl")
NEAR = 0.02
# Probabilities below this count as this in the divergence.
FLOOR = 1e-7

Affine = tuple[np.float32, int]


def search_ranges(scales: Scales, batches: Batches | None) -> None:
    """Choose the ranges of every activation whose observer is "coordinate"; they are put into `scales`.

    Raises
    ------
    Error
        There are no samples.
    """
    chiefs = [chief for chief in scales.members if scales.searched(chief)]
    if not chiefs:
        return
    if batches is None:
        raise Error(
            'the observer "coordinate" runs the model, and there are no samples',
            where=f"tensor {display_name(chiefs[0])}, key activations.observer",
            remedy="pass batches= to quantize (--data on the command line)",
        )
    graph = scales.graph
    for chief in chiefs:
        scales.made[chief] = scales.ranged(chief, "mse")
    pieces = thinned(graph, pieces_within(graph, batches, 4 * BYTES), SAMPLES)
    with kernels.default_state():
        _Search(scales, _bounded(graph, pieces, len(chiefs))).run(chiefs)


def _bounded(graph: Graph, pieces: list[Mapping[str, Array]], chiefs: int) -> dict[str, Array]:
    """One feed of as many samples as `BYTES` and `WORK` allow; the first piece of a model with a fixed batch."""
    names = list(pieces[0])
    fixed = any(not one.shape or isinstance(one.shape[0], int) for one in map(graph.tensors.__getitem__, graph.inputs))
    whole = dict(pieces[0]) if fixed else {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
    # Without what folds once the shapes are known, such as a Shape's result.
    known = infer_shapes(widened(graph), {name: value.shape for name, value in whole.items()}).tensors
    spent = sum(one.bytes for one in known.values() if one.concrete and not one.constant)
    count = len(whole[names[0]]) if whole[names[0]].ndim else 1
    # A first sweep tries some four candidates a range, each with half of the model behind it.
    k = {name: layer.k for name, layer in linears(graph).items()}
    sizes = {
        node.name: sum(known[name].elements for name in node.outputs if name in known and known[name].concrete)
        for node in graph.nodes
    }
    work = sum(size * (k.get(name, 0) + ELEMENT) for name, size in sizes.items()) * chiefs * 2
    stride = 1 if fixed else min(count, max(-(-spent // BYTES), -(-work // WORK)))
    return {name: value[::stride] for name, value in whole.items()} if stride > 1 else whole


class _Search:
    """Every value of the model on the samples, as its readers read it, and the losses of other ranges."""

    def __init__(self, scales: Scales, feed: dict[str, Array]):
        self.scales, self.graph, self.feed = scales, scales.graph, feed
        self.points = scales.placement.points
        self.k = {name: layer.k for name, layer in linears(self.graph).items()}
        self.work, self.loss = 0, np.inf
        floats = dict(feed)
        for node in self.graph.nodes:
            floats.update(self._computed(node, floats))
        self.wanted = {name: floats[name] for name in self.graph.outputs}
        self.raw: dict[str, Array] = {name: value for name, value in feed.items() if name in self.points}
        self.values: dict[str, Array] = {}
        raw, values = self._forward({}, set(feed), dict(feed))
        self.raw.update(raw)
        self.values.update(values)

    def run(self, chiefs: list[str]) -> None:
        self.loss = self._loss(self.values)
        for sweep in range(SWEEPS):
            moved = False
            for chief in chiefs:
                if sweep == 0:
                    for observer in OBSERVERS:
                        moved |= self._improves(chief, self.scales.ranged(chief, observer))
                for side in (1, 0):
                    # Where a step inwards helps, one outwards need not be tried.
                    moved |= any(self._improves(chief, self._stepped(chief, side, step)) for step in STEPS)
            if not moved:
                return

    def _improves(self, chief: str, candidate: Affine | None) -> bool:
        """Try a range; keep it if the outputs come nearer to float."""
        now = self.scales.made[chief]
        if candidate is None or candidate == now or self.work > WORK:
            return False
        same = candidate[1] == now[1] and abs(float(candidate[0]) / float(now[0]) - 1.0) < NEAR
        if same:
            return False
        loss, raw, values = self._try(chief, candidate)
        if loss >= self.loss:
            return False
        self.loss = loss
        self.scales.made[chief] = candidate
        self.raw.update(raw)
        self.values.update(values)
        return True

    def _stepped(self, chief: str, side: int, step: float) -> Affine | None:
        """The range with one end moved; a symmetric range has one end, and so has one that starts at zero."""
        how = self.points[chief]
        low, high = _ends(self.scales.made[chief], how.dtype)
        if side:
            return affine(low, high * step, how.dtype, how.symmetric)
        return affine(low * step, high, how.dtype, how.symmetric) if low < 0.0 and not how.symmetric else None

    def _try(self, chief: str, candidate: Affine) -> tuple[float, dict[str, Array], dict[str, Array]]:
        changed = dict.fromkeys(self.scales.members[chief], candidate)
        start = {name: self.raw[name] for name in changed}
        raw, values = self._forward(changed, set(changed), start)
        return self._loss({**self.values, **values}), raw, values

    def _forward(
        self, changed: Mapping[str, Affine], dirty: set[str], start: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What every node behind `dirty` makes, before and after quantization, with other ranges for `changed`."""
        raw: dict[str, Array] = {}
        values = {name: self._stored(name, value, changed) for name, value in start.items()}
        for node in self.graph.nodes:
            if not any(name in values for name in node.inputs):
                continue
            for name, value in self._computed(node, self.values, values).items():
                if name in self.points:
                    raw[name] = value
                values[name] = self._stored(name, value, changed)
        return raw, values

    def _computed(self, node: Node, *known: Mapping[str, Array]) -> dict[str, Array]:
        """The node's outputs; later mappings win."""
        operands: list[Array | None] = []
        for name in node.inputs:
            found = next((one[name] for one in reversed(known) if name in one), None) if name else None
            operands.append(found if found is not None or not name else self.graph.constant(name))
        if (
            node.op == "Relu"
            and operands[0] is not None
            and operands[0].dtype == np.float32
            and self._passing(node.inputs[0])
        ):
            # Only this clamp reads it, so it may be written over; a third of the time of a depthwise layer.
            self.work += operands[0].size * ELEMENT
            return {node.outputs[0]: np.maximum(operands[0], np.float32(0.0), out=operands[0])}
        made = evaluate_node(node, in_one_type(node, operands), self.graph)
        self.work += sum(value.size for value in made) * (self.k.get(node.name, 0) + ELEMENT)
        return {name: value for name, value in zip(node.outputs, made, strict=False) if name}

    def _passing(self, name: str) -> bool:
        """Whether a value is made by a layer, stored nowhere and read once."""
        maker = self.graph.producers.get(name)
        return (
            maker is not None
            and maker.name in self.k
            and name not in self.points
            and name not in self.graph.outputs
            and len(self.graph.consumers[name]) == 1
        )

    def _stored(self, name: str, value: Array, changed: Mapping[str, Affine]) -> Array:
        how = self.points.get(name)
        if how is None or value.dtype != np.float32:
            return value
        scale, zero = changed.get(name) or self.scales.activation(name)
        return kernels.fake_quantize(value, scale, int(zero), how.dtype)

    def _loss(self, values: Mapping[str, Array]) -> float:
        """Divergence of outputs made by a Softmax, else the squared error over the output's variance."""
        total = 0.0
        for name, wanted in self.wanted.items():
            if wanted.dtype.kind != "f":
                continue
            maker, made = self.graph.producers.get(name), values[name].astype(np.float64)
            if maker is not None and maker.op == "Softmax":
                p, q = (np.maximum(one.astype(np.float64), FLOOR) for one in (wanted, made))
                total += float((p * np.log(p / q)).sum() / max(1, len(p)))
            else:
                spread = float(np.var(wanted, dtype=np.float64)) or 1.0
                total += float(np.square(made - wanted).mean()) / spread
        return total


def _ends(found: Affine, dtype: str) -> tuple[float, float]:
    """The range of a scale and zero point."""
    lowest, highest = integer_range(dtype)
    return (lowest - found[1]) * float(found[0]), (highest - found[1]) * float(found[0])
