"""PyTorch's dynamic LSTM and the functions in it: torch's bits, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwq
from hwq.errors import Error, NotSupportedYet
from hwq.execution import aten, mkl
from hwq.graph import Array

MISSING = importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnxscript") is None
needs_torch = pytest.mark.skipif(MISSING, reason="torch and onnxscript (the torch extra) are not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
# The dialects with the functions of torch's and MKL's code for this CPU: MKL runs AVX2 on AMD's whatever they have.
DIALECTS = {("AVX512", "intel"): "torch-fbgemm-avx512", ("AVX512", "amd"): "torch-fbgemm-avx512-amd"}


def _torch() -> tuple[Any, str]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else False
    dialect = "torch-fbgemm" if capability == "AVX2" else DIALECTS.get((capability, "amd" if amd else "intel"))
    if dialect is None or "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch runs neither its AVX2 nor its AVX-512 kernels here, or has no fbgemm engine")
    return torch, dialect


def _quantized(torch: Any, *sizes: int, **options: Any) -> Any:
    class Memory(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.memory = torch.nn.LSTM(*sizes, **options)

        def forward(self, x: Any, h: Any = None, c: Any = None) -> Any:
            y, (hidden, cell) = self.memory(x, None if h is None else (h, c))
            return y, hidden, cell

    torch.manual_seed(3)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return torch.ao.quantization.quantize_dynamic(Memory().eval(), {torch.nn.LSTM}, dtype=torch.qint8)
    finally:
        torch.backends.quantized.engine = before


def _imported(torch: Any, module: Any, arguments: tuple[Any, ...]) -> tuple[hwq.Graph, list[Array]]:
    """The graph, and torch's results on one thread."""
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = "fbgemm"
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph = hwq.from_torch(module, arguments)
            want = [one.numpy() for one in module(*arguments)]
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)
    return graph, want


SHAPES = {
    "both directions, two layers": ((12, 40), {"num_layers": 2, "bidirectional": True}, (6, 3), True),
    "batch first, no states": ((12, 20), {"num_layers": 2, "bidirectional": True, "batch_first": True}, (3, 6), False),
    "batch first, three layers": ((5, 33), {"num_layers": 3, "batch_first": True}, (1, 40), True),
}


@needs_torch
@pytest.mark.parametrize("case", SHAPES)
def test_an_lstm_gives_torchs_bits(case: str) -> None:
    torch, dialect = _torch()
    sizes, options, lead, given = SHAPES[case]
    module = _quantized(torch, *sizes, **options)
    x = torch.randn(*lead, sizes[0]) * 2
    batch = lead[0] if options.get("batch_first") else lead[1]
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    states = (torch.randn(count, batch, sizes[1]) / 2, torch.randn(count, batch, sizes[1])) if given else ()
    graph, wanted = _imported(torch, module, (x, *states))
    assert graph.dialect == "torch-fbgemm" and len(graph.inputs) == 1 + len(states)
    feeds = {name: value.numpy() for name, value in zip(graph.inputs, (x, *states), strict=True)}
    made = hwq.execute(graph, feeds, dialect)
    for name, want in zip(graph.outputs, wanted, strict=True):
        assert made[name].shape == want.shape and len(np.unique(want)) > 4
        assert np.array_equal(made[name].view(np.uint32), want.view(np.uint32))


