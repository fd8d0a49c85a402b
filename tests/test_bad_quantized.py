"""Damaged quantized models: every one runs or is one clear Error, in every verb that reads it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import hwq
from hwq.errors import Error
from hwq.exporters.qoperator import to_qoperator
from hwq.exporters.tensorrt import for_tensorrt
from hwq.importers.onnx import read
from hwq.lowering import lower
from hwq.overflow import prove
from hwq.repair import repair
from hwq.verification.onnx_dialects import drawn
from hwq.verification.onnx_models import CASES

NAMES = [name for name in CASES if not name.startswith(("Quantize", "Dequantize", "island"))]


def damaged(name: str, rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One random edit of a sound model: an input lost or swapped, an attribute or a constant of another kind."""
    model, feeds = drawn(name, CASES[name], int(rng.integers(0, 2)))
    node = model.graph.node[int(rng.integers(0, len(model.graph.node)))]
    kind = int(rng.integers(0, 4))
    if kind == 0:
        del node.input[int(rng.integers(0, len(node.input)))]
    elif kind == 1:
        others = ["", *(tensor.name for tensor in model.graph.initializer)]
        node.input[int(rng.integers(0, len(node.input)))] = others[int(rng.integers(0, len(others)))]
    elif kind == 2 and node.attribute:
        attribute = node.attribute[int(rng.integers(0, len(node.attribute)))]
        attribute.i = int(rng.choice([-5, -1, 0, 7, 2**40]))
        if attribute.ints:
            attribute.ints[0] = int(rng.choice([-3, 0, 99, 2**40]))
    elif model.graph.initializer:
        tensor = model.graph.initializer[int(rng.integers(0, len(model.graph.initializer)))]
        value = numpy_helper.to_array(tensor)
        changed = [value.reshape(-1)[:0], np.concatenate([value.reshape(-1)] * 2), value.astype(np.float32), value.astype(np.int32),
                   value.reshape(1, -1), np.zeros_like(value)][int(rng.integers(0, 6))]  # fmt: skip
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))
    return model, feeds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_damage_is_one_clear_error_or_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    refused = ran = 0
    for _ in range(40):
        model, feeds = damaged(NAMES[int(rng.integers(0, len(NAMES)))], rng)
        try:
            graph = read(model)
        except Error:
            refused += 1
            continue
        verbs = [
            lambda d=d, g=graph, f=feeds: hwq.execute(g, f, d)
            for d in ("ort", "ort-avx2-saturating", "onnx", "ort-unfused")
        ]
        verbs += [
            lambda g=graph, v=verb: v(g)
            for verb in (repair, to_qoperator, for_tensorrt, lambda g: prove(lower(g, "ort")))
        ]
        for verb in verbs:
            try:
                verb()
                ran += 1
            except Error:
                refused += 1
    assert refused and ran
