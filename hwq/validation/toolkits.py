"""Other people's quantization of one ONNX model: a script for whichever Python has the toolkit; it needs nothing of hwq.

    PYTHON toolkits.py --versions          the toolkits that this Python has, as one line of JSON
    PYTHON toolkits.py FOLDER NAME ...     quantize FOLDER/model.onnx by each method and run it, a line of JSON for each

FOLDER holds calibration.npy and images.npy. Written for the n-th method: n.npy, its outputs, and n.onnx where the toolkit
makes a file, which onnxruntime then runs with exact integer products (``session.x64quantprecision=1``; on a CPU with VNNI they are
anyway). AIMET and torchao run their own simulation in float. One thread everywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("onnxruntime", "nncf", "torchao", "aimet_onnx")
# Iterations of AIMET's AdaRound: its default of 10,000 takes half an hour of one core for ResNet-8.
ADAROUND_ITERATIONS = 1500


class Job:
    """One model with its samples; a method fills `outputs`, or writes `quantized`."""

    def __init__(self, folder: Path, number: int):
        self.model, self.quantized = folder / "model.onnx", folder / f"{number}.onnx"
        self.calibration = np.load(folder / "calibration.npy")
        self.images = np.load(folder / "images.npy")
        self.outputs: Any = None
        self.seconds: float | None = None
        # Images run at once. Dynamic ranges cover the whole batch, so there one at a time is what the method means.
        self.step = 50

    @property
    def input(self) -> str:
        """Name of the model's input."""
        import onnx

        return str(onnx.load(str(self.model)).graph.input[0].name)

    def samples(self, size: int = 1) -> list[dict[str, Any]]:
        """The calibration samples as onnxruntime's feeds."""
        name = self.input
        return [{name: self.calibration[at : at + size]} for at in range(0, len(self.calibration), size)]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: Any, images: Any, size: int = 50) -> Any:
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[at : at + size]})[0] for at in range(0, len(images), size)])


def _static(method: str, weights: str = "QInt8") -> Callable[[Job], None]:
    def make(job: Job) -> None:
        from onnxruntime import quantization as tool

        class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rest = iter(job.samples())

            def get_next(self) -> dict[str, Any] | None:
                return next(self.rest, None)

        extra: dict[str, Any] = {"CalibPercentile": 99.99} if method == "Percentile" else {}
        tool.quantize_static(
            str(job.model), str(job.quantized), Reader(), quant_format=tool.QuantFormat.QDQ, per_channel=True,
            activation_type=tool.QuantType.QUInt8, weight_type=tool.QuantType[weights],
            calibrate_method=tool.CalibrationMethod[method], extra_options=extra,
        )  # fmt: skip

    return make


def _dynamic(job: Job) -> None:
    from onnxruntime import quantization as tool

    # Its dynamic convolution takes uint8 weights only.
    tool.quantize_dynamic(str(job.model), str(job.quantized), weight_type=tool.QuantType.QUInt8)
    job.step = 1


def _nncf(fast: bool) -> Callable[[Job], None]:
    def make(job: Job) -> None:
        import onnx

        nncf: Any = importlib.import_module("nncf")
        name = job.input
        data = nncf.Dataset(list(job.calibration), lambda one: {name: one[None]})
        made = nncf.quantize(
            onnx.load(str(job.model)), data, subset_size=len(job.calibration), fast_bias_correction=fast
        )
        onnx.save(made, str(job.quantized))

    return make


