"""Machines and what a model costs on them. Knows nothing of execution."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwq.simulators.accelerator import Accelerator
    from hwq.simulators.catalogue import accelerators, find
    from hwq.simulators.estimation import Estimate, LayerEstimate, estimate
    from hwq.simulators.explanation import Explanation, explain

__all__ = ["Accelerator", "Estimate", "Explanation", "LayerEstimate", "accelerators", "estimate", "explain", "find"]

_HOMES = {"Accelerator": "accelerator", "accelerators": "catalogue", "find": "catalogue",
          "Estimate": "estimation", "LayerEstimate": "estimation", "estimate": "estimation",
          "Explanation": "explanation", "explain": "explanation"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
