"""From a graph and a plan to an Estimate: shapes, lowering, Work, the family's columns, energy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.files import PathLike
from hwq.graph import Graph, Node
from hwq.names import display_name
from hwq.simulators import energy
from hwq.simulators.accelerator import Accelerator
from hwq.simulators.catalogue import find
from hwq.simulators.memory import place
from hwq.simulators.results import Estimate, LayerEstimate
from hwq.work import Work, columns

if TYPE_CHECKING:
    from hwq.plan import Plan

__all__ = ["Estimate", "LayerEstimate", "Prepared", "cost", "estimate", "prepare"]

Column = NDArray[Any]

# Families whose machines run one sample at a time: a batch is a loop, and the weights are read again for each.
SEQUENTIAL = frozenset({"npu"})
# Families whose compilers cut a batch into parts that fit the on-chip buffer.
SPLITTING = frozenset({"systolic"})

_TEXTS = ("name", "op", "kind", "precision", "fused")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A graph as a machine sees it: lowered, with the Work of each node and the columns that the families compute on.

    Attributes
    ----------
    graph : Graph
        Lowered for the machine's family, concrete shapes.
    works : tuple of Work
    columns : mapping of str to array
        Fields of Work, `hwq.simulators.memory.place`, and for the machine: ``host`` (bool), ``rate``, ``arithmetic``
        (the precision that does the MACs).
    repeat : int
        How often the machine runs it for one batch.
    """

    graph: Graph
    works: tuple[Work, ...]
    columns: Mapping[str, Column]
    repeat: int


