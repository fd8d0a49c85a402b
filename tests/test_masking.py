"""A masked process sees an AVX2-only CPU, whichever library asks; a real fault stays one; what cannot be masked is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hwq import masking
from hwq.errors import Error

needs_masking = pytest.mark.skipif(not masking.maskable(), reason="neither CPUID faulting nor glibc")


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(code)
    return subprocess.run(masking.command(str(script), *arguments), capture_output=True, text=True, timeout=120)


@needs_masking
def test_every_library_believes_it(tmp_path: Path) -> None:
    code = """
import sys, threading
from hwq import masking
assert masking.masked()
from hwq.kernels import available_isas
from numpy._core._multiarray_umath import __cpu_features__ as features
assert not any(on for name, on in features.items() if "AVX512" in name), features
found = []
for _ in range(2):
    found.append(available_isas())
    thread = threading.Thread(target=lambda: found.append(available_isas()))
    thread.start(), thread.join()
assert len(set(found)) == 1, found
print(*found[0], *sys.argv[1:])
"""
    done = run(tmp_path, code, "an argument")
    assert done.returncode == 0, done.stderr
    paths = done.stdout.split()
    assert not any("vnni" in path for path in paths) and "ref" in paths and paths[-2:] == ["an", "argument"]
    assert "avx2" in paths or "avx2" not in Path("/proc/cpuinfo").read_text()


@needs_masking
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_onnxruntime_saturates_there(tmp_path: Path) -> None:
    # 255 x 127 twice is 64770; VPMADDUBSW gives 32767, VPDPBUSD the sum. Eight rows and columns, so that the packed kernel runs.
    code = """
import numpy as np, onnx, onnxruntime
from onnx import helper, numpy_helper
w = numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w")
node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 2, [8, 64])], [helper.make_tensor_value_info("y", 6, [8, 32])], [w])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(*np.unique(session.run(None, {"x": np.full((8, 64), 255, np.uint8)})[0]))
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(32 * 32767)]


@needs_masking
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_only_cpuid_instructions_change(tmp_path: Path) -> None:
    # The bytes 0F A2 as an immediate, a displacement, a vector instruction's tail and data stay; in a constructor CPUID is hidden already.
    source = """
unsigned leaf7[4];
__attribute__((constructor)) static void ask(void)
{
    __asm__ volatile("cpuid" : "=a"(leaf7[0]), "=b"(leaf7[1]), "=c"(leaf7[2]), "=d"(leaf7[3]) : "0"(7), "2"(0));
}
unsigned ask_later(void)
{
    unsigned a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b;
}
unsigned immediate(void) { unsigned x; __asm__ volatile("movl $0x11a20f22, %0" : "=r"(x)); return x; }
unsigned long wide(void) { unsigned long x; __asm__ volatile("movabs $0xa20fa20fa20fa20f, %0" : "=r"(x)); return x; }
long displaced(void) { long x; __asm__ volatile("leaq 0xa20f(%1), %0" : "=r"(x) : "r"(0L)); return x; }
unsigned tested(void) { unsigned x; __asm__ volatile("vzeroupper; movl $0xa20f, %%eax; testl $0xa20f, %%eax; setne %%al; movzbl %%al, %0" : "=r"(x) : : "eax"); return x; }
unsigned evex(void) { unsigned x = 1; __asm__ volatile("jmp 1f; vpaddd 0x0fa20f00(%%rax,%%rbx,4), %%ymm1, %%ymm2; .byte 0x62, 0xf1, 0x7d, 0x48, 0xfe, 0x90, 0x0f, 0xa2, 0, 0; cpuid; 1: addl $0x0fa2, %0" : "+r"(x)); return x; }
"""
    (tmp_path / "pairs.c").write_text(source)
    library = tmp_path / "pairs.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "pairs.c")], check=True)
    code = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.wide.restype = ctypes.c_ulong
hidden = 1 << 16 | 1 << 30 | 1 << 31
seen = (ctypes.c_uint * 4).in_dll(library, "leaf7")
assert not seen[1] & hidden and not seen[2] & 1 << 11
assert not library.ask_later() & hidden and library.ask_later() & 0xFFFFFFFF == seen[1]
print(library.immediate(), library.wide(), library.displaced(), library.tested(), library.evex())
"""
    done = run(tmp_path, code, str(library))
    assert done.returncode == 0, done.stderr
    assert [int(text) for text in done.stdout.split()] == [0x11A20F22, 0xA20FA20FA20FA20F, 0xA20F, 1, 0x0FA3]


@needs_masking
def test_a_real_fault_stays_a_fault(tmp_path: Path) -> None:
    for code in ("import ctypes; ctypes.string_at(8)", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"):
        assert run(tmp_path, code).returncode == -signal.SIGSEGV, code


@needs_masking
def test_faults_go_to_the_handler_that_was_there(tmp_path: Path) -> None:
    code = "import sys, ctypes, faulthandler; faulthandler.enable(); from hwq import masking; masking.mask(); import numpy; ctypes.string_at(8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == -signal.SIGSEGV and "Segmentation fault" in done.stderr and "Current thread" in done.stderr
    )


@needs_masking
def test_what_has_seen_the_cpu_cannot_be_masked() -> None:
    import numpy  # noqa: F401

    # Which library is named depends on the tests that ran before: any one is reason enough.
    with pytest.raises(Error, match=r"\w+ is loaded and has seen it"):
        masking.mask()
    assert not masking.masked()


def test_what_cannot_be_masked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwq._kernels.cpuid_masked", lambda: None)
    assert not masking.maskable() and not masking.masked()
    with pytest.raises(Error, match="lesser CPU"):
        masking.command("script.py")


@needs_masking
@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_the_benchmark_runs_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hwq", "bench", "--cpu", "avx2", "--only", "int8 256x", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    exact = {row["contender"]: row["exact"] for row in result["rows"]}
    assert result["cpu"] == "avx2" and result["path"] in ("avx2", "ref")
    assert exact["hwq u8s8"] and not exact["onnxruntime u8s8"]
