"""What random TFLite models draw from: sizes, scales and zero points, extremes and ties among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["RANGES", "Draw", "Generator", "integer", "scheme", "table"]

Generator = np.random.Generator
# A model's bytes from a generator.
Draw = Callable[[Generator], bytes]
RANGES = {"int8": (-128, 128), "uint8": (0, 256), "int16": (-32768, 32768)}


def integer(rng: Generator, low: int, high: int) -> int:
    """A number from `low` to below `high`."""
    return int(rng.integers(low, high))


def scheme(rng: Generator, dtype: str) -> dict[str, Any]:
    """A scale, often a power of two so that ties occur, and a zero point, often at an end of the range."""
    if dtype == "float32":
        return {}
    scale = 2.0 ** integer(rng, -9, 1) if rng.random() < 0.3 else np.exp(rng.uniform(-6, 0))
    low, high = RANGES[dtype]
    zero = 0 if dtype == "int16" else int(rng.choice([low, high - 1, *rng.integers(low, high, 2)]))
    return {"scale": np.float32(scale), "zero": zero}


def table(kinds: Sequence[tuple[str, Callable[..., bytes], tuple[Any, ...]]]) -> dict[str, Draw]:
    """Names with the function that draws one model of the kind."""

    def draw(function: Callable[..., bytes], arguments: tuple[Any, ...]) -> Draw:
        return lambda rng: function(rng, *arguments)

    return {name: draw(function, arguments) for name, function, arguments in kinds}
