"""Ranges that cost more than they save: an observer cut values whose loss outweighs the finer steps of the rest.

The entropy formula of TensorRT does so by its nature (`hwq.entropy`): it weighs how many values a level holds and not how far they
lie from it, so it cuts heavy tails, and of values that all lie far from zero it may keep a part of the way to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwq.calibration import Calibration
from hwq.graph import Graph, Quantization
from hwq.names import display_name
from hwq.observers import affine
from hwq.ops.storage import integer_range
from hwq.statistics import Statistics
from hwq.transforms.channels import RESCALED

__all__ = ["MASKED", "REMEDY", "WORTH", "CostlyRange", "costly_ranges", "range_cost", "stays_float"]

# Decibels of squared error beyond those of the whole range from which a range is named.
WORTH = 6.0
REMEDY = 'observer "kl" does so on heavy tails and far from zero: plan observer = "mse"'
MASKED = "it holds minus infinity (a mask), which no range covers"


@dataclass(frozen=True)
class CostlyRange:
    """A stored activation whose range loses more than the whole range would.

    Attributes
    ----------
    tensor : str
    share : float
        Of the largest magnitude that was seen, how much the range reaches.
    decibels : float
        Squared error over that of the whole range.
    """

    tensor: str
    share: float
    decibels: float

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        return f"the range reaches {self.share:.0%} of what was seen and rounds {self.decibels:.0f} dB worse than the whole of it"

    def __str__(self) -> str:
        return f"{display_name(self.tensor)}: {self.cost}; {REMEDY}"


def stays_float(tensor: str) -> str:
    """Why an activation with minus infinity is not stored, in words."""
    return f"{display_name(tensor)} stays float: {MASKED}"


def costly_ranges(quantized: Graph, cal: Calibration) -> tuple[CostlyRange, ...]:
    """The 8-bit (or narrower) activations of a quantized graph whose range costs at least `WORTH` dB, the worst first.

    Parameters
    ----------
    quantized : Graph
        In source form.
    cal : Calibration
        Of its float model; values that a transform scaled are left out.
    """
    scaled = set(quantized.source.get(RESCALED, ()))
    found: dict[str, CostlyRange] = {}
    for node in quantized.nodes:
        pair = quantized.tensors[node.outputs[0]].quantization if node.op == "QuantizeLinear" else None
        name = node.inputs[0]
        name = name if name in cal.tensors else name.removesuffix("_float")  # what a Q of an output reads
        seen = cal.tensors.get(name)
        if pair is None or seen is None or name in scaled or name in found:
            continue
        cost = range_cost(seen, pair)
        if cost is not None and cost[0] >= WORTH:
            found[name] = CostlyRange(name, cost[1], cost[0])
    return tuple(sorted(found.values(), key=lambda one: -one.decibels))


def range_cost(seen: Statistics, pair: Quantization) -> tuple[float, float] | None:
    """Squared error in dB over that of the whole range, and how much of the largest magnitude the range reaches (0..1).

    None of more than 8 bits, of several scales, and where nothing is lost.
    """
    if not pair.known or pair.scales().size != 1:
        return None
    low, high = integer_range(pair.dtype)
    if high - low > 255:
        return None
    scale, zero = float(pair.scales().reshape(())), int(pair.zero_points().reshape(()))
    wide_scale, wide_zero = affine(seen.minimum, seen.maximum, pair.dtype, zero == 0 and low < 0)
    own = _error(seen, scale, zero, low, high)
    whole = _error(seen, float(wide_scale), wide_zero, low, high)
    largest = max(seen.maximum, -seen.minimum)
    if own <= 0.0 or largest <= 0.0:
        return None
    reach = max((high - zero) if seen.maximum > 0.0 else 0, (zero - low) if seen.minimum < 0.0 else 0) * scale
    return float(10.0 * np.log10(own / max(whole, 1e-300))), float(reach / largest)


def _error(seen: Statistics, scale: float, zero: int, low: int, high: int) -> float:
    """Squared error over the histogram's middles."""
    used = np.flatnonzero(seen.histogram)
    values = np.clip((seen.edges[used] + seen.edges[used + 1]) / 2.0, seen.minimum, seen.maximum)
    made = (np.clip(np.rint(values / scale) + zero, low, high) - zero) * scale
    return float((seen.histogram[used] * np.square(made - values)).sum())