@needs_torch
def test_sigmoid_gives_torchs_bits_in_vectors_and_behind_them() -> None:
    torch, dialect = _torch()
    columns = aten.COLUMNS[hwq.dialect.find(dialect).formulas["DynamicQuantizeLSTM"]]
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**32, 300_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = rng.standard_normal(300_000).astype(np.float32) * 4
    x = np.concatenate([bits, near, rng.uniform(-105, 105, 300_000).astype(np.float32)])
    for width in (2 * columns, columns + 9, 3):
        rows = x[: len(x) // width * width].reshape(-1, width)
        wide = torch.from_numpy(np.concatenate([rows, rows], axis=1))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            want = wide[:, :width].sigmoid().numpy()  # a view, as the gates are: every row has its own tail
        finally:
            torch.set_num_threads(threads)
        assert np.array_equal(aten.sigmoid(rows, columns), want, equal_nan=True)


# torch 2.13.0+cpu, ATEN_CPU_CAPABILITY and MKL_ENABLE_INSTRUCTIONS set to the variant on an Intel CPU with AVX-512:
# sha256(torch.tanh(torch.from_numpy(ARGUMENTS)).numpy().tobytes())
ARGUMENTS = np.arange(0x37000000, 0x42000000, 499, dtype=np.uint32).view(np.float32)
RECORDED = {
    "avx2": "d41a921cfc80b70ac63e309ce6a67842e26175532ea6e90014a3ac28a65c19f9",
    "avx512": "0c2d19501594f2f4dbdf30b76c3a8fb51b6b7166a7a433cbcb73bd89844a0ea4",
}


@pytest.mark.parametrize("variant", RECORDED)
def test_tanh_is_mkls_in_every_part(variant: str) -> None:
    made = mkl.tanh(ARGUMENTS, variant)
    assert hashlib.sha256(made.tobytes()).hexdigest() == RECORDED[variant]
    assert np.array_equal(mkl.tanh(-ARGUMENTS, variant).view(np.uint32), (-made).view(np.uint32))


def test_tanh_of_edges() -> None:
    x = np.array([0, -0.0, 1e-45, -1e-45, 9.2, -9.3, 3e38, np.inf, -np.inf], np.float32)
    want = np.array([0, -0.0, 1e-45, -1e-45, 1, -1, 1, 1, -1], np.float32)
    for variant in RECORDED:
        assert np.array_equal(mkl.tanh(x, variant).view(np.uint32), want.view(np.uint32))
        assert np.isnan(mkl.tanh(np.array([np.nan, -np.nan], np.float32), variant)).all()
        assert mkl.tanh(np.zeros((2, 0), np.float32), variant).shape == (2, 0)


@needs_torch
def test_tanh_gives_torchs_bits() -> None:
    torch, dialect = _torch()
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.concatenate([rng.uniform(-9.1, 9.1, 400_000), rng.laplace(0, 0.05, 200_000)])
    x = np.concatenate([bits, near.astype(np.float32)])
    variant = aten.TANH[hwq.dialect.find(dialect).formulas["DynamicQuantizeLSTM"]]
    assert np.array_equal(mkl.tanh(x, variant), torch.tanh(torch.from_numpy(x)).numpy(), equal_nan=True)


@needs_torch
def test_what_has_no_stand_in_is_named() -> None:
    torch, _ = _torch()
    half = torch.ao.quantization.quantize_dynamic(
        torch.nn.ModuleDict({"memory": torch.nn.LSTM(4, 4)}), {torch.nn.LSTM}, dtype=torch.float16
    )
    with pytest.raises(Error, match="quantized_fp16") as caught:
        hwq.from_torch(half, torch.randn(3, 1, 4))
    assert "memory" in str(caught.value.where)


def _node(**attributes: Any) -> hwq.Graph:
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.integers(-9, 9, (1, 3, 16)).astype(np.int8),
        "r": rng.integers(-9, 9, (1, 4, 16)).astype(np.int8),
        "s": np.full((1, 16), 0.01, np.float32),
        "z": np.zeros((1, 16), np.int8),
    }
    tensors = [hwq.Tensor(name, str(data.dtype), data.shape, data) for name, data in weights.items()]
    tensors += [hwq.Tensor("x", "float32", (5, 2, 3)), hwq.Tensor("h", "float32", ("directions", "batch", 4))]
    tensors += [hwq.Tensor("y", "float32", (5, 1, 2, 4))]
    inputs = ("x", "w", "r", "", "", "h", "", "", "s", "z", "s", "z")
    node = hwq.Node(
        "DynamicQuantizeLSTM", "memory", inputs, ("y",), {"hidden_size": 4, **attributes}, domain="com.microsoft"
    )
    return hwq.Graph([node], tensors, ["x", "h"], ["y"])


def test_states_of_another_shape_and_clipped_cells_are_refused() -> None:
    feeds = {"x": np.ones((5, 2, 3), np.float32), "h": np.zeros((1, 2, 4), np.float32)}
    made = hwq.execute(_node(), feeds, "torch-fbgemm")
    assert made.shape == (5, 1, 2, 4) and np.all(made[1:] != made[:-1])
    with pytest.raises(Error, match="state of shape"):
        hwq.execute(_node(), {**feeds, "h": np.zeros((1, 1, 4), np.float32)}, "torch-fbgemm")
    with pytest.raises(NotSupportedYet, match="clip"):
        hwq.execute(_node(clip=1.0), feeds, "torch-fbgemm")


