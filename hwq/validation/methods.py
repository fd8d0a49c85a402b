"""The plans that are scored, by group. Within a group one is chosen on calibration data alone.

All run in the dialect `hwq`: integer kernels, activations uint8 with zero points, a final Softmax in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwq.graph import Graph
from hwq.plan import Layer, Plan

__all__ = ["METHODS", "OFFERED", "Method"]

MSE: Mapping[str, Any] = {"dtype": "int8", "scale": "mse"}
INT4: Mapping[str, Any] = {"dtype": "int4", "scale": "seq-mse", "rounding": "coordinate"}
CORRECT: Mapping[str, Any] = {"bias_correction": "empirical"}


@dataclass(frozen=True)
class Method:
    """A plan with a name. `candidate`: it stands for election in its group of the report (`hwq.validation.accuracy`)."""

    name: str
    group: str
    plan: Plan
    candidate: bool = False

    def on(self, graph: Graph) -> Plan:
        """The plan for a model: a Softmax stays float (a rule that fits no layer would be refused)."""
        if not any(node.op == "Softmax" for node in graph.nodes):
            return self.plan
        rule = Layer.model_validate({"match": {"op": "Softmax"}, "activations": {"mode": "float"}})
        return self.plan.model_copy(update={"layers": (rule,)})


def _plan(weights: Mapping[str, Any], activations: Mapping[str, Any], transforms: Mapping[str, Any]) -> Plan:
    return Plan.model_validate({
        "schema": 1,
        "dialect": "hwq",
        "default": {"weights": dict(weights), "activations": dict(activations)},
        "transforms": dict(transforms),
    })  # fmt: skip


def _static(observer: str) -> dict[str, Any]:
    return {"dtype": "uint8", "observer": observer}


def _methods() -> tuple[Method, ...]:
    int8 = {"dtype": "int8"}
    made = [
        Method(f"{observer}", "W8A8 static", _plan(int8, _static(observer), {}))
        for observer in ("minmax", "percentile", "mse", "kl", "coordinate")
    ]
    made += [
        Method("mse, equalize", "W8A8 static", _plan(int8, _static("mse"), {"equalize": True})),
        Method("mse, equalize, bias", "W8A8 static", _plan(MSE, _static("mse"), {"equalize": True, **CORRECT})),
    ]
    made += [
        Method(f"{observer}, bias", "W8A8 static", _plan(MSE, _static(observer), CORRECT), True)
        for observer in ("percentile", "mse", "coordinate")
    ]
    rounded = {**MSE, "rounding": "coordinate"}
    made.append(Method("mse, rounding, bias", "W8A8 static", _plan(rounded, _static("mse"), CORRECT), True))
    made += [
        Method("minmax", "W8 dynamic", _plan(int8, {"dtype": "uint8", "mode": "dynamic"}, {}), True),
        Method("mse weights", "W8 dynamic", _plan(MSE, {"dtype": "uint8", "mode": "dynamic"}, {}), True),
        Method("rounding", "W8 dynamic", _plan(rounded, {"dtype": "uint8", "mode": "dynamic"}, {}), True),
        Method("minmax", "W4A8", _plan({"dtype": "int4"}, _static("minmax"), {})),
        Method("mse", "W4A8", _plan({"dtype": "int4", "scale": "mse"}, _static("mse"), {})),
        Method("mse, bias", "W4A8", _plan({"dtype": "int4", "scale": "mse"}, _static("mse"), CORRECT)),
        Method("seq-mse, bias", "W4A8",
               _plan({"dtype": "int4", "scale": "seq-mse"}, _static("mse"), CORRECT)),
        Method("seq-mse, gptq, bias", "W4A8",
               _plan({"dtype": "int4", "scale": "seq-mse", "rounding": "gptq"}, _static("mse"), CORRECT)),
    ]  # fmt: skip
    made += [
        Method(
            f"{observer}, seq-mse, rounding, bias",
            "W4A8",
            _plan(INT4, _static(observer), CORRECT),
            observer != "coordinate",
        )
        for observer in ("minmax", "mse", "coordinate")
    ]
    equalized = {"equalize": True, **CORRECT}
    made.append(Method("mse, equalize, seq-mse, rounding, bias", "W4A8", _plan(INT4, _static("mse"), equalized)))
    return tuple(made)


METHODS = _methods()

# What `hwq.validation.choice` tries beside them: only for networks with channels of very uneven ranges, which the report's are not.
OFFERED = (
    Method("smooth, mse, bias", "W8A8 static", _plan(MSE, _static("mse"), {"smooth": 0.5, **CORRECT})),
    Method(
        "equalize, rounding",
        "W8 dynamic",
        _plan({**MSE, "rounding": "coordinate"}, {"dtype": "uint8", "mode": "dynamic"}, {"equalize": True}),
    ),
    Method(
        "smooth, rounding",
        "W8 dynamic",
        _plan({**MSE, "rounding": "coordinate"}, {"dtype": "uint8", "mode": "dynamic"}, {"smooth": 0.5}),
    ),
    Method("mse, smooth, seq-mse, rounding, bias", "W4A8", _plan(INT4, _static("mse"), {"smooth": 0.5, **CORRECT})),
)
