"""Float32 means of windows in onnxruntime's orders: MLAS's own, that of channels in blocks, and the plain one of later opsets.

Measured on onnxruntime 1.31.1 and confirmed bit for bit (`hwq dialects --verify ort`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwq.execution import nchwc
from hwq.execution.emission import Site, geometry
from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array
from hwq.ops import arithmetic, spatial

__all__ = ["average", "average_whole"]

# Pooling kernels up to this size in every dimension take the vector code.
SMALL_KERNEL = 32


@register("float:AveragePool", "float:GlobalAveragePool")
def float_average(scope: Scope) -> Kernel:
    """A float32 mean in the dialect's order; others as `hwq.ops` computes them."""
    node, x = scope.node, scope.operand(0)
    padding = bool(node.attributes.get("count_include_pad", 0))
    stated = scope.graph.source.get("opset")
    # AveragePool-19, which brought dilations, is not MLAS's: it runs through every window in memory order. So do older ones
    # where padding counts and what ceil_mode adds does not.
    plain = (isinstance(stated, int) and stated >= 19) or (padding and bool(node.attributes.get("ceil_mode", 0)))
    named = scope.dialect.formulas.get("float-average") == "mlas"
    if x is None or x.dtype != "float32" or not named:
        return interpret(scope, None if named or node.op != "AveragePool" else lambda site: _emit_average(scope, site))
    blocks = nchwc.pools(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        image = np.ascontiguousarray(spatial.channels_first(present(operands[0]), node))
        size = image.shape[2:]
        windows = spatial.Windows(size, *[(one,) * len(size) for one in (1, 1, 0, 0, 1)])
        if node.op == "AveragePool":
            windows = spatial.windows_of(node, size, tuple(int(one) for one in node.attributes["kernel_shape"]))
        still = not any(windows.begin) and not any(windows.end) and set(windows.strides) == {1}
        in_order = blocks or (plain and node.op == "AveragePool")
        if windows.kernel == size and still and not in_order:
            return spatial.from_channels_first(average_whole(image), node)
        return spatial.from_channels_first(average(image, windows, padding, in_order), node)

    return adapt(run)


def _emit_average(scope: Scope, site: Site) -> bool:
    """The mean of windows as `hwq.ops` has it."""
    get = scope.node.attributes.get
    if get("ceil_mode", 0) or site.dtype(0) != np.float32 or not 1 <= len(site.space(0)) <= 3:
        return False
    windows = spatial.windows_of(
        scope.node, site.space(0), tuple(int(one) for one in scope.node.attributes["kernel_shape"])
    )
    x, y, batch, channels = site.read(0, site.turns), site.make(site.turns), site.shape(0)[0], site.channels(0)
    site.step([x], y, lambda steps, at: steps.pool(
        at(x), "average", geometry(windows, site.space(0)), windows.end, batch, channels, np.float32, layout="NHWC",
        count_include_pad=bool(get("count_include_pad", 0)), out=at(y)))  # fmt: skip
    return True


def average(image: Array, windows: spatial.Windows, padding: bool, in_order: bool = False) -> Array:
    """Means of windows over [N, C, *space]; taps in the padding add nothing, and what only ceil_mode reaches is never counted.

    Small windows that move by at most 2 along the last dimension sum each of their columns, then the columns; others,
    and all with `in_order`, run through the window in memory order.

    Parameters
    ----------
    image : float32 array
    windows : Windows
    padding : bool
        Divide by the taps inside image and padding instead of those inside the image.
    """
    space = image.shape[2:]
    padded = arithmetic.padded(image, windows.begin, windows.reach(space))
    view = arithmetic.windows(padded, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    total = np.zeros(view.shape[: image.ndim], np.float32)
    small = len(windows.kernel) > 1 and windows.strides[-1] <= 2 and max(windows.kernel) <= SMALL_KERNEL
    if small and not in_order:
        for column in range(windows.kernel[-1]):
            part = np.zeros_like(total)
            for tap in np.ndindex(*windows.kernel[:-1]):
                part += view[(..., *tap, column)]
            total += part
    else:
        for tap in np.ndindex(*windows.kernel):
            total += view[(..., *tap)]
    counted = np.ones((1, 1, *space), np.float32)
    if padding:
        counted = np.ones([1, 1, *np.add(space, np.add(windows.begin, windows.end))], np.float32)
    begin = [0] * len(space) if padding else windows.begin
    inside = arithmetic.padded(counted, begin, np.subtract(padded.shape[2:], np.add(counted.shape[2:], begin)).tolist())
    taps = arithmetic.windows(inside, windows.kernel, windows.strides, windows.dilations, windows.sizes)
    return np.asarray(total / taps.sum(axis=tuple(range(image.ndim, taps.ndim)), dtype=np.float32))


def average_whole(image: Array) -> Array:
    """Means over the whole space of [N, C, *space]: 4 lanes, (l0 + l2) + (l1 + l3), then what is left of the last 4."""
    flat = image.reshape(*image.shape[:2], -1)
    count = flat.shape[-1]
    lanes = np.zeros((*image.shape[:2], 4), np.float32)
    for first in range(0, count - count % 4, 4):
        lanes += flat[..., first : first + 4]
    total = (lanes[..., 0] + lanes[..., 2]) + (lanes[..., 1] + lanes[..., 3])
    for index in range(count - count % 4, count):
        total = total + flat[..., index]
    return np.asarray(total / np.float32(count)).reshape(*image.shape[:2], *([1] * (image.ndim - 2)))
