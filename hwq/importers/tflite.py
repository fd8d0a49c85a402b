"""TensorFlow Lite models: a Graph in source form, in the dialect ``litert-ref``.

Operators keep the source's own names, layouts and options in the domain ``tflite`` (activations NHWC, filters OHWI and
1HWC, fused activations, SAME and VALID padding); tensors keep their own quantization. Nothing is transposed or folded.

A variable tensor (the state of SVDF and LSTM) becomes a constant that holds its initial value, and its operator gets
one more output, the state after the step; the attribute ``states`` pairs them: ``((input index, output index), ...)``.

Of several subgraphs (a file's signatures) the first is read, as LiteRT's interpreter runs it; others only where operators
name them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.graph import Array, Graph, Node, Tensor, carrier
from hwq.importers import tflite_schema as schema
from hwq.importers.flatbuffer import Reader, Table
from hwq.importers.tflite_shapes import infer_shapes
from hwq.importers.tflite_tensors import RESOURCE, TensorRecord, read_buffer, read_tensor
from hwq.importers.tflite_variables import ASSIGN, HANDLE, ONCE, READ, Variables

__all__ = ["DOMAIN", "is_tflite", "read"]

DOMAIN = "tflite"
# Bounds on counts, far above any model and far below what could hurt.
MAX_ENTRIES = 1 << 20
MAX_OPERANDS = 1 << 16
# Inputs that hold state, by operator.
STATES: Mapping[str, tuple[int, ...]] = {"SVDF": (4,), "UNIDIRECTIONAL_SEQUENCE_LSTM": (18, 19)}
# State may be this much larger than the file that declares it.
STATE_BYTES = 64 << 20
_PAIRS = {
    "strides": ("stride_h", "stride_w"),
    "dilations": ("dilation_h", "dilation_w"),
    "kernel_shape": ("filter_h", "filter_w"),
}


def is_tflite(data: bytes) -> bool:
    """Whether these bytes say that they are a TFLite model."""
    return data[4:8] == schema.IDENTIFIER


def read(data: bytes, name: str, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """Read a TFLite model.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        The file's name, for messages and `Graph.source`.
    shapes : mapping of str to sequence of int, optional
        Shapes of inputs. Without one, dimensions that the file leaves open stay open as far as every operator can
        follow them (the batch is ``N``); else the file's own default shape is taken.

    Raises
    ------
    Error
        The file is damaged, or holds what hwq does not read: custom operators, control flow,
        external tensors, strings, unknown quantization.
    """
    if not is_tflite(data):
        raise Error("this is no TFLite model", where=name, why="it does not carry the identifier TFL3 at byte 4")
    reader = Reader(data, name)
    model = reader.root()
    version = model.scalar(0, "uint32", 0)
    if version != 3:
        raise Error(
            f"the model has schema version {version}",
            where=name,
            why="hwq reads version 3, the only one in use since 2017",
        )
    return _Import(reader, model, name).graph(shapes)


@dataclass(frozen=True)
class _Code:
    number: int
    custom: str
    operator: schema.Operator | None


class _Import:
    """One file on its way to a Graph."""

    def __init__(self, reader: Reader, model: Table, name: str):
        self.reader, self.model, self.where = reader, model, name
        self.codes = [self._code(table) for table in model.tables(1, "operator_codes", 1 << 12)]
        self.subgraphs = list(model.tables(2, "subgraphs", 1 << 12))
        self.buffers = list(model.tables(4, "buffers", MAX_ENTRIES))
        self.contents: dict[tuple[int, str], Array] = {}
        self.states_left = STATE_BYTES + 16 * reader.size

    def _code(self, table: Table) -> _Code:
        # Codes above 127 do not fit the field of the first files; the larger of the two counts.
        number = max(table.scalar(3, "int32", 0), table.scalar(0, "int8", 0))
        return _Code(
            number, table.text(1, "custom_code") or "" if number == schema.CUSTOM else "", schema.OPERATORS.get(number)
        )

    def graph(self, shapes: Mapping[str, Sequence[int]] | None) -> Graph:
        if not self.subgraphs:
            raise self.reader.fault("the model holds no subgraph")
        main = self.subgraphs[0]
        steps = list(main.tables(3, "operators", MAX_ENTRIES))
        codes = [self._code_of(table) for table in steps]
        records = self._records(main)
        self.variables = Variables(self.where, {record.name for record in records})
        self._initialize(steps, codes)
        steps, codes = self._densified(steps, codes, records)
        inputs = self._indices(main, 1, "inputs", records)
        outputs = self._indices(main, 2, "outputs", records)
        made = {index for table in steps for index in self._indices(table, 2, "outputs", records) if index >= 0}
        nodes = self._nodes(steps, codes, records)
        used = {name for node in nodes for name in (*node.inputs, *node.outputs) if name}
        used |= {records[index].name for index in (*inputs, *outputs) if index >= 0}
        states = {
            node.inputs[read]: node.outputs[written]
            for node in nodes
            for read, written in node.attributes.get("states", ())
        }
        tensors: list[Tensor] = []
        for state in self.variables:
            made_next = [node.outputs[0] for node in nodes if node.op == ASSIGN and node.inputs[0] == state.name]
            tensors += [state] if state.name in used else []
            tensors += [Tensor(name, state.dtype, state.shape, None, state.quantization) for name in made_next]
        entries = []
        for index, record in enumerate(records):
            if record.name not in used or record.dtype == RESOURCE:
                continue
            tensor = self._tensor(record, index in made, record.name in states)
            tensors.append(tensor)
            if record.name in states:
                tensors.append(Tensor(states[record.name], tensor.dtype, tensor.shape, None, tensor.quantization))
            elif index in inputs and index not in made and tensor.data is None:
                entries.append(index)
            elif index not in made and tensor.data is None:
                raise Error(
                    "a value is read that nothing makes",
                    where=f"{self.where}, tensor {record.name}",
                    why="it is neither an input, nor a constant, nor an operator's output",
                    remedy="the file is damaged or was cut out of a larger model; export it again",
                )
        if any(index < 0 for index in (*inputs, *outputs)):
            raise self.reader.fault("an input or output of the model is no tensor")
        ordered = [index for index in dict.fromkeys(inputs) if index in set(entries)]
        return infer_shapes(
            nodes,
            tensors,
            [records[index] for index in ordered],
            list(dict.fromkeys(records[index].name for index in outputs)),
            name=main.text(4, "name") or self.where.replace("\\", "/").rpartition("/")[2],
            source=self._source(),
            shapes=shapes,
            where=self.where,
        )

    def _source(self) -> dict[str, Any]:
        return {
            "file": self.where,
            "sha256": hashlib.sha256(self.reader.data).hexdigest(),
            "format": "tflite",
            "producer": self.model.text(3, "description") or "",
            "opset": "TFLite schema 3",
            **({"subgraphs": len(self.subgraphs)} if len(self.subgraphs) > 1 else {}),
        }

    def _code_of(self, table: Table) -> _Code:
        index = int(table.scalar(0, "uint32", 0))
        if index >= len(self.codes):
            raise self.reader.fault(f"{table.path} names operator code {index} of {len(self.codes)}")
        code = self.codes[index]
        if code.operator is not None:
            return code
        if code.number == schema.CUSTOM:
            what, why = (
                f"the custom operator {code.custom!r}",
                "its arithmetic is only known to the program that made the file",
            )
        elif code.number in schema.CONTROL_FLOW:
            what, why = (
                f"the control flow operator {schema.CONTROL_FLOW[code.number]}",
                "hwq reads one graph of operators, no loops and branches",
            )
        else:
            what, why = f"the operator {_builtin_name(code.number)}", "hwq has no such operator yet"
        raise Error(
            f"{what} is not supported",
            where=f"{self.where}, {table.path}",
            why=why,
            remedy="export without it, or see CONTRIBUTING.md for how to add an operator",
        )

    def _records(self, main: Table) -> list[TensorRecord]:
        taken: set[str] = set()
        records = []
        for index, table in enumerate(main.tables(0, "tensors", MAX_ENTRIES)):
            record = read_tensor(table, index, self.where)
            name, tries = record.name, 1
            while name in taken or not name:
                name = f"{record.name}#{index}" + (f".{tries}" if tries > 1 else "")
                tries += 1
            taken.add(name)
            records.append(record.renamed(name))
        return records

    def _indices(self, table: Table, field: int, what: str, records: Sequence[TensorRecord]) -> list[int]:
        found = table.numbers(field, "int32", what, MAX_OPERANDS)
        indices = [] if found is None else [int(index) for index in found]
        for index in indices:
            if not -1 <= index < len(records):
                raise self.reader.fault(f"{table.path}.{what} names tensor {index} of {len(records)}")
        return indices

    def _densified(
        self, steps: Sequence[Table], codes: Sequence[_Code], records: list[TensorRecord]
    ) -> tuple[list[Table], list[_Code]]:
        """The steps without DENSIFY: what one makes of a sparse constant is a constant itself."""
        kept = []
        for table, code in zip(steps, codes, strict=True):
            places = [self._indices(table, field, what, records) for field, what in ((1, "inputs"), (2, "outputs"))]
            if (
                code.operator is None
                or code.operator.name != "DENSIFY"
                or any(len(one) != 1 or one[0] < 0 for one in places)
            ):
                kept.append((table, code))
                continue
            stored, made = (records[one[0]] for one in places)
            if (stored.dtype, stored.shape) != (made.dtype, made.shape) or self._content(stored) is None:
                raise self.reader.fault(f"{table.path} (DENSIFY) does not make one constant of another")
            records[places[1][0]] = dataclasses.replace(made, buffer=stored.buffer, sparsity=stored.sparsity)
        return [table for table, _ in kept], [code for _, code in kept]

    def _initialize(self, steps: Sequence[Table], codes: Sequence[_Code]) -> None:
        """Read the subgraphs that run once."""
        called = {0}
        for table, code in zip(steps, codes, strict=True):
            if code.operator is None or code.operator.name != ONCE:
                continue
            number = int(self._attributes(table, code.operator, ())["subgraph"])
            if not 0 < number < len(self.subgraphs):
                raise self.reader.fault(f"{table.path} runs subgraph {number} of {len(self.subgraphs)}")
            if number not in called:
                called.add(number)
                self._run_once(self.subgraphs[number])

    def _run_once(self, subgraph: Table) -> None:
        records = self._records(subgraph)
        steps = []
        for table in subgraph.tables(3, "operators", MAX_ENTRIES):
            code = self._code_of(table)
            assert code.operator is not None
            places = [
                index
                for field, what in ((1, "inputs"), (2, "outputs"))
                for index in self._indices(table, field, what, records)
            ]
            steps.append((table, code.operator.name, [records[index] for index in places if index >= 0]))
        self.variables.first(steps, self._content)

    def _content(self, record: TensorRecord) -> Array | None:
        if record.buffer >= len(self.buffers):
            raise self.reader.fault(f"tensor {record.index} names buffer {record.buffer} of {len(self.buffers)}")
        return read_buffer(self.buffers[record.buffer], record, self.contents, self.reader)

    def _variable(self, table: Table, op: str, names: list[list[str]]) -> None:
        """Names of a state in place of a variable's handle."""
        if len(names[0]) != (1 if op == READ else 2) or len(names[1]) != (1 if op == READ else 0):
            raise self.reader.fault(f"{table.path} ({op}) has {len(names[0])} operands and {len(names[1])} results")
        if op == READ:
            names[0][0] = self.variables.read(table, names[0][0])
        else:
            names[0][0], written = self.variables.assign(table, *names[0])
            names[1].append(written)

    def _nodes(self, steps: Sequence[Table], codes: Sequence[_Code], records: Sequence[TensorRecord]) -> list[Node]:
        taken: set[str] = set()
        holders: dict[str, str] = {}
        dtypes = {record.name: record.dtype for record in records}
        nodes = []
        for index, (table, code) in enumerate(zip(steps, codes, strict=True)):
            assert code.operator is not None
            op = code.operator.name
            names = [
                [records[value].name if value >= 0 else "" for value in self._indices(table, field, what, records)]
                for field, what in ((1, "inputs"), (2, "outputs"))
            ]
            if op in (READ, ASSIGN):
                self._variable(table, op, names)
            if op == ONCE:
                continue
            if not names[1] or not names[1][0]:
                raise self.reader.fault(f"{table.path} ({op}) makes nothing")
            if op == HANDLE:
                self.variables.declare(table, names[1][0])
                continue
            origin = names[1][0]
            name = origin.split(";")[0][-200:] or f"{op}_{index}"
            if name in taken:
                name = f"{name}:{op}_{index}"
            taken.add(name)
            attributes = self._attributes(table, code.operator, records)
            states = []
            for place in STATES.get(op, ()):
                state = names[0][place] if place < len(names[0]) else ""
                if not state:
                    raise self.reader.fault(f"{table.path} ({op}) has no state at input {place}")
                if state in holders:
                    raise Error(
                        "two operators share one state",
                        where=f"{self.where}, tensor {state}",
                        why=f"{holders[state]} and {name} both update it",
                        remedy="give each operator a state of its own",
                    )
                holders[state] = name
                states.append((place, len(names[1])))
                names[1].append(f"{state}:next")
            if op in (READ, ASSIGN):
                attributes["states"] = ((0, 0),) if op == ASSIGN else ()
            if states:
                attributes["states"] = tuple(states)
            if (
                op in {"QUANTIZE", "DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX", "BATCH_MATMUL", "EMBEDDING_LOOKUP"}
                and names[1][0]
            ):
                # The result's type is stated by its tensor alone.
                attributes["to"] = dtypes[names[1][0]]
            nodes.append(Node(op, name, tuple(names[0]), tuple(names[1]), attributes, DOMAIN, origin, "NHWC"))
        return nodes

    def _attributes(self, table: Table, operator: schema.Operator, records: Sequence[TensorRecord]) -> dict[str, Any]:
        fields = schema.OPTION_FIELDS.get(operator.options, ())
        kind = table.scalar(3, "uint8", 0)
        found: dict[str, Any] = {}
        if fields:
            if kind not in (0, operator.options):
                raise self.reader.fault(f"{table.path} ({operator.name}) carries the options of another operator")
            options = table.table(4, "builtin_options") if kind else None
            found = {field.name: self._option(options, field) for field in fields}
        for pair, parts in _PAIRS.items():
            if all(part in found for part in parts):
                found[pair] = tuple(found.pop(part) for part in parts)
        intermediates = [index for index in self._indices(table, 8, "intermediates", records) if index >= 0]
        if intermediates:
            known = [records[index].quantization for index in intermediates]
            usable = [one if one is not None and one.scales().size == 1 else None for one in known]
            found["intermediate_scale"] = np.array([0.0 if one is None else one.scales() for one in usable], np.float32)
            found["intermediate_zero_point"] = np.array(
                [0 if one is None else one.zero_points() for one in usable], np.int32
            )
        return found

    def _option(self, options: Table | None, field: schema.Field) -> Any:
        if field.kind == "ints":
            values = None if options is None else options.numbers(field.index, "int32", field.name, 1 << 10)
            return () if values is None else tuple(int(value) for value in values)
        choices: Sequence[str | None] | None = (
            schema.TENSOR_TYPES if field.kind == "type" else schema.ENUMS.get(field.kind)
        )
        if choices is None:
            # Without an options table LiteRT's parameters are all zero, whatever the schema's defaults are.
            return type(field.default)(0) if options is None else options.scalar(field.index, field.kind, field.default)
        number = 0 if options is None else options.scalar(field.index, "int8", 0)
        if not 0 <= number < len(choices) or choices[number] is None:
            raise self.reader.fault(f"the option {field.name} = {number} is unknown")
        return choices[number]

    def _tensor(self, record: TensorRecord, made: bool, state: bool) -> Tensor:
        if state:
            return self._state(record, made)
        content = None
        stored = self._content(record)
        if not (made or record.variable):
            content = stored
        elif made and stored is not None:
            raise Error("an operator writes into a constant", where=f"{self.where}, tensor {record.name}")
        if record.variable:
            raise Error(
                "this variable tensor belongs to no operator that hwq knows",
                where=f"{self.where}, tensor {record.name}",
                why="state is read for SVDF and UNIDIRECTIONAL_SEQUENCE_LSTM",
            )
        return Tensor(record.name, record.dtype, record.shape, content, record.quantization)

    def _state(self, record: TensorRecord, made: bool) -> Tensor:
        if made or not record.variable:
            raise Error(
                "a state must be a variable tensor that no operator makes", where=f"{self.where}, tensor {record.name}"
            )
        # LiteRT resets an int8 variable to its zero point and every other to zero bytes.
        start = 0
        if record.dtype == "int8" and record.quantization is not None and record.quantization.axis is None:
            start = int(record.quantization.zero_points())
        kind = carrier(record.dtype)
        size = int(np.prod(record.shape, dtype=object)) * kind.itemsize
        self.states_left -= size
        if self.states_left < 0:
            raise self.reader.fault(f"its states need {size} bytes and more, out of proportion to the file")
        return Tensor(record.name, record.dtype, record.shape, np.full(record.shape, start, kind), record.quantization)


def _builtin_name(number: int) -> str:
    from tflite.BuiltinOperator import BuiltinOperator

    return next(
        (name for name, value in vars(BuiltinOperator).items() if value == number and not name.startswith("_")),
        f"number {number}",
    )
