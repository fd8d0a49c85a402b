"""ai-edge-quantizer recipes (JSON), as version 0.10.0 writes and reads them.

A recipe is a list of rules: a regular expression that is searched in the names of an operator's outputs, an operation or
``*``, an algorithm, and a configuration. Rules stand in scopes, one an expression, in the order in which scopes first
occur; a rule for ``*`` replaces its scope, a rule for an operation replaces that operation's; of those that fit an
operator the last one holds, and all of what it says. Recipes hold no scales: static activations need a calibration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hwq.encodings import dialect_for
from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph, Node
from hwq.importers.encodings import Imported
from hwq.names import display_name
from hwq.plan import Plan
from hwq.plan_reading import literal

__all__ = ["glob_of", "parse"]

FLOAT = {"dtype": "float32"}, {"dtype": "float32", "mode": "float"}
# Algorithms of uniform quantization: the keys of a plan's weights that say the same.
ALGORITHMS: Mapping[str, dict[str, str]] = {
    "min_max_uniform_quantize": {"scale": "minmax", "rounding": "nearest"},
    "MSE": {"scale": "mse", "rounding": "nearest"},
    "GPTQ": {"scale": "minmax", "rounding": "gptq"},
}
# What an ONNX graph calls an operation; convolutions are told apart by their groups.
ONNX = {
    "FULLY_CONNECTED": ("Gemm", "MatMul"), "BATCH_MATMUL": ("MatMul",), "CONV_2D": ("Conv",), "DEPTHWISE_CONV_2D": ("Conv",),
    "CONV_2D_TRANSPOSE": ("ConvTranspose",), "AVERAGE_POOL_2D": ("AveragePool", "GlobalAveragePool"), "MAX_POOL_2D": ("MaxPool",),
    "RESHAPE": ("Reshape", "Flatten"), "SOFTMAX": ("Softmax",), "TANH": ("Tanh",), "TRANSPOSE": ("Transpose",), "GELU": ("Gelu",),
    "ADD": ("Add",), "SUB": ("Sub",), "MUL": ("Mul",), "DIV": ("Div",), "MEAN": ("ReduceMean",), "CONCATENATION": ("Concat",),
    "STRIDED_SLICE": ("Slice",), "SLICE": ("Slice",), "SPLIT": ("Split",), "LOGISTIC": ("Sigmoid",), "SUM": ("ReduceSum",),
    "SELECT": ("Where",), "SELECT_V2": ("Where",), "PAD": ("Pad",), "PADV2": ("Pad",), "SQRT": ("Sqrt",), "GATHER": ("Gather",),
    "HARD_SWISH": ("HardSwish",), "MAXIMUM": ("Max",), "RELU": ("Relu",),
}  # fmt: skip


def parse(rules: list[Any], where: str, graph: Graph | None) -> Imported:
    """The plan that a recipe says.

    Raises
    ------
    Error
        Not a recipe, or a damaged one.
    NotSupportedYet
        An algorithm or an expression that a plan cannot say.
    """
    left: list[str] = []
    layers: list[dict[str, Any]] = []
    stored: tuple[list[str], list[str]] = [], []
    blocks = False
    for at, rule in _ordered(rules, where):
        here = f"{where}, rule {at}"
        weights, activations = _settings(rule, here, left)
        for kept, values in zip(stored, (weights, activations), strict=True):
            kept += [values["dtype"]] if "float" not in values.get("dtype", "float") else []
        blocks |= isinstance(weights.get("granularity"), dict)
        for pattern in glob_of(rule["regex"], here):
            matches = list(_matches(pattern, rule["operation"], graph))
            if not matches:
                left.append(f"rule {at} fits no operator of the model: {rule['operation']} where {rule['regex']}")
            layers += [{"match": match, "weights": weights, "activations": activations} for match in matches]
    if not layers:
        raise Error("no rule of the recipe fits this model" if rules else "the recipe has no rules", where=where)
    # A model is quantized in ONNX's operators, also where it was a TFLite file.
    table = {
        "schema": 1, "dialect": "litert-ref" if graph is None else dialect_for(*stored, blocks),
        "default": {"weights": FLOAT[0], "activations": FLOAT[1]}, "layers": layers,
    }  # fmt: skip
    return Imported(Plan._checked(table, where), "ai-edge-quantizer recipe", tuple(dict.fromkeys(left)))


def _ordered(rules: list[Any], where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rules that count, in the order in which they are tried, the last that fits winning."""
    scopes: dict[str, dict[str, tuple[int, Mapping[str, Any]]]] = {}
    for at, rule in enumerate(rules, 1):
        here = f"{where}, rule {at}"
        if not isinstance(rule, dict):
            raise Error(f"a rule is a {type(rule).__name__}, not a table", where=here)
        for key in ("regex", "operation", "algorithm_key"):
            if not isinstance(rule.get(key), str):
                raise Error(f"a rule has no {key}", where=here, remedy="this is no recipe of ai-edge-quantizer")
        scope = scopes.setdefault(rule["regex"], {})
        if rule["operation"] == "*":
            scope.clear()
        scope[rule["operation"]] = (at, rule)
    for scope in scopes.values():
        yield from scope.values()


