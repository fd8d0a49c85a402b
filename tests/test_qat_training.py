"""What distillation moves: gradients of scales, averages, and what makes no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qat_graphs import clipped, equal, linear, needs_torch

from hwq.errors import Error


@needs_torch
def test_scale_gradients_are_lsqs() -> None:
    import torch

    import hwq.qat

    x = np.array([[0.0], [1.0]], np.float32)
    plan = hwq.Plan.uniform("int4", "uint8", dialect="hwq")
    prepared = hwq.qat.prepare(linear(np.full((1, 1), 0.3)), plan, batches=x)
    (name,) = prepared.state.weight_of
    with torch.no_grad():
        prepared.weights[0].fill_(2.3)  # steps: inside the range, between two integers
    value = prepared.weight(name, prepared.lowered.tensors[name].quantization)
    (value.centered * value.scale).sum().backward()
    index = prepared.state.scale_of[name]
    base = float(prepared.state.scales[index].base.reshape(-1)[0])
    # d(s v)/ds = rint(w) - w = 2 - 2.3, times LSQ's gradient scale 1 / sqrt(1 * 7); s = base * factor.
    assert float(prepared.factors[index].grad) == pytest.approx((2 - 2.3) * base / np.sqrt(7), rel=1e-5)
    assert float(prepared.weights[0].grad) == pytest.approx(base, rel=1e-6)
    with torch.no_grad():
        prepared.weights[0].fill_(9.0)  # outside: the bound is the derivative, and the weight has none
    for one in prepared.parameters():
        one.grad = None
    value = prepared.weight(name, prepared.lowered.tensors[name].quantization)
    (value.centered * value.scale).sum().backward()
    assert float(prepared.factors[index].grad) == pytest.approx(7 * base / np.sqrt(7), rel=1e-5)
    assert float(prepared.weights[0].grad) == 0.0


@needs_torch
def test_three_bits_on_the_demo_model(tmp_path: Path) -> None:
    import torch

    import hwq.qat

    torch.manual_seed(0)
    digits, graph = hwq.demo.data(), hwq.load(str(hwq.demo.model_path()))
    prepared = hwq.qat.prepare(graph, hwq.Plan.uniform("int3", "uint8", dialect="hwq"), batches=digits.calibration)
    wanted = hwq.execute(graph, digits.images).argmax(1)
    before = np.mean(hwq.execute(hwq.qat.convert(prepared), digits.images).argmax(1) == wanted)
    losses = hwq.qat.distill(prepared, digits.calibration, epochs=6, batch=40, rate=0.02)
    assert losses[-1] < losses[0]
    trained, _ = equal(prepared, digits.images[:9])
    after = np.mean(hwq.execute(trained, digits.images).argmax(1) == wanted)
    assert after > before and after >= 0.95  # 200 images only; reports/qat has the whole training set
    path = tmp_path / "trained.onnx"
    hwq.export(trained, path)
    again = hwq.execute(hwq.load(str(path)), digits.images[:20], dialect="hwq")
    assert np.array_equal(again, hwq.execute(trained, digits.images[:20]))
    assert hwq.estimate(trained, "tpu-v1").seconds > 0


@needs_torch
def test_averaged_values_take_the_place_of_the_last() -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (6, 3, 6, 6)).astype(np.float32)
    prepared = hwq.qat.prepare(clipped(0.0, 0.8), hwq.Plan.uniform("int4", "uint8", dialect="hwq"), batches=x)
    seen: list[list[np.ndarray[Any, Any]]] = []

    def note(*_: Any) -> None:
        seen.append([one.detach().double().numpy().copy() for one in prepared.parameters()])

    for average, remembered in ((0.999, 12), (0.5, 2)):
        seen.clear()
        hwq.qat.distill(prepared, x, epochs=6, batch=3, rate=0.1, average=average, progress=note)
        assert len(seen) == 12
        wanted = [np.mean(values, 0) for values in zip(*seen[:remembered], strict=True)]
        for step in seen[remembered:]:
            wanted = [average * mean + (1 - average) * value for mean, value in zip(wanted, step, strict=True)]
        for mean, value in zip(wanted, prepared.parameters(), strict=True):
            assert np.allclose(mean, value.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert not all(np.array_equal(a, b) for a, b in zip(wanted, seen[-1], strict=True))
        equal(prepared, x)
    before = [one.detach().clone() for one in prepared.parameters()]
    hwq.qat.distill(prepared, x, epochs=1, batch=3, rate=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(before, prepared.parameters(), strict=True))


@needs_torch
def test_gradients_that_a_caller_left_do_not_train() -> None:
    import hwq.qat

    x = np.random.default_rng(7).normal(0, 1, (6, 3, 6, 6)).astype(np.float32)
    left, clean = (
        hwq.qat.prepare(clipped(0.0, 0.8), hwq.Plan.uniform("int4", "uint8", dialect="hwq"), batches=x) for _ in "ab"
    )
    (1000 * left.logits(x)[0].square().sum()).backward()
    assert hwq.qat.distill(left, x, epochs=3, rate=0.1) == hwq.qat.distill(clean, x, epochs=3, rate=0.1)


@needs_torch
@pytest.mark.parametrize(
    "setting",
    [{"epochs": 0}, {"batch": 0}, {"batch": -3}, {"rate": 0.0}, {"rate": float("nan")}, {"rate": float("inf")}, {"temperature": 0.0},
     {"temperature": float("nan")}, {"label_weight": -1.0}, {"average": 1.0}, {"average": -0.1}, {"average": float("nan")}],
)  # fmt: skip
def test_what_makes_no_training_is_told(setting: dict[str, Any]) -> None:
    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 12)).astype(np.float32)
    prepared = hwq.qat.prepare(linear(np.ones((12, 2))), hwq.Plan.uniform("int8", "uint8", dialect="hwq"), batches=x)
    before = [one.detach().numpy().copy() for one in prepared.parameters()]
    with pytest.raises(Error, match=f"no training has {next(iter(setting))} = "):
        hwq.qat.distill(prepared, x, **setting)
    with pytest.raises(Error, match="there is nothing to train"):
        hwq.qat.distill(prepared.requires_grad_(False), x)
    assert all(np.array_equal(a, b.detach().numpy()) for a, b in zip(before, prepared.parameters(), strict=True))
