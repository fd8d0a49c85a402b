"""How the torch dialects are verified: eager quantized modules on the fbgemm engine, and PT2E's decomposition.

Every case is a module of one operator, imported with `from_torch` and run on random and full-range data. Where this CPU has
no VNNI, fbgemm's products saturate; there the data of a dialect of exact products keep to 7 bits, as torch's own default
observers do.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.execution import compile as make_program
from hwq.execution import mkl
from hwq.graph import Array
from hwq.importers.torch import VERSION, from_torch
from hwq.progress import Progress
from hwq.verification import RATE_VALUES, Bound, Case, Verification, Verifier, apart, avx2
from hwq.verification.avx2 import has_vnni
from hwq.verification.onnx_dialects import differing

__all__ = ["EAGER", "RATES", "REFERENCE", "VERIFIERS", "Draw", "modules", "quietly", "whole"]


@dataclass(frozen=True)
class Draw:
    """What a case is made of.

    Attributes
    ----------
    build : callable
        ``(torch, rng, full) -> module``; `full` allows weights over all 8 bits.
    shape : tuple of int
        Of the one float32 input.
    scale, point : float, int
        Of the module's first quantization: inputs lie on and between its steps.
    """

    build: Callable[[Any, np.random.Generator, bool], Any]
    shape: tuple[int, ...]
    scale: float = float(np.float32(0.03))
    point: int = 71

    def inputs(self, rng: np.random.Generator, full: bool) -> Array:
        """Values on steps, on ties and beyond the range (with `full`); else on the steps of 7 bits."""
        if not full:
            steps = rng.integers(0, 128, self.shape).astype(np.float32)
        else:
            steps = (rng.integers(-20, 551, self.shape) / 2).astype(np.float32)
        made: Array = ((steps - np.float32(self.point)) * np.float32(self.scale)).astype(np.float32)
        return made


def _quantized(torch: Any, rng: np.random.Generator, shape: tuple[int, ...], full: bool) -> tuple[Any, Any, float]:
    """Stored weights with a scale a channel, a float bias, and an output scale that uses the range."""
    low, high = (-128, 128) if full else (-64, 65)
    stored = torch.from_numpy(rng.integers(low, high, shape).astype(np.int8))
    scales = torch.from_numpy(rng.uniform(0.002, 0.02, shape[0]).astype(np.float32).astype(np.float64))
    zeros = torch.zeros(shape[0], dtype=torch.int64)
    weights = torch._make_per_channel_quantized_tensor(stored, scales, zeros, 0)
    bias = torch.from_numpy(rng.standard_normal(shape[0]).astype(np.float32))
    depth = float(np.prod(shape[1:]))
    return weights, bias, float(np.float32(0.03 * 0.011 * 74 * 74 * np.sqrt(depth) / 60))


def _around(torch: Any, draw: Draw, *parts: Any) -> Any:
    quantized = torch.ao.nn.quantized
    first = quantized.Quantize(draw.scale, draw.point, torch.quint8)
    return torch.nn.Sequential(first, *parts, quantized.DeQuantize()).eval()


def _linear(relu: bool) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ao.nn.intrinsic.quantized.LinearReLU if relu else torch.ao.nn.quantized.Linear
        module = own(97, 33)
        weights, bias, scale = _quantized(torch, rng, (33, 97), full)
        module.set_weight_bias(weights, bias)
        module.scale, module.zero_point = scale, 93
        return _around(torch, EAGER["linear"], module)

    return build


def _conv(groups: int, relu: bool, **options: Any) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ao.nn.intrinsic.quantized.ConvReLU2d if relu else torch.ao.nn.quantized.Conv2d
        module = own(16, 16, 3, groups=groups, **options)
        weights, bias, scale = _quantized(torch, rng, (16, 16 // groups, 3, 3), full)
        module.set_weight_bias(weights, bias)
        module.scale, module.zero_point = scale, 93
        return _around(torch, EAGER["conv2d"], module)

    return build


def _binary(name: str) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        nn = torch.ao.nn.quantized

        class Both(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                draw = EAGER[name]
                self.first = nn.Quantize(draw.scale, draw.point, torch.quint8)
                self.second = nn.Quantize(float(np.float32(0.021)), 130, torch.quint8)
                self.both, self.last = nn.QFunctional(), nn.DeQuantize()
                self.both.scale = float(np.float32(0.041 if "add" in name else 0.11))
                self.both.zero_point = 117

            def forward(self, x: Any) -> Any:
                return self.last(getattr(self.both, name)(self.first(x), self.second(x.flip(0))))

        return Both().eval()

    return build


def _moved(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    nn = torch.nn
    return _around(torch, EAGER["conv2d"], nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())


def _dynamic(torch: Any, rng: np.random.Generator, full: bool) -> Any:
    module = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 20)).eval()
    for part in module.parameters():
        part.data = torch.from_numpy(rng.standard_normal(part.shape).astype(np.float32))
    return torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)


def _recurrent(batch_first: bool, channels: bool) -> Callable[[Any, np.random.Generator, bool], Any]:
    """Two layers of dynamic LSTM, both directions, its states cut out of the input; output and states in one vector."""

    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        size, layers = 57, 2

        class Recurrent(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.lstm = torch.nn.LSTM(32, size, layers, batch_first=batch_first, bidirectional=True)

            def forward(self, x: Any) -> Any:
                states = x.transpose(0, 1)[: 2 * layers] if batch_first else x[: 2 * layers]
                states = states.repeat(1, 1, 2)[:, :, :size].contiguous() * 0.0625
                y, (h, c) = self.lstm(x, (states, states.flip(2)))
                return torch.cat([y.flatten(), h.flatten(), c.flatten()])

        module = Recurrent().eval()
        for part in module.parameters():
            part.data = torch.from_numpy(rng.standard_normal(part.shape).astype(np.float32) * np.float32(0.12))
        quantization = torch.ao.quantization
        config = quantization.per_channel_dynamic_qconfig if channels else quantization.default_dynamic_qconfig
        return quantization.quantize_dynamic(module, {torch.nn.LSTM: config}, dtype=torch.qint8)

    return build


def _decomposed(dtype: str, low: int, high: int, op: str) -> Callable[[Any, np.random.Generator, bool], Any]:
    def build(torch: Any, rng: np.random.Generator, full: bool) -> Any:
        own = torch.ops.quantized_decomposed
        first = (float(np.float32(0.03)), 71, low, high, getattr(torch, dtype))
        second = (float(np.float32(0.047)), 13, low, high, getattr(torch, dtype))

        class Decomposed(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.linear = torch.nn.Linear(64, 64)

            def forward(self, x: Any) -> Any:
                y = own.dequantize_per_tensor(own.quantize_per_tensor(x, *first), *first)
                if op == "add":
                    y = y.relu() + y.flip(0)
                elif op == "mul":
                    y = y * y.flip(0)
                elif op == "linear":
                    # Stays stored: what differs differs by steps.
                    return own.quantize_per_tensor(self.linear(y), *second)
                return own.dequantize_per_tensor(own.quantize_per_tensor(y, *second), *second)

        return Decomposed().eval()

    return build


EAGER: Mapping[str, Draw] = MappingProxyType(
    {
        "linear": Draw(_linear(False), (128, 97)),
        "linear_relu": Draw(_linear(True), (128, 97)),
        "conv2d": Draw(_conv(1, False, padding=1), (2, 16, 14, 14)),
        "conv2d_relu strided": Draw(_conv(1, True, stride=2, padding=(1, 0), dilation=(1, 2)), (2, 16, 14, 14)),
        "conv2d groups": Draw(_conv(4, False), (2, 16, 14, 14)),
        "conv2d depthwise": Draw(_conv(16, False, padding=1), (2, 16, 14, 14)),
        "add": Draw(_binary("add"), (64, 128)),
        "add_relu": Draw(_binary("add_relu"), (64, 128)),
        "mul": Draw(_binary("mul"), (64, 128)),
        "relu, max_pool2d, flatten": Draw(_moved, (2, 16, 14, 14)),
        "linear_dynamic": Draw(_dynamic, (64, 64)),
        "lstm_dynamic": Draw(_recurrent(False, False), (12, 5, 32)),
        "lstm_dynamic batch_first": Draw(_recurrent(True, True), (5, 12, 32)),
    }
)
REFERENCE: Mapping[str, Draw] = MappingProxyType(
    {
        "quantize_per_tensor uint8": Draw(_decomposed("uint8", 0, 255, "none"), (128, 64)),
        "quantize_per_tensor int8": Draw(_decomposed("int8", -128, 127, "none"), (128, 64)),
        "quantize_per_tensor 0..127": Draw(_decomposed("uint8", 0, 127, "none"), (128, 64)),
        "quantize_per_tensor -127..127": Draw(_decomposed("int8", -127, 127, "none"), (128, 64)),
        "add": Draw(_decomposed("uint8", 0, 255, "add"), (128, 64)),
        "mul": Draw(_decomposed("int8", -128, 127, "mul"), (128, 64)),
    }
)
# The order of a float product is torch's own.
RATES: Mapping[str, Draw] = MappingProxyType({"linear": Draw(_decomposed("uint8", 0, 255, "linear"), (128, 64))})
BOUND = Bound(0.001, 1)
# What makes torch and MKL run the functions of an AVX2 CPU on any other.
AVX2 = MappingProxyType({"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"})

# The dialects of CPUs with AVX-512: which of its two codes MKL runs there, and on whose.
MKL = MappingProxyType({"torch-fbgemm-avx512": ("avx512", "Intel"), "torch-fbgemm-avx512-amd": ("avx2", "AMD")})


def quietly(torch: Any, module: Any, x: Array) -> Array:
    """torch's output, on the fbgemm engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return np.asarray(module(torch.from_numpy(x)).numpy())
    finally:
        torch.backends.quantized.engine = before


