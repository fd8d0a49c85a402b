"""A FlatBuffers reader that checks every offset, table and vector against the file before it reads there.

Nothing is trusted: a table's vtable, a field's place in its table, a vector's count and a string's length must lie
inside the file, and what is read in total is bounded, so that overlapping structures cannot multiply (a file of n bytes
costs time and memory proportional to n). Format: https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error

__all__ = ["Reader", "Table"]

_CODES = {
    "bool": "B",
    "int8": "b",
    "uint8": "B",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "uint64": "Q",
    "float32": "f",
}
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in _CODES.items()}
# A field may be shared by several parents (builders pool strings and vtables), so a file's bytes may be read more than
# once, but not without bound.
REREADS = 16
SLACK = 1 << 20


class Reader:
    """The bytes of one FlatBuffer.

    Parameters
    ----------
    data : bytes
    where : str
        The file's name, for messages.
    """

    def __init__(self, data: bytes, where: str):
        self.data = data
        self.size = len(data)
        self.where = where
        self._allowance = REREADS * self.size + SLACK

    def fault(self, what: str) -> Error:
        """An `Error` about this file."""
        return Error(
            what,
            where=self.where,
            why="the file is damaged, cut off or no FlatBuffer",
            remedy="export or download the model again",
        )

    def spend(self, amount: int) -> None:
        """Account for `amount` bytes of reading.

        Raises
        ------
        Error
            The file asks for more reading than its size explains.
        """
        self._allowance -= amount
        if self._allowance < 0:
            raise self.fault(
                f"its tables overlap: they describe more than {REREADS} times the file's {self.size} bytes"
            )

    def number(self, kind: str, position: int) -> Any:
        """The scalar at `position`."""
        form = _SCALARS[kind]
        if position < 0 or position + form.size > self.size:
            raise self.fault(f"a value at byte {position} lies outside the file of {self.size} bytes")
        return form.unpack_from(self.data, position)[0]

    def follow(self, position: int, what: str) -> int:
        """The target of the unsigned offset stored at `position`."""
        target = position + int(self.number("uint32", position))
        if target == position or target > self.size - 4:
            raise self.fault(f"the offset of {what} at byte {position} points outside the file")
        return target

    def root(self) -> Table:
        """The root table."""
        return Table(self, self.follow(0, "the root table"), "model")


class Table:
    """One table; fields are asked for by their index in the schema, absent ones give the default."""

    __slots__ = ("_end", "_fields", "_vtable", "path", "position", "reader")

    def __init__(self, reader: Reader, position: int, path: str):
        self.reader = reader
        self.position = position
        self.path = path
        self._vtable = position - int(reader.number("int32", position))
        if not 0 <= self._vtable <= reader.size - 4:
            raise reader.fault(f"the vtable of {path} lies outside the file")
        length = int(reader.number("uint16", self._vtable))
        inline = int(reader.number("uint16", self._vtable + 2))
        if length < 4 or length % 2 or self._vtable + length > reader.size:
            raise reader.fault(f"the vtable of {path} has an impossible length of {length} bytes")
        if inline < 4 or position + inline > reader.size:
            raise reader.fault(f"the table {path} of {inline} bytes does not end inside the file")
        self._fields = (length - 4) // 2
        self._end = position + inline
        reader.spend(inline)

    def place(self, index: int, width: int) -> int | None:
        """Where field `index` of `width` bytes lies, or None when it is absent."""
        if index >= self._fields:
            return None
        offset = int(self.reader.number("uint16", self._vtable + 4 + 2 * index))
        if offset == 0:
            return None
        position = self.position + offset
        if offset < 4 or position + width > self._end:
            raise self.reader.fault(f"field {index} of {self.path} lies outside its table")
        return position

    def scalar(self, index: int, kind: str, default: Any) -> Any:
        """A number; bool as bool."""
        position = self.place(index, _SCALARS[kind].size)
        if position is None:
            return default
        value = self.reader.number(kind, position)
        return bool(value) if kind == "bool" else value

    def table(self, index: int, name: str) -> Table | None:
        """A table that the field refers to."""
        position = self.place(index, 4)
        path = f"{self.path}.{name}"
        return None if position is None else Table(self.reader, self.reader.follow(position, path), path)

    def _vector(self, index: int, width: int, name: str) -> tuple[int, int] | None:
        """(first element's position, count) of a vector whose elements all lie inside the file."""
        position = self.place(index, 4)
        if position is None:
            return None
        path = f"{self.path}.{name}"
        target = self.reader.follow(position, path)
        count = int(self.reader.number("uint32", target))
        if count * width > self.reader.size - target - 4:
            raise self.reader.fault(f"the vector {path} of {count} elements does not end inside the file")
        return target + 4, count

    def count(self, index: int, name: str) -> int:
        """The number of elements of a vector of references; 0 when it is absent."""
        found = self._vector(index, 4, name)
        return 0 if found is None else found[1]

    def tables(self, index: int, name: str, limit: int) -> Iterator[Table]:
        """The tables of a vector, one by one.

        Raises
        ------
        Error
            There are more than `limit`.
        """
        found = self._vector(index, 4, name)
        if found is None:
            return
        start, count = found
        if count > limit:
            raise self.reader.fault(f"{self.path}.{name} has {count} entries, more than the bound of {limit}")
        self.reader.spend(4 * count)
        for entry in range(count):
            path = f"{self.path}.{name}[{entry}]"
            yield Table(self.reader, self.reader.follow(start + 4 * entry, path), path)

    def numbers(self, index: int, dtype: str, name: str, limit: int | None = None) -> NDArray[Any] | None:
        """A vector of numbers as a read-only view of the file, or None when it is absent."""
        kind = np.dtype(dtype).newbyteorder("<")
        found = self._vector(index, kind.itemsize, name)
        if found is None:
            return None
        start, count = found
        if limit is not None and count > limit:
            raise self.reader.fault(f"{self.path}.{name} has {count} entries, more than the bound of {limit}")
        self.reader.spend(count * kind.itemsize if limit is not None else 0)
        return np.frombuffer(self.reader.data, kind, count, start)

    def text(self, index: int, name: str, limit: int = 1 << 16) -> str | None:
        """A string (bytes that are no UTF-8 show as escapes), or None when it is absent."""
        found = self._vector(index, 1, name)
        if found is None:
            return None
        start, count = found
        if count > limit:
            raise self.reader.fault(f"the text {self.path}.{name} of {count} bytes is longer than the bound of {limit}")
        self.reader.spend(count)
        return self.reader.data[start : start + count].decode("utf-8", "backslashreplace")
