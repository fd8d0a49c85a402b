"""The prepared module: a lowered graph in torch, on stored integers, with weights, biases and scales as parameters.

A quantized tensor is held as ``v = q - zero point``, an integer in a float32, beside its scale. With w = u s0 / s the
weight in steps, the forward pass is

    v_w = clamp(rint(w)),  acc = sum v_x v_w + v_b,  v_y = clamp(rint(f32(acc) m)),  m = f32(f32(s_x s_w) / s_y)

which is the kernels' arithmetic. With the roundings passed straight through, autograd gives d(s v)/ds = rint(w) - w inside
the range and its bound outside: LSQ's derivative (Esser et al. 2020, eq. 3), for weights and activations alike.

Parameters: u (the weight over its first scale s0, so a step of the optimizer means the same in every layer), biases in
steps of the layer's output, t = s / s0 for each scale that the quantized graph holds as a constant, and what layers of floats
learn (`hwq.qat.floats`). Values that no torch
operator reproduces bit for bit (softmax, tables, float islands) are computed by the program's own step; the torch operator
gives their gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hwq.dialect import Dialect
from hwq.errors import Error
from hwq.execution.fbgemm import depthwise
from hwq.execution.saturation import saturates
from hwq.execution.steps import Scope, Settings, build, is_group
from hwq.graph import Array, Graph, Node, Quantization, Tensor, carrier
from hwq.ops.application import evaluate_node
from hwq.ops.storage import integer_range
from hwq.qat import operators, products, run_time
from hwq.qat.gradients import finite, instead, instead_within, round_through, round_within, scale_gradient
from hwq.qat.state import INTEGER, State, Stored, spread

__all__ = ["Network"]


class Network(torch.nn.Module):  # type: ignore[misc]
    """A lowered graph as a module; `prepare` makes it.

    Attributes
    ----------
    quantized : Graph
        The start, in source form.
    lowered : Graph
        What the dialect makes of it: one step of ``forward`` a node.
    teacher : torch.nn.Module or None
        The float model.
    frozen : tuple of str
        Float constants that no parameter trains (masks, positions, statistics of the data).
    """

    def __init__(self, quantized: Graph, lowered: Graph, dialect: Dialect, state: State, teacher: Any = None):
        super().__init__()
        self.quantized, self.lowered, self.dialect, self.state = quantized, lowered, dialect, state
        # Kept in a list so that its parameters are not this module's.
        self._teachers = [] if teacher is None else [teacher]
        self.factors = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(one.shape)) for one in state.scales])
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.from_numpy(one.start.copy())) for one in state.weights]
        )
        self.biases = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.from_numpy(one.start.copy())) for one in state.biases]
        )
        self.floats = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(one.base.shape)) for one in state.floats])

    @property
    def teacher(self) -> Any:
        """The float model as a module, or None for a model that came quantized."""
        return self._teachers[0] if self._teachers else None

    @property
    def frozen(self) -> tuple[str, ...]:
        """Float constants of more than one element that keep their value."""
        return self.state.frozen

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs, float32 or as the graph stores them: one tensor, or a tuple in the graph's order."""
        values = self.values(*inputs, **named)
        made = tuple(self.real(values[name]) for name in self.lowered.outputs)
        return made[0] if len(made) == 1 else made

    def trace(self, *inputs: Any, **named: Any) -> dict[str, Array]:
        """Every value that a node makes, as it is stored: comparable with ``program(x, intermediates=True)[1]``."""
        with torch.no_grad():
            values = self.values(*inputs, **named)
        made = {name for node in self.lowered.nodes for name in node.outputs if name}
        return {name: stored_array(value) for name, value in values.items() if name in made}

    def logits(self, *inputs: Any, **named: Any) -> list[Any]:
        """Each output that is a float, or what enters the Softmax that makes it: where `distill` compares."""
        values = self.values(*inputs, **named)
        made = [self.real(values[name]) for name in logits_names(self.lowered)]
        return [value for value in made if isinstance(value, torch.Tensor)]

    def real(self, value: Any) -> Any:
        """A value as real numbers: stored integers times their scale, in float32."""
        return value.centered * value.spread_scale() if isinstance(value, Stored) else value

    def values(self, *inputs: Any, **named: Any) -> dict[str, Any]:
        """Run every node; name to `Stored`, tensor or array."""
        values: dict[str, Any] = _feeds(self.lowered, inputs, named)
        for node in self.lowered.nodes:
            operands = [self._operand(node, index, name, values) for index, name in enumerate(node.inputs)]
            made = self._node(node, operands)
            values.update({name: value for name, value in zip(node.outputs, made, strict=False) if name})
        return values

    # ---- parameters

    def scale(self, name: str, quantization: Quantization) -> Any:
        """The scale of a stored tensor, float32, learned where the quantized graph holds it as a constant."""
        found = self.state.scale_of.get(name)
        if found is None:
            return torch.from_numpy(np.array(quantization.scales()))
        one = self.state.scales[found]
        # LSQ's gradient scale, 1 / sqrt(elements * largest integer); the count of a weight, or of one sample's activation.
        factor = scale_gradient(self.factor(found), one.gradient)
        return (torch.from_numpy(one.base) * factor).reshape(quantization.scales().shape)

    def factor(self, index: int) -> Any:
        """A scale over its first value, positive and within its limits."""
        free, (low, high) = self.factors[index], self.state.scales[index].limits
        return instead(free, torch.where(free > 0, free.clamp(low, high), free))

    def weight(self, name: str, quantization: Quantization) -> Stored:
        """A trained weight as integers."""
        index = self.state.weight_of[name]
        one = self.state.weights[index]
        scale = self.scale(name, quantization)
        base = torch.from_numpy(np.array(quantization.scales()))
        scheme, own = one.scheme, self.weights[index]
        steps = own * spread(base / scale, scheme.axis, scheme.block, own)
        zero = spread(torch.from_numpy(np.array(one.zero, np.float32)), scheme.axis, scheme.block, own)
        centered = torch.clamp(round_through(steps), one.low - zero, one.high - zero)
        key = self.state.scale_of.get(name)
        return Stored(centered, scale, one.zero, scheme.dtype, scheme.axis, key, scheme.block)

    def bias(self, name: str, scales: Any) -> Any:
        """A trained bias in accumulator steps, float64 integers within int32."""
        index = self.state.bias_of[name]
        one = self.state.biases[index]
        steps = self.biases[index] * (torch.from_numpy(one.unit) / scales.double())
        return round_within(steps, -(2.0**31), 2.0**31 - 1)

    def float_bias(self, name: str) -> Any:
        """A trained float32 bias."""
        index = self.state.bias_of[name]
        return (self.biases[index] * torch.from_numpy(self.state.biases[index].unit)).float()

    def constant(self, name: str) -> Any:
        """A trained float32 constant."""
        index = self.state.float_of[name]
        one = self.state.floats[index]
        return torch.from_numpy(one.base) + self.floats[index] * one.unit

    # ---- nodes

    def _operand(self, node: Node, index: int, name: str, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            value = values[name]
            return self._retyped(name, value) if isinstance(value, Stored) else value
        tensor = self.lowered.tensors[name]
        if name in self.state.weight_of:
            return self.weight(name, tensor.quantization or self.state.weights[self.state.weight_of[name]].scheme)
        if name in self.state.float_of:
            return self.constant(name)
        if name in self.state.bias_of and tensor.dtype == "float32":
            return self.float_bias(name)
        if tensor.data is None:
            raise Error("this weight has no values", where=f"tensor {name}", remedy="load the model with its weights")
        if tensor.quantization is not None and tensor.quantization.known and tensor.dtype != "int32":
            return self._constant(name, tensor)
        if tensor.dtype == "float32":
            return torch.from_numpy(np.array(tensor.data))
        return tensor.data

    def _constant(self, name: str, tensor: Tensor) -> Stored:
        quantization = tensor.quantization
        assert quantization is not None and tensor.data is not None
        zero, data = quantization.zero_points(), torch.from_numpy(tensor.data.astype(np.float32))
        wide = spread(torch.from_numpy(np.array(zero, np.float32)), quantization.axis, quantization.block, data)
        plain: Any = int(zero.reshape(())) if zero.size == 1 and quantization.block is None else zero
        return Stored(data - wide, self.scale(name, quantization), plain, quantization.dtype, quantization.axis,
                      self.state.scale_of.get(name), quantization.block)  # fmt: skip

    def _retyped(self, name: str, value: Stored) -> Stored:
        """A view of a tensor that says it is stored otherwise: the same integers."""
        quantization = self.lowered.tensors[name].quantization
        if (
            quantization is None
            or not quantization.known
            or quantization.zero_points().size != 1
            or not isinstance(value.zero, int)
        ):
            return value
        zero = int(quantization.zero_points().reshape(()))
        if zero == value.zero and self.state.scale_of.get(name) == value.key:
            return value
        centered = value.centered + float(value.zero - zero)
        return Stored(
            centered, self.scale(name, quantization), zero, quantization.dtype, None, self.state.scale_of.get(name)
        )

    def _node(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        arrays = all(one is None or isinstance(one, np.ndarray) for one in operands)
        if arrays and not any(name in self.state.bias_of for name in node.inputs):
            return evaluate_node(node, operands, self.lowered)  # shapes and indices
        if node.op == "Shape" and not node.domain:
            shape = operands[0].centered.shape if isinstance(operands[0], Stored) else operands[0].shape
            return evaluate_node(node, [np.empty(tuple(shape), np.uint8)], self.lowered)
        if node.op in run_time.QUANTIZE:
            return run_time.quantized(self, node, operands)
        if node.op == run_time.DEQUANTIZE:
            return run_time.real_rows(self, node, operands)
        if node.op in INTEGER:
            return run_time.accumulated(self, node, operands)
        if node.op == "QuantizeLinear":
            return [self._quantize(node, operands)]
        if node.op == "DequantizeLinear":
            return [self._dequantize(node, operands)]
        if not is_group(self.lowered, node):
            return self._island(node, operands)
        if node.op in operators.MOVERS and isinstance(operands[0], Stored):
            return self._moved(node, operands)
        if node.op == "Relu":
            one = operands[0]
            return [dataclasses.replace(one, centered=one.centered.clamp(min=0))]
        if node.op in products.PRODUCTS and isinstance(operands[0], Stored):
            if not products.of_bytes(operands) or self.saturates(node):
                return self._island(node, *products.with_real_bias(self, node, operands))
            return [self._finished(node, products.accumulate(self, node, operands))]
        if node.op in products.BINARY and node.op in self.dialect.formulas:
            scale, zero, dtype, key = self._made(node)
            low, high = integer_range(dtype)
            soft, exact = products.combined(self, node, operands, (scale, zero, dtype))
            steps = instead_within(soft, exact, low - zero, high - zero)
            return [Stored(steps, scale, zero, dtype, None, key)]
        if node.op in {"GlobalAveragePool", "AveragePool"}:
            mean = products.mean_of_all(node, operands)
            if mean is not None:
                return [self._finished(node, mean)]
        return self._island(node, operands)

    def saturates(self, node: Node) -> bool:
        """Whether the dialect's sums of this product are not the exact ones: they come from the program's step then."""
        scope = Scope(self.lowered, self.dialect, node)
        return saturates(scope) or (self.dialect.name.startswith("torch-fbgemm") and depthwise(scope))

    def _made(self, node: Node, index: int = 0) -> tuple[Any, int, str, int | None]:
        """Scale, zero point, stored type and key of a node's quantized output."""
        name = node.outputs[index]
        quantization = self.lowered.tensors[name].quantization
        assert quantization is not None
        zero = int(quantization.zero_points().reshape(()))
        return self.scale(name, quantization).reshape(()), zero, quantization.dtype, self.state.scale_of.get(name)

    def _finished(self, node: Node, sums: products.Sums) -> Any:
        """Requantize accumulators, or make them float where no Q follows."""
        wide = sums.total.float()  # to the nearest even, as int32 is converted
        if self.lowered.tensors[node.outputs[0]].quantization is None:
            real = wide * sums.scales
            return real if sums.bias is None else real + sums.bias
        scale, zero, dtype, key = self._made(node)
        low, high = integer_range(dtype)
        # fp32 (R4): f32(acc), plus a float bias, times one float32, to the nearest even, clamped.
        multipliers = sums.scales / (scale if sums.count is None else scale * float(sums.count))
        steps = (wide if sums.bias is None else wide + sums.bias / sums.scales) * multipliers
        relu = self.dialect.groups and any(part.op == "Relu" for part in node.body)
        limits = 0 if sums.floor or relu else low - zero, high - zero
        centered = round_within(steps, *limits)
        if self.dialect.groups:
            centered = products.clamped(node, centered, scale, limits, self.lowered.constant)
        return Stored(centered, scale, zero, dtype, None, key)

    def _moved(self, node: Node, operands: list[Any]) -> Sequence[Any]:
        first = operands[0]
        made = operators.compute(node, [first.centered, *operands[1:]])
        return [dataclasses.replace(first, centered=value) for value in made]

    def _quantize(self, node: Node, operands: list[Any]) -> Any:
        name = node.outputs[0]
        quantization = self.lowered.tensors[name].quantization
        plain = quantization is not None and quantization.known and quantization.granularity == "tensor"
        if not plain or quantization is None or not isinstance(operands[0], torch.Tensor):
            raise Error(
                "this quantization has no differentiable form",
                where=f"node {node.name}",
                why="its scale is computed at run time, or there is one a channel",
                remedy="plan static activations, one scale a tensor",
            )
        scale, zero, dtype, key = self._made(node)
        low, high = integer_range(dtype)
        if self.dialect.formulas.get("QuantizeLinear", "onnx") != "onnx":
            return self._island(node, operands)[0]
        centered = round_within(operands[0] / scale, low - zero, high - zero)
        return Stored(centered, scale, zero, dtype, None, key)

    def _dequantize(self, node: Node, operands: list[Any]) -> Any:
        one = operands[0]
        if not isinstance(one, Stored):  # an int32 bias or another constant: not trained here
            data = evaluate_node(node, [self.lowered.constant(name) if name else None for name in node.inputs])[0]
            return torch.from_numpy(np.array(data))
        return one.centered * one.spread_scale()

    def _island(self, node: Node, operands: list[Any], given: list[Any] | None = None) -> Sequence[Any]:
        """The program's own step gives the value, the torch operator the gradient; `given` are operands as real numbers."""
        real = [self.real(one) for one in operands] if given is None else given
        real = [finite(one) if isinstance(one, torch.Tensor) else one for one in real]
        if node.op == "QuantizeLinear":
            soft: tuple[Any, ...] = (real[0],)
        elif node.kind == "hwq::Table":
            soft = (operators.chain(node, real[0], self.lowered.constant),)
        else:
            soft = operators.compute(node, real)
            soft = (operators.behind(node, soft[0], self.lowered.constant), *soft[1:])
        exact = self.step(node, operands)
        made = []
        for index, (value, right) in enumerate(zip(soft, exact, strict=False)):
            if self.lowered.tensors[node.outputs[index]].quantization is None:
                real_one = right.dtype.kind == "f" and isinstance(value, torch.Tensor)
                made.append(instead(value, torch.from_numpy(right)) if real_one else right)
                continue
            scale, zero, dtype, key = self._made(node, index)
            low, high = integer_range(dtype)
            steps = torch.clamp(value / scale, low - zero, high - zero)
            centered = torch.from_numpy(right.astype(np.float32) - np.float32(zero))
            made.append(Stored(instead(steps, centered), scale, zero, dtype, None, key))
        return made

    def step(self, node: Node, operands: list[Any]) -> Sequence[Array]:
        """The node by the kernel that the program would use, with the weights and scales of this moment."""
        arrays = [None if one is None else stored_array(one) for one in operands]
        tensors = []
        for name, one, array in zip(node.inputs, operands, arrays, strict=True):
            if not name:
                continue
            tensor = self.lowered.tensors[name]
            data = array if name not in self.lowered.producers and name not in self.lowered.inputs else None
            tensors.append(dataclasses.replace(tensor, data=data, quantization=self._now(tensor, one)))
        for index, name in enumerate(node.outputs):
            if name:
                tensor = self.lowered.tensors[name]
                scheme = tensor.quantization
                if scheme is not None and scheme.known:
                    scale = self._made(node, index)[0].detach().numpy().reshape(scheme.scales().shape)
                    scheme = dataclasses.replace(scheme, scale=scale)
                tensors.append(dataclasses.replace(tensor, quantization=scheme))
        # The numbers in a table's formula stand in its body.
        inside = {name for part in node.body for name in part.inputs if name in self.lowered.tensors}
        named = {name: self.lowered.tensors[name] for name in inside} | {one.name: one for one in tensors}
        if node.op == "QuantizeLinear":
            scale = self._made(node)[0].detach().numpy()
            named[node.inputs[1]] = dataclasses.replace(
                named[node.inputs[1]], data=scale.reshape(named[node.inputs[1]].shape)
            )
        if self.dialect.name.startswith("torch-fbgemm"):  # how a value lies in memory follows from what made it
            graph = self.lowered.replace(tensors={**self.lowered.tensors, **named}.values())
        else:
            feeds = [name for name in dict.fromkeys(node.inputs) if name and named[name].data is None]
            graph = Graph([node], named.values(), feeds, [name for name in node.outputs if name], form="lowered",
                          dialect=self.dialect.name, source=self.lowered.source)  # fmt: skip
        return build(graph, self.dialect, node)(arrays, [None] * len(node.outputs), Settings())

    def _now(self, tensor: Tensor, value: Any) -> Quantization | None:
        scheme = tensor.quantization
        if scheme is None or not scheme.known or not isinstance(value, Stored):
            return scheme
        return dataclasses.replace(scheme, scale=value.scale.detach().numpy().reshape(scheme.scales().shape))


def stored_array(value: Any) -> Array:
    """A value as the program stores it."""
    if isinstance(value, Stored):
        zero = value.spread_zero()
        made = value.centered.detach().numpy().astype(np.int64) + zero
        return np.array(made.astype(carrier(value.dtype)), order="C")
    return np.array(value.detach().numpy(), order="C") if isinstance(value, torch.Tensor) else value


def logits_names(graph: Graph) -> list[str]:
    """For each output what enters the Softmax that makes it (behind Q and DQ), else the output."""
    return [_behind_softmax(graph, name) for name in graph.outputs]


def _behind_softmax(graph: Graph, output: str) -> str:
    name = output
    while True:
        node = graph.producers.get(name)
        if node is None or node.op not in {"DequantizeLinear", "QuantizeLinear", "Softmax"}:
            return output
        if node.op == "Softmax":
            return node.inputs[0]
        name = node.inputs[0]


def _feeds(graph: Graph, inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        named, inputs = {**inputs[0], **named}, ()
    feeds = {**dict(zip(graph.inputs, inputs, strict=False)), **named}
    if set(feeds) != set(graph.inputs) or len(inputs) > len(graph.inputs):
        raise Error(
            f"the model has {len(graph.inputs)} inputs, {len(inputs) + len(named)} were given",
            where=f"graph {graph.name}",
            remedy=f"give {', '.join(graph.inputs[:16])}",
        )
    made = {}
    for name, value in feeds.items():
        tensor = torch.from_numpy(np.array(value, order="C")) if isinstance(value, np.ndarray) else value
        made[name] = tensor if graph.tensors[name].dtype.startswith("float") else tensor.numpy()
    return made
