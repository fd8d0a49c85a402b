"""The torch dialects: torch's recorded outputs bit for bit, and whole quantized networks where torch is installed."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.dialect import DIALECTS
from hwq.errors import Error, NotSupportedYet

GOLDEN = Path(__file__).resolve().parent / "golden" / "torch"
CASES = json.loads((GOLDEN / "provenance.json").read_text())["cases"]
OUTPUTS = np.load(GOLDEN / "outputs.npz")
# The same modules and inputs under qemu-x86_64-static 7.2 -cpu EPYC-Rome (AVX2, no VNNI), torch 2.13.0:
# qemu-x86_64-static -cpu EPYC-Rome python hwq/verification/emulated_torch.py OUTPUTS.npz 20000
SATURATING = np.load(GOLDEN / "saturating.npz")
# Of an Intel CPU with AVX-512 and of an AMD one, by the arguments avx512 and avx512-amd of make.py.
AVX512 = {f"torch-fbgemm-{name}": np.load(GOLDEN / f"{name}.npz") for name in ("avx512", "avx512-amd")}
MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
needs_torch = pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("path", ["ref", None], ids=["ref", "best"])
@pytest.mark.parametrize("key", CASES, ids=lambda key: f"{key} {CASES[key]}")
def test_recorded_outputs_of_torch(key: str, path: str | None) -> None:
    before = hwq.kernels.isa()
    try:
        if path is not None:
            hwq.kernels.use_isa(path)
        graph = hwq.Graph.load(GOLDEN / f"{key}.npz")
        assert graph.dialect == ("torch-fbgemm" if key.startswith("eager") else "torch-pt2e")
        made = hwq.execute(graph, OUTPUTS[f"{key}|in"])
    finally:
        hwq.kernels.use_isa(before)
    want = OUTPUTS[f"{key}|out"]
    assert made.dtype == want.dtype and len(np.unique(want)) > 20
    assert np.array_equal(made.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("path", ["ref", None], ids=["ref", "best"])
@pytest.mark.parametrize("key", SATURATING.files)
def test_recorded_outputs_of_torch_without_vnni(key: str, path: str | None) -> None:
    before = hwq.kernels.isa()
    try:
        if path is not None:
            hwq.kernels.use_isa(path)
        graph = hwq.Graph.load(GOLDEN / f"{key}.npz")
        made = hwq.execute(graph, OUTPUTS[f"{key}|in"], "torch-fbgemm-avx2-saturating")
    finally:
        hwq.kernels.use_isa(before)
    assert np.array_equal(made.view(np.uint32), SATURATING[key].view(np.uint32))
    assert np.any(made != OUTPUTS[f"{key}|out"])


@pytest.mark.parametrize("dialect", AVX512)
@pytest.mark.parametrize("key", AVX512["torch-fbgemm-avx512"].files)
def test_recorded_outputs_of_torch_with_avx512(key: str, dialect: str) -> None:
    made = hwq.execute(hwq.Graph.load(GOLDEN / f"{key}.npz"), OUTPUTS[f"{key}|in"], dialect)
    assert np.array_equal(made.view(np.uint32), AVX512[dialect][key].view(np.uint32))
    assert np.any(made != OUTPUTS[f"{key}|out"])


def test_the_formula_of_another_runtime_differs_on_these_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # The recorded inputs lie on ties: ONNX's quantization must show up as a difference, or the comparison sees nothing.
    key = next(key for key, name in CASES.items() if name == "relu, max_pool2d, flatten")
    graph = hwq.Graph.load(GOLDEN / f"{key}.npz")
    made = hwq.execute(graph, OUTPUTS[f"{key}|in"], dialect="onnx")
    assert np.count_nonzero(made != OUTPUTS[f"{key}|out"])


def test_the_dialects_say_what_verified_them() -> None:
    for name in (
        "torch-fbgemm",
        "torch-fbgemm-avx512",
        "torch-fbgemm-avx512-amd",
        "torch-fbgemm-avx2-saturating",
        "torch-pt2e",
    ):
        dialect = DIALECTS[name]
        assert dialect.status == "verified" and "0 differ" in dialect.evidence and "2.13.0" in dialect.runtime


def _network(torch: Any) -> Any:
    nn, quantization = torch.nn, torch.ao.quantization

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = quantization.QuantStub(), quantization.DeQuantStub()
            self.conv, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
            self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
            self.pool, self.linear = nn.MaxPool2d(2), nn.Linear(128, 10)
            self.sum, self.product = torch.ao.nn.quantized.FloatFunctional(), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x: Any) -> Any:
            y = self.relu(self.conv(self.first(x)))
            y = self.sum.add_relu(y, self.depthwise(y))
            y = self.product.mul(y, self.point(y))
            return self.last(self.linear(self.pool(y).flatten(1)))

    return Network().eval()


@needs_torch
def test_a_whole_eager_network_gives_torchs_bits() -> None:
    import torch

    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no fbgemm engine")
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _network(torch)
            # The default observers of fbgemm keep activations to 7 bits: no CPU saturates.
            module.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
            torch.ao.quantization.fuse_modules(module, [["conv", "relu"]], inplace=True)
            prepared = torch.ao.quantization.prepare(module)
            x = torch.randn(32, 3, 8, 8)
            prepared(x)
            quantized = torch.ao.quantization.convert(prepared)
            graph = hwq.from_torch(quantized, x)
            want = quantized(x).numpy()
    finally:
        torch.backends.quantized.engine = before
    assert graph.dialect == "torch-fbgemm"
    assert np.array_equal(hwq.execute(graph, x.numpy()), want)


@needs_torch
def test_quantized_modules_without_a_stand_in_are_named() -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = torch.nn.ModuleDict({"memory": torch.ao.nn.quantized.Softmax(-1, 0.01, 0)})
        with pytest.raises(Error, match="not reproduced") as caught:
            hwq.from_torch(memory, torch.randn(3, 1, 4))
    assert "memory" in str(caught.value.where)


@needs_torch
def test_a_scale_that_is_no_float32_is_refused() -> None:
    import torch
    import torch.ao.quantization.fx._decomposed

    # 1 / s rounds to another float32 than 1 / f32(s) does.
    scale = next(s for s in np.linspace(0.01, 0.02, 1000) if np.float32(1 / s) != np.float32(1) / np.float32(s))

    class Quantized(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            own = torch.ops.quantized_decomposed
            stored = own.quantize_per_tensor(x, float(scale), 3, 0, 255, torch.uint8)
            return own.dequantize_per_tensor(stored, float(scale), 3, 0, 255, torch.uint8)

    with pytest.raises(Error, match="no float32"):
        hwq.from_torch(Quantized(), torch.randn(4))


def test_scales_a_channel_that_are_inputs_are_refused() -> None:
    tensors = [
        hwq.Tensor("x", "float32", (2, 3)),
        hwq.Tensor("q", "uint8", (2, 3)),
        hwq.Tensor("s", "float32", (3,), None),
    ]
    graph = hwq.Graph([hwq.Node("QuantizeLinear", "q", ("x", "s"), ("q",))], tensors, ["x", "s"], ["q"])
    with pytest.raises(NotSupportedYet, match="torch-fbgemm"):
        feeds = {"x": np.zeros((2, 3), np.float32), "s": np.ones(3, np.float32)}
        hwq.execute(graph, feeds, dialect="torch-fbgemm")


def test_operands_that_fbgemm_has_no_kernel_for_are_refused() -> None:
    scale, weights = np.asarray(0.5, np.float32), np.ones((3, 4), np.int8)
    tensors = [
        hwq.Tensor("x", "int8", (2, 3)),
        hwq.Tensor("w", "int8", (3, 4), weights),
        hwq.Tensor("y", "int8", (2, 4)),
    ]
    tensors += [hwq.Tensor(name, "float32", shape) for name, shape in (("a", (2, 3)), ("b", (3, 4)), ("c", (2, 4)))]
    tensors += [hwq.Tensor("s", "float32", (), scale), hwq.Tensor("z", "int8", (), np.asarray(0, np.int8))]
    nodes = [
        hwq.Node("DequantizeLinear", "left", ("x", "s", "z"), ("a",)),
        hwq.Node("DequantizeLinear", "right", ("w", "s", "z"), ("b",)),
        hwq.Node("MatMul", "product", ("a", "b"), ("c",)),
        hwq.Node("QuantizeLinear", "last", ("c", "s", "z"), ("y",)),
    ]
    with pytest.raises(Error, match="no kernel for this product"):
        hwq.compile(hwq.Graph(nodes, tensors, ["x"], ["y"]), "torch-fbgemm")
