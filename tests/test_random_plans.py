"""Random plans on random networks with hostile values: each either works, in every dialect and in onnxruntime, or is refused by one `Error`."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import model_of, run_onnxruntime

import hwq
from hwq.errors import Error
from hwq.plan import Plan

# What a refused plan may go on without, by the words of the error: most plans then run.
DROPPED = {"nothing to equalize": "equalize", "nothing to smooth": "smooth", "scaled by their activations": "awq"}
DIALECTS = ["ort", "ort", "hwq", "hwq", "hwq-integer", "ort-unfused", "onnx", "tensorrt", "torch-pt2e"]


class Network:
    """A chain of random layers over images, sequences or vectors; some values are hostile."""

    def __init__(self, random: np.random.Generator):
        self.random, self.nodes, self.constants = random, [], {}
        kind = self.one(["image", "signal", "vector", "sequence"])
        shape = {"image": [4, 7, 8], "signal": [4, 12], "vector": [9], "sequence": [5, 8]}[kind]
        self.x = self.hostile(random.normal(size=(self.one([1, 3, 16]), *shape)).astype(np.float32), inputs=True)
        value, width = "x", shape[-1] if kind in {"vector", "sequence"} else shape[0]
        for _ in range(random.integers(1, 4)):
            make = self.convolution if kind in {"image", "signal"} else self.product
            value, width = make(value, width, len(shape))
            value = self.function(value, width, len(shape))
        self.model = model_of(self.nodes, {"x": self.x}, self.constants, [value], dynamic=True)

    def one(self, of: list[Any]) -> Any:
        """One of a list."""
        return of[self.random.integers(len(of))]

    def hostile(self, values: Any, inputs: bool = False) -> Any:
        """Now and then: constants, zeros, next to nothing, next to infinity, one sign."""
        kind = self.random.integers(16)
        factor = {0: 0.0, 1: 1e-40, 2: 1e15, 3: 1e-30}.get(int(kind), 1.0)
        where = values if inputs or kind % 2 else values[:1]
        where *= np.float32(factor)
        if kind == 4:
            values[:] = -0.25
        if kind == 5:
            np.abs(values, out=values)
        return values

    def weight(self, *shape: int) -> str:
        """A constant."""
        name = f"w{len(self.constants)}"
        self.constants[name] = self.hostile(self.random.normal(size=shape).astype(np.float32) * 0.5)
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """An operator's result."""
        self.nodes.append(helper.make_node(op, inputs, [f"t{len(self.nodes)}"], f"{op}{len(self.nodes)}", **attributes))
        return str(self.nodes[-1].output[0])

    def convolution(self, value: str, width: int, rank: int) -> tuple[str, int]:
        """Plain, grouped or depthwise; a shared weight; a branch."""
        kernel, groups = [self.one([1, 3])] * (rank - 1), self.one([1, 1, 2, width])
        made = width if groups > 1 else self.one([4, 8])
        given = [value, self.weight(made, width // groups, *kernel)]
        given += [self.weight(made)] if self.random.random() < 0.7 else []
        value = self.node("Conv", given, group=groups, pads=[kernel[0] // 2] * 2 * (rank - 1))
        form = self.random.integers(6)
        if form == 0:
            shared = self.weight(made, made, *[1] * (rank - 1))
            other = self.node("Conv", [value, shared])
            value = self.node("Add", [self.node("Conv", [other, shared]), other])
        elif form == 1:
            gate = self.node("Sigmoid", [self.node("GlobalAveragePool", [value])])
            value = self.node("Mul", [value, gate])
        elif form == 2:
            return self.node("Concat", [value, self.node("Relu", [value])], axis=1), 2 * made
        return value, made

    def product(self, value: str, width: int, rank: int) -> tuple[str, int]:
        """MatMul and Gemm in their forms: turned operands, factors, folded chains, a constant on the left, two activations."""
        form, made = self.random.integers(8), self.one([4, 8])
        if form == 0 and rank == 1:
            bias = self.weight(*self.one([[made], [1, made]]))
            return self.node("Gemm", [value, self.weight(made, width), bias], transB=1), made
        if form == 1 and rank == 1:
            turned, factors = self.node("Transpose", [value], perm=[1, 0]), {"alpha": 0.5, "beta": self.one([1.0, 2.0])}
            return self.node("Gemm", [turned, self.weight(width, made), self.weight(made)], transA=1, **factors), made
        if form == 2 and rank == 2:
            return self.node("MatMul", [self.weight(5, 5), value]), width
        if form == 3 and rank == 2:
            scores = self.node("MatMul", [value, self.node("Transpose", [value], perm=[0, 2, 1])])
            return self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value]), width
        if form == 4:
            return self.node("LayerNormalization", [value, self.weight(width), self.weight(width)], axis=-1), width
        weight = self.weight(width, made)
        if form == 5:
            half = self.weight(1)
            weight = self.node("Mul", [self.node("Transpose", [self.weight(made, width)], perm=[1, 0]), half])
        value = self.node("MatMul", [value, weight])
        return (self.node("Add", [value, self.weight(made)]) if form == 6 else value), made

    def function(self, value: str, width: int, rank: int) -> str:
        """An activation."""
        op = self.one(["Relu", "Relu", "Clip", "LeakyRelu", "Tanh", "HardSwish", "PRelu", "Softplus", "Swish", ""])
        if op == "Clip":
            bounds = [f"{value}_low", f"{value}_high"]
            self.constants |= {bounds[0]: np.zeros((), np.float32), bounds[1]: np.full((), 6, np.float32)}
            return self.node("Clip", [value, *bounds])
        if op == "PRelu":
            return self.node("PRelu", [value, self.weight(1)])
        if op == "Swish":
            return self.node("Mul", [value, self.node("Sigmoid", [value])])
        return self.node(op, [value]) if op else value


def random_plan(random: np.random.Generator) -> dict[str, Any]:
    """Any words that a plan knows, together."""

    def one(*of: Any) -> Any:
        return of[random.integers(len(of))]

    kinds = ("int8", "int8", "uint8", "int16", "float16", "bfloat16", "float32")
    mode = one("static", "static", "dynamic", "float")
    activations = {
        "dtype": one("uint8", "int8") if mode == "dynamic" else one("uint8", *kinds),
        "mode": mode,
        "observer": one("minmax", "percentile", "mse", "kl", "coordinate"),
        "granularity": one("tensor", "row") if mode == "dynamic" else "tensor",
        "symmetric": bool(random.random() < 0.4),
    }
    if mode == "dynamic":
        activations["symmetric"] = activations["dtype"] == "int8"
    weights = {
        "dtype": one("int8", "int8", "uint8", "int4", "uint4", "int2", "int3", "int6", "float16", "bfloat16"),
        "granularity": one("channel", "channel", "tensor", {"group": 4}, {"group": 8}),
        "symmetric": bool(random.random() < 0.75),
        "scale": one("minmax", "mse", "weighted", "seq-mse"),
        "rounding": one("nearest", "coordinate", "gptq"),
    }
    chances = {"equalize": (0.25, True), "smooth": (0.15, 0.5), "clip": (0.15, 3.0), "awq": (0.1, True)}
    transforms = {key: value for key, (chance, value) in chances.items() if random.random() < chance}
    if random.random() < 0.4:
        transforms["bias_correction"] = "empirical"
    return {
        "schema": 1,
        "dialect": one(*DIALECTS),
        "default": {"weights": weights, "activations": activations},
        "transforms": transforms,
    }


def quantized(graph: hwq.Graph, table: dict[str, Any], x: Any) -> tuple[hwq.Graph, Plan]:
    """The graph by the plan, without those words of it that are refused as having nothing to do."""
    cal = hwq.calibrate(graph, x, moments=True)
    while True:
        plan = Plan._checked(table, "random")
        try:
            return hwq.quantize(graph, plan, cal, x), plan
        except Error as error:
            useless = next((key for words, key in DROPPED.items() if words in error.what), None)
            if useless is not None:
                del table["transforms"][useless]
            elif "contradict" in error.what and table["dialect"] != "hwq":
                table["dialect"] = "hwq"
            else:
                raise


@pytest.mark.parametrize("block", range(8))
def test_random_plans_work_or_are_refused(block: int, tmp_path: Path) -> None:
    worked = 0
    for seed in range(16 * block, 16 * block + 16):
        random = np.random.default_rng(seed)
        network, table = Network(random), random_plan(random)
        onnx.save(network.model, tmp_path / "float.onnx")
        graph = hwq.load(tmp_path / "float.onnx")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                made, plan = quantized(graph, table, network.x)
                wanted, found = (np.asarray(hwq.execute(one, network.x)) for one in (graph, made))
                hwq.export(made, tmp_path / "made.onnx", overwrite=True)
            again = hwq.compile(hwq.load(tmp_path / "made.onnx"), dialect=plan.dialect)(network.x)
        except Error as error:
            assert error.what and "operands have different types" not in error.what, f"seed {seed}: {error}"
            continue
        worked += 1
        assert np.isfinite(found).all() or not np.isfinite(wanted).all(), f"seed {seed}: {table}"
        assert found.tobytes() == np.asarray(again).tobytes(), f"seed {seed}: {table}"
        _held_to_onnxruntime(seed, made, plan, tmp_path / "made.onnx", network.x, found)
        with contextlib.suppress(Error):  # a machine lacks many of these types
            assert hwq.estimate(made, "t4").seconds > 0.0
    assert worked >= 8


def _held_to_onnxruntime(seed: int, made: hwq.Graph, plan: Plan, path: Path, x: Any, found: Any) -> None:
    """The same bytes where nothing but integers and single elements is computed."""
    pytest.importorskip("onnxruntime")
    exact = plan.dialect == "ort" and plan.default.activations.mode == "static"
    lowered = hwq.lower(made, plan.dialect)
    islands = {
        node.op for node in lowered.nodes if all(lowered.tensors[name].dtype == "float32" for name in node.outputs)
    }
    if not exact or islands & {
        "Conv",
        "MatMul",
        "Gemm",
        "Softmax",
        "LayerNormalization",
        "Tanh",
        "Softplus",
        "Sigmoid",
    }:
        return
    if any(one.dtype in {"float16", "bfloat16"} for one in lowered.tensors.values()):
        return
    (other,) = run_onnxruntime(onnx.load(path), {"x": x}, optimize=True)
    assert found.tobytes() == other.tobytes(), f"seed {seed}: {plan.to_toml()}"
