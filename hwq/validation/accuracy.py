"""Quantization methods on real networks: agreement with float, divergence, accuracy, time and size, beside other toolkits.

Choices are made on calibration data alone. Within a group every candidate is made from three quarters of the calibration
samples and judged by its divergence from float on the last, every quarter in its turn (`hwq.validation.choice.turns`); the best is made again from all of them. The scored samples are looked at once, for every method alike, whatever was chosen.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import hwq
from hwq import kernels
from hwq.comparison import mcnemar
from hwq.errors import Error
from hwq.files import PathLike
from hwq.graph import Array, Graph
from hwq.names import csv_cell
from hwq.validation.choice import divergence, one_by_one, turns
from hwq.validation.contenders import CONTENDERS, Contender, Installed, contend, installed, stored_bytes
from hwq.validation.methods import METHODS, Method
from hwq.validation.networks import NETWORKS, Network
from hwq.validation.toolkits import PACKAGES

__all__ = ["AccuracyBoard", "AccuracyRow", "cpu_flags", "measure"]

# The words of /proc/cpuinfo that integer and float kernels are chosen by.
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True)
class AccuracyRow:
    """One method on one network.

    Attributes
    ----------
    model, group, method, by : str
        `by` is hwq or the toolkit with its version.
    samples : int
    accuracy, float_accuracy, agreement : float
        0..1; agreement is the share of samples whose largest output stands where float's does.
    kl : float
        Mean divergence of float from the quantized outputs, nats.
    gained, lost : int
        Samples that only the quantized, only the float model classifies correctly.
    p : float
        McNemar's exact two-sided p of that split.
    seconds : float
        Processor time of calibration and quantization, this method alone.
    bytes : int
        Constants as stored; 0 where a toolkit only simulates.
    held_back_kl : float or None
        Of a candidate made from three quarters of the calibration samples, on the last; the mean of its turns.
    chosen : bool
        The candidate that calibration data chose.
    """

    model: str
    group: str
    method: str
    by: str
    samples: int
    accuracy: float
    float_accuracy: float
    agreement: float
    kl: float
    gained: int
    lost: int
    p: float
    seconds: float
    bytes: int
    held_back_kl: float | None = None
    chosen: bool = False


@dataclass(frozen=True)
class AccuracyBoard:
    """Every row, what ran them, and what was left out and why."""

    rows: tuple[AccuracyRow, ...]
    protocols: dict[str, str]
    machine: dict[str, str]
    absent: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "family": "accuracy",
            "machine": self.machine,
            "protocols": self.protocols,
            "absent": list(self.absent),
            "rows": [{field.name: getattr(row, field.name) for field in fields(row)} for row in self.rows],
        }

    def to_csv(self) -> str:
        """One line a row."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = [field.name for field in fields(AccuracyRow)]
        writer.writerow(names)
        for row in self.rows:
            writer.writerow([csv_cell(_short(getattr(row, name))) for name in names])
        return stream.getvalue()


