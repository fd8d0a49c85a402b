"""Where a positive factor for each channel of an activation can be moved without changing the function.

A site is an activation X that only linear layers with constant weights read. Dividing its channels by s and multiplying
the readers' weights by s changes nothing; the division moves back through operators that hand a positive factor on (clamps
at zero, pools, views of features, constants added on the way) into constants: the rows and bias of another linear layer,
the scale and bias of a normalization, or a constant factor. Every value on the way has one reader and is no output of the
model. A clamp with an upper bound hands no factor on; `Site.clamps` names those, and the caller decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwq.calibration import Calibration, channel_axis
from hwq.graph import Array, Graph, Node
from hwq.ops.convolution import filters_first
from hwq.patches import Linear, linears

__all__ = ["RESCALED", "Site", "columns", "least_factors", "outputs_of", "rescale", "rows_first", "sites"]

Floats = NDArray[np.float64]

# The fact of a graph's `source` that lists the activations whose channels were scaled.
RESCALED = "rescaled"
# f(x / s) = f(x) / s for every s > 0, channel by channel.
HOMOGENEOUS = frozenset({
    "Relu", "LeakyRelu", "Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
})  # fmt: skip
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "ReduceMean"})
NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization", "BatchNormalization"})


@dataclass(frozen=True, eq=False)
class Change:
    """A constant that takes the factor: input `slot` of a node is divided by it (or multiplied) along `axis`."""

    node: Node
    slot: int
    axis: int
    divide: bool = True


@dataclass(frozen=True, eq=False)
class Site:
    """An activation whose channels can be scaled.

    Attributes
    ----------
    tensor : str
        Read by `readers` only.
    index : int array (features of the tensor,)
        The channel of `maker` that each feature belongs to (a flattened image has many features a channel).
    maker : Node
        Ends the way back: a linear layer, a normalization, or a product with a constant.
    readers : tuple of Linear
    changes : tuple of Change
        Constants that are divided by the factor; a linear maker's weight stands last.
    passed : tuple of str
        Values that scale with the tensor, itself included.
    clamps : tuple of (str, float)
        Clamps to [0, upper] on the way: the value that each makes, and the bound.
    """

    tensor: str
    index: NDArray[np.int64]
    maker: Node
    readers: tuple[Linear, ...]
    changes: tuple[Change, ...]
    passed: tuple[str, ...]
    clamps: tuple[tuple[str, float], ...]

    @property
    def channels(self) -> int:
        """Length of the factor."""
        return int(self.index.max()) + 1


def sites(graph: Graph) -> tuple[Site, ...]:
    """Every site of a float graph whose constants are folded, in the order of the readers."""
    layers = linears(graph)
    found: dict[str, Site] = {}
    for layer in layers.values():
        name = layer.operand
        readers = graph.consumers[name]
        if name in found or name in graph.outputs or not all(_reads(layers.get(node.name), name) for node in readers):
            continue
        every = tuple(layers[node.name] for node in readers)
        sizes = {one.groups * one.k // max(1, int(np.prod(one.kernel, dtype=np.int64))) for one in every}
        axes = {_operand_axis(graph, one) for one in every}
        if len(sizes) != 1 or len(axes) != 1 or None in axes:
            continue
        site = _Walk(graph, layers).back(name, np.arange(sizes.pop()), axes.pop() or 0)
        if site is not None:
            found[name] = dataclasses.replace(site, readers=every)
    return tuple(found.values())


def _reads(layer: Linear | None, name: str) -> bool:
    return layer is not None and layer.operand == name and layer.node.inputs.count(name) == 1


def _operand_axis(graph: Graph, layer: Linear) -> int | None:
    tensor = graph.tensors[layer.operand]
    if not tensor.known_shape or not tensor.shape:
        return None
    return 1 if layer.kernel and layer.node.layout != "NHWC" else len(tensor.shape) - 1


class _Walk:
    """From a value back to the constants that can take a factor."""

    def __init__(self, graph: Graph, layers: Mapping[str, Linear]):
        self.graph, self.layers = graph, layers
        self.changes: list[Change] = []
        self.passed: list[str] = []
        self.clamps: list[tuple[str, float]] = []

    def back(self, name: str, index: NDArray[np.int64], axis: int) -> Site | None:
        start, value = name, name
        while True:
            node = self.graph.producers.get(value)
            if node is None or value in self.graph.outputs or node.outputs[0] != value:
                return None
            if value != start and len(self.graph.consumers[value]) != 1:
                return None
            self.passed.append(value)
            if self._ends(node, axis, int(index.max()) + 1):
                changes, clamps = tuple(self.changes), tuple(self.clamps)
                return Site(start, index, node, (), changes, tuple(self.passed), clamps)
            step = self._through(node, index, axis)
            if step is None:
                return None
            value, index, axis = step

    def _ends(self, node: Node, axis: int, channels: int) -> bool:
        """Whether the node's own constants take the factor; they are noted then."""
        if node.domain in {"", "ai.onnx"} and node.name in self.layers:
            return self._linear(node, axis, channels)
        if node.op in NORMALIZATIONS and not node.domain:
            first = 1 if node.op == "BatchNormalization" else len(self.graph.tensors[node.inputs[0]].shape) - 1
            slots = [slot for slot in (1, 2) if slot < len(node.inputs) and node.inputs[slot]]
            last = int(node.attributes.get("axis", -1)) in {-1, first} or node.op == "BatchNormalization"
            if axis != first or not last or not all(self._vector(node, slot, channels, None) for slot in slots):
                return False
            self.changes += [Change(node, slot, -1) for slot in slots]
            return True
        if node.op in {"Mul", "Div"} and not node.domain:
            slot = next((slot for slot, name in enumerate(node.inputs) if self.graph.constant(name) is not None), None)
            if slot is None or (node.op == "Div" and slot != 1):
                return False
            rank = len(self.graph.tensors[node.outputs[0]].shape)
            if not self._vector(node, slot, channels, rank - axis):
                return False
            self.changes.append(Change(node, slot, axis - rank, node.op == "Mul"))
            return True
        return False

    def _linear(self, node: Node, axis: int, channels: int) -> bool:
        layer = self.layers[node.name]
        made = self.graph.tensors[node.outputs[0]]
        own = 1 if layer.kernel and node.layout != "NHWC" else len(made.shape) - 1
        weight = self.graph.constant(node.inputs[1])
        if weight is None or axis != own or outputs_of(node, weight) != channels:
            return False
        if len(node.inputs) > 2 and node.inputs[2]:
            if not self._vector(node, 2, channels, None):
                return False
            self.changes.append(Change(node, 2, -1))
        turned = node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transB", 0))
        self.changes.append(Change(node, 1, weight.ndim - 1 if turned else 0))
        return True

    def _vector(self, node: Node, slot: int, channels: int, behind: int | None) -> bool:
        """Whether a constant has one number, or one for each channel, `behind` axes before the end (None: a vector)."""
        data = self.graph.constant(node.inputs[slot])
        if data is None or data.dtype.kind != "f":
            return False
        if behind is None:
            return data.size in {1, channels} and data.ndim <= 2 and (data.ndim < 2 or data.shape[0] == 1)
        if data.size == 1:
            return True
        return data.size == channels and data.ndim >= behind and data.shape[data.ndim - behind] == channels

    def _through(self, node: Node, index: NDArray[np.int64], axis: int) -> tuple[str, NDArray[np.int64], int] | None:
        """The value before an operator that hands the factor on."""
        if node.domain:
            return None
        first = node.inputs[0]
        if node.op in HOMOGENEOUS:
            return first, index, axis
        if node.op == "Clip":
            low, high = (self._bound(node, slot) for slot in (1, 2))
            if not (low == 0.0 and high > 0.0) and not (low == -np.inf and high == np.inf):
                return None
            if high < np.inf:
                self.clamps.append((node.outputs[0], high))
            return first, index, axis
        if node.op in VIEWS:
            return self._view(node, index, axis)
        if node.op in {"Add", "Sub"}:
            slot = next((slot for slot, name in enumerate(node.inputs) if self.graph.constant(name) is not None), None)
            rank = len(self.graph.tensors[node.outputs[0]].shape)
            channels = int(index.max()) + 1
            other = None if slot is None else node.inputs[1 - slot]
            if other is None or slot is None or len(self.graph.tensors[other].shape) != rank:
                return None
            if not self._vector(node, slot, channels, rank - axis):
                return None
            self.changes.append(Change(node, slot, axis - rank))
            return other, index, axis
        return None

    def _bound(self, node: Node, slot: int) -> float:
        default = (-np.inf, np.inf)[slot - 1]
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return float(node.attributes.get(("min", "max")[slot - 1], default))
        data = self.graph.constant(node.inputs[slot])
        return float("nan") if data is None else float(data)

    def _view(self, node: Node, index: NDArray[np.int64], axis: int) -> tuple[str, NDArray[np.int64], int] | None:
        """Behind these every feature of the last axis belongs to one channel of the image before them."""
        first = node.inputs[0]
        before, after = self.graph.tensors[first], self.graph.tensors[node.outputs[0]]
        at = channel_axis(self.graph, first)
        if at is None or not before.known_shape or not after.known_shape or len(before.shape) < 3:
            return None
        space = before.shape[1:]
        if node.op == "ReduceMean":
            axes = node.attributes.get("axes", self.graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None)
            kept = int(node.attributes.get("keepdims", 1))
            reduced = {int(one) % len(before.shape) for one in axes} if axes is not None else {at}
            if at in reduced or 0 in reduced or (at if kept else at - sum(one < at for one in reduced)) != axis:
                return None
            return first, index, at
        if len(after.shape) != 2 or axis != 1 or not all(isinstance(dim, int) for dim in space):
            return None
        sizes = [int(dim) for dim in space]
        if int(np.prod(sizes, dtype=np.int64)) != len(index) or after.shape[1] not in {len(index)}:
            return None
        along = np.arange(sizes[at - 1]).reshape([-1 if axis == at - 1 else 1 for axis in range(len(sizes))])
        features = np.broadcast_to(along, sizes).reshape(-1)
        # One view only: the index of a second one would not be a plain count of features.
        return (first, features[index], at) if np.array_equal(index, np.arange(len(index))) else None


