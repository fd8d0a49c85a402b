"""Model files that are damaged, hostile or absurd: one clear error that names the file, in bounded time and memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bad_models import FILES, FLOAT, MODELS, RNG, Q, external, ints, model, one, torch_like
from onnx import helper, numpy_helper

from hwq.errors import Error, NotSupportedYet
from hwq.graph import Graph, Node, Tensor
from hwq.importers import load
from hwq.ops.evaluate import evaluate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with a secret beside it."""
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    home = tmp_path / "home"
    home.mkdir()
    (home / "data.bin").write_bytes(RNG.standard_normal(108).astype(np.float32).tobytes())
    (home / "small.bin").write_bytes(bytes(16))
    (home / "link.bin").symlink_to(tmp_path / "secret.bin")
    (home / "linked").symlink_to(tmp_path)
    os.mkfifo(home / "fifo")
    return home


def refused(path: Path, word: str) -> Error:
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(Error) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 300 << 20
    text = str(caught.value)
    assert path.name in text and word in text, text
    assert len(text) < 3000 and "\x1b" not in text
    return caught.value


@pytest.mark.parametrize("name", MODELS)
def test_model_is_refused(name: str, folder: Path) -> None:
    make, word = MODELS[name]
    path = folder / "model.onnx"
    path.write_bytes(make().SerializeToString())
    error = refused(path, word)
    assert error.why or error.remedy or error.where


@pytest.mark.parametrize("name", FILES)
def test_file_is_refused(name: str, tmp_path: Path) -> None:
    make, word = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make())
    refused(path, word)


def test_truncation_at_every_offset_is_refused_or_whole(tmp_path: Path) -> None:
    data = model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        try:
            load(path)
        except Error as error:
            assert "cut.onnx" in str(error)


def test_flipped_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    data = bytearray(model().SerializeToString())
    path = tmp_path / "flip.onnx"
    for _ in range(400):
        copy = bytearray(data)
        for place in RNG.integers(0, len(copy), 3):
            copy[place] = RNG.integers(0, 256)
        path.write_bytes(bytes(copy))
        try:
            graph = load(path)
            if graph.inputs and graph.tensors[graph.inputs[0]].dtype == "float32":
                shape = [dim if isinstance(dim, int) else 1 for dim in graph.tensors[graph.inputs[0]].shape]
                if np.prod(shape) < 1e6:
                    evaluate(graph, {graph.inputs[0]: np.ones(shape, np.float32)})
        except Error:
            pass


def test_missing_folder_and_pipe(folder: Path) -> None:
    for path, word in (
        (folder / "none.onnx", "no such file"),
        (folder, "regular file"),
        (folder / "fifo", "regular file"),
        (folder / "a\0b", "no such file|cannot read"),
    ):
        with pytest.raises(Error, match=word):
            load(path)


def test_too_large_for_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    with pytest.raises(Error, match="bound"):
        load(path, max_bytes=100)


