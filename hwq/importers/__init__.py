"""Importers: a model from a file or the zoo, recognized by its content."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hwq.errors import Error, NotSupportedYet
from hwq.files import MAX_BYTES, read_bytes
from hwq.graph import Graph

__all__ = ["load"]

# First bytes of things that are often mistaken for a model.
_SIGNATURES = (
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"), (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"), (b"\x89HDF", "an HDF5 file (Keras?)"), (b"\x1f\x8b", "a gzip archive"), (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"), (b"\x28\xb5\x2f\xfd", "a zstandard archive"), (b"\x93NUMPY", "a NumPy array"), (b"GGUF", "a GGUF model"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not fetched"), (b"<", "a text in XML or HTML"), (b"{", "a JSON text"),
)  # fmt: skip


def load(
    model: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    weights: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Graph:
    """Load a model as a graph in source form.

    Parameters
    ----------
    model : path or str
        An ONNX or TFLite file, a graph that `Graph.save` wrote, or ``zoo:NAME``. The content decides, not the suffix.
    shapes : mapping of input name to shape, optional
        Binds open dimensions.
    weights : bool
        False builds zoo networks without weight values, for cost only.
    max_bytes : int
        Bound on the file and on all tensors together.

    Returns
    -------
    Graph

    Raises
    ------
    Error
        The file is missing, too large, damaged, of unknown content, or uses what hwq lacks. Data outside the model's
        folder are never read.
    NotSupportedYet
        A PyTorch file.
    """
    name = os.fspath(model)
    if name.startswith("zoo:"):
        from hwq import zoo
        from hwq.ops.inference import infer_shapes

        graph = zoo.build(name.removeprefix("zoo:"), weights=weights)
        return infer_shapes(graph, shapes) if shapes else graph
    path = Path(name)
    data = read_bytes(path, max_bytes)
    if not data:
        raise Error("the file is empty", where=name, remedy="give an ONNX model")
    if data[4:8] == b"TFL3":
        from hwq.importers import tflite

        return tflite.read(data, name, shapes=shapes)
    if data[:2] == b"PK":
        return _archive(path, shapes, max_bytes)
    if data[:1] == b"\x80" and data[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        raise NotSupportedYet(
            "import of pickled PyTorch modules",
            where=name,
            why="unpickling runs code from the file",
            remedy="export the module with torch.onnx.export",
        )
    for signature, what in _SIGNATURES:
        if data.startswith(signature):
            raise Error(f"this is {what}, not a model", where=name, remedy="give an ONNX model")
    from hwq.importers.onnx import read_file

    return read_file(data, path, shapes, max_bytes)


def _archive(path: Path, shapes: Mapping[str, Sequence[int]] | None, max_bytes: int) -> Graph:
    """A zip archive: a saved graph, a PyTorch file, or neither."""
    import zipfile

    from hwq.graph_file import HEADER
    from hwq.ops.inference import infer_shapes

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise Error("this archive is damaged", where=str(path), why=f"{error}", remedy="give an ONNX model") from error
    if f"{HEADER}.npy" in members:
        graph = Graph.load(path, max_bytes)
        return infer_shapes(graph, shapes) if shapes else graph
    if any(member.endswith(("data.pkl", "archive_format", "constants.pkl")) for member in members):
        raise NotSupportedYet(
            "import of PyTorch archives", where=str(path), remedy="export the module with torch.onnx.export"
        )
    raise Error(
        "this archive holds no model",
        where=str(path),
        why="it has neither a saved graph nor a PyTorch module",
        remedy="give an ONNX model, not compressed",
    )
