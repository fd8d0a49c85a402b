"""Emission: the nodes of a lowered graph at concrete shapes, written down as C steps over values in memory.

Convolutions and pools run channel-last, whatever the model says: bits do not change, and the kernels like it. A value is
turned only where the other form is asked for, at the edges of such runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.kernels.packing import spatial as pad_rank
from hwq.kernels.steps import Place, Steps
from hwq.kernels.windows import Geometry
from hwq.ops.spatial import Windows

__all__ = ["At", "Emission", "Emitter", "Site", "Step", "Value", "geometry"]

# Where a value lies.
At = Callable[[int], Place]


@dataclass
class Value:
    """Memory that steps fill and read.

    `root` is another value whose memory it is; `constant` is memory that never moves; `array` counts the caller's arrays.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    root: int | None = None
    constant: Array | None = None
    array: int | None = None

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Step:
    """What is done to values: `append` adds a C step, given where values lie; without it, `python` is a node's number."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    append: Callable[[Steps, At], None] | None = None
    python: int = -1


@dataclass
class Emission:
    """The steps so far, and which value holds a name in which form: as the model states it, or channel-last."""

    values: list[Value] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    held: dict[tuple[str, bool], int] = field(default_factory=dict)

    def value(self, value: Value) -> int:
        """Note a value; its number."""
        self.values.append(value)
        return len(self.values) - 1

    def hold(self, name: str, tensor: Tensor, last: bool) -> int:
        """A new value for a name. Where one form is also the other, it holds both."""
        shape = tuple(int(dim) for dim in tensor.shape)
        index = self.value(Value(_turned(shape) if last else shape, carrier(tensor.dtype)))
        self.held[name, last] = index
        if last and _same(shape):
            self.held[name, False] = self.value(Value(shape, carrier(tensor.dtype), root=index))
        return index

    def find(self, name: str, tensor: Tensor, last: bool) -> int:
        """The value of a name in a form, turned here if it must be."""
        if (name, last) in self.held:
            return self.held[name, last]
        shape = tuple(int(dim) for dim in tensor.shape)
        wide = _turned(shape)
        if (name, False) not in self.held and tensor.data is not None:
            constant = np.ascontiguousarray(tensor.data).reshape(shape)
            self.held[name, False] = self.value(Value(shape, constant.dtype, constant=constant))
            if not last:
                return self.held[name, False]
        source = self.held[name, not last]
        made = Value(wide if last else shape, carrier(tensor.dtype))
        if _same(shape):
            made.root = source
            self.held[name, last] = self.value(made)
            return self.held[name, last]
        self.held[name, last] = target = self.value(made)
        batch, channels, space = shape[0], shape[1], math.prod(shape[2:])
        rows, columns = (channels, space) if last else (space, channels)
        element = made.dtype.itemsize

        def append(steps: Steps, at: At) -> None:
            steps.transpose(at(source), element, batch, rows, columns, out=at(target))

        self.steps.append(Step((source,), (target,), append))
        return target


def geometry(windows: Windows, space: Sequence[int]) -> Geometry:
    """Windows as the kernels' door takes them: in, kernel, stride, dilation, pad, out."""
    fields = (space, 1), (windows.kernel, 1), (windows.strides, 1), (windows.dilations, 1), (windows.begin, 0)
    return tuple(pad_rank(values, fill) for values, fill in (*fields, (windows.sizes, 1)))


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape


def _same(shape: tuple[int, ...]) -> bool:
    return len(shape) < 3 or shape[1] <= 1 or math.prod(shape[2:]) <= 1


@dataclass(frozen=True)
class Site:
    """One node at concrete shapes, for its emitter."""

    graph: Graph
    node: Node
    tensors: Mapping[str, Tensor]
    emission: Emission

    def shape(self, index: int) -> tuple[int, ...]:
        """An input's shape, as the model states it."""
        return tuple(int(dim) for dim in self.tensors[self.node.inputs[index]].shape)

    def made_shape(self, index: int = 0) -> tuple[int, ...]:
        """An output's shape."""
        return tuple(int(dim) for dim in self.tensors[self.node.outputs[index]].shape)

    def constant(self, index: int) -> Array | None:
        """An input's values, where they are known; None too where it is absent."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else ""
        return self.tensors[value].data if value else None

    def dtype(self, index: int) -> np.dtype[np.generic]:
        """An input's stored type."""
        return carrier(self.tensors[self.node.inputs[index]].dtype)

    def is_last(self, index: int) -> bool:
        """Whether an input lies channel-last at present, and not as the model states it."""
        name = self.node.inputs[index]
        return (name, True) in self.emission.held and (name, False) not in self.emission.held

    def space(self, index: int) -> tuple[int, ...]:
        """The spatial dimensions of an input, in the node's layout."""
        shape = self.shape(index)
        return shape[1:-1] if self.node.layout == "NHWC" else shape[2:]

    def channels(self, index: int) -> int:
        """The channels of an input, in the node's layout."""
        return self.shape(index)[-1 if self.node.layout == "NHWC" else 1]

    @property
    def turns(self) -> bool:
        """Whether the model states images channel-first, so that channel-last is the other form."""
        return self.node.layout != "NHWC"

    def read(self, index: int, last: bool = False) -> int:
        """The value of an input, in a form."""
        name = self.node.inputs[index]
        return self.emission.find(name, self.tensors[name], last)

    def make(self, last: bool = False, index: int = 0) -> int:
        """The value of an output, in a form."""
        name = self.node.outputs[index]
        return self.emission.hold(name, self.tensors[name], last)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
        """A value that only this node's steps use."""
        return self.emission.value(Value(shape, dtype))

    def step(self, reads: Sequence[int], write: int, append: Callable[[Steps, At], None]) -> None:
        """Add a C step."""
        self.emission.steps.append(Step(tuple(reads), (write,), append))

    def steps(self, reads: Sequence[int], writes: Sequence[int], append: Callable[[Steps, At], None]) -> None:
        """Add a C step that fills several values."""
        self.emission.steps.append(Step(tuple(reads), tuple(writes), append))


# Returns whether it has written the node down; if not, it must not have asked for values.
Emitter = Callable[[Site], bool]
