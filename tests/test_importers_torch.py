"""PyTorch modules: imported, and equal to torch within float rounding; what cannot be imported is told."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.errors import Error

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
needs_torch = pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed")


def _network(torch: Any) -> Any:
    nn = torch.nn

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.normalization = nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3, stride=2, groups=8)
            self.pool = nn.MaxPool2d(2)
            self.drop = nn.Dropout(0.5)
            self.linear = nn.Linear(8 * 3 * 3, 10)

        def forward(self, image: Any, offset: Any) -> tuple[Any, Any]:
            y = self.normalization(self.first(image)).relu()
            y = self.pool(nn.functional.relu6(self.second(y))).flatten(1)
            y = self.linear(self.drop(y)) + offset
            return nn.functional.gelu(y), y.softmax(-1)

    torch.manual_seed(0)
    return Network()


@needs_torch
def test_a_float_module_gives_what_torch_gives() -> None:
    import torch

    module = _network(torch)
    for part in module.modules():  # running statistics that are not the identity
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    image, offset = torch.randn(2, 3, 16, 16), torch.randn(10)
    graph = hwq.from_torch(module, (image, offset))
    assert graph.inputs == ("image", "offset") and graph.form == "source"
    assert module.training and module.drop.training  # left as it was
    module.eval()
    with torch.no_grad():
        expected = [value.numpy() for value in module(image, offset)]
    made = hwq.execute(graph, {"image": image.numpy(), "offset": offset.numpy()})
    for name, want in zip(graph.outputs, expected, strict=True):
        assert np.abs(made[name] - want).max() <= 1e-4 * np.abs(want).max()


@needs_torch
def test_open_dimensions_and_arguments_by_name() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    batch = torch.export.Dim("batch")
    graph = hwq.from_torch(module, {"input": torch.randn(3, 6)}, dynamic_shapes={"input": {0: batch}})
    assert isinstance(graph.tensors[graph.inputs[0]].shape[0], str)
    x = torch.randn(7, 6)
    want = module(x).detach().numpy()
    assert np.abs(hwq.execute(graph, x.numpy()) - want).max() <= 1e-4 * np.abs(want).max()


@needs_torch
def test_an_imported_module_is_quantized_like_any_graph() -> None:
    import torch

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    x = torch.randn(64, 16)
    graph = hwq.from_torch(module, x)
    calibration = hwq.calibrate(graph, x.numpy())
    quantized = hwq.quantize(graph, hwq.Plan.uniform(weights="int8", activations="uint8"), calibration)
    want = module(x).detach().numpy()
    assert np.abs(hwq.execute(quantized, x.numpy()) - want).max() < 0.05 * np.abs(want).max()


@needs_torch
def test_what_torch_cannot_export_is_told_with_its_reason() -> None:
    import torch

    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    class Decomposing(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svd(x)[0]

    with pytest.raises(Error, match="cannot export") as caught:
        hwq.from_torch(Branching(), torch.randn(3, 3))
    assert "data-dependent" in str(caught.value.why)
    with pytest.raises(Error, match="as ONNX") as caught:
        hwq.from_torch(Decomposing(), torch.randn(3, 3))
    assert "svd" in str(caught.value.why)
    with pytest.raises(Error, match="not a PyTorch module"):
        hwq.from_torch(torch.randn(3), torch.randn(3))


@needs_torch
def test_complex_inputs_are_refused_by_name() -> None:
    import torch

    class Power(torch.nn.Module):
        def forward(self, signal: torch.Tensor) -> torch.Tensor:
            return signal.abs()

    with pytest.raises(hwq.Error, match="the input is complex") as caught:
        hwq.from_torch(Power(), torch.zeros(2, 3, dtype=torch.complex64))
    assert "input signal" in str(caught.value) and "view_as_real" in str(caught.value)


@needs_torch
def test_an_operator_that_hwq_lacks_is_named() -> None:
    import torch

    class Determinant(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.det(x)

    with pytest.raises(Error, match="no operator Det"):
        hwq.from_torch(Determinant(), torch.randn(3, 3))


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Error, match="torch is not installed") as caught:
        hwq.from_torch(object(), ())
    assert caught.value.remedy == "pip install torch==2.13.0"


def _dynamic(torch: Any, dtype: str, low: int, high: int) -> Any:
    """As convert_pt2e writes a linear layer of a dynamic quantizer; its ``eval`` refuses, as that of its modules does."""
    import torch.ao.quantization.fx._decomposed

    own, stored = torch.ops.quantized_decomposed, getattr(torch, dtype)

    class Dynamic(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weights", torch.randint(-127, 128, (7, 12), dtype=torch.int8))
            self.register_buffer("scales", torch.rand(7) * 0.01 + 0.001)
            self.register_buffer("points", torch.zeros(7, dtype=torch.int64))

        def eval(self) -> Any:
            raise NotImplementedError("Calling train() or eval() is not supported for exported models.")

        def forward(self, x: Any) -> tuple[Any, Any]:
            scale, point = own.choose_qparams.tensor(x, low, high, 2.0**-12, stored)
            told = (scale, point, low, high, stored)
            y = own.dequantize_per_tensor.tensor(own.quantize_per_tensor.tensor(x, *told), *told)
            weights = own.dequantize_per_channel(self.weights, self.scales, self.points, 0, -127, 127, torch.int8)
            return torch.nn.functional.linear(y, weights), y

    return Dynamic()


@needs_torch
@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("uint8", 0, 127), ("int8", -128, 127)])
def test_ranges_taken_at_run_time_give_torchs_bits(dtype: str, low: int, high: int) -> None:
    import torch

    torch.manual_seed(4)
    module = _dynamic(torch, dtype, low, high)
    graph = hwq.from_torch(module, torch.zeros(5, 12))
    assert graph.dialect == "torch-pt2e"
    found = [node for node in graph.nodes if node.op == "QuantizeLinear"]
    assert len(found) == 1 and graph.tensors[found[0].outputs[0]].dtype == dtype
    for scale in (1e-6, 0.3, 40.0):  # below eps, and above
        x = torch.randn(5, 12) * scale
        product, stored = (one.numpy() for one in module(x))
        made = hwq.execute(graph, x.numpy())
        assert np.array_equal(made[graph.outputs[1]].view(np.uint32), stored.view(np.uint32))
        assert np.abs(made[graph.outputs[0]] - product).max() <= 1e-5 * np.abs(product).max()


@needs_torch
def test_transposed_convolutions_agree_and_are_quantized_around() -> None:
    import torch

    torch.manual_seed(3)
    nn = torch.nn
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
                           nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, dilation=3), nn.Conv2d(4, 2, 1))  # fmt: skip
    x = torch.randn(2, 3, 9, 8)
    graph = hwq.from_torch(module, x, dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
    want = module(x).detach().numpy()
    assert np.abs(hwq.execute(graph, x.numpy()) - want).max() <= 1e-5 * np.abs(want).max()
    calibration = hwq.calibrate(graph, x.numpy())
    quantized = hwq.quantize(graph, hwq.Plan.uniform(weights="int8", activations="uint8"), calibration)
    assert np.abs(hwq.execute(quantized, x.numpy()) - want).max() < 0.1 * np.abs(want).max()


@needs_torch
def test_an_average_over_another_count_is_refused() -> None:
    import torch

    for pool in (torch.nn.AvgPool2d(2, divisor_override=3), torch.nn.AvgPool3d(2, divisor_override=3)):
        shape = (1, 2, *[4] * (3 if isinstance(pool, torch.nn.AvgPool3d) else 2))
        with pytest.raises(Error, match="divides by 3"):
            hwq.from_torch(pool, torch.zeros(*shape))
    assert hwq.from_torch(torch.nn.AvgPool2d(2), torch.zeros(1, 2, 4, 4)).nodes
