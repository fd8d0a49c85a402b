"""The hand-worked layers of simulators/README.md: their arithmetic, run by itself, and the same layers as graphs."""

from __future__ import annotations

import re
from pathlib import Path

from hwq.graph import Graph, Node, Tensor
from hwq.plan import Plan
from hwq.simulators import estimate

README = Path(__file__).parent.parent / "simulators" / "README.md"
PLAN = Plan.uniform(weights="int8", activations="int8", symmetric=True)


def blocks() -> dict[str, dict]:
    """The namespace that each worked block of the README leaves behind, by its title."""
    found = {}
    for text in re.findall(r"```python\n# worked: (.*?)```", README.read_text(), re.S):
        title, _, body = text.partition("\n")
        namespace: dict = {}
        exec(body, namespace)
        found[title] = namespace
    return found


def graph_of(layer: dict) -> Graph:
    """One layer, float, weights without values."""
    if layer["op"] == "Gemm":
        x, w, y = ("N", layer["inputs"]), (layer["outputs"], layer["inputs"]), ("N", layer["outputs"])
        attributes = {"transB": 1}
    else:
        size, kernel, groups = layer["size"], layer["kernel"], layer["groups"]
        x, y = ("N", layer["channels"], size, size), ("N", layer["filters"], size, size)
        w = (layer["filters"], layer["channels"] // groups, kernel, kernel)
        attributes = {"group": groups, "kernel_shape": (kernel, kernel), "pads": (kernel // 2,) * 4}
    tensors = [Tensor("x", shape=x), Tensor("w", shape=w), Tensor("b", shape=(w[0],)), Tensor("y", shape=y)]
    nodes = [Node(layer["op"], "layer", ("x", "w", "b"), ("y",), attributes, layout="NCHW" if len(x) == 4 else "")]
    if "activation" in layer:
        tensors.append(Tensor("z", shape=y))
        nodes.append(Node(layer["activation"], "activation", ("y",), ("z",)))
    return Graph(nodes, tensors, ["x"], [nodes[-1].outputs[0]], name="layer")


def measured(layer: dict):
    """The estimate of the layer on its machine, and its LayerEstimate."""
    result = estimate(graph_of(layer), layer["machine"], plan=PLAN, batch=layer["batch"])
    return result, next(entry for entry in result.layers if entry.op == layer["op"])


def compare(expected: dict, result, entry) -> list[str]:
    """Every expected number that the estimate does not equal: whole numbers exactly, seconds to 12 digits."""
    wrong = []
    clock = result.machine.clock
    for key, value in expected.items():
        if key in {"seconds", "cycles"}:
            found = getattr(entry, key)
        elif "." in key:
            memory, operand = key.split(".")
            found = entry.traffic[memory][operand]
        else:
            found = entry.terms[key] if "seconds" in expected else entry.terms[key] * clock
        close = abs(found - value) <= 1e-12 * abs(value) if isinstance(found, float) else found == value
        if not close:
            wrong.append(f"{key}: by hand {value}, estimated {found}")
    return wrong
