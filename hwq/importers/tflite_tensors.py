"""Tensors of a TFLite file: shape, type, quantization, and a constant's bytes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error
from hwq.graph import BITS, Array, Quantization, carrier
from hwq.importers import tflite_schema as schema
from hwq.importers.flatbuffer import Reader, Table
from hwq.importers.tflite_sparse import dense

__all__ = ["RESOURCE", "TensorRecord", "read_buffer", "read_tensor", "unpack"]

MAX_RANK = 16
# The type of a variable's handle, which is no tensor of a graph.
RESOURCE = "resource"
# Elements of one tensor: 2**40 bytes hold no tensor that any runtime allocates.
MAX_BITS = 8 << 40
_RANGES = {name: np.iinfo(np.dtype(name)) for name in ("int8", "uint8", "int16", "uint16", "int32", "int64")}


@dataclass(frozen=True)
class TensorRecord:
    """What the file says about one tensor. `signature` has -1 where a dimension may be resized."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    buffer: int
    quantization: Quantization | None
    variable: bool
    sparsity: Table | None = None

    def renamed(self, name: str) -> TensorRecord:
        """The same tensor under a unique name."""
        return self if name == self.name else dataclasses.replace(self, name=name)


def read_tensor(table: Table, index: int, where: str) -> TensorRecord:
    """Read one tensor's record; its content stays in the file.

    Raises
    ------
    Error
        It has a type, shape, storage or quantization that hwq does not read.
    """
    name = table.text(3, "name") or f"tensor_{index}"
    place = f"{where}, tensor {name}"
    number = table.scalar(1, "int8", 0)
    if not 0 <= number < len(schema.TENSOR_TYPES):
        raise table.reader.fault(f"tensor {index} has the unknown type {number}")
    dtype = schema.TENSOR_TYPES[number]
    if (
        schema.UNNUMERIC.get(number) == "RESOURCE"
    ):  # a variable's handle; what else it may be, no operator of ours takes
        return TensorRecord(index, name, RESOURCE, (), (), 0, None, False)
    if dtype is None:
        raise Error(
            f"tensors of type {schema.UNNUMERIC[number]} are not supported", where=place, why="hwq computes on numbers"
        )
    if table.place(9, 4) is not None and table.count(9, "variant_tensors"):
        raise Error("variant tensors are not supported", where=place, why="hwq computes on numbers")
    if table.scalar(10, "uint32", 0):
        raise Error(
            "tensors in external buffers are not supported",
            where=place,
            why="their bytes lie in another file",
            remedy="export the model with its weights inside",
        )
    shape = _dims(table, 0, "shape", place, 0)
    for dim in shape:
        if dim < 0:
            raise Error(f"the shape {list(shape)} has a negative dimension", where=place)
    bits = BITS[dtype]
    for dim in shape:
        bits *= max(dim, 1)
    if bits > MAX_BITS:
        raise Error(f"the shape {list(shape)} is larger than any memory", where=place)
    signature = _dims(table, 7, "shape_signature", place, -1) or shape
    if len(signature) != len(shape) or any(
        open_dim not in (-1, dim) for open_dim, dim in zip(signature, shape, strict=True)
    ):
        signature = shape  # LiteRT ignores a signature that does not fit
    quantization = _quantization(table.table(4, "quantization"), dtype, shape, place)
    return TensorRecord(
        index,
        name,
        dtype,
        shape,
        signature,
        table.scalar(2, "uint32", 0),
        quantization,
        table.scalar(5, "bool", False),
        table.table(6, "sparsity"),
    )


def _dims(table: Table, field: int, what: str, place: str, least: int) -> tuple[int, ...]:
    found = table.numbers(field, "int32", what, 1 << 10)
    if found is None:
        return ()
    if len(found) > MAX_RANK:
        raise Error(f"the tensor has {len(found)} dimensions", where=place, why=f"hwq reads up to {MAX_RANK}")
    if np.any(found < least):
        raise Error(f"the {what} {[int(dim) for dim in found]} has a negative dimension", where=place)
    return tuple(int(dim) for dim in found)


