"""Quantization-aware training: the prepared module is the integer program, bit for bit, before, during and after training."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwq
import hwq.demo
from hwq.errors import Error

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
needs_torch = pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed")


def _network(torch: Any) -> Any:
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.normalization = nn.BatchNorm2d(8)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=(1, 0), groups=8)
            self.strided = nn.Conv2d(8, 8, (3, 1), stride=2, padding=(1, 0), groups=2, dilation=1)
            self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
            self.linear = nn.Linear(8, 12)
            self.last = nn.Linear(12, 5)

        def forward(self, image: Any) -> Any:
            y = self.normalization(self.first(image)).relu()
            y = nn.functional.relu6(self.depthwise(y))
            y = (self.strided(y) + self.shortcut(y)).relu()
            y = nn.functional.max_pool2d(y, 2)
            y = y.mean((2, 3), keepdim=True).flatten(1)
            return self.last(self.linear(y).relu())

    torch.manual_seed(1)
    module = Block()
    module.normalization.running_mean.uniform_(-1, 1)
    module.normalization.running_var.uniform_(0.5, 2)
    return module.eval()


@functools.cache
def _graph() -> hwq.Graph:
    """The network as a graph: tracing takes seconds, so it is done once."""
    import torch

    shapes = ({0: torch.export.Dim.AUTO},)
    return hwq.from_torch(_network(torch), torch.zeros(6, 3, 12, 12), dynamic_shapes=shapes)


def _equal(prepared: Any, x: np.ndarray[Any, Any]) -> tuple[Any, int]:
    """Every tensor of the converted graph's program equals the module's; returns that graph and how many tensors there are."""
    graph = hwq.qat.convert(prepared)
    result, seen = hwq.compile(graph)(x, intermediates=True)
    traced = prepared.trace(x)
    for name, value in seen.items():
        assert traced[name].dtype == value.dtype and traced[name].shape == value.shape, name
        assert np.array_equal(traced[name], value), name
    assert np.array_equal(prepared(x).detach().numpy(), result)
    return graph, len(seen)


def _shaken(torch: Any, prepared: Any) -> None:
    """Every parameter moved, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for factor in prepared.factors:
            factor.mul_(0.8 + 0.4 * torch.rand(factor.shape, generator=generator))
        for value in (*prepared.weights, *prepared.biases):
            value.add_(torch.randn(value.shape, generator=generator))


@needs_torch
@pytest.mark.parametrize(
    ("weights", "activations", "dialect", "granularity"),
    [
        ("int8", "uint8", "ort", "channel"),
        ("int8", "int8", "ort", "tensor"),
        ("uint8", "uint8", "ort", "channel"),
        ("int4", "uint8", "hwq", "channel"),
        ("int3", "uint8", "hwq", "channel"),
        ("int8", "uint8", "torch-fbgemm", "channel"),
        ("int8", "uint8", "ort-unfused", "channel"),
    ],
)
def test_every_tensor_is_the_programs(weights: str, activations: str, dialect: str, granularity: str) -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(0).normal(0, 1, (6, 3, 12, 12)).astype(np.float32)
    plan = hwq.Plan.uniform(
        weights, activations, dialect=dialect, granularity=granularity, symmetric=weights != "uint8"
    )
    prepared = hwq.qat.prepare(_graph(), plan, batches=x)
    start = hwq.quantize(_graph(), plan, hwq.calibrate(_graph(), x))
    graph, count = _equal(prepared, x)
    assert count >= 11 and len(prepared.weights) == 6
    assert np.array_equal(hwq.execute(graph, x), hwq.execute(start, x))  # nothing is trained yet
    _shaken(torch, prepared)
    changed, _ = _equal(prepared, x[:3])
    assert not np.array_equal(hwq.execute(changed, x), hwq.execute(start, x))
    losses = hwq.qat.distill(prepared, x, epochs=2, batch=3)
    assert len(losses) == 2
    trained, _ = _equal(prepared, x[:1])
    if weights == "int3":
        stored = [one.data for one in trained.tensors.values() if one.dtype == "int4" and one.data is not None]
        assert len([one for one in stored if one.ndim > 1]) == 6
        assert min(one.min() for one in stored) == -4 and max(one.max() for one in stored) == 3


@needs_torch
def test_a_module_is_imported_with_its_batch_open() -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(1).normal(0, 1, (4, 3, 12, 12)).astype(np.float32)
    module = _network(torch).train()
    prepared = hwq.qat.prepare(module, hwq.Plan.uniform("int8", "uint8"), torch.from_numpy(x))
    assert module.training  # left as it was
    _equal(prepared, x[:3])
    # Normalization is folded with its running statistics: the teacher gives what the module gives in evaluation mode.
    with torch.no_grad():
        wanted, found = module.eval()(torch.from_numpy(x)), prepared.teacher(torch.from_numpy(x))
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())


