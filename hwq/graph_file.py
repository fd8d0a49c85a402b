"""A Graph as bytes: its digest, and one ``.npz`` file that holds a JSON header and plain arrays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.files import MAX_BYTES, read_npz, write_npz
from hwq.graph import BITS, Array, Graph, Node, Quantization, Tensor, carrier

__all__ = ["HEADER", "digest", "load", "save"]

# The member of the archive that holds the header, and the version of its layout.
HEADER = "hwq_graph"
VERSION = 1


def digest(graph: Graph) -> str:
    """SHA-256 over structure and constants, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    parts: list[Any] = [[graph.form, graph.dialect, graph.inputs, graph.outputs]]
    parts += [_node_parts(node) for node in graph.nodes]
    parts += [_tensor_parts(tensor) for tensor in graph.tensors.values()]
    for part in parts:
        state.update(json.dumps(part, sort_keys=True, default=str).encode())
    for tensor in graph.tensors.values():
        for array in _arrays(tensor).values():
            state.update(_content(array))
    return state.hexdigest()


def _content(array: Array) -> bytes | memoryview:
    if array.dtype.hasobject:  # strings: the array itself holds only addresses
        return json.dumps([str(item) for item in array.ravel()]).encode()
    plain = np.ascontiguousarray(array)
    return plain.reshape(-1).view(np.uint8).data if plain.size else b""


def _node_parts(node: Node) -> list[Any]:
    return [
        node.op,
        node.domain,
        node.name,
        node.origin,
        node.layout,
        list(node.inputs),
        list(node.outputs),
        {key: _plain(value) for key, value in sorted(node.attributes.items())},
        [_node_parts(part) for part in node.body],
    ]


def _tensor_parts(tensor: Tensor) -> list[Any]:
    quantization = tensor.quantization
    planned = None if quantization is None else [
        quantization.dtype, quantization.axis, quantization.block, quantization.storage,
        quantization.scale if isinstance(quantization.scale, str) else quantization.known,
        quantization.zero_point if isinstance(quantization.zero_point, str) else quantization.zero_point is not None,
    ]  # fmt: skip
    return [tensor.name, tensor.dtype, list(tensor.shape), tensor.known_shape, tensor.constant, planned]


