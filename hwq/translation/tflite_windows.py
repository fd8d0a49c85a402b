"""Convolutions and pools of ONNX in TFLite's words: channels last, SAME or VALID windows, an explicit PAD for any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hwq.graph import Array, Node, Quantization
from hwq.ops import spatial
from hwq.translation.assembly import Assembly, Held, refuse

__all__ = ["average_pool", "bias", "convolve", "global_average", "max_pool", "weights"]

# Stored weights by type: what is taken off to make them signed.
SIGNED = {"int8": ("int8", 0), "uint8": ("int8", 128), "int4": ("int4", 0), "uint4": ("int4", 8)}


def _space(node: Node, held: Held) -> tuple[int, int]:
    if len(held.shape) != 4 or not all(isinstance(size, int) for size in held.shape[2:]):
        raise refuse(node, f"TFLite's windows lie over two dimensions of known size, the input is {list(held.shape)}")
    return int(held.shape[2]), int(held.shape[3])


def _padding(node: Node, space: tuple[int, int], kernel: Sequence[int]) -> tuple[str, spatial.Windows]:
    """(SAME, VALID or PAD, the windows)."""
    windows = spatial.windows_of(node, space, tuple(kernel))
    if node.attributes.get("ceil_mode", 0):
        plain = Node(node.op, node.name, node.inputs, node.outputs, {**node.attributes, "ceil_mode": 0})
        if spatial.windows_of(plain, space, tuple(kernel)).counts != windows.counts:
            raise refuse(node, "TFLite has no windows that reach over the edge (ceil_mode)")
        windows = spatial.windows_of(plain, space, tuple(kernel))
    if not any(windows.begin) and not any(windows.end):
        return "VALID", windows
    for size, taps, stride, step, count, begin, end in zip(
        space,
        windows.kernel,
        windows.strides,
        windows.dilations,
        windows.sizes,
        windows.begin,
        windows.end,
        strict=True,
    ):
        total = max((-(-size // stride) - 1) * stride + (taps - 1) * step + 1 - size, 0)
        if count != -(-size // stride) or (begin, end) != (total // 2, total - total // 2):
            return "PAD", windows
    return "SAME", windows


def _padded(assembly: Assembly, held: Held, windows: spatial.Windows, lowest: bool = False) -> str:
    """The value, channels last, with a border of zero points (of lowest values for a maximum)."""
    given = assembly.take(held, True)
    border = assembly.constant([(0, 0), *zip(windows.begin, windows.end, strict=True), (0, 0)], "border")
    shape = (held.shape[0], held.shape[1], *(int(size) + a + b for size, a, b in zip(held.shape[2:], windows.begin, windows.end, strict=True)))  # fmt: skip
    made = held.like(shape)
    name = assembly.make(made, assembly.fresh(f"{given}:padded"), True)
    inputs = [given, border]
    if lowest:
        least = np.iinfo(held.dtype).min if held.quantization is not None else np.finfo(np.float32).min
        inputs.append(assembly.constant(np.full(1, least, held.dtype), "lowest", held.dtype, held.quantization))
    assembly.node("PADV2" if lowest else "PAD", inputs, [name], None)
    return name


def weights(
    assembly: Assembly, node: Node, made: Held, order: Sequence[int], expand: int = 0
) -> tuple[str, Array | None]:
    """(the filters' tensor in another order of axes, their scales or None for floats).

    Raises
    ------
    Error
        They are computed, or of a type or quantization that no kernel of TFLite takes.
    """
    value = node.inputs[1]
    found = assembly.constant_of(value)
    if found is None:
        raise refuse(node, "TFLite's kernels take constant weights here")
    data, pair = found
    if made.quantization is None:
        real = assembly.numbers(value)
        assert real is not None
        turned = np.ascontiguousarray(real.transpose(order))
        return assembly.constant(turned[None] if expand else turned, f"{value}:filters", "float32"), None
    if pair is None or pair.dtype not in SIGNED:
        raise refuse(node, "an integer kernel needs stored 4-bit or 8-bit weights", None)
    points = np.zeros(1, np.int64) if pair.zero_point is None else pair.zero_point.astype(np.int64).reshape(-1)
    axis = None if pair.scale.size == 1 else list(order).index(int(pair.axis or 0))
    scales = pair.scale.reshape(-1)
    if made.dtype == "uint8":
        if axis is not None or np.unique(points).size != 1 or pair.dtype not in {"uint8", "int8"}:
            raise refuse(
                node, "weights with zero points have one scale in TFLite", "only its uint8 kernels take zero points"
            )
        shift = 128 if pair.dtype == "int8" else 0
        stored, dtype, zero = data.astype(np.int64) + shift, "uint8", int(points[0]) + shift
    else:
        dtype, shift = SIGNED[pair.dtype]
        if np.any(points != shift):
            raise refuse(node, "TFLite's int8 weights are symmetric", f"these have zero points {points[:4] - shift}")
        stored, zero = data.astype(np.int64) - shift, 0
    turned = np.ascontiguousarray(stored.transpose(order)).astype("int8" if dtype == "int4" else dtype)
    turned = turned[None] if expand else turned
    quantization = Quantization(dtype, scales if axis is not None else scales.reshape(()), np.full(scales.shape if axis is not None else (), zero, np.int32),
                                None if axis is None else axis + expand)  # fmt: skip
    return assembly.constant(turned, f"{value}:filters", dtype, quantization), scales


def bias(assembly: Assembly, node: Node, value: str, step: Array | None, wide: bool) -> str:
    """The bias as integers of scale `step` (int64 with int16 activations), or as floats.

    One that has this scale already keeps its bits; any other is ``rint(f32(b / step))``.
    """
    real = assembly.numbers(value)
    if real is None:
        raise refuse(node, "TFLite's kernels take a constant bias here")
    if step is None:
        return assembly.constant(real.reshape(-1), f"{value}:bias", "float32")
    found = assembly.constant_of(value)
    assert found is not None
    data, pair = found
    steps = np.asarray(step, np.float32).reshape(-1)
    if pair is not None and data.dtype == np.int32 and np.allclose(pair.scale.reshape(-1), steps, rtol=0.01, atol=1e-6):
        stored = data.reshape(-1).astype(np.int64)
    else:
        stored = np.rint((real.reshape(-1) / steps).astype(np.float32)).astype(np.int64)
        stored = np.clip(stored, -(2**31), 2**31 - 1)
    return _integers(assembly, stored, f"{value}:bias", steps, wide)


def _integers(assembly: Assembly, stored: Array, name: str, step: Array | None, wide: bool) -> str:
    """A bias with the accumulators' scale; XNNPACK refuses a convolution whose bias has none."""
    if step is None:
        return assembly.constant(stored, name, "float32")
    dtype, steps = "int64" if wide else "int32", np.asarray(step, np.float32).reshape(-1)
    spread = Quantization(dtype, steps if steps.size > 1 else steps.reshape(()), None, 0 if steps.size > 1 else None)
    return assembly.constant(stored, name, dtype, spread)


def convolve(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    """Conv: CONV_2D, or DEPTHWISE_CONV_2D where every channel is a group."""
    x = assembly.float(node.inputs[0], node) if made.quantization is None else assembly.integer(node.inputs[0])
    found = assembly.constant_of(node.inputs[1])
    if x is None or (made.quantization is not None and x.dtype != made.dtype):
        return False
    space = _space(node, x)
    if found is None or found[0].ndim != 4:
        raise refuse(node, "TFLite's CONV_2D takes constant filters of four dimensions here")
    groups, channels = int(node.attributes.get("group", 1)), int(x.shape[1])
    deep = groups == channels and groups > 1
    padding, windows = _padding(node, space, found[0].shape[2:])
    filters, scales = weights(assembly, node, made, _order(deep))
    step = None if scales is None else x.scale * scales
    if len(node.inputs) > 2 and node.inputs[2]:
        offsets = bias(assembly, node, node.inputs[2], step, made.dtype == "int16")
    else:
        offsets = _integers(assembly, np.zeros(found[0].shape[0]), f"{node.name}:bias", step, made.dtype == "int16")
    given = _padded(assembly, x, windows) if padding == "PAD" else assembly.take(x, True)
    attributes: dict[str, Any] = {
        "padding": "VALID" if padding == "PAD" else padding, "strides": tuple(windows.strides),
        "dilations": tuple(windows.dilations), "activation": activation,
    }  # fmt: skip
    if deep:
        attributes["depth_multiplier"] = found[0].shape[0] // channels
    else:
        attributes["bias_type"] = "float32"
    op = "DEPTHWISE_CONV_2D" if deep else "CONV_2D"
    assembly.node(op, [given, filters, offsets], [assembly.make(made, name, True)], node, **attributes)
    return True


def _order(deep: bool) -> tuple[int, ...]:
    """OIHW to 1HWO for depthwise filters, to OHWI for others."""
    return (1, 2, 3, 0) if deep else (0, 2, 3, 1)


def _pool(assembly: Assembly, node: Node, x: Held, made: Held, name: str, op: str, activation: str) -> None:
    kernel = [int(size) for size in node.attributes.get("kernel_shape", ())]
    padding, windows = _padding(node, _space(node, x), kernel)
    if any(step != 1 for step in windows.dilations):
        raise refuse(node, "TFLite's pools have no dilation")
    if padding == "SAME" and op == "AVERAGE_POOL_2D" and node.attributes.get("count_include_pad", 0):
        padding = "PAD"
    elif padding == "PAD" and op == "AVERAGE_POOL_2D" and not node.attributes.get("count_include_pad", 0):
        raise refuse(node, "TFLite's AVERAGE_POOL_2D leaves only SAME padding out of the mean")
    given = _padded(assembly, x, windows, op == "MAX_POOL_2D") if padding == "PAD" else assembly.take(x, True)
    assembly.node(op, [given], [assembly.make(made, name, True)], node, padding="VALID" if padding == "PAD" else padding,
                  strides=tuple(windows.strides), kernel_shape=tuple(kernel), activation=activation)  # fmt: skip


def average_pool(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    """AVERAGE_POOL_2D in the input's scale, then QUANTIZE where the result has another."""
    x = assembly.float(node.inputs[0], node) if made.quantization is None else assembly.integer(node.inputs[0])
    if x is None or activation != "NONE" or x.dtype != made.dtype:
        return False
    mean = Held(made.shape, x.dtype, x.quantization, offset=x.offset)
    if made.quantization is None:
        _pool(assembly, node, x, made, name, "AVERAGE_POOL_2D", activation)
        return True
    _pool(assembly, node, x, mean, assembly.fresh(f"{name}:mean"), "AVERAGE_POOL_2D", activation)
    done = assembly.requantized(mean, made.dtype, made.quantization, made.offset, name)
    made.names.update(done.names)
    return True


def max_pool(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    """MAX_POOL_2D in the input's scale, then QUANTIZE where the result has another."""
    if len([value for value in node.outputs if value]) > 1:
        raise refuse(node, "TFLite's MAX_POOL_2D makes no indices")
    x = assembly.float(node.inputs[0], node) if made.quantization is None else assembly.integer(node.inputs[0])
    if x is None or activation != "NONE" or x.dtype != made.dtype:
        return False
    if made.quantization is None:
        _pool(assembly, node, x, made, name, "MAX_POOL_2D", activation)
        return True
    greatest = Held(made.shape, x.dtype, x.quantization, offset=x.offset)
    _pool(assembly, node, x, greatest, assembly.fresh(f"{name}:greatest"), "MAX_POOL_2D", activation)
    made.names.update(assembly.requantized(greatest, made.dtype, made.quantization, made.offset, name).names)
    return True


def global_average(assembly: Assembly, node: Node, made: Held, activation: str, name: str) -> bool:
    """MEAN over height and width."""
    x = assembly.float(node.inputs[0], node) if made.quantization is None else assembly.integer(node.inputs[0])
    if x is None or activation != "NONE" or x.dtype != made.dtype:
        return False
    _space(node, x)
    inputs = [assembly.take(x, True), assembly.constant([1, 2], "axes")]
    assembly.node("MEAN", inputs, [assembly.make(made, name, True)], node, keep_dims=True)
    return True
