"""The C checks, without Python: every path against ref in guarded buffers, plain and under the sanitizers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import c_checks
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which(os.environ.get("CC", "cc").split()[0]) is None,
    reason="no C compiler or no make",
)


def test_every_path_equals_ref_in_c() -> None:
    from hwq import kernels

    out = c_checks.output("check")
    assert re.search(r"\d{5,} checks, 0 failed", out)
    assert f"paths: {' '.join(kernels.available_isas())}\n" in out  # the same probe as in Python


def test_the_sanitizers_find_nothing() -> None:
    out = c_checks.output("sanitized")
    assert "checks, 0 failed" in out or "skipped" in out


def test_the_engines_without_python() -> None:
    out = subprocess.run(
        ["make", "-C", str(ROOT / "simulators" / "tests")], capture_output=True, text=True, timeout=900
    )
    assert out.returncode == 0, (out.stdout + out.stderr)[-4000:]
    assert len(re.findall(r"\d{4,} checks, 0 failed", out.stdout)) == (1 if "skipped" in out.stdout else 2)


def need(present: bool, what: str) -> None:
    """Skip without a tool on a stranger's machine; in CI, which installs it, its absence is a failure."""
    if present:
        return
    if os.environ.get("CI", "").lower() in ("1", "true", "yes") and platform.machine() == "x86_64":
        pytest.fail(f"{what} is missing, and CI installs it (.ci/run)")
    pytest.skip(f"no {what}")


def test_the_same_sources_pass_on_aarch64() -> None:
    """Advanced SIMD, SDOT and SMMLA under an emulator."""
    need(shutil.which("aarch64-linux-gnu-gcc") is not None, "aarch64-linux-gnu-gcc")
    need(shutil.which("qemu-aarch64-static") is not None, "qemu-aarch64-static")
    out = c_checks.output("arm")
    assert "paths: ref neon neondot i8mm\n" in out
    assert re.search(r"\d{5,} checks, 0 failed", out)


def test_vnni_passes_where_the_cpu_lacks_it() -> None:
    """AVX-VNNI and AVX-512 VNNI spelled out in AVX2 by SIMDe."""
    from hwq import kernels

    if "avx2" not in kernels.available_isas():
        pytest.skip("the emulation needs AVX2")
    need(Path("/usr/include/simde/x86/avx512.h").exists(), "libsimde-dev")
    out = c_checks.output("simde")
    assert "paths: avxvnni avx512vnni\n" in out
    assert re.search(r"\d{4,} checks, 0 failed", out)


# The one choice of a path, what a signal handler (which has nowhere else to look) passes foreign faults on to, objects seen.
GLOBALS = {
    "isa.c": ["static _Atomic int chosen = -1;"],
    "cpuid.c": ["static struct sigaction before;", "static int faulting;"],
    "cpuid_sites.c": ["static reading last;"],
}


def test_the_c_house_stays_out_of_python_and_the_heap() -> None:
    """No Python.h, no allocation, no stdio in kernels/src; no mutable global but the chosen path and the masked signal's handler."""
    for file in sorted((ROOT / "kernels").glob("src/*")) + sorted((ROOT / "kernels").glob("include/hwq/*")):
        code = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.DOTALL)
        for word in ("Python.h", "stdio.h", "malloc(", "calloc(", "free(", "__builtin_cpu_supports", "-march"):
            assert word not in code, f"{file.name}: {word}"
        mutable = re.findall(r"^\w[\w ]+ \**\w+(?:\[\w*\])*(?: =.*)?;", code, re.MULTILINE)
        mutable = [line for line in mutable if not re.match(r"typedef|enum|return|goto", line) and "_fn " not in line]
        mutable = [line for line in mutable if "const" not in line]
        assert mutable == GLOBALS.get(file.name, []), file.name