def _arrays(tensor: Tensor) -> dict[str, Array]:
    found = {} if tensor.data is None else {"data": tensor.data}
    if tensor.quantization is not None:
        for part in ("scale", "zero_point"):
            value = getattr(tensor.quantization, part)
            if isinstance(value, np.ndarray):
                found[part] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ["array", str(value.dtype), list(value.shape), hashlib.sha256(_content(value)).hexdigest()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def save(graph: Graph, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a graph; see `Graph.save`."""
    arrays: dict[str, Array] = {}
    header = {
        "version": VERSION, "name": graph.name, "form": graph.form, "dialect": graph.dialect,
        "inputs": graph.inputs, "outputs": graph.outputs, "source": _packed(dict(graph.source), arrays),
        "nodes": [_packed_node(node, arrays) for node in graph.nodes],
        "tensors": [_packed_tensor(tensor, arrays) for tensor in graph.tensors.values()],
    }  # fmt: skip
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    write_npz(path, arrays, overwrite=overwrite)


def _packed(value: Any, arrays: dict[str, Array]) -> Any:
    """`value` in JSON's types; arrays go to `arrays` as raw bytes under a number, so no name becomes a file name."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return {"strings": [str(item) for item in value.ravel()], "shape": list(value.shape)}
        key = f"a{len(arrays)}"
        arrays[key] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"array": key, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _packed(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (tuple, list)):
        return [_packed(item, arrays) for item in value]
    return value


def _packed_node(node: Node, arrays: dict[str, Array]) -> list[Any]:
    return [
        node.op,
        node.name,
        node.inputs,
        node.outputs,
        _packed(dict(node.attributes), arrays),
        node.domain,
        node.origin,
        node.layout,
        [_packed_node(part, arrays) for part in node.body],
    ]


def _packed_tensor(tensor: Tensor, arrays: dict[str, Array]) -> list[Any]:
    quantization = tensor.quantization
    planned = (
        None
        if quantization is None
        else [
            quantization.dtype,
            _packed(quantization.scale, arrays),
            _packed(quantization.zero_point, arrays),
            quantization.axis,
            quantization.block,
            quantization.storage,
        ]
    )
    return [tensor.name, tensor.dtype, tensor.shape, _packed(tensor.data, arrays), planned, tensor.known_shape]


def load(path: str | os.PathLike[str], max_bytes: int | None = None) -> Graph:
    """Read a graph; see `Graph.load`."""
    arrays = read_npz(path, MAX_BYTES if max_bytes is None else max_bytes)
    if HEADER not in arrays:
        raise Error(
            "this archive holds no saved graph",
            where=str(path),
            why=f"it has no member {HEADER}",
            remedy="give a file that Graph.save wrote",
        )
    try:
        header = json.loads(arrays[HEADER].tobytes())
        if header["version"] != VERSION:
            raise Error(
                f"the saved graph has layout version {header['version']}, this hwq reads {VERSION}",
                where=str(path),
                remedy="load and save it with the hwq that wrote it, or import the model again",
            )
        if header["form"] not in {"source", "lowered"}:
            raise ValueError(f"form {header['form']!r} is unknown")
        return Graph(
            [_unpacked_node(part, arrays) for part in header["nodes"]],
            [_unpacked_tensor(part, arrays) for part in header["tensors"]],
            [str(name) for name in header["inputs"]],
            [str(name) for name in header["outputs"]],
            name=str(header["name"]),
            form=header["form"],
            dialect=str(header["dialect"]),
            source=_unpacked(header["source"], arrays),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Error(
            "the saved graph is damaged",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            remedy="save it again",
        ) from error


def _unpacked(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, list):
        return tuple(_unpacked(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {str(key): _unpacked(item, arrays) for key, item in value["mapping"]}
    if "bytes" in value:
        return bytes.fromhex(value["bytes"])
    shape = tuple(int(dim) for dim in value["shape"])
    if "strings" in value:
        strings = np.empty(len(value["strings"]), object)
        strings[:] = value["strings"]
        return strings.reshape(shape)
    return arrays[value["array"]].view(_dtype(value["dtype"])).reshape(shape)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        plain = np.dtype(name)
    except TypeError:
        import ml_dtypes

        plain = np.dtype(getattr(ml_dtypes, name))
    if plain.hasobject:
        raise ValueError(f"dtype {name} is not plain")
    return plain


def _unpacked_node(part: list[Any], arrays: Mapping[str, Array]) -> Node:
    op, name, inputs, outputs, attributes, domain, origin, layout, body = part
    return Node(
        str(op),
        str(name),
        tuple(map(str, inputs)),
        tuple(map(str, outputs)),
        _unpacked(attributes, arrays),
        str(domain),
        str(origin),
        layout,
        tuple(_unpacked_node(inner, arrays) for inner in body),
    )


def _unpacked_tensor(part: list[Any], arrays: Mapping[str, Array]) -> Tensor:
    name, dtype, dims, packed, planned, known_shape = part
    if dtype not in BITS:
        raise ValueError(f"element type {dtype!r} is unknown")
    data = _unpacked(packed, arrays)
    shape = tuple(dim if isinstance(dim, str) else int(dim) for dim in dims)
    if data is not None and (data.dtype != carrier(dtype) or data.shape != shape):
        raise ValueError(f"tensor {name} is declared {dtype}{list(shape)} but holds {data.dtype}{list(data.shape)}")
    quantization = None
    if planned is not None:
        stored, scale, zero_point, axis, block, storage = planned
        quantization = Quantization(
            stored, _unpacked(scale, arrays), _unpacked(zero_point, arrays), axis, block, storage
        )
    return Tensor(str(name), str(dtype), shape, data, quantization, bool(known_shape))
