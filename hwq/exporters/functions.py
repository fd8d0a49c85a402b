"""The domain ``hwq`` in an ONNX file: functions whose bodies are ONNX's own operators, so that any runtime runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from hwq.errors import Error
from hwq.graph import Node
from hwq.ops.dynamic_rows import DOMAIN

__all__ = ["functions_of", "is_ours"]


def functions_of(nodes: Iterable[Node], opset: int) -> list[FunctionProto]:
    """The functions that the nodes call.

    Raises
    ------
    Error
        A node of this domain has no body: it belongs to the lowered form.
    """
    wanted = dict.fromkeys(node.op for node in nodes if node.domain == DOMAIN)
    missing = next((name for name in wanted if name not in _BODIES), None)
    if missing is not None:
        raise Error(
            f"ONNX has no form for {DOMAIN}::{missing}", where=missing, remedy="export the graph that was lowered"
        )
    return [_BODIES[name](name, opset) for name in wanted]


def is_ours(function: FunctionProto) -> bool:
    """Whether a function is one of these, body and all, and may be read as one operator."""
    if function.domain != DOMAIN or function.name not in _BODIES or len(function.opset_import) != 1:
        return False
    made = _BODIES[function.name](function.name, function.opset_import[0].version)
    return bool(made.SerializeToString(deterministic=True) == function.SerializeToString(deterministic=True))


def _constant(name: str, value: float) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_float=value)


def _axes() -> NodeProto:
    node = helper.make_node("Constant", [], ["over"])
    node.attribute.append(AttributeProto(name="value_ints", ref_attr_name="axes", type=AttributeProto.INTS))
    return node


def _function(
    name: str, opset: int, inputs: Sequence[str], nodes: Sequence[NodeProto], outputs: Sequence[str], rows: bool
) -> FunctionProto:
    return helper.make_function(
        DOMAIN,
        name,
        list(inputs),
        list(outputs),
        list(nodes),
        [helper.make_opsetid("", opset)],
        ["axes"] if rows else [],
    )


def _asymmetric(name: str, opset: int) -> FunctionProto:
    """``s = (hi - lo) / 255`` (1 where 0), ``z = clip(round(-lo / s))``, ``q = clip(round(x / s) + z)``: DynamicQuantizeLinear's."""
    node = helper.make_node
    body = [
        _axes(), _constant("zero", 0.0), _constant("one", 1.0), _constant("steps", 255.0),
        node("ReduceMin", ["x", "over"], ["least"], keepdims=1), node("Min", ["least", "zero"], ["low"]),
        node("ReduceMax", ["x", "over"], ["most"], keepdims=1), node("Max", ["most", "zero"], ["high"]),
        node("Sub", ["high", "low"], ["reach"]), node("Equal", ["reach", "zero"], ["flat"]),
        node("Div", ["reach", "steps"], ["step"]), node("Where", ["flat", "one", "step"], ["s"]),
        node("Div", ["low", "s"], ["bottom"]), node("Neg", ["bottom"], ["offset"]), node("Round", ["offset"], ["nearest"]),
        node("Clip", ["nearest", "zero", "steps"], ["point"]), node("Cast", ["point"], ["z"], to=TensorProto.UINT8),
        node("Div", ["x", "s"], ["ratio"]), node("Round", ["ratio"], ["level"]), node("Add", ["level", "point"], ["moved"]),
        node("Clip", ["moved", "zero", "steps"], ["kept"]), node("Cast", ["kept"], ["q"], to=TensorProto.UINT8),
    ]  # fmt: skip
    return _function(name, opset, ["x"], body, ["q", "s", "z"], rows=True)


def _symmetric(name: str, opset: int) -> FunctionProto:
    """``s = max|x| / 127`` (1 where 0), ``q = clip(round(x / s), -127, 127)``."""
    node = helper.make_node
    body = [
        _axes(), _constant("zero", 0.0), _constant("one", 1.0), _constant("steps", 127.0), _constant("lowest", -127.0),
        node("Abs", ["x"], ["size"]), node("ReduceMax", ["size", "over"], ["most"], keepdims=1),
        node("Max", ["most", "zero"], ["reach"]), node("Equal", ["reach", "zero"], ["flat"]),
        node("Div", ["reach", "steps"], ["step"]), node("Where", ["flat", "one", "step"], ["s"]),
        node("Sub", ["s", "s"], ["nothing"]), node("Cast", ["nothing"], ["z"], to=TensorProto.INT8),
        node("Div", ["x", "s"], ["ratio"]), node("Round", ["ratio"], ["level"]),
        node("Clip", ["level", "lowest", "steps"], ["kept"]), node("Cast", ["kept"], ["q"], to=TensorProto.INT8),
    ]  # fmt: skip
    return _function(name, opset, ["x"], body, ["q", "s", "z"], rows=True)


def _dequantize(name: str, opset: int) -> FunctionProto:
    """``(q - z) * s``."""
    node = helper.make_node
    body = [
        node("Cast", ["q"], ["level"], to=TensorProto.FLOAT), node("Cast", ["z"], ["point"], to=TensorProto.FLOAT),
        node("Sub", ["level", "point"], ["centered"]), node("Mul", ["centered", "s"], ["x"]),
    ]  # fmt: skip
    return _function(name, opset, ["q", "s", "z"], body, ["x"], rows=False)


_BODIES: Mapping[str, Callable[[str, int], onnx.FunctionProto]] = {
    "DynamicQuantizeRows": _asymmetric,
    "DynamicQuantizeRowsSymmetric": _symmetric,
    "DequantizeRows": _dequantize,
}
