"""ONNX operators that only move elements, in TFLite's words: they work on stored values and on floats alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hwq.graph import Node, Shape
from hwq.translation.assembly import Assembly, Held, refuse

__all__ = ["MOVERS"]

Mover = Callable[[Assembly, Node, Held], list[Held]]


def _constant(assembly: Assembly, node: Node, index: int, what: str) -> list[int] | None:
    """A constant operand's integers, or None where it is absent."""
    if len(node.inputs) <= index or not node.inputs[index]:
        return None
    found = assembly.source.constant(node.inputs[index])
    if found is None:
        raise refuse(node, f"{what} must be constants")
    return [int(value) for value in found.reshape(-1)]


def _identity(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    return [held]


def _reshape(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    shape = assembly.source.tensors[node.outputs[0]].shape
    made = held.like(shape)
    # One position: channels first and last are the same order.
    flat = len(held.shape) == 4 and held.shape[2:] == (1, 1) and False not in held.names and held.data is None
    given = assembly.take(held, flat)
    sizes = _sizes(node, shape)
    assembly.node("RESHAPE", [given, assembly.constant(sizes, "shape")], [assembly.make(made, node.outputs[0])], node, new_shape=tuple(sizes))  # fmt: skip
    return [made]


def _sizes(node: Node, shape: Shape) -> list[int]:
    if sum(isinstance(size, str) for size in shape) > 1:
        raise refuse(node, f"a shape with several open dimensions ({list(shape)}) is not one of TFLite's")
    return [-1 if isinstance(size, str) else int(size) for size in shape]


def _transpose(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    rank = len(held.shape)
    order = [int(axis) for axis in node.attributes.get("perm", range(rank)[::-1])]
    made = held.like(tuple(held.shape[axis] for axis in order))
    inputs = [assembly.take(held), assembly.constant(order, "order")]
    assembly.node("TRANSPOSE", inputs, [assembly.make(made, node.outputs[0])], node)
    return [made]


def _slice(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    starts, ends, axes, steps = (_constant(assembly, node, index, "the bounds of a slice") for index in (1, 2, 3, 4))
    starts = list(node.attributes.get("starts", ())) if starts is None else starts
    ends = list(node.attributes.get("ends", ())) if ends is None else ends
    axes = list(node.attributes.get("axes", range(len(starts)))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    rank = len(held.shape)
    begin, end, stride, open_ends = [0] * rank, [0] * rank, [1] * rank, (1 << rank) - 1
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = held.shape[axis % rank]
        if not isinstance(size, int) or step < 1:
            raise refuse(node, "slices of open dimensions and backward ones are not carried over")
        first, last, _ = slice(start, stop, step).indices(size)
        begin[axis % rank], end[axis % rank], stride[axis % rank] = first, max(last, first), step
        open_ends &= ~(1 << axis % rank)
    made = held.like(assembly.source.tensors[node.outputs[0]].shape)
    inputs = [assembly.take(held), *(assembly.constant(values, "bounds") for values in (begin, end, stride))]
    assembly.node("STRIDED_SLICE", inputs, [assembly.make(made, node.outputs[0])], node, begin_mask=open_ends, end_mask=open_ends,
                  ellipsis_mask=0, new_axis_mask=0, shrink_axis_mask=0, offset=False)  # fmt: skip
    return [made]


def _pad(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    pads = _constant(assembly, node, 1, "the padding") or [int(value) for value in node.attributes.get("pads", ())]
    value = assembly.numbers(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1, np.float32)
    rank = len(held.shape)
    plain = node.attributes.get("mode", "constant") == "constant" and value is not None and not np.any(value)
    if not plain or len(pads) != 2 * rank or min(pads, default=0) < 0:
        raise refuse(node, "TFLite's PAD lays zeros around all axes")
    made = held.like(assembly.source.tensors[node.outputs[0]].shape)
    border = assembly.constant(np.asarray(pads).reshape(2, rank).T, "border")
    assembly.node("PAD", [assembly.take(held), border], [assembly.make(made, node.outputs[0])], node)
    return [made]


def _split(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    axis = int(node.attributes.get("axis", 0)) % len(held.shape)
    parts = [held.like(assembly.source.tensors[name].shape) for name in node.outputs]
    sizes = [part.shape[axis] for part in parts]
    if not all(isinstance(size, int) for size in sizes):
        raise refuse(node, "an open dimension is split")
    inputs = [assembly.take(held), assembly.constant(sizes, "sizes"), assembly.constant(axis, "axis")]
    names = [assembly.make(part, name) for part, name in zip(parts, node.outputs, strict=True)]
    assembly.node("SPLIT_V", inputs, names, node, count=len(names))
    return parts


def _gather(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    indices = assembly.source.constant(node.inputs[1])
    axis = int(node.attributes.get("axis", 0)) % len(held.shape)
    size = held.shape[axis]
    if indices is None or not isinstance(size, int):
        raise refuse(node, "indices must be constants on a known axis")
    made = held.like(assembly.source.tensors[node.outputs[0]].shape)
    places = assembly.constant(np.where(indices < 0, indices + size, indices), "places")
    assembly.node(
        "GATHER", [assembly.take(held), places], [assembly.make(made, node.outputs[0])], node, axis=axis, batch_dims=0
    )
    return [made]


def _concat(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    """Parts of one scale are joined as they are; others take the result's scale (or the first's) before."""
    joined = assembly.source.tensors[node.outputs[0]].shape
    parts: Sequence[Held | None]
    if held.quantization is None:
        parts = [assembly.float(value, node) for value in node.inputs]
    else:
        parts = [assembly.integer(value) for value in node.inputs]
        target = held
        readers = assembly.source.consumers.get(node.outputs[0], ())
        if len(readers) == 1 and readers[0].op == "QuantizeLinear":
            dtype, quantization, offset = assembly.scheme(assembly.pair(readers[0]), readers[0])
            target = Held(held.shape, dtype, quantization, offset=offset)
        if any(part is None for part in parts) or target.quantization is None:
            raise refuse(node, "some parts are stored and some are real")
        parts = [
            assembly.requantized(part, target.dtype, target.quantization, target.offset, assembly.fresh(f"{value}:joined"))
            for part, value in zip(parts, node.inputs, strict=True) if part is not None
        ]  # fmt: skip
        held = target
    given = [part for part in parts if part is not None]
    axis = int(node.attributes.get("axis", 0)) % len(joined)
    last = len(joined) == 4 and all(part.data is None and True in part.names for part in given)
    made = held.like(joined)
    place = {0: 0, 1: 3, 2: 1, 3: 2}[axis] if last else axis
    inputs = [assembly.take(part, last) for part in given]
    assembly.node(
        "CONCATENATION", inputs, [assembly.make(made, node.outputs[0], last)], node, axis=place, activation="NONE"
    )
    return [made]


def _resize(assembly: Assembly, node: Node, held: Held) -> list[Held]:
    get, shape = node.attributes.get, assembly.source.tensors[node.outputs[0]].shape
    if (
        len(shape) != 4
        or shape[:2] != held.shape[:2]
        or not all(isinstance(size, int) for size in (*shape[2:], *held.shape[2:]))
    ):
        raise refuse(node, "TFLite resizes height and width of known size")
    mode, transform = str(get("mode", "nearest")), str(get("coordinate_transformation_mode", "half_pixel"))
    half = transform in {"half_pixel", "pytorch_half_pixel"} and all(int(size) > 1 for size in shape[2:])
    whole = all(int(a) % int(b) == 0 for a, b in zip(shape[2:], held.shape[2:], strict=True))
    nearest = mode == "nearest" and (
        (transform == "asymmetric" and str(get("nearest_mode", "round_prefer_floor")) == "floor") or (half and whole)
    )
    if not nearest and not (mode == "linear" and (half or transform in {"asymmetric", "align_corners"})):
        raise refuse(node, "TFLite has no such interpolation", f"mode {mode}, {transform}")
    made = held.like(shape)
    size = assembly.constant([int(one) for one in shape[2:]], "size")
    op = "RESIZE_NEAREST_NEIGHBOR" if nearest else "RESIZE_BILINEAR"
    assembly.node(op, [assembly.take(held, True), size], [assembly.make(made, node.outputs[0], True)], node,
                  align_corners=transform == "align_corners", half_pixel_centers=half)  # fmt: skip
    return [made]


MOVERS: Mapping[str, Mover] = MappingProxyType(
    {
        "Identity": _identity,
        "Dropout": _identity,
        "Reshape": _reshape,
        "Flatten": _reshape,
        "Squeeze": _reshape,
        "Unsqueeze": _reshape,
        "Transpose": _transpose,
        "Slice": _slice,
        "Pad": _pad,
        "Split": _split,
        "Gather": _gather,
        "Concat": _concat,
        "Resize": _resize,
    }
)
