"""Choose a plan by data alone: candidates are made from some samples and judged on the others, no label needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import hwq
from hwq.comparison.statistics import distributions
from hwq.errors import Error
from hwq.graph import Array, Graph
from hwq.plan import Plan
from hwq.samples import Samples
from hwq.validation.methods import METHODS, OFFERED, Method

__all__ = ["Choice", "choose", "divergence", "offered", "one_by_one", "turns"]

# Every so many-th sample is held back from the candidates.
HELD = 4
# Samples that judge: where a quarter is fewer, more quarters take their turn. A few samples near a border carry most of a mean
# KL: of two candidates that differ by a fifth, 100 samples often name the wrong one.
JUDGES = 500
CHUNK = 64


@dataclass(frozen=True)
class Choice:
    """The plan of least loss.

    Attributes
    ----------
    method : str
    plan : Plan
    losses : mapping of method to float
        On the samples held back: mean KL divergence from float (nats) of a classifier, else the squared error over the
        float outputs' square.
    measure : {"KL", "relative squared error"}
    refused : mapping of method to str
        Candidates that do not apply to the model or the dialect, and why.
    """

    method: str
    plan: Plan
    losses: Mapping[str, float]
    measure: str
    refused: Mapping[str, str]


def choose(graph: Graph, samples: Samples, group: str = "W8A8 static", dialect: str = "ort") -> Choice:
    """Try the methods of a group of `hwq.validation.methods` that `offered` names; each is run with the bits of `dialect`.

    Parameters
    ----------
    graph : Graph
        Float.
    samples : Samples
        At least 8. A quarter is held back; while fewer than 500 have judged, the next quarter has its turn.
    group : {"W8A8 static", "W8 dynamic", "W4A8"}
    dialect : str

    Raises
    ------
    Error
        An unknown group, fewer samples, or no candidate applies.
    """
    methods = offered(group)
    if not methods:
        raise Error("there is no such group of methods", where=group, remedy="W8A8 static, W8 dynamic or W4A8")
    least = 2 * HELD * (samples.fixed or 1)
    if len(samples) < least:
        raise Error(
            f"{len(samples)} samples are too few to choose by", remedy=f"give {least} or more, better {max(least, 100)}"
        )
    parts = [
        (_of(samples, ~held), rest, _outputs(graph, rest, CHUNK))
        for held in turns(len(samples))
        for rest in (_of(samples, held),)
    ]
    calibrations = [hwq.calibrate(graph, kept.batches(CHUNK)) for kept, _, _ in parts]
    outputs = parts[0][2]
    classes = len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1
    plans, losses, refused = {}, {}, {}
    for method in methods:
        plan, judged = method.on(graph).model_copy(update={"dialect": dialect}), []
        try:
            for (kept, rest, wanted), calibration in zip(parts, calibrations, strict=True):
                made = hwq.quantize(graph, plan, calibration, kept.batches(CHUNK))
                outputs = _outputs(made, rest, 1 if one_by_one(method) else CHUNK)
                judged.append(divergence(wanted[0], outputs[0]) if classes else _relative(wanted, outputs))
        except Error as error:
            refused[method.name] = error.what
            continue
        plans[method.name], losses[method.name] = plan, float(np.mean(judged))
    if not losses:
        raise Error("no candidate applies", why="; ".join(f"{name}: {why}" for name, why in refused.items()))
    best = min(losses, key=losses.__getitem__)
    return Choice(best, plans[best], losses, "KL" if classes else "relative squared error", refused)


def offered(group: str) -> list[Method]:
    """The methods of a group that `choose` tries: those that correct biases, and all with ranges at run time; beside those of
    the report, what only networks with channels of very uneven ranges need.
    """
    inside = [one for one in (*METHODS, *OFFERED) if one.group == group]
    return [one for one in inside if one.plan.transforms.bias_correction is not None or one_by_one(one)]


def turns(count: int) -> list[Array]:
    """Which of `count` samples are held back, one mask a turn: every fourth, as often as it takes for `JUDGES`."""
    wanted = min(HELD, -(-JUDGES // max(count // HELD, 1)))
    return [np.arange(count) % HELD == HELD - 1 - turn for turn in range(wanted)]


def _of(samples: Samples, mask: Array) -> Samples:
    rows = np.flatnonzero(mask)
    rows = rows[: len(rows) - len(rows) % (samples.fixed or 1)]  # a model of a fixed batch runs whole batches
    return Samples({name: array[rows] for name, array in samples.feeds.items()}, None, fixed=samples.fixed)


def one_by_one(method: Method) -> bool:
    """Whether samples run alone: a dynamic range covers the whole batch, and the result depends on what else is in it."""
    return method.plan.default.activations.mode == "dynamic"


def divergence(wanted: Array, outputs: Array) -> float:
    """Mean KL divergence of float's probabilities from the quantized ones, nats."""
    p, q = distributions(wanted.astype(np.float64), outputs.astype(np.float64))
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def _relative(wanted: list[Array], outputs: list[Array]) -> float:
    pairs = [(left.astype(np.float64), right.astype(np.float64)) for left, right in zip(wanted, outputs, strict=True)]
    return sum(float(np.square(left - right).sum() / max(np.square(left).sum(), 1e-30)) for left, right in pairs)


def _outputs(graph: Graph, samples: Samples, step: int) -> list[Array]:
    program = hwq.compile(graph)
    parts = []
    for feeds in samples.batches(step):
        made = program(feeds)
        parts.append([made[name] for name in graph.outputs] if isinstance(made, dict) else [np.asarray(made)])
    return [np.concatenate(one) for one in zip(*parts, strict=True)]