def whole(name: str, full: bool) -> bool:
    """Whether a case's data keep all 8 bits: depthwise products saturate on every CPU."""
    return full or "depthwise" in name


def modules(torch: Any, name: str, draw: Draw, full: bool) -> Iterator[tuple[Any, Any, np.random.Generator]]:
    """A module of the case, what `from_torch` makes of it, and the generator for its inputs."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = draw.build(torch, rng, full)
            yield module, from_torch(module, torch.zeros(draw.shape)), rng
    finally:
        torch.backends.quantized.engine = before


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError as error:
        raise Error(
            "torch is not installed", why="the dialect is compared with it", remedy=f"pip install torch=={VERSION}"
        ) from error
    return torch


def _decompositions(dialect: str, values: int, progress: Progress | None) -> Verification:
    """PT2E's operators, in this process."""
    torch, cases = _torch(), []
    for done, (name, draw) in enumerate({**REFERENCE, **RATES}.items(), start=1):
        compared, wrong, distance, failure = 0, 0, 0.0, ""
        try:
            for module, graph, rng in modules(torch, name, draw, True):
                program = make_program(graph)
                while compared < (max(values, RATE_VALUES) if name in RATES else values):
                    x = draw.inputs(rng, True)
                    ours, theirs = np.asarray(program(x)), quietly(torch, module, x)
                    compared, wrong = compared + theirs.size, wrong + differing(ours, theirs)
                    distance = max(distance, apart(ours, theirs))
        except Exception as error:  # whatever torch raises belongs to this case alone
            failure = f"{type(error).__name__}: {str(error)[:300]}"
        bound = BOUND if name in RATES else Bound(0, 0)
        cases.append(Case(name, compared, wrong, name in RATES, failure, distance, bound.share, bound.distance))
        if progress is not None:
            progress(done, len(REFERENCE) + len(RATES), name)
    return Verification(dialect, "torch", str(torch.__version__), "module(x)", tuple(cases))


