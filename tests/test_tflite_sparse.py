"""Constants that TFLite files store sparse: LiteRT's values, and damaged ones refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hwq
from hwq.importers.tflite import read

pytest.importorskip("ai_edge_litert")
pytest.importorskip("flatbuffers")


def level(size: int | None, segments: Any = (), indices: Any = ()) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.DimensionMetadataT()
    if size is not None:
        made.format, made.denseSize = schema.DimensionType.DENSE, size
        return made
    made.format = schema.DimensionType.SPARSE_CSR
    made.arraySegmentsType = made.arrayIndicesType = schema.SparseIndexVector.Uint8Vector
    made.arraySegments, made.arrayIndices = schema.Uint8VectorT(), schema.Uint8VectorT()
    made.arraySegments.values, made.arrayIndices.values = np.array(segments, np.uint8), np.array(indices, np.uint8)
    return made


# Traversal order, block map, levels, how many values: rows of a matrix; columns first; blocks of 2 x 3 in block rows.
FORMS: dict[str, tuple[list[int], list[int], list[Any], int]] = {
    "rows": ([0, 1], [], [(4,), (None, [0, 2, 2, 3, 5], [1, 4, 0, 2, 5])], 5),
    "columns": ([1, 0], [], [(6,), (None, [0, 1, 1, 2, 4, 4, 5], [3, 0, 1, 2, 3])], 5),
    "blocks": ([0, 1, 2, 3], [0, 1], [(2,), (None, [0, 1, 2], [1, 0]), (2,), (3,)], 12),
    "segments too few": ([0, 1], [], [(4,), (None, [0, 2], [1, 4])], 2),
    "segments fall": ([0, 1], [], [(4,), (None, [0, 2, 1, 3, 5], [1, 4, 0, 2, 5])], 5),
    "indices outside": ([0, 1], [], [(4,), (None, [0, 1, 1, 1, 1], [77])], 1),
    "values too few": ([0, 1], [], [(4,), (None, [0, 2, 2, 3, 5], [1, 4, 0, 2, 5])], 4),
    "order no permutation": ([0, 0], [], [(4,), (None, [0, 1, 1, 1, 1], [0])], 1),
    "huge": ([0, 1], [], [(1 << 30,), (1 << 30,)], 1),
}


def model(form: str, dtype: str = "float32") -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    from hwq.verification.tflite_builder import Builder, options

    order, blocks, levels, count = FORMS[form]
    b = Builder()
    x = b.tensor("float32", [4, 6], name="x")
    stored = b.tensor(dtype, [4, 6], (np.arange(count) + 0.5).astype(dtype))
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder, sparsity.blockMap = order, blocks
    sparsity.dimMetadata = [level(*one) for one in levels]
    b.graph.tensors[stored].sparsity = sparsity
    whole, y = b.tensor(dtype, [4, 6], name="whole"), b.tensor("float32", [4, 6], name="y")
    b.operator("DENSIFY", [stored], [whole], options("Densify"))
    if dtype == "float16":
        half, whole = whole, b.tensor("float32", [4, 6], name="wide")
        b.operator("DEQUANTIZE", [half], [whole], options("Dequantize"))
    b.operator("ADD", [x, whole], [y], options("Add"))
    return b.finish([x], [y])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", ["rows", "columns", "blocks"])
def test_values(form: str, dtype: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    data, x = model(form, dtype), np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    theirs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.count_nonzero(theirs != x) == FORMS[form][3]
    np.testing.assert_array_equal(hwq.execute(read(data, "m"), x), theirs)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in {"rows", "columns", "blocks"}])
def test_refused(form: str) -> None:
    with pytest.raises(hwq.Error):
        read(model(form), "m")
