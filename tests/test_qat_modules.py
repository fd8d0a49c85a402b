"""Every kind of module that users train: imported as torch computes it, and prepared, moved and converted with the program's bits."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.errors import Error

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


def _tensors(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _same(prepared: Any, feeds: dict[str, Any]) -> None:
    """Every tensor and every output are the program's, bit for bit."""
    result, seen = hwq.compile(hwq.qat.convert(prepared))(feeds, intermediates=True)
    traced = prepared.trace(feeds)
    for name, value in seen.items():
        assert traced[name].dtype == value.dtype and traced[name].shape == value.shape, name
        assert np.array_equal(traced[name], value, equal_nan=True), name
    wanted = list(result.values()) if isinstance(result, dict) else [result]
    for made, right in zip(_tensors(prepared(feeds)), wanted, strict=True):
        array = made.detach().numpy() if isinstance(made, torch.Tensor) else made
        assert array.dtype == right.dtype and np.array_equal(array, right)


def _moved(prepared: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for factor in prepared.factors:
            factor.mul_(0.8 + 0.4 * torch.rand(factor.shape, generator=generator))
        for value in (*prepared.weights, *prepared.biases, *prepared.floats):
            value.add_(torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("name", ["conv1d", "linear of 4 dimensions", "attention"])
@pytest.mark.parametrize("rows", [False, True])
def test_ranges_at_run_time_are_trained_through(name: str, rows: bool) -> None:
    module, inputs = torch_modules.built(name)
    plan = (
        hwq.Plan.uniform("int4", "int8", mode="dynamic", activation_granularity="row", dialect="hwq")
        if rows
        else hwq.Plan.uniform("int8", "uint8", mode="dynamic")
    )
    prepared = hwq.qat.prepare(module, plan, inputs)
    feeds = {one: value.numpy() for one, value in zip(prepared.lowered.inputs, inputs, strict=True)}
    _same(prepared, feeds)
    assert prepared.weights
    sum(one.square().sum() for one in _tensors(prepared(feeds))).backward()
    for value in prepared.weights:
        assert value.grad is not None and bool(torch.isfinite(value.grad).all()) and bool((value.grad != 0).any())
    with torch.no_grad():
        for value in prepared.weights:
            value.add_(0.5 * value.std() * torch.randn(value.shape))  # something to unlearn
    losses = hwq.qat.distill(prepared, feeds, epochs=40, batch=len(inputs[0]), rate=0.02 if rows else 0.3)
    assert losses[-1] < 0.95 * losses[0]
    _same(prepared, feeds)
    _same(prepared, {one: value[:1] for one, value in feeds.items()})


def test_what_stays_float_is_trained_or_named() -> None:
    module, inputs = torch_modules.built("embedding")
    prepared = hwq.qat.prepare(module, hwq.Plan.uniform("int8", "uint8"), inputs)
    feeds = {one: value.numpy() for one, value in zip(prepared.lowered.inputs, inputs, strict=True)}
    trained = [one.name for one in prepared.state.floats]
    assert any("weight" in name for name in trained) and any("values" in name for name in prepared.frozen)
    before = {name: prepared.quantized.constant(name).copy() for name in trained}
    losses = hwq.qat.distill(prepared, feeds, epochs=4, batch=2, rate=0.5)
    assert losses[-1] < losses[0]
    converted = hwq.qat.convert(prepared)
    assert all(not np.array_equal(converted.constant(name), data) for name, data in before.items())
    _same(prepared, feeds)


def test_every_output_is_learned_from() -> None:
    module, inputs = torch_modules.built("several outputs")
    prepared = hwq.qat.prepare(module, hwq.Plan.uniform("int4", "uint8", dialect="hwq"), inputs)
    feeds = {one: value.numpy() for one, value in zip(prepared.lowered.inputs, inputs, strict=True)}
    assert len(prepared.logits(feeds)) == len(prepared.teacher.logits(*inputs)) == 3
    with pytest.raises(Error, match="no parameter reaches the outputs"):
        places = torch_modules.Of(lambda a, x: a(x).argmax(-1), torch.nn.Linear(8, 6))
        hwq.qat.distill(hwq.qat.prepare(places, hwq.Plan.uniform(), torch.randn(4, 8)), np.zeros((4, 8), np.float32))
    with pytest.raises(Error, match="nothing to train"):
        nothing = hwq.qat.prepare(torch.nn.ReLU(), hwq.Plan.uniform(), torch.randn(4, 8))
        hwq.qat.distill(nothing, np.zeros((4, 8), np.float32))


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
        for given, right in zip(_tensors(prepared.teacher(*inputs)), wanted, strict=True):
            assert float((given - right).abs().max()) <= 4e-6 * max(float(right.abs().max()), 1.0)
        _same(prepared, feeds)
        hwq.qat.distill(prepared, feeds, epochs=1, batch=2)
        _moved(prepared)
        _same(prepared.train(), feeds)
        _same(prepared, {one: value[:1] for one, value in feeds.items()})


@pytest.mark.parametrize("dialect", ["torch-fbgemm", "ort-avx2-saturating", "torch-fbgemm-avx2-saturating"])
def test_sums_that_saturate_do_so_in_training(dialect: str) -> None:
    """fbgemm's depthwise kernel does on every CPU; and its functions of images round by their place in memory."""
    module, inputs = torch_modules.built("mobilenet v3")
    prepared = hwq.qat.prepare(module, hwq.Plan.uniform("int8", "uint8", dialect=dialect), inputs)
    feeds = {one: value.numpy() * 4 for one, value in zip(prepared.lowered.inputs, inputs, strict=True)}
    _same(prepared, feeds)
    _moved(prepared)
    _same(prepared, {one: value[:1] for one, value in feeds.items()})