def _settings(rule: Mapping[str, Any], where: str, left: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    algorithm, config = rule["algorithm_key"], rule.get("op_config") or {}
    if not isinstance(config, dict):
        raise Error(f"op_config is a {type(config).__name__}, not a table", where=where)
    if algorithm == "no_quantize":
        return dict(FLOAT[0]), dict(FLOAT[1])
    weight, activation = config.get("weight_tensor_config"), config.get("activation_tensor_config")
    if algorithm == "float_casting":
        return {"dtype": _dtype(weight, where)}, dict(FLOAT[1])
    if algorithm not in ALGORITHMS:
        raise NotSupportedYet(
            f"the algorithm {display_name(algorithm, 40)}",
            where=where,
            remedy=f"one of: {', '.join(ALGORITHMS)}, float_casting, no_quantize",
        )
    least = config.get("min_weight_elements", 0)
    if least:
        left.append(f"min_weight_elements = {least}: a plan quantizes small weights too")
    weights: dict[str, Any] = dict(FLOAT[0])
    if weight is not None:
        dtype, grain = _dtype(weight, where), _granularity(weight, where)
        weights = {"dtype": dtype}
        if "float" not in dtype:
            weights |= {
                "granularity": grain,
                "symmetric": weight.get("symmetric", True) is True,
                **ALGORITHMS[algorithm],
            }
    if config.get("compute_precision", "FLOAT") != "INTEGER":
        return weights, dict(FLOAT[1])
    if activation is None:
        # The runtime quantizes operands as they come.
        return weights, {"dtype": "uint8", "symmetric": False, "mode": "dynamic"}
    if _granularity(activation, where) != "tensor":
        raise NotSupportedYet("activations with several scales", where=where, remedy="TENSORWISE")
    symmetric = activation.get("symmetric", True) is True
    return weights, {"dtype": _dtype(activation, where), "symmetric": symmetric, "mode": "static", "observer": "minmax"}


def _dtype(config: Any, where: str) -> str:
    if not isinstance(config, dict):
        raise Error("a tensor's configuration is missing", where=where)
    bits, kind = config.get("num_bits"), config.get("dtype", "INT")
    if isinstance(bits, bool) or not isinstance(bits, int) or kind not in {"INT", "UINT", "FLOAT"}:
        raise Error(f"{display_name(str(kind), 20)} of {display_name(str(bits), 20)} bits is no type", where=where)
    return f"{kind.lower()}{bits}"


def _granularity(config: Mapping[str, Any], where: str) -> Any:
    block = config.get("block_size", 0)
    grain = f"BLOCKWISE_{block}" if block else config.get("granularity", "TENSORWISE")
    plain = {"TENSORWISE": "tensor", "CHANNELWISE": "channel"}
    if grain in plain:
        return plain[grain]
    found = re.fullmatch(r"BLOCKWISE_(\d{1,5})", str(grain))
    if found is None:
        raise Error(f"there is no granularity {display_name(str(grain), 30)}", where=where)
    return {"group": int(found[1])}


def glob_of(expression: str, where: str) -> list[str]:
    """The globs that fit exactly the names in which an expression is found.

    Names, ``.``, ``.*``, ``.+``, escaped characters, ``^``, ``$`` and ``|`` between whole alternatives have globs; an
    expression is never run, so that no file can make the reader slow.

    Raises
    ------
    NotSupportedYet
        An expression with more than that.
    """
    made = []
    for part in re.split(r"(?<!\\)\|", expression):
        starts, ends = part.startswith("^"), part.endswith("$") and not part.endswith("\\$")
        body = part[1 if starts else 0 : -1 if ends else None]
        glob = "" if starts else "*"
        at = 0
        while at < len(body):
            token = body[at : at + 2]
            if token in {".*", ".+"}:
                glob, at = glob + ("*" if token == ".*" else "?*"), at + 2
            elif body[at] == ".":
                glob, at = glob + "?", at + 1
            elif body[at] == "\\" and len(token) == 2 and not token[1].isalnum():
                glob, at = glob + literal(token[1]), at + 2
            elif body[at] not in "\\*+?{}[]()^$" and body[at + 1 : at + 2] not in {"*", "+", "?", "{"}:
                glob, at = glob + literal(body[at]), at + 1
            else:
                raise NotSupportedYet(
                    f"the expression {display_name(expression, 60)}",
                    where=where,
                    why="a plan matches by globs",
                    remedy="use names, . .* .+ ^ $ and | only, or one rule a layer",
                )
        made.append(re.sub(r"\*+", "*", glob + ("" if ends else "*")))
    return list(dict.fromkeys(made))


def _matches(pattern: str, operation: str, graph: Graph | None) -> Iterator[dict[str, str]]:
    """The plan's matches of one glob and operation: of all, by operator, or by node where the model says it otherwise."""
    base = {} if pattern == "*" else {"tensor": pattern}
    if operation == "*":
        match = base or {"name": "*"}
        if graph is None or any(_fits(match, node) for node in graph.nodes):
            yield match
    elif graph is None or any(node.op == operation for node in graph.nodes):
        match = {**base, "op": operation}
        if graph is None or any(_fits(match, node) for node in graph.nodes):
            yield match
    else:
        for op in ONNX.get(operation, ()):
            every = [node for node in graph.nodes if node.op == op and not node.domain]
            wanted = [node for node in every if _operation(node) in {operation, ""}]
            if wanted and len(wanted) == len(every):
                match = {**base, "op": op}
                if any(_fits(match, node) for node in graph.nodes):
                    yield match
                continue
            for node in wanted:
                match = {**base, "name": literal(node.name)}
                if _fits(match, node):
                    yield match


def _fits(match: Mapping[str, str], node: Node) -> bool:
    from hwq.plan import Match

    return Match.model_validate(dict(match)).fits(node)


def _operation(node: Node) -> str:
    """What LiteRT calls an ONNX convolution; "" for operators that need no telling apart."""
    if node.op != "Conv":
        return ""
    return "DEPTHWISE_CONV_2D" if int(node.attributes.get("group", 1)) > 1 else "CONV_2D"