@needs_torch
def test_islands_and_tables_keep_their_bits() -> None:
    import torch

    import hwq.qat

    class Attention(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.LayerNorm(8)
            self.into, self.out = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            q, k, v = self.into(self.norm(x)).split(8, -1)
            mixed = torch.softmax(q @ k.transpose(1, 2), -1) @ v
            return torch.nn.functional.gelu(self.out(mixed)) + torch.sigmoid(x)

    torch.manual_seed(0)
    x = np.random.default_rng(2).normal(0, 1, (4, 5, 8)).astype(np.float32)
    plan = hwq.Plan.uniform("int8", "uint8", dialect="ort")
    prepared = hwq.qat.prepare(Attention(), plan, torch.from_numpy(x))
    _equal(prepared, x)
    _shaken(torch, prepared)
    _equal(prepared, x)
    loss = prepared(torch.from_numpy(x)).square().mean()
    loss.backward()
    for value in (*prepared.weights, *prepared.factors):
        assert value.grad is not None and bool(torch.isfinite(value.grad).all())


def _linear(weights: np.ndarray[Any, Any], relu: bool = True) -> hwq.Graph:
    """One product by (k, n) weights, without torch's tracing."""
    k, n = weights.shape
    tensors = [hwq.Tensor("x", shape=("N", k)), hwq.Tensor("w", shape=(k, n), data=weights.astype(np.float32)),
               hwq.Tensor("b", shape=(n,), data=np.linspace(-1, 1, n).astype(np.float32)),
               hwq.Tensor("h", shape=("N", n)), hwq.Tensor("y", shape=("N", n))]  # fmt: skip
    nodes = [hwq.Node("Gemm", "product", ("x", "w", "b"), ("h",)), hwq.Node("Relu", "relu", ("h",), ("y",))]
    return hwq.Graph(nodes, tensors, ["x"], ["y"])


@needs_torch
def test_sums_beyond_float32_stay_exact() -> None:
    import hwq.qat

    # 4096 * 255 * 127 is 2^27: float32 would lose bits, the module must not.
    random = np.random.default_rng(5)
    graph, x = _linear(random.uniform(0, 1, (4096, 6))), random.uniform(0, 1, (3, 4096)).astype(np.float32)
    prepared = hwq.qat.prepare(graph, hwq.Plan.uniform("int8", "uint8"), batches=x)
    _equal(prepared, x)


def _clipped(low: float, high: float) -> hwq.Graph:
    """Two convolutions, each behind a Clip; the second a depthwise one; a product at the end."""
    random = np.random.default_rng(8)

    def constant(name: str, *shape: int) -> hwq.Tensor:
        return hwq.Tensor(name, shape=shape, data=random.normal(0, 0.3, shape).astype(np.float32))

    floats = {"low": low, "high": high}
    tensors = [hwq.Tensor("x", shape=("N", 3, 6, 6)), constant("w1", 6, 3, 3, 3), constant("b1", 6), constant("w2", 6, 1, 3, 3),
               constant("b2", 6), constant("w3", 6, 4), constant("b3", 4), *(hwq.Tensor(name, shape=("N", 6, size, size)) for name, size in
               (("c1", 4), ("h1", 4), ("c2", 2), ("h2", 2), ("p", 1))), hwq.Tensor("f", shape=("N", 6)), hwq.Tensor("y", shape=("N", 4)),
               *(hwq.Tensor(name, shape=(), data=np.array(value, np.float32)) for name, value in floats.items())]  # fmt: skip
    nodes = [hwq.Node("Conv", "one", ("x", "w1", "b1"), ("c1",)), hwq.Node("Clip", "clip1", ("c1", "low", "high"), ("h1",)),
             hwq.Node("Conv", "two", ("h1", "w2", "b2"), ("c2",), {"group": 6}), hwq.Node("Clip", "clip2", ("c2", "low", "high"), ("h2",)),
             hwq.Node("MaxPool", "pool", ("h2",), ("p",), {"kernel_shape": (2, 2)}), hwq.Node("Flatten", "flat", ("p",), ("f",)),
             hwq.Node("Gemm", "three", ("f", "w3", "b3"), ("y",))]  # fmt: skip
    return hwq.Graph(nodes, tensors, ["x"], ["y"])


@needs_torch
@pytest.mark.parametrize(
    ("weights", "activations", "dialect", "bounds"),
    [("int8", "uint8", "ort", (-0.5, 0.7)), ("int8", "uint8", "ort", (-1.0, 1.0)), ("int8", "int8", "hwq", (-1.0, 1.0)),
     ("int4", "uint8", "hwq", (0.0, 0.8)), ("int8", "int16", "hwq", (-0.5, 0.7)), ("int8", "int8", "hwq-integer", (-0.5, 0.7))],
)  # fmt: skip
def test_a_clip_cuts_where_the_programs_does(
    weights: str, activations: str, dialect: str, bounds: tuple[float, float]
) -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 3, 6, 6)).astype(np.float32)
    prepared = hwq.qat.prepare(_clipped(*bounds), hwq.Plan.uniform(weights, activations, dialect=dialect), batches=x)
    _equal(prepared, x)
    # Far beyond what training does: whether a Q makes its Clip redundant decides what the dialect fuses, so it must not change.
    for factor in (0.05, 0.7, 1.3, 20.0):
        with torch.no_grad():
            for one in prepared.factors:
                one.fill_(factor)
        _equal(prepared, x)
    _shaken(torch, prepared)
    _equal(prepared, x)
    hwq.qat.distill(prepared, x, epochs=1, batch=2, rate=0.1)
    _equal(prepared, x)


