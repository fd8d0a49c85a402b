"""CPUs as a roofline with an overhead: MACs at a blocked kernel's share of the peak against cache and DRAM.

    t = overhead + max(MACs / (cores rate efficiency f), operations / (cores vector f), cache bytes / bandwidth,
                       DRAM bytes / (bandwidth efficiency))

Instruction fetch, decode and register files take most of a CPU's energy and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.simulators.accelerator import Accelerator
from hwq.simulators.memory import offchip_bytes, stripe_passes

__all__ = ["HOST_MEMORY", "MEMORIES", "TERMS", "evaluate", "notes", "parameters"]

Column = NDArray[Any]

TERMS = ("launch", "compute", "vector", "cache", "stall")

HOST_MEMORY = "dram"

MEMORIES: Mapping[str, tuple[str, str]] = {"dram": ("offchip", "dram.kind"), "cache": ("sram", "cache.capacity")}


def parameters(machine: Accelerator) -> dict[str, Any]:
    """What `evaluate` reads of a machine: numbers in base units; any of them may become an array."""
    return {
        "cores": machine.value("cores"),
        "vector": machine.value("core.vector"),
        "efficiency": machine.value("core.efficiency"),
        "clock": machine.clock,
        "cache": machine.value("cache.capacity"),
        "cache_bandwidth": machine.value("cache.bandwidth"),
        "dram": machine.value("dram.bandwidth") * machine.value("dram.efficiency", 1.0),
        "overhead": machine.value("overhead"),
    }


def evaluate(columns: Mapping[str, Column], given: Mapping[str, Any]) -> dict[str, Column]:
    """Cost of every layer on every configuration; arguments and result as `hwq.simulators.systolic.evaluate`."""
    crossing = offchip_bytes(columns, given["cache"])
    half = given["cache"] / 2
    far = (columns["input_live"] > given["cache"]) & (columns["macs"] > 0)
    first = crossing["input"] * stripe_passes(columns, "weight", half) + crossing["weight"]
    second = crossing["input"] + crossing["weight"] * stripe_passes(columns, "input", half)
    keep_weights = far & (first < second)
    dram = {
        "input": np.where(keep_weights, first - crossing["weight"], crossing["input"]),
        "weight": np.where(far & ~keep_weights, second - crossing["input"], crossing["weight"]),
        "other": crossing["other"],
        "output": crossing["output"],
        "bias": columns["bias_bytes"] + 0 * crossing["input"],
        "scale": columns["scale_bytes"] + columns["table_bytes"] + 0 * crossing["input"],
    }
    cache = {name: columns[f"{name}_bytes"] + crossing[name] for name in ("input", "weight", "other", "output")}
    dram_seconds = sum(dram.values()) / given["dram"]
    cache_seconds = sum(cache.values()) / given["cache_bandwidth"]
    compute = columns["macs"] / (given["cores"] * columns["rate"] * given["efficiency"] * given["clock"])
    scalar = columns["vector_operations"] + columns["epilogue_operations"] + columns["zero_point_operations"]
    vector = scalar / (given["cores"] * given["vector"] * given["clock"])
    # One core does both, one after the other.
    busy = compute + vector
    body = np.maximum(busy, np.maximum(cache_seconds, dram_seconds))
    by_dram = (dram_seconds > busy) & (dram_seconds >= cache_seconds)
    by_cache = (cache_seconds > busy) & ~by_dram
    seconds = given["overhead"] + body
    terms = {
        "launch": given["overhead"] + 0 * body,
        "compute": compute + 0 * body,
        "vector": vector + 0 * body,
        "cache": np.where(by_cache, body - busy, 0),
        "stall": np.where(by_dram, body - busy, 0),
    }
    bound = np.where(by_dram, "dram", np.where(by_cache, "cache", np.where(compute >= vector, "compute", "vector")))
    bound = np.where(given["overhead"] > body, "launch", bound)
    result = {
        "cycles": np.ceil(seconds * given["clock"]).astype(np.int64),
        "seconds": seconds,
        "bound": bound.astype(object),
    }
    result |= {f"term.{name}": values for name, values in terms.items()}
    result |= {f"traffic.dram.{name}": values for name, values in dram.items()}
    return result | {f"traffic.cache.{name}": values for name, values in cache.items()}


def notes(columns: Mapping[str, Column], given: Mapping[str, Any]) -> list[str]:
    """What an estimate on a CPU must say about itself."""
    return ["instruction fetch, decode and registers take most of a CPU's energy and are not counted"]
