"""Quantization-aware training: the prepared module is the integer program, bit for bit, before, during and after training."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from qat_graphs import clipped, equal, linear, needs_torch

import hwq
import hwq.demo
from hwq.errors import Error


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
    graph, count = equal(prepared, x)
    assert count >= 11 and len(prepared.weights) == 6
    assert np.array_equal(hwq.execute(graph, x), hwq.execute(start, x))  # nothing is trained yet
    _shaken(torch, prepared)
    changed, _ = equal(prepared, x[:3])
    assert not np.array_equal(hwq.execute(changed, x), hwq.execute(start, x))
    losses = hwq.qat.distill(prepared, x, epochs=2, batch=3)
    assert len(losses) == 2
    trained, _ = equal(prepared, x[:1])
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
    equal(prepared, x[:3])
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
    equal(prepared, x)
    _shaken(torch, prepared)
    equal(prepared, x)
    loss = prepared(torch.from_numpy(x)).square().mean()
    loss.backward()
    for value in (*prepared.weights, *prepared.factors):
        assert value.grad is not None and bool(torch.isfinite(value.grad).all())


@needs_torch
def test_sums_beyond_float32_stay_exact() -> None:
    import hwq.qat

    # 4096 * 255 * 127 is 2^27: float32 would lose bits, the module must not.
    random = np.random.default_rng(5)
    graph, x = linear(random.uniform(0, 1, (4096, 6))), random.uniform(0, 1, (3, 4096)).astype(np.float32)
    prepared = hwq.qat.prepare(graph, hwq.Plan.uniform("int8", "uint8"), batches=x)
    equal(prepared, x)


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
    prepared = hwq.qat.prepare(clipped(*bounds), hwq.Plan.uniform(weights, activations, dialect=dialect), batches=x)
    equal(prepared, x)
    # Far beyond what training does: whether a Q makes its Clip redundant decides what the dialect fuses, so it must not change.
    for factor in (0.05, 0.7, 1.3, 20.0):
        with torch.no_grad():
            for one in prepared.factors:
                one.fill_(factor)
        equal(prepared, x)
    _shaken(torch, prepared)
    equal(prepared, x)
    hwq.qat.distill(prepared, x, epochs=1, batch=2, rate=0.1)
    equal(prepared, x)


@needs_torch
def test_groups_of_scales_and_floats_learn() -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 3, 6, 6)).astype(np.float32)
    for plan in (
        hwq.Plan.uniform("int4", "uint8", granularity=3, dialect="hwq"),
        hwq.Plan.uniform("int4", "float32", dialect="hwq"),
    ):
        prepared = hwq.qat.prepare(clipped(0.0, 0.8), plan, batches=x)
        equal(prepared, x)
        _shaken(torch, prepared)
        equal(prepared, x)
        losses = hwq.qat.distill(prepared, x, epochs=8, batch=4, rate=0.05)
        assert losses[-1] < losses[0]
        equal(prepared, x)


@needs_torch
@pytest.mark.parametrize("dialect", ["hwq", "ort"])
def test_a_float_result_has_its_bias(dialect: str) -> None:
    import torch

    import hwq.qat

    x = np.random.default_rng(6).normal(0, 1, (4, 3, 6, 6)).astype(np.float32)
    default = {"weights": {"dtype": "int8"}, "activations": {"dtype": "uint8"}}
    last = {"match": {"tensor": "y"}, "activations": {"mode": "float"}}
    plan = hwq.Plan.model_validate({"schema": 1, "dialect": dialect, "default": default, "layers": [last]})
    prepared = hwq.qat.prepare(clipped(0.0, 0.8), plan, batches=x)
    equal(prepared, x)
    _shaken(torch, prepared)
    equal(prepared, x)


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
    equal(prepared, x)
    before = prepared(torch.from_numpy(x)).detach().numpy()
    taught = next(values for values in prepared.weights if values.shape == up.weight.shape)
    with torch.no_grad():
        taught += 0.5 * taught.std() * torch.randn_like(taught)  # something to unlearn
    assert not np.array_equal(prepared(torch.from_numpy(x)).detach().numpy(), before)
    equal(prepared, x)
    rate = 0.02 if weights == "int4" else 0.3  # in steps of the integers, which are 16 times as fine
    losses = hwq.qat.distill(prepared, x, epochs=8, batch=4, rate=rate)
    assert losses[-1] < 0.9 * losses[0]
    equal(prepared, x)


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
        equal(prepared, x.numpy())


@needs_torch
def test_a_quantized_graph_is_a_start_too() -> None:
    import hwq.qat

    digits, graph = hwq.demo.data(), hwq.load(str(hwq.demo.model_path()))
    q = hwq.quantize(graph, hwq.Plan.uniform("int8", "uint8"), hwq.calibrate(graph, digits.calibration))
    prepared = hwq.qat.prepare(q)
    same, _ = equal(prepared, digits.images[:5])
    assert np.array_equal(hwq.execute(same, digits.images), hwq.execute(q, digits.images))
    with pytest.raises(Error, match="no float model to learn from"):
        hwq.qat.distill(prepared, digits.calibration, epochs=1)
    losses = hwq.qat.distill(
        prepared, digits.calibration[:64], digits.calibration_labels[:64], epochs=1, label_weight=1.0
    )
    assert np.isfinite(losses).all()
    equal(prepared, digits.images[:5])


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
