"""What a machine file of each family must and may say: one row a number, with its dimension."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwq.errors import Error
from hwq.simulators.quantity import Quantity, read_quantity

__all__ = [
    "CHOICES",
    "DEFAULTS",
    "FAMILIES",
    "LEVELS",
    "RATES",
    "TILE",
    "Field",
    "find_field",
    "read_number",
    "read_word",
]

# Key of a GPU kernel's tile: rows x columns of the result.
TILE = re.compile(r"tiles\.([1-9]\d{0,3})x([1-9]\d{0,3})")

# Where an operator may run.
LEVELS = ("native", "host", "unsupported")


@dataclass(frozen=True)
class Field:
    """One number of a machine file.

    Attributes
    ----------
    dimension : str
        What it measures, as in `hwq.simulators.quantity.UNITS`.
    required : bool
    whole : bool
        It counts things.
    maximum : float or None
        In the base unit (a fraction is at most 1).
    about : str
        What it means.
    """

    dimension: str
    about: str
    required: bool = True
    whole: bool = False
    maximum: float | None = None


def _optional(dimension: str, about: str, *, whole: bool = False, maximum: float | None = None) -> Field:
    return Field(dimension, about, required=False, whole=whole, maximum=maximum)


_COMMON: dict[str, Field] = {
    "clock": Field("frequency", "core clock"),
    "clock_share": _optional("fraction", "sustained over nominal clock (power limit); absent: 1", maximum=1.0),
    "dram.bandwidth": _optional("bandwidth", "peak DRAM bandwidth"),
    "dram.efficiency": _optional("fraction", "reachable share of the peak; absent: 1", maximum=1.0),
    "dram.capacity": _optional("data", "DRAM size"),
    "dram.burst": _optional("data", "one DRAM burst: transfers are whole ones; absent: 1 byte", whole=True),
    "host.bandwidth": _optional(
        "bandwidth", "link between host and accelerator: the model's inputs and outputs cross it"
    ),
    "host.rate": _optional("operations per second", "scalar operations of the host CPU on operators that fall to it"),
    "host.latency": _optional("time", "handing one operator to the host and back"),
    "energy.node": Field("node", "process node of the chip"),
    "energy.static_power": _optional("power", "leakage and clock power, times time; absent: static energy is left out"),
}

_SYSTOLIC: dict[str, Field] = {
    "array.rows": Field("count", "rows R of processing elements", whole=True),
    "array.cols": Field("count", "columns C of processing elements", whole=True),
    "array.multiplier": Field("width", "operand width of one multiplier; wider operands take more passes", whole=True),
    "buffer.capacity": Field("data", "on-chip activation buffer"),
    "buffer.bandwidth": Field("data per cycle", "buffer port"),
    "accumulators.capacity": _optional("data", "accumulator memory below the array; absent: unbounded"),
    "vector.lanes": Field("operations per cycle", "scalar operations per cycle of the activation and pooling unit"),
}

_GPU: dict[str, Field] = {
    "sm.count": Field("count", "streaming multiprocessors", whole=True),
    "sm.vector": Field(
        "operations per cycle", "scalar operations per cycle and multiprocessor outside the matrix units"
    ),
    "l2.capacity": Field("data", "L2 cache"),
    "l2.share": Field("fraction", "share of L2 that operands can count on", maximum=1.0),
    "l2.bandwidth": Field("bandwidth", "L2 to multiprocessors, read"),
    "alignment": Field("data", "channel vector of the packed tensor layouts", whole=True),
    "launch": Field("time", "one kernel: launch, ramp and tail"),
}

_NPU: dict[str, Field] = {
    "microblock.height": Field("count", "output rows computed at once", whole=True),
    "microblock.width": Field("count", "output columns computed at once", whole=True),
    "microblock.depth": Field("count", "output channels computed at once", whole=True),
    "sram.capacity": Field("data", "SRAM for activations"),
    "sram.bandwidth": Field("data per cycle", "SRAM port"),
    "flash.bandwidth": Field("data per cycle", "memory that holds the weights"),
    "weights.encoded": Field("fraction", "encoded over raw weight bytes", maximum=1.0),
    "output.conv": Field("cycles per element", "output unit: convolution, dense layer, average pool"),
    "output.maxpool": Field("cycles per element", "output unit: max pool"),
    "output.add": Field("cycles per element", "output unit: add and subtract with rescaling"),
    "output.multiply": Field("cycles per element", "output unit: multiply"),
    "activation.table": Field("cycles per element", "table lookup: sigmoid, tanh and the like"),
    "activation.clamp": Field("cycles per element", "relu family"),
}

_CPU: dict[str, Field] = {
    "cores": Field("count", "cores used", whole=True),
    "core.vector": Field("operations per cycle", "float32 vector operations per cycle and core"),
    "core.efficiency": Field("fraction", "share of the peak that a blocked GEMM reaches", maximum=1.0),
    "cache.capacity": Field("data", "last-level cache"),
    "cache.bandwidth": Field("bandwidth", "last-level cache to the cores"),
    "overhead": Field("time", "one operator: dispatch and thread barrier"),
}

_SPATIAL: dict[str, Field] = {
    "array.rows": Field("count", "rows of processing elements", whole=True),
    "array.cols": Field("count", "columns of processing elements", whole=True),
    "spad.input": Field("count", "input words that a PE keeps", whole=True),
    "spad.filter": Field("count", "weights that a PE keeps", whole=True),
    "spad.sum": Field("count", "partial sums that a PE keeps", whole=True),
    "spad.capacity": Field("data", "scratchpads of one PE together"),
    "buffer.capacity": Field("data", "global buffer for feature maps and partial sums"),
    "buffer.sum": Field("width", "one partial sum in the global buffer", whole=True),
    "vector.lanes": Field("operations per cycle", "scalar operations per cycle on results"),
    "dram.compression": _optional("ratio", "uncompressed over compressed DRAM bytes; absent: 1"),
}

FAMILIES: Mapping[str, Mapping[str, Field]] = {
    "systolic": _COMMON | _SYSTOLIC,
    "gpu": _COMMON | _GPU,
    "npu": _COMMON | _NPU,
    "cpu": _COMMON | _CPU,
    "spatial": _COMMON | _SPATIAL,
}

# Words, where a machine chooses among ways to work.
CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "systolic": {
        "array.dataflow": ("ws", "os", "is"),
        "array.overlap": ("none", "stationary", "folds"),
        "array.depthwise": ("block-diagonal", "group-by-group"),
        "buffer.weights": ("tiles", "stream"),
        "dram.kind": ("DDR3", "DDR4", "LPDDR4", "GDDR6", "HBM2"),
    },
    "gpu": {"dram.kind": ("DDR3", "DDR4", "LPDDR4", "GDDR6", "HBM2")},
    "npu": {"flash.kind": ("flash", "DDR3", "DDR4", "LPDDR4")},
    "cpu": {"dram.kind": ("DDR3", "DDR4", "LPDDR4", "GDDR6", "HBM2")},
    "spatial": {"dram.kind": ("DDR3", "DDR4", "LPDDR4", "GDDR6", "HBM2")},
}

# What a machine file need not choose.
DEFAULTS: Mapping[str, Mapping[str, str]] = {"systolic": {"buffer.weights": "tiles"}}

# Dimension of a precision's rate: relative to int8 where the array fixes the peak, else MACs per cycle and SM or core.
RATES: Mapping[str, str] = {
    "systolic": "relative rate",
    "npu": "relative rate",
    "spatial": "relative rate",
    "gpu": "MACs per cycle",
    "cpu": "MACs per cycle",
}


def find_field(family: str, key: str) -> Field | None:
    """What the family says of a dotted key, or None where it knows no such number."""
    if family == "gpu" and TILE.fullmatch(key):
        return Field("fraction", "share of the SM's peak that this tile reaches", maximum=1.0)
    return FAMILIES[family].get(key)


def read_number(record: Any, spec: Field, where: str) -> Quantity:
    """`read_quantity`, and the field's own bounds.

    Raises
    ------
    Error
        As `read_quantity`; a count that is not whole; more than the field's maximum.
    """
    number = read_quantity(record, spec.dimension, where)
    if spec.whole and number.si != int(number.si):
        raise Error(f"this counts things, {number.value:g} {number.unit} is not whole", where=where)
    if spec.maximum is not None and number.si > spec.maximum:
        raise Error(f"{number.value:g} {number.unit} is more than {spec.maximum:g}", where=where, why=spec.about)
    return number


def read_word(family: str, key: str, value: Any, where: str) -> str:
    """One of the words that the family allows under `key`.

    Raises
    ------
    Error
        It is none of them.
    """
    allowed = CHOICES[family].get(key, ())
    if not isinstance(value, str) or value not in allowed:
        raise Error(f"unknown choice {value!r}", where=where, remedy=f"one of: {', '.join(allowed) or 'nothing here'}")
    return value
