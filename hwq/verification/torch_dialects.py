"""How the torch dialects are verified: eager quantized modules on the fbgemm engine, and PT2E's decomposition.

Every case is a module of one operator, imported with `from_torch` and run on random and full-range data. Where this CPU has
no VNNI, fbgemm's products saturate; there the data of a dialect of exact products keep to 7 bits, as torch's own default
observers do.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.execution import compile as make_program
from hwq.execution import mkl
from hwq.graph import Array
from hwq.importers.torch import VERSION, from_torch
from hwq.progress import Progress
from hwq.verification import RATE_VALUES, Bound, Case, Verification, Verifier, apart, avx2
from hwq.verification.avx2 import has_vnni
from hwq.verification.onnx_dialects import differing
from hwq.verification.torch_modules import EAGER, RATES, REFERENCE, Draw, whole

__all__ = ["VERIFIERS", "modules", "quietly"]


BOUND = Bound(0.001, 1)
# What makes torch and MKL run the functions of an AVX2 CPU on any other.
AVX2 = MappingProxyType({"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"})

# The dialects of CPUs with AVX-512: which of its two codes MKL runs there, and on whose.
MKL = MappingProxyType({"torch-fbgemm-avx512": ("avx512", "Intel"), "torch-fbgemm-avx512-amd": ("avx2", "AMD")})


def quietly(torch: Any, module: Any, x: Array) -> Array:
    """torch's output, on the fbgemm engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return np.asarray(module(torch.from_numpy(x)).numpy())
    finally:
        torch.backends.quantized.engine = before


def modules(torch: Any, name: str, draw: Draw, full: bool) -> Iterator[tuple[Any, Any, np.random.Generator]]:
    """A module of the case, what `from_torch` makes of it, and the generator for its inputs."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = draw.build(torch, rng, full)
            yield module, from_torch(module, torch.zeros(draw.shape)), rng
    finally:
        torch.backends.quantized.engine = before


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError as error:
        raise Error(
            "torch is not installed", why="the dialect is compared with it", remedy=f"pip install torch=={VERSION}"
        ) from error
    return torch


def _decompositions(dialect: str, values: int, progress: Progress | None) -> Verification:
    """PT2E's operators, in this process."""
    torch, cases = _torch(), []
    for done, (name, draw) in enumerate({**REFERENCE, **RATES}.items(), start=1):
        compared, wrong, distance, failure = 0, 0, 0.0, ""
        try:
            for module, graph, rng in modules(torch, name, draw, True):
                program = make_program(graph)
                while compared < (max(values, RATE_VALUES) if name in RATES else values):
                    x = draw.inputs(rng, True)
                    ours, theirs = np.asarray(program(x)), quietly(torch, module, x)
                    compared, wrong = compared + theirs.size, wrong + differing(ours, theirs)
                    distance = max(distance, apart(ours, theirs))
        except Exception as error:  # whatever torch raises belongs to this case alone
            failure = f"{type(error).__name__}: {str(error)[:300]}"
        bound = BOUND if name in RATES else Bound(0, 0)
        cases.append(Case(name, compared, wrong, name in RATES, failure, distance, bound.share, bound.distance))
        if progress is not None:
            progress(done, len(REFERENCE) + len(RATES), name)
    return Verification(dialect, "torch", str(torch.__version__), "module(x)", tuple(cases))


def _runs(torch: Any, code: str) -> bool:
    """Whether torch's tanh has the bits of one of MKL's codes here."""
    x = np.arange(0x3D000000, 0x41000000, 9973, dtype=np.uint32).view(np.float32)
    return differing(mkl.tanh(x, code), torch.tanh(torch.from_numpy(x)).numpy()) == 0


def _way(torch: Any, dialect: str) -> tuple[list[str], str, Mapping[str, str], bool]:
    """How torch runs as the dialect says: the command, in words too, its environment, and whether data keep all 8 bits.

    Raises
    ------
    Error
        This CPU cannot.
    """
    script = Path(__file__).with_name("emulated_torch.py")
    exact = has_vnni() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if dialect == "torch-fbgemm-avx2-saturating":
        return *avx2.command(dialect, script), {}, True
    if dialect in MKL and not exact:
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why="it has no AVX512-VNNI",
            remedy=f"use a CPU of {MKL[dialect][1]} that has it",
        )
    if dialect in MKL and not _runs(torch, MKL[dialect][0]):
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why=f"MKL does not run its {MKL[dialect][0]} code here; no option makes it",
            remedy=f"use a CPU of {MKL[dialect][1]}, or verify {next(name for name in MKL if name != dialect)}",
        )
    variables = AVX2 if dialect == "torch-fbgemm" else {}
    told = " ".join([*(f"{name}={value}" for name, value in variables.items()), f"python {script.name}"])
    return [sys.executable, str(script)], told, variables, exact


def _eager(dialect: str, values: int, progress: Progress | None) -> Verification:
    """Eager modules on the fbgemm engine, in a process of their own with the CPU that the dialect names."""
    torch = _torch()
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise Error("this build of torch has no fbgemm engine", remedy="verify on x86-64")
    command, given, variables, full = _way(torch, dialect)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "outputs.npz"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
        run = subprocess.run(
            [*command, str(target), str(values), str(int(full))], env=environment, capture_output=True, text=True
        )
        if run.returncode or not target.is_file():
            raise Error("torch failed", where=given, why=run.stderr[-500:] or None, remedy="see torch's message")
        made = dict(np.load(target))
    cases: list[Case] = []
    for done, (name, draw) in enumerate(EAGER.items(), start=1):
        compared = wrong = index = 0
        failure = str(made.get(f"{name}|failure", ""))
        try:
            for _, graph, _ in modules(torch, name, draw, whole(name, full)):
                program = make_program(graph, dialect)
                while f"{name}|in|{index}" in made:
                    theirs = made[f"{name}|out|{index}"]
                    compared += theirs.size
                    wrong += differing(np.asarray(program(made[f"{name}|in|{index}"])), theirs)
                    index += 1
        except Error as error:
            failure = str(error)[:300]
        cases.append(Case(name, compared, wrong, False, failure))
        if progress is not None:
            progress(done, len(EAGER), name)
    return Verification(dialect, "torch", str(made["version"]), given, tuple(cases))


VERIFIERS: Mapping[str, Verifier] = {
    "torch-fbgemm": _eager,
    "torch-fbgemm-avx2-saturating": _eager,
    "torch-fbgemm-avx512": _eager,
    "torch-fbgemm-avx512-amd": _eager,
    "torch-pt2e": _decompositions,
}
