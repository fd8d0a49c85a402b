"""An AVX2-only CPU in a process of its own: every library in it finds neither AVX-512 nor VNNI, AVX-VNNI or AMX.

``python -m hwq.masking SCRIPT [ARGUMENT]...`` and ``python -m hwq.masking -m MODULE [ARGUMENT]...`` run a program so, at native
speed. Linux on x86-64, where the processor can make CPUID fault (Intel since Ivy Bridge, hypervisors that pass it on) or the C
library is glibc, whose dynamic linker lets every CPUID instruction be replaced before the library that holds it runs.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from hwq import _kernels
from hwq.errors import Error

__all__ = ["command", "mask", "maskable", "masked"]

# Packages whose libraries ask CPUID when they are loaded.
_ASK = ("ai_edge_litert", "numpy", "onnxruntime", "scipy", "tensorflow", "torch")


def masked() -> bool:
    """Whether this process sees an AVX2-only CPU."""
    return _kernels.cpuid_masked() is True


def maskable() -> bool:
    """Whether processes on this machine can."""
    return _kernels.cpuid_masked() is not None


def mask() -> None:
    """Let this thread, and all that it starts from now on, see an AVX2-only CPU; programs that it executes see all.

    Raises
    ------
    Error
        The kernel or the processor cannot, or a library that is loaded has already asked.
    """
    early = [name for name in _ASK if name in sys.modules]
    if early and not masked():
        raise Error(
            "the CPU cannot be masked any more",
            why=f"{early[0]} is loaded and has seen it",
            remedy="python -m hwq.masking SCRIPT, which masks first",
        )
    if not _kernels.mask_cpuid():
        raise _refusal()


def command(*arguments: str) -> list[str]:
    """The command that runs a script, or with ``-m`` a module, on an AVX2-only CPU.

    Raises
    ------
    Error
        The kernel or the processor cannot.
    """
    if not maskable():
        raise _refusal()
    return [sys.executable, "-m", "hwq.masking", *arguments]


def _refusal() -> Error:
    return Error(
        "this machine cannot show a program a lesser CPU",
        why="hiding takes Linux on x86-64, and glibc or a processor whose CPUID can fault (cpuid_fault in /proc/cpuinfo)",
        remedy="use such a machine, or a CPU that has AVX2 alone",
    )


def _run(arguments: Sequence[str]) -> None:
    """Mask, then be the program."""
    if not arguments or arguments == ["-m"]:
        raise Error("no program is named", remedy="python -m hwq.masking [-m MODULE | SCRIPT] [ARGUMENT]...")
    mask()
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    try:
        _run(sys.argv[1:])
    except Error as refused:
        sys.exit(f"hwq: {refused}")
