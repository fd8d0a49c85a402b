"""TFLite's operators that put elements elsewhere, in ONNX: stored integers keep their scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hwq.graph import Array, Node, Shape
from hwq.ops.tflite_slicing import index_of
from hwq.translation.onnx_assembly import Held, OnnxAssembly

__all__ = ["MOVERS", "reshaped", "same_pair", "target_of"]

# Where an axis of an image with its channels last stands with its channels second.
SECOND = (0, 2, 3, 1)


def _numbers(assembly: OnnxAssembly, node: Node, name: str, what: str) -> Array:
    found = assembly.source.constant(name)
    if found is None:
        raise assembly.refuse(node, f"{what} must be a constant")
    return found


def _axes(assembly: OnnxAssembly, values: Sequence[int] | Array, name: str) -> str:
    return assembly.constant(np.asarray(values, np.int64).reshape(-1), name)


def same_pair(first: Held, second: Held) -> bool:
    """Whether two values are stored alike."""
    one, other = first.pair, second.pair
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and bool(np.array_equal(one.scales(), other.scales()) and np.array_equal(one.zero_points(), other.zero_points()))  # fmt: skip


def target_of(assembly: OnnxAssembly, node: Node, shape: Shape) -> str:
    """A shape as Reshape takes it: one open dimension is the rest."""
    opened = [dim for dim in shape if not isinstance(dim, int)]
    if len(opened) > 1:
        raise assembly.refuse(node, f"the shape {list(shape)} has several open dimensions")
    return _axes(assembly, [dim if isinstance(dim, int) else -1 for dim in shape], f"{node.outputs[0]}_shape")


def reshaped(assembly: OnnxAssembly, node: Node, held: Held, shape: Shape, name: str) -> Held:
    """A value in another shape."""
    return assembly.moved(held, "Reshape", [target_of(assembly, node, shape)], node, name)


def _reshape(assembly: OnnxAssembly, node: Node) -> None:
    held = assembly.take(node.inputs[0], node)
    tensor = assembly.source.tensors[node.outputs[0]]
    if not tensor.known_shape:
        raise assembly.refuse(node, "its shape is computed")
    assembly.emit(node, "Reshape", [assembly.real(held, node), target_of(assembly, node, tensor.shape)], pair=held.pair)


def _transpose(assembly: OnnxAssembly, node: Node) -> None:
    order = [int(axis) for axis in _numbers(assembly, node, node.inputs[1], "its order").reshape(-1)]
    held = assembly.take(node.inputs[0], node)
    rank = len(order)
    assembly.emit(node, "Transpose", [assembly.real(held, node)], pair=held.pair, perm=tuple(axis % rank for axis in order))  # fmt: skip


def _pad(assembly: OnnxAssembly, node: Node) -> None:
    border = _numbers(assembly, node, node.inputs[1], "its border").reshape(-1, 2)
    second = assembly.has(node.inputs[0], True) and len(border) == 4
    held = assembly.take(node.inputs[0], node, second)
    if second:
        border = border[[0, 3, 1, 2]]
    inputs = [assembly.real(held, node), _axes(assembly, [*border[:, 0], *border[:, 1]], f"{node.outputs[0]}_border")]
    mode = "constant"
    if node.op == "MIRROR_PAD":
        if node.attributes.get("mode") != "REFLECT":
            raise assembly.refuse(node, "ONNX has no counterpart of a border that mirrors the edge too (SYMMETRIC)")
        mode = "reflect"
    elif node.op == "PADV2":
        value = _numbers(assembly, node, node.inputs[2], "its value").reshape(-1)[:1]
        if held.pair is not None:  # its integer counts, in the scale of the operand
            points, scales = held.pair.zero_points().reshape(-1)[:1], held.pair.scales().reshape(-1)[:1]
            value = ((value.astype(np.int64) - points).astype(np.float32) * scales).astype(np.float32)
        inputs.append(assembly.constant(value.reshape(()), f"{node.outputs[0]}_value"))
    assembly.emit(node, "Pad", inputs, second=second, pair=held.pair, mode=mode)


def _concatenation(assembly: OnnxAssembly, node: Node) -> None:
    rank = len(assembly.source.tensors[node.outputs[0]].shape)
    axis = int(node.attributes.get("axis", 0)) % max(rank, 1)
    second = rank == 4 and any(assembly.has(name, True) for name in node.inputs)
    held = [assembly.take(name, node, second) for name in node.inputs]
    # uint8 operands may have scales of their own; all others have the result's, and are copied whatever the file says.
    pair = None if held[0].pair is None or held[0].pair.dtype == "uint8" else held[0].pair
    assembly.emit(node, "Concat", [assembly.real(one, node) for one in held], second=second, pair=pair, axis=SECOND[axis] if second else axis)  # fmt: skip


def _parts(assembly: OnnxAssembly, node: Node, held: Held, axis: int, sizes: Sequence[int], squeeze: bool) -> None:
    """The parts of a value along an axis, as the node's results."""
    dtype = assembly.tensors[held.name].dtype if held.pair is None else "float32"
    names = [assembly.fresh(f"{name}:part") for name in node.outputs]
    lengths = _axes(assembly, sizes, f"{node.outputs[0]}_lengths")
    assembly.node(node, "Split", [assembly.real(held, node), lengths], names, dtype, axis=axis)
    for made, part in zip(node.outputs, names, strict=True):
        if squeeze:
            assembly.emit(node, "Squeeze", [part, _axes(assembly, [axis], f"{made}_axis")], pair=held.pair, result=made)
        else:
            assembly.emit(node, "Identity", [part], pair=held.pair, result=made)


