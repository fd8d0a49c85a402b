"""`hwq scalesim` beside the real SCALE-Sim: the same files into both, equal reports demanded, CPU time of each.

The real tool lives in an environment of its own (it wants numpy below 2.4); the caller names its interpreter. CPU time is
process time of one core and covers reading the files, simulating and writing the reports, not the start of Python.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwq.errors import Error
from hwq.simulators.dataflow import DATAFLOWS
from hwq.simulators.scalesim import run

if TYPE_CHECKING:
    from hwq.progress import Progress

__all__ = ["LAYERS", "Case", "Timing", "cases", "compare"]

# Seconds that the real tool may take for one case.
TOOL_SECONDS = 600.0
# Runs of ours, the best counts: a millisecond is easily disturbed, the tool's second is not.
_REPEATS = 5

# A small network for CIFAR images: name, input h, w (padded), filter h, w, channels, filters, stride.
LAYERS = (
    "conv3x3,18,18,3,3,32,64,1,",
    "conv1x1,16,16,1,1,64,64,1,",
    "conv3x3_s2,17,17,3,3,32,64,2,",
    "dense,1,1,1,1,256,100,1,",
)

_CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: 32
ArrayWidth: 32
IfmapSramSzkB: 64
FilterSramSzkB: 64
OfmapSramSzkB: 64
IfmapOffset: 0
FilterOffset: 100000000
OfmapOffset: 200000000
Bandwidth: 10
Dataflow: {dataflow}
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 1
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 1
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
[run_presets]
InterfaceBandwidth: {mode}
UseRamulatorTrace: False
"""
_HEADER = "Layer name,IFMAP Height,IFMAP Width,Filter Height,Filter Width,Channels,Num Filter,Strides,\n"

# Run by the other interpreter, one case a call. It prints its CPU seconds last.
_TOOL = """
import contextlib, io, sys, time
from scalesim.scale_sim import scalesim
folder = sys.argv[1]
started = time.process_time()
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    tool = scalesim(save_disk_space=True, verbose=False, config=folder + "/c.cfg", topology=folder + "/t.csv",
                    layout=folder + "/l.csv")
    tool.run_scale(top_path=folder + "/theirs")
print(time.process_time() - started)
"""


@dataclass(frozen=True)
class Case:
    """The network on a 32 x 32 array with SRAMs of 64 kB."""

    dataflow: str
    mode: str


@dataclass(frozen=True)
class Timing:
    """One case in both programs.

    Attributes
    ----------
    case : Case
    tool_seconds, seconds : float
        CPU time of SCALE-Sim and of hwq.
    identical : bool
        All three report files are equal, byte for byte.
    """

    case: Case
    tool_seconds: float
    seconds: float
    identical: bool

    @property
    def ratio(self) -> float:
        """How much less CPU time hwq takes."""
        return self.tool_seconds / self.seconds


def cases() -> list[Case]:
    """Every dataflow, with unlimited (CALC) and with given bandwidth (USER)."""
    return [Case(dataflow, mode) for dataflow in DATAFLOWS for mode in ("CALC", "USER")]


def compare(tool: Path, chosen: Sequence[Case] | None = None, *, progress: Progress | None = None) -> list[Timing]:
    """Run both programs on every case.

    Parameters
    ----------
    tool : path
        The Python interpreter of an environment that has SCALE-Sim 3.0.0.
    chosen : sequence of Case, optional
        Default: `cases`.
    progress : callable, optional

    Raises
    ------
    Error
        No such interpreter, SCALE-Sim is not in it, or it failed or took longer than `TOOL_SECONDS`.
    """
    if not tool.is_file():
        raise Error(
            "there is no such Python interpreter",
            where=str(tool),
            remedy='python -m venv side && side/bin/pip install scalesim==3.0.0 "numpy<2"; then --tool side/bin/python',
        )
    found = list(cases() if chosen is None else chosen)
    timings = []
    with tempfile.TemporaryDirectory(prefix="hwq-bench-") as place:
        for index, case in enumerate(found):
            timings.append(_time(tool, case, Path(place) / str(index)))
            if progress is not None:
                progress(index + 1, len(found), "bench: cases")
    return timings


def _time(tool: Path, case: Case, folder: Path) -> Timing:
    folder.mkdir()
    (folder / "c.cfg").write_text(_CONFIG.format(dataflow=case.dataflow, mode=case.mode))
    (folder / "t.csv").write_text(_HEADER + "\n".join(LAYERS) + "\n")
    (folder / "l.csv").write_text("Layer\n")  # no layer has a custom layout
    try:
        told = subprocess.run([str(tool), "-c", _TOOL, str(folder)], capture_output=True, text=True, check=False,
                              timeout=TOOL_SECONDS)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Error("SCALE-Sim did not finish", where=str(tool), why=str(error)) from error
    if told.returncode != 0:
        raise Error(
            "SCALE-Sim failed",
            where=str(tool),
            why=(told.stderr.strip().splitlines() or ["it said nothing"])[-1],
            remedy='its environment needs scalesim==3.0.0 and "numpy<2"',
        )
    seconds = []
    for _ in range(_REPEATS):
        started = time.process_time()
        done = run(folder / "c.cfg", folder / "t.csv", folder / "ours", overwrite=True)
        seconds.append(time.process_time() - started)
    theirs = folder / "theirs" / "run"
    identical = all((theirs / file.name).read_bytes() == file.read_bytes() for file in done.files)
    return Timing(case, float(json.loads(told.stdout.split()[-1])), min(seconds), identical)
