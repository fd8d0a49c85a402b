"""`hwq scalesim`: a drop-in for SCALE-Sim 3.0.0, its report files and its deviations included.

Cycles, stalls, SRAM and DRAM words, bandwidths and utilizations are those the tool prints, to the last digit. Known
deviations from an RTL array, all reproduced here and only here: the total is the index of the last cycle (issue #125 of
github.com/scalesim-project/SCALE-Sim), R + C output words too many per output-stationary fold (#166), partial sums that
are never read back, USER stalls that are added twice (#130), DRAM lines counted with their empty places (#27). For an
array as hardware has it use `hwq.simulators.dataflow`.

What the tool does besides and this does not: trace files, sparsity, custom layouts, Ramulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.files import PathLike, refuse_existing, write_atomically
from hwq.simulators.dataflow import evaluate
from hwq.simulators.scalesim_files import Configuration, Layer, read_configuration, read_topology

if TYPE_CHECKING:
    from hwq.progress import Progress

__all__ = ["LayerReport", "Port", "Run", "estimate_compute", "run", "simulate", "write_reports"]

# Address tables of one layer: 4 bytes per input, weight and output position.
MAX_BYTES = 1 << 30
# Words requested by one layer: about ten minutes of one core.
MAX_WORDS = 1 << 38
_BUDGET = 1 << 26  # words between two looks at the keyboard: some 0.1 s

_COMPUTE = ("LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, "
            "Mapping Efficiency %, Compute Util %,")  # fmt: skip
_BANDWIDTH = ("LayerID, Avg IFMAP SRAM BW, Avg FILTER SRAM BW, Avg OFMAP SRAM BW, "
              "Avg IFMAP DRAM BW, Avg FILTER DRAM BW, Avg OFMAP DRAM BW,")  # fmt: skip
_DETAIL = "LayerID, " + " ".join(
    f"{memory} {operand} Start Cycle, {memory} {operand} Stop Cycle, {memory} {operand} {verb},"
    for memory in ("SRAM", "DRAM")
    for operand, verb in (("IFMAP", "Reads"), ("Filter", "Reads"), ("OFMAP", "Writes"))
)


@dataclass(frozen=True)
class Port:
    """One operand: cycle stamps of its first and last SRAM and DRAM access, and words moved."""

    sram_start: int
    sram_stop: int
    sram_words: int
    dram_start: int
    dram_stop: int
    dram_words: int

    @property
    def dram_bandwidth(self) -> float:
        """Words per cycle while the DRAM is in use."""
        return self.dram_words / (self.dram_stop - self.dram_start + 1)


@dataclass(frozen=True)
class LayerReport:
    """One line of the three report files. Cycles as the tool counts them; percentages of 0 to 100."""

    layer: Layer
    total_cycles: int
    stall_cycles: int
    macs: int
    overall_utilization: float
    mapping_efficiency: float
    compute_utilization: float
    ifmap: Port
    filter: Port
    ofmap: Port

    @property
    def cycles_with_prefetch(self) -> int:
        """From the first DRAM answer to the last line drained."""
        return self.ofmap.dram_stop - min(self.ifmap.dram_start, self.filter.dram_start)

    @property
    def sram_bandwidths(self) -> tuple[float, float, float]:
        """Words per cycle of input, filter and output buffer, averaged over all cycles."""
        words = (self.ifmap.sram_words, self.filter.sram_words, self.ofmap.sram_words)
        return tuple(count / self.total_cycles for count in words)  # type: ignore[return-value]


@dataclass(frozen=True)
class Run:
    """A finished run: one report per layer, and the files written (none if no folder was given)."""

    configuration: Configuration
    layers: tuple[LayerReport, ...]
    files: tuple[Path, ...]


def run(
    configuration: PathLike,
    topology: PathLike,
    out: PathLike | None = None,
    *,
    gemm: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
    max_words: int = MAX_WORDS,
) -> Run:
    """Run a SCALE-Sim configuration on a SCALE-Sim topology and write its report files.

    Parameters
    ----------
    configuration, topology : path
        ``.cfg`` and ``.csv`` of version 2 or 3 of the tool.
    out : path, optional
        The three reports go to ``out/<run_name>/``; nothing is written before every layer is done.
    gemm : bool, optional
        The topology's kind; None reads it off the header (the tool's ``-i``).
    overwrite : bool
        Replace reports that exist.
    progress : callable, optional
        Called as ``progress(done, total, "scalesim: layers")``.
    max_bytes, max_words : int
        Bounds on one layer's address tables and on the words that it requests.

    Raises
    ------
    Error
        Unreadable files, features the model lacks, a layer beyond the bounds, reports that exist.
    """
    config = read_configuration(configuration)
    layers = read_topology(topology, gemm)
    known: dict[tuple[int, ...], LayerReport] = {}  # equal layers are simulated once
    reports = []
    for index, layer in enumerate(layers):
        if layer.sizes not in known:
            known[layer.sizes] = simulate(layer, config, max_bytes=max_bytes, max_words=max_words)
        reports.append(LayerReport(layer, *tuple(vars(known[layer.sizes]).values())[1:]))
        if progress is not None:
            progress(index + 1, len(layers), "scalesim: layers")
    files = () if out is None else write_reports(reports, Path(out) / config.run_name, overwrite=overwrite)
    return Run(config, tuple(reports), files)


def simulate(
    layer: Layer, config: Configuration, *, max_bytes: int = MAX_BYTES, max_words: int = MAX_WORDS
) -> LayerReport:
    """Run one layer through the memory model, exactly as the tool does.

    Raises
    ------
    Error
        The layer needs more than the bounds, or is so small that the tool itself divides by zero.
    """
    from hwq._simulators import ScaleSim

    where = f"layer {layer.name}"
    sram_words = (1024 * config.ifmap_kb, 1024 * config.filter_kb, 1024 * config.ofmap_kb)
    try:
        sim = ScaleSim(
            layer.sizes, config.dataflow, (config.rows, config.cols), sram_words, config.bandwidths, max_bytes
        )
    except (ValueError, OverflowError, MemoryError) as error:
        raise Error("this layer cannot be simulated", where=where, why=str(error),
                    remedy="lower its sizes, or raise the bound (max_bytes)") from error  # fmt: skip
    if sim.words > max_words:
        raise Error(f"this layer requests {sim.words} words, more than the bound of {max_words}", where=where,
                    why="every word is looked up in its buffer", remedy="raise max_words")  # fmt: skip
    try:
        while not sim.advance(_BUDGET):
            pass
    except MemoryError as error:
        raise Error("out of memory", where=where, why=str(error)) from error
    total, stalls, macs, mapping, compute, ifmap, filters, ofmap = sim.read()
    if total == 0:
        raise Error("one cycle in all", where=where, why="SCALE-Sim counts it as 0 and divides by it")
    return LayerReport(
        layer, total, stalls, macs, macs * 100 / (total * (config.rows * config.cols)), mapping * 100, compute * 100,
        Port(*ifmap), Port(*filters), Port(*ofmap),
    )  # fmt: skip


def write_reports(reports: Sequence[LayerReport], folder: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write COMPUTE_REPORT, BANDWIDTH_REPORT and DETAILED_ACCESS_REPORT as the tool lays them out.

    Raises
    ------
    Error
        A report exists and `overwrite` is false, or the folder cannot be written.
    """
    tables: dict[str, tuple[str, list[Any]]] = {
        "COMPUTE_REPORT.csv": (_COMPUTE, [
            (r.cycles_with_prefetch, r.total_cycles, r.stall_cycles, r.overall_utilization, r.mapping_efficiency,
             r.compute_utilization) for r in reports]),
        "BANDWIDTH_REPORT.csv": (_BANDWIDTH, [
            (*r.sram_bandwidths, *(port.dram_bandwidth for port in (r.ifmap, r.filter, r.ofmap))) for r in reports]),
        "DETAILED_ACCESS_REPORT.csv": (_DETAIL, [_detail(r) for r in reports]),
    }  # fmt: skip
    for name in tables:
        refuse_existing(folder / name, overwrite)
    for name, (header, rows) in tables.items():
        with write_atomically(folder / name, overwrite=overwrite, mode="w") as stream:
            stream.write(header + "\n")
            for index, row in enumerate(rows):
                stream.write(f"{index}, " + ", ".join(str(value) for value in row) + ",\n")
    return tuple(folder / name for name in tables)


