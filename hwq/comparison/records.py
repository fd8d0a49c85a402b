"""What a comparison says: one record a layer, one for the model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hwq.names import csv_cell, display_name

__all__ = ["Comparison", "LayerComparison"]


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

    def __str__(self) -> str:
        lines = [f"{display_name(self.model)}: {self.samples} samples"]
        lines.append(f"agreement {100 * self.agreement:.2f} %, KL {self.kl:.3g} nats")
        if self.accuracy is not None and self.accuracy_float is not None:
            lines.append(
                f"accuracy float {100 * self.accuracy_float:.2f} %, quantized {100 * self.accuracy:.2f} % "
                f"(only quantized right {self.gained}, only float right {self.lost}, McNemar p {self.mcnemar_p:.3g})"
            )
        width = max((len(display_name(layer.tensor, 40)) for layer in self.layers), default=6)
        lines.append(f"{'tensor':<{width}}  {'op':<18} {'type':<8} SQNR dB  cosine    max LSB  differing  clipped")
        for layer in self.layers:
            lsb = "-" if layer.max_lsb is None else str(layer.max_lsb)
            differing = 100 * layer.differing / max(layer.elements, 1)
            lines.append(
                f"{display_name(layer.tensor, 40):<{width}}  {layer.op:<18} {layer.dtype:<8} {layer.sqnr_db:7.2f}  "
                f"{layer.cosine:.6f}  {lsb:>7}  {differing:7.3f} %  {100 * layer.saturation:.3f} %"
            )
        return "\n".join(lines)

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
            row["first_differing"] = "" if layer.first_differing is None else " ".join(map(str, layer.first_differing))
            writer.writerow([csv_cell("" if row[name] is None else row[name]) for name in names])
        return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
