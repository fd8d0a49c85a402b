"""What a report shows, as plain frozen records: the page, report.json and layers.csv are functions of these alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OFFCHIP",
    "Calibrated",
    "ComparedLayer",
    "Comparison",
    "Cost",
    "CostLayer",
    "Footprint",
    "Histogram",
    "MeasuredChange",
    "OutputEffect",
    "Planned",
    "Records",
    "SensitiveLayer",
    "Stepped",
    "SteppedLayer",
    "Unsupported",
    "memory_name",
]

Floats = NDArray[np.float64]

# Memories off the chip: DRAM, or where a microcontroller has none, the flash that holds its weights.
OFFCHIP = ("dram", "flash")


def memory_name(memory: str) -> str:
    """As the field writes it: DRAM, SRAM, L2, but flash and buffer."""
    return memory.upper() if memory in {"dram", "sram", "l2", "l1", "hbm"} else memory


@dataclass(frozen=True)
class Unsupported:
    """A precision that a machine lacks. May be given to `hwq.report` in place of the estimate that could not be made.

    Attributes
    ----------
    model, machine, precision : str
    why : str
        The reason, as the machine file or the model of it says.
    """

    model: str
    machine: str
    precision: str
    why: str


@dataclass(frozen=True)
class CostLayer:
    """One layer of an estimate.

    Attributes
    ----------
    name, op, precision, bound : str
    fused : tuple of str
        Operators done on the fly.
    key : str
        The tensor it makes, as its own graph calls it: how it meets the same layer on another machine.
    outputs : tuple of str
        The same and what is inside the group, as the float graph calls them: how it meets the layers of a comparison.
    seconds, utilization : float
        `utilization` is MACs done over MACs that fit, 0..1.
    macs : int
    dram_bytes, energy_picojoules : float
    """

    name: str
    op: str
    precision: str
    bound: str
    fused: tuple[str, ...]
    key: str
    outputs: tuple[str, ...]
    seconds: float
    macs: int
    dram_bytes: float
    energy_picojoules: float
    utilization: float


@dataclass(frozen=True)
class Cost:
    """One estimate: a model at a precision on a machine.

    Attributes
    ----------
    model, machine, family, precision, bound, validity : str
    batch : int
    seconds : float
    interval_seconds : (float, float) or None
        Where residuals against published numbers allow one.
    macs, cycles : int or None
    utilization : float
    traffic_bytes : mapping memory -> operand -> bytes
    energy_picojoules : mapping component -> picojoules
    energy_interval_picojoules : (float, float) or None
    peaks : mapping precision -> MAC/s
    bandwidth : float or None
        Of the memory off the chip, bytes/s.
    offchip : str
        That memory's name, one of `OFFCHIP`.
    layers : tuple of CostLayer
    confidence : mapping confidence -> how many of the machine's numbers
    notes : tuple of str
        What was assumed for this model on this machine.
    hashes : mapping
    """

    model: str
    machine: str
    family: str
    precision: str
    batch: int
    seconds: float
    interval_seconds: tuple[float, float] | None
    macs: int
    cycles: float | None
    utilization: float
    bound: str
    validity: str
    traffic_bytes: Mapping[str, Mapping[str, float]]
    energy_picojoules: Mapping[str, float]
    energy_interval_picojoules: tuple[float, float] | None
    peaks: Mapping[str, float]
    bandwidth: float | None
    offchip: str
    layers: tuple[CostLayer, ...]
    confidence: Mapping[str, int]
    notes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def dram_bytes(self) -> float:
        """Bytes to and from the memory off the chip."""
        return float(
            sum(sum(operands.values()) for memory, operands in self.traffic_bytes.items() if memory in OFFCHIP)
        )

    @property
    def total_picojoules(self) -> float:
        """Energy of one run of the batch."""
        return float(sum(self.energy_picojoules.values()))

    @property
    def inferences_per_second(self) -> float:
        """Batch over seconds."""
        return self.batch / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class ComparedLayer:
    """One layer of a comparison: the quantized tensor against the float one; see `hwq.comparison.LayerComparison`."""

    name: str
    op: str
    outputs: tuple[str, ...]
    sqnr_db: float
    cosine: float
    max_lsb: float | None
    saturation_share: float = 0.0
    underflow_share: float = 0.0
    headroom_bits: float | None = None
    weights_only_db: float | None = None
    activations_only_db: float | None = None
    channel_bits: tuple[float, ...] = ()
    weight_bits: tuple[float, ...] = ()
    dtype: str = ""
    range_db: float | None = None


@dataclass(frozen=True)
class OutputEffect:
    """What the network's output loses against float's: SQNR in dB, KL in nats, agreement 0..1."""

    sqnr_db: float
    kl_nats: float
    agreement: float


@dataclass(frozen=True)
class SensitiveLayer:
    """A layer quantized alone, and alone in float; None where that cannot be run."""

    name: str
    op: str
    only: OutputEffect | None
    without: OutputEffect | None


@dataclass(frozen=True)
class MeasuredChange:
    """A change that was executed, and the plan rules that make it."""

    what: str
    rule: str
    layer: str
    gain_db: float
    before: OutputEffect
    after: OutputEffect
    together: OutputEffect | None


@dataclass(frozen=True)
class Comparison:
    """Float against quantized, over a set of inputs.

    Attributes
    ----------
    model : str
    samples : int
    agreement, kl_nats, accuracy_float, accuracy_quantized, mcnemar_p : float or None
        Shares are 0..1.
    gained, lost : int or None
        Inputs that only the quantized, only the float model gets right.
    layers : tuple of ComparedLayer
    hashes : mapping
        What was run: graph, plan, calibration, dialect, kernel path, as far as they are known.
    sqnr_db : float or None
        Of the first output.
    analysed : int
        Samples behind the split of the error, the sensitivities and the changes.
    sensitivities : tuple of SensitiveLayer
    changes : tuple of MeasuredChange
        The largest gain first.
    ranges : tuple of (tensor, words)
        Stored ranges that cost more than they save, and what no range covers.
    """

    model: str
    samples: int
    agreement: float | None
    kl_nats: float | None
    accuracy_float: float | None
    accuracy_quantized: float | None
    mcnemar_p: float | None
    gained: int | None
    lost: int | None
    layers: tuple[ComparedLayer, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)
    sqnr_db: float | None = None
    analysed: int = 0
    sensitivities: tuple[SensitiveLayer, ...] = ()
    changes: tuple[MeasuredChange, ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Histogram:
    """How the values of one tensor are spread, and where quantization clips them.

    Attributes
    ----------
    tensor, kind : str
        `kind` is ``activation`` or ``weight``.
    edges : ndarray, shape (bins + 1,)
    counts : ndarray, shape (bins,)
    clip : (float, float) or None
        Lowest and highest value that the stored type can stand for, in the unit of `edges`.
    clipped_share : float
        Share of the values that lie more than half a step beyond, 0..1.
    dtype : str
        The stored type, or ``""``.
    """

    tensor: str
    kind: str
    edges: Floats
    counts: Floats
    clip: tuple[float, float] | None
    clipped_share: float
    dtype: str


@dataclass(frozen=True)
class Footprint:
    """What a graph's parameters take.

    Attributes
    ----------
    model, form, precision, dialect, hash : str
        `precision` lists the stored types of the parameters, the largest share first.
    nodes, parameters, parameter_bytes : int
    """

    model: str
    form: str
    precision: str
    nodes: int
    parameters: int
    parameter_bytes: int
    dialect: str
    hash: str


@dataclass(frozen=True)
class Calibrated:
    """What a calibration was made of, in a sentence."""

    summary: str
    samples: int
    tensors: int
    hash: str


@dataclass(frozen=True)
class Planned:
    """A plan as its TOML text."""

    text: str
    hash: str


@dataclass(frozen=True)
class SteppedLayer:
    """One layer's products on a stepped array.

    Attributes
    ----------
    name, op : str
    m, k, n, products, cycles, macs : int
        Shape of the first product; how many ran; their cycles and MACs together.
    utilization : float
        0 to 1.
    occupancy : ndarray (down, across)
        Share of the cycles in which PEs worked, 0 to 1; a cell is one PE, or the mean of a block of a large array.
    timeline : ndarray (down, spans)
        Share of a row's PEs that worked, over the `timeline_cycles` of the first product.
    timeline_cycles : int
    """

    name: str
    op: str
    m: int
    k: int
    n: int
    products: int
    cycles: int
    macs: int
    utilization: float
    occupancy: Floats
    timeline: Floats
    timeline_cycles: int


@dataclass(frozen=True)
class Stepped:
    """A model's products on a stepped array of `rows` x `cols` PEs."""

    model: str
    array: str
    rows: int
    cols: int
    samples: int
    cycles: int
    macs: int
    utilization: float
    layers: tuple[SteppedLayer, ...]


@dataclass(frozen=True)
class DriftLayer:
    """One value of a run beside another runtime's: elements, how many differ, how many by this layer alone, by how much."""

    layer: str
    op: str
    tensor: str
    elements: int
    differing: int
    own: int
    largest: float


@dataclass(frozen=True)
class Drift:
    """A run against another runtime's values; `first` is the layer where they part, `rule` what explains it."""

    model: str
    dialect: str
    against: str
    first: str
    rule: str
    detail: str
    layers: tuple[DriftLayer, ...]


@dataclass(frozen=True)
class Records:
    """Everything on the page, in the order given."""

    costs: tuple[Cost, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    plans: tuple[Planned, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()
    calibrations: tuple[Calibrated, ...] = ()
    stepped: tuple[Stepped, ...] = ()
    drifts: tuple[Drift, ...] = ()
