"""Errors, names and files: one clear error, safe names, files whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile

import numpy as np
import pytest

from hwq import samples
from hwq.errors import Error, NotSupportedYet
from hwq.files import read_bytes, read_npz, streams, write_atomically, write_npz
from hwq.names import csv_cell, display_name, html_name, plot_name, rich_name

HOSTILE = [
    "conv[/a]",
    r"$\frac{1$",
    "<script>alert(1)</script>",
    "=1+1",
    "\x1b[31mred\x1b[0m",
    "a\nb\rc",
    "\u202eevil",
    "x" * 1_000_000,
    "\ud800",
    "é😀",
    "",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
def test_hostile_names_are_safe_everywhere(name: str) -> None:
    from rich.text import Text

    shown = display_name(name)
    assert len(shown) <= 8 * 120 and all(character.isprintable() for character in shown)
    assert Text.from_markup(rich_name(name)).plain == shown
    assert "<" not in html_name(name) and '"' not in html_name(name)
    assert plot_name(name).count("$") == plot_name(name).count(r"\$")
    assert not str(csv_cell(name)).startswith(("=", "+", "-", "@"))


def test_ordinary_names_are_untouched() -> None:
    assert display_name("layer1.0/conv:0") == "layer1.0/conv:0" and csv_cell(-1.5) == -1.5


def test_an_error_has_four_parts_and_survives_pickling() -> None:
    error = Error("it is wrong", where="a.onnx, node \x1b[31m", why="because", remedy="mend it")
    assert str(error) == "a.onnx, node \\x1b[31m: it is wrong\n  why: because\n  remedy: mend it"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is Error and (again.what, again.why, again.remedy) == (error.what, error.why, error.remedy)
    later = pickle.loads(pickle.dumps(NotSupportedYet("hwq.search")))
    assert str(later) == "not supported yet: hwq.search"


def test_a_file_appears_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), write_atomically(target, mode="w") as stream:
        stream.write("half")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    with write_atomically(target, mode="w") as stream:
        stream.write("whole")
    with pytest.raises(Error, match="exists already"), write_atomically(target) as stream:
        stream.write(b"x")
    with write_atomically(target, overwrite=True, mode="w") as stream:
        stream.write("new")
    assert target.read_text() == "new" and len(list(target.parent.iterdir())) == 1


def test_names_and_disks_that_take_no_file_are_one_error(tmp_path) -> None:
    for name in ("n" * 300, "nul\0byte"):
        with pytest.raises(Error, match="cannot write here"), write_atomically(tmp_path / name):
            pass
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(Error, match="exists already"), write_atomically(tmp_path / "dangling"):
        pass
    with pytest.raises(Error, match="No space left"), write_atomically(tmp_path / "full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == ["dangling"]


def test_a_folder_is_no_file(tmp_path) -> None:
    with pytest.raises(Error, match="folder"), write_atomically(tmp_path, overwrite=True):
        pass
    with pytest.raises(Error, match="not a regular file"):
        read_bytes(tmp_path)


def test_reading_is_bounded(tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    assert read_bytes(path) == b"12345"
    with pytest.raises(Error, match="more than the bound"):
        read_bytes(path, max_bytes=4)
    with pytest.raises(Error, match="no such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(Error):
        read_bytes("nul\0byte")


def test_npz_round_trip(tmp_path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"x": np.arange(6).reshape(2, 3)})
    assert np.array_equal(read_npz(path)["x"], np.arange(6).reshape(2, 3))
    np.save(tmp_path / "b.npy", np.ones(3))
    assert read_npz(tmp_path / "b.npy")["arr_0"].sum() == 3


def bomb(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(64 << 20))


def lie(path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


BAD_ARCHIVES = {
    "objects": lambda path: np.savez(path, x=np.array([{}, 1], object)),
    "pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "truncated": lambda path: (np.savez(path, x=np.ones(1000)), path.write_bytes(path.read_bytes()[:500])),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "bomb": bomb,
    "lie": lie,
    "foreign": lambda path: zipfile.ZipFile(path, "w").writestr("readme.txt", "hello"),
}


def streamed(path) -> None:
    for stream in streams(path, max_bytes=32 << 20).values():
        list(stream.pieces(7))


@pytest.mark.parametrize("read", [lambda path: read_npz(path, max_bytes=32 << 20), streamed], ids=["whole", "streamed"])
@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_bad_archives_give_one_error(kind: str, read, tmp_path) -> None:
    path = tmp_path / "bad.npz"
    BAD_ARCHIVES[kind](path)
    with pytest.raises(Error) as caught:
        read(path)
    assert "bad.npz" in str(caught.value)


@pytest.mark.parametrize(
    "save", [np.savez, np.savez_compressed, lambda path, x, y: np.save(path, x)], ids=["stored", "deflated", "npy"]
)
@pytest.mark.parametrize(
    "x", [np.arange(60, dtype=np.float32).reshape(10, 2, 3), np.arange(10) > 4, np.zeros((10, 0))], ids=str
)
def test_a_stream_gives_what_the_whole_file_holds(save, x, tmp_path) -> None:
    path = tmp_path / ("a.npy" if save not in (np.savez, np.savez_compressed) else "a.npz")
    save(path, x=x, y=np.int64(3))
    found = streams(path)
    whole = read_npz(path)
    assert list(found) == list(whole) and all(one.whole == (whole[name].ndim == 0) for name, one in found.items())
    stream = found.get("x") or found["arr_0"]
    for size in (1, 4, 10, 99):
        parts = list(stream.pieces(size))
        assert [len(part) for part in parts] == [min(size, 10 - start) for start in range(0, 10, size)]
        assert np.array_equal(np.concatenate(parts), x) and parts[0].dtype == x.dtype
    assert stream.stand_in.shape == x.shape and stream.stand_in.dtype == x.dtype


def test_a_stream_tells_when_its_file_was_changed(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.ones((10, 4), np.float32))
    stream = streams(tmp_path / "a.npy")["arr_0"]
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(Error, match=r"the data end in sample"):
        list(stream.pieces(3))
    np.save(tmp_path / "a.npy", np.ones((9, 4), np.float32))
    with pytest.raises(Error, match="changed"):
        list(stream.pieces(3))
    np.save(tmp_path / "a.npy", np.asfortranarray(np.ones((9, 4), np.float32)))
    assert streams(tmp_path / "a.npy")["arr_0"].whole


def test_real_numbers_are_stored_as_the_model_stores_them(tmp_path) -> None:
    """An int8 input of scale 1 and zero point -128 takes bytes 0..255 as the real numbers that they are."""
    from hwq.graph import Graph, Quantization, Tensor

    x = Tensor("x", "int8", ("N", 4), None, Quantization("int8", np.ones((), np.float32), np.full((), -128)))
    graph = Graph([], [x], ["x"], ["x"])
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([[0, 1, 128, 255]], np.uint8), y=np.array([3]))
    found = samples.read(path, graph)
    np.testing.assert_array_equal(found.feeds["x"], np.array([[-128, -127, 0, 127]], np.int8))
    assert any("real numbers" in note for note in found.notes)
    np.savez(path, x=np.array([[0, 1, -128, 127]], np.int8))
    np.testing.assert_array_equal(samples.read(path, graph).feeds["x"], np.array([[0, 1, -128, 127]], np.int8))
    np.savez(path, x=np.array([[-5, 0.6, 300, 3]], np.float32))
    np.testing.assert_array_equal(samples.read(path, graph).feeds["x"], np.array([[-128, -127, 127, -125]], np.int8))
    plain = Graph([], [Tensor("x", "int8", ("N", 4))], ["x"], ["x"])
    np.savez(path, x=np.array([[0, 1, 128, 255]], np.uint8))
    with pytest.raises(Error, match="wants int8"):
        samples.read(path, plain)
