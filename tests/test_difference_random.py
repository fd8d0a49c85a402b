"""The drift localizer on networks and defects drawn at random: the layer is always named, the rule wherever values tell it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from defects import DEFECTS, Defect
from random_nets import Feeds, quantized_net, tflite_net

import hwq
from hwq.difference import Difference, localize
from hwq.errors import Error
from hwq.graph import Graph
from hwq.hypotheses import layer
from hwq.observation import litert_values, onnxruntime_values

f32 = np.float32
# Networks of each format, and defects drawn in each.
NETS, DRAWS = 24, 5


def net(seed: int, kind: str, folder: Path) -> tuple[np.random.Generator, Graph, Feeds]:
    rng = np.random.default_rng(seed)
    while True:
        graph, feeds = quantized_net(rng, ties=seed % 2 == 1)
        if kind == "onnx":
            return rng, graph, feeds
        try:
            return rng, *tflite_net(graph, feeds, folder / "net.tflite")
        except Error as error:  # the next one, then
            assert "AVERAGE_POOL_2D" in error.what, error


def planted(
    graph: Graph, feeds: Feeds, ops: tuple[str, ...], defect: Defect, rng: np.random.Generator
) -> tuple[str, Feeds] | None:
    """(layer, dump) with one layer by another rule; the layers behind it compute as they should."""
    program = hwq.compile(graph)
    right = {**program(feeds, intermediates=True)[1], **feeds}
    for index in rng.permutation(len(program.graph.nodes)):
        node = program.graph.nodes[index]
        stored = [program.graph.tensors[name].quantization is not None for name in (*node.inputs[:1], *node.outputs)]
        if (
            node.op not in ops
            or not (all(stored) or node.op in {"QuantizeLinear", "QUANTIZE"})
            or node.inputs[0] not in right
        ):
            continue
        wrong = defect({name: right[name] for name in node.inputs if name in right}, program.graph, node)
        if wrong is None or np.array_equal(wrong, right[node.outputs[0]]):
            continue
        values = dict(feeds)
        for one in program.graph.nodes:
            alone = layer(program.graph, one)
            if set(alone.inputs) <= set(values):
                made = hwq.compile(alone, program.dialect.name)({name: values[name] for name in alone.inputs})
                values |= made if isinstance(made, dict) else {one.outputs[0]: made}
            if one is node:
                values[node.outputs[0]] = wrong
        return node.name, {name: value for name, value in values.items() if name not in feeds}
    return None


def names(found: Difference) -> set[str]:
    """The rules that give the other run's values exactly: on these values none of them is better than another."""
    return {one.rule for one in found.explanations if one.exact}


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("seed", range(NETS))
def test_defects_are_found(seed: int, kind: str, tmp_path: Path) -> None:
    rng, graph, feeds = net(seed, kind, tmp_path)
    for place in rng.permutation(len(DEFECTS))[:DRAWS]:
        name, ops, rule, defect = DEFECTS[place]
        found = planted(graph, feeds, ops, defect, rng)
        if found is None:
            continue
        where, dump = found
        told = localize(graph, feeds, dump)
        assert told.layer == where and told.first is not None and told.first.layer == where, name
        # In fixed point a formula of floats may be nothing but another rounding on the values at hand.
        assert rule in names(told) | ({"rounding"} if kind == "tflite" else set()) and told.rule in names(told), (
            name,
            rule,
            told,
        )
        del dump[told.first.tensor]  # a dump that leaves the layer out
        partial = localize(graph, feeds, dump) if dump else told
        assert partial.first is None or partial.layer == where or where in partial.unseen


@pytest.mark.parametrize("seed", range(12))
def test_no_false_alarm(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, graph, feeds = net(seed, "onnx", tmp_path)
    found = localize(graph, feeds, onnxruntime_values(graph, feeds))
    stored = sum(node.op == "QuantizeLinear" for node in graph.nodes)
    assert found.first is None and len(found.layers) >= stored and not found.notes, found
    pytest.importorskip("ai_edge_litert")
    _, graph, feeds = net(seed, "tflite", tmp_path)
    found = localize(graph, feeds, litert_values(tmp_path / "net.tflite", feeds))
    assert found.first is None and len(found.layers) >= len(graph.nodes), found


@pytest.mark.parametrize("seed", range(8))
def test_dumps_in_other_forms(seed: int, tmp_path: Path) -> None:
    """Source names, wider integers, floats, real values on the grid, the other layout; what cannot be read is one error."""
    _, graph, feeds = net(seed, "onnx", tmp_path)
    program = hwq.compile(graph)
    right = program(feeds, intermediates=True)[1]
    dump = {}
    for place, (name, value) in enumerate(right.items()):
        form, pair = place % 5, program.graph.tensors[name].quantization
        if value.dtype.kind in "iu" and form == 0:
            value = value.astype(np.int64)
        elif form == 1:
            value = value.astype(np.float64)
        elif form == 2 and value.ndim == 4:
            value = np.moveaxis(value, 1, -1)
        elif form == 3 and value.dtype.kind in "iu" and pair is not None:
            value = (value.astype(f32) - f32(pair.zero_points().reshape(-1)[0])) * pair.scales().reshape(-1)[0]
        elif value.dtype == np.uint8 and name.endswith("_u8") and name.removesuffix("_u8") in graph.tensors:
            name, value = name.removesuffix("_u8"), (value.astype(int) - 128).astype(np.int8)
        dump[name] = value
    dump |= {"renamed:0": np.zeros(3), **feeds}
    found = localize(graph, feeds, dump)
    assert found.first is None and len(found.layers) == len(right), found
    assert any("renamed:0" in note for note in found.notes)
    name, value = next((name, value) for name, value in right.items() if value.dtype == np.uint8)
    for wrong, word in (
        (value[:2], "--samples"), (value.astype(object), "has object"), (np.full(value.shape, np.nan), "no number"), (value + 0.3, "has dtype"),
        (value.reshape(-1)[1:], "has shape"),
    ):  # fmt: skip
        with pytest.raises(Error, match=word):
            localize(graph, feeds, {name: wrong})
    with pytest.raises(Error, match="other inputs"):
        localize(graph, feeds, {**dump, "x": feeds["x"] + f32(1)})


@pytest.mark.parametrize("seed", range(6))
def test_a_whole_run_of_another_dialect_is_named(seed: int, tmp_path: Path) -> None:
    """Also from its outputs alone."""
    for kind, other, rule in (("onnx", "ort-avx2-saturating", "saturation"), ("tflite", "litert-xnnpack", "resolver")):
        _, graph, feeds = net(seed, kind, tmp_path)
        outputs, values = hwq.compile(graph, other)(feeds, intermediates=True)
        found = localize(graph, feeds, {graph.outputs[0]: outputs})
        assert found.rule in {"", rule}, found
        found = localize(
            graph, feeds, {name: value for name, value in values.items() if name in hwq.compile(graph).graph.tensors}
        )
        assert found.first is None or f"the whole run is that of {other}" in {
            one.detail for one in found.explanations
        }, found
