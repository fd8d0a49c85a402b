"""Which of torch's operators an eager quantized module runs on stored numbers: averages are told apart, unknown ones refused.

A traced stand-in shows real numbers only, so the module itself runs once on the example and every operator is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hwq.errors import Error
from hwq.graph import Graph, Node

__all__ = ["averages", "stored_again"]

# On stored numbers exactly what `hwq.lowering.fbgemm` makes of them, or values that only move.
KNOWN = frozenset(
    "quantize_per_tensor dequantize linear linear_relu conv2d conv2d_relu add add_relu mul mul_relu cat relu relu_ max_pool2d "
    "quantized_max_pool2d view _unsafe_view reshape flatten permute transpose t slice select split split_with_sizes chunk clone "
    "contiguous detach alias squeeze unsqueeze expand upsample_nearest2d _reshape_alias empty_like empty_quantized copy_ "
    "unbind narrow as_strided view_as _adaptive_avg_pool2d adaptive_avg_pool2d avg_pool2d mean dropout "
    "q_scale q_zero_point qscheme is_same_size size stride".split()
)
AVERAGES = frozenset({"_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d", "mean"})
NODES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
# Operators of ONNX that pass a stored number on.
PASSING = frozenset({"Relu", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split",
                     "Identity", "Resize", "Expand"})  # fmt: skip


def averages(torch: Any, module: Any, example_inputs: Any, where: str) -> bool:
    """Whether the module averages stored numbers. It runs once, as it is.

    Raises
    ------
    Error
        An operator on stored numbers that hwq does not reproduce, or averages of both kinds.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[bool] = []

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            given = [one for arg in args for one in (arg if isinstance(arg, (list, tuple)) else (arg,))]
            stored = any(isinstance(one, torch.Tensor) and one.is_quantized for one in given)
            if stored and name not in KNOWN:
                raise Error(
                    f"torch's {name} of quantized tensors is not reproduced",
                    where=where,
                    remedy="dequantize before it",
                )
            made = function(*args, **(kwargs or {}))
            if name in AVERAGES:
                seen.append(stored)
                if stored:
                    _without_ties(name, args, kwargs or {}, made, where)
            return made

    before = torch.backends.quantized.engine
    if isinstance(example_inputs, Mapping):
        positional, named = (), dict(example_inputs)
    else:
        positional = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
        named = {}
    try:
        torch.backends.quantized.engine = "fbgemm"
        with Watch(), torch.no_grad():
            module(*positional, **named)
    except RuntimeError:
        # torch.export says better what is wrong with the module or its inputs.
        return False
    finally:
        torch.backends.quantized.engine = before
    if len(set(seen)) > 1:
        raise Error(
            "averages of stored and of real numbers in one module are not told apart",
            where=where,
            remedy="import its parts one by one",
        )
    return bool(seen) and seen[0]


def _without_ties(name: str, args: Any, kwargs: Any, made: Any, where: str) -> None:
    """Refuse an average whose ties torch breaks by memory format, channel and CPU.

    Windows of odd size have no ties; sums over a power of two are exact, and agree unless NHWC's avg_pool2d adds an odd zero
    point after rounding, or mean sums dequantized values.
    """
    x = args[0]
    plain = True
    if name == "avg_pool2d":
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        told = {**dict(zip(names, args[1:], strict=False)), **kwargs}
        size = told["kernel_size"]
        count = math.prod(size) if len(size) > 1 else int(size[0]) ** 2
        padded = any(int(one) for one in told.get("padding", ()))
        plain = not told.get("ceil_mode", False) and told.get("divisor_override") is None
        plain &= not padded or bool(told.get("count_include_pad", True))
    else:
        count = x.numel() // max(made.numel(), 1)
        plain = name == "mean" or made.shape[-2:].numel() == 1
    nhwc = not x.is_contiguous()
    exact = count & (count - 1) == 0 and not (
        nhwc and (name == "mean" or (name == "avg_pool2d" and int(x.q_zero_point()) % 2 == 1))
    )
    if not plain or not (count % 2 or exact) or count >= 1 << 14:
        raise Error(
            f"torch's {name} over {count} quantized values is not reproduced",
            where=where,
            why="torch breaks its ties by memory format, channel and CPU",
            remedy="average an odd number or a power of two of values, whole windows, or dequantize before it",
        )


def stored_again(graph: Graph) -> Graph:
    """Store every average of stored numbers with the scale it came with, as torch does."""
    makers = {value: node for node in graph.nodes for value in node.outputs}
    tensors, nodes = dict(graph.tensors), []
    for node in graph.nodes:
        found = _source(makers, node.inputs[0]) if node.op in NODES and not node.domain else None
        if found is None:
            nodes.append(node)
            continue
        made = node.outputs[0]
        stored, real = f"{made}_stored", f"{made}_mean"
        tensors[real] = dataclasses.replace(tensors[made], name=real)
        tensors[stored] = dataclasses.replace(tensors[made], name=stored, dtype="uint8")
        nodes += [
            dataclasses.replace(node, outputs=(real,)),
            Node("QuantizeLinear", f"{node.name}_quantize", (real, *found.inputs[1:]), (stored,)),
            Node("DequantizeLinear", f"{node.name}_dequantize", (stored, *found.inputs[1:]), (made,)),
        ]
    return graph.replace(nodes=nodes, tensors=list(tensors.values()))


def _source(makers: Mapping[str, Node], value: str) -> Node | None:
    """The DQ whose stored number a value is."""
    node = makers.get(value)
    while node is not None and node.op in PASSING:
        node = makers.get(node.inputs[0])
    return node if node is not None and node.op == "DequantizeLinear" else None
