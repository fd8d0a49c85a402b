"""Eager quantized networks with pools, concatenations and residuals: torch's bits, and refusals of what is not reproduced."""

from __future__ import annotations

import importlib.util
import warnings
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


def _imported(build: Any, shape: tuple[int, ...], seed: int = 4) -> tuple[hwq.Graph, Any, np.ndarray]:
    """The graph of a network of 7-bit activations between stubs, its input and torch's output."""
    import torch

    quantization = torch.ao.quantization

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.body = quantization.QuantStub(), quantization.DeQuantStub(), build(torch)

        def forward(self, x: Any) -> Any:
            return self.last(self.body(self.first(x)))

    torch.manual_seed(seed)
    x = torch.randn(*shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = Network().eval()
        module.qconfig = quantization.get_default_qconfig("fbgemm")
        prepared = quantization.prepare(module)
        prepared(x)
        quantized = quantization.convert(prepared)
        want = quantized(x).numpy()
        return hwq.from_torch(quantized, x), x.numpy(), want


def _branches(torch: Any) -> Any:
    nn = torch.nn

    class Branches(nn.Module):  # type: ignore[misc, name-defined]
        """A residual, three concatenated branches, every kind of pool, a channel shuffle."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again, self.side = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.Conv2d(8, 4, 1),
            )
            self.sum, self.both = torch.ao.nn.quantized.FloatFunctional(), torch.ao.nn.quantized.FloatFunctional()
            self.window, self.largest, self.all = nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
            self.drop, self.linear = nn.Dropout(0.2), nn.Linear(20, 7)

        def forward(self, x: Any) -> Any:
            y = self.stem(x).relu()
            y = self.sum.add_relu(y, self.again(y))
            y = self.both.cat([self.window(y), self.largest(y), self.window(self.side(y))], 1)
            y = y.view(-1, 4, 5, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
            return self.linear(self.drop(self.all(y).flatten(1)))

    return Branches()


# Seeds 8 and 43 have means of 64 values on a tie beside an odd zero point.
@pytest.mark.parametrize(("side", "seed"), [(13, 4), (15, 4), (15, 8), (15, 43)])
def test_residuals_branches_and_pools_give_torchs_bits(side: int, seed: int) -> None:
    graph, x, want = _imported(_branches, (5, 3, side, side), seed)
    made = hwq.execute(graph, x)
    assert len(np.unique(want)) > 10 and np.array_equal(made, want)
    # Saturation is not in question on data of 7 bits: the CPU's class changes nothing.
    for dialect in ("torch-fbgemm-avx512", "torch-fbgemm-avx512-amd", "torch-fbgemm-avx2-saturating"):
        assert np.array_equal(hwq.execute(graph, x, dialect), want)


def test_an_average_behind_dequantize_stays_a_float_one() -> None:
    import torch

    class Behind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            own = torch.ao.nn.quantized
            self.first, self.last = own.Quantize(0.05, 3, torch.quint8), own.DeQuantize()

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.avg_pool2d(self.last(self.first(x)), 2)

    x = torch.randn(2, 3, 4, 4)
    graph = hwq.from_torch(Behind().eval(), x)
    assert [node.op for node in graph.nodes].count("QuantizeLinear") == 1
    assert np.abs(hwq.execute(graph, x.numpy()) - Behind()(x).numpy()).max() < 1e-6


def test_windows_of_several_sizes_are_named() -> None:
    with pytest.raises(Error, match="not reproduced"):
        _imported(
            lambda torch: torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d((4, 4))),
            (2, 3, 6, 6),
        )
