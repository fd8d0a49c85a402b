"""Rules for systolic and spatial arrays: the TPU v1 counters and Eyeriss's AlexNet table.

TPU v1 (Jouppi et al., ISCA 2017). The applications' layer shapes are not published, only how many layers and weights.
An application is taken as that many equal square layers whose side is a whole number of tiles; shares of cycles and rates
do not depend on the side, since every tile of 65,536 weights costs the same: batch cycles of products, 256 of shifting,
and what the DRAM needs for its bytes. Time outside the matrix unit and the host's share are given as named inputs (they
depend on the unpublished vector layers and on the host), and so is nothing else.

Eyeriss (Chen et al., JSSC 2017). AlexNet's five convolutions at batch 4 and 16 bits. The run-length compression of the
DRAM traffic depends on the data: the authors' rate for each layer is a named input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from hwq.errors import Error
from hwq.graph import Graph, Node, Tensor
from hwq.plan import Plan
from hwq.simulators import Estimate, accelerators, estimate, find
from hwq.validation.measurements import Measurement, read_table
from hwq.validation.scoring import Score

__all__ = ["CONVOLUTIONS", "Rules", "application", "convolution", "rules"]

# Published inputs of the TPU paper's six applications (its table 1).
APPLICATIONS_FILE = "tpu_v1_apps_inputs.csv"
APPLICATION_COLUMNS = ("app", "fc_layers", "conv_layers", "weights_million")

# Counters as shares of the time that the matrix unit spends on a program: active, waiting for weights, shifting them in.
SHARES = {"array_active_cycles_pct": "compute", "weight_stall_cycles_pct": "stall", "weight_shift_cycles_pct": "load"}

UNPUBLISHED = "not derivable: the layer shapes are not published"
OTHER_METRICS = {
    "useful_macs_pct": f"{UNPUBLISHED}, so the unused share of a tile is unknown",
    "unused_macs_pct": f"{UNPUBLISHED}, so the unused share of a tile is unknown",
    "non_matrix_cycles_pct": "a named input: the time of the vector layers, whose shapes are not published",
    "host_interaction_time_pct": "a named input: the host is not modelled",
    "raw_stall_cycles_pct": "not modelled: this counter overlaps the others (dependences between instructions)",
    "input_data_stall_cycles_pct": "not modelled: this counter overlaps the others (inputs over PCIe)",
    "tpu_rel_perf_vs_haswell_die": "a ratio to another machine",
    "k80_rel_perf_vs_haswell_die": "a ratio to another machine",
    "unified_buffer_max_mib": f"{UNPUBLISHED}, nor is the buffer's allocator",
    "google_perf_model_cycle_error_pct": "the error of another model, no measurement of the machine",
    "latency_p99": "a tail latency under load: queueing is not modelled",
}

# AlexNet as Eyeriss ran it: input channels, size, filters, kernel, stride, padding, groups (Krizhevsky et al. 2012), and
# the rate by which run-length coding divided the layer's DRAM traffic (Chen et al., JSSC 2017, figure of DRAM accesses
# before and after compression; recalled).
CONVOLUTIONS = {
    "alexnet/conv1": ((3, 227, 96, 11, 4, 0, 1), 1.2),
    "alexnet/conv2": ((96, 27, 256, 5, 1, 2, 2), 1.4),
    "alexnet/conv3": ((256, 13, 384, 3, 1, 1, 1), 1.7),
    "alexnet/conv4": ((384, 13, 384, 3, 1, 1, 2), 1.8),
    "alexnet/conv5": ((384, 13, 256, 3, 1, 1, 2), 1.9),
}
TOTAL = "alexnet/total_conv1_5"


def application(layers: int, weights: float, tile: int) -> Graph:
    """`layers` equal dense layers with about `weights` weights, the side a whole number of tiles."""
    side = max(tile, round((weights / layers) ** 0.5 / tile) * tile)
    names = [f"x{index}" for index in range(layers + 1)]
    tensors = [Tensor(name, shape=("N", side)) for name in names]
    tensors += [Tensor(f"w{index}", shape=(side, side)) for index in range(layers)]
    nodes = [
        Node("Gemm", f"fc{index}", (names[index], f"w{index}"), (names[index + 1],), {}) for index in range(layers)
    ]
    return Graph(nodes, tensors, [names[0]], [names[-1]], name="application")


def convolution(shape: tuple[int, ...], name: str) -> Graph:
    """One convolution with its ReLU: input channels, size, filters, kernel, stride, padding, groups."""
    channels, size, filters, kernel, stride, pad, groups = shape
    out = (size + 2 * pad - kernel) // stride + 1
    attributes = {"strides": (stride,) * 2, "pads": (pad,) * 4, "group": groups, "kernel_shape": (kernel,) * 2}
    tensors = [
        Tensor("x", shape=("N", channels, size, size)),
        Tensor("w", shape=(filters, channels // groups, kernel, kernel)),
        Tensor("y", shape=("N", filters, out, out)),
        Tensor("z", shape=("N", filters, out, out)),
    ]
    nodes = [
        Node("Conv", name, ("x", "w"), ("y",), attributes, layout="NCHW"),
        Node("Relu", f"{name}/relu", ("y",), ("z",)),
    ]
    return Graph(nodes, tensors, ["x"], ["z"], name=name)


def rules(rows: Sequence[Measurement], folder: Path) -> Rules:
    """The family's rules over the rows of one folder."""
    return Rules(rows, folder)


