"""Dialect ort-avx2-saturating against onnxruntime's own outputs on a CPU without VNNI, and its kernel against int64."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SHARED

import hwq
from hwq import kernels
from hwq.errors import Error

GOLDEN = Path(__file__).parent / "golden" / "onnx"


def pairs(a, b, za, zb):
    """The definition: neighboring raw products added in int16 with saturation, zero points taken off afterwards."""
    a, b = a.astype(np.int64), b.astype(np.int64)
    total = np.zeros((a.shape[0], b.shape[1]), np.int64)
    for k in range(0, a.shape[1], 2):
        pair = a[:, k : k + 2] @ b[k : k + 2]
        total += np.clip(pair, -32768, 32767)
    return total - za * b.sum(axis=0) - zb * (a.sum(axis=1)[:, None] - a.shape[1] * za)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 17), (66, 130, 33), (5, 2, 300), (2, 0, 3)])
def test_kernel_is_the_pair_model(isa: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(m * k)
    for za, zb in ((0, 0), (255, 0), (7, -128)):
        a = rng.choice(np.array([0, 1, 128, 254, 255], np.uint8), (m, k))
        b = rng.choice(np.array([-128, -127, -1, 0, 126, 127], np.int8), (k, n))
        with kernels.use_isa(isa):
            for threads in (1, 3):
                found = kernels.gemm_saturating(a, kernels.pack(b, zero_point=zb), a_zero_point=za, threads=threads)
                np.testing.assert_array_equal(found, pairs(a, b, za, zb))
    a, b = np.full((1, 2), 255, np.uint8), np.full((2, 1), 127, np.int8)
    assert kernels.gemm_saturating(a, kernels.pack(b)).item() == 32767 != 2 * 255 * 127


def test_other_types_are_refused() -> None:
    b = kernels.pack(np.zeros((2, 2), np.uint8))
    with pytest.raises(Error, match="int8 weights"):
        kernels.gemm_saturating(np.zeros((1, 2), np.uint8), b)
    with pytest.raises(Error):
        kernels.gemm_saturating(np.zeros((1, 2), np.int8), kernels.pack(np.zeros((2, 2), np.int8)))


@pytest.mark.parametrize("key", ["DS-CNN|channel", "ResNet-8|channel"])
def test_every_test_image_has_the_bytes_of_a_cpu_without_vnni(key: str) -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared here (set HWQ_SHARED)")
    sys.path.insert(0, str(GOLDEN))
    import make_saturation

    facts = json.loads((GOLDEN / "saturation.json").read_text())["models"][key]
    graph, test = next((graph, test) for _, graph, test, _ in make_saturation.models(key))
    assert make_saturation.constants_hash(graph) == facts["constants"], (
        "hwq quantizes this model otherwise than when onnxruntime's outputs were recorded: run tests/golden/onnx/make_saturation.py"
    )
    expected = np.load(GOLDEN / "saturation.npz")[key]
    found = hwq.execute(graph, test, "ort-avx2-saturating")
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert (hwq.execute(graph, test[:50], "ort") != expected[:50]).any()
