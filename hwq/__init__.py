"""What a quantization plan computes, bit for bit, and what it costs, before any hardware exists.

>>> import hwq
>>> graph = hwq.load("zoo:resnet50", weights=False)
>>> plan = hwq.Plan.uniform(weights="int8", activations="uint8")
>>> hwq.estimate(graph, "tpu-v1", plan=plan).seconds  # doctest: +SKIP

Everything is imported where it is first used, so that ``import hwq`` stays quick.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

__version__ = "0.1.0"

if importlib.util.find_spec("hwq._kernels") is None or importlib.util.find_spec("hwq._simulators") is None:
    _tree = Path(__file__).resolve().parent.parent
    _remedy = (
        f"It is imported from its source tree: run `make dev` (or `pip install -e .`) in {_tree}, or leave that folder."
        if (_tree / "setup.py").exists()
        else "Install it again: pip install --force-reinstall hwq"
    )
    raise ImportError(f"hwq has no compiled kernels here. {_remedy}")

# Each promised name and the room that it lives in.
_ROOMS = {
    "Accelerator": "hwq.simulators", "Calibration": "hwq.calibration", "Comparison": "hwq.comparison", "Error": "hwq.errors",
    "Estimate": "hwq.simulators", "Graph": "hwq.graph", "Node": "hwq.graph", "NotSupportedYet": "hwq.errors", "Plan": "hwq.plan",
    "Program": "hwq.execution", "Quantization": "hwq.graph", "Tensor": "hwq.graph", "accelerators": "hwq.simulators",
    "calibrate": "hwq.calibration", "compare": "hwq.comparison", "compile": "hwq.execution", "dialects": "hwq.dialect",
    "estimate": "hwq.simulators", "execute": "hwq.execution", "explain": "hwq.simulators", "export": "hwq.exporters", "from_torch": "hwq.importers.torch", "load": "hwq.importers",
    "lower": "hwq.lowering", "quantize": "hwq.quantization", "report": "hwq.reporting",
}  # fmt: skip
# Submodules that are part of the surface.
_MODULES = {"kernels", "numerics", "simulators", "zoo"}
# Promised names whose rooms are not built yet, and what they will do.
_LATER = {
    "check": "hwq.check, whether a machine supports every layer of a plan",
    "search": "hwq.search, the Pareto front of plans",
}

__all__ = [
    "Accelerator",
    "Calibration",
    "Comparison",
    "Error",
    "Estimate",
    "Graph",
    "Node",
    "NotSupportedYet",
    "Plan",
    "Program",
    "Quantization",
    "Tensor",
    "accelerators",
    "calibrate",
    "check",
    "compare",
    "compile",
    "dialects",
    "estimate",
    "execute",
    "explain",
    "export",
    "from_torch",
    "kernels",
    "load",
    "lower",
    "numerics",
    "quantize",
    "report",
    "search",
    "simulators",
    "zoo",
]

if TYPE_CHECKING:
    from hwq import kernels, numerics, simulators, zoo
    from hwq.calibration import Calibration, calibrate
    from hwq.comparison import Comparison, compare
    from hwq.dialect import dialects
    from hwq.errors import Error, NotSupportedYet
    from hwq.execution import Program, compile, execute
    from hwq.exporters import export
    from hwq.graph import Graph, Node, Quantization, Tensor
    from hwq.importers import load
    from hwq.importers.torch import from_torch
    from hwq.lowering import lower
    from hwq.plan import Plan
    from hwq.quantization import quantize
    from hwq.reporting import report
    from hwq.simulators import Accelerator, Estimate, accelerators, estimate, explain

    def check(*arguments: object, **keywords: object) -> NoReturn: ...
    def search(*arguments: object, **keywords: object) -> NoReturn: ...


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value = getattr(importlib.import_module(_ROOMS[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"hwq.{name}")
    elif name in _LATER:
        value = _later(name)
    else:
        raise AttributeError(f"module 'hwq' has no attribute {name!r}")
    globals()[name] = value
    return value


def _later(name: str) -> Any:
    def not_yet(*arguments: object, **keywords: object) -> NoReturn:
        from hwq.errors import NotSupportedYet

        raise NotSupportedYet(_LATER[name])

    not_yet.__name__ = not_yet.__qualname__ = name
    not_yet.__doc__ = f"Not supported yet: {_LATER[name]}."
    return not_yet


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
