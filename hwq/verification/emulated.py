"""Run by path, in a process of its own, where need be under an emulator: models in, onnxruntime's outputs out.

``python emulated.py MODELS.npz OUTPUTS.npz`` reads for every case ``NAME|model`` (the file's bytes) and ``NAME|in|INPUT``,
and writes ``NAME|out|INDEX``, or ``NAME|failure``. Default options, one thread. Nothing of hwq is imported.
"""

import sys

import numpy as np


def main(source: str, target: str) -> None:
    """Run every model."""
    import onnxruntime

    arrays = np.load(source)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    made = {}
    for key in arrays.files:
        if not key.endswith("|model"):
            continue
        name = key.removesuffix("|model")
        feeds = {other.split("|")[2]: arrays[other] for other in arrays.files if other.startswith(f"{name}|in|")}
        try:
            session = onnxruntime.InferenceSession(arrays[key].tobytes(), options, providers=["CPUExecutionProvider"])
            for index, value in enumerate(session.run(None, feeds)):
                made[f"{name}|out|{index}"] = value
        except Exception as error:  # told to the parent process
            made[f"{name}|failure"] = np.array(str(error)[:500])
    np.savez(target, **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
