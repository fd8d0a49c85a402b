"""What a comparison says: one record a layer, one for the model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwq.costly import CostlyRange, stays_float
from hwq.names import csv_cell, display_name
from hwq.plan import Plan
from hwq.plan_reading import literal

__all__ = ["Change", "Comparison", "Effect", "LayerComparison", "Sensitivity"]


@dataclass(frozen=True)
class LayerComparison:
    """One value of the float model against the quantized model's.

    Attributes
    ----------
    name, op : str
        The float graph's node that makes the value.
    tensor : str
        The float graph's name of it.
    stored : str
        The lowered quantized graph's name of it.
    dtype : str
        As the quantized model holds it.
    elements : int
        Compared, over all batches.
    sqnr_db : float
        10 log10(sum r^2 / sum (r - q)^2), r float, q dequantized; ``inf`` where all are equal.
    cosine : float
        Of the two as vectors.
    max_lsb : int or None
        Largest distance of the stored integer from the float value quantized with the same scale; None for floats.
    differing : int
        Elements where that distance is not 0 (for floats: whose bits differ).
    first_differing : (int, ...) or None
        Index of the first of them; the sample counts over all batches.
    saturation : float
        Share of the float values that lie beyond the stored range by more than half a step, 0..1.
    underflow : float
        Share of the float values that are not 0 and are stored as 0 without being cut, 0..1.
    headroom_bits : float or None
        log2 of 2^31 over the largest accumulator that any input of the layer's integer product reaches, bias included,
        proved from its weights; None where the layer has none.
    weights_only_db, activations_only_db : float or None
        SQNR of the same value where only weights, only activations of the whole model are put on their grids and all
        else is float32; on the first samples; None where that cannot be run.
    channel_minima, channel_maxima : tuple of float
        Range of each channel of the float value; empty where there are no channels.
    channel_bits : tuple of float
        log2 of each channel's largest magnitude over the step: how many bits of the type it uses; 0 at one step.
    weight_bits : tuple of float
        The same of each output channel of the layer's stored weights.
    range_db : float or None
        What the stored range costs: the squared error of storing the float values in it over that of the whole range that
        they have, in dB; None of more than 8 bits, of several scales, and where nothing is lost.
    range_share : float or None
        How much of the largest magnitude the stored range reaches, 0..1.
    """

    name: str
    op: str
    tensor: str
    stored: str
    dtype: str
    elements: int
    sqnr_db: float
    cosine: float
    max_lsb: int | None
    differing: int
    first_differing: tuple[int, ...] | None
    saturation: float
    underflow: float = 0.0
    headroom_bits: float | None = None
    weights_only_db: float | None = None
    activations_only_db: float | None = None
    channel_minima: tuple[float, ...] = ()
    channel_maxima: tuple[float, ...] = ()
    channel_bits: tuple[float, ...] = ()
    weight_bits: tuple[float, ...] = ()
    range_db: float | None = None
    range_share: float | None = None


@dataclass(frozen=True)
class Effect:
    """What the network's first output loses against float's.

    Attributes
    ----------
    sqnr_db : float
    kl : float
        Mean Kullback-Leibler divergence in nats.
    agreement : float
        Share of the positions with the same largest class, 0..1.
    """

    sqnr_db: float
    kl: float
    agreement: float


@dataclass(frozen=True)
class Sensitivity:
    """One layer switched on its own.

    Attributes
    ----------
    layer, op : str
        Its operator; for the stored model input its name and ``Input``.
    weights, activations : tuple of str
        The float tensors that are stored as integers there.
    only : Effect or None
        Of this layer's tensors put on their grids and all else float32; None where that cannot be run.
    without : Effect or None
        Of all quantized but this layer, in the dialect of the quantized graph.
    """

    layer: str
    op: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    only: Effect | None
    without: Effect | None


@dataclass(frozen=True)
class Change:
    """A change that was made and executed.

    Attributes
    ----------
    layer, tensor : str
    kind : {"weights", "activations", "layer"}
    what : str
        In words.
    rule : str
        The plan rules that make it, as text to append to a plan file.
    gain_db : float
        SQNR at the output that this change alone wins.
    before, after : Effect
    together : Effect or None
        With all changes ranked before it made too.
    """

    layer: str
    tensor: str
    kind: str
    what: str
    rule: str
    gain_db: float
    before: Effect
    after: Effect
    together: Effect | None = None


@dataclass(frozen=True)
class Comparison:
    """What quantization changed.

    Attributes
    ----------
    model : str
    samples : int
    layers : tuple of LayerComparison
        In the float graph's order.
    agreement : float
        Share of the positions where both models' largest output stands at the same index, 0..1.
    kl : float
        Mean Kullback-Leibler divergence of float from quantized outputs, in nats; logits pass softmax first, and
        probabilities below 1e-7 count as 1e-7.
    accuracy_float, accuracy : float or None
        Of the float and of the quantized model, 0..1; None without labels.
    gained, lost : int or None
        Samples that only the quantized, only the float model gets right.
    mcnemar_p : float or None
        Exact two-sided p of that split, were each side equally likely.
    hashes : mapping of str to str
    sqnr_db : float
        Of the first output.
    analysed : int
        Samples behind everything below and behind `weights_only_db`; the first ones.
    sensitivities : tuple of Sensitivity
        In execution order; empty unless asked for.
    changes : tuple of Change
        What to change, the largest measured gain first; empty unless asked for.
    unbounded : tuple of str
        Float because they held minus infinity in calibration.
    costly_ranges : tuple of CostlyRange
        Stored ranges, also of inputs, that cost at least 6 dB beyond the whole of what was seen, the worst first.
    """

    model: str
    samples: int
    layers: tuple[LayerComparison, ...]
    agreement: float
    kl: float
    accuracy_float: float | None = None
    accuracy: float | None = None
    gained: int | None = None
    lost: int | None = None
    mcnemar_p: float | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    sqnr_db: float = math.inf
    analysed: int = 0
    sensitivities: tuple[Sensitivity, ...] = ()
    changes: tuple[Change, ...] = ()
    unbounded: tuple[str, ...] = ()
    costly_ranges: tuple[CostlyRange, ...] = ()

    def __str__(self) -> str:
        lines = [f"{display_name(self.model)}: {self.samples} samples"]
        lines.append(
            f"agreement {100 * self.agreement:.2f} %, KL {self.kl:.3g} nats, output SQNR {self.sqnr_db:.2f} dB"
        )
        if self.accuracy is not None and self.accuracy_float is not None:
            lines.append(
                f"accuracy float {100 * self.accuracy_float:.2f} %, quantized {100 * self.accuracy:.2f} % "
                f"(only quantized right {self.gained}, only float right {self.lost}, McNemar p {self.mcnemar_p:.3g})"
            )
        lines += [*self._layer_lines(), *self._range_lines(), *self._sensitivity_lines(), *self._change_lines()]
        return "\n".join(lines)

    def _layer_lines(self) -> list[str]:
        width = max((len(display_name(layer.tensor, 40)) for layer in self.layers), default=6)
        lines = [
            f"{'tensor':<{width}}  {'op':<18} {'type':<8} SQNR dB  W only  A only  cosine    max LSB  differing  "
            "clipped    to zero  headroom"
        ]
        for layer in self.layers:
            lsb = "-" if layer.max_lsb is None else str(layer.max_lsb)
            differing = 100 * layer.differing / max(layer.elements, 1)
            bits = "-" if layer.headroom_bits is None else f"{layer.headroom_bits:.1f} bits"
            lines.append(
                f"{display_name(layer.tensor, 40):<{width}}  {layer.op:<18} {layer.dtype:<8} {layer.sqnr_db:7.2f} "
                f"{_decibels(layer.weights_only_db)} {_decibels(layer.activations_only_db)}  "
                f"{layer.cosine:.6f}  {lsb:>7}  {differing:7.3f} %  {100 * layer.saturation:7.3f} %  "
                f"{100 * layer.underflow:6.3f} %  {bits:>8}"
            )
        return lines

    def _range_lines(self) -> list[str]:
        return [
            *(f"note: {stays_float(name)}" for name in self.unbounded),
            *(f"warning: {one}" for one in self.costly_ranges),
        ]

    def _sensitivity_lines(self) -> list[str]:
        if not self.sensitivities:
            return []
        width = max(len(display_name(one.layer, 40)) for one in self.sensitivities)
        lines = ["", f"sensitivity at the output, {self.analysed} samples: quantized alone | alone in float"]
        for one in self.sensitivities:
            lines.append(f"{display_name(one.layer, 40):<{width}}  {_effect(one.only)} | {_effect(one.without)}")
        return lines

    def _change_lines(self) -> list[str]:
        if not self.changes:
            return ["", "what to change: nothing that was tried gains 0.1 dB"] if self.sensitivities else []
        lines = ["", f"what to change, each executed on {self.analysed} samples:"]
        for place, one in enumerate(self.changes, 1):
            together = "" if one.together is None else f"; with those above {one.together.sqnr_db:.2f} dB"
            lines.append(
                f"{place:>2}. {one.gain_db:+.1f} dB at the output ({one.before.sqnr_db:.2f} to {one.after.sqnr_db:.2f}, "
                f"agreement {100 * one.after.agreement:.1f} %): {display_name(one.what, 200)}{together}"
            )
        return lines

    @property
    def recommended(self) -> tuple[Change, ...]:
        """The first changes, as many as gain most together; empty where none gains."""
        best, count = self.changes[0].before.sqnr_db if self.changes else math.inf, 0
        for place, one in enumerate(self.changes, 1):
            if one.together is not None and one.together.sqnr_db > best:
                best, count = one.together.sqnr_db, place
        return self.changes[:count]

    def improved(self, plan: Plan) -> Plan:
        """`plan`, which the quantized model was made by, with the rules of the recommended changes behind its own.

        Scales that the plan gives the changed tensors are taken out of its rules, so that the changes decide.
        """
        table = tomllib.loads(plan.to_toml())
        for one in self.recommended:
            for rule in tomllib.loads(one.rule)["layers"]:
                for kind in ("weights", "activations"):
                    if kind in rule:
                        _free(table["layers"] if "layers" in table else [], one, kind)
                table.setdefault("layers", []).append(rule)
        table["layers"] = [rule for rule in table.get("layers", []) if rule.get("weights") or rule.get("activations")]
        return Plan.model_validate(table)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite numbers become the text ``inf``."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_csv(self) -> str:
        """One row a layer."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = [one.name for one in dataclasses.fields(LayerComparison)]
        writer.writerow(names)
        for layer in self.layers:
            row = dataclasses.asdict(layer)
            for name, value in row.items():
                row[name] = " ".join(map(str, value)) if isinstance(value, tuple) else value
            writer.writerow([csv_cell("" if row[name] is None else row[name]) for name in names])
        return stream.getvalue()


def _free(rules: list[dict[str, Any]], change: Change, kind: str) -> None:
    """Take given scales of the change's tensor out of earlier rules that name it."""
    for rule in rules:
        if rule["match"].get("tensor") == literal(change.tensor) and kind in rule and kind == change.kind:
            for key in ("scale", "zero_point"):
                rule[kind].pop(key, None)


def _decibels(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.2f}':>7}"


def _effect(found: Effect | None) -> str:
    if found is None:
        return f"{'cannot run':<40}"
    return f"{found.sqnr_db:7.2f} dB, KL {found.kl:9.3g}, agreement {100 * found.agreement:6.2f} %"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
