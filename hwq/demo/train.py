"""Train the demo model and write ``digits.onnx`` and ``digits.npz``: ``python -m hwq.demo.train --out DIR``.

Needs PyTorch (``torch==2.13.0``) and scikit-learn; hwq itself needs neither. About 15 s on one core. The seed, the one
thread and the deterministic algorithms make a second run on the same kind of CPU with the same versions write the same
bytes; another CPU or version changes the last bits of the weights, not the accuracy by more than some images.

Data: the digits that scikit-learn bundles (``sklearn.datasets.load_digits``; scikit-learn is under the BSD-3-Clause
license), 1797 images of 8x8 pixels 0..16, which are the test part of "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49 (CC BY 4.0). 700 of
them, unchanged but for the storage type, are in ``digits.npz``.

Protocol: a seeded permutation sets 500 images apart for the test; the other 1297 train, and 200 of those calibrate.
The 13 writers are in both parts, so the accuracy is that of known hands. The test images choose nothing: the recipe is
judged on a hold-out inside the training part (``--hold-out``), and the last epoch is the one that is kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwq.errors import Error
from hwq.files import refuse_existing, write_atomically, write_npz

__all__ = ["NETWORK", "Conv", "build_onnx", "main", "split", "train"]

SEED = 2026
TEST_IMAGES = 500
CALIBRATION_IMAGES = 200
HOLD_OUT_IMAGES = 297
EPOCHS = 80
BATCH = 32
PEAK_LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.01
OPSET = 17

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Conv:
    """One convolution with its folded BatchNorm, the residual added to it and its activation ("Relu", "Clip" 0..6)."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    residual: str | None = None
    activation: str | None = "Relu"


# The one description of the network; the trainer and the ONNX writer both walk it, each layer fed by the last.
NETWORK = (
    Conv("stem/conv", 1, 16, 3),
    Conv("block1/depthwise", 16, 16, 3, groups=16, activation="Clip"),
    Conv("block1/pointwise", 16, 32, 1),
    Conv("block2/depthwise", 32, 32, 3, stride=2, groups=32),
    Conv("block2/pointwise", 32, 64, 1),
    Conv("block3/depthwise", 64, 64, 3, groups=64),
    Conv("block3/pointwise", 64, 64, 1, residual="block2/pointwise"),
)
CLASSES = 10


