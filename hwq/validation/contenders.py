"""Other people's quantization on the same model and samples, each in a process of whichever Python has the toolkit.

`hwq.validation.toolkits` is the script that runs there. Toolkits whose requirements hwq's own environment cannot meet are
measured in the same run by naming their Python. Bytes of parameters are counted as hwq's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hwq
from hwq.errors import Error
from hwq.files import PathLike
from hwq.graph import Array
from hwq.validation.networks import Network
from hwq.validation.toolkits import METHODS, PACKAGES

__all__ = ["CONTENDERS", "Contender", "Installed", "Made", "contend", "installed", "stored_bytes"]

SCRIPT = Path(__file__).with_name("toolkits.py")
# Seconds after which a toolkit's process is given up: half an hour, for all methods of one network on a busy machine.
LIMIT = 1800.0


@dataclass(frozen=True, eq=False)
class Made:
    """Outputs on the scored samples, seconds of processor time that quantizing took, bytes of stored constants or None."""

    outputs: Array
    seconds: float
    bytes: int | None


@dataclass(frozen=True)
class Installed:
    """A toolkit's version, and the Python that can import it."""

    python: str
    version: str


@dataclass(frozen=True)
class Contender:
    """A toolkit's method, by its name in `hwq.validation.toolkits`."""

    name: str
    group: str

    @property
    def package(self) -> str:
        """The toolkit."""
        return METHODS[self.name][0]


def contend(network: Network, python: str, names: Sequence[str]) -> dict[str, Made | str]:
    """Quantize and run the scored samples in one thread of another process; what went wrong in the place of a failure.

    Raises
    ------
    Error
        The process itself fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hwq.export(network.graph, folder / "model.onnx")
        np.save(folder / "calibration.npy", network.calibration)
        np.save(folder / "images.npy", network.images)
        found: dict[str, Made | str] = {}
        for number, said in enumerate(_answers(python, name, *names)):
            if "error" in said:
                found[names[number]] = str(said["error"])
                continue
            written = folder / f"{number}.onnx"
            size = stored_bytes(hwq.load(str(written))) if written.is_file() else None
            found[names[number]] = Made(np.load(folder / f"{number}.npy"), float(said["seconds"]), size)
        return found


def installed(pythons: Sequence[PathLike] = ()) -> dict[str, Installed]:
    """The toolkits that this Python or one of the given ones can import; the first that can is taken.

    Raises
    ------
    Error
        One of the given programs is no Python.
    """
    found: dict[str, Installed] = {}
    for python in (sys.executable, *map(str, pythons)):
        for package, version in (_answers(python, "--versions") or [{}])[0].items():
            found.setdefault(package, Installed(python, version))
    return {package: found[package] for package in PACKAGES if package in found}


def _answers(python: str, *words: str) -> list[Mapping[str, Any]]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, str(SCRIPT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one}, timeout=LIMIT)
        if done.returncode == 0:
            return [dict(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
        why = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        why = str(error)
    raise Error("another toolkit did not run", where=f"{python} {SCRIPT.name}", why=why[:300])


def stored_bytes(graph: hwq.Graph) -> int:
    """Bytes of the constants that nodes read, several elements a byte where they are stored so."""
    return sum(one.bytes for one in graph.tensors.values() if one.constant and one.name in graph.consumers)


CONTENDERS = (
    *(Contender(f"onnxruntime {name}", "W8A8 static") for name in ("min-max", "entropy", "percentile 99.99")),
    *(Contender(f"NNCF, {name} bias correction", "W8A8 static") for name in ("fast", "full")),
    Contender("torchao PT2E static", "W8A8 static"),
    *(Contender(f"AIMET {name}", "W8A8 static") for name in ("min-max", "tf-enhanced")),
    *(Contender(name, "W8 dynamic") for name in ("onnxruntime dynamic", "torchao PT2E dynamic")),
    # AIMET's AdaRound takes minutes for each network, so that it stays out of the run: `toolkits` has it by its name.
    *(Contender(name, "W4A8") for name in ("onnxruntime W4, min-max", "AIMET W4, seq-MSE")),
)
