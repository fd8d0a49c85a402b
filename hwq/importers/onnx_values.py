"""ONNX tensors and attributes as NumPy values: every length is checked against the claim before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwq.errors import Error
from hwq.files import MAX_BYTES
from hwq.graph import BITS, Array, carrier
from hwq.names import display_name

__all__ = ["DTYPES", "Budget", "array_of", "attributes_of", "dtype_of", "unpack"]

_T = onnx.TensorProto
# ONNX's element types by hwq's names.
DTYPES: Mapping[int, str] = {
    _T.FLOAT: "float32", _T.UINT8: "uint8", _T.INT8: "int8", _T.UINT16: "uint16", _T.INT16: "int16", _T.INT32: "int32",
    _T.INT64: "int64", _T.STRING: "string", _T.BOOL: "bool", _T.FLOAT16: "float16", _T.DOUBLE: "float64", _T.UINT32: "uint32",
    _T.UINT64: "uint64", _T.BFLOAT16: "bfloat16", _T.FLOAT8E4M3FN: "float8e4m3fn", _T.FLOAT8E4M3FNUZ: "float8e4m3fnuz",
    _T.FLOAT8E5M2: "float8e5m2", _T.FLOAT8E5M2FNUZ: "float8e5m2fnuz", _T.UINT4: "uint4", _T.INT4: "int4",
    _T.FLOAT4E2M1: "float4e2m1", _T.FLOAT8E8M0: "float8e8m0", _T.UINT2: "uint2", _T.INT2: "int2",
}  # fmt: skip
# Rank beyond which no tensor is real; also bounds the work on hostile shapes.
MAX_RANK = 64


class Budget:
    """Bytes that one model's tensors may take together.

    Parameters
    ----------
    max_bytes : int
    folder : Path or None
        Where external data may lie; None refuses them.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, folder: Path | None = None):
        self.max_bytes = max_bytes
        self.left = max_bytes
        self.folder = folder

    def take(self, count: int, where: str) -> None:
        """Account for `count` bytes.

        Raises
        ------
        Error
            More than the bound is asked for.
        """
        self.left -= count
        if self.left < 0:
            raise Error(
                f"the model's tensors take more than the bound of {self.max_bytes} bytes",
                where=where,
                remedy="raise --max-bytes (max_bytes=) if the model is what you think it is",
            )


# External tensors from this size on are mapped, not read.
MAPPED_BYTES = 64 << 20


def dtype_of(code: int, where: str) -> str:
    """hwq's name of an ONNX element type.

    Raises
    ------
    Error
        It is undefined, unknown or complex.
    """
    if code not in DTYPES:
        raise Error(
            f"element type {code} is not supported",
            where=where,
            why="it is undefined, complex or newer than this hwq",
            remedy="export the model with real or integer types",
        )
    return DTYPES[code]


def array_of(tensor: onnx.TensorProto, where: str, budget: Budget) -> tuple[str, Array]:
    """(type, value) of a stored tensor, sub-byte types one element a slot.

    Raises
    ------
    Error
        Type, dimensions and data do not agree, or external data are out of bounds.
    """
    dtype = dtype_of(tensor.data_type, where)
    dims = tuple(tensor.dims)
    if len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
        raise Error(
            f"the dimensions {display_name(list(dims[:8]))} are impossible",
            where=where,
            why="a dimension is negative, or there are too many",
            remedy="the file is damaged; export it again",
        )
    count = 1
    for dim in dims:
        count *= dim
    budget.take(count * carrier(dtype).itemsize if dtype != "string" else 0, where)
    if tensor.HasField("segment"):
        raise Error("tensors in segments are not supported", where=where)
    if dtype == "string":
        return dtype, _strings(tensor, dims, count, where)
    if tensor.data_location == _T.EXTERNAL:
        raw = _external(tensor, _stored_bytes(dtype, count), where, budget)
        return dtype, _from_raw(raw, dtype, count, where).reshape(dims)
    if tensor.HasField("raw_data"):
        return dtype, _from_raw(tensor.raw_data, dtype, count, where).reshape(dims)
    return dtype, _from_field(tensor, dtype, count, where).reshape(dims)


def _stored_bytes(dtype: str, count: int) -> int:
    return (count * BITS[dtype] + 7) // 8


def _strings(tensor: onnx.TensorProto, dims: tuple[int, ...], count: int, where: str) -> Array:
    if len(tensor.string_data) != count:
        raise _mismatch(len(tensor.string_data), count, "strings", where)
    texts = np.empty(count, object)
    texts[:] = [item.decode("utf-8", "replace") for item in tensor.string_data]
    return texts.reshape(dims)


def _mismatch(found: int, wanted: int, unit: str, where: str) -> Error:
    return Error(
        f"the tensor holds {found} {unit}, its dimensions and type need {wanted}",
        where=where,
        why="data and dimensions disagree",
        remedy="the file is damaged or was edited; export it again",
    )


def _from_raw(raw: bytes | Array, dtype: str, count: int, where: str) -> Array:
    wanted = _stored_bytes(dtype, count)
    if len(raw) != wanted:
        raise _mismatch(len(raw), wanted, "bytes", where)
    if BITS[dtype] < 8:
        return unpack(np.frombuffer(raw, np.uint8), dtype, count)
    return np.frombuffer(
        raw, carrier(dtype).newbyteorder("<") if carrier(dtype).kind in "iuf" else carrier(dtype)
    ).astype(carrier(dtype), copy=False)