def split(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the training part and of the test part: a seeded permutation of ``range(count)``, cut once."""
    order = np.random.default_rng(SEED).permutation(count)
    return order[TEST_IMAGES:], order[:TEST_IMAGES]


def train(images: Array, labels: NDArray[np.int64], report: Any = None) -> dict[str, tuple[Array, Array]]:
    """Train on `images` (N, 1, 8, 8) in 0..1 and `labels` (N,); return weight and bias per layer, BatchNorm folded.

    Raises
    ------
    Error
        PyTorch is not installed.
    """
    torch = _need("torch", "torch==2.13.0")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    modules = _modules(torch)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            logits = _forward(torch, modules, _distort(torch, x[rows]))
            loss = torch.nn.functional.cross_entropy(logits, y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        if report is not None and (epoch + 1) % 10 == 0:
            report(f"epoch {epoch + 1}/{EPOCHS}: training loss {total / len(x):.4f}")
    modules.eval()
    return _fold(modules)


def _modules(torch: Any) -> Any:
    """Convolution and BatchNorm per layer, and the dense layer, by the names they keep in the ONNX file."""
    nn = torch.nn
    modules = nn.ModuleDict({"head/dense": nn.Linear(NETWORK[-1].outputs, CLASSES)})
    for layer in NETWORK:
        modules[layer.name] = nn.Sequential(
            nn.Conv2d(
                layer.inputs,
                layer.outputs,
                layer.kernel,
                layer.stride,
                layer.kernel // 2,
                groups=layer.groups,
                bias=False,
            ),
            nn.BatchNorm2d(layer.outputs),
        )
    return modules


def _forward(torch: Any, modules: Any, x: Any) -> Any:
    activations = {"Relu": torch.nn.functional.relu, "Clip": torch.nn.functional.relu6}
    outputs: dict[str, Any] = {}
    for layer in NETWORK:
        x = modules[layer.name](x)
        if layer.residual is not None:
            x = x + outputs[layer.residual]
        if layer.activation is not None:
            x = activations[layer.activation](x)
        outputs[layer.name] = x
    return modules["head/dense"](x.mean((2, 3)))


def _distort(torch: Any, x: Any) -> Any:
    """Turn, scale, shear and shift each image a little: up to 10 degrees, 10 %, 0.1 and one pixel."""
    count = len(x)

    def uniform(bound: float) -> Any:
        return (torch.rand(count) * 2 - 1) * bound

    angle, size, shear = uniform(np.pi / 18), 1 + uniform(0.1), uniform(0.1)
    across, down = uniform(0.25), uniform(0.25)  # the image spans -1..1, so a pixel is 0.25
    rows = torch.stack(
        [
            torch.stack([torch.cos(angle) * size, shear - torch.sin(angle) * size, across], 1),
            torch.stack([torch.sin(angle) * size, torch.cos(angle) * size, down], 1),
        ],
        1,
    )
    grid = torch.nn.functional.affine_grid(rows, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def _fold(modules: Any) -> dict[str, tuple[Array, Array]]:
    """Fold each BatchNorm into its convolution, in float64: w * gamma / sqrt(var + eps), beta - mean * the same."""

    def wide(tensor: Any) -> NDArray[np.float64]:
        return np.asarray(tensor.detach().numpy(), np.float64)

    folded = {}
    for layer in NETWORK:
        conv, norm = modules[layer.name]
        factor = wide(norm.weight) / np.sqrt(wide(norm.running_var) + norm.eps)
        weight = wide(conv.weight) * factor[:, None, None, None]
        bias = wide(norm.bias) - wide(norm.running_mean) * factor
        folded[layer.name] = (weight.astype(np.float32), bias.astype(np.float32))
    dense = modules["head/dense"]
    folded["head/dense"] = (wide(dense.weight).astype(np.float32), wide(dense.bias).astype(np.float32))
    return folded


def build_onnx(weights: Mapping[str, tuple[Array, Array]]) -> onnx.ModelProto:
    """Write the network as float ONNX: ``image`` (N, 1, 8, 8) to ``logits`` (N, 10), each tensor named by its node."""
    nodes, stored = [], []
    x = "image"

    def store(name: str, array: NDArray[np.float32]) -> str:
        stored.append(numpy_helper.from_array(array, name))
        return name

    def add(op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name, **attributes))
        return f"{name}:0"

    outputs: dict[str, str] = {}
    for layer in NETWORK:
        weight, bias = weights[layer.name]
        x = add(
            "Conv",
            layer.name,
            [x, store(f"{layer.name}/weight", weight), store(f"{layer.name}/bias", bias)],
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[layer.kernel // 2] * 4,
            group=layer.groups,
        )
        block = layer.name.partition("/")[0]
        if layer.residual is not None:
            x = add("Add", f"{block}/add", [x, outputs[layer.residual]])
        if layer.activation == "Clip":
            low, high = (
                store(f"{layer.name}/relu6/{end}", np.array(v, np.float32)) for end, v in (("min", 0), ("max", 6))
            )
            x = add("Clip", f"{layer.name}/relu6", [x, low, high])
        elif layer.activation == "Relu":
            x = add("Relu", f"{block}/add/relu" if layer.residual is not None else f"{layer.name}/relu", [x])
        outputs[layer.name] = x
    x = add("Flatten", "head/flatten", [add("GlobalAveragePool", "head/pool", [x])], axis=1)
    weight, bias = weights["head/dense"]
    dense = [x, store("head/dense/weight", weight), store("head/dense/bias", bias)]
    nodes.append(helper.make_node("Gemm", dense, ["logits"], "head/dense", transB=1))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        stored,
    )
    # IR version 8 is the one of ONNX 1.12, which brought opset 17.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="hwq.demo.train"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def score(model: onnx.ModelProto, images: Array, labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy of the ONNX model, run by the reference evaluator of the onnx package."""
    from onnx.reference import ReferenceEvaluator

    answers: Any = ReferenceEvaluator(model).run(["logits"], {"image": images})
    return float(np.mean(np.argmax(answers[0], axis=1) == labels))


def _need(module: str, requirement: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(
            f"the demo's training script needs {requirement}, which is not installed",
            where="hwq.demo.train",
            why="only training uses it; the trained model is shipped with hwq",
            remedy=f"pip install {requirement}",
        ) from error


def _run(out: Path, hold_out: bool, overwrite: bool) -> None:
    _need("torch", "torch==2.13.0")
    digits = _need("sklearn.datasets", "scikit-learn").load_digits()
    pixels = digits.images.astype(np.uint8)
    images = (pixels.astype(np.float32) / np.float32(16))[:, None, :, :]
    labels = digits.target.astype(np.int64)
    fit, test = split(len(images))
    if hold_out:
        fit, test = fit[HOLD_OUT_IMAGES:], fit[:HOLD_OUT_IMAGES]
    model_file, data_file = out / "digits.onnx", out / "digits.npz"
    for path in (model_file, data_file):
        refuse_existing(path, overwrite or hold_out)
    model = build_onnx(train(images[fit], labels[fit], report=print))
    part = "hold-out" if hold_out else "test"
    seen, unseen = score(model, images[fit], labels[fit]), score(model, images[test], labels[test])
    print(f"accuracy: training {seen:.4f}, {part} {unseen:.4f}")
    if hold_out:
        return
    calibration = fit[:CALIBRATION_IMAGES]
    arrays: dict[str, NDArray[Any]] = {}
    for name, rows in (("calibration", calibration), ("test", test)):
        arrays[f"{name}_images"] = pixels[rows]
        arrays[f"{name}_labels"] = labels[rows].astype(np.uint8)
        arrays[f"{name}_rows"] = rows.astype(np.uint16)
    with write_atomically(model_file, overwrite=overwrite) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    write_npz(data_file, arrays, overwrite=overwrite)
    print(f"wrote {model_file} ({model_file.stat().st_size} bytes) and {data_file} ({data_file.stat().st_size} bytes)")


def main(arguments: list[str] | None = None) -> int:
    """Run the script; 0 when the files are written, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m hwq.demo.train", description="Train hwq's demo model on scikit-learn's digits."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for digits.onnx and digits.npz")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--hold-out", action="store_true", help="score a hold-out of the training part instead; write nothing"
    )
    options = parser.parse_args(arguments)
    try:
        _run(options.out, options.hold_out, options.overwrite)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
