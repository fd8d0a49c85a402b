"""Outlier channels in a transformer encoder, and what brings the lost accuracy back.

A four-block encoder reads scikit-learn's digits (1797 images of 8 x 8, BSD-3) row by row, as 8 tokens of 8 values. `--train`
trains it (torch, about a minute) and writes encoder/encoder.onnx. A rescale that changes no output then makes outliers: in
each block both LayerNormalizations get a few channels of gamma and beta times FACTOR, and the weights behind them the same
channels divided. Per-tensor INT8 activations lose resolution by that; SmoothQuant's transform (`smooth`) should win it back.

Calibration images choose everything; the 500 test images are scored once. SQNR is that of the logits on the test images.

Run: python reports/encoder.py [--train]
"""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import hwq
from hwq.demo.train import split
from hwq.files import write_atomically

FOLDER = Path(__file__).with_suffix("")
MODEL = FOLDER / "encoder.onnx"
SEED, BLOCKS, WIDTH, HEADS, HIDDEN, CLASSES = 2026, 4, 32, 4, 64, 10
EPOCHS, BATCH, RATE = 60, 64, 4e-3
# Outliers: this many channels of every LayerNormalization, this much larger (LLM.int8 reports some 20 to 60 times).
OUTLIERS, FACTOR = 2, 48.0


def digits():
    """Training images and labels, test images and labels: rows are tokens, pixels in sixteenths."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = (data.images / 16).astype(np.float32), data.target
    train, test = split(len(images))
    return images[train], labels[train], images[test], labels[test]


def train(images, labels):
    """The trained parameters by name, float32."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(SEED)
    torch.set_num_threads(1)

    def matrix(rows, columns):
        return (torch.randn(rows, columns) / rows**0.5).requires_grad_()

    p = {"embed": matrix(8, WIDTH), "position": (0.1 * torch.randn(8, WIDTH)).requires_grad_()}
    for b in range(BLOCKS):
        p |= {
            f"b{b}.qkv": matrix(WIDTH, 3 * WIDTH),
            f"b{b}.out": matrix(WIDTH, WIDTH),
            f"b{b}.up": matrix(WIDTH, HIDDEN),
            f"b{b}.down": matrix(HIDDEN, WIDTH),
        }
        for name, size in (("qkv", 3 * WIDTH), ("out", WIDTH), ("up", HIDDEN), ("down", WIDTH)):
            p[f"b{b}.{name}.bias"] = torch.zeros(size, requires_grad=True)
        for name in ("norm1", "norm2"):
            p |= {
                f"b{b}.{name}": torch.ones(WIDTH, requires_grad=True),
                f"b{b}.{name}.bias": torch.zeros(WIDTH, requires_grad=True),
            }
    p |= {"norm": torch.ones(WIDTH, requires_grad=True), "norm.bias": torch.zeros(WIDTH, requires_grad=True)}
    p |= {"head": matrix(WIDTH, CLASSES), "head.bias": torch.zeros(CLASSES, requires_grad=True)}

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), p[name], p[f"{name}.bias"])

    def forward(x):
        x = x @ p["embed"] + p["position"]
        for b in range(BLOCKS):
            q, k, v = ((norm(x, f"b{b}.norm1") @ p[f"b{b}.qkv"] + p[f"b{b}.qkv.bias"])
                       .reshape(len(x), 8, 3, HEADS, -1).permute(2, 0, 3, 1, 4))  # fmt: skip
            mixed = torch.softmax(q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5, -1) @ v
            x = x + mixed.transpose(1, 2).reshape(len(x), 8, WIDTH) @ p[f"b{b}.out"] + p[f"b{b}.out.bias"]
            up = F.gelu(norm(x, f"b{b}.norm2") @ p[f"b{b}.up"] + p[f"b{b}.up.bias"])
            x = x + up @ p[f"b{b}.down"] + p[f"b{b}.down.bias"]
        return norm(x, "norm").mean(1) @ p["head"] + p["head.bias"]

    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    first = {name: torch.zeros_like(value) for name, value in p.items()}
    second = {name: torch.zeros_like(value) for name, value in p.items()}
    total, step = EPOCHS * -(-len(x) // BATCH), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            # One pixel of noise and of shift down or up: the rows are few.
            batch = (x[rows] + 0.05 * torch.randn(len(rows), 8, 8)).roll(int(torch.randint(-1, 2, ())), 2)
            loss = F.cross_entropy(forward(batch), y[rows], label_smoothing=0.05)
            loss.backward()
            step += 1
            rate = RATE * min(1, step / 50) * 0.5 * (1 + np.cos(np.pi * step / total))
            with torch.no_grad():
                for name, value in p.items():
                    first[name].lerp_(value.grad, 0.1)
                    second[name].lerp_(value.grad**2, 0.01)
                    value -= rate * (
                        first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.99**step)).sqrt() + 1e-8) + 0.02 * value
                    )
                    value.grad = None
    return {name: value.detach().numpy() for name, value in p.items()}