def _quantization(table: Table | None, dtype: str, shape: tuple[int, ...], place: str) -> Quantization | None:
    """The tensor's own affine quantization; None for floating-point tensors and those without scales."""
    if table is None:
        return None
    details = table.scalar(4, "uint8", 0)
    if details:
        kind = schema.DETAILS[details] if details < len(schema.DETAILS) else f"number {details}"
        raise Error(
            f"the quantization {kind} is not supported",
            where=place,
            why="hwq reads affine scales per tensor and per channel",
        )
    scale = table.numbers(2, "float32", "scale", 1 << 24)
    if scale is None or not len(scale) or not dtype.startswith(("int", "uint")):
        return None
    points = table.numbers(3, "int64", "zero_point", 1 << 24)
    if not np.all(np.isfinite(scale)) or np.any(scale < 0):
        raise Error("a scale is negative or no number", where=place, why="real = (stored - zero point) * scale")
    zero = np.zeros(len(scale), np.int64) if points is None or not len(points) else points.astype(np.int64)
    if len(zero) not in (1, len(scale)):
        raise Error(f"{len(scale)} scales have {len(zero)} zero points", where=place)
    zero = np.broadcast_to(zero, scale.shape)
    info = _RANGES.get(dtype)
    if info is not None and (np.any(zero < info.min) or np.any(zero > info.max)):
        raise Error(f"a zero point does not fit into {dtype}", where=place)
    # The bits of the scales are the file's; only their byte order becomes the machine's.
    scales: NDArray[np.float32] = scale.astype(np.float32)
    stored = zero.astype(carrier(dtype))
    storage: Any = "packed" if BITS[dtype] < 8 else "plain"
    if len(scales) == 1:
        return Quantization(dtype, scales.reshape(()), stored.reshape(()), storage=storage)
    axis = table.scalar(6, "int32", 0)
    if not 0 <= axis < len(shape) or shape[axis] != len(scales):
        raise Error(f"{len(scales)} scales do not fit axis {axis} of the shape {list(shape)}", where=place)
    return Quantization(dtype, scales, stored, axis=axis, storage=storage)


def read_buffer(
    table: Table, record: TensorRecord, contents: dict[tuple[int, str], Array], reader: Reader
) -> Array | None:
    """A constant's value in `carrier(dtype)`, or None where the buffer is empty.

    Raises
    ------
    Error
        The buffer has not exactly the bytes that shape and type ask for, or lies outside the file.
    """
    raw = table.numbers(0, "uint8", "data")
    if raw is None or not len(raw):
        start, size = table.scalar(1, "uint64", 0), table.scalar(2, "uint64", 0)
        if start > 1:  # behind the tables, in the same file (models over 2 GB); 0 and 1 mean none
            if start + size > reader.size:
                raise reader.fault(f"the content of buffer {record.buffer} lies outside the file")
            raw = np.frombuffer(reader.data, np.uint8, size, start)
    count = 1
    for dim in record.shape:
        count *= dim
    if raw is None or not len(raw):
        return np.zeros(record.shape, carrier(record.dtype)) if count == 0 else None
    bits = BITS[record.dtype]
    if record.sparsity is not None and bits >= 8 and record.dtype != "bool":
        return dense(record.sparsity, raw, record.shape, carrier(record.dtype), reader)
    needed = (count * bits + 7) // 8
    if len(raw) != needed:
        raise Error(
            f"the constant has {len(raw)} bytes where {record.dtype}{list(record.shape)} takes {needed}",
            where=f"{reader.where}, tensor {record.name}",
            why="shape, type and content must fit together",
            remedy="the file is damaged; export it again",
        )
    key = (record.buffer, record.dtype)
    if key not in contents:
        contents[key] = _decode(raw, record.dtype, reader)
    return contents[key][:count].reshape(record.shape)


def _decode(raw: NDArray[np.uint8], dtype: str, reader: Reader) -> Array:
    bits = BITS[dtype]
    if bits < 8:
        reader.spend(len(raw) * (8 // bits))
        return unpack(raw, dtype)
    if dtype == "bool":
        return np.not_equal(raw, 0)
    kind = carrier(dtype)
    values = raw.view(kind.newbyteorder("<") if kind.kind in "iufc" else kind)
    if values.flags.aligned and values.dtype == kind:
        return values
    reader.spend(values.nbytes)
    return values.astype(kind)


def unpack(raw: NDArray[np.uint8], dtype: str) -> Array:
    """Elements of 2 or 4 bits, the first in the lowest bits of its byte, one a slot of `carrier(dtype)`."""
    bits = BITS[dtype]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)
    if dtype.startswith("uint"):
        return values.astype(np.uint8)
    half = 1 << (bits - 1)
    return ((values.astype(np.int8) ^ np.int8(half)) - np.int8(half)).astype(np.int8)
