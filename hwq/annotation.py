"""The quantized graph that a placement asks for: QuantizeLinear and DequantizeLinear around every stored value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hwq.dynamic import dynamic_layer, in_integers, run_time_pair
from hwq.elements import stored_type
from hwq.floating import HALVES
from hwq.graph import BITS, Graph, Node, Quantization, Tensor, carrier
from hwq.placement import Constant, Placement
from hwq.plan import Activations
from hwq.scales import Scales

__all__ = ["Annotation"]


class Annotation:
    """Writes the quantized graph node by node. Without `scales` nothing has a value."""

    def __init__(self, graph: Graph, placement: Placement, scales: Scales | None):
        self.old, self.placement, self.scales = graph, placement, scales
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.taken = {*graph.tensors, *(node.name for node in graph.nodes)}
        self.reads: dict[str, str] = {}  # float value -> what its readers read
        self.variants: dict[tuple[str, str, bool], str] = {}
        self.stored: dict[tuple[Any, ...], str] = {}
        self.parameters: dict[str, tuple[str, str]] = {}  # representative -> names of its scale and zero point

    def graph(self) -> Graph:
        for name in self.old.inputs:
            self.tensors[name] = self.old.tensors[name]
            if name in self.placement.points:
                self.reads[name] = self._point(name, name, self._fresh(f"{name}_dequantized"))
        for node in self.old.nodes:
            self._node(node)
        read = {name for node in self.nodes for name in node.inputs if name}
        kept = {
            name: tensor
            for name, tensor in self.old.tensors.items()
            if name not in self.tensors and (name in read or name in self.old.outputs)
        }
        return self.old.replace(nodes=self.nodes, tensors=[*self.tensors.values(), *kept.values()])

    def _fresh(self, name: str) -> str:
        wanted, count = name, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def _node(self, node: Node) -> None:
        planned = self.placement.dynamics.get(node.name)
        if planned is not None and in_integers(self.old, node, planned, self.placement.constants[node.name, 1]):
            made = self._dynamic(node)
            self.tensors[node.outputs[0]] = self.old.tensors[node.outputs[0]]
            self.nodes += made
            return
        inputs = [self._operand(node, slot, name) for slot, name in enumerate(node.inputs)]
        if planned is not None:
            inputs[0] = self._run_time(node, planned, inputs[0])
        outputs, behind = list(node.outputs), []
        for index, name in enumerate(node.outputs):
            if not name:
                continue
            tensor = self.old.tensors[name]
            if name in self.placement.points:
                last = name in self.old.outputs
                outputs[index] = self._fresh(f"{name}_float") if last else name
                behind.append((name, outputs[index], name if last else self._fresh(f"{name}_dequantized")))
            self.tensors[outputs[index]] = dataclasses.replace(tensor, name=outputs[index])
        self.nodes.append(dataclasses.replace(node, inputs=tuple(inputs), outputs=tuple(outputs)))
        for name, value, result in behind:
            self.reads[name] = self._point(name, value, result)

    def _operand(self, node: Node, slot: int, name: str) -> str:
        constant = self.placement.constants.get((node.name, slot)) or self.placement.operands.get((node.name, slot))
        if constant is not None:
            return self._in_type_of(node, self._weight(node, constant))
        if self.placement.biases.get(node.name) == slot:
            return self._bias(node, name)
        wanted = self.placement.apart(node, name)
        if wanted is not None:
            return self._variant(name, wanted)
        return self.reads.get(name, name)

    def _in_type_of(self, node: Node, name: str) -> str:
        """A dequantized weight in the 16-bit floating-point type that its node computes in."""
        dtype = self.old.tensors[node.outputs[0]].dtype
        if dtype not in HALVES or self.tensors[name].dtype == dtype:
            return name
        key = ("cast", name, dtype)
        if key not in self.stored:
            made = self.stored[key] = self._fresh(f"{name}_{dtype}")
            self.tensors[made] = dataclasses.replace(self.tensors[name], name=made, dtype=dtype)
            self.nodes.append(Node("Cast", self._fresh(f"{made}_Cast"), (name,), (made,), {"to": dtype}))
        return self.stored[key]

    def _variant(self, name: str, wanted: Activations) -> str:
        """A second storage of `name` for a reader whose operands have another type: a precision border costs a Q and
        a DQ.
        """
        key = (name, wanted.dtype, wanted.symmetric)
        if key not in self.variants:
            label = f"{name}_{wanted.dtype}"
            names = self._declared(
                label,
                None if self.scales is None else self.scales.variant(name, wanted),
                wanted.dtype,
                self.old.tensors[name].dtype,
            )
            self.variants[key] = self._pair(
                name, self.reads[name], names, wanted.dtype, label, self._fresh(f"{label}_dequantized")
            )
        return self.variants[key]

    def _point(self, name: str, value: str, result: str) -> str:
        """Put Q and DQ behind the float value `value`; returns the dequantized value's name, `result`."""
        chief, how = self.placement.ties[name], self.placement.points[name]
        if chief not in self.parameters:
            self.parameters[chief] = self._declared(
                name,
                None if self.scales is None else self.scales.activation(name),
                how.dtype,
                self.old.tensors[name].dtype,
            )
        return self._pair(name, value, self.parameters[chief], how.dtype, name, result)

    def _pair(self, name: str, value: str, parameters: tuple[str, str], dtype: str, label: str, result: str) -> str:
        tensor, stored = self.old.tensors[name], self._fresh(f"{label}_quantized")
        planned = Quantization(dtype, self.tensors[parameters[0]].data, self.tensors[parameters[1]].data)
        self.tensors[stored] = Tensor(stored, dtype, tensor.shape, quantization=planned, known_shape=tensor.known_shape)
        self.tensors[result] = dataclasses.replace(tensor, name=result)
        self.nodes.append(
            Node(
                "QuantizeLinear",
                self._fresh(f"{label}_QuantizeLinear"),
                (value, *parameters),
                (stored,),
                {"output_dtype": dtype},
            )
        )
        self.nodes.append(
            Node("DequantizeLinear", self._fresh(f"{label}_DequantizeLinear"), (stored, *parameters), (result,))
        )
        return result

    def _declared(
        self, label: str, values: tuple[Any, Any] | None, dtype: str, real: str, shape: tuple[int, ...] = ()
    ) -> tuple[str, str]:
        """Constants for a scale and a zero point; without values they are declared only."""
        scale, zero = self._fresh(f"{label}_scale"), self._fresh(f"{label}_zero_point")
        data = (
            (None, None)
            if values is None
            else (np.asarray(values[0], np.float32), np.asarray(values[1]).astype(carrier(dtype)))
        )
        self.tensors[scale] = Tensor(scale, real, shape, data=data[0])
        self.tensors[zero] = Tensor(zero, dtype, shape, data=data[1])
        return scale, zero

    def _weight(self, node: Node, constant: Constant) -> str:
        tensor, dtype = self.old.tensors[constant.tensor], stored_type(constant.weights.dtype)
        shape, attributes = _granularity(tensor, constant)
        values = None if self.scales is None else self.scales.weight(node, constant)
        key = (
            constant.tensor,
            dtype,
            shape,
            constant.axis,
            None if values is None else (values[0].tobytes(), values[1].tobytes()),
        )
        if key not in self.stored:
            stored, result = self._fresh(f"{tensor.name}_quantized"), self._fresh(f"{tensor.name}_dequantized")
            parameters = self._declared(tensor.name, None if values is None else values[:2], dtype, tensor.dtype, shape)
            planned = Quantization(
                dtype,
                self.tensors[parameters[0]].data,
                self.tensors[parameters[1]].data,
                constant.axis,
                constant.block,
                "packed" if BITS[dtype] < 8 else "plain",
            )
            self.tensors[stored] = Tensor(stored, dtype, tensor.shape, None if values is None else values[2], planned)
            self.tensors[result] = dataclasses.replace(tensor, name=result, data=None)
            self.nodes.append(
                Node(
                    "DequantizeLinear",
                    self._fresh(f"{tensor.name}_DequantizeLinear"),
                    (stored, *parameters),
                    (result,),
                    attributes,
                )
            )
            self.stored[key] = result
        return self.stored[key]

    def _dynamic(self, node: Node) -> list[Node]:
        """The integer product of a dynamically quantized operand, as `hwq.dynamic` writes it."""
        constant = self.placement.constants[node.name, 1]
        values = None if self.scales is None else self.scales.weight(node, constant)
        made = dynamic_layer(
            self.old, node, constant, values, self.reads.get(node.inputs[0], node.inputs[0]), self._fresh
        )
        for tensor in made.tensors:
            self.tensors[tensor.name] = tensor
        return list(made.nodes)

    def _run_time(self, node: Node, planned: Activations, operand: str) -> str:
        """The operand quantized and dequantized at run time; readers that want the same share one pair."""
        across = node.op in {"Conv", "ConvTranspose"}, bool(node.attributes.get("transA", 0))
        key = ("run time", operand, planned.dtype, planned.granularity, *across)
        if key not in self.stored:
            made, self.stored[key] = run_time_pair(self.old, node, planned, operand, self._fresh)
            for tensor in made.tensors:
                self.tensors[tensor.name] = tensor
            self.nodes += made.nodes
        return self.stored[key]

    def _bias(self, node: Node, name: str) -> str:
        tensor, constant = self.old.tensors[name], self.placement.constants[node.name, 1]
        values = None if self.scales is None else self.scales.bias(node, constant)
        key = (
            "bias",
            name,
            constant.axis is None,
            node.name if values is None else (values[0].tobytes(), values[1].tobytes()),
        )
        if key not in self.stored:
            stored, scale = self._fresh(f"{name}_quantized"), self._fresh(f"{name}_scale")
            result = self._fresh(f"{name}_dequantized")
            shape, axis = (() if constant.axis is None else tensor.shape), (None if constant.axis is None else 0)
            self.tensors[scale] = Tensor(
                scale, tensor.dtype, shape, None if values is None else np.asarray(values[0], np.float32)
            )
            planned = Quantization("int32", self.tensors[scale].data, axis=axis)
            self.tensors[stored] = Tensor(stored, "int32", tensor.shape, None if values is None else values[1], planned)
            self.tensors[result] = dataclasses.replace(tensor, name=result, data=None)
            # ONNX gives int32 no zero point.
            self.nodes.append(
                Node(
                    "DequantizeLinear",
                    self._fresh(f"{name}_DequantizeLinear"),
                    (stored, scale),
                    (result,),
                    {} if axis is None else {"axis": axis},
                )
            )
            self.stored[key] = result
        return self.stored[key]


def _granularity(tensor: Tensor, constant: Constant) -> tuple[tuple[int, ...], Mapping[str, int]]:
    """Shape of a weight's scale, and the attributes of its DequantizeLinear."""
    shape = tuple(int(dim) for dim in tensor.shape)
    if constant.axis is None:
        return (), {}
    if constant.block is None:
        return (shape[constant.axis],), {"axis": constant.axis}
    blocks = -(-shape[constant.axis] // constant.block)
    return (*shape[: constant.axis], blocks, *shape[constant.axis + 1 :]), {
        "axis": constant.axis,
        "block_size": constant.block,
    }
