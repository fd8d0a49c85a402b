"""Other people's quantization on the same model and samples, where it is installed; all run in onnxruntime.

Its integer products are exact: ``session.x64quantprecision=1`` (on a CPU with VNNI they are anyway). Each contender writes
an ONNX file; its bytes of parameters are counted as hwq's own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import hwq
from hwq.graph import Array
from hwq.validation.networks import Network

__all__ = ["CONTENDERS", "Contender", "Made", "stored_bytes"]


@dataclass(frozen=True, eq=False)
class Made:
    """Outputs on the scored samples, seconds of processor time that quantizing took, bytes of stored constants."""

    outputs: Array
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Contender:
    """A toolkit's method: `make` writes the quantized file at its second argument."""

    name: str
    group: str
    package: str
    make: Callable[[Network, Path], None]

    @property
    def version(self) -> str | None:
        """The installed package's version; None where it cannot be imported."""
        try:
            importlib.import_module(self.package.replace("-", "_"))
            return importlib.metadata.version(self.package)
        except Exception:  # a broken installation is an absent one
            return None

    def run(self, network: Network) -> Made:
        """Quantize, then run the scored samples in one thread."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            begun = time.process_time()
            with _quiet():
                self.make(network, path)
            seconds = time.process_time() - begun
            return Made(_outputs(path, network), seconds, stored_bytes(hwq.load(str(path))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Other people's progress and advice stay off standard output, which may carry JSON."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def stored_bytes(graph: hwq.Graph) -> int:
    """Bytes of the constants that nodes read, several elements a byte where they are stored so."""
    return sum(one.bytes for one in graph.tensors.values() if one.constant and one.name in graph.consumers)


def _outputs(path: Path, network: Network) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    # Dynamic ranges cover the whole batch, so one sample at a time is what the method means.
    parts = [session.run(None, {name: network.images[i : i + 1]})[0] for i in range(len(network.images))]
    return np.concatenate(parts)


def _static(method: str) -> Callable[[Network, Path], None]:
    def make(network: Network, path: Path) -> None:
        from onnxruntime import quantization as tool

        class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.rest: Iterator[dict[str, Array]] = iter(
                    [{network.graph.inputs[0]: network.calibration[i : i + 1]} for i in range(len(network.calibration))]
                )

            def get_next(self) -> dict[str, Array] | None:
                return next(self.rest, None)

        extra: dict[str, Any] = {"CalibPercentile": 99.99} if method == "Percentile" else {}
        tool.quantize_static(
            str(network.path), str(path), Reader(), quant_format=tool.QuantFormat.QDQ, per_channel=True,
            activation_type=tool.QuantType.QUInt8, weight_type=tool.QuantType.QInt8,
            calibrate_method=tool.CalibrationMethod[method], extra_options=extra,
        )  # fmt: skip

    return make


def _dynamic(network: Network, path: Path) -> None:
    from onnxruntime import quantization as tool

    # Its dynamic convolution takes uint8 weights only.
    tool.quantize_dynamic(str(network.path), str(path), weight_type=tool.QuantType.QUInt8)


def _nncf(network: Network, path: Path) -> None:
    import onnx

    nncf: Any = importlib.import_module("nncf")

    name = network.graph.inputs[0]
    data = nncf.Dataset(list(network.calibration), lambda one: {name: one[None]})
    onnx.save(nncf.quantize(onnx.load(str(network.path)), data, subset_size=len(network.calibration)), str(path))


CONTENDERS = (
    Contender("onnxruntime min-max", "W8A8 static", "onnxruntime", _static("MinMax")),
    Contender("onnxruntime entropy", "W8A8 static", "onnxruntime", _static("Entropy")),
    Contender("onnxruntime percentile 99.99", "W8A8 static", "onnxruntime", _static("Percentile")),
    Contender("NNCF", "W8A8 static", "nncf", _nncf),
    Contender("onnxruntime dynamic", "W8 dynamic", "onnxruntime", _dynamic),
)
