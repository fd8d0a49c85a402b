"""Placement: which values of a float graph a plan stores as integers, and which of them share one scale.

The rules follow what integer runtimes fuse. A matrix operator and what its epilogue can do (a MatMul's bias vector or
scalar factor, a clamp) are one step, so the stored value is the last one; an operator that only moves values keeps the
scale of its input; sums and products of activations are integer where every operand is; what no rule names is a float
island between a DequantizeLinear and the next QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hwq.dialect import Dialect
from hwq.dynamic import require_dynamic, require_products
from hwq.graph import Graph, Node
from hwq.operator_kinds import CLAMPS, ELEMENTWISE, MATRIX, MOVES, ROWS, UNARY, VIEWS
from hwq.ops.table import element_functions
from hwq.plan import Activations, Group, Plan, Weights

__all__ = ["Constant", "Placement", "place", "weight_axes"]


@dataclass(frozen=True)
class Constant:
    """A weight to be stored as integers: input `slot` of a node, scales along `axis`, perhaps one every `block`
    elements.
    """

    node: str
    slot: int
    tensor: str
    weights: Weights
    axis: int | None
    block: int | None


@dataclass
class Placement:
    """What is stored as integers.

    Attributes
    ----------
    points : dict of tensor name to Activations
        Activations behind which Q and DQ stand.
    ties : dict of tensor name to tensor name
        The representative whose scale a point shares; its own name where it shares none.
    constants : dict of (node name, slot) to Constant
    operands : dict of (node name, slot) to Constant
        Constant operands of sums and products, in dialects that leave no floats between stored values.
    biases : dict of node name to slot
        Biases to be stored as int32 with scale = input scale * weight scale.
    wants : dict of node name to Activations
        How an integer node wants its operands stored.
    dynamics : dict of node name to Activations
        Matrix operators whose first operand is quantized at run time, over what it then holds, and how.
    """

    points: dict[str, Activations] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[str, int], Constant] = field(default_factory=dict)
    operands: dict[tuple[str, int], Constant] = field(default_factory=dict)
    biases: dict[str, int] = field(default_factory=dict)
    wants: dict[str, Activations] = field(default_factory=dict)
    dynamics: dict[str, Activations] = field(default_factory=dict)

    def apart(self, node: Node, tensor: str) -> Activations | None:
        """How `node` wants an operand that is stored otherwise, so that it reads a storage of its own; None where it reads
        the point as it is. A scale that the plan gives holds for every reader, whatever its zero point; where the plan
        gives the reader's scale too, whatever its type.
        """
        own, wanted = self.points.get(tensor), self.wants.get(node.name)
        if own is None or wanted is None:
            return None
        if self.points[self.ties[tensor]].scale is not None:
            return wanted if own.dtype != wanted.dtype and wanted.scale is None else None
        return wanted if (own.dtype, own.symmetric) != (wanted.dtype, wanted.symmetric) else None

    def members(self) -> Mapping[str, list[str]]:
        """The points that share each representative's scale, in the order of the graph."""
        groups: dict[str, list[str]] = {}
        for tensor in self.points:
            groups.setdefault(self.ties[tensor], []).append(tensor)
        return groups


def place(graph: Graph, plan: Plan, dialect: Dialect) -> Placement:
    """Decide what `plan` stores as integers in `graph`, whose constants are folded.

    Raises
    ------
    Error
        The plan asks for run-time activations of a type that nothing quantizes to, or where there is no product.
    """
    return _Placer(graph, plan, dialect).run()


