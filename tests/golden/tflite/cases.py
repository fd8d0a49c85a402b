"""The register of one-op models and what their builders draw from; inputs are drawn by `make.py`.

The builders: products.py, pointwise.py, moves.py, states.py, and those that `hwq dialects --verify` draws too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hwq.verification.tflite_builder import Builder
from hwq.verification.tflite_function_models import FUNCTIONS
from hwq.verification.tflite_movement_models import MOVEMENTS

# name -> function of a generator that returns the file's bytes
CASES: dict[str, Callable[[np.random.Generator], bytes]] = {}


def case(name: str, *arguments: Any, **keywords: Any) -> Callable[..., Any]:
    """Register `function(generator, *arguments, **keywords)` under a name; decorators stack."""

    def add(function: Callable[..., bytes]) -> Callable[..., bytes]:
        if name in CASES:
            raise RuntimeError(f"two cases are called {name}")
        CASES[name] = lambda generator: function(generator, *arguments, **keywords)
        return function

    return add


def weights(rng: np.random.Generator, shape: Any, dtype: str) -> np.ndarray:
    """Full-range weights; TFLite's int8 and int4 weights leave the lowest value out."""
    low, high = {"int8": (-127, 128), "int4": (-7, 8), "uint8": (0, 256)}[dtype]
    return rng.integers(low, high, shape)


def activation(
    b: Builder, rng: np.random.Generator, dtype: str, shape: Any, scale: float = 0.05, zero: int | None = None
) -> int:
    """A computed tensor of a type, with a scale unless it is a float."""
    if dtype in {"float32", "int32", "bool"}:
        return b.tensor(dtype, shape)
    if zero is None:
        zero = {"int8": -7, "uint8": 121, "int16": 0}[dtype]
    return b.tensor(dtype, shape, scale=scale, zero=zero)


def channel_scales(rng: np.random.Generator, count: int, ties: bool, equal: bool = False) -> np.ndarray:
    """Scales per channel; with `ties` powers of two, so that exact halves occur."""
    if equal:
        return np.full(count, 0.01, np.float32)
    return (2.0 ** -rng.integers(5, 9, count) if ties else rng.uniform(0.002, 0.02, count)).astype(np.float32)


for drawn in (FUNCTIONS, MOVEMENTS):
    CASES.update({f"drawn_{kind.replace(', ', '_').replace(' ', '_').lower()}": build for kind, build in drawn.items()})
