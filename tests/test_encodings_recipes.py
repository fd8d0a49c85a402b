"""ai-edge-quantizer's recipes: their expressions become globs, their rules resolve as in the tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwq
from hwq.encodings import encodings_of_graph
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph, Node
from hwq.importers.encodings import read_plan
from hwq.importers.encodings_litert import glob_of

GOLDEN = Path(__file__).parent / "golden" / "encodings"


RECIPES = json.loads((GOLDEN / "recipes.json").read_text())


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "mixed resolved"])
def test_recipes_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RECIPES[name]))
    plan = read_plan(tmp_path / "r.json").plan
    first = RECIPES[name][0]["op_config"]
    rule = plan.layers[0]
    assert rule.weights["dtype"] == f"int{first['weight_tensor_config']['num_bits']}"
    mode = {True: "dynamic" if "activation_tensor_config" not in first else "static", False: "float"}
    assert rule.activations["mode"] == mode[first["compute_precision"] == "INTEGER"]


def test_recipes_of_several_models_are_told(tmp_path: Path) -> None:
    """What `recipe.gemma4_mixed48()` of ai-edge-quantizer 0.10 gives: a list for each model."""
    (tmp_path / "r.json").write_text(json.dumps({"embedder": RECIPES["mixed"], "decoder": RECIPES["mixed"]}))
    with pytest.raises(Error, match="2 models: embedder, decoder"):
        read_plan(tmp_path / "r.json")
    (tmp_path / "e.json").write_text(json.dumps({"embedder": [3], "decoder": [""]}))
    with pytest.raises(Error, match="holds no encodings"):
        read_plan(tmp_path / "e.json")


def test_recipes_resolve_as_the_tool_resolves_them(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RECIPES["mixed"]))
    plan = read_plan(tmp_path / "r.json").plan
    answers = RECIPES["mixed resolved"]
    nodes = [Node(key.split(" ")[0], key, ("in",), (key.split(" ")[1],)) for key in answers]
    resolved = plan.resolve(nodes)
    for key, (algorithm, weight_bits, activation_bits, precision) in answers.items():
        one = resolved[key]
        if algorithm == "no_quantize":
            assert (one.weights.dtype, one.activations.mode) == ("float32", "float"), key
            continue
        assert one.weights.dtype == f"int{weight_bits}", key
        wanted = "float" if precision == "FLOAT" else "static" if activation_bits else "dynamic"
        assert one.activations.mode == wanted, key
        assert not activation_bits or one.activations.dtype == f"int{activation_bits}"


def test_a_recipe_finds_the_operators_of_an_onnx_model(cnn: Graph, tmp_path: Path) -> None:
    weights = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    rule = {"regex": ".*", "operation": "CONV_2D", "algorithm_key": "min_max_uniform_quantize",
            "op_config": {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}}  # fmt: skip
    rules = [rule, {**rule, "operation": "FULLY_CONNECTED", "algorithm_key": "MSE"}, {**rule, "operation": "TANH"}]
    (tmp_path / "r.json").write_text(json.dumps(rules))
    found = read_plan(tmp_path / "r.json", cnn)
    q = hwq.quantize(cnn, found.plan)
    # The depthwise convolution is another operation for LiteRT.
    assert {one.tensor for one in encodings_of_graph(q)} == {"w1", "w3", "w4"}
    assert any("TANH" in note for note in found.left_out)


@pytest.mark.parametrize(
    ("expression", "globs"),
    [(".*", ["*"]), ("", ["*"]), ("fc", ["*fc*"]), ("^a.b$", ["a?b"]), (r"x\.y/.*z|w", ["*x.y/*z*", "*w*"]), ("a.+b", ["*a?*b*"]),
     (r"\[0\]", ["*[[]0]*"])],
)  # fmt: skip
def test_expressions_become_globs(expression: str, globs: list[str]) -> None:
    import fnmatch
    import re

    assert glob_of(expression, "here") == globs
    for name in ("fc", "axb", "x.y/z", "x.y/1z2", "w", "a[0]", "ab", "aab", ""):
        assert any(fnmatch.fnmatchcase(name, glob) for glob in globs) == bool(re.search(expression, name)), name


@pytest.mark.parametrize("expression", ["(a+)+b", "a*", r"\d", "[ab]", "a{3}", "(a|b)", "a$b", "\\", "a?"])
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(NotSupportedYet, match="expression"):
        glob_of(expression, "here")
