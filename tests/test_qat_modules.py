"""Every kind of module that users train: imported as torch computes it, and prepared, moved and converted with the program's bits."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import hwq

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
if MISSING:
    pytest.skip("torch and onnxscript (the torch extra) are not installed", allow_module_level=True)

import torch  # noqa: E402
import torch_modules  # noqa: E402

import hwq.qat  # noqa: E402
from hwq.qat.preparation import open_batch  # noqa: E402

PLANS = {
    "ort": hwq.Plan.uniform("int8", "uint8"),
    "hwq": hwq.Plan.uniform("int4", "int8", dialect="hwq", granularity="tensor", symmetric=False),
}


def _same(prepared: Any, feeds: dict[str, Any]) -> None:
    """Every tensor and every output are the program's, bit for bit."""
    result, seen = hwq.compile(hwq.qat.convert(prepared))(feeds, intermediates=True)
    traced = prepared.trace(feeds)
    for name, value in seen.items():
        assert traced[name].dtype == value.dtype and traced[name].shape == value.shape, name
        assert np.array_equal(traced[name], value, equal_nan=True), name
    outputs = prepared(feeds)
    wanted = list(result.values()) if isinstance(result, dict) else [result]
    for made, right in zip(outputs if isinstance(outputs, tuple) else (outputs,), wanted, strict=True):
        array = made.detach().numpy() if isinstance(made, torch.Tensor) else made
        assert array.dtype == right.dtype and np.array_equal(array, right)


def _moved(prepared: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for factor in prepared.factors:
            factor.mul_(0.8 + 0.4 * torch.rand(factor.shape, generator=generator))
        for value in (*prepared.weights, *prepared.biases):
            value.add_(torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("name", torch_modules.MODULES)
def test_a_module_is_its_program(name: str) -> None:
    module, inputs = torch_modules.built(name)
    graph = hwq.from_torch(module, inputs, dynamic_shapes=open_batch(module, inputs))
    feeds = {one: value.numpy() for one, value in zip(graph.inputs, inputs, strict=True)}
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(module(*inputs))
    made = hwq.execute(graph, feeds)
    floats = list(made.values()) if isinstance(made, dict) else [made]
    for given, right in zip(floats, wanted, strict=True):
        assert np.abs(given - right.numpy()).max() <= 2e-6 * max(float(right.abs().max()), 1.0)
    for plan in PLANS.values():
        prepared = hwq.qat.prepare(graph, plan, batches=feeds)
        taught = prepared.teacher(*inputs)
        for given, right in zip(taught if isinstance(taught, tuple) else (taught,), wanted, strict=True):
            assert float((given - right).abs().max()) <= 4e-6 * max(float(right.abs().max()), 1.0)
        _same(prepared, feeds)
        hwq.qat.distill(prepared, feeds, epochs=1, batch=2)
        _moved(prepared)
        _same(prepared.train(), feeds)
        _same(prepared, {one: value[:1] for one, value in feeds.items()})