def _detail(report: LayerReport) -> list[int | float]:
    """Stamps are floats in the tool's files, counts are not."""
    ports = [astuple(port) for port in (report.ifmap, report.filter, report.ofmap)]
    return [
        value
        for at in (0, 3)
        for start, stop, words in (port[at : at + 3] for port in ports)
        for value in (float(start), float(stop), words)
    ]


def estimate_compute(
    layers: Sequence[Layer], rows: int, cols: int, dataflow: str
) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    """What the tool prints if nothing stalls, for all layers at once, by its closed forms.

    Returns
    -------
    dict
        ``total_cycles`` (one too few, as in the tool), ``demand_rows`` (the cycles), ``mapping_efficiency`` and
        ``compute_utilization`` (percent), ``ifmap_words``, ``filter_words``, ``ofmap_words`` (SRAM), over layers.
    """
    sizes: NDArray[Any] = np.array([layer.sizes for layer in layers], dtype=np.int64).reshape(-1, 8).T
    ifmap_h, ifmap_w, filter_h, filter_w, channels, n, stride_h, stride_w = sizes
    m = -(-(ifmap_h - filter_h + stride_h) // stride_h) * -(-(ifmap_w - filter_w + stride_w) // stride_w)
    k = filter_h * filter_w * channels
    costs = evaluate(m, k, n, rows, cols, dataflow, overlap="none")
    phantom = costs.folds * (rows + cols) if dataflow == "os" else 0
    skew_again = 0 if dataflow == "os" else (cols - 1) * costs.folds
    return {
        "total_cycles": costs.cycles - 1,
        "demand_rows": costs.cycles,
        "mapping_efficiency": costs.mapping_efficiency * 100,
        "compute_utilization": 100 * costs.macs / (rows * cols * (costs.cycles + skew_again).astype(np.float64)),
        "ifmap_words": costs.a_reads,
        "filter_words": costs.b_reads,
        "ofmap_words": costs.sum_writes + phantom,
    }
