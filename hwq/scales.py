"""Scales: the numbers behind a placement, from given values, ranges and weights, within the dialect's limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwq.dialect import Dialect
from hwq.elements import stored_type
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Array, Graph, Node, carrier
from hwq.names import display_name
from hwq.observers import HUGE, TINY, activation_range, affine, weight_affine
from hwq.ops.quantize import quantize
from hwq.ops.storage import integer_range
from hwq.placement import Constant, Placement
from hwq.plan import Activations, Plan, Weights
from hwq.plan_values import given_array
from hwq.statistics import Statistics

if TYPE_CHECKING:
    from hwq.calibration import Calibration

__all__ = ["Scales"]

# The range of these functions: no calibration can know it better.
RANGES = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0)}
# |bias / scale| stays within this, so that the sum of the products keeps half of the int32 accumulator.
BIAS_LIMIT = 2.0**30
# 255 * 255 * 256 < 2^24: the sums of a group of 8-bit products are integers that float32 holds (kernels/README.md).
EXACT_GROUP = 256
# A layer whose weights are all zero gives its bias this many steps.
DEAD_STEPS = 2.0**20


class Scales:
    """Scale, zero point and stored integers of every point, weight and bias of a placement.

    Raises
    ------
    Error
        Plan and dialect contradict each other, a given scale does not fit, or a range is missing.
    NotSupportedYet
        A method that is not built.
    """

    def __init__(self, graph: Graph, plan: Plan, dialect: Dialect, placement: Placement, cal: Calibration | None):
        self.graph, self.plan, self.dialect, self.placement, self.cal = graph, plan, dialect, placement, cal
        self.members = placement.members()
        self.files: dict[Path, dict[str, Array]] = {}
        self.made: dict[str, tuple[np.float32, int]] = {}
        self.weights: dict[tuple[str, int], tuple[Array, Array, Array]] = {}

    def activation(self, tensor: str) -> tuple[np.float32, int]:
        """Scale and zero point of a point; all that share a scale get those of their representative."""
        chief = self.placement.ties[tensor]
        if chief not in self.made:
            how = self.placement.points[chief]
            self._require_activation(chief, how)
            self.made[chief] = (
                self._given_activation(chief, how) if how.scale is not None else self._observed(chief, how)
            )
        return self.made[chief]

    def variant(self, tensor: str, how: Activations) -> tuple[np.float32, int]:
        """Scale and zero point of a second storage of `tensor` in another type."""
        self._require_activation(tensor, how)
        return self._observed(self.placement.ties[tensor], how)

    def _require_activation(self, tensor: str, how: Activations) -> None:
        where = f"tensor {display_name(tensor)}, key activations"
        if self.graph.tensors[tensor].dtype != "float32":
            raise NotSupportedYet(
                f"quantizing {self.graph.tensors[tensor].dtype} values",
                where=where,
                remedy="export the model in float32",
            )
        if how.granularity != "tensor":
            raise NotSupportedYet(
                f'activations of granularity "{how.granularity}"',
                where=f"{where}.granularity",
                why="rows are only known at run time",
                remedy='use granularity = "tensor", or mode = "dynamic"',
            )
        if how.dtype not in self.dialect.activation_dtypes:
            raise self._contradiction(
                f"{where}.dtype", f"has no {how.dtype} activations", sorted(self.dialect.activation_dtypes)
            )
        if self.dialect.symmetric_activations and not (how.symmetric and how.dtype.startswith("int")):
            raise self._contradiction(
                f"{where}.symmetric", "allows no zero points on activations", ["a signed type with symmetric = true"]
            )

    def _contradiction(self, where: str, what: str, allowed: Sequence[str]) -> Error:
        return Error(
            f"plan and dialect contradict each other: {self.dialect.name} {what}",
            where=where,
            remedy=f"the dialect takes {', '.join(allowed)}; or choose another dialect",
        )

    def _given_activation(self, tensor: str, how: Activations) -> tuple[np.float32, int]:
        where = f"tensor {display_name(tensor)}, key activations"
        scale = self._numbers(how.scale, f"{where}.scale")
        zero = self._zero_points(how.zero_point, how.dtype, f"{where}.zero_point")
        if scale.size != 1 or (zero is not None and zero.size != 1):
            raise Error(
                f"{scale.size} scales for one tensor",
                where=f"{where}.scale",
                remedy="an activation has one scale and one zero point",
            )
        # A given scale without a zero point means 0, as in every file format that leaves it out.
        return np.float32(scale.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0])

    def ranged(self, chief: str, observer: str) -> tuple[np.float32, int]:
        """What another observer makes of the statistics of a point and all that share its scale."""
        how = self.placement.points[chief]
        self._require_activation(chief, how)
        return self._observed(chief, how.model_copy(update={"observer": observer}))

    def searched(self, chief: str) -> bool:
        """Whether the range of this point is to be searched at the model's outputs (`hwq.range_search`)."""
        how, members = self.placement.points[chief], self.members[chief]
        free = how.scale is None and not any(self._maker(name) in RANGES for name in members)
        return how.observer == "coordinate" and free and self._fixed(members, how) is None

    def _observed(self, chief: str, how: Activations) -> tuple[np.float32, int]:
        members = self.members[chief]
        if how.observer == "coordinate":
            # What the search leaves out: a second storage, and what shares the scale of a function's own range.
            how = how.model_copy(update={"observer": "mse"})
        fixed = self._fixed(members, how)
        if fixed is not None:
            return fixed
        ranges = [RANGES[op] for op in map(self._maker, members) if op in RANGES]
        seen = [self._statistics(name) for name in members if self._maker(name) not in RANGES]
        if seen:
            ranges.append(activation_range(_together(seen), how))
        return affine(min(low for low, _ in ranges), max(high for _, high in ranges), how.dtype, how.symmetric)

    def _maker(self, tensor: str) -> str:
        producer = self.graph.producers.get(tensor)
        return "" if producer is None else producer.op

    def _fixed(self, members: Sequence[str], how: Activations) -> tuple[np.float32, int] | None:
        ops = [self._maker(name) for name in members if self._maker(name) in self.dialect.fixed]
        if not ops or how.dtype != "int8":
            return None
        scale, zero = self.dialect.fixed[ops[0]]
        return np.float32(scale), zero

    def _statistics(self, tensor: str) -> Statistics:
        if self.cal is None:
            raise Error(
                "this activation has no range",
                where=f"tensor {display_name(tensor)}",
                why="the plan gives no scale for it and there is no calibration",
                remedy='pass the Calibration of this graph, or plan mode = "float"',
            )
        while (
            tensor not in self.cal.tensors
            and (maker := self.graph.producers.get(tensor)) is not None
            and maker.op == "Cast"
        ):
            tensor = maker.inputs[0]
        return self.cal[tensor]

    def weight(self, node: Node, constant: Constant) -> tuple[Array, Array, Array]:
        """Scale, zero point and stored integers of a weight."""
        key = (node.name, constant.slot)
        if key not in self.weights:
            self.weights[key] = self._weight(node, constant)
        return self.weights[key]

    def _weight(self, node: Node, constant: Constant) -> tuple[Array, Array, Array]:
        how = constant.weights
        where = f"node {display_name(node.name)}, weight {display_name(constant.tensor)}, key weights"
        self._require_weight(node, constant, where)
        data = self.graph.constant(constant.tensor)
        if data is None:
            raise Error(
                "this weight has no values",
                where=where,
                why="the graph was built for cost only",
                remedy="load the model with its weights; for cost use estimate(graph, machine, plan=plan)",
            )
        if not np.isfinite(data).all():
            raise Error("the weight holds NaN or infinity", where=where, remedy="the model is damaged; export it again")
        shape = _scale_shape(data.shape, constant)
        minimum = self.dialect.weight_minimum if how.dtype == "int8" else None
        if isinstance(how.scale, str) and not how.scale.startswith("file:"):
            scale, zero = self.observed_weight(node, constant, data, how, minimum)
        else:
            kernel = len(shape) - 2 if node.op in {"Conv", "ConvTranspose"} and constant.block is not None else 0
            scale, zero = self._given_weight(how.scale, how.zero_point, how.dtype, shape, kernel, where)
            if (scale < 0.0).any() and node.name in {*self.placement.wants, *self.placement.dynamics}:
                raise Error(
                    "weights with scales below 0 beside stored activations",
                    where=f"{where}.scale",
                    why="integer sums are requantized by factors above 0",
                    remedy='plan activations.mode = "float" for this layer',
                )
        zero = zero.astype(carrier(how.dtype))
        stored = quantize(data, scale, zero, how.dtype, constant.axis, constant.block)
        if minimum is not None:
            stored = np.maximum(stored, np.int8(minimum))
        return scale, zero, stored

    def observed_weight(
        self,
        node: Node,
        constant: Constant,
        data: Array,
        how: Weights,
        minimum: int | None,
        importance: Array | None = None,
    ) -> tuple[Array, Array]:
        """Scale (float32) and zero point (int32) of the values `data` in the place of a weight, by the method of `how`."""
        groups = _groups(data, constant)
        weighing = None if importance is None or how.scale != "weighted" else _groups(importance, constant)
        scale, zero = weight_affine(groups, how, minimum, weighing)
        shape = _scale_shape(data.shape, constant)
        return self.alive(node, constant, scale).reshape(shape), zero.reshape(shape)

    def require_weight(self, node: Node, constant: Constant) -> None:
        """Refuse a weight that the dialect cannot take or that no method is built for."""
        where = f"node {display_name(node.name)}, weight {display_name(constant.tensor)}, key weights"
        self._require_weight(node, constant, where)
        data = self.graph.constant(constant.tensor)
        if data is not None and not np.isfinite(data).all():
            raise Error("the weight holds NaN or infinity", where=where, remedy="the model is damaged; export it again")

    def _require_weight(self, node: Node, constant: Constant, where: str) -> None:
        how = constant.weights
        if how.rounding == "adaround":
            raise NotSupportedYet(
                'rounding "adaround"', where=f"{where}.rounding", remedy='use rounding = "coordinate" or "gptq"'
            )
        if self.graph.tensors[constant.tensor].dtype != "float32":
            raise NotSupportedYet(
                f"quantizing {self.graph.tensors[constant.tensor].dtype} weights",
                where=where,
                remedy="export the model in float32",
            )
        integer = (node.name, constant.slot) in self.placement.constants and node.name in self.placement.wants
        # Weights of a float layer are only stored as integers; an integer layer needs a kernel for them.
        if integer and stored_type(how.dtype) not in self.dialect.weight_dtypes:
            raise self._contradiction(
                f"{where}.dtype", f"has no integer kernel for {how.dtype} weights", sorted(self.dialect.weight_dtypes)
            )
        if integer and constant.block is not None and not self.dialect.floats:
            self._require_groups(node, constant, where)
        if self.dialect.symmetric_weights and not (how.symmetric and how.dtype.startswith("int")):
            raise self._contradiction(
                f"{where}.symmetric", "allows no zero points on weights", ["a signed type with symmetric = true"]
            )

    def _require_groups(self, node: Node, constant: Constant, where: str) -> None:
        activations = self.placement.wants[node.name].dtype
        remedies = ["channel", "tensor", 'groups under activations.mode = "float"']
        if not self.dialect.groups:
            raise self._contradiction(f"{where}.granularity", "has no integer kernel for groups", remedies)
        if activations.endswith("16"):
            what = f"has no integer kernel for groups of weights under {activations} activations"
            raise self._contradiction(f"{where}.granularity", what, [*remedies, "8-bit activations"])
        if constant.weights.dtype in {"int8", "uint8"} and constant.block and constant.block > EXACT_GROUP:
            what = f"multiplies groups of at most {EXACT_GROUP} 8-bit weights"
            raise self._contradiction(f"{where}.granularity", what, [f"groups of {EXACT_GROUP} or fewer", *remedies])

    def _given_weight(
        self, scale: Any, zero_point: Any, dtype: str, shape: tuple[int, ...], kernel: int, where: str
    ) -> tuple[Array, Array]:
        """Given numbers in the scale's shape; those of its last `kernel` axes may be one for all positions."""
        values = self._numbers(scale, f"{where}.scale", signed=True)
        zero = self._zero_points(zero_point, dtype, f"{where}.zero_point")
        zero = np.zeros(1, np.int64) if zero is None else zero
        shared = (*shape[:-kernel], *[1] * kernel) if kernel else shape
        made = []
        for label, given in (("scales", values), ("zero points", zero)):
            fits = next((form for form in ((), shape, shared) if given.size == math.prod(form)), None)
            if fits is None:
                raise Error(
                    f"{given.size} {label} are given, {math.prod(shape)} are needed",
                    where=f"{where}.{label.replace(' ', '_')[:-1]}",
                    why=f"at this granularity the scale has shape {list(shape)}",
                    remedy="give one number, or one each in row-major order",
                )
            made.append(np.broadcast_to(given.reshape(fits), shape).copy())
        return made[0], made[1]

    def alive(self, node: Node, constant: Constant, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give rows of zeros a scale, and raise scales so small that a bias, or the product with the input's scale,
        would not fit.
        """
        peak = float(scale.max(initial=0.0))
        bias, step = self._bias_values(node, constant), self._input_scale(node)
        if bias is None or step is None:
            return np.where(scale == 0.0, np.float32(peak or 1.0), scale)
        largest = float(np.abs(bias).max(initial=0.0))
        common = peak or min(max(largest / (DEAD_STEPS * step), TINY), HUGE) or 1.0
        alive = np.where(scale == 0.0, np.float32(common), scale).astype(np.float64)
        floor = np.maximum(np.abs(bias) if alive.size == bias.size else largest, 0.0) / (step * BIAS_LIMIT)
        floor = np.clip(np.maximum(floor, TINY / step), TINY, HUGE)
        return np.where(alive < floor, np.nextafter(floor.astype(np.float32), np.float32(np.inf)), alive).astype(
            np.float32
        )

    def _bias_values(self, node: Node, constant: Constant) -> NDArray[np.float64] | None:
        slot = self.placement.biases.get(node.name)
        data = None if slot is None or constant.slot != 1 else self.graph.constant(node.inputs[slot])
        return None if data is None else data.astype(np.float64)

    def _input_scale(self, node: Node) -> float | None:
        name = node.inputs[0]
        if name not in self.placement.points:
            return None
        wanted = self.placement.apart(node, name)
        return float((self.activation(name) if wanted is None else self.variant(name, wanted))[0])

    def bias(self, node: Node, constant: Constant) -> tuple[Array, Array]:
        """Scale ``float32(input scale * weight scale)`` and the int32 bias ``rint(b / scale)``."""
        name = node.inputs[self.placement.biases[node.name]]
        data, step = self.graph.constant(name), self._input_scale(node)
        where = f"node {display_name(node.name)}, bias {display_name(name)}"
        if data is None or step is None:
            raise Error("this bias has no values", where=where, remedy="load the model with its weights")
        if not np.isfinite(data).all():
            raise Error("the bias holds NaN or infinity", where=where, remedy="the model is damaged; export it again")
        scale = np.float32(step) * self.weight(node, constant)[0]
        lowest, highest = integer_range("int32")
        stored = np.rint(data.astype(np.float64) / np.maximum(scale.astype(np.float64), TINY))
        if (stored < lowest).any() or (stored > highest).any():
            raise Error(
                "the bias does not fit into int32",
                where=where,
                why="bias / (input scale * weight scale) passes 2^31",
                remedy='give larger scales, or plan activations.mode = "float" for this layer',
            )
        return scale, stored.astype(np.int32)

    def _numbers(self, given: Any, where: str, signed: bool = False) -> NDArray[np.float32]:
        values = np.atleast_1d(self._array(given, where))
        if values.dtype.kind not in "fiu":
            raise Error(f"scales are numbers, not {values.dtype}", where=where, remedy="save them as float32")
        with np.errstate(over="ignore"):
            scales = values.astype(np.float32)
        if not scales.size or not (np.isfinite(scales) & ((np.abs(scales) if signed else scales) > 0)).all():
            raise Error(
                f"a scale must be a {'finite float32 other than 0' if signed else 'positive finite float32'}",
                where=where,
                remedy="give numbers that float32 can hold",
            )
        return scales

    def _zero_points(self, given: Any, dtype: str, where: str) -> NDArray[np.int64] | None:
        if given is None:
            return None
        values = np.atleast_1d(self._array(given, where))
        lowest, highest = integer_range(dtype)
        if (
            values.dtype.kind not in "iu"
            or not values.size
            or int(values.min()) < lowest
            or int(values.max()) > highest
        ):
            raise Error(
                f"a zero point is not an integer of {dtype}",
                where=where,
                remedy=f"give integers from {lowest} to {highest}",
            )
        return values.astype(np.int64)

    def _array(self, given: Any, where: str) -> Array:
        return given_array(given, self.plan.folder, where, self.files)


def _together(seen: Sequence[Statistics]) -> Statistics:
    """One statistic of tensors that share a scale; of several, channels are forgotten."""
    if len(seen) == 1:
        return seen[0]
    plain = [
        dataclasses.replace(
            item,
            axis=None,
            minima=item.minima.min(keepdims=True),
            maxima=item.maxima.max(keepdims=True),
            totals=item.totals.sum(keepdims=True),
        )
        for item in seen
    ]
    made = plain[0]
    for item in plain[1:]:
        made = made.merge(item)
    return made


def _scale_shape(shape: tuple[int, ...], constant: Constant) -> tuple[int, ...]:
    if constant.axis is None:
        return ()
    if constant.block is None:
        return (shape[constant.axis],)
    return (*shape[: constant.axis], -(-shape[constant.axis] // constant.block), *shape[constant.axis + 1 :])


def _groups(data: Array, constant: Constant) -> NDArray[np.float32]:
    """The weight as one row a scale, in the scale's row-major order; the last block of an axis is filled with zeros."""
    if constant.axis is None:
        return data.reshape(1, -1)
    moved = np.moveaxis(data, constant.axis, 0)
    if constant.block is None:
        return moved.reshape(data.shape[constant.axis], -1)
    missing = -data.shape[constant.axis] % constant.block
    filled = np.pad(data, [(0, missing if axis == constant.axis else 0) for axis in range(data.ndim)])
    split = filled.reshape(*data.shape[: constant.axis], -1, constant.block, *data.shape[constant.axis + 1 :])
    return np.moveaxis(split, constant.axis + 1, -1).reshape(-1, constant.block)
