"""Convolutions, pools and resizes of TFLite in ONNX's words: channels second, borders in numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.graph import Array, Node, Quantization
from hwq.translation.onnx_assembly import Held, OnnxAssembly

__all__ = ["WINDOWS", "bias", "filters"]

INT32 = np.iinfo(np.int32)


def _space(assembly: OnnxAssembly, name: str) -> tuple[Any, ...]:
    tensor = assembly.source.tensors[name]
    return tuple(tensor.shape[1:3]) if tensor.known_shape and len(tensor.shape) == 4 else (None, None)


def borders(
    assembly: OnnxAssembly, node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> dict[str, Any]:
    """The attributes that say where windows begin; SAME puts the larger half behind."""
    if node.attributes.get("padding") == "VALID":
        return {"pads": (0, 0, 0, 0)}
    space = _space(assembly, node.inputs[0])
    if not all(isinstance(size, int) for size in space):
        return {"auto_pad": "SAME_UPPER"}
    totals = [
        max((-(-size // stride) - 1) * stride + (taps - 1) * step + 1 - size, 0)
        for size, taps, stride, step in zip(space, kernel, strides, dilations, strict=True)
    ]
    return {"pads": (*(total // 2 for total in totals), *(total - total // 2 for total in totals))}


def filters(assembly: OnnxAssembly, node: Node, name: str, order: Sequence[int] | None, shape: Sequence[int] | None = None, axis: int = 0) -> str:  # fmt: skip
    """Constant weights as real numbers: their axes in another order, then another shape; channels along `axis`.

    Raises
    ------
    Error
        They are computed.
    """
    tensor = assembly.source.tensors[name]
    if tensor.data is None:
        raise assembly.refuse(node, "weights that are computed have no counterpart here")
    data: Array = tensor.data if order is None else tensor.data.transpose(order)
    data = np.ascontiguousarray(data if shape is None else data.reshape(shape))
    pair = tensor.quantization
    if pair is not None and pair.axis is not None:
        pair = Quantization(pair.dtype, pair.scale, pair.zero_point, axis)
    return assembly.real(Held(assembly.constant(data, f"{name}:weights", tensor.dtype), pair), node)


def bias(assembly: OnnxAssembly, node: Node, name: str, x: str, weights: str) -> str:
    """A bias as a real number: int32 behind a DQ whose scale is the product of the operands' scales.

    LiteRT never reads the scale that the file states for it. 64-bit ones that do not fit int32 become float constants.
    """
    tensor = assembly.source.tensors[name]
    if tensor.data is None or tensor.dtype not in {"int32", "int64"}:
        return assembly.value(name, node)
    given, stored = assembly.pair_of(x), assembly.pair_of(weights)
    if given is None or stored is None:
        raise assembly.refuse(node, f"the bias {name} has integers and its operands have no scale")
    steps = np.asarray(given.scales().reshape(()) * stored.scales(), np.float32)
    data = tensor.data.reshape(-1)
    if data.size and (data.min() < INT32.min or data.max() > INT32.max):
        return assembly.constant(
            (data.astype(np.float64) * steps.astype(np.float64)).astype(np.float32), f"{name}:bias"
        )
    pair = Quantization("int32", steps, np.zeros(steps.shape, np.int32), None if steps.ndim == 0 else 0)
    return assembly.real(Held(assembly.constant(data.astype(np.int32), f"{name}:bias"), pair), node)


def _convolution(assembly: OnnxAssembly, node: Node) -> None:
    x, w, *rest = node.inputs
    weights = assembly.source.tensors[w]
    channels = assembly.source.tensors[x].shape[-1]
    if weights.data is None or weights.data.ndim != 4 or not isinstance(channels, int):
        raise assembly.refuse(node, "its weights are computed, or its channels are of open number")
    strides, dilations = (tuple(node.attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
    kernel = weights.data.shape[1:3]
    if node.op == "DEPTHWISE_CONV_2D":  # 1HWO to O1HW
        made, groups = filters(assembly, node, w, (3, 0, 1, 2)), channels
    else:
        made, groups = filters(assembly, node, w, (0, 3, 1, 2)), channels // max(weights.data.shape[3], 1)
    inputs = [assembly.value(x, node, True), made]
    if rest and rest[0]:
        inputs.append(bias(assembly, node, rest[0], x, w))
    assembly.emit(
        node, "Conv", inputs, second=True, kernel_shape=tuple(kernel), strides=strides, dilations=dilations, group=groups,
        **borders(assembly, node, kernel, strides, dilations),
    )  # fmt: skip


def _transposed(assembly: OnnxAssembly, node: Node) -> None:
    """Its SAME border is that of the convolution whose gradient it is."""
    _, w, x, *rest = node.inputs
    weights, made = assembly.source.tensors[w], assembly.source.tensors[node.outputs[0]]
    space, wanted = _space(assembly, x), tuple(made.shape[1:3])
    if weights.data is None or not all(isinstance(size, int) for size in (*space, *wanted)):
        raise assembly.refuse(node, "its weights are computed, or its image is of open size")
    strides, kernel = tuple(node.attributes.get("strides", (1, 1))), weights.data.shape[1:3]
    begin, end, more = [], [], []
    for size, target, taps, stride in zip(space, wanted, kernel, strides, strict=True):
        full = (size - 1) * stride + taps
        before = max(full - int(target), 0) // 2 if node.attributes.get("padding") == "SAME" else 0
        begin.append(before)
        end.append(max(full - before - int(target), 0))
        more.append(max(int(target) - (full - before), 0))
    inputs = [assembly.value(x, node, True), filters(assembly, node, w, (3, 0, 1, 2), axis=1)]
    if rest and rest[0]:
        inputs.append(bias(assembly, node, rest[0], x, w))
    assembly.emit(node, "ConvTranspose", inputs, second=True, kernel_shape=tuple(kernel), strides=strides, dilations=(1, 1),
                  group=1, pads=(*begin, *end), output_padding=tuple(more))  # fmt: skip


def _pool(op: str) -> Callable[[OnnxAssembly, Node], None]:
    def write(assembly: OnnxAssembly, node: Node) -> None:
        kernel, strides = tuple(node.attributes["kernel_shape"]), tuple(node.attributes["strides"])
        held = assembly.take(node.inputs[0], node, True)
        more: dict[str, Any] = {"count_include_pad": 0} if op == "AveragePool" else {}
        assembly.emit(node, op, [assembly.real(held, node)], second=True, pair=held.pair, kernel_shape=kernel, strides=strides,
                      **more, **borders(assembly, node, kernel, strides, (1, 1)))  # fmt: skip

    return write


def _resize(assembly: OnnxAssembly, node: Node) -> None:
    size = assembly.source.constant(node.inputs[1])
    tensor = assembly.source.tensors[node.inputs[0]]
    if size is None or not all(isinstance(dim, int) for dim in tensor.shape[1:]):
        raise assembly.refuse(node, "its size is computed, or its image is of open size")
    corners, half = bool(node.attributes.get("align_corners")), bool(node.attributes.get("half_pixel_centers"))
    linear = node.op == "RESIZE_BILINEAR"
    attributes: dict[str, Any] = {
        "mode": "linear" if linear else "nearest",
        "coordinate_transformation_mode": "align_corners" if corners else "half_pixel" if half else "asymmetric",
    }
    if not linear:  # floor((i + 0.5) * ratio) is round_prefer_ceil of ONNX's (i + 0.5) * ratio - 0.5
        attributes["nearest_mode"] = "round_prefer_ceil" if corners or half else "floor"
    held = assembly.take(node.inputs[0], node, True)
    inputs = [assembly.real(held, node), "", ""]
    # The batch may be open, so the ratios of the sizes say it instead of the sizes, where they are exact.
    if isinstance(tensor.shape[0], int):
        sizes = [tensor.shape[0], tensor.shape[3], *(int(one) for one in size.reshape(-1))]
        inputs.append(assembly.constant(np.asarray(sizes, np.int64), f"{node.outputs[0]}_sizes"))
    else:
        ratios = [np.float32(int(one) / int(dim)) for one, dim in zip(size.reshape(-1), tensor.shape[1:3], strict=True)]
        if any(int(float(ratio) * int(dim)) != int(one) for ratio, dim, one in zip(ratios, tensor.shape[1:3], size.reshape(-1), strict=True)):  # fmt: skip
            raise assembly.refuse(
                node, "its ratio of sizes is no float32, and the batch is open", "load it with batch="
            )
        inputs[2] = assembly.constant(np.asarray([1, 1, *ratios], np.float32), f"{node.outputs[0]}_ratios")
    assembly.emit(node, "Resize", inputs, second=True, pair=held.pair, **attributes)


def _blocks(op: str) -> Callable[[OnnxAssembly, Node], None]:
    def write(assembly: OnnxAssembly, node: Node) -> None:
        held = assembly.take(node.inputs[0], node, True)
        assembly.emit(node, op, [assembly.real(held, node)], second=True, pair=held.pair, blocksize=int(node.attributes["block_size"]))  # fmt: skip

    return write


WINDOWS: Mapping[str, Callable[[OnnxAssembly, Node], None]] = MappingProxyType(
    {
        "CONV_2D": _convolution,
        "DEPTHWISE_CONV_2D": _convolution,
        "TRANSPOSE_CONV": _transposed,
        "AVERAGE_POOL_2D": _pool("AveragePool"),
        "MAX_POOL_2D": _pool("MaxPool"),
        "RESIZE_BILINEAR": _resize,
        "RESIZE_NEAREST_NEIGHBOR": _resize,
        "DEPTH_TO_SPACE": _blocks("DepthToSpace"),
        "SPACE_TO_DEPTH": _blocks("SpaceToDepth"),
    }
)