@needs_torch
def test_groups_of_scales_and_floats_learn() -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 3, 6, 6)).astype(np.float32)
    for plan in (
        hwq.Plan.uniform("int4", "uint8", granularity=3, dialect="hwq"),
        hwq.Plan.uniform("int4", "float32", dialect="hwq"),
    ):
        prepared = hwq.qat.prepare(_clipped(0.0, 0.8), plan, batches=x)
        _equal(prepared, x)
        _shaken(torch, prepared)
        _equal(prepared, x)
        losses = hwq.qat.distill(prepared, x, epochs=8, batch=4, rate=0.05)
        assert losses[-1] < losses[0]
        _equal(prepared, x)


@needs_torch
@pytest.mark.parametrize("dialect", ["hwq", "ort"])
def test_a_float_result_has_its_bias(dialect: str) -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 3, 6, 6)).astype(np.float32)
    default = {"weights": {"dtype": "int8"}, "activations": {"dtype": "uint8"}}
    last = {"match": {"tensor": "y"}, "activations": {"mode": "float"}}
    plan = hwq.Plan.model_validate({"schema": 1, "dialect": dialect, "default": default, "layers": [last]})
    prepared = hwq.qat.prepare(_clipped(0.0, 0.8), plan, batches=x)
    _equal(prepared, x)
    _shaken(torch, prepared)
    _equal(prepared, x)


@needs_torch
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_transposed_convolutions_learn(groups: int, weights: str) -> None:
    import torch

    import hwq.qat

    nn = torch.nn
    torch.manual_seed(3)
    up = nn.ConvTranspose2d(8, 6, 3, 2, padding=1, output_padding=1, groups=groups)
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        module[-1].weight *= 20  # outputs that differ, so that there is a loss
    x = np.random.default_rng(6).normal(0, 1, (8, 1, 6, 6)).astype(np.float32)
    plan = hwq.Plan.uniform(weights, "uint8", dialect="hwq")
    prepared = hwq.qat.prepare(module, plan, torch.from_numpy(x))
    _equal(prepared, x)
    before = prepared(torch.from_numpy(x)).detach().numpy()
    taught = next(values for values in prepared.weights if values.shape == up.weight.shape)
    with torch.no_grad():
        taught += 0.5 * taught.std() * torch.randn_like(taught)  # something to unlearn
    assert not np.array_equal(prepared(torch.from_numpy(x)).detach().numpy(), before)
    _equal(prepared, x)
    rate = 0.02 if weights == "int4" else 0.3  # in steps of the integers, which are 16 times as fine
    losses = hwq.qat.distill(prepared, x, epochs=8, batch=4, rate=rate)
    assert losses[-1] < 0.9 * losses[0]
    _equal(prepared, x)


@needs_torch
@pytest.mark.parametrize("dialect", ["ort", "hwq"])
def test_a_layer_of_one_output_channel_is_trained(dialect: str) -> None:
    import torch

    import hwq.qat

    nn = torch.nn
    torch.manual_seed(2)
    for module, shape in ((nn.Linear(12, 1), (6, 12)), (nn.Conv2d(3, 1, 3), (4, 3, 8, 8))):
        x = torch.randn(*shape)
        prepared = hwq.qat.prepare(nn.Sequential(module), hwq.Plan.uniform("int8", "uint8", dialect=dialect), x)
        before = prepared(x).detach().numpy()
        prepared(x).square().sum().backward()
        (weights,) = prepared.weights
        assert weights.grad is not None and float(weights.grad.abs().max()) > 0
        _shaken(torch, prepared)
        assert not np.array_equal(prepared(x).detach().numpy(), before)
        _equal(prepared, x.numpy())