def _runs(torch: Any, code: str) -> bool:
    """Whether torch's tanh has the bits of one of MKL's codes here."""
    x = np.arange(0x3D000000, 0x41000000, 9973, dtype=np.uint32).view(np.float32)
    return differing(mkl.tanh(x, code), torch.tanh(torch.from_numpy(x)).numpy()) == 0


def _way(torch: Any, dialect: str) -> tuple[list[str], str, Mapping[str, str], bool]:
    """How torch runs as the dialect says: the command, in words too, its environment, and whether data keep all 8 bits.

    Raises
    ------
    Error
        This CPU cannot.
    """
    script = Path(__file__).with_name("emulated_torch.py")
    exact = has_vnni() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if dialect == "torch-fbgemm-avx2-saturating":
        return *avx2.command(dialect, script), {}, True
    if dialect in MKL and not exact:
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why="it has no AVX512-VNNI",
            remedy=f"use a CPU of {MKL[dialect][1]} that has it",
        )
    if dialect in MKL and not _runs(torch, MKL[dialect][0]):
        raise Error(
            f"dialect {dialect} cannot be verified on this CPU",
            why=f"MKL does not run its {MKL[dialect][0]} code here; no option makes it",
            remedy=f"use a CPU of {MKL[dialect][1]}, or verify {next(name for name in MKL if name != dialect)}",
        )
    variables = AVX2 if dialect == "torch-fbgemm" else {}
    told = " ".join([*(f"{name}={value}" for name, value in variables.items()), f"python {script.name}"])
    return [sys.executable, str(script)], told, variables, exact


def _eager(dialect: str, values: int, progress: Progress | None) -> Verification:
    """Eager modules on the fbgemm engine, in a process of their own with the CPU that the dialect names."""
    torch = _torch()
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise Error("this build of torch has no fbgemm engine", remedy="verify on x86-64")
    command, given, variables, full = _way(torch, dialect)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "outputs.npz"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
        run = subprocess.run(
            [*command, str(target), str(values), str(int(full))], env=environment, capture_output=True, text=True
        )
        if run.returncode or not target.is_file():
            raise Error("torch failed", where=given, why=run.stderr[-500:] or None, remedy="see torch's message")
        made = dict(np.load(target))
    cases: list[Case] = []
    for done, (name, draw) in enumerate(EAGER.items(), start=1):
        compared = wrong = index = 0
        failure = str(made.get(f"{name}|failure", ""))
        try:
            for _, graph, _ in modules(torch, name, draw, whole(name, full)):
                program = make_program(graph, dialect)
                while f"{name}|in|{index}" in made:
                    theirs = made[f"{name}|out|{index}"]
                    compared += theirs.size
                    wrong += differing(np.asarray(program(made[f"{name}|in|{index}"])), theirs)
                    index += 1
        except Error as error:
            failure = str(error)[:300]
        cases.append(Case(name, compared, wrong, False, failure))
        if progress is not None:
            progress(done, len(EAGER), name)
    return Verification(dialect, "torch", str(made["version"]), given, tuple(cases))


VERIFIERS: Mapping[str, Verifier] = {
    "torch-fbgemm": _eager,
    "torch-fbgemm-avx2-saturating": _eager,
    "torch-fbgemm-avx512": _eager,
    "torch-fbgemm-avx512-amd": _eager,
    "torch-pt2e": _decompositions,
}
