"""The zoo's networks have the published MACs and parameters."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from tiny import SHARED

from hwq import zoo
from hwq.errors import Error
from hwq.ops.base import lookup
from hwq.ops.evaluate import evaluate, infer_shapes

# MACs and batch-norm-folded parameters at batch 1, from the public architecture definitions (torchvision's ResNet-18/-50
# and VGG-16 tables, Howard et al. 2017, Sandler et al. 2018, Devlin et al. 2019, Ultralytics YOLOv8n), summed by hand.
TOTALS = {
    "resnet18": (1_814_073_344, 11_684_712), "resnet50": (4_089_184_256, 25_530_472), "mobilenet_v1": (568_741_376, 4_222_057),
    "mobilenet_v2": (300_774_272, 3_487_816), "vgg16": (15_470_264_320, 138_357_544), "bert_base": (11_173_625_856, 109_482_240),
    "bert_large": (39_460_012_032, 335_141_888), "yolov8n": (4_371_993_600, 3_151_904),
}  # fmt: skip
ROWS = {"resnet50": "resnet50_v1.5", "mobilenet_v1": "mobilenet_v1_1.0_224", "mobilenet_v2": "mobilenet_v2_1.0_224", "vgg16": "vgg16_224",
        "bert_base": "bert_base_seq128", "bert_large": "bert_large_seq128", "yolov8n": "yolov8n_640"}  # fmt: skip


def macs(graph) -> int:
    return sum(lookup(node).work(node, graph).macs for node in graph)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_totals(name: str) -> None:
    graph = zoo.build(name, weights=False)
    assert (macs(infer_shapes(graph, batch=1)), graph.parameters) == TOTALS[name]


@pytest.mark.parametrize("name", zoo.NAMES)
def test_totals_equal_the_shared_table(name: str) -> None:
    table = SHARED / "workloads" / "totals_check.csv"
    if not table.exists():
        pytest.skip("needs HWQ_SHARED/workloads")
    row = next(row for row in csv.DictReader(table.open()) if row["model"] == ROWS.get(name, name))
    assert TOTALS[name] == (int(row["macs"]), int(row["params_bn_folded"]))


@pytest.mark.parametrize("name", zoo.NAMES)
def test_drawn_shapes_are_the_inferred_ones(name: str) -> None:
    graph = zoo.build(name, weights=False)
    again = infer_shapes(graph, batch=3)
    for tensor in graph.tensors.values():
        if tensor.name in graph.producers and tensor.name in again.tensors:
            assert again.tensors[tensor.name].shape == tuple(3 if dim == "N" else dim for dim in tensor.shape), (
                tensor.name
            )


def test_macs_scale_with_the_batch() -> None:
    graph = zoo.build("mobilenet_v2", weights=False)
    assert macs(infer_shapes(graph, batch=8)) == 8 * TOTALS["mobilenet_v2"][0]


def test_weights_are_seeded() -> None:
    first, second, other = (zoo.build("resnet18", seed=seed) for seed in (0, 0, 1))
    assert first.hash == second.hash != other.hash
    assert first.constant("conv1.weight").dtype == np.float32


def test_weights_give_finite_values() -> None:
    graph = zoo.build("mobilenet_v2")
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    result = evaluate(graph, {"image": image})
    logits = next(iter(result.values())) if isinstance(result, dict) else result
    assert logits.shape == (1, 1000) and np.isfinite(logits).all() and logits.std() > 0


def test_bert_takes_its_length_from_the_shapes() -> None:
    graph = zoo.build("bert_base", weights=False, shapes={"input_ids": (1, 384)})
    # 12 layers of 384 tokens: 7,077,888 weights each, and two products of 12 heads, 384 x 384 x 64.
    assert macs(infer_shapes(graph, batch=1)) == 12 * (384 * 7_077_888 + 2 * 12 * 384 * 384 * 64)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("resnet1000", None), ("bert_base", {"input_ids": (1, 513)}), ("bert_base", {"input_ids": (1, 2, 3)})],
)
def test_what_is_not_there_is_refused(name: str, shapes) -> None:
    with pytest.raises(Error) as caught:
        zoo.build(name, weights=False, shapes=shapes)
    assert caught.value.remedy
