"""From a model and a plan to a module that can be trained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from hwq.dialect import find
from hwq.elements import stored_type
from hwq.errors import Error
from hwq.graph import Array, Graph
from hwq.lowering import lower
from hwq.ops.folding import fold
from hwq.ops.storage import integer_range
from hwq.qat.network import Network
from hwq.qat.state import State
from hwq.qat.teacher import Teacher

if TYPE_CHECKING:
    from hwq.batches import Batches
    from hwq.calibration import Calibration
    from hwq.plan import Plan

__all__ = ["open_batch", "prepared"]


def prepared(
    model: Any,
    plan: Plan | None,
    example_inputs: Any,
    calibration: Calibration | None,
    batches: Batches | None,
    dynamic_shapes: Any,
) -> Network:
    """See `hwq.qat.prepare`."""
    graph = model if isinstance(model, Graph) else _imported(model, example_inputs, dynamic_shapes)
    if plan is None:
        if not any(node.op == "DequantizeLinear" for node in graph.nodes):
            raise Error("a float model needs a plan", where="qat.prepare", remedy="pass plan=hwq.Plan.uniform(...)")
        return _network(graph, None, None)
    from hwq.calibration import calibrate
    from hwq.quantization import quantize

    samples = batches if batches is not None else _arrays(graph, example_inputs)
    if calibration is None and samples is not None:
        calibration = calibrate(graph, samples)
    return _network(quantize(graph, plan, calibration, batches), graph, plan)


def _network(quantized: Graph, source: Graph | None, plan: Plan | None) -> Network:
    dialect = find(quantized.dialect, usable=True)
    lowered = lower(quantized, dialect.name)
    if any(node.domain == "tflite" for node in lowered.nodes):
        raise Error(
            "TFLite's integer operators have no differentiable form",
            where=f"graph {quantized.name}",
            remedy="prepare the float model with a plan",
        )
    originals: dict[str, Array] = {}
    bounds: dict[str, tuple[int, int]] = {}
    for tensor in quantized.tensors.values():
        if tensor.dtype == "int8" and tensor.data is not None:
            bounds[tensor.name] = (dialect.weight_minimum, 127)
    if source is not None and plan is not None:
        originals, bounds = _originals(quantized, fold(source), plan, bounds)
    state = State.of(quantized, lowered, originals, bounds, dialect.groups)
    return Network(quantized, lowered, dialect, state, None if source is None else Teacher(fold(source)))


def _originals(
    quantized: Graph, floating: Graph, plan: Plan, bounds: dict[str, tuple[int, int]]
) -> tuple[dict[str, Array], dict[str, tuple[int, int]]]:
    """The float weight of each stored one (what the same operator reads in its place before quantization), and `bounds` with
    those that the plan makes narrower than the stored type.
    """
    before = {node.name: node for node in floating.nodes}
    # Transforms that rescale weights leave these behind: there a weight starts in the middle of its cell.
    transforms = plan.transforms
    moved = transforms.equalize or transforms.awq or transforms.smooth is not None
    makers = quantized.producers
    found: dict[str, Array] = {}
    limits = dict(bounds)
    for node in quantized.nodes:
        other = before.get(node.name)
        if other is None or other.op != node.op:
            continue
        for name, was in zip(node.inputs, other.inputs, strict=False):
            maker, data = makers.get(name), floating.constant(was)
            if maker is None or maker.op != "DequantizeLinear" or data is None:
                continue
            if not moved:
                found[maker.inputs[0]] = data
            dtype = plan.weights_of(other, was).dtype
            if stored_type(dtype) != dtype:
                limits[maker.inputs[0]] = integer_range(dtype)
    return found, limits


def _imported(model: Any, example_inputs: Any, dynamic_shapes: Any) -> Graph:
    from hwq.importers.torch import from_torch

    if not isinstance(model, torch.nn.Module):
        raise Error(
            f"this is a {type(model).__name__}, neither a PyTorch module nor a Graph",
            where="qat.prepare",
            remedy="give a torch.nn.Module, or what hwq.load returns",
        )
    if example_inputs is None:
        raise Error("a module needs example_inputs", where="qat.prepare", remedy="pass what its forward takes")
    if dynamic_shapes is None:
        dynamic_shapes = open_batch(model, example_inputs)
    return from_torch(model, example_inputs, dynamic_shapes=dynamic_shapes)


def open_batch(module: Any, example_inputs: Any) -> Any:
    """The first dimension of every input left open, where torch.export finds that it can be."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {0: torch.export.Dim.AUTO} if value.ndim else None
        if isinstance(value, Mapping):
            return {name: of(one) for name, one in value.items()}
        return type(value)(of(one) for one in value) if type(value) in {tuple, list} else None

    named = example_inputs if isinstance(example_inputs, Mapping) else {}
    values = () if named else example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    try:  # a forward that takes *inputs has one argument of several tensors
        bound = inspect.signature(module.forward).bind(*values, **named)
    except TypeError:  # torch.export says what does not fit
        return of(dict(named)) if named else of(tuple(values))
    return of(bound.arguments)


def _arrays(graph: Graph, example_inputs: Any) -> Any:
    """Example inputs as feeds; None where there are none."""
    if example_inputs is None:
        return None
    if isinstance(example_inputs, Mapping):
        return {name: value.numpy() for name, value in example_inputs.items()}
    values = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    return {name: value.detach().numpy() for name, value in zip(graph.inputs, values, strict=False)}
