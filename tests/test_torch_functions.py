"""Eager quantized modules beyond products: functions of a byte, normalizations, other convolutions, functional forms."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.errors import Error

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
pytestmark = [
    pytest.mark.usefixtures("fbgemm_engine"),
    pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
f32 = np.float32
SHAPE = (3, 5, 7, 9)


def _dialect(full: bool) -> str:
    """The dialect of this CPU: its vectors decide where a tie beyond the last whole one goes, VNNI whether products saturate."""
    import torch

    if full and not any("vnni" in path for path in hwq.kernels.available_isas()):
        return "torch-fbgemm-avx2-saturating"
    return "torch-fbgemm-avx512" if torch.backends.cpu.get_cpu_capability() == "AVX512" else "torch-fbgemm"


Build = Callable[[Any, np.random.Generator], tuple[Any, tuple[int, ...]]]


def _convolution(name: str, rank: int, *, full: bool = False, **options: Any) -> Build:
    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        transposed, groups = "Transpose" in name, options.get("groups", 1)
        own = torch.ao.nn.intrinsic.quantized if "ReLU" in name else torch.ao.nn.quantized
        module = getattr(own, name)(16, 16, 3, **options)
        shape = (16, 16 // groups, *[3] * rank)
        low, high = (-128, 128) if full else (-64, 65)
        stored = torch.from_numpy(rng.integers(low, high, shape).astype(np.int8))
        if transposed:
            weights = torch._make_per_tensor_quantized_tensor(stored, float(f32(0.011)), 0)
        else:
            scales = torch.from_numpy(rng.uniform(0.002, 0.02, 16).astype(f32).astype(np.float64))
            weights = torch._make_per_channel_quantized_tensor(stored, scales, torch.zeros(16, dtype=torch.int64), 0)
        module.set_weight_bias(weights, torch.from_numpy(rng.standard_normal(16).astype(f32)))
        module.scale, module.zero_point = float(f32(0.03 * np.sqrt(np.prod(shape[1:])))), 101
        return module, (2, 16, *[9, 8, 7][:rank])

    return build


def _scaled(name: str, *given: Any) -> Build:
    """A module of ``torch.ao.nn.quantized`` that takes scale and zero point first; 2^-5 puts results on ties."""

    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        scale = float(f32(rng.choice([2.0**-5, rng.uniform(0.01, 0.05)])))
        return getattr(torch.ao.nn.quantized, name)(scale, int(rng.integers(60, 160)), *given), SHAPE

    return build


def _batch_norm(name: str) -> Build:
    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        own = torch.ao.nn.intrinsic.quantized if "ReLU" in name else torch.ao.nn.quantized
        module = getattr(own, name)(5).eval()
        for part in ("weight", "bias", "running_mean"):
            getattr(module, part).data = torch.from_numpy(rng.standard_normal(5).astype(f32))
        module.running_var.data = torch.from_numpy(rng.uniform(0.3, 2, 5).astype(f32))
        module.scale, module.zero_point = torch.tensor(float(f32(0.03))), torch.tensor(117)
        return module, SHAPE if "2d" in name else (*SHAPE, 2)

    return build


def _normalization(name: str, channels_last: bool = False, shape: tuple[int, ...] = (2, 8, 5, 7), *given: int) -> Build:
    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        size = shape[-1] if name == "LayerNorm" else shape[1]
        first = [[size]] if name == "LayerNorm" else [*given, size]
        weights = [torch.nn.Parameter(torch.from_numpy(rng.standard_normal(size).astype(f32))) for _ in range(2)]
        module = getattr(torch.ao.nn.quantized, name)(*first, *weights, float(f32(0.021)), 120)
        if not channels_last:
            return module, shape
        before, _ = _convolution("Conv2d", 2, padding=1)(torch, rng)
        return torch.nn.Sequential(before, module), (2, 16, *shape[2:])

    return build


def _slopes(count: int) -> Build:
    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        module = torch.ao.nn.quantized.PReLU(float(f32(0.03)), 88, count)
        slopes = torch.from_numpy(rng.uniform(-0.5, 1, count).astype(f32))
        module.set_weight(torch.quantize_per_tensor(slopes, float(f32(0.007)), 71, torch.quint8))
        return module, SHAPE

    return build


def _plain(build: Callable[[Any], Any], shape: tuple[int, ...] = SHAPE) -> Build:
    def made(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        return build(torch), shape

    return made


def _called(function: Callable[[Any, Any], Any], shape: tuple[int, ...] = SHAPE) -> Build:
    def build(torch: Any, rng: np.random.Generator) -> tuple[Any, tuple[int, ...]]:
        class Called(torch.nn.Module):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                return function(torch, x)

        return Called(), shape

    return build


def _shared(torch: Any, x: Any) -> Any:
    """Functional forms, on one value: sums on ties, parts, a float island in between."""
    own = torch.ops.quantized
    both = own.add(x, own.mul(x, x, 0.05, 101), 0.0625, 91)
    parts = own.cat([both.chunk(2, 3)[0], both[..., 2:4]], 3, 0.0625, 91)
    island = torch.quantize_per_tensor(torch.sin(parts.dequantize()), 0.01, 100, torch.quint8)
    return own.add_relu(island, parts, 0.03125, 33)


CASES: dict[str, Build] = {
    "conv1d": _convolution("Conv1d", 1, padding=1),
    "conv1d full, relu": _convolution("ConvReLU1d", 1, full=True, stride=2, dilation=2),
    "conv1d groups": _convolution("Conv1d", 1, groups=4),
    "conv3d": _convolution("Conv3d", 3, padding=1),
    "conv3d full, relu": _convolution("ConvReLU3d", 3, full=True, stride=2),
    "conv3d full, depthwise": _convolution("Conv3d", 3, full=True, groups=16, padding=1),
    "conv_transpose1d": _convolution("ConvTranspose1d", 1, stride=2),
    "conv_transpose2d full": _convolution("ConvTranspose2d", 2, full=True, stride=2, padding=1, output_padding=1),
    "conv_transpose2d groups": _convolution("ConvTranspose2d", 2, groups=4, dilation=2),
    "conv_transpose3d": _convolution("ConvTranspose3d", 3, stride=2),
    "batch_norm2d": _batch_norm("BatchNorm2d"),
    "batch_norm2d_relu": _batch_norm("BNReLU2d"),
    "batch_norm3d": _batch_norm("BatchNorm3d"),
    "hardswish": _scaled("Hardswish"),
    "elu": _scaled("ELU", 0.7),
    "leaky_relu": _scaled("LeakyReLU", 0.5),
    "prelu": _slopes(1),
    "prelu channels": _slopes(5),
    "relu6": _plain(lambda torch: torch.nn.ReLU6()),
    "hardtanh": _plain(lambda torch: torch.nn.Hardtanh(-0.7, 0.9)),
    "sigmoid": _plain(lambda torch: torch.nn.Sigmoid()),
    "tanh": _plain(lambda torch: torch.nn.Tanh()),
    "hardsigmoid": _plain(lambda torch: torch.nn.Hardsigmoid()),
    "layer_norm": _normalization("LayerNorm", False, (4, 9, 150)),
    "group_norm": _normalization("GroupNorm", False, (2, 8, 5, 7), 2),
    "group_norm channels last": _normalization("GroupNorm", True, (2, 16, 6, 7), 4),
    "group_norm of a large image": _normalization("GroupNorm", True, (2, 16, 24, 25), 4),
    "instance_norm": _normalization("InstanceNorm2d"),
    "functional": _called(_shared),
    "channels last": _plain(lambda torch: torch.nn.Sequential(
        _convolution("Conv2d", 2)(torch, np.random.default_rng(5))[0], torch.ao.nn.quantized.LeakyReLU(0.0625, 101, 0.5),
        torch.nn.ReLU6(), torch.nn.MaxPool2d(2), torch.ao.nn.quantized.LeakyReLU(0.0625, 33, 0.25)), (3, 16, 9, 9)),
    "behind conv1d": _plain(lambda torch: torch.nn.Sequential(
        _convolution("Conv1d", 1)(torch, np.random.default_rng(5))[0], torch.ao.nn.quantized.LeakyReLU(0.0625, 101, 0.5)), (3, 16, 29)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_eager_module_gives_torchs_bits(name: str) -> None:
    import torch

    own, full = torch.ao.nn.quantized, "full" in name
    for seed in range(2):
        rng = np.random.default_rng((zlib.crc32(name.encode()), seed))
        body, shape = CASES[name](torch, rng)
        scale, point = float(f32(rng.choice([2.0**-5, rng.uniform(0.01, 0.05)]))), int(rng.integers(40, 90))
        module = torch.nn.Sequential(own.Quantize(scale, point, torch.quint8), body, own.DeQuantize()).eval()
        # Products keep to 7 bits unless saturation is in question.
        steps = rng.integers(0, 128 if "conv" in name and not full else 256, shape)
        x = torch.from_numpy(((steps - point) * f32(scale)).astype(f32))
        with torch.no_grad():
            want = module(x).numpy()
        graph = hwq.from_torch(module, x)
        assert graph.dialect == "torch-fbgemm" and len(np.unique(want)) > 8
        assert np.array_equal(hwq.execute(graph, x.numpy(), _dialect(full)), want)


def test_a_module_of_fx_graph_mode_gives_torchs_bits() -> None:
    import torch
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    nn = torch.nn

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.again, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            y = self.norm(self.conv(x)).relu()
            y = nn.functional.hardswish(y + self.again(y)) * torch.sigmoid(y)
            return self.linear(nn.functional.relu6(torch.cat([y, y[:, :]], 1)[:, 4:12]).mean((2, 3)))

    torch.manual_seed(2)
    x, module = torch.randn(4, 3, 5, 5), Network().eval()
    prepared = quantize_fx.prepare_fx(module, get_default_qconfig_mapping("fbgemm"), (x,))
    prepared(x)
    quantized = quantize_fx.convert_fx(prepared)
    want = quantized(x).detach().numpy()
    graph = hwq.from_torch(quantized, x)
    assert graph.dialect == "torch-fbgemm"
    assert np.array_equal(hwq.execute(graph, x.numpy(), _dialect(False)), want)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda torch, x: torch.ops.quantized.threshold(x, 0.1, 0.2), "quantized.threshold is not reproduced"),
        (lambda torch, x: torch.ops.quantized.hardswish(x, 0.03, 7), "is no float32"),
        (lambda torch, x: torch.sin(x), "sin of quantized tensors"),
        (lambda torch, x: torch.quantize_per_tensor(x.dequantize(), 0.1, 0, torch.qint8), "type torch.qint8"),
    ],
    ids=["threshold", "hardswish", "sin", "qint8"],
)
def test_a_function_that_is_not_reproduced_is_named(function: Any, told: str) -> None:
    import torch

    body, shape = _called(function)(torch, np.random.default_rng(0))
    module = torch.nn.Sequential(torch.ao.nn.quantized.Quantize(0.05, 3, torch.quint8), body)
    with pytest.raises(Error, match=told):
        hwq.from_torch(module, torch.zeros(shape))


def test_a_module_that_does_not_run_is_told_with_torchs_reason() -> None:
    import torch

    module = torch.nn.Sequential(
        torch.ao.nn.quantized.Quantize(0.05, 3, torch.quint8), torch.ao.nn.quantized.DeQuantize()
    )
    body, _ = _called(lambda torch, x: torch.ops.quantized.cat([x, x.dequantize()], 1, 0.05, 3))(
        torch, np.random.default_rng(0)
    )
    with pytest.raises(Error, match="cannot run this module"):
        hwq.from_torch(torch.nn.Sequential(module[0], body, module[1]), torch.zeros(2, 3))
