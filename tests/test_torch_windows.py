"""Pools, means, interpolations and other functions of eager quantized values: torch's bits in either memory layout."""

from __future__ import annotations

import importlib.util
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


def _copy(torch: Any, channels: int, point: int) -> Any:
    """A convolution that hands on what it reads, and lays channels last."""
    module = torch.ao.nn.quantized.Conv2d(channels, channels, 1)
    stored = torch.from_numpy((np.eye(channels, dtype=np.int8) * 64)[:, :, None, None])
    module.set_weight_bias(torch._make_per_tensor_quantized_tensor(stored, 1 / 64, 0), None)
    module.scale, module.zero_point = float(f32(0.1)), point
    return module


def _equal(function: Callable[[Any, Any], Any], shape: tuple[int, ...], point: int, last: bool, *more: Any) -> None:
    """torch's bytes are ours, on images of random pixels and on windows that average to ties."""
    import torch

    class Called(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(torch, x)

    own = torch.ao.nn.quantized
    parts = [own.Quantize(float(f32(0.1)), point, torch.quint8), *([_copy(torch, shape[1], point)] if last else [])]
    module = torch.nn.Sequential(*parts, Called(), *more, own.DeQuantize()).eval()
    rng = np.random.default_rng(7)
    ties = np.where(np.arange(shape[-1]) < shape[-1] // 2, 1, 0) + rng.integers(
        0, 200, (*shape[:2], *[1] * (len(shape) - 2))
    )
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    graph = hwq.from_torch(module, torch.zeros(shape))
    program = hwq.compile(graph, "torch-fbgemm-avx512" if avx512 else "torch-fbgemm")
    for steps in (rng.integers(0, 256, shape), np.broadcast_to(ties, shape)):
        x = torch.from_numpy(((steps - point) * f32(0.1)).astype(f32))
        with torch.no_grad():
            want = module(x).numpy()
        made = np.asarray(program(x.numpy()))
        assert made.shape == want.shape and np.count_nonzero(made != want) == 0


LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["rows", "channels last"])


@LAYOUTS
@pytest.mark.parametrize(
    ("channels", "corners", "size"), [(19, False, (25, 37)), (70, True, (11, 3)), (3, True, (4, 1))]
)
def test_bilinear_interpolation(channels: int, corners: bool, size: tuple[int, int], last: bool) -> None:
    _equal(lambda torch, x: torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=corners),
           (2, channels, 5, 7), 113, last)  # fmt: skip
    _equal(lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=1.7, mode="bilinear"), (2, channels, 9, 8), 30, last)  # fmt: skip


@LAYOUTS
def test_nearest_interpolation_and_a_convolution_behind_it(last: bool) -> None:
    import torch

    _equal(lambda torch, x: torch.nn.functional.interpolate(x, (20, 4)), (1, 5, 6, 14), 113, last)
    _equal(lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=1.7), (1, 5, 6, 14), 30, last)
    _equal(lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), (1, 5, 6, 4), 30, last, _copy(torch, 5, 9))  # fmt: skip
    _equal(lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=2.0), (1, 5, 6, 4), 30, last, _copy(torch, 5, 9))  # fmt: skip


@LAYOUTS
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, (2, 2)),
        (19, ((3, 2), (2, 1), 1, False, True)),
        (75, (2, 2, 0, True)),
        (75, ((6, 4), 3, (3, 1), True, False)),
    ],
)
def test_average_pools(channels: int, options: Any, last: bool) -> None:
    _equal(lambda torch, x: torch.nn.functional.avg_pool2d(x, *options), (2, channels, 7, 6), 113, last)


@LAYOUTS
@pytest.mark.parametrize("size", [(14, 7)])
def test_adaptive_pools_and_means(size: tuple[int, int], last: bool) -> None:
    _equal(lambda torch, x: torch.nn.functional.adaptive_avg_pool2d(x, 1), (3, 75, *size), 113, last)
    if not last:
        _equal(lambda torch, x: x.mean((2, 3)), (3, 75, *size), 113, last)
        _equal(lambda torch, x: torch.nn.functional.adaptive_avg_pool1d(x, 1), (3, 75, size[0] * size[1]), 113, last)
        _equal(lambda torch, x: torch.nn.functional.avg_pool1d(x, 4, 3, 1), (3, 75, size[0] * size[1]), 113, last)


@LAYOUTS
@pytest.mark.parametrize(
    "function",
    [
        lambda torch, x: torch.nn.functional.gelu(x),
        lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh"),
        lambda torch, x: torch.nn.functional.threshold(x, 0.314, -0.77),
        lambda torch, x: torch.nn.functional.pad(x, (1, 2, 0, 1), value=0.314),
        lambda torch, x: torch.nn.functional.pad(x, (1, 2, 2, 1), mode="reflect"),
        lambda torch, x: x.max(1)[0],
        lambda torch, x: torch.stack([x, x.relu()], 1).flatten(1, 2),
        lambda torch, x: x.masked_fill(torch.ones(7, 6).tril().bool(), 0.314),
    ],
    ids=["gelu", "gelu tanh", "threshold", "pad", "reflect", "max", "stack", "masked_fill"],
)
def test_other_functions(function: Any, last: bool) -> None:
    _equal(function, (2, 19, 7, 6), 113, last)


def test_what_is_not_reproduced_is_named() -> None:
    for told, function in (
        ("no float32", lambda torch, x: torch.nn.functional.interpolate(x, scale_factor=2.3)),
        ("mean over 8", lambda torch, x: x.mean(1)),
        ("adaptive_avg_pool2d over 3", lambda torch, x: torch.nn.functional.adaptive_avg_pool2d(x, (4, 5))),
    ):
        with pytest.raises(Error, match=told):
            _equal(function, (2, 8, 7, 9), 113, True)