@needs_torch
def test_scale_gradients_are_lsqs() -> None:
    import torch

    import hwq.qat

    x = np.array([[0.0], [1.0]], np.float32)
    plan = hwq.Plan.uniform("int4", "uint8", dialect="hwq")
    prepared = hwq.qat.prepare(_linear(np.full((1, 1), 0.3)), plan, batches=x)
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
    trained, _ = _equal(prepared, digits.images[:9])
    after = np.mean(hwq.execute(trained, digits.images).argmax(1) == wanted)
    assert after > before and after >= 0.95  # 200 images only; reports/qat has the whole training set
    path = tmp_path / "trained.onnx"
    hwq.export(trained, path)
    again = hwq.execute(hwq.load(str(path)), digits.images[:20], dialect="hwq")
    assert np.array_equal(again, hwq.execute(trained, digits.images[:20]))
    assert hwq.estimate(trained, "tpu-v1").seconds > 0


@needs_torch
def test_a_quantized_graph_is_a_start_too() -> None:
    import hwq.qat

    digits, graph = hwq.demo.data(), hwq.load(str(hwq.demo.model_path()))
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", "uint8"), hwq.calibrate(graph, digits.calibration))
    prepared = hwq.qat.prepare(q)
    same, _ = _equal(prepared, digits.images[:5])
    assert np.array_equal(hwq.execute(same, digits.images), hwq.execute(q, digits.images))
    with pytest.raises(Error, match="no float model to learn from"):
        hwq.qat.distill(prepared, digits.calibration, epochs=1)
    losses = hwq.qat.distill(
        prepared, digits.calibration[:64], digits.calibration_labels[:64], epochs=1, label_weight=1.0
    )
    assert np.isfinite(losses).all()
    _equal(prepared, digits.images[:5])


@needs_torch
def test_averaged_values_take_the_place_of_the_last() -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (6, 3, 6, 6)).astype(np.float32)
    prepared = hwq.qat.prepare(_clipped(0.0, 0.8), hwq.Plan.uniform("int4", "uint8", dialect="hwq"), batches=x)
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
        _equal(prepared, x)
    before = [one.detach().clone() for one in prepared.parameters()]
    hwq.qat.distill(prepared, x, epochs=1, batch=3, rate=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(before, prepared.parameters(), strict=True))


@needs_torch
def test_gradients_that_a_caller_left_do_not_train() -> None:
    import hwq.qat

    x = np.random.default_rng(7).normal(0, 1, (6, 3, 6, 6)).astype(np.float32)
    left, clean = (
        hwq.qat.prepare(_clipped(0.0, 0.8), hwq.Plan.uniform("int4", "uint8", dialect="hwq"), batches=x) for _ in "ab"
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
    prepared = hwq.qat.prepare(_linear(np.ones((12, 2))), hwq.Plan.uniform("int8", "uint8", dialect="hwq"), batches=x)
    before = [one.detach().numpy().copy() for one in prepared.parameters()]
    with pytest.raises(Error, match=f"no training has {next(iter(setting))} = "):
        hwq.qat.distill(prepared, x, **setting)
    with pytest.raises(Error, match="there is nothing to train"):
        hwq.qat.distill(prepared.requires_grad_(False), x)
    assert all(np.array_equal(a, b.detach().numpy()) for a, b in zip(before, prepared.parameters(), strict=True))


@needs_torch
def test_what_cannot_be_prepared_is_told() -> None:
    import torch

    import hwq.qat

    graph = hwq.load(str(hwq.demo.model_path()))
    with pytest.raises(Error, match="a float model needs a plan"):
        hwq.qat.prepare(graph)
    with pytest.raises(Error, match="neither a PyTorch module nor a Graph"):
        hwq.qat.prepare(3, hwq.Plan.uniform())
    with pytest.raises(Error, match="needs example_inputs"):
        hwq.qat.prepare(torch.nn.Linear(2, 2), hwq.Plan.uniform())
    with pytest.raises(Error, match="not a prepared module"):
        hwq.qat.convert(torch.nn.Linear(2, 2))
    prepared = hwq.qat.prepare(graph, hwq.Plan.uniform(), batches=hwq.demo.data().calibration[:8])
    with pytest.raises(Error, match="do not fit the model's inputs"):
        hwq.qat.distill(prepared, {"other": hwq.demo.data().calibration[:8]})
    with pytest.raises(Error, match="3 labels for 8 samples"):
        hwq.qat.distill(prepared, hwq.demo.data().calibration[:8], np.zeros(3, np.int64))
    with torch.no_grad():
        prepared.factors[0].fill_(-1.0)
    with pytest.raises(Error, match="driven a scale to zero"):
        hwq.qat.convert(prepared)


def test_without_torch_one_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import hwq, hwq.qat\n"
        "try: hwq.qat.prepare(None, None)\n"
        "except hwq.Error as error: print(error)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch is not installed" in made.stdout and "pip install torch==2.13.0" in made.stdout
