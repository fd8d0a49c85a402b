"""Ranges that cost more than they save: an observer cut values whose loss outweighs the finer steps of the rest.

The entropy formula of TensorRT does so by its nature (`hwq.entropy`): it weighs how many values a level holds and not how far they
lie from it, so it cuts heavy tails, and of values that all lie far from zero it may keep a part of the way to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwq.calibration import Calibration
from hwq.graph import Graph
from hwq.observers import affine
from hwq.ops.storage import integer_range
from hwq.statistics import Statistics
from hwq.transforms.channels import RESCALED

__all__ = ["CostlyRange", "costly_ranges"]

# Decibels of squared error beyond those of the whole range from which a range is named.
WORTH = 6.0


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
    found = {}
    for node in quantized.nodes:
        pair = quantized.tensors[node.outputs[0]].quantization if node.op == "QuantizeLinear" else None
        name = node.inputs[0]
        name = name if name in cal.tensors else name.removesuffix("_float")  # what a Q of an output reads
        seen = cal.tensors.get(name)
        if pair is None or not pair.known or pair.scales().size != 1 or seen is None or name in scaled:
            continue
        low, high = integer_range(pair.dtype)
        if high - low > 255 or name in found:
            continue
        scale, zero = float(pair.scales().reshape(())), int(pair.zero_points().reshape(()))
        symmetric = zero == 0 and low < 0
        wide_scale, wide_zero = affine(seen.minimum, seen.maximum, pair.dtype, symmetric)
        own = _error(seen, scale, zero, low, high)
        whole = _error(seen, float(wide_scale), wide_zero, low, high)
        if own > 0.0 and 10.0 * np.log10(own / max(whole, 1e-300)) >= WORTH:
            reach = max((high - zero) if seen.maximum > 0.0 else 0, (zero - low) if seen.minimum < 0.0 else 0) * scale
            share = reach / max(seen.maximum, -seen.minimum)
            found[name] = CostlyRange(name, float(share), float(10.0 * np.log10(own / max(whole, 1e-300))))
    return tuple(sorted(found.values(), key=lambda one: -one.decibels))


def _error(seen: Statistics, scale: float, zero: int, low: int, high: int) -> float:
    """Squared error over the histogram's middles."""
    used = np.flatnonzero(seen.histogram)
    values = np.clip((seen.edges[used] + seen.edges[used + 1]) / 2.0, seen.minimum, seen.maximum)
    made = (np.clip(np.rint(values / scale) + zero, low, high) - zero) * scale
    return float((seen.histogram[used] * np.square(made - values)).sum())
