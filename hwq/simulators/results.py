"""Estimate: what a model costs on a machine, layer by layer, with its terms, traffic, energy and validity."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from hwq.files import PathLike, write_atomically
from hwq.graph import Graph
from hwq.names import csv_cell, display_name
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.validity import interval_factors

__all__ = ["SCHEMA_VERSION", "Estimate", "LayerEstimate"]

# Of `Estimate.to_dict`.
SCHEMA_VERSION = 1

Column = NDArray[Any]

# Memories outside the chip.
OFF_CHIP = ("dram", "flash")


@dataclass(frozen=True)
class LayerEstimate:
    """One kernel (a node of the lowered graph) on one machine, for the whole batch.

    Attributes
    ----------
    name, op, kind, precision : str
        As in `hwq.work.Work`.
    fused : tuple of str
        Operators done on the fly.
    seconds : float
    cycles : int
        Of the machine's sustained clock, rounded up.
    macs : int
    terms : mapping of str to float
        Seconds; they add up to `seconds`.
    traffic : mapping of memory to mapping of operand to int
        Bytes through the memory's port.
    energy : mapping of component to float
        pJ, typical.
    mac_utilization : float
        MACs over what the peak allows in `seconds`, 0 to 1; 0 without MACs.
    bound : str
        What the layer waits for.
    """

    name: str
    op: str
    kind: str
    precision: str
    fused: tuple[str, ...]
    seconds: float
    cycles: int
    macs: int
    terms: Mapping[str, float]
    traffic: Mapping[str, Mapping[str, int]]
    energy: Mapping[str, float]
    mac_utilization: float
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "op": self.op,
            "kind": self.kind,
            "precision": self.precision,
            "fused": list(self.fused),
            "seconds": self.seconds,
            "cycles": self.cycles,
            "macs": self.macs,
            "mac_utilization": self.mac_utilization,
            "bound": self.bound,
            "terms_seconds": dict(self.terms),
            "traffic_bytes": {memory: dict(parts) for memory, parts in self.traffic.items()},
            "energy_picojoules": dict(self.energy),
        }


@dataclass(frozen=True, eq=False)
class Estimate:
    """The cost of one inference run of `batch` samples.

    Attributes
    ----------
    machine : Accelerator
    graph : Graph
        Lowered; its nodes are the layers.
    batch : int
    table : mapping of str to array
        One entry a layer: ``seconds``, ``cycles``, ``macs``, ``utilization``, ``bound``, ``term.*``, ``traffic.*``,
        ``energy.COMPONENT.BAND``, and the texts of Work.
    notes : tuple of str
        What was assumed for this model on this machine.
    provenance : mapping
        ``graph`` (the graph that was given), ``plan`` (hash or None).
    """

    machine: Accelerator
    graph: Graph = field(repr=False)
    batch: int
    table: Mapping[str, Column] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def seconds(self) -> float:
        """Seconds for the whole batch."""
        return float(self.table["seconds"].sum())

    @cached_property
    def cycles(self) -> int:
        """Cycles of the sustained clock, each layer's rounded up."""
        return int(self.table["cycles"].sum())

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch, never doubled."""
        return int(self.table["macs"].sum())

    @property
    def inferences_per_second(self) -> float:
        """Samples per second, batches one after another."""
        return self.batch / self.seconds if self.seconds else float("inf")

    @cached_property
    def mac_utilization(self) -> float:
        """Time at the peak MAC rate of each layer's precision over the time taken, 0 to 1."""
        ideal = float((self.table["utilization"] * self.table["seconds"]).sum())
        return ideal / self.seconds if self.seconds else 0.0

    @cached_property
    def terms(self) -> dict[str, float]:
        """Seconds by term (compute, fill, drain, stall, launch, ...)."""
        return {name: float(self.table[f"term.{name}"].sum()) for name in self._keys("term")}

    @cached_property
    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes by memory and operand."""
        return _nested({name: int(self.table[f"traffic.{name}"].sum()) for name in self._keys("traffic")})

    @property
    def off_chip_bytes(self) -> int:
        """Bytes that cross the chip's edge to DRAM or flash."""
        return sum(sum(operands.values()) for memory, operands in self.traffic.items() if memory in OFF_CHIP)

    @cached_property
    def energy(self) -> dict[str, float]:
        """pJ by component, typical."""
        return {name: band[1] for name, band in self.energy_bands.items()}

    @cached_property
    def energy_bands(self) -> dict[str, tuple[float, float, float]]:
        """pJ by component: low, typical, high (off-chip memories differ, the others have one value)."""
        names = dict.fromkeys(key.split(".")[1] for key in self.table if key.startswith("energy."))
        bands = ("low", "typical", "high")
        return {name: tuple(float(self.table[f"energy.{name}.{band}"].sum()) for band in bands) for name in names}  # type: ignore[misc]

    @property
    def picojoules(self) -> float:
        """Energy of the whole batch, typical."""
        return sum(self.energy.values())

    @property
    def picojoules_band(self) -> tuple[float, float]:
        """Lowest and highest energy of the whole batch."""
        return sum(band[0] for band in self.energy_bands.values()), sum(band[2] for band in self.energy_bands.values())

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Share of the time that layers of each bound take, largest first."""
        shares: dict[str, float] = {}
        for bound, seconds in zip(self.table["bound"], self.table["seconds"], strict=True):
            if seconds:
                shares[str(bound)] = shares.get(str(bound), 0.0) + float(seconds)
        return {name: share / self.seconds for name, share in sorted(shares.items(), key=lambda item: -item[1])}

    @property
    def bound(self) -> str:
        """What the layers that take most of the time wait for."""
        return next(iter(self.bounds), "none")

    @property
    def validity(self) -> str:
        """What estimates of this machine were compared with, or "not validated"."""
        return self.machine.validity

    def interval(self, level: float = 0.9) -> tuple[float, float] | None:
        """Seconds between which `level` of the measurements of this machine would lie; None where it is not validated.

        From the machine's table of residuals (measured over estimated); see `hwq.simulators.validity`.
        """
        factors = interval_factors(self.machine, level)
        return None if factors is None else (self.seconds * factors[0], self.seconds * factors[1])

    @cached_property
    def layers(self) -> tuple[LayerEstimate, ...]:
        """One record a layer, in order of execution."""
        table = self.table
        terms = {name: table[f"term.{name}"].tolist() for name in self._keys("term")}
        traffic = {name: table[f"traffic.{name}"].tolist() for name in self._keys("traffic")}
        energy = {name: table[f"energy.{name}.typical"].tolist() for name in self.energy}
        names = ("name", "op", "kind", "precision", "fused", "seconds", "cycles", "macs", "utilization", "bound")
        rows = zip(*(table[name].tolist() for name in names), strict=True)
        return tuple(
            LayerEstimate(
                name,
                op,
                kind,
                precision,
                fused,
                seconds,
                cycles,
                macs,
                {key: values[index] for key, values in terms.items()},
                _nested({key: values[index] for key, values in traffic.items()}),
                {key: values[index] for key, values in energy.items()},
                utilization,
                bound,
            )
            for index, (name, op, kind, precision, fused, seconds, cycles, macs, utilization, bound) in enumerate(rows)
        )

    @cached_property
    def hashes(self) -> dict[str, str | None]:
        """Hashes of the graph that was given, the plan and the machine; the version of hwq."""
        from hwq import __version__

        given: Graph = self.provenance.get("graph", self.graph)
        return {
            "graph": given.hash,
            "plan": self.provenance.get("plan"),
            "machine": self.machine.hash,
            "version": __version__,
        }

    def _keys(self, group: str) -> list[str]:
        return [key.removeprefix(f"{group}.") for key in self.table if key.startswith(f"{group}.")]

    def to_dict(self, layers: bool = True) -> dict[str, Any]:
        """Plain values for JSON; units stand in the keys."""
        interval = self.interval()
        record: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "model": display_name(self.graph.name),
            "machine": self.machine.name,
            "family": self.machine.family,
            "batch": self.batch,
            "seconds": self.seconds,
            "cycles": self.cycles,
            "macs": self.macs,
            "inferences_per_second": self.inferences_per_second if self.seconds else None,
            "mac_utilization": self.mac_utilization,
            "bound": self.bound,
            "bounds": self.bounds,
            "terms_seconds": self.terms,
            "traffic_bytes": self.traffic,
            "energy_picojoules": self.energy,
            "energy_picojoules_bands": {k: list(v) for k, v in self.energy_bands.items()},
            "validity": self.validity,
            "interval_seconds": None if interval is None else list(interval),
            "confidences": dict(self.machine.confidences),
            "notes": list(self.notes),
            "hashes": self.hashes,
        }
        if layers:
            record["layers"] = [layer.to_dict() for layer in self.layers]
        return record

    def to_json(self, path: PathLike | None = None, *, overwrite: bool = False) -> str:
        """`to_dict` as JSON text, written to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        return _written(text, path, overwrite)

    def to_csv(self, path: PathLike | None = None, *, overwrite: bool = False) -> str:
        """One line a layer, units in the heads, written to `path` if one is given."""
        terms, traffic, energy = self._keys("term"), self._keys("traffic"), list(self.energy)
        heads = ["name", "op", "kind", "precision", "fused", "bound", "seconds", "cycles", "macs", "mac_utilization"]
        heads += [f"{name}_seconds" for name in terms] + [f"{name.replace('.', '_')}_bytes" for name in traffic]
        heads += [f"{name}_picojoules" for name in energy]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(heads)
        columns = [
            self.table[key].tolist()
            for key in ("name", "op", "kind", "precision", "fused", "bound", "seconds", "cycles", "macs", "utilization")
        ]
        columns += [self.table[f"term.{name}"].tolist() for name in terms]
        columns += [self.table[f"traffic.{name}"].tolist() for name in traffic]
        columns += [self.table[f"energy.{name}.typical"].tolist() for name in energy]
        for row in zip(*columns, strict=True):
            writer.writerow([csv_cell("+".join(cell) if isinstance(cell, tuple) else cell) for cell in row])
        return _written(stream.getvalue(), path, overwrite)

    def __str__(self) -> str:
        return (
            f"{display_name(self.graph.name)} on {self.machine.name}, batch {self.batch}: {self.seconds * 1e3:.4g} ms, "
            f"{self.inferences_per_second:.4g} inferences/s, {self.picojoules * 1e-9:.4g} mJ, MAC utilization "
            f"{self.mac_utilization:.1%}, bound by {self.bound}; {self.validity}"
        )


def _nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        memory, operand = key.split(".")
        table.setdefault(memory, {})[operand] = value
    return table


def _written(text: str, path: PathLike | None, overwrite: bool) -> str:
    if path is not None:
        with write_atomically(path, overwrite=overwrite, mode="w") as stream:
            stream.write(text)
    return text
