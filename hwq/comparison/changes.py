"""What to change: candidate changes of the layers that cost the output most, each executed, ranked by what it gains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hwq.comparison.places import Place, Places, Unit
from hwq.comparison.records import Change, Effect, Sensitivity
from hwq.comparison.sensitivity import Bench
from hwq.comparison.variants import Edit, restored, stored_again, with_scale
from hwq.dialect import Dialect
from hwq.graph import Node
from hwq.observers import activation_range, affine
from hwq.ops.storage import integer_range
from hwq.plan import Activations, Plan, Weights
from hwq.plan_reading import literal
from hwq.progress import Progress
from hwq.statistics import Statistics

__all__ = ["rank"]

# Layers that are looked at, the costliest first; each takes some ten runs.
LAYERS = 6
# A change is worth a line from this gain on, in dB at the output.
WORTH = 0.1
# A cheaper change stands for a dearer one from this share of its gain on.
ENOUGH = 0.7
# Changes that are also measured together with those before them.
TOGETHER = 6


@dataclass(frozen=True)
class Candidate:
    """A change that can be made: what it says, the plan rule that makes it, and the edit of the graph."""

    tensor: str
    kind: str
    text: str
    rule: str
    edit: Edit


def rank(
    bench: Bench,
    places: Places,
    units: Sequence[Unit],
    found: Sequence[Sensitivity],
    seen: Mapping[str, Statistics],
    dialect: Dialect,
    progress: Progress | None = None,
) -> tuple[Change, ...]:
    """Changes that gain something at the output, the largest gain first.

    Of each place the cheapest change that has most of the best one's gain is taken: other ranges and granularities
    before more bits before float; a whole layer in float only where nothing else comes near.

    Parameters
    ----------
    bench : Bench
    places : Places
    units : sequence of Unit
    found : sequence of Sensitivity
        Of the units.
    seen : mapping of tensor name to Statistics
        The float model's activations on the samples.
    dialect : Dialect
    progress : callable, optional
        Called as ``progress(done, total, "compare: changes")``.
    """
    before = bench.measure()
    if before is None:
        return ()
    made: list[tuple[Change, Candidate]] = []
    chosen = _costliest(before, units, found)
    for done, unit in enumerate(chosen, 1):
        made += _of_unit(bench, places, unit, before, seen, dialect)
        if progress is not None:
            progress(done, len(chosen), "compare: changes")
    made.sort(key=lambda item: -item[0].gain_db)
    ranked, edits = [], []
    for place, (change, candidate) in enumerate(made):
        together = None
        if place < TOGETHER:
            edits.append(candidate.edit)
            together = bench.measure(*edits)
        ranked.append(replace(change, together=together))
    return tuple(ranked)


def gain(before: Effect, after: Effect) -> float:
    """Decibels that a change wins at the output."""
    if after.sqnr_db == before.sqnr_db:
        return 0.0
    return after.sqnr_db - before.sqnr_db


def _costliest(before: Effect, units: Sequence[Unit], found: Sequence[Sensitivity]) -> list[Unit]:
    """The layers without which the output gains most, and those that harm it most on their own."""
    pairs = [(unit, one) for unit, one in zip(units, found, strict=True)]
    by_gain = sorted(pairs, key=lambda item: -(gain(before, item[1].without) if item[1].without else -math.inf))
    by_harm = sorted(pairs, key=lambda item: item[1].only.sqnr_db if item[1].only else math.inf)
    chosen: dict[str, Unit] = {}
    for first, second in zip(by_gain, by_harm, strict=True):
        for unit, _ in (first, second):
            if len(chosen) < LAYERS:
                chosen.setdefault(unit.layer, unit)
    return list(chosen.values())


def _of_unit(
    bench: Bench,
    places: Places,
    unit: Unit,
    before: Effect,
    seen: Mapping[str, Statistics],
    dialect: Dialect,
) -> list[tuple[Change, Candidate]]:
    made: list[tuple[Change, Candidate]] = []
    for place in unit.places:
        tied = [one.key for one in places.tied(place)]
        if tied[0] != place.key:
            continue
        limit = bench.measure(restored(places, tied))
        if limit is None or gain(before, limit) < WORTH:
            continue
        floating = _kept_float(places, place, unit)
        offers = (
            _weight_offers(places, place, dialect)
            if place.kind == "weights"
            else _activation_offers(places, place, seen, dialect)
        )
        tried = [(candidate, bench.measure(candidate.edit)) for candidate in [*offers, floating]]
        results = [(candidate, after) for candidate, after in tried if after is not None]
        if not results:
            continue
        best = max(gain(before, after) for _, after in results)
        candidate, after = next(item for item in results if gain(before, item[1]) >= ENOUGH * best)
        if gain(before, after) >= WORTH:
            made.append((_change(unit, candidate, before, after), candidate))
    keys = [place.key for place in unit.places]
    whole = bench.measure(restored(places, keys, apart=False)) if len(unit.places) > 1 else None
    if whole is not None:
        reached = max((change.gain_db for change, _ in made), default=0.0)
        if gain(before, whole) >= WORTH and reached < ENOUGH * gain(before, whole):
            rules = [_rule(unit, place, {"dtype": "float32"} if place.kind == "weights" else {"mode": "float"})
                     for place in unit.places]  # fmt: skip
            candidate = Candidate(
                unit.layer, "layer", f"keep {unit.layer} float", "\n".join(rules), restored(places, keys, apart=False)
            )
            made.append((_change(unit, candidate, before, whole), candidate))
    return made


def _change(unit: Unit, candidate: Candidate, before: Effect, after: Effect) -> Change:
    return Change(
        layer=unit.layer,
        tensor=candidate.tensor,
        kind=candidate.kind,
        what=candidate.text,
        rule=candidate.rule,
        gain_db=gain(before, after),
        before=before,
        after=after,
    )


def _rule(unit: Unit, place: Place, values: Mapping[str, Any]) -> str:
    """The plan rule that makes a change, as the text of a plan file."""
    match = {"name": literal(unit.layer)} if place.kind == "weights" else {"tensor": literal(place.tensor)}
    plan = Plan.model_validate({"layers": [{"match": match, place.kind: dict(values)}]})
    text = plan.to_toml()
    return text[text.index("[[layers]]") :].rstrip()


def _kept_float(places: Places, place: Place, unit: Unit) -> Candidate:
    values = {"dtype": "float32"} if place.kind == "weights" else {"mode": "float"}
    text = f"keep the {place.kind} of {unit.layer if place.kind == 'weights' else place.tensor} float"
    return Candidate(
        place.tensor,
        place.kind,
        text,
        _rule(unit, place, values),
        restored(places, [one.key for one in places.tied(place)], apart=False),
    )


def _weight_offers(places: Places, place: Place, dialect: Dialect) -> Iterator[Candidate]:
    how = place.quantization
    reader = places.sources[place.readers[0]]
    unit = Unit(reader.name, reader.op, (place,))
    channel = _channel_axis(reader, places.values[place.key].ndim)
    symmetric = bool(np.all(how.zero_points() == _middle(how.dtype)))
    widths = [how.dtype] + (
        [wide] if (wide := _wider(how.dtype)) in dialect.weight_dtypes and wide != how.dtype else []
    )
    for dtype in widths:
        for axis in dict.fromkeys([None if how.axis is None else channel, channel]):
            for method in ("minmax", "mse"):
                planned = Weights.model_validate({"dtype": dtype, "symmetric": symmetric, "scale": method})
                grain = "tensor" if axis is None else "channel"
                values: dict[str, Any] = {"granularity": grain, "scale": method}
                values = {"dtype": dtype, **values} if dtype != how.dtype else values
                text = f"weights of {reader.name}: {dtype} per {grain}, scale {method} (now {how.dtype} per {how.granularity})"
                yield Candidate(
                    place.tensor,
                    "weights",
                    text,
                    _rule(unit, place, values),
                    stored_again(places, place, planned, axis),
                )


def _activation_offers(
    places: Places, place: Place, seen: Mapping[str, Statistics], dialect: Dialect
) -> Iterator[Candidate]:
    how, statistics = place.quantization, seen.get(place.tensor)
    if statistics is None or how.scales().size != 1:
        return
    point = int(how.zero_points().reshape(-1)[0])
    symmetric = point == _middle(how.dtype) and (dialect.symmetric_activations or statistics.minimum < 0)
    tied = places.tied(place)
    now, unit = (np.float32(how.scales().reshape(-1)[0]), point), Unit(place.tensor, "", (place,))
    offered: dict[str, tuple[np.float32, int]] = {}
    for observer in ("minmax", "percentile", "mse"):
        wanted = Activations.model_validate({"dtype": how.dtype, "symmetric": symmetric, "observer": observer})
        offered[observer] = affine(*activation_range(statistics, wanted), how.dtype, symmetric)
    # The present scale came from an observer if that gives it again within a percent.
    instead = next(
        (name for name, made in offered.items() if abs(made[0] / now[0] - 1) < 0.01 and made[1] == now[1]), None
    )
    for observer, (scale, zero) in offered.items():
        if (scale, zero) == now or observer == instead:
            continue
        text = (
            f"activations of {place.tensor}: observer {observer}, {_range(how.dtype, scale, zero)} "
            f"(now {f'{instead}, ' if instead else ''}{_range(how.dtype, *now)})"
        )
        rule = _rule(unit, place, {"observer": observer})
        yield Candidate(place.tensor, "activations", text, rule, with_scale(places, tied, scale, zero))


def _range(dtype: str, scale: np.float32, zero: int) -> str:
    """The real values that a stored type stands for."""
    lowest, highest = integer_range(dtype)
    return f"{(lowest - zero) * float(scale):.4g} to {(highest - zero) * float(scale):.4g}"


def _middle(dtype: str) -> int:
    lowest, highest = integer_range(dtype)
    return (lowest + highest + 1) // 2


def _wider(dtype: str) -> str:
    return {"int2": "int8", "int4": "int8", "uint2": "uint8", "uint4": "uint8"}.get(dtype, dtype)


def _channel_axis(reader: Node, rank: int) -> int:
    """Where a weight's output channels stand."""
    if reader.op == "Conv" or (reader.op == "Gemm" and reader.attributes.get("transB", 0)):
        return 0
    return rank - 1
