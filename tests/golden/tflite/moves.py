"""One-op models that move values: shapes, slices, joins, resizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import CASES, activation, case

from hwq.verification.tflite_builder import Builder, options


def movement(
    b: Builder,
    rng: np.random.Generator,
    op: str,
    shape: list[int],
    results: list[list[int]],
    before: list[int] | None = None,
    after: list[int] | None = None,
    made: Any = None,
    dtype: str = "int8",
) -> bytes:
    """An operator that keeps type and scale."""
    x = activation(b, rng, dtype, shape)
    ys = [activation(b, rng, dtype, result) for result in results]
    b.operator(op, [*(before or []), x, *(after or [])], ys, made)
    return b.finish([x], ys)


def moving(name: str, op: str, shape: list[int], results: list[list[int]], **keywords: Any) -> None:
    """Register a movement; `before` and `after` are values of constant operands."""

    def build(rng: np.random.Generator) -> bytes:
        b = Builder()
        sides = {side: [b.constant(value) for value in keywords.get(side, [])] for side in ("before", "after")}
        return movement(
            b, rng, op, shape, results, made=keywords.get("made"), dtype=keywords.get("dtype", "int8"), **sides
        )

    CASES[name] = build


moving("reshape", "RESHAPE", [2, 3, 4], [[4, 6]], after=[[-1, 6]], made=options("Reshape", newShape=[-1, 6]))
moving("squeeze", "SQUEEZE", [1, 3, 1, 4], [[3, 4]], made=options("Squeeze", squeezeDims=[0, -2]))
moving("expand_dims", "EXPAND_DIMS", [3, 4], [[3, 1, 4]], after=[[1]])
moving("transpose", "TRANSPOSE", [2, 3, 4, 5], [[2, 5, 3, 4]], after=[[0, 3, 1, 2]])
moving("pad_int8", "PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]])
moving("pad_float", "PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]], dtype="float32")
moving(
    "mirror_pad_reflect", "MIRROR_PAD", [1, 3, 4, 2], [[1, 6, 5, 2]], after=[[[0, 0], [1, 2], [0, 1], [0, 0]]],
    made=options("MirrorPad", mode=0), dtype="float32",
)  # fmt: skip
moving("split", "SPLIT", [2, 6, 3], [[2, 2, 3]] * 3, before=[1], made=options("Split", numSplits=3))
moving("split_v", "SPLIT_V", [2, 6, 3], [[2, 1, 3], [2, 5, 3]], after=[[1, -1], 1], made=options("SplitV", numSplits=2))
moving("slice", "SLICE", [3, 6, 4], [[2, 3, 4]], after=[[1, 2, 0], [2, 3, -1]])
moving(
    "strided_slice",
    "STRIDED_SLICE",
    [3, 6, 4],
    [[2, 3, 4]],
    after=[[0, 1, 0], [2, 6, 4], [1, 2, 1]],
    made=options("StridedSlice"),
)
moving(
    "strided_slice_masks", "STRIDED_SLICE", [3, 6, 4], [[6, 4]], after=[[1, 0, 3], [2, 0, -9], [1, 1, -1]],
    made=options("StridedSlice", shrinkAxisMask=1, beginMask=2, endMask=2),
)  # fmt: skip
moving("gather", "GATHER", [5, 4], [[2, 3, 4]], after=[[[4, 0, 2], [1, 1, 3]]], made=options("Gather", axis=0))
moving(
    "gather_batch",
    "GATHER",
    [2, 5, 3],
    [[2, 2, 3]],
    after=[[[4, 0], [1, 1]]],
    made=options("Gather", axis=1, batchDims=1),
)
moving("unpack", "UNPACK", [3, 2, 4], [[3, 4]] * 2, made=options("Unpack", num=2, axis=1))
moving("tile", "TILE", [2, 3], [[4, 9]], after=[[2, 3]])
moving("broadcast_to", "BROADCAST_TO", [3, 1], [[2, 3, 4]], after=[[2, 3, 4]])
moving("depth_to_space", "DEPTH_TO_SPACE", [1, 2, 3, 8], [[1, 4, 6, 2]], made=options("DepthToSpace", blockSize=2))
moving("space_to_depth", "SPACE_TO_DEPTH", [1, 4, 6, 2], [[1, 2, 3, 8]], made=options("SpaceToDepth", blockSize=2))
moving("space_to_batch", "SPACE_TO_BATCH_ND", [1, 4, 5, 2], [[4, 2, 3, 2]], after=[[2, 2], [[0, 0], [0, 1]]])
moving("batch_to_space", "BATCH_TO_SPACE_ND", [4, 2, 3, 2], [[1, 4, 5, 2]], after=[[2, 2], [[0, 0], [0, 1]]])
for half, align in ((False, False), (True, False), (False, True)):
    suffix = "_half_pixel" if half else "_align_corners" if align else ""
    for kind in ("int8", "float32"):
        moving(
            f"resize_bilinear_{kind}{suffix}", "RESIZE_BILINEAR", [1, 5, 4, 3], [[1, 8, 9, 3]], after=[[8, 9]], dtype=kind,
            made=options("ResizeBilinear", alignCorners=align, halfPixelCenters=half),
        )  # fmt: skip
    moving(
        f"resize_nearest_int8{suffix}", "RESIZE_NEAREST_NEIGHBOR", [1, 5, 4, 3], [[1, 8, 3, 3]], after=[[8, 3]],
        made=options("ResizeNearestNeighbor", alignCorners=align, halfPixelCenters=half),
    )  # fmt: skip


@case("padv2_int8")
def padding_value(rng: np.random.Generator) -> bytes:
    b = Builder()
    x = activation(b, rng, "int8", [1, 3, 4, 2])
    value = b.tensor("int8", [1], [42], 0.05, -7)
    y = activation(b, rng, "int8", [1, 4, 6, 2])
    b.operator("PADV2", [x, b.constant([[0, 0], [1, 0], [1, 1], [0, 0]]), value], [y])
    return b.finish([x], [y])


@case("concatenation_int8", "CONCATENATION", "int8", 0.05)
@case("concatenation_uint8_rescaled", "CONCATENATION", "uint8", 0.09)
@case("pack_int8", "PACK", "int8", 0.05)
def joined(rng: np.random.Generator, op: str, dtype: str, out: float) -> bytes:
    b = Builder()
    xs = [activation(b, rng, dtype, [2, 3, 4]) for _ in range(3)]
    y = activation(b, rng, dtype, [2, 9, 4] if op == "CONCATENATION" else [2, 3, 3, 4], out)
    b.operator(
        op,
        xs,
        [y],
        options("Concatenation", axis=1) if op == "CONCATENATION" else options("Pack", valuesCount=3, axis=1),
    )
    return b.finish(xs, [y])


@case("shape_to_reshape")
def shape_chain(rng: np.random.Generator) -> bytes:
    """SHAPE, STRIDED_SLICE and PACK make the target of a RESHAPE, as converters write Flatten."""
    b = Builder()
    x = activation(b, rng, "int8", [2, 3, 4])
    shape, first, target = b.tensor("int32", [3]), b.tensor("int32", []), b.tensor("int32", [2])
    y = activation(b, rng, "int8", [2, 12])
    b.operator("SHAPE", [x], [shape], options("Shape", outType=2))
    b.operator(
        "STRIDED_SLICE",
        [shape, b.constant([0]), b.constant([1]), b.constant([1])],
        [first],
        options("StridedSlice", shrinkAxisMask=1),
    )
    b.operator("PACK", [first, b.constant(-1)], [target], options("Pack", valuesCount=2, axis=0))
    b.operator("RESHAPE", [x, target], [y], options("Reshape", newShape=[]))
    return b.finish([x], [y])
