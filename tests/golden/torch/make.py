"""Record what torch makes of every module of `hwq.verification.torch_modules`, so that it is tested without torch too.

``ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python tests/golden/torch/make.py`` writes, beside this file, the imported graph of each case (``GROUP-N.npz``), one input
and torch's own output for each (``outputs.npz``), and with which version on which CPU (``provenance.json``). The case where
bits are torch's own float order is left out. Eager cases need a CPU with VNNI. ``python tests/golden/torch/make.py avx512``
writes the outputs of the LSTM with the functions of an Intel CPU with AVX-512 (``avx512.npz``), and nothing else;
``avx512-amd``, those of an AMD CPU (``avx512-amd.npz``).
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np

from hwq.verification.avx2 import has_vnni
from hwq.verification.torch_dialects import modules, quietly
from hwq.verification.torch_modules import EAGER, REFERENCE

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the three kinds of files."""
    if not has_vnni():
        raise SystemExit("fbgemm's products saturate on this CPU: record on one with VNNI")
    import torch.ao.quantization.fx._decomposed

    other = sys.argv[1] if sys.argv[1:] in (["avx512"], ["avx512-amd"]) else ""
    if torch.backends.cpu.get_cpu_capability() != ("AVX512" if other else "AVX2"):
        raise SystemExit("this is not the environment that the first lines ask for")
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for group, table in (("eager", EAGER), ("pt2e", REFERENCE)):
        for index, (name, draw) in enumerate(table.items()):
            key = f"{group}-{index}"
            names[key] = name
            if other and "lstm" not in name:
                continue
            for module, graph, rng in modules(torch, name, draw, True):
                x = draw.inputs(rng, True)
                if other:
                    arrays[key] = quietly(torch, module, x)
                    continue
                arrays[f"{key}|in"], arrays[f"{key}|out"] = x, quietly(torch, module, x)
                graph.save(HERE / f"{key}.npz", overwrite=True)
    np.savez_compressed(HERE / f"{other or 'outputs'}.npz", **arrays)
    if other:
        return
    told = {
        "command": "ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python tests/golden/torch/make.py",
        "torch": str(torch.__version__),
        "engine": "fbgemm",
        "machine": platform.machine(),
        "cpu": "AVX512-VNNI or AVX-VNNI",
        "cases": names,
    }
    (HERE / "provenance.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
