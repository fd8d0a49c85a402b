"""Model files that are damaged, hostile or absurd, and a word that the error about each must hold."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)


def model(
    nodes: list[onnx.NodeProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    *,
    opset: int = 17,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A convolution with a Relu, or whatever is given instead."""
    if nodes is None:
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], "relu"),
        ]
    if initializers is None:
        initializers = [
            numpy_helper.from_array(RNG.standard_normal((4, 3, 3, 3), np.float32), "w"),
            numpy_helper.from_array(np.zeros(4, np.float32), "b"),
        ]
    if inputs is None:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def one(
    op: str,
    *inputs: str,
    initializers: list[onnx.TensorProto] | None = None,
    shape: tuple[object, ...] = (1, 3, 8, 8),
    opset: int = 17,
    **attributes: object,
) -> onnx.ModelProto:
    return model(
        [helper.make_node(op, list(inputs), ["y"], "bad", **attributes)],
        initializers or [],
        opset=opset,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
    )


def ints(name: str, values: list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def weight(change: Callable[[onnx.TensorProto], object]) -> onnx.ModelProto:
    """The default model with its first initializer changed."""
    made = model()
    change(made.graph.initializer[0])
    return made


def claim(dims: list[int], data_type: int = TensorProto.FLOAT, raw: bytes = b"\0" * 16) -> onnx.ModelProto:
    tensor = onnx.TensorProto(name="w", data_type=data_type, dims=dims, raw_data=raw)
    return model(initializers=[tensor, numpy_helper.from_array(np.zeros(4, np.float32), "b")])


def external(
    location: str, offset: str = "0", length: str | None = None, dims: tuple[int, ...] = (4, 3, 3, 3)
) -> onnx.ModelProto:
    def change(tensor: onnx.TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.dims[:] = dims
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {
            "location": location,
            "offset": offset,
            **({} if length is None else {"length": length}),
        }.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return weight(change)


def nested(depth: int) -> onnx.ModelProto:
    """If inside If inside If."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "leaf",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    for level in range(depth):
        node = helper.make_node(
            "If", ["c"], ["y"], f"if{level}", then_branch=inner, else_branch=inner if level == 0 else None
        )
        inner = helper.make_graph(
            [node], f"g{level}", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        )
    return model([*inner.node], [numpy_helper.from_array(np.array(True), "c")])


def calling(depth: int, width: int) -> onnx.ModelProto:
    """Functions that each call the next `width` times: `width ** depth` nodes from a few hundred bytes."""
    made = model([helper.make_node("f0", ["x"], ["y"], "call", domain="own")], [])
    made.opset_import.append(helper.make_opsetid("own", 1))
    for level in range(depth):
        callee, domain = (f"f{level + 1}", "own") if level + 1 < depth else ("Relu", "")
        names = ["a", *[f"t{index}" for index in range(width - 1)], "r"]
        nodes = [helper.make_node(callee, [names[index]], [names[index + 1]], domain=domain) for index in range(width)]
        made.functions.append(helper.make_function("own", f"f{level}", ["a"], ["r"], nodes, made.opset_import))
    return made


def recursive() -> onnx.ModelProto:
    made = calling(1, 1)
    made.functions[0].node[0].op_type, made.functions[0].node[0].domain = "f0", "own"
    return made


def twice(what: str) -> onnx.ModelProto:
    made = model()
    if what == "output":
        made.graph.node[1].output[0] = "c"
        made.graph.output[0].name = "c"
    elif what == "input":
        made.graph.input.append(made.graph.input[0])
    elif what == "initializer":
        made.graph.initializer.append(made.graph.initializer[0])
    else:
        made.graph.node[0].attribute.append(made.graph.node[0].attribute[0])
    return made


def cycle() -> onnx.ModelProto:
    return model(
        [
            helper.make_node("Add", ["x", "b"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"], "second"),
            helper.make_node("Relu", ["a"], ["y"], "third"),
        ],
        [],
    )


def sparse() -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(numpy_helper.from_array(np.ones(1, np.float32), "s"), ints("i", [0]), [4])
    )
    return made


def sequence_input() -> onnx.ModelProto:
    value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    return model([helper.make_node("Identity", ["x"], ["y"])], [], inputs=[value])


def product(op: str, weight: tuple[int, ...], scales: int, outputs: int = 1) -> onnx.ModelProto:
    """A quantized convolution or product with `scales` scales of its weight and `outputs` of its result."""
    names = ["q", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
    values = [
        np.float32(0.1),
        np.uint8(128),
        np.ones(weight, np.int8),
        np.full(scales, 0.1, np.float32),
        np.zeros(scales, np.int8),
    ]
    values += [np.full(outputs, 0.1, np.float32) if outputs > 1 else np.float32(0.1), np.uint8(128)]
    return model(
        [helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]), helper.make_node(op, names, ["y"], "bad")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names[1:], values, strict=True)],
    )


def edit(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = model()
    change(made)
    return made


GIB = 1 << 30
Q = helper.make_node
FLOAT = TensorProto.FLOAT
# name -> (what makes the model, a word that the error must hold)
MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "cycle": (cycle, "cycle"),
    "missing initializer": (lambda: edit(lambda m: m.graph.initializer.pop(0)), "nothing makes"),
    "weight with wrong channels": (lambda: weight(lambda t: t.CopyFrom(numpy_helper.from_array(np.zeros((4, 5, 3, 3), np.float32), "w"))), "channels"),
    "weight of wrong rank": (lambda: weight(lambda t: t.CopyFrom(numpy_helper.from_array(np.zeros((4, 27), np.float32), "w"))), "rank"),
    "weight of wrong type": (lambda: weight(lambda t: t.CopyFrom(numpy_helper.from_array(np.zeros((4, 3, 3, 3)), "w"))), "different types"),
    "raw data too short": (lambda: weight(lambda t: setattr(t, "raw_data", t.raw_data[:-1])), "bytes"),
    "raw data too long": (lambda: weight(lambda t: setattr(t, "raw_data", t.raw_data + b"\0\0\0\0")), "bytes"),
    "no data": (lambda: weight(lambda t: t.ClearField("raw_data")), "values"),
    "data of another type": (lambda: weight(lambda t: (t.ClearField("raw_data"), t.int64_data.extend([0] * 108))), "values"),
    "2 GB claim": (lambda: claim([GIB // 2]), "bytes"),
    "1 TB claim": (lambda: claim([GIB, 256]), "bound"),
    "overflowing claim": (lambda: claim([1 << 40, 1 << 40, 1 << 40]), "bound"),
    "int4 claim": (lambda: claim([GIB], TensorProto.INT4), "bytes"),
    "string claim": (lambda: claim([1 << 40], TensorProto.STRING), "strings"),
    "negative dimension": (lambda: claim([-4, -4]), "impossible"),
    "1000 dimensions": (lambda: claim([1] * 1000), "impossible"),
    "unknown element type": (lambda: claim([4], 99), "element type 99"),
    "undefined element type": (lambda: claim([4], 0), "element type 0"),
    "complex element type": (lambda: claim([2], TensorProto.COMPLEX64), "element type"),
    "segmented tensor": (lambda: weight(lambda t: setattr(t.segment, "begin", 1)), "segments"),
    "nameless initializer": (lambda: weight(lambda t: setattr(t, "name", "")), "no name"),
    "output made twice": (lambda: twice("output"), "twice"),
    "input named twice": (lambda: twice("input"), "one name"),
    "initializer named twice": (lambda: twice("initializer"), "one name"),
    "attribute given twice": (lambda: twice("attribute"), "twice"),
    "unknown operator": (lambda: one("Frobnicate", "x"), "Frobnicate"),
    "unknown domain": (lambda: model([Q("Relu", ["x"], ["y"], "alien", domain="com.alien")], []), "com.alien"),
    "recurrent operator": (lambda: one("LSTM", "x"), "LSTM"),
    "control flow": (lambda: nested(1), "If"),
    "deep control flow": (lambda: nested(25), ""),
    "loop": (lambda: one("Loop", "x", body=model().graph), "Loop"),
    "sparse initializer": (sparse, "sparse"),
    "sequence input": (sequence_input, "tensors"),
    "no operator set": (lambda: edit(lambda m: m.ClearField("opset_import")), "operator set"),
    "opset 6": (lambda: model(opset=6), "opset 6"),
    "opset 1": (lambda: model(opset=1), "opset 1"),
    "opset 9999": (lambda: model(opset=9999), "opset 9999"),
    "no graph": (lambda: edit(lambda m: m.ClearField("graph")), "no graph"),
    "no output": (lambda: edit(lambda m: m.graph.ClearField("output")), "no output"),
    "output that nothing makes": (lambda: edit(lambda m: setattr(m.graph.output[0], "name", "ghost")), "no node"),
    "node without outputs": (lambda: edit(lambda m: m.graph.node[1].ClearField("output")), "nothing"),
    "conv without weight": (lambda: one("Conv", "x"), "weight"),
    "zero stride": (lambda: edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0]))), "strides"),
    "negative dilation": (lambda: edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("dilations", [-1, 1]))), "dilations"),
    "too many strides": (lambda: edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [1] * 100_000))), "strides"),
    "attribute of wrong type": (lambda: edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", "two"))), "strides"),
    "group of wrong type": (lambda: edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", [1]))), "group"),
    "kernel larger than image": (lambda: one("MaxPool", "x", kernel_shape=[99, 99]), "fit"),
    "pool wholly in padding": (lambda: one("MaxPool", "x", kernel_shape=[2, 2], pads=[5, 5, 5, 5]), "pad"),
    "unknown auto_pad": (lambda: one("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_SIDEWAYS"), "auto_pad"),
    "permutation that is none": (lambda: one("Transpose", "x", perm=[0, 0, 1, 2]), "permutation"),
    "huge permutation": (lambda: one("Transpose", "x", perm=list(range(1_000_000))), "perm"),
    "reshape that does not fit": (lambda: one("Reshape", "x", "s", initializers=[ints("s", [7, 11])]), "elements"),
    "reshape with two -1": (lambda: one("Reshape", "x", "s", initializers=[ints("s", [-1, -1])]), "-1"),
    "axis out of range": (lambda: one("Softmax", "x", axis=9), "axis 9"),
    "axes named twice": (lambda: one("Squeeze", "x", "a", initializers=[ints("a", [0, 0])]), "twice"),
    "split that does not add up": (lambda: one("Split", "x", "s", axis=1, initializers=[ints("s", [99])]), "parts"),
    "split into another number": (lambda: one("Split", "x", axis=1, opset=18, num_outputs=10**9), "num_outputs"),
    "QLinearConv with five scales for four filters": (lambda: product("QLinearConv", (4, 3, 3, 3), 5), "5 values"),
    "QLinearConv with two scales of the output": (lambda: product("QLinearConv", (4, 3, 3, 3), 4, 2), "2 values"),
    "QLinearMatMul with five scales for four columns": (lambda: product("QLinearMatMul", (8, 4), 5), "5 values"),
    "ConvInteger with three zero points for four filters": (lambda: model([Q("QuantizeLinear", ["x", "s", "z"], ["q"]), Q("ConvInteger", ["q", "w", "z", "p"], ["y"], "bad")], [
        numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(np.uint8(0), "z"), numpy_helper.from_array(np.ones((4, 3, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.zeros(3, np.int8), "p")]), "3 values"),
    "slice with step 0": (lambda: one("Slice", "x", "s", "e", "a", "z", initializers=[ints("s", [0]), ints("e", [1]), ints("a", [0]), ints("z", [0])]), "step"),
    "gather by floats": (lambda: one("Gather", "x", "x"), "int32 or int64"),
    "endless range": (lambda: model([Q("Range", ["s", "l", "d"], ["y"], "bad")], [ints("s", [0]), ints("l", [9]), ints("d", [0])], inputs=[]), "range"),
    "scale that does not fit": (lambda: one("QuantizeLinear", "x", "s", initializers=[numpy_helper.from_array(np.ones(5, np.float32), "s")]), "scale"),
    "cast to nonsense": (lambda: one("Cast", "x", to=77), "element type 77"),
    "batch normalization in training": (lambda: one("BatchNormalization", "x", "g", "g", "g", "g", training_mode=1, initializers=[
        numpy_helper.from_array(np.ones(3, np.float32), "g")]), "training"),
    "function that calls itself": (recursive, "function"),
    "functions that explode": (lambda: calling(20, 4), "expand"),
    "external data by ..": (lambda: external("../secret.bin"), "outside"),
    "external data by absolute path": (lambda: external("/etc/passwd"), "outside"),
    "external data by backslash": (lambda: external("..\\secret.bin"), "outside"),
    "external data by symlink": (lambda: external("link.bin"), "outside"),
    "external data by linked folder": (lambda: external("linked/secret.bin"), "outside"),
    "external data in a fifo": (lambda: external("fifo"), "missing"),
    "external data in a folder": (lambda: external("."), "missing"),
    "external data missing": (lambda: external("nowhere.bin"), "missing"),
    "external offset in other digits": (lambda: external("data.bin", "٤", "432"), "decimal"),
    "external offset with an underscore": (lambda: external("data.bin", "1_0", "422"), "decimal"),
    "quantized to floats": (lambda: one("QuantizeLinear", "x", "s", "z", initializers=[
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("s", 1), ("z", 0))]), "nothing is quantized to float32"),
    "external data without location": (lambda: external(""), "outside"),
    "external data with a NUL": (lambda: external("a\0b"), "external data"),
    "external data too short": (lambda: external("small.bin"), "fit"),
    "external data at a negative offset": (lambda: external("small.bin", "-8", "432"), "fit"),
    "external data at a huge offset": (lambda: external("small.bin", str(1 << 62), "432"), "fit"),
    "external data with a wrong length": (lambda: external("data.bin", "0", "8"), "fit"),
    "external data with a word as offset": (lambda: external("data.bin", "zero"), "external data"),
    "external data claiming 1 TB": (lambda: external("data.bin", dims=(GIB, 256)), "bound"),
}  # fmt: skip


def torch_like() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros(3))
    return stream.getvalue()


# name -> (bytes of the file, a word that the error must hold)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"\x08", "no ONNX model"),
    "zeros": (lambda: bytes(4096), "no ONNX model"),
    "random": (lambda: np.random.default_rng(1).bytes(100_000), "no ONNX model"),
    "a name that is not UTF-8": (lambda: model().SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff"), "UTF-8"),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(64), "JPEG"),
    "text": (lambda: b"hello, this is a shopping list\n" * 10, "no ONNX model"),
    "JSON": (lambda: b'{"model": 1}', "JSON"),
    "HTML": (lambda: b"<!doctype html><html></html>", "HTML"),
    "git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), "gzip"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "npz of data": (arrays, "no model"),
    "npy of data": (lambda: b"\x93NUMPY" + bytes(64), "NumPy"),
    "damaged zip": (lambda: b"PK\x03\x04" + bytes(64), "archive"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "PyTorch"),
    "torch archive": (torch_like, "PyTorch"),
    "ELF": (lambda: b"\x7fELF" + bytes(64), "program"),
    "protobuf bomb of nesting": (lambda: nest(5000), "no ONNX model"),
    "truncated length": (lambda: b"\x3a\xff\xff\xff\xff\x0f" + bytes(16), "no ONNX model"),
    "ONNX with a tail of noise": (lambda: model().SerializeToString() + b"\xff" * 9, "no ONNX model"),
}  # fmt: skip


def nest(depth: int) -> bytes:
    """Field 7 (graph) in field 1 (node) in field 5 (attribute) in field 6 (graph) ... by hand: deeper than any parser should go."""
    inner = b""
    for level in range(depth):
        tag = (0x0A, 0x2A, 0x32)[level % 3]
        length, size = b"", len(inner)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        inner = bytes([tag]) + length + bytes([size]) + inner
    return b"\x3a" + bytes([len(inner) & 127 | 128, len(inner) >> 7 & 127 | 128, len(inner) >> 14]) + inner
