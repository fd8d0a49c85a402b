"""What each machine family's builder fuses: nothing is lost, nothing is done twice, the rules are the documented."""

from __future__ import annotations

from collections import Counter

import pytest

from hwq import zoo
from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.lowering.families import FAMILY_RULES, lower_for_family
from hwq.ops.base import lookup
from hwq.ops.inference import infer_shapes
from hwq.plan import Plan
from hwq.quantization import annotate

PLAN = Plan.uniform(weights="int8", activations="uint8")
FAMILIES = list(FAMILY_RULES)


def chain(*ops, inputs=None):
    """A graph of MatMul and then one operator after the other, with a constant or the input `r` as second operand."""
    tensors = {name: Tensor(name, shape=(4, 8)) for name in ("x", "r", "y0")}
    tensors |= {"w": Tensor("w", shape=(8, 8)), "b": Tensor("b", shape=(8,)), "one": Tensor("one", shape=())}
    nodes = [Node("MatMul", "n0", ("x", "w"), ("y0",))]
    for index, op in enumerate(ops, start=1):
        op, _, second = op.partition(":")
        made = f"y{index}"
        tensors[made] = Tensor(made, shape=(4, 8))
        nodes.append(Node(op, f"n{index}", (f"y{index - 1}", *([second] if second else [])), (made,)))
    return Graph(nodes, tensors.values(), inputs or ["x", "r"], [f"y{len(ops)}"])


def kernels(graph):
    return [(node.op, [part.op for part in node.body[1:]]) for node in graph.nodes]


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_lands_in_one_kernel(name, family):
    source = annotate(zoo.build(name, weights=False), PLAN)
    lowered = lower_for_family(source, family)
    assert lowered.form == "lowered" and lowered.inputs == source.inputs and lowered.outputs == source.outputs
    parts = Counter(
        part.name for node in lowered.nodes for part in (node.body or (node,)) if part.op != "DequantizeLinear"
    )
    wanted = Counter(node.name for node in source.nodes if node.op != "DequantizeLinear")
    # Constants are computed at build time; a dequantized operand is read by every kernel that takes it.
    assert not parts - wanted and all(count == 1 for count in parts.values())
    constant = {
        node.name
        for node in source.nodes
        if not any(value in source.producers or value in source.inputs for value in node.inputs)
    }
    assert set(wanted) - set(parts) <= constant


@pytest.mark.parametrize("family", FAMILIES)
def test_fusion_keeps_the_macs_and_drops_the_quantization(family):
    for name, macs in (("resnet50", 4089184256), ("mobilenet_v1", 568741376)):
        source = infer_shapes(annotate(zoo.build(name, weights=False), PLAN), batch=1)
        lowered = lower_for_family(source, family)
        works = [lookup(node).work(node, lowered) for node in lowered.nodes]
        assert sum(work.macs for work in works) == macs
        assert all(work.precision == "int8" for work in works if work.macs)
        left = Counter(node.op for node in lowered.nodes)
        assert (left["QuantizeLinear"], left["DequantizeLinear"], left["Relu"]) == (1, 1, 0)  # model input and output


def test_kernels_of_resnet50_by_hand():
    source = annotate(zoo.build("resnet50", weights=False), PLAN)
    # 53 convolutions, two pools, flatten, dense layer, and Q/DQ at the ends; 16 residual adds join a convolution.
    assert len(lower_for_family(source, "gpu")) == 53 + 1 + 1 + 1 + 1 + 2
    assert len(lower_for_family(source, "systolic")) == 59 and len(lower_for_family(source, "cpu")) == 59
    assert len(lower_for_family(source, "npu")) == 59 + 16


def test_epilogues_follow_the_table():
    assert kernels(lower_for_family(chain("Add:b", "Relu"), "gpu")) == [("MatMul", ["Add", "Relu"])]
    assert kernels(lower_for_family(chain("Add:r", "Relu"), "systolic")) == [("MatMul", ["Add", "Relu"])]
    assert kernels(lower_for_family(chain("Add:r", "Relu"), "npu")) == [("MatMul", []), ("Add", ["Relu"])]
    assert kernels(lower_for_family(chain("Gelu"), "gpu")) == [("MatMul", ["Gelu"])]
    assert kernels(lower_for_family(chain("Gelu"), "systolic")) == [("MatMul", []), ("Gelu", [])]
    # One tensor beside the accumulators, not two.
    assert kernels(lower_for_family(chain("Add:r", "Relu", "Add:r"), "cpu")) == [
        ("MatMul", ["Add", "Relu"]),
        ("Add", []),
    ]
    # A product by one constant number joins the requantization anywhere.
    for family in FAMILIES:
        assert kernels(lower_for_family(chain("Div:one"), family)) == [("MatMul", ["Div"])]
    assert kernels(lower_for_family(chain("Div:r"), "systolic")) == [("MatMul", []), ("Div", [])]


def test_operators_set_apart_join_nothing():
    lowered = lower_for_family(chain("Add:b", "Relu"), "gpu", frozenset({"Relu"}))
    assert kernels(lowered) == [("MatMul", ["Add"]), ("Relu", [])]


def test_diamonds_close_before_they_fuse():
    names = ["x", "w", "y", "s", "z"]
    tensors = [Tensor(name, shape=(8, 8)) for name in names]
    nodes = [
        Node("MatMul", "m", ("x", "w"), ("y",)),
        Node("Sigmoid", "s", ("y",), ("s",)),
        Node("Mul", "p", ("y", "s"), ("z",)),
    ]
    silu = Graph(nodes, tensors, ["x"], ["z"])
    assert kernels(lower_for_family(silu, "gpu")) == [("MatMul", ["Sigmoid", "Mul"])]
    assert len(lower_for_family(silu, "npu")) == 3
    open_end = Graph(nodes, tensors, ["x"], ["z", "s"])
    assert kernels(lower_for_family(open_end, "gpu"))[0] == ("MatMul", [])


def test_a_value_that_leaves_the_model_is_not_swallowed():
    graph = chain("Relu")
    outputs = Graph(graph.nodes, graph.tensors.values(), ["x", "r"], ["y0", "y1"])
    assert kernels(lower_for_family(outputs, "gpu")) == [("MatMul", []), ("Relu", [])]


def test_lowered_graphs_print_and_pickle():
    import pickle

    lowered = lower_for_family(annotate(zoo.build("mobilenet_v2", weights=False), PLAN), "gpu")
    assert "[DequantizeLinear + Conv" in str(lowered) and pickle.loads(pickle.dumps(lowered)).hash == lowered.hash
    assert lower_for_family(lowered, "gpu") is lowered


def test_unknown_families_are_refused():
    with pytest.raises(Error):
        lower_for_family(chain("Relu"), "tpu")


def test_every_rule_says_where_it_comes_from():
    assert set(FAMILIES) == {"systolic", "gpu", "npu", "cpu", "spatial"}
    assert all(len(rule.evidence) > 20 for rule in FAMILY_RULES.values())