def test_tflite_and_torch_are_told_apart_by_content(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(torch_like())
    with pytest.raises(NotSupportedYet, match="PyTorch"):
        load(path)
    path = tmp_path / "model.pt"
    path.write_bytes(model().SerializeToString())
    assert len(load(path)) == 2


def test_external_data_in_the_folder_are_read(folder: Path) -> None:
    (folder / "inside.bin").symlink_to(folder / "data.bin")  # a link that stays inside is no escape
    (folder / "sub").mkdir()
    (folder / "sub" / "data.bin").write_bytes(bytes(8) + (folder / "data.bin").read_bytes())
    wanted = np.frombuffer((folder / "data.bin").read_bytes(), np.float32).reshape(4, 3, 3, 3)
    for location, offset in (("data.bin", "0"), ("inside.bin", "0"), ("sub/data.bin", "8"), ("./sub/../data.bin", "0")):
        (folder / "model.onnx").write_bytes(external(location, offset, "432").SerializeToString())
        np.testing.assert_array_equal(load(folder / "model.onnx").constant("w"), wanted)


BOMBS = {
    "ConstantOfShape": lambda: one("ConstantOfShape", "s", initializers=[ints("s", [1 << 20, 1 << 20])]),
    "Expand": lambda: one("Expand", "x", "s", initializers=[ints("s", [1 << 20, 1 << 20, 1, 1, 1, 1])]),
    "Tile": lambda: one("Tile", "x", "s", initializers=[ints("s", [1 << 20, 1 << 10, 1, 1])]),
    "Pad": lambda: one("Pad", "x", "s", initializers=[ints("s", [0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20])]),
    "Range": lambda: model([Q("Range", ["s", "l", "d"], ["y"], "bad")], [ints("s", [0]), ints("l", [1 << 60]), ints("d", [1])],
                           inputs=[helper.make_tensor_value_info("x", FLOAT, [1, 3, 8, 8])]),
    "Resize": lambda: one("Resize", "x", "", "s", initializers=[numpy_helper.from_array(np.array([1, 1, 1e6, 1e6], np.float32), "s")]),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_models_with_huge_values_stop_at_the_bound(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    path.write_bytes(BOMBS[name]().SerializeToString())
    tracemalloc.start()
    try:
        graph = load(path)
        with pytest.raises(Error, match="bound"):
            evaluate(graph, {"x": np.ones((1, 3, 8, 8), np.float32)} if "x" in graph.inputs else {})
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_saved_graph_is_not_trusted(tmp_path: Path) -> None:
    graph = Graph([Node("Relu", "r", ("x",), ("y",))], [Tensor("x", shape=(2,)), Tensor("y", shape=(2,))], ["x"], ["y"])
    graph.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as archive:
        header = archive["hwq_graph"].tobytes()
    for index, bad in enumerate([b"", b"[]", b"{}", header[:-5], header.replace(b'"version": 1', b'"version": 99'), header.replace(b'["y"]', b'["z"]'),
                                 header.replace(b'"float32"', b'"object"'), header.replace(b'"tensors"', b'"tenors"'), b"[" * 100_000]):  # fmt: skip
        path = tmp_path / f"bad{index}.npz"
        np.savez(path, hwq_graph=np.frombuffer(bad, np.uint8))
        with pytest.raises(Error):
            load(path)


def test_what_no_memory_and_no_int64_holds_is_one_error(tmp_path: Path) -> None:
    """Shapes alone cost nothing: the estimate and the run say what would be too large."""
    import hwq

    def image(side: int) -> Path:
        path = tmp_path / "large.onnx"
        path.write_bytes(
            model(inputs=[helper.make_tensor_value_info("x", FLOAT, ["N", 3, side, side])]).SerializeToString()
        )
        return path

    plan = hwq.Plan.uniform(weights="int8", activations="int8")
    for side in (1 << 31, 1 << 40):
        with pytest.raises(Error, match="too large to estimate"):
            hwq.estimate(load(image(side)), "t4", plan=plan)
    assert hwq.estimate(load(image(1 << 16)), "t4", plan=plan).macs == (1 << 32) * 27 * 4
    doubled = [
        Q("Concat", [f"t{i}" if i else "x"] * 2, [f"t{i + 1}" if i < 39 else "y"], f"c{i}", axis=0) for i in range(40)
    ]
    (tmp_path / "double.onnx").write_bytes(model(doubled, []).SerializeToString())
    with pytest.raises(Error, match="more than the bound"):
        hwq.execute(load(tmp_path / "double.onnx"), np.ones((1, 3, 8, 8), np.float32))


def test_memory_that_the_system_refuses_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results within the bound may still be more than a process gets."""
    import hwq
    from hwq.execution import program as programs

    def refuse(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    graph = Graph([Node("Relu", "r", ("x",), ("y",))], [Tensor("x", shape=(2,)), Tensor("y", shape=(2,))], ["x"], ["y"])
    program = hwq.compile(graph, "ort")
    monkeypatch.setattr(programs, "_perform", refuse)
    for call in (program, program.session()):
        with pytest.raises(Error, match="do not fit into memory"):
            call(np.ones(2, np.float32))
