"""A CPU without VNNI for the runtimes whose products saturate there: this one, this one masked, or an emulated one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hwq import masking
from hwq.errors import Error
from hwq.kernels import available_isas

__all__ = ["CPU", "command", "emulator", "has_vnni"]

# A CPU model of qemu that has AVX2 and FMA and neither AVX-512 nor VNNI.
CPU = "EPYC-Rome"
EMULATORS = ("qemu-x86_64-static", "qemu-x86_64")


def has_vnni() -> bool:
    """Whether this process sees AVX512-VNNI or AVX-VNNI."""
    return any("vnni" in path for path in available_isas())


def emulator() -> str | None:
    """qemu's user emulation of x86-64, where it is installed."""
    return next((found for name in EMULATORS if (found := shutil.which(name))), None)


def command(dialect: str, script: Path) -> tuple[list[str], str]:
    """How `script` runs on a CPU without VNNI, and the same in words, without this machine's folders.

    Raises
    ------
    Error
        This CPU has VNNI, cannot be masked, and there is no emulator.
    """
    if (
        masking.maskable()
    ):  # AVX-512 without VNNI is hidden too; and what a masked process executes must be masked itself
        return masking.command(str(script)), f"python -m hwq.masking {script.name}"
    if not has_vnni():
        return [sys.executable, str(script)], f"python {script.name}"
    found = emulator()
    if found is None:
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why="it has VNNI, where the runtime's products are exact, and cannot hide it (neither CPUID faulting nor glibc)",
            remedy="install qemu-user-static, which emulates a CPU without it, or use such a CPU",
        )
    return [found, "-cpu", CPU, sys.executable, str(script)], f"{Path(found).name} -cpu {CPU} python {script.name}"
