"""Run by path, in a process of its own, where need be under an emulator: eager quantized modules in, torch's outputs out.

``python emulated_torch.py OUTPUTS.npz VALUES`` builds every module of `hwq.verification.torch_dialects.EAGER` with weights over
all 8 bits and writes ``NAME|in|INDEX`` and ``NAME|out|INDEX`` until VALUES outputs a case are made. One thread.
"""

import sys
import warnings
import zlib

import numpy as np


def main(target: str, values: str) -> None:
    """Run every module."""
    import torch

    from hwq.verification.torch_dialects import EAGER, quietly

    torch.set_num_threads(1)
    torch.backends.quantized.engine = "fbgemm"
    made = {"version": np.array(str(torch.__version__))}
    for name, draw in EAGER.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = draw.build(torch, rng, True)
        index = count = 0
        while count < int(values):
            x = draw.inputs(rng, True)
            made[f"{name}|in|{index}"] = x
            made[f"{name}|out|{index}"] = y = quietly(torch, module, x)
            index, count = index + 1, count + y.size
    np.savez(target, **made)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
