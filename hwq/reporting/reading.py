"""From hwq's nouns to the records of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hwq.calibration import Calibration
from hwq.costly import MASKED
from hwq.errors import Error
from hwq.graph import Graph, Node
from hwq.plan import Plan
from hwq.reporting import distributions, drift, occupancy, records
from hwq.reporting.records import Records, Unsupported

if TYPE_CHECKING:
    from hwq.comparison import Comparison, Effect
    from hwq.difference import Difference
    from hwq.simulators import Accelerator, Estimate, LayerEstimate
    from hwq.simulators.stepped_gemm import SteppedRun

__all__ = ["read"]


def read(items: Sequence[Any]) -> Records:
    """Sort a mix of nouns into the records of a report.

    Raises
    ------
    Error
        There is nothing, or an item is none of the nouns.
    """
    if not items:
        raise Error(
            "there is nothing to report",
            where="report([])",
            remedy="give estimates, comparisons, calibrations, graphs or plans",
        )
    kinds = _sorted(items)
    graphs: list[Graph] = kinds[Graph]
    estimates: list[Estimate] = kinds[_estimate_type()]
    comparisons = [_comparison(item) for item in kinds[_comparison_type()]]
    quantized = [*graphs, *(estimate.graph for estimate in estimates)]
    return Records(
        costs=tuple(_cost(item) for item in estimates),
        comparisons=tuple(comparisons),
        histograms=tuple(distributions.choose(kinds[Calibration], quantized, comparisons)),
        footprints=tuple(_footprint(graph) for graph in graphs),
        plans=tuple(records.Planned(plan.to_toml(), plan.hash) for plan in kinds[Plan]),
        unsupported=tuple(kinds[Unsupported]),
        calibrations=tuple(_calibrated(item) for item in kinds[Calibration]),
        stepped=tuple(occupancy.read(item) for item in kinds[_stepped_type()]),
        drifts=tuple(drift.read(item) for item in kinds[_difference_type()]),
    )


def _sorted(items: Sequence[Any]) -> dict[type, list[Any]]:
    kinds: dict[type, list[Any]] = {
        kind: []
        for kind in (
            Graph,
            Plan,
            Calibration,
            Unsupported,
            _estimate_type(),
            _comparison_type(),
            _stepped_type(),
            _difference_type(),
        )
    }
    for place, item in enumerate(items):
        kind = next((kind for kind in kinds if isinstance(item, kind)), None)
        if kind is None:
            raise Error(
                f"a report cannot show a {type(item).__name__}",
                where=f"item {place}",
                remedy="give Estimate, Comparison, Calibration, Graph, Plan, SteppedRun, Difference or hwq.reporting.Unsupported",
            )
        kinds[kind].append(item)
    return kinds


def _estimate_type() -> type[Estimate]:
    from hwq.simulators import Estimate

    return Estimate


def _comparison_type() -> type[Comparison]:
    from hwq.comparison import Comparison

    return Comparison


def _difference_type() -> type[Difference]:
    from hwq.difference import Difference

    return Difference


def _stepped_type() -> type[SteppedRun]:
    from hwq.simulators.stepped_gemm import SteppedRun

    return SteppedRun


def _comparison(found: Comparison) -> records.Comparison:
    layers = tuple(
        records.ComparedLayer(
            layer.name, layer.op, (layer.tensor,), layer.sqnr_db, layer.cosine, layer.max_lsb, layer.saturation,
            layer.underflow, layer.headroom_bits, layer.weights_only_db, layer.activations_only_db, layer.channel_bits,
            layer.weight_bits, layer.dtype, layer.range_db)
        for layer in found.layers
    )  # fmt: skip
    return records.Comparison(
        model=found.model,
        samples=found.samples,
        agreement=found.agreement,
        kl_nats=found.kl,
        accuracy_float=found.accuracy_float,
        accuracy_quantized=found.accuracy,
        mcnemar_p=found.mcnemar_p,
        gained=found.gained,
        lost=found.lost,
        layers=layers,
        ranges=(
            *((name, f"stays float: {MASKED}") for name in found.unbounded),
            *((one.tensor, one.cost) for one in found.costly_ranges),
        ),
        hashes=dict(found.hashes),
        sqnr_db=found.sqnr_db,
        analysed=found.analysed,
        sensitivities=tuple(
            records.SensitiveLayer(one.layer, one.op, _effect(one.only), _effect(one.without))
            for one in found.sensitivities
        ),
        changes=tuple(
            records.MeasuredChange(
                one.what, one.rule, one.layer, one.gain_db, _known(one.before), _known(one.after), _effect(one.together)
            )
            for one in found.changes
        ),
    )


def _known(found: Effect) -> records.OutputEffect:
    return records.OutputEffect(found.sqnr_db, found.kl, found.agreement)


def _effect(found: Effect | None) -> records.OutputEffect | None:
    return None if found is None else _known(found)


def _cost(estimate: Estimate) -> records.Cost:
    machine = estimate.machine
    layers = tuple(_cost_layer(layer, node) for layer, node in zip(estimate.layers, estimate.graph.nodes, strict=True))
    precisions = {layer.precision for layer in layers if layer.macs}
    given: Graph = estimate.provenance.get("graph", estimate.graph)
    known = {"plan": given.source.get("plan"), "calibration": given.source.get("calibration")}
    known |= {kind: value for kind, value in estimate.hashes.items() if value is not None and kind != "version"}
    hashes = {kind: value for kind, value in known.items() if isinstance(value, str)}
    bandwidth, memory = _offchip_bandwidth(machine)
    return records.Cost(
        model=estimate.graph.name,
        machine=machine.name,
        family=machine.family,
        precision=_precision(layers),
        batch=estimate.batch,
        seconds=estimate.seconds,
        interval_seconds=estimate.interval(),
        macs=estimate.macs,
        cycles=estimate.cycles,
        utilization=estimate.mac_utilization,
        bound=estimate.bound,
        validity=estimate.validity,
        traffic_bytes=estimate.traffic,
        energy_picojoules=estimate.energy,
        energy_interval_picojoules=estimate.picojoules_band if estimate.energy else None,
        peaks={
            name: machine.peak_macs_per_second(machine.resolve(name))
            for name in sorted(precisions)
            if _able(machine, name)
        },
        bandwidth=bandwidth,
        offchip=memory,
        layers=layers,
        confidence=dict(machine.confidences),
        notes=estimate.notes,
        hashes=hashes,
    )


def _able(machine: Accelerator, precision: str) -> bool:
    # What the host computes may have no arithmetic on the machine.
    found = machine.precisions.get(precision)
    return found is not None and (found.rate is not None or found.runs_as is not None)


def _offchip_bandwidth(machine: Accelerator) -> tuple[float | None, str]:
    """Bytes/s of the memory off the chip, and its name: DRAM, or the flash of a microcontroller."""
    for memory in records.OFFCHIP:
        if f"{memory}.bandwidth" in machine.quantities:
            quantity = machine.quantities[f"{memory}.bandwidth"]
            per_second = quantity.si * (machine.clock if quantity.dimension == "data per cycle" else 1.0)
            return per_second * machine.value(f"{memory}.efficiency", 1.0), memory
    return None, "dram"


def _cost_layer(layer: LayerEstimate, node: Node) -> records.CostLayer:
    made = [name for part in (*node.body, node) for name in part.outputs if name]
    inside = tuple(dict.fromkeys(_float_name(name) for name in made))
    offchip = sum(sum(operands.values()) for memory, operands in layer.traffic.items() if memory in records.OFFCHIP)
    return records.CostLayer(
        name=layer.name,
        op=layer.op,
        precision=layer.precision,
        bound=layer.bound,
        fused=layer.fused,
        key=made[-1] if made else layer.name,
        outputs=inside,
        seconds=layer.seconds,
        macs=layer.macs,
        dram_bytes=float(offchip),
        energy_picojoules=float(sum(layer.energy.values())),
        utilization=layer.mac_utilization,
    )


def _float_name(name: str) -> str:
    """The name that the float graph has for a value: `hwq.quantize` puts these words behind it around Q and DQ."""
    for suffix in ("_quantized", "_dequantized", "_float"):
        name = name.removesuffix(suffix)
    return name


def _precision(layers: Sequence[records.CostLayer]) -> str:
    """The arithmetic types that do at least a twentieth of the MACs, the largest share first."""
    macs: dict[str, int] = {}
    for layer in layers:
        macs[layer.precision] = macs.get(layer.precision, 0) + layer.macs
    total = sum(macs.values())
    names = [name for name in sorted(macs, key=lambda name: -macs[name]) if macs[name] >= total / 20 and macs[name]]
    return " + ".join(names) or next(iter(macs), "none")


def _footprint(graph: Graph) -> records.Footprint:
    return records.Footprint(
        graph.name,
        graph.form,
        _stored_types(graph),
        len(graph),
        graph.parameters,
        graph.parameter_bytes,
        graph.dialect,
        graph.hash,
    )


def _stored_types(graph: Graph) -> str:
    """Stored types of the parameters, the largest share of the elements first, what is below a hundredth left out."""
    read = {name for node in graph.nodes for name in node.inputs}
    elements: dict[str, int] = {}
    for tensor in graph.tensors.values():
        if (
            tensor.name in read
            and tensor.name not in graph.producers
            and tensor.name not in graph.inputs
            and tensor.concrete
        ):
            dtype = tensor.quantization.dtype if tensor.quantization else tensor.dtype
            elements[dtype] = elements.get(dtype, 0) + tensor.elements
    total = sum(elements.values())
    return (
        " + ".join(name for name in sorted(elements, key=lambda name: -elements[name]) if elements[name] * 100 >= total)
        or "no parameters"
    )


def _calibrated(calibration: Calibration) -> records.Calibrated:
    summary = f"{calibration.samples:,} samples, {len(calibration.tensors)} tensors"
    return records.Calibrated(summary, calibration.samples, len(calibration.tensors), calibration.hash)