def _short(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def cpu_flags() -> str:
    """The words of this CPU that kernels are chosen by, and hwq's path."""
    try:
        text = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        text = []
    return " ".join([word for word in FLAGS if word in text] or [platform.machine()])


def measure(
    folder: PathLike | None = None,
    *,
    methods: Iterable[Method] = METHODS,
    toolkits: bool = True,
    pythons: Sequence[PathLike] = (),
    networks: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> AccuracyBoard:
    """Score methods on every network that is there.

    Parameters
    ----------
    folder : path, optional
        Of real models; default ``$HWQ_SHARED/models``. Without it the package's digits network is scored alone.
    methods : iterable of Method
    toolkits : bool
        Also run the toolkits that are installed.
    pythons : sequence of paths
        Other Pythons, whose toolkits run too (`hwq.validation.contenders`).
    networks : iterable of str, optional
        Names of those to score; default all.
    progress : callable, optional
        Told each method before it runs.

    Raises
    ------
    Error
        The folder does not exist, or one of `pythons` does not run.
    """
    where = _folder(folder)
    rows: list[AccuracyRow] = []
    protocols: dict[str, str] = {}
    listed, wanted = tuple(methods), None if networks is None else set(networks)
    there = installed(pythons) if toolkits else {}
    missing = [f"{package}: not installed" for package in PACKAGES if toolkits and package not in there]
    for find in NETWORKS:
        network = find(where)
        if network is None or (wanted is not None and network.name not in wanted):
            continue
        protocols[network.name] = network.protocol
        scorer = _Scorer(network, progress)
        rows += scorer.run(listed, there)
        missing += scorer.failed
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "flags": cpu_flags(),
        "path": kernels.isa(),
        "hwq": hwq.__version__,
        "numpy": np.__version__,
    }
    return AccuracyBoard(tuple(rows), protocols, machine, tuple(missing))


def _folder(folder: PathLike | None) -> Path | None:
    if folder is None:
        shared = os.environ.get("HWQ_SHARED")
        found = Path(shared) / "models" if shared else None
        return found if found is not None and found.is_dir() else None
    if not Path(folder).is_dir():
        raise Error("there is no such folder of models", where=str(folder))
    return Path(folder)


class _Scorer:
    def __init__(self, network: Network, progress: Callable[[str], None] | None):
        self.network, self.progress = network, progress
        self.failed: list[str] = []
        self.wanted = _outputs(network.graph, network.images)
        self.correct = self.wanted.argmax(axis=-1) == network.labels
        samples = network.calibration
        self.parts = [(samples[~held], samples[held]) for held in turns(len(samples))]
        self.held_wanted = [_outputs(network.graph, held) for _, held in self.parts]

    def run(self, methods: tuple[Method, ...], there: Mapping[str, Installed]) -> list[AccuracyRow]:
        groups = {method.group for method in methods}
        others = self._contended([one for one in CONTENDERS if one.group in groups], there)
        rows = [self._row("float32", "", "hwq", self.wanted, 0.0, stored_bytes(self.network.graph))]
        for group in dict.fromkeys(method.group for method in methods):
            brief = self.network.brief
            inside = [one for one in methods if one.group == group and (one.candidate or not brief)]
            inside = [one for one in inside if self._applies(one)]
            held = {method.name: self._held_back(method) for method in inside if method.candidate}
            best = min(held, key=lambda name: held[name]) if held else None
            rows += [self._made(method, held.get(method.name), method.name == best) for method in inside]
            rows += [others[one.name] for one in CONTENDERS if one.group == group and one.name in others]
        return rows

    def _contended(self, wanted: list[Contender], there: Mapping[str, Installed]) -> dict[str, AccuracyRow]:
        rows: dict[str, AccuracyRow] = {}
        for package, found in there.items():
            mine = {one.name: one for one in wanted if one.package == package}
            if not mine:
                continue
            self._tell(package)
            for name, made in contend(self.network, found.python, list(mine)).items():
                if isinstance(made, str):
                    self.failed.append(f"{name} on {self.network.name}: {made}")
                    continue
                by = f"{package} {found.version}"
                rows[name] = self._row(mine[name].group, name, by, made.outputs, made.seconds, made.bytes or 0)
        return rows

    def _tell(self, name: str) -> None:
        if self.progress is not None:
            self.progress(f"{self.network.name}: {name}")

    def _quantized(self, method: Method, samples: Array) -> tuple[Graph, float]:
        begun = time.process_time()
        calibration = hwq.calibrate(self.network.graph, samples)
        made = hwq.quantize(self.network.graph, method.on(self.network.graph), calibration, samples)
        return made, time.process_time() - begun

    def _applies(self, method: Method) -> bool:
        """Whether the network has what the plan's transforms are for, such as layers to equalize."""
        if not method.plan.transforms.equalize:
            return True
        try:
            self._quantized(method, self.network.calibration[:2])
        except Error as error:
            self.failed.append(f"{method.group}, {method.name} on {self.network.name}: {error.what}")
            return False
        return True

    def _held_back(self, method: Method) -> float:
        self._tell(f"{method.group}, {method.name} (choosing)")
        losses = []
        for (kept, held), wanted in zip(self.parts, self.held_wanted, strict=True):
            made, _ = self._quantized(method, kept)
            losses.append(divergence(wanted, _outputs(made, held, one_by_one(method))))
        return float(np.mean(losses))

    def _made(self, method: Method, held: float | None, chosen: bool) -> AccuracyRow:
        self._tell(f"{method.group}, {method.name}")
        made, seconds = self._quantized(method, self.network.calibration)
        outputs = _outputs(made, self.network.images, one_by_one(method))
        return self._row(method.group, method.name, "hwq", outputs, seconds, stored_bytes(made), held, chosen)

    def _row(
        self, group: str, method: str, by: str, outputs: Array, seconds: float, size: int, held: float | None = None,
        chosen: bool = False,
    ) -> AccuracyRow:  # fmt: skip
        right = outputs.argmax(axis=-1) == self.network.labels
        gained, lost = int((right & ~self.correct).sum()), int((self.correct & ~right).sum())
        return AccuracyRow(
            self.network.name, group, method, by, len(outputs), float(right.mean()), float(self.correct.mean()),
            float((outputs.argmax(axis=-1) == self.wanted.argmax(axis=-1)).mean()), divergence(self.wanted, outputs),
            gained, lost, mcnemar(gained, lost), seconds, size, held, chosen,
        )  # fmt: skip


def _outputs(graph: Graph, samples: Array, one_by_one: bool = False) -> Array:
    program = hwq.compile(graph)
    step = 1 if one_by_one else 64
    parts = [np.asarray(program(samples[start : start + step])) for start in range(0, len(samples), step)]
    return np.concatenate(parts)