def write(parameters, path):
    """The encoder as ONNX, opset 20, batch open."""
    nodes, constants = [], dict(parameters)

    def add(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(x, name, output):
        add("MatMul", [x, name], f"{output}.product")
        return add("Add", [f"{output}.product", f"{name}.bias"], output)

    def norm(x, name, output):
        return add("LayerNormalization", [x, name, f"{name}.bias"], output, axis=-1, epsilon=1e-5)

    constants |= {"heads": np.array([0, 8, HEADS, WIDTH // HEADS], np.int64), "joined": np.array([0, 8, WIDTH], np.int64),
                  "root": np.float32((WIDTH // HEADS) ** -0.5), "axis": np.array([1], np.int64)}  # fmt: skip
    add("MatMul", ["tokens", "embed"], "embedded")
    x = add("Add", ["embedded", "position"], "x0")
    for b in range(BLOCKS):
        n = f"b{b}"
        qkv = linear(norm(x, f"{n}.norm1", f"{n}.n1"), f"{n}.qkv", f"{n}.qkv.out")
        nodes.append(
            helper.make_node("Split", [qkv], [f"{n}.q", f"{n}.k", f"{n}.v"], name=f"{n}.split", axis=-1, num_outputs=3)
        )
        for part, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            add("Reshape", [f"{n}.{part}", "heads"], f"{n}.{part}.split")
            add("Transpose", [f"{n}.{part}.split"], f"{n}.{part}.heads", perm=order)
        add("MatMul", [f"{n}.q.heads", f"{n}.k.heads"], f"{n}.products")
        add("Mul", [f"{n}.products", "root"], f"{n}.scores")
        add("Softmax", [f"{n}.scores"], f"{n}.weights", axis=-1)
        add("MatMul", [f"{n}.weights", f"{n}.v.heads"], f"{n}.mixed")
        add("Transpose", [f"{n}.mixed"], f"{n}.turned", perm=(0, 2, 1, 3))
        add("Reshape", [f"{n}.turned", "joined"], f"{n}.joined")
        x = add("Add", [x, linear(f"{n}.joined", f"{n}.out", f"{n}.attended")], f"{n}.x1")
        up = add("Gelu", [linear(norm(x, f"{n}.norm2", f"{n}.n2"), f"{n}.up", f"{n}.up.out")], f"{n}.gelu")
        x = add("Add", [x, linear(up, f"{n}.down", f"{n}.fed")], f"{n}.x2")
    add("ReduceMean", [norm(x, "norm", "normed"), "axis"], "mean", keepdims=0)
    linear("mean", "head", "logits")
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["N", 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with write_atomically(path, overwrite=True) as stream:
        stream.write(model.SerializeToString())


def inject(model):
    """The same function with outlier channels: LayerNormalization's gamma and beta up, the weights behind it down."""
    values = {one.name: numpy_helper.to_array(one).copy() for one in model.graph.initializer}
    random = np.random.default_rng(SEED)
    for b in range(BLOCKS):
        for norm, behind in (("norm1", "qkv"), ("norm2", "up")):
            channels = random.choice(WIDTH, OUTLIERS, replace=False)
            for name in (f"b{b}.{norm}", f"b{b}.{norm}.bias"):
                values[name][channels] *= np.float32(FACTOR)
            values[f"b{b}.{behind}"][channels] /= np.float32(FACTOR)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.initializer[:]
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return made


def plans():
    """The methods: name to plan text."""
    static = 'activations = { dtype = "uint8", observer = "minmax" }'
    head = 'schema = 1\ndialect = "hwq"\n[default]\n'
    integers = 'schema = 1\ndialect = "hwq-integer"\n[default]\n'
    return {
        "W8A8": f'{head}weights = {{ dtype = "int8" }}\n{static}\n',
        "W8A8 smooth": f'{head}weights = {{ dtype = "int8" }}\n{static}\n[transforms]\nsmooth = 0.5\n',
        "W8A8, integers alone": f'{integers}weights = {{ dtype = "int8" }}\n{static}\n',
        "W8A8 smooth, integers alone": f'{integers}weights = {{ dtype = "int8" }}\n{static}\n[transforms]\nsmooth = 0.5\n',
        "W8A16, integers alone": f'{integers}weights = {{ dtype = "int8" }}\nactivations = {{ dtype = "int16", symmetric = true }}\n',
        "W8 dynamic rows smooth": f'{head}weights = {{ dtype = "int8" }}\nactivations = {{ mode = "dynamic", granularity = "row" }}\n[transforms]\nsmooth = 0.5\n',
        "W8 dynamic rows": f'{head}weights = {{ dtype = "int8" }}\nactivations = {{ mode = "dynamic", granularity = "row" }}\n',
        "W4 groups of 32, float activations": f'{head}weights = {{ dtype = "int4", granularity = {{ group = 32 }} }}\nactivations = {{ mode = "float" }}\n',
        "W4 groups of 32, seq-mse and coordinate": f'{head}weights = {{ dtype = "int4", granularity = {{ group = 32 }}, scale = "seq-mse", rounding = "coordinate" }}\nactivations = {{ mode = "float" }}\n',
        "W4 groups of 32, awq": f'{head}weights = {{ dtype = "int4", granularity = {{ group = 32 }} }}\nactivations = {{ mode = "float" }}\n[transforms]\nawq = true\n',
    }


def sqnr(real, made):
    """Signal over quantization noise of the logits, dB."""
    return float(
        10
        * np.log10(np.square(real, dtype=np.float64).sum() / max(np.square(real - made, dtype=np.float64).sum(), 1e-30))
    )


def main():
    images, labels, test, answers = digits()
    FOLDER.mkdir(exist_ok=True)
    if "--train" in sys.argv[1:] or not MODEL.exists():
        start = time.process_time()
        write(train(images, labels), MODEL)
        print(f"trained in {time.process_time() - start:.0f} s of one core")
    model = onnx.load(MODEL, load_external_data=False)
    calibration = images[:200]
    rows, found = [], {}
    for variant, source in (("as trained", model), ("with outliers", inject(model))):
        path = FOLDER / "variant.onnx"
        path.write_bytes(source.SerializeToString())
        graph = hwq.load(str(path))
        path.unlink()
        real = np.asarray(hwq.execute(graph, test))
        rows.append([variant, "float", "", f"{100 * np.mean(real.argmax(1) == answers):.1f}", "100.0", ""])
        for name, text in plans().items():
            plan_path = FOLDER / "plan.toml"
            plan_path.write_text(text)
            plan = hwq.Plan.load(plan_path)
            plan_path.unlink()
            start = time.process_time()
            try:
                q = hwq.quantize(graph, plan, hwq.calibrate(graph, calibration), calibration)
                made = np.asarray(hwq.execute(q, test))
            except hwq.Error as error:
                print(variant, name, error)
                rows.append([variant, name, "refused", "", "", ""])
                continue
            found[variant, name] = sqnr(real, made)
            rows.append([variant, name, f"{found[variant, name]:.2f}", f"{100 * np.mean(made.argmax(1) == answers):.1f}",
                         f"{100 * np.mean(made.argmax(1) == real.argmax(1)):.1f}", f"{time.process_time() - start:.1f}"])  # fmt: skip
            print(*rows[-1], flush=True)
    lost = found["as trained", "W8A8"] - found["with outliers", "W8A8"]
    won = found["with outliers", "W8A8 smooth"] - found["with outliers", "W8A8"]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["model", "method", "SQNR dB", "accuracy %", "agreement %", "seconds"], *rows]
    )
    with write_atomically(FOLDER / "encoder.csv", overwrite=True, mode="w") as stream:
        stream.write(text.getvalue())
    lines = ["# A transformer encoder with outlier channels", "", __doc__.split("\n\n")[1].replace("\n", " "), "",
             f"{OUTLIERS} of {WIDTH} channels of each LayerNormalization times {FACTOR:g}; 200 training images calibrate, 500 test images are scored; dialect `hwq`; `integers alone` is `hwq-integer`: residual sums, LayerNormalization, softmax, GELU and mean too run on 8 or 16 bits, nothing between input and logits is a float.", "",
             "| model | method | SQNR dB | accuracy % | agreement % | seconds |", "|---|---|---|---|---|---|",
             *("| " + " | ".join(row) + " |" for row in rows), "",
             f"Outliers cost W8A8 {lost:.2f} dB; `smooth = 0.5` wins {won:.2f} dB back: {100 * won / lost:.0f} %.", ""]  # fmt: skip
    with write_atomically(FOLDER / "index.md", overwrite=True, mode="w") as stream:
        stream.write("\n".join(lines))
    print(lines[-2])


if __name__ == "__main__":
    main()