class Rules:
    """What each row is compared with. Values of other rows are used only where a `Score` names them."""

    def __init__(self, rows: Sequence[Measurement], folder: Path):
        self._folder = folder
        self._values = {(row.device, row.model, row.metric, row.batch): row.value for row in rows}
        self._known = {name.casefold() for name in accelerators()}
        self._estimates: dict[tuple[str, int], Estimate] = {}

    def score(self, row: Measurement) -> Score:
        """The row with its estimate, or with the reason why it has none."""
        if row.device.casefold() not in self._known:
            return Score(row, reason=f"no machine file names the device {row.device!r}")
        machine = find(row.device)
        rule: Callable[[Measurement], Score] | None = {"tpu-v1": self._tpu, "eyeriss": self._eyeriss}.get(machine.name)
        if rule is None:
            return Score(row, reason=f"{machine.name} has no rule: {machine.validity}")
        return rule(row)

    # TPU v1 -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _applications(self) -> dict[str, dict[str, str]]:
        path = self._folder / APPLICATIONS_FILE
        if not path.is_file():
            return {}
        return {row["app"]: row for row in read_table(path, APPLICATION_COLUMNS)}

    def _tpu(self, row: Measurement) -> Score:
        if row.metric in OTHER_METRICS:
            return Score(row, reason=OTHER_METRICS[row.metric])
        given = self._applications.get(row.model)
        if given is None:
            return Score(row, reason=f"{APPLICATIONS_FILE} does not describe {row.model!r}")
        if row.batch is None or row.batch < 1:
            return Score(row, reason="the row states no batch")
        try:
            dense, convolutions = int(given["fc_layers"]), int(given["conv_layers"])
            weights = float(given["weights_million"]) * 1e6
        except ValueError as error:
            raise Error(
                "this description of an application is damaged", where=APPLICATIONS_FILE, why=str(error)
            ) from None
        if convolutions or not dense:
            return Score(row, reason=f"{UNPUBLISHED}{self._disagreement(row)}")
        if row.metric in SHARES:
            return self._share(row, dense, weights)
        if row.metric == "throughput_tops":
            return self._tops(row, dense, weights)
        if row.metric == "throughput":
            return self._rate(row, dense, weights)
        return Score(row, reason=f"no rule for {row.metric}")

    def _disagreement(self, row: Measurement) -> str:
        """Whether the paper's useful MACs times the peak contradict its own rate by more than 10 %."""
        useful = self._values.get((row.device, row.model, "useful_macs_pct", row.batch))
        rate = self._values.get((row.device, row.model, "throughput_tops", row.batch))
        peak = 2e-12 * find(row.device).peak_macs_per_second("int8")
        if useful is None or rate is None or abs(useful / 100 * peak / rate - 1) <= 0.1:
            return ""
        return f"; counters give {useful / 100 * peak:.1f} TOPS, the paper's rate is {rate:g}"

    def _run(self, row: Measurement, dense: int, weights: float) -> Estimate:
        key = row.model, row.batch or 1
        if key not in self._estimates:
            machine = find(row.device)
            graph = application(dense, weights, int(machine.value("array.rows")))
            plan = Plan.uniform(weights="int8", activations="int8", symmetric=True, granularity="tensor")
            self._estimates[key] = estimate(graph, machine, plan=plan, batch=row.batch or 1)
        return self._estimates[key]

    def _share(self, row: Measurement, dense: int, weights: float) -> Score:
        measured = [self._values.get((row.device, row.model, metric, row.batch)) for metric in SHARES]
        if any(value is None for value in measured) or not sum(value or 0.0 for value in measured):
            return Score(row, reason="the other counters of the matrix time are not stated")
        found = self._run(row, dense, weights)
        return Score(
            row,
            quantity=row.metric.replace("_cycles_pct", " share of the matrix time"),
            unit="%",
            measured=100 * row.value / sum(value or 0.0 for value in measured),
            estimate=100 * found.terms[SHARES[row.metric]] / _matrix_seconds(found),
            points=True,
        )

    def _matrix_share(self, row: Measurement) -> float | None:
        found = [value for (device, model, metric, _), value in self._values.items()
                 if (device, model, metric) == (row.device, row.model, "non_matrix_cycles_pct")]  # fmt: skip
        return found[0] if found else None

    def _tops(self, row: Measurement, dense: int, weights: float) -> Score:
        outside = self._matrix_share(row)
        if outside is None:
            return Score(row, reason="the share of the time outside the matrix unit is not stated")
        unused = self._values.get((row.device, row.model, "unused_macs_pct", row.batch), 0.0)
        active = self._values.get((row.device, row.model, "array_active_cycles_pct", row.batch), 100.0)
        if unused > 0.1 * active:
            return Score(
                row, reason=f"{UNPUBLISHED}: {unused:g} of {active:g} points of the active time do no useful work"
            )
        found = self._run(row, dense, weights)
        rate = 2e-12 * found.macs / _matrix_seconds(found) * (1 - outside / 100)
        return Score(row, unit="TOPS", measured=row.value, estimate=rate, inputs={"non_matrix_cycles_pct": outside})

    def _rate(self, row: Measurement, dense: int, weights: float) -> Score:
        outside = self._matrix_share(row)
        host = [value for (device, model, metric, _), value in self._values.items()
                if (device, model, metric) == (row.device, row.model, "host_interaction_time_pct")]  # fmt: skip
        if outside is None or not host:
            return Score(row, reason="the shares of the time outside the matrix unit and of the host are not stated")
        found = self._run(row, dense, weights)
        # Table 5 of the paper: the host's share is a percentage of the TPU's time.
        seconds = _matrix_seconds(found) / (1 - outside / 100) * (1 + host[0] / 100)
        inputs = {"non_matrix_cycles_pct": outside, "host_interaction_time_pct": host[0]}
        return Score(row, unit="inf/s", measured=row.value, estimate=(row.batch or 1) / seconds, inputs=inputs)

    # Eyeriss ----------------------------------------------------------------------------------------------------------

    def _eyeriss(self, row: Measurement) -> Score:
        if row.model != TOTAL and row.model not in CONVOLUTIONS:
            return Score(row, reason=f"no shapes are known for {row.model!r}")
        if row.batch is None or row.batch < 1:
            return Score(row, reason="the row states no batch")
        if row.metric == "power":
            return Score(
                row, reason="not modelled: clock tree and idle PEs take most of the power and are not published"
            )
        if row.metric not in _EYERISS:
            return Score(row, reason=f"no rule for {row.metric}")
        names = tuple(CONVOLUTIONS) if row.model == TOTAL else (row.model,)
        made = [_EYERISS[row.metric](self._layer(row, name)) for name in names]
        value = sum(made)
        rates = {f"compression of {name}": CONVOLUTIONS[name][1] for name in names}
        return Score(
            row, unit=row.unit, measured=row.value, estimate=value, inputs=rates if row.metric == "dram_access" else {}
        )

    def _layer(self, row: Measurement, name: str) -> Estimate:
        key = name, row.batch or 1
        if key not in self._estimates:
            shape, rate = CONVOLUTIONS[name]
            machine = find(row.device).replace({"dram.compression": rate})
            plan = Plan.uniform(weights="int16", activations="int16", symmetric=True, granularity="tensor")
            self._estimates[key] = estimate(convolution(shape, name), machine, plan=plan, batch=row.batch or 1)
        return self._estimates[key]


def _matrix_seconds(found: Estimate) -> float:
    """Time that the matrix unit spends on the program; waits for the host and the vector unit are not its own."""
    return sum(found.terms[name] for name in SHARES.values())


def _convolution_of(found: Estimate):  # type: ignore[no-untyped-def]
    return next(layer for layer in found.layers if layer.op == "Conv")


# Metric -> its value in the row's unit. Padding's multiplications by zero are counted by neither side as MACs.
_EYERISS: dict[str, Callable[[Estimate], float]] = {
    "dram_access": lambda found: sum(_convolution_of(found).traffic["dram"].values()) / 1e6,
    "global_buffer_access": lambda found: sum(_convolution_of(found).traffic["buffer"].values()) / 1e6,
    "macs": lambda found: _convolution_of(found).macs / 1e9,
    "processing_latency": lambda found: (
        1e3 * (_convolution_of(found).terms["compute"] + _convolution_of(found).terms["load"])
    ),
    "latency": lambda found: 1e3 * _convolution_of(found).seconds,
}