def unpack(packed: Array, dtype: str, count: int) -> Array:
    """Elements of 2 or 4 bits, lowest bits first, one a slot."""
    bits = BITS[dtype]
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    codes: Array = ((packed.reshape(-1, 1) >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)[:count].astype(np.uint8)
    if dtype.startswith("float"):
        return codes.view(carrier(dtype))
    if dtype.startswith("int"):
        sign = np.uint8(1 << (bits - 1))
        return np.asarray((codes ^ sign).astype(np.int8) - np.int8(sign))
    return codes


_FIELDS: Mapping[str, str] = {
    "float32": "float_data",
    "float64": "double_data",
    "int64": "int64_data",
    "uint64": "uint64_data",
    "uint32": "uint64_data",
}


def _from_field(tensor: onnx.TensorProto, dtype: str, count: int, where: str) -> Array:
    """Values of the typed fields; the small types stand in int32_data, as their bits where they are floats."""
    values = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
    stored = _stored_bytes(dtype, count) if BITS[dtype] < 8 else count
    if len(values) != stored:
        raise _mismatch(len(values), stored, "values", where)
    if dtype in _FIELDS or dtype == "int32":
        return np.array(values, carrier(dtype)).reshape(-1)
    codes: Array = np.array(values, np.int32).reshape(-1)
    if BITS[dtype] < 8:
        return unpack(codes.astype(np.uint8), dtype, count)
    if dtype == "bool":
        return np.not_equal(codes, 0)
    if dtype.startswith(("float", "bfloat")):
        return codes.astype(np.uint16 if BITS[dtype] == 16 else np.uint8).view(carrier(dtype))
    return codes.astype(carrier(dtype))


def _external(tensor: onnx.TensorProto, wanted: int, where: str, budget: Budget) -> bytes | Array:
    """The bytes of a tensor that lie in another file of the model's folder.

    Raises
    ------
    Error
        The file lies elsewhere (also by a symbolic link), is missing, or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if budget.folder is None:
        raise Error(
            "the tensor's data lie in another file",
            where=where,
            why="a model given as bytes has no folder",
            remedy="load the model from its file",
        )
    folder = budget.folder.resolve()
    try:
        path = (folder / location).resolve()
        outside = not location or Path(location).is_absolute() or "\\" in location or not path.is_relative_to(folder)
        if outside or not path.is_file():
            raise Error(
                "the external data lie outside the model's folder" if outside else "the external data file is missing",
                where=f"{display_name(where)}, location {display_name(location)}",
                why="a model may only read files of its own folder" if outside else None,
                remedy="put the data file beside the model",
            )
        stated = [entries.get("offset", "0"), entries.get("length", str(wanted))]
        if not all(text.isascii() and text.removeprefix("-").isdigit() for text in stated):
            raise ValueError(f"offset and length must be decimal numbers, not {stated}")
        offset, length = (int(text) for text in stated)
        size = path.stat().st_size
        if length != wanted or offset < 0 or offset + length > size:
            raise Error(
                f"the external data do not fit: {wanted} bytes are needed, {length} from offset {offset} are claimed, "
                f"the file has {size}",
                where=where,
                remedy="the data file is damaged or belongs to another model",
            )
        if wanted >= MAPPED_BYTES:  # larger than memory may be: pages come when they are read
            return np.memmap(path, np.uint8, "r", offset, (wanted,))
        with path.open("rb") as stream:
            stream.seek(offset)
            found: bytes = stream.read(wanted)
            return found
    except (OSError, ValueError, RuntimeError) as error:
        raise Error(
            "cannot read the external data",
            where=f"{display_name(where)}, location {display_name(location)}",
            why=f"{error}",
        ) from error


def attributes_of(node: onnx.NodeProto, where: str, budget: Budget) -> tuple[dict[str, Any], dict[str, str]]:
    """A node's attributes as plain values, tensors as arrays; and the element types of those that are tensors.

    Raises
    ------
    Error
        An attribute is a graph, a sparse tensor, or of unknown type.
    """
    found: dict[str, Any] = {}
    types: dict[str, str] = {}
    kinds = onnx.AttributeProto
    for attribute in node.attribute:
        name, kind = attribute.name, attribute.type
        if name in found:
            raise Error("an attribute is given twice", where=f"{where}, attribute {name}")
        if kind == kinds.INT:
            found[name] = int(attribute.i)
        elif kind == kinds.FLOAT:
            found[name] = float(attribute.f)
        elif kind == kinds.STRING:
            found[name] = attribute.s.decode("utf-8", "replace")
        elif kind == kinds.INTS:
            found[name] = tuple(attribute.ints)
        elif kind == kinds.FLOATS:
            found[name] = tuple(attribute.floats)
        elif kind == kinds.STRINGS:
            found[name] = tuple(item.decode("utf-8", "replace") for item in attribute.strings)
        elif kind == kinds.TENSOR:
            types[name], found[name] = array_of(attribute.t, f"{where}, attribute {name}", budget)
        else:
            what = {kinds.GRAPH: "a subgraph", kinds.GRAPHS: "subgraphs", kinds.SPARSE_TENSOR: "a sparse tensor"}.get(
                kind, f"of type {kind}"
            )
            raise Error(
                f"operator {node.op_type} with an attribute that is {what} is not supported",
                where=f"{where}, attribute {name}",
                why="hwq runs and costs straight-line graphs",
                remedy="export the model without control flow and sparse tensors",
            )
    return found, types