def _split(assembly: OnnxAssembly, node: Node) -> None:
    equal = node.op == "SPLIT"
    x, axis = (node.inputs[1], node.inputs[0]) if equal else (node.inputs[0], node.inputs[2])
    shape = assembly.source.tensors[x].shape
    place = int(_numbers(assembly, node, axis, "its axis").reshape(-1)[0]) % len(shape)
    sizes = [assembly.source.tensors[name].shape[place] for name in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise assembly.refuse(node, "it splits an axis of open length")
    _parts(assembly, node, assembly.take(x, node), place, known, False)


def _unpack(assembly: OnnxAssembly, node: Node) -> None:
    rank = len(assembly.source.tensors[node.inputs[0]].shape)
    axis = int(node.attributes.get("axis", 0)) % rank
    _parts(assembly, node, assembly.take(node.inputs[0], node), axis, [1] * len(node.outputs), True)


def _pack(assembly: OnnxAssembly, node: Node) -> None:
    rank = len(assembly.source.tensors[node.outputs[0]].shape)
    axis = int(node.attributes.get("axis", 0)) % rank
    place = _axes(assembly, [axis], f"{node.outputs[0]}_axis")
    held = [assembly.take(name, node) for name in node.inputs]
    parts = [assembly.moved(one, "Unsqueeze", [place], node, f"{node.outputs[0]}:part") for one in held]
    assembly.emit(node, "Concat", [assembly.real(one, node) for one in parts], pair=held[0].pair, axis=axis)


def _slices(assembly: OnnxAssembly, node: Node, index: Sequence[slice | int | None], shape: Shape) -> None:
    held = assembly.take(node.inputs[0], node)
    cuts: list[tuple[int, int, int, int]] = []
    dropped: list[int] = []
    added: list[int] = []
    axis = 0
    for place, part in enumerate(index):
        if part is None:
            added.append(place - len(dropped))
            continue
        if isinstance(part, slice):
            if part != slice(None, None, 1):
                start, stop, step = part.indices(int(shape[axis]))
                # Below the first element: ONNX counts -1 from the end.
                cuts.append((axis, start, stop if stop >= 0 else -(1 << 31), step))
        else:
            start = part % int(shape[axis])
            cuts.append((axis, start, start + 1, 1))
            dropped.append(axis)
        axis += 1
    steps: list[tuple[str, list[str]]] = []
    if cuts:
        axes, starts, stops, strides = zip(*cuts, strict=True)
        words = zip((starts, stops, axes, strides), ("starts", "ends", "axes", "steps"), strict=True)
        steps.append(("Slice", [_axes(assembly, values, f"{node.outputs[0]}_{word}") for values, word in words]))
    if dropped:
        steps.append(("Squeeze", [_axes(assembly, dropped, f"{node.outputs[0]}_dropped")]))
    if added:
        steps.append(("Unsqueeze", [_axes(assembly, added, f"{node.outputs[0]}_added")]))
    steps = steps or [("Identity", [])]
    for op, operands in steps[:-1]:
        held = assembly.moved(held, op, operands, node, f"{node.outputs[0]}:{op}")
    op, operands = steps[-1]
    assembly.emit(node, op, [assembly.real(held, node), *operands], pair=held.pair)


def _strided_slice(assembly: OnnxAssembly, node: Node) -> None:
    bounds = [[int(one) for one in _numbers(assembly, node, name, "a bound").reshape(-1)] for name in node.inputs[1:4]]
    shape = assembly.source.tensors[node.inputs[0]].shape
    _slices(assembly, node, index_of(node, shape, bounds), shape)


def _slice(assembly: OnnxAssembly, node: Node) -> None:
    starts, sizes = ([int(one) for one in _numbers(assembly, node, name, "a bound").reshape(-1)] for name in node.inputs[1:3])  # fmt: skip
    shape = assembly.source.tensors[node.inputs[0]].shape
    index: list[slice | int | None] = []
    for dim, start, size in zip(shape, starts, sizes, strict=True):
        whole = start == 0 and (size == -1 or size == dim)
        index.append(slice(None, None, 1) if whole else slice(start, None if size == -1 else start + size, 1))
    _slices(assembly, node, index, shape)


def _gather(assembly: OnnxAssembly, node: Node) -> None:
    if int(node.attributes.get("batch_dims", 0)):
        raise assembly.refuse(node, "ONNX's Gather has no common axes (batch_dims)")
    held, index = assembly.take(node.inputs[0], node), assembly.take(node.inputs[1], node).name
    rank = len(assembly.source.tensors[node.inputs[0]].shape)
    if assembly.tensors[index].dtype == "int16":
        index = assembly.step(node, "Cast", [index], "int32", to="int32")
    assembly.emit(node, "Gather", [assembly.real(held, node), index], pair=held.pair, axis=int(node.attributes.get("axis", 0)) % rank)  # fmt: skip


def _repeat(assembly: OnnxAssembly, node: Node) -> None:
    wanted = _numbers(assembly, node, node.inputs[1], "its shape").reshape(-1)
    held = assembly.take(node.inputs[0], node)
    op = "Tile" if node.op == "TILE" else "Expand"
    assembly.emit(node, op, [assembly.real(held, node), _axes(assembly, wanted, f"{node.outputs[0]}_shape")], pair=held.pair)  # fmt: skip


MOVERS: Mapping[str, Callable[[OnnxAssembly, Node], None]] = MappingProxyType(
    {
        **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"), _reshape),
        **dict.fromkeys(("PAD", "PADV2", "MIRROR_PAD"), _pad),
        **dict.fromkeys(("SPLIT", "SPLIT_V"), _split),
        **dict.fromkeys(("TILE", "BROADCAST_TO"), _repeat),
        "TRANSPOSE": _transpose,
        "CONCATENATION": _concatenation,
        "PACK": _pack,
        "UNPACK": _unpack,
        "STRIDED_SLICE": _strided_slice,
        "SLICE": _slice,
        "GATHER": _gather,
    }
)
