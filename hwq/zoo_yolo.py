"""YOLOv8n for the zoo: backbone, neck and head; boxes leave as distances (box decoding and NMS are not in the graph)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwq.graph import Graph

if TYPE_CHECKING:
    from hwq.zoo import _Drawing

__all__ = ["draw_yolov8n"]

CLASSES = 80
# Bins of the distance distribution (Li et al. 2020, Generalized Focal Loss) that YOLOv8 regresses a box side with.
BINS = 16


def draw_yolov8n(draw: _Drawing) -> Graph:
    """Ultralytics YOLOv8, scale n (depth 1/3, width 1/4), 640 x 640."""
    image = draw.input("image", ("N", 3, 640, 640))
    x = draw.conv("conv0", image, 16, 3, 2, act="silu")
    x = draw.conv("conv1", x, 32, 3, 2, act="silu")
    x = _c2f(draw, "c2f2", x, 32, 1, shortcut=True)
    x = draw.conv("conv3", x, 64, 3, 2, act="silu")
    p3 = _c2f(draw, "c2f4", x, 64, 2, shortcut=True)
    x = draw.conv("conv5", p3, 128, 3, 2, act="silu")
    p4 = _c2f(draw, "c2f6", x, 128, 2, shortcut=True)
    x = draw.conv("conv7", p4, 256, 3, 2, act="silu")
    p5 = _sppf(draw, "sppf9", _c2f(draw, "c2f8", x, 256, 1, shortcut=True))
    n4 = _c2f(draw, "c2f12", _concat(draw, "concat11", [_upsample(draw, "up10", p5), p4]), 128, 1)
    n3 = _c2f(draw, "c2f15", _concat(draw, "concat14", [_upsample(draw, "up13", n4), p3]), 64, 1)
    x = draw.conv("conv16", n3, 64, 3, 2, act="silu")
    m4 = _c2f(draw, "c2f18", _concat(draw, "concat17", [x, n4]), 128, 1)
    x = draw.conv("conv19", m4, 128, 3, 2, act="silu")
    m5 = _c2f(draw, "c2f21", _concat(draw, "concat20", [x, p5]), 256, 1)

    boxes, scores, cells = [], [], 0
    for index, level in enumerate((n3, m4, m5)):
        name = f"head.{index}"
        height, width = draw.shape(level)[1:]
        cells += height * width
        boxes.append(_branch(draw, f"{name}.box", level, 64, 4 * BINS))
        scores.append(_branch(draw, f"{name}.class", level, 80, CLASSES))
    box = draw.node("Concat", "head.boxes", boxes, ("N", 4 * BINS, cells), axis=2)
    score = draw.node("Concat", "head.scores", scores, ("N", CLASSES, cells), axis=2)
    return draw.graph(
        [image], [_distances(draw, box, cells), draw.node("Sigmoid", "scores", [score], ("N", CLASSES, cells))]
    )


def _c2f(draw: _Drawing, name: str, x: str, channels: int, count: int, shortcut: bool = False) -> str:
    half = channels // 2
    x = draw.conv(f"{name}.in", x, channels, 1, act="silu")
    height, width = draw.shape(x)[1:]
    sizes = draw.constant(f"{name}.sizes", np.array([half, half], np.int64))
    parts = draw.several("Split", f"{name}.split", [x, sizes], [("N", half, height, width)] * 2, axis=1)
    for index in range(count):
        y = draw.conv(f"{name}.{index}.conv1", parts[-1], half, 3, act="silu")
        y = draw.conv(f"{name}.{index}.conv2", y, half, 3, act="silu")
        parts.append(draw.add(f"{name}.{index}.add", parts[-1], y) if shortcut else y)
    return draw.conv(f"{name}.out", _concat(draw, f"{name}.concat", parts), channels, 1, act="silu")


def _sppf(draw: _Drawing, name: str, x: str) -> str:
    channels = draw.shape(x)[0]
    parts = [draw.conv(f"{name}.in", x, channels // 2, 1, act="silu")]
    for index in range(3):
        parts.append(draw.max_pool(f"{name}.pool{index}", parts[-1], 5, 1, 2))
    return draw.conv(f"{name}.out", _concat(draw, f"{name}.concat", parts), channels, 1, act="silu")


def _concat(draw: _Drawing, name: str, parts: list[str]) -> str:
    height, width = draw.shape(parts[0])[1:]
    return draw.node("Concat", name, parts, ("N", sum(draw.shape(part)[0] for part in parts), height, width), axis=1)


def _upsample(draw: _Drawing, name: str, x: str) -> str:
    channels, height, width = draw.shape(x)
    scales = draw.constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32))
    return draw.node(
        "Resize",
        name,
        [x, "", scales],
        ("N", channels, 2 * height, 2 * width),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _branch(draw: _Drawing, name: str, x: str, width: int, channels: int) -> str:
    x = draw.conv(f"{name}.conv1", x, width, 3, act="silu")
    x = draw.conv(f"{name}.conv2", x, width, 3, act="silu")
    x = draw.conv(f"{name}.conv3", x, channels, 1)
    cells = draw.shape(x)[1] * draw.shape(x)[2]
    shape = draw.constant(f"{name}.shape", np.array([0, channels, cells], np.int64))
    return draw.node("Reshape", f"{name}.flat", [x, shape], ("N", channels, cells))


def _distances(draw: _Drawing, box: str, cells: int) -> str:
    """Expected distance of each box side: a softmax over the bins, then a 1x1 convolution with the weights 0..15."""
    shape = draw.constant("dfl.shape", np.array([0, 4, BINS, cells], np.int64))
    x = draw.node("Reshape", "dfl.bins", [box, shape], ("N", 4, BINS, cells))
    x = draw.node("Transpose", "dfl.transpose", [x], ("N", BINS, 4, cells), perm=(0, 2, 1, 3))
    x = draw.node("Softmax", "dfl.softmax", [x], ("N", BINS, 4, cells), axis=1)
    weight = draw.constant("dfl.weight", np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1))
    x = draw.node(
        "Conv",
        "dfl",
        [x, weight],
        ("N", 1, 4, cells),
        kernel_shape=(1, 1),
        strides=(1, 1),
        group=1,
        pads=(0,) * 4,
        dilations=(1, 1),
    )
    shape = draw.constant("boxes.shape", np.array([0, 4, cells], np.int64))
    return draw.node("Reshape", "boxes", [x, shape], ("N", 4, cells))