CELLS = {
    "gru, both directions": ("GRU", (12, 40, 2), {"bidirectional": True}, (6, 3, 12), (4, 3, 40)),
    "gru, batch first, no state": ("GRU", (12, 33), {"batch_first": True}, (3, 5, 12), None),
    "gru cell": ("GRUCell", (12, 45), {}, (5, 12), (5, 45)),
    "rnn cell": ("RNNCell", (12, 45), {}, (5, 12), (5, 45)),
    "rnn cell, relu, no state": ("RNNCell", (12, 20), {"nonlinearity": "relu"}, (5, 12), None),
    "lstm cell, no states": ("LSTMCell", (12, 40), {}, (5, 12), None),
}


@needs_torch
@pytest.mark.parametrize("case", CELLS)
def test_gated_units_and_cells_give_torchs_bits(case: str) -> None:
    torch, dialect = _torch()
    name, sizes, options, shape, state = CELLS[case]

    class Unit(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.unit = getattr(torch.nn, name)(*sizes, **options)

        def forward(self, x: Any, state: Any = None) -> Any:
            made = self.unit(x, state)
            return made if isinstance(made, tuple) else (made,)

    torch.manual_seed(5)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        module = torch.ao.quantization.quantize_dynamic(Unit().eval(), {getattr(torch.nn, name)}, dtype=torch.qint8)
    finally:
        torch.backends.quantized.engine = before
    given = (torch.randn(*shape) * 1.5, *(() if state is None else (torch.randn(*state) / 2,)))
    graph, wanted = _imported(torch, module, given)
    made = hwq.execute(graph, {key: value.numpy() for key, value in zip(graph.inputs, given, strict=True)}, dialect)
    results = [made[key] for key in graph.outputs] if isinstance(made, dict) else [made]
    for found, want in zip(results, wanted, strict=True):
        assert len(np.unique(want)) > 4 and np.array_equal(found.view(np.uint32), want.view(np.uint32))


@needs_torch
def test_quantized_embeddings_have_torchs_rows() -> None:
    import torch

    quantization = torch.ao.quantization
    for config in (quantization.float_qparams_weight_only_qconfig, quantization.float_qparams_weight_only_qconfig_4bit):
        module = torch.nn.Sequential(torch.nn.Embedding(50, 16))
        module.qconfig = config
        module = quantization.convert(quantization.prepare(module))
        indices = torch.randint(0, 50, (3, 7))
        made = hwq.execute(hwq.from_torch(module, indices), indices.numpy())
        assert np.array_equal(made.view(np.uint32), module(indices).numpy().view(np.uint32))


@needs_torch
@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("LSTM", {"num_layers": 2, "batch_first": True, "bidirectional": True}), ("MultiheadAttention", {})],
    ids=["lstm", "lstm of two layers", "attention"],
)
def test_a_static_module_made_of_parts_gives_torchs_bits(kind: str, options: Any) -> None:
    import torch

    quantization, size = torch.ao.quantization, 16

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = quantization.QuantStub(), quantization.DeQuantStub()
            self.part = (
                getattr(torch.nn, kind)(size, 24, **options) if kind == "LSTM" else torch.nn.MultiheadAttention(size, 4)
            )

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            if kind == "LSTM":
                y, states = self.part(x)
                return self.last(y), self.last(states[0]), self.last(states[1])
            return (self.last(self.part(x, x, x)[0]),)

    torch.manual_seed(0)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        module, x = Network().eval(), torch.randn(5, 4, size)
        module.qconfig = quantization.get_default_qconfig("fbgemm")
        prepared = quantization.prepare(module)
        prepared(x)
        quantized = quantization.convert(prepared)
        graph = hwq.from_torch(quantized, x)
        with torch.no_grad():
            want = [one.numpy() for one in quantized(x)]
    finally:
        torch.backends.quantized.engine = before
    made = hwq.execute(graph, x.numpy())
    for ours, theirs in zip(
        [made] if isinstance(made, np.ndarray) else list(made.values() if isinstance(made, dict) else made),
        want,
        strict=True,
    ):
        assert np.array_equal(ours, theirs) and len(np.unique(theirs)) > 8
