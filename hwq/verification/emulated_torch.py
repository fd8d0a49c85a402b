"""Run by path, in a process of its own, where need be under an emulator: eager quantized modules in, torch's outputs out.

``python emulated_torch.py OUTPUTS.npz VALUES [FULL]`` builds every module of `hwq.verification.torch_modules.EAGER`, with
weights and activations over all 8 bits (FULL 1, the default) or 7 (0), and writes ``NAME|in|INDEX`` and ``NAME|out|INDEX`` until
VALUES outputs a case are made, or ``NAME|failure``. One thread.
"""

import sys
import warnings
import zlib

import numpy as np


def main(target: str, values: str, full: str = "1") -> None:
    """Run every module."""
    import torch

    from hwq.verification.torch_dialects import quietly
    from hwq.verification.torch_modules import EAGER, whole

    torch.set_num_threads(1)
    torch.backends.quantized.engine = "fbgemm"
    made = {"version": np.array(str(torch.__version__))}
    for name, draw in EAGER.items():
        rng, every = np.random.default_rng(zlib.crc32(name.encode())), whole(name, full == "1")
        index = count = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = draw.build(torch, rng, every)
            while count < int(values):
                x = draw.inputs(rng, every)
                made[f"{name}|in|{index}"] = x
                made[f"{name}|out|{index}"] = y = quietly(torch, module, x)
                index, count = index + 1, count + y.size
        except Exception as error:  # whatever torch raises belongs to this case alone
            made[f"{name}|failure"] = np.array(f"{type(error).__name__}: {str(error)[:300]}")
    np.savez(target, **made)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
