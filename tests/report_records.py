"""Records and a graph for the tests of reports: numbers worked by hand, names as hostile as files have them."""

from __future__ import annotations

import math

import numpy as np

from hwq.graph import Graph, Node, Tensor
from hwq.reporting.records import (
    Calibrated,
    ComparedLayer,
    Comparison,
    Cost,
    CostLayer,
    Footprint,
    Histogram,
    MeasuredChange,
    OutputEffect,
    Planned,
    Records,
    SensitiveLayer,
    Unsupported,
)

HOSTILE = [
    "<script>alert(1)</script>",
    r"$\frac{1$",
    "=1+1",
    "conv[/a]",
    "\x1b[31mred\x1b[0m",
    "‮rtl",
    "url(#x)",
    "#0100fe",
    "y" * 1_000_000,
    '" onload="x',
]
PLAIN = ["stem/conv", "block/depthwise", "block/pointwise", "pool", "head/dense"]
# name, macs, bytes, seconds: 2 MAC/byte and 1 GMAC/s for the first, worked by hand.
NUMBERS = [
    (1_000, 500.0, 1e-6),
    (40_000, 1_000.0, 4e-6),
    (90_000, 0.0, 3e-6),
    (0, 2_000.0, 1e-6),
    (5_000, 5_000.0, 1e-6),
]


def cost(
    names: list[str], machine: str = "array", precision: str = "int8", model: str = "net", **changes: object
) -> Cost:
    numbers = [NUMBERS[index % len(NUMBERS)] for index in range(len(names))]
    layers = tuple(
        CostLayer(
            name,
            "Conv",
            precision,
            "compute",
            ("Relu",),
            f"{name}_quantized",
            (name,),
            seconds,
            macs,
            moved,
            10.0 * macs + moved,
            0.25,
        )
        for name, (macs, moved, seconds) in zip(names, numbers, strict=True)
    )
    total = sum(layer.seconds for layer in layers)
    moved = sum(layer.dram_bytes for layer in layers)
    macs = sum(layer.macs for layer in layers)
    values: dict[str, object] = {
        "model": model,
        "machine": machine,
        "family": "systolic",
        "precision": precision,
        "batch": 1,
        "seconds": total,
        "interval_seconds": (0.5 * total, 2 * total),
        "macs": macs,
        "cycles": 100,
        "utilization": 0.25,
        "bound": "compute",
        "validity": "not validated",
        "traffic_bytes": {"dram": {"weight": 0.75 * moved, "input": 0.25 * moved}, "buffer": {"sum": 3 * moved}},
        "energy_picojoules": {"mac": 10.0 * macs, "dram": 20.0 * moved, "static": 1e5},
        "energy_interval_picojoules": (5.0 * macs, 40.0 * moved + 1e6),
        "peaks": {precision: 1e11},
        "bandwidth": 1e9,
        "offchip": "dram",
        "layers": layers,
        "confidence": {"read": 1, "recalled": 4, "assumed": 2, "fitted": 0},
        "notes": ("static energy is left out",),
        "hashes": {"graph": "a" * 64, "plan": "b" * 64, "machine": "c" * 64},
    }
    return Cost(**(values | changes))  # type: ignore[arg-type]


def comparison(names: list[str], model: str = "net") -> Comparison:
    levels = [30.0, 12.5, math.inf, 41.0, 22.0]
    layers = tuple(
        ComparedLayer(
            name, "Conv", (name,), levels[i % len(levels)], 0.999, 2.0, 0.01 * i, 0.02, 12.5, 31.0, math.inf, (7.0, 2.5, 0.0),
            tuple(i % 7.0 for i in range(200)), "int8")
        for i, name in enumerate(names)
    )  # fmt: skip
    before, after = OutputEffect(22.0, 0.01, 0.98), OutputEffect(math.inf, 0.0, 1.0)
    return Comparison(
        model, 500, 0.99, 0.0012, 0.98, 0.976, 0.6, 3, 5, layers, {"graph": "a" * 64}, 22.0, 64,
        tuple(SensitiveLayer(name, "Conv", after, before if i % 2 else None) for i, name in enumerate(names)),
        tuple(MeasuredChange(f"weights of {name}: int8", f"[[layers]]\n# {name}", name, 4.1, before, after, after) for name in names),
    )  # fmt: skip


def records(names: list[str], model: str = "net") -> Records:
    counts, edges = np.histogram(np.random.default_rng(0).normal(size=5000), 60)
    histograms = tuple(
        Histogram(name, kind, edges, counts.astype(np.float64), (-1.5, 2.5), 0.07, "int8")
        for name, kind in zip(names, ("activation", "weight", "activation"), strict=False)
    )
    costs = [cost(names, machine, model=model) for machine in ("array", "chip")]
    costs += [cost(names[:2], "chip", precision, f"{model} two") for precision in ("float16", "int8")]
    return Records(
        costs=tuple(costs),
        comparisons=(comparison(names, model),),
        histograms=histograms,
        footprints=(Footprint(model, "source", "float32", 5, 1000, 4000, "ort", "d" * 64),),
        plans=(Planned('schema = 1\n# <b> & "x"', "e" * 64),),
        unsupported=(Unsupported(f"{model} two", "array", "float16", "integers only <b>"),),
        calibrations=(Calibrated("3 samples", 3, 5, "f" * 64),),
    )


def small() -> Graph:
    """relu(x * W) with x of 4 and W of 4 x 2."""
    weights = np.array([[1.0, 0.02], [-0.5, 0.004], [0.25, -0.02], [0.1, 0.01]], np.float32)
    nodes = [Node("MatMul", "dense", ("x", "w"), ("y",)), Node("Relu", "relu", ("y",), ("z",))]
    tensors = [
        Tensor("x", shape=("N", 4)),
        Tensor("w", shape=(4, 2), data=weights),
        Tensor("y", shape=("N", 2)),
        Tensor("z", shape=("N", 2)),
    ]
    return Graph(nodes, tensors, ["x"], ["z"], name="small")