_memory: WeakKeyDictionary[Graph, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


def estimate(
    graph: Graph,
    machine: PathLike | Accelerator,
    plan: Plan | None = None,
    batch: int = 1,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Estimate:
    """What a model costs on a machine.

    Parameters
    ----------
    graph : Graph
        Quantized, or float; weights may be absent.
    machine : str, path or Accelerator
        See `hwq.simulators.catalogue.find`.
    plan : Plan, optional
        For a float graph: widths, symmetry and granularity are taken from it; no calibration is needed.
    batch : int
        Samples per run.
    shapes : mapping of input name to shape, optional
        For inputs with open dimensions besides the batch.

    Returns
    -------
    Estimate

    Raises
    ------
    Error
        The machine lacks the arithmetic or an operator of a layer, the plan does not fit, or a dimension stays open.
    """
    target = find(machine)
    prepared = prepare(graph, target, plan, batch, shapes=shapes)
    table = cost(prepared, target)
    if target.family in SPLITTING and _spills(prepared, table):
        prepared, table = _split(graph, target, plan, batch, shapes, prepared, table)
    provenance = {"graph": graph, "plan": getattr(plan, "hash", None)}
    return Estimate(target, prepared.graph, batch, table, _notes(prepared, target), provenance)


def _spills(prepared: Prepared, table: Mapping[str, Column]) -> bool:
    """Whether activations other than the model's own inputs and outputs cross the chip's edge."""
    every = prepared.columns
    moved = (table[f"traffic.dram.{name}"] * ~every[f"{name}_external"] for name in ("input", "other", "output"))
    return any(np.any(values > 0) for values in moved)


def _split(
    graph: Graph,
    machine: Accelerator,
    plan: Plan | None,
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None,
    prepared: Prepared,
    table: dict[str, Column],
) -> tuple[Prepared, dict[str, Column]]:
    """Run the batch in equal parts where that is quicker: fewer samples stay on chip, weights are read once a part.

    Parts shrink until nothing spills; smaller ones would only read weights more often.
    """
    for parts in range(2, batch + 1):
        if batch % parts:
            continue
        other = prepare(graph, machine, plan, batch, shapes=shapes, parts=parts)
        found = cost(other, machine)
        if found["seconds"].sum() < table["seconds"].sum():
            prepared, table = other, found
        if not _spills(other, found):
            break
    return prepared, table


def prepare(
    graph: Graph,
    machine: Accelerator,
    plan: Plan | None = None,
    batch: int = 1,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    parts: int = 1,
) -> Prepared:
    """Lower a graph for a machine and count the Work of every layer; remembered while the graph lives.

    `parts` divides the batch: the machine runs that many equal parts, one after another.

    Raises
    ------
    Error
        As `estimate`.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise Error(f"the batch must be a whole number from 1, not {batch!r}")
    repeat = batch if machine.family in SEQUENTIAL else parts
    # Shapes that are given whole hold the batch too.
    given = {
        name: (shape[0] // repeat, *shape[1:]) if len(shape) and shape[0] == batch else tuple(shape)
        for name, shape in (shapes or {}).items()
    }
    lowered, works, shared = _lowered(graph, plan, batch // repeat, machine, given)
    return Prepared(lowered, works, shared | _on_machine(lowered, works, machine), repeat)


def _lowered(
    graph: Graph, plan: Plan | None, batch: int, machine: Accelerator, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Graph, tuple[Work, ...], dict[str, Column]]:
    apart = frozenset(op for op, entry in machine.support.items() if entry.level != "native")
    bound = tuple(sorted(shapes.items()))
    key = (machine.family, apart, getattr(plan, "hash", None), batch, bound)
    kept = _memory.setdefault(graph, {})
    if key not in kept:
        from hwq.lowering.families import lower_for_family
        from hwq.ops.base import lookup

        concrete = _planned(graph, plan, batch, bound, kept)
        lowered = lower_for_family(concrete, machine.family, apart)
        works = tuple(lookup(node).work(node, lowered) for node in lowered.nodes)
        family = importlib.import_module(f"hwq.simulators.{machine.family}")
        extra = family.chain_columns(lowered, works) if hasattr(family, "chain_columns") else {}
        kept[key] = lowered, works, columns(works) | place(lowered, works) | extra
    found: tuple[Graph, tuple[Work, ...], dict[str, Column]] = kept[key]
    return found


def _planned(
    graph: Graph, plan: Plan | None, batch: int, bound: tuple[Any, ...], kept: dict[tuple[Any, ...], Any]
) -> Graph:
    key = ("planned", getattr(plan, "hash", None), batch, bound)
    if key not in kept:
        from hwq.ops.inference import infer_shapes, require_bound

        found = graph
        if plan is not None:
            from hwq.quantization import annotate

            found = annotate(graph, plan)
        kept[key] = infer_shapes(found, dict(bound), batch=batch)
        require_bound(kept[key])
    found_graph: Graph = kept[key]
    return found_graph


def _on_machine(graph: Graph, works: Sequence[Work], machine: Accelerator) -> dict[str, Column]:
    """Where each layer runs, and at which rate. Raises where it cannot run at all."""
    host, arithmetic, rates = [], [], []
    for node, work in zip(graph.nodes, works, strict=True):
        level = "native" if work.kind == "none" else _level(node, machine)
        native_mac = work.macs > 0 and level == "native"
        host.append(level == "host")
        arithmetic.append(_resolved(work, machine) if native_mac else _fallback(machine))
        rates.append(machine.rate(arithmetic[-1]))
    return {
        "host": np.array(host, np.bool_),
        "arithmetic": np.array(arithmetic, object),
        "rate": np.array(rates, np.float64),
    }


def _fallback(machine: Accelerator) -> str:
    return next(name for name, entry in machine.precisions.items() if entry.rate)


def _level(node: Node, machine: Accelerator) -> str:
    entry = machine.support.get(node.kind, machine.support.get(node.op))
    if entry is None:
        return "native"
    if entry.level == "unsupported":
        raise Error(
            f"{machine.name} does not support {node.kind}",
            where=f"node {node.name}",
            why=entry.why,
            remedy="replace the operator, or choose another machine",
        )
    return entry.level


def _support(op: str, machine: Accelerator) -> str:
    """Why the machine gives this operator away; a name of another domain stands under its own or ONNX's name."""
    entry = machine.support.get(op) or machine.support.get(op.rpartition("::")[2])
    return entry.why if entry else "not native"


def _resolved(work: Work, machine: Accelerator) -> str:
    try:
        return machine.resolve(work.precision)
    except Error as error:
        remedy = error.remedy
        if work.precision == "float32" and work.weight_bits < 32:
            remedy = f'activations.mode = "static" or "dynamic": the weights alone are integers; {remedy}'
        elif work.precision == "float32":
            remedy = f"give a plan (plan=): the layer is not quantized; {remedy}"
        raise Error(
            error.what,
            where=f"machine {machine.name}, layer {display_name(work.name)} ({work.op})",
            why=error.why,
            remedy=remedy,
        ) from None


def cost(prepared: Prepared, machine: Accelerator) -> dict[str, Column]:
    """The table of an Estimate: every layer's seconds, cycles, terms, traffic, energy, utilization and bound."""
    family = importlib.import_module(f"hwq.simulators.{machine.family}")
    every = prepared.columns
    on_host = every["host"]
    native = ~on_host & (every["kind"] != "none")
    part = {name: values[native] for name, values in every.items()}
    found = family.evaluate(part, family.parameters(machine))
    layers = len(prepared.works)
    table: dict[str, Column] = {name: every[name] for name in _TEXTS}
    for name, values in found.items():
        whole = np.full(layers, "none", object) if name == "bound" else np.zeros(layers, values.dtype)
        whole[native] = values
        table[name] = whole
    if on_host.any():
        _add_host(table, every, on_host, machine, family.HOST_MEMORY)
    for component, bands in energy.evaluate(machine, every, table, family.MEMORIES).items():
        for band, values in bands.items():
            table[f"energy.{component}.{band}"] = values * prepared.repeat
    table["macs"] = every["macs"]
    for name, values in table.items():
        if name in {"seconds", "cycles", "macs", "hop_bytes"} or name.startswith(("term.", "traffic.")):
            table[name] = values * prepared.repeat
    peaks = np.array([machine.peak_macs_per_second(str(name)) for name in every["arithmetic"]])
    with np.errstate(divide="ignore", invalid="ignore"):
        table["utilization"] = np.where(
            native & (table["seconds"] > 0), table["macs"] / (peaks * table["seconds"]), 0.0
        )
    return table


def _add_host(
    table: dict[str, Column], every: Mapping[str, Column], on_host: Column, machine: Accelerator, memory: str
) -> None:
    """Layers that the host runs: hand-over, bytes over the link, and scalar operations at the host's rate."""
    moved = np.zeros(len(on_host), np.int64)
    for name in ("input", "other", "output"):
        crosses = on_host & ~every[f"{name}_external"]
        moved += np.where(crosses, every[f"{name}_bytes"], 0)
        key = f"traffic.{memory}.{name}"
        table[key] = table.get(key, np.zeros(len(on_host), np.int64)) + np.where(crosses, every[f"{name}_bytes"], 0)
    operations = every["vector_operations"] + every["epilogue_operations"] + every["macs"]
    operations = np.maximum(operations, every["output_elements"])
    link = machine.value("host.bandwidth", float("inf"))
    seconds = machine.value("host.latency") + moved / link + operations / machine.value("host.rate")
    table["term.host"] = np.where(on_host, seconds, 0.0)
    table["seconds"] = np.where(on_host, seconds, table["seconds"])
    table["cycles"] = np.where(on_host, np.ceil(seconds * machine.clock), table["cycles"]).astype(np.int64)
    table["bound"] = np.where(on_host, "host", table["bound"])


def _notes(prepared: Prepared, machine: Accelerator) -> tuple[str, ...]:
    every = prepared.columns
    notes = []
    ops = dict.fromkeys(every["op"][every["host"]].tolist())
    for op in ops:
        notes.append(
            f"{op} runs on the host ({_support(op, machine)}); rate and latency are assumed, energy is not counted"
        )
    if "energy.static_power" not in machine.quantities:
        notes.append("no static power is known: static energy is left out")
    if machine.family in SEQUENTIAL and prepared.repeat > 1:
        notes.append("the machine runs one sample at a time: weights are read again for each sample of a batch")
    elif prepared.repeat > 1:
        notes.append(
            f"the batch runs in {prepared.repeat} parts, so that activations stay on chip: weights are read once a part"
        )
    family = importlib.import_module(f"hwq.simulators.{machine.family}")
    if hasattr(family, "notes"):
        notes += family.notes(every, family.parameters(machine))
    return tuple(notes)