def _torchao(dynamic: bool) -> Callable[[Job], None]:
    def make(job: Job) -> None:
        import torch

        onnx2torch: Any = importlib.import_module("onnx2torch")
        pt2e: Any = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
        inductor: Any = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
        torch.set_num_threads(1)
        module = onnx2torch.convert(str(job.model)).eval()
        begun = time.process_time()
        example = (torch.from_numpy(job.calibration[:2]),)
        batch = ({0: torch.export.Dim("N")},)
        exported = torch.export.export(module, example, dynamic_shapes=batch).module()
        quantizer = inductor.X86InductorQuantizer()
        quantizer.set_global(inductor.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
        prepared = pt2e.prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for at in range(0, len(job.calibration), 25):
                prepared(torch.from_numpy(job.calibration[at : at + 25]))
            converted = pt2e.convert_pt2e(prepared)
            job.seconds = time.process_time() - begun
            job.step = 1 if dynamic else job.step
            parts = [job.images[at : at + job.step] for at in range(0, len(job.images), job.step)]
            job.outputs = np.concatenate([converted(torch.from_numpy(part)).numpy() for part in parts])

    return make


def _aimet(weights: str, scheme: str, finish: str = "") -> Callable[[Job], None]:
    def make(job: Job) -> None:
        import onnx

        aimet: Any = importlib.import_module("aimet_onnx")
        begun = time.process_time()
        sim = aimet.QuantizationSimModel(
            onnx.load(str(job.model)), param_type=weights, activation_type="int8", quant_scheme=scheme,
            providers=["CPUExecutionProvider"],
        )  # fmt: skip
        samples = job.samples(25)
        if finish == "seq-mse":
            aimet.apply_seq_mse(sim, samples)
        if finish == "adaround":
            aimet.apply_adaround(sim, samples, num_iterations=ADAROUND_ITERATIONS)
        sim.compute_encodings(samples)
        job.seconds = time.process_time() - begun
        job.outputs = _run(sim.session, job.images)
        with contextlib.suppress(Exception):  # only its bytes are wanted
            onnx.save(sim.to_onnx_qdq(prequantize_constants=True), str(job.quantized))

    return make


METHODS: dict[str, tuple[str, Callable[[Job], None]]] = {
    "onnxruntime min-max": ("onnxruntime", _static("MinMax")),
    "onnxruntime entropy": ("onnxruntime", _static("Entropy")),
    "onnxruntime percentile 99.99": ("onnxruntime", _static("Percentile")),
    "onnxruntime W4, min-max": ("onnxruntime", _static("MinMax", "QInt4")),
    "onnxruntime dynamic": ("onnxruntime", _dynamic),
    "NNCF, fast bias correction": ("nncf", _nncf(True)),
    "NNCF, full bias correction": ("nncf", _nncf(False)),
    "torchao PT2E static": ("torchao", _torchao(False)),
    "torchao PT2E dynamic": ("torchao", _torchao(True)),
    "AIMET min-max": ("aimet_onnx", _aimet("int8", "min_max")),
    "AIMET tf-enhanced": ("aimet_onnx", _aimet("int8", "tf_enhanced")),
    "AIMET W4, seq-MSE": ("aimet_onnx", _aimet("int4", "min_max", "seq-mse")),
    "AIMET W4, AdaRound": ("aimet_onnx", _aimet("int4", "tf_enhanced", "adaround")),
}


def versions() -> dict[str, str]:
    """Version of each toolkit that is installed here."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package.replace("_", "-"))
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress and advice of the toolkits stay off standard output, which carries JSON."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def measure(folder: Path, number: int, name: str) -> dict[str, Any]:
    """Quantize and run; seconds of processor time, or what went wrong."""
    try:
        with _quiet():
            job = Job(folder, number)
            begun = time.process_time()
            METHODS[name][1](job)
            seconds = time.process_time() - begun if job.seconds is None else job.seconds
            if job.outputs is None:
                job.outputs = _run(_session(job.quantized), job.images, job.step)
        np.save(folder / f"{number}.npy", np.asarray(job.outputs, np.float32))
    except Exception as error:  # whatever the toolkit raises is its answer
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"seconds": seconds}


def main() -> None:
    """See the module."""
    if sys.argv[1] == "--versions":
        print(json.dumps(versions()))
        return
    for number, name in enumerate(sys.argv[2:]):
        print(json.dumps(measure(Path(sys.argv[1]), number, name)), flush=True)


if __name__ == "__main__":
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    main()