def least_factors(site: Site, cal: Calibration | None) -> Floats:
    """The smallest factor each channel may have behind the site's clamps; infinite: it must keep 1."""
    least = np.zeros(site.channels)
    for name, upper in site.clamps:
        assert cal is not None  # such sites are left out without one
        top = cal[name].maxima.astype(np.float64)
        share = np.maximum(top, 0.0) / upper if top.size == site.channels else np.ones(site.channels)
        least = np.maximum(least, np.where(share >= 1.0, np.inf, share))
    return least


def outputs_of(node: Node, weight: Array) -> int:
    """Output channels of a linear layer."""
    turned = node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transB", 0))
    return int(weight.shape[-1 if turned else 0])


def rows_first(layer: Linear, weight: Array) -> Array:
    """The weight as (groups, outputs of a group, inputs of a group, taps)."""
    node = layer.node
    if node.op == "Conv":
        plain = filters_first(weight, node)
    else:
        plain = weight if node.op == "Gemm" and node.attributes.get("transB", 0) else weight.T
    return plain.reshape(layer.groups, len(plain) // layer.groups, -1, int(np.prod(layer.kernel, dtype=np.int64)))


def columns(layer: Linear, weight: Array, factor: Floats) -> Floats:
    """The weight with its input channels multiplied by `factor` (inputs of all groups,), in float64."""
    node = layer.node
    if node.op != "Conv":
        along = 1 if node.op == "Gemm" and node.attributes.get("transB", 0) else 0
        return np.asarray(weight * factor.reshape([-1 if axis == along else 1 for axis in range(weight.ndim)]))
    plain = filters_first(weight, node)
    each = factor.reshape(layer.groups, 1, -1)
    spread = np.broadcast_to(each, (layer.groups, len(plain) // layer.groups, each.shape[2])).reshape(len(plain), -1)
    made = plain * spread.reshape(*spread.shape, *[1] * len(layer.kernel))
    return np.asarray(np.moveaxis(made, 1, -1) if node.layout == "NHWC" else made)


def rescale(graph: Graph, factors: Mapping[str, Floats], found: tuple[Site, ...]) -> Graph:
    """The graph with the channels of each site's tensor divided by its factor: the same function, but for rounding.

    Parameters
    ----------
    graph : Graph
        Float, with folded constants.
    factors : mapping of tensor name to float64 array (channels of the site,)
        Positive and finite. Sites without one stay.
    found : tuple of Site
        `sites(graph)`.

    Returns
    -------
    Graph
        Its ``source`` lists under `RESCALED` the values that hold other numbers than before.
    """
    values: dict[tuple[str, int], Array] = {}
    rescaled: list[str] = list(graph.source.get(RESCALED, ()))

    def value(node: Node, slot: int) -> Array:
        data = graph.constant(node.inputs[slot])
        assert data is not None  # `sites` says so
        return values.get((node.name, slot), data.astype(np.float64))

    for site in found:
        factor = factors.get(site.tensor)
        if factor is None or (factor == 1.0).all():
            continue
        # The last bit of a power depends on the CPU; a float32 does not.
        factor = factor.astype(np.float32).astype(np.float64)
        rescaled += [name for name in site.passed if name not in rescaled]
        for change in site.changes:
            data = value(change.node, change.slot)
            if data.size == 1:
                # One number for all channels becomes one for each, standing where the channels stand.
                along = factor.reshape(-1, *[1] * max(0, -change.axis - 1))
                data = data.reshape(-1) if data.ndim < along.ndim else data
            else:
                along = factor.reshape([-1 if axis == change.axis % data.ndim else 1 for axis in range(data.ndim)])
            values[change.node.name, change.slot] = data / along if change.divide else data * along
        for reader in site.readers:
            weight = columns(reader, value(reader.node, 1), factor[site.index])
            values[reader.node.name, 1] = weight
    return _replaced(graph, values, rescaled)


def _replaced(graph: Graph, values: Mapping[tuple[str, int], Array], rescaled: list[str]) -> Graph:
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        inputs = list(node.inputs)
        for slot, name in enumerate(node.inputs):
            if (node.name, slot) not in values:
                continue
            data = values[node.name, slot].astype(np.float32)
            kept = name
            if len(graph.consumers[name]) > 1 or node.inputs.count(name) > 1 or name in graph.outputs:
                kept = f"{name}_{node.name}"
                while kept in tensors:
                    kept += "_"
            tensors[kept] = dataclasses.replace(graph.tensors[name], name=kept, data=data, shape=data.shape)
            inputs[slot] = kept
        nodes.append(dataclasses.replace(node, inputs=tuple(inputs)))
    used = {name for node in nodes for name in (*node.inputs, *node.outputs)} | {*graph.inputs, *graph.outputs}
    kept_tensors = [tensor for name, tensor in tensors.items() if name in used]
    return graph.replace(nodes=nodes, tensors=kept_tensors, source={**graph.source, RESCALED: tuple(rescaled)})