class _Placer:
    def __init__(self, graph: Graph, plan: Plan, dialect: Dialect):
        self.graph, self.plan, self.dialect = graph, plan, dialect
        self.made = Placement()
        self.chains: dict[str, tuple[Node, ...]] = {}  # head -> head and what its epilogue does
        self.ends: dict[str, tuple[Node, ...]] = {}  # last tensor of a chain -> chain
        self.sources: dict[
            str, str
        ] = {}  # in dialects with tables: a function of one element -> what it is a function of
        # What held minus infinity in calibration: no range covers it.
        self.unbounded = frozenset(graph.source.get("unbounded", ()))
        self.given = {
            tensor
            for tensor in graph.tensors
            if self._floating(tensor) and plan.gives_scale(tensor, self._makers(tensor))
        }

    def run(self) -> Placement:
        inside: set[str] = set()
        for node in self.graph.nodes:
            if node.name not in inside and self._heads_chain(node):
                chain = self._chain(node)
                inside.update(follower.name for follower in chain[1:])
                self.chains[node.name] = self.ends[chain[-1].outputs[0]] = chain
        if "table" in self.dialect.formulas:
            self.sources = element_functions(self.graph, self.chains, MATRIX)
        for node in self.graph.nodes:
            if node.op in MATRIX and not node.domain:
                self._matrix(node)
        require_products(self.plan, (chain for head, chain in self.chains.items() if (head, 1) in self.made.constants))
        for tensor in self.graph.tensors:
            if tensor in self.given:
                self._request(tensor, None)
        for node in self.graph.nodes:
            if node.name not in inside:
                self._forward(node)
        # The order of the graph, whatever the order of the requests.
        order = [*self.graph.inputs, *(name for node in self.graph.nodes for name in node.outputs)]
        self.made.points = {name: self.made.points[name] for name in order if name in self.made.points}
        self.made.ties = {name: self._root(name) for name in self.made.points}
        self._biases()
        return self.made

    def _inside(self, tensor: str) -> bool:
        """Whether only functions of the same source read the tensor, which is one itself."""
        source, readers = self.sources.get(tensor), self.graph.consumers.get(tensor, ())
        return (
            source is not None
            and tensor not in self.graph.outputs
            and tensor not in self.given
            and bool(readers)
            and all(self.sources.get(node.outputs[0]) == source for node in readers)
        )

    def _floating(self, tensor: str) -> bool:
        found = self.graph.tensors[tensor]
        return (
            self._computed(tensor)
            and tensor not in self.unbounded
            and found.dtype in {"float32", "float16", "bfloat16"}
        )

    def _computed(self, tensor: str) -> bool:
        return tensor in self.graph.producers or tensor in self.graph.inputs

    def _makers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes whose rules hold for a tensor: its producer with what is fused before it, or the readers of an
        input.
        """
        if tensor in self.ends:
            return self.ends[tensor]
        producer = self.graph.producers.get(tensor)
        return self.graph.consumers.get(tensor, ()) if producer is None else (producer,)

    def _planned(self, tensor: str) -> Activations:
        makers = self._makers(tensor)
        names = [tensor, *(node.outputs[0] for node in makers if tensor in self.ends)]
        planned = self.plan.activations_of(names, makers)
        # What is quantized at run time is stored as it is made: float.
        floats = planned.mode == "dynamic" or tensor in self.unbounded
        return planned.model_copy(update={"mode": "float"}) if floats else planned

    def _heads_chain(self, node: Node) -> bool:
        return not node.domain and (
            node.op in MATRIX
            or (
                node.op in ELEMENTWISE
                and (not any(map(self._parameter, node.inputs)) or self._vector(node) is not None)
            )
        )

    def _vector(self, node: Node) -> int | None:
        """The slot of a sum's or product's constant operand of several numbers, where the dialect stores it."""
        slots = [slot for slot, name in enumerate(node.inputs) if self._parameter(name)]
        if not self.dialect.integers or len(slots) != 1 or node.inputs[0] == node.inputs[1]:
            return None
        tensor = self.graph.tensors[node.inputs[slots[0]]]
        known = tensor.data is not None and tensor.dtype == "float32" and np.isfinite(tensor.data).all()
        return slots[0] if known and tensor.data is not None and tensor.data.size > 1 else None

    def _parameter(self, tensor: str) -> bool:
        return bool(tensor) and not self._computed(tensor)

    def _chain(self, head: Node) -> tuple[Node, ...]:
        chain = [head]
        while True:
            value = chain[-1].outputs[0]
            readers = self.graph.consumers.get(value, ())
            if len(readers) != 1 or value in self.graph.outputs or value in self.given:
                return tuple(chain)
            follower = readers[0]
            clamps = (
                follower.op in CLAMPS
                and follower.inputs[0] == value
                and not any(map(self._computed, filter(None, follower.inputs[1:])))
            )
            affine = chain[-1].op not in CLAMPS and self._affine(head, follower, value)
            if follower.domain or not (clamps or affine) or follower.outputs[0] in self.unbounded:
                return tuple(chain)
            chain.append(follower)

    def _affine(self, head: Node, follower: Node, value: str) -> bool:
        """Whether `follower` is a part of `head` that exporters write apart: behind a MatMul a constant vector that is
        added along the last axis or a constant factor, behind others a normalization that has no values to fold.
        """
        if head.op != "MatMul":
            return head.op in MATRIX and follower.op == "BatchNormalization" and follower.inputs[0] == value
        if follower.op not in {"Add", "Mul", "Div"} or (follower.op == "Div" and follower.inputs[0] != value):
            return False
        other = follower.inputs[1] if follower.inputs[0] == value else follower.inputs[0]
        shape = self.graph.tensors[other].shape
        if not self._parameter(other) or not self.graph.tensors[other].concrete:
            return False
        return all(dim == 1 for dim in (shape[:-1] if follower.op == "Add" else shape))

    def _dynamic(self, node: Node) -> Activations | None:
        chain = self.chains[node.name]
        planned = self.plan.activations_of([node.inputs[0], chain[-1].outputs[0]], chain)
        if planned.mode != "dynamic" or planned.floating:
            return None
        weight = self.made.constants.get((node.name, 1))
        if weight is None or not self._floating(node.inputs[0]):
            return None
        require_dynamic(node, planned)
        return planned

    def _matrix(self, node: Node) -> None:
        chain = self.chains[node.name]
        wanted = self._planned(chain[-1].outputs[0])
        if self._keeps_floats(node):
            wanted = wanted.model_copy(update={"mode": "float"})
        for slot, name in enumerate(node.inputs[:2]):
            if self._parameter(name):
                self._weight(node, slot)
            elif not wanted.floating and self._floating(name):
                self._request(name, wanted)
        if not wanted.floating:
            self.made.wants[node.name] = wanted
            self._request(chain[-1].outputs[0], wanted)
        elif (dynamic := self._dynamic(node)) is not None:
            self.made.dynamics[node.name] = dynamic

    def _keeps_floats(self, node: Node) -> bool:
        """Whether the plan keeps the node's weights floating-point: such a layer has no integer arithmetic."""
        return any(self._parameter(name) and self.plan.weights_of(node, name).floating for name in node.inputs[:2])

    def _request(self, tensor: str, wanted: Activations | None, led: bool = False) -> None:
        """Make `tensor` a point, stored as its producer's rules say, or as the reader wants where those say float; `led`: what
        moves it has a given scale.
        """
        if tensor in self.made.points or not self._floating(tensor) or self._inside(tensor):
            return
        planned = self._planned(tensor)
        producer = self.graph.producers.get(tensor)
        source = producer.inputs[0] if producer is not None and producer.op in VIEWS and not producer.domain else ""
        root = self._moved_from(tensor) if planned.floating and wanted is not None else None
        follows = root is not None
        if planned.floating:
            if wanted is None:
                return
            if root is not None and producer is not None:
                source = producer.inputs[0]
            # A scale that the plan gives the reader's own result is not this operand's.
            planned = (wanted if root is None else self._planned(root)).model_copy(
                update={"scale": None, "zero_point": None}
            )
        self.made.points[tensor] = planned
        self.made.ties.setdefault(tensor, tensor)
        if source and self._floating(source):
            # A scale that is given behind a move holds before it too, where no other reader wants the value as it was.
            back = (led or tensor in self.given) and source not in self.given
            if back and (len(self.graph.consumers[source]) > 1 or source in self.graph.outputs):
                return
            self._request(source, planned, back)
            if follows or back:
                self._tie(tensor, source)

    def _moved_from(self, tensor: str) -> str | None:
        """The value with a given scale whose elements `tensor` holds in other places, through values that have none."""
        while (node := self.graph.producers.get(tensor)) is not None and node.op in MOVES and not node.domain:
            tensor = node.inputs[0]
            if tensor in self.given:
                return tensor
        return None

    def _forward(self, node: Node) -> None:
        """Let integers flow on through a node that is no matrix operator."""
        computed = [name for name in node.inputs if name and self._computed(name)]
        source = self.sources.get(node.outputs[0])
        if source is not None:
            if source in self.made.points and not self._inside(node.outputs[0]):
                self._output(node, node.outputs[0])
            return
        if (
            not computed
            or not all(name in self.made.points for name in computed if self._floating(name))
            or not self._floating(computed[0])
            or not self.unbounded.isdisjoint(computed)
        ):
            return
        if node.name in self.chains and node.op in ELEMENTWISE:
            made = self.chains[node.name][-1].outputs[0]
            self._output(node, made)
            if made in self.made.points and (slot := self._vector(node)) is not None:
                how = self.made.points[made]
                dtype = "int16" if how.dtype == "uint16" else how.dtype
                weights = Weights(dtype=dtype, granularity="tensor", symmetric=how.symmetric or dtype == "int16")
                self.made.operands[node.name, slot] = Constant(node.name, slot, node.inputs[slot], weights, None, None)
        elif node.kind in UNARY or self._spatial_mean(node) or (self.dialect.integers and node.kind in ROWS):
            self._output(node, node.outputs[0])
            if node.op in self.dialect.tied:
                self._tie(node.outputs[0], node.inputs[0])
        elif node.op in MOVES and not node.domain:
            for output in node.outputs:
                if output and self._floating(output) and not self._planned(output).floating:
                    self._request(output, self.made.points[node.inputs[0]])
                    self._tie(output, node.inputs[0])
        elif node.op == "Concat":
            self._output(node, node.outputs[0])
            for name in computed:
                if "Concat" in self.dialect.tied or len(self.graph.consumers[name]) == 1:
                    self._tie(name, node.outputs[0])

    def _output(self, node: Node, tensor: str) -> None:
        wanted = self._planned(tensor)
        if not wanted.floating:
            self.made.wants[node.name] = wanted
            self._request(tensor, wanted)

    def _spatial_mean(self, node: Node) -> bool:
        """A mean over the space of an image is a pool; means over features belong to normalizations, which stay
        float.
        """
        if node.op != "ReduceMean" or len(self.graph.tensors[node.inputs[0]].shape) != 4:
            return False
        axes = node.attributes.get("axes", None if len(node.inputs) < 2 else self.graph.constant(node.inputs[1]))
        return axes is not None and {int(axis) % 4 for axis in axes} in ({2, 3}, {1, 2})

    def _tie(self, one: str, other: str) -> None:
        points, (first, second) = self.made.points, (self._root(one), self._root(other))
        if one not in points or other not in points or first == second:
            return
        if first in self.given and second in self.given and _value(points[first]) != _value(points[second]):
            return
        if (points[one].dtype, points[one].symmetric) == (points[other].dtype, points[other].symmetric):
            # A scale that the plan gives leads its group.
            first, second = (second, first) if first in self.given else (first, second)
            self.made.ties[first] = second

    def _root(self, tensor: str) -> str:
        while self.made.ties.get(tensor, tensor) != tensor:
            tensor = self.made.ties[tensor]
        return tensor

    def _weight(self, node: Node, slot: int) -> None:
        name = node.inputs[slot]
        tensor, weights = self.graph.tensors[name], self.plan.weights_of(node, name)
        if weights.floating or tensor.dtype not in {"float32", "float16", "bfloat16"} or not tensor.known_shape:
            return
        rank = len(tensor.shape)
        channel, reduced = weight_axes(node, slot, rank)
        axis, block = (None, None) if weights.granularity == "tensor" else (channel, None)
        if (
            isinstance(weights.granularity, Group)
            and reduced is not None
            and int(tensor.shape[reduced]) >= weights.granularity.group
        ):
            axis, block = reduced, weights.granularity.group
        self.made.constants[node.name, slot] = Constant(node.name, slot, name, weights, axis, block)

    def _biases(self) -> None:
        for node in self.graph.nodes:
            if (
                node.op not in {"Conv", "Gemm"}
                or node.domain
                or len(node.inputs) < 3
                or self.dialect.bias_dtype != "int32"
            ):
                continue
            weight, bias, channels = (
                self.made.constants.get((node.name, 1)),
                self.graph.tensors.get(node.inputs[2]),
                None,
            )
            if weight is not None and bias is not None and weight.block is None:
                channels = self.graph.tensors[weight.tensor].shape[weight_axes(node, 1, 2)[0] or 0]
            plain = all(node.attributes.get(key, 1.0) == 1.0 for key in ("alpha", "beta"))
            if (
                channels is not None
                and bias is not None
                and plain
                and self._parameter(bias.name)
                and bias.shape == (channels,)
                and node.inputs[0] in self.made.points
                and self.chains[node.name][-1].outputs[0] in self.made.points
            ):
                self.made.biases[node.name] = 2


def _value(how: Activations) -> tuple[object, ...]:
    """Everything that makes two given quantizations the same."""
    return how.dtype, how.symmetric, how.scale, how.zero_point


def weight_axes(node: Node, slot: int, rank: int) -> tuple[int | None, int | None]:
    """(axis of the output channels, axis of the sum) of a matrix operator's constant."""
    if node.op == "Conv":
        return 0, rank - 1 if node.layout == "NHWC" else 1
    if node.op == "ConvTranspose":  # [channels, filters of a group, *kernel]: groups share their filters' scales
        return 1, 0
    if slot == 0 or rank < 2:
        return None, None
    if node.op == "Gemm" and node.attributes.get("transB", 0):
        return 0, 1
    return rank - 1, rank - 2
