"""Resource variables of a TFLite file (VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE) as states of a graph.

A variable's first value is what the subgraphs that CALL_ONCE names assign to it: constants, the only thing that converters
put there. In a call, what is read before the first assignment is the last call's value; what is read behind one is the
assigned value itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hwq.errors import Error
from hwq.graph import Array, Tensor
from hwq.importers.flatbuffer import Table
from hwq.importers.tflite_tensors import TensorRecord
from hwq.names import display_name

__all__ = ["ASSIGN", "HANDLE", "ONCE", "READ", "Variables"]

ONCE, HANDLE, READ, ASSIGN = "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"

_Key = tuple[str, str]


@dataclass
class _Variable:
    """One variable while the file is read: the state's tensor, and the value that a read finds now."""

    state: Tensor
    current: str
    assigned: int = 0


class Variables:
    """All variables of one file.

    Parameters
    ----------
    where : str
        The file, for errors.
    taken : set of str
        Names of the main graph's tensors.
    """

    def __init__(self, where: str, taken: set[str]):
        self.where, self.taken = where, taken
        self.known: dict[_Key, _Variable] = {}
        self.handles: dict[str, _Key] = {}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(one.state for one in self.known.values())

    def first(
        self,
        steps: Sequence[tuple[Table, str, Sequence[TensorRecord]]],
        content: Callable[[TensorRecord], Array | None],
    ) -> None:
        """Read one subgraph that runs once: (operator's table, its name, its operands and results).

        Raises
        ------
        Error
            It does more than assign constants.
        """
        handles: dict[int, _Key] = {}
        for table, op, records in steps:
            if op == HANDLE:
                handles[records[-1].index] = _key(table)
                continue
            value = content(records[1]) if op == ASSIGN and len(records) == 2 else None
            if value is None or records[0].index not in handles:
                raise Error(
                    f"the subgraph that runs once holds {op}",
                    where=f"{self.where}, {table.path}",
                    why="hwq reads constants that are assigned to variables there, nothing else",
                    remedy="export the model with constant first values",
                )
            key, record = handles[records[0].index], records[1]
            name = f"variable {key[1]}" + (f" of {key[0]}" if key[0] else "")
            while name in self.taken:
                name += "_"
            self.taken.add(name)
            self.known[key] = _Variable(Tensor(name, record.dtype, record.shape, value, record.quantization), name)

    def declare(self, table: Table, handle: str) -> None:
        """A VAR_HANDLE of the main graph: the value named `handle` stands for the variable."""
        self.handles[handle] = _key(table)

    def read(self, table: Table, handle: str) -> str:
        """The name of the value that a READ_VARIABLE finds."""
        return self._of(table, handle).current

    def assign(self, table: Table, handle: str, value: str) -> tuple[str, str]:
        """Note an ASSIGN_VARIABLE: (the state's name, a name for its next value); reads find `value` from here on."""
        found = self._of(table, handle)
        found.current = value
        found.assigned += 1
        return found.state.name, f"{found.state.name}:next" + (f":{found.assigned}" if found.assigned > 1 else "")

    def _of(self, table: Table, handle: str) -> _Variable:
        key = self.handles.get(handle)
        if key is None or key not in self.known:
            raise Error(
                "a variable is used that has no first value" if key else "this operand is no variable",
                where=f"{self.where}, {table.path}, tensor {display_name(handle)}",
                why="no subgraph that CALL_ONCE names assigns one" if key else "no VAR_HANDLE makes it",
                remedy="export the model with its initialization",
            )
        return self.known[key]


def _key(table: Table) -> _Key:
    options = table.table(4, "builtin_options")
    if options is None:
        return "", ""
    return options.text(0, "container") or "", options.text(1, "shared_name") or ""
