"""Which values of an eager quantized module are stored numbers: followed while torch.export traces its float stand-in.

A traced value is a real number either way. `Following` marks those that torch holds as quint8, by scale and zero point, and
lets every function of one make what torch's quantized kernel makes of it: a value that moves keeps its pair, others get the
pair that torch gives them, and what is not known is refused.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hwq.errors import Error
from hwq.numerics import fused_multiply_add

__all__ = ["MARK", "checked", "following", "pair", "real", "unmarked"]

Pair = tuple[float, int]
MARK = "_hwq_pair"
# Values only move, or the largest of them are taken: scale and zero point stay.
KEPT = frozenset(
    "relu relu_ max_pool1d max_pool2d max_pool1d_with_indices view reshape flatten permute transpose t select split "
    "split_with_sizes tensor_split chunk clone contiguous detach alias squeeze unsqueeze expand unbind narrow view_as "
    "upsample_nearest2d upsample_nearest3d dropout dropout_ feature_dropout __getitem__ __get__ movedim moveaxis swapaxes "
    "swapdims repeat_interleave channel_shuffle pixel_shuffle to cpu unflatten flip index_select".split()
)
# Results are stored as their operand is.
SAME = frozenset(
    "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool1d avg_pool1d avg_pool2d mean hardtanh hardtanh_ relu6 relu6_ clamp "
    "clamp_ clip leaky_relu leaky_relu_ cat concat concatenate stack pad masked_fill masked_fill_".split()
)
# The first result holds values of the operand, the second where they were.
VALUES = frozenset("max min topk sort".split())
# Results whose scale and zero point torch prescribes (aten/src/ATen/native/quantized/cpu).
FIXED: Mapping[str, Pair] = {
    "sigmoid": (1 / 256, 0),
    "sigmoid_": (1 / 256, 0),
    "tanh": (1 / 128, 128),
    "tanh_": (1 / 128, 128),
    "hardsigmoid": (1 / 256, 0),
}
# Adaptive averages.
POOLS = frozenset({"adaptive_avg_pool1d", "adaptive_avg_pool2d"})
AVERAGES = frozenset({"_adaptive_avg_pool2d", "adaptive_avg_pool2d", "avg_pool2d", "mean"})
# Operators of namespace quantized whose last arguments are a scale and a zero point.
OWN: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda torch, args: args[0] + args[1],
    "add_relu": lambda torch, args: (args[0] + args[1]).relu(),
    "mul": lambda torch, args: args[0] * args[1],
    "mul_relu": lambda torch, args: (args[0] * args[1]).relu(),
    "cat": lambda torch, args: torch.cat(args[0], args[1]),
    "hardswish": lambda torch, args: torch.nn.functional.hardswish(args[0]),
    "sigmoid": lambda torch, args: torch.sigmoid(args[0]),
}


def pair(torch: Any, value: Any, scale: float, point: int) -> Any:
    """A real number as quint8 holds it, marked; torch's kernels take scales as float32."""
    scale = float(np.float32(scale))
    own, bounds = torch.ops.quantized_decomposed, (0, 255, torch.uint8)
    stored = own.quantize_per_tensor(value, scale, point, *bounds)
    made = own.dequantize_per_tensor(stored, scale, point, *bounds)
    setattr(made, MARK, (scale, point))
    return made


def real(torch: Any, value: Any) -> Any:
    """The same numbers as floats: no mark."""
    return torch.ops.aten.alias(value) if hasattr(value, MARK) else value


@contextlib.contextmanager
def unmarked(*values: Any) -> Iterator[None]:
    """Let a stand-in compute with the real numbers of stored values."""
    marks = [(one, getattr(one, MARK)) for one in _tensors(values) if hasattr(one, MARK)]
    for one, _ in marks:
        delattr(one, MARK)
    try:
        yield
    finally:
        for one, found in marks:
            setattr(one, MARK, found)


def following(torch: Any, where: str) -> Any:
    """A mode under which to trace a stand-in; its `found` tells whether a stored value was seen."""
    from torch.overrides import TorchFunctionMode

    class Following(TorchFunctionMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.found = False

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named, kwargs = str(getattr(function, "__name__", "")), kwargs or {}
            kind = str(function)
            if kind.startswith("quantized."):
                self.found = True
                return _own(torch, kind.split(".")[1], args, kwargs, where)
            if named == "quantize_per_tensor" and not kind.startswith("quantized_decomposed"):
                self.found = True
                return _stored(torch, args, kwargs, where)
            pairs = [found for one in _tensors((args, kwargs)) if (found := getattr(one, MARK, None)) is not None]
            if not pairs:
                return function(*args, **kwargs)
            self.found = True
            if function is torch.Tensor.is_quantized.__get__:
                return True
            if named in {"q_scale", "q_zero_point"}:
                return pairs[0][named == "q_zero_point"]
            if named == "dequantize":
                return real(torch, args[0])
            made = _special(torch, named, function, args, kwargs, pairs[0], where)
            if made is not None:
                return made
            made = function(*args, **kwargs)
            if not any(True for _ in _tensors(made)) or kind.startswith(("aten.", "prim", "quantized_decomposed")):
                return made  # sizes and the like, and what the tracer itself calls
            return _marked(torch, named, pairs[0], made, where)

    return Following()


def _special(torch: Any, named: str, function: Any, args: Any, kwargs: Any, found: Pair, where: str) -> Any:
    """The result of a function that its name alone does not tell, or that another operator stands for; else None."""
    if named in {"interpolate", "upsample"}:
        names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
        told = {**dict(zip(names, args, strict=False)), **kwargs}
        factors, mode = told.get("scale_factor"), told.get("mode", "nearest")
        if factors is not None and not told.get("recompute_scale_factor"):
            each = [
                _factor(float(one), where) for one in (factors if isinstance(factors, (tuple, list)) else (factors,))
            ]
            args, kwargs = (), {**told, "scale_factor": each[0] if len(each) == 1 else tuple(each)}
        made = function(*args, **kwargs)
        if mode == "bilinear":
            return pair(torch, made, *found)
        setattr(made, MARK, found)
        return made
    if named in VALUES:
        made = function(*args, **kwargs)
        return (
            type(made)((pair(torch, made[0], *found), *made[1:]))
            if isinstance(made, tuple)
            else pair(torch, made, *found)
        )
    if named == "gelu":
        how = {"approximate": str(kwargs.get("approximate", args[1] if len(args) > 1 else "none"))}
        return pair(torch, _symbolic(torch, "Gelu", args[0], args[0].shape, how, 20), *found)
    if named in {"threshold", "threshold_", "_threshold"}:
        told = {**dict(zip(("input", "threshold", "value"), args, strict=False)), **kwargs}
        steps = np.arange(256, dtype=np.float32)
        scale, point = np.float32(found[0]), np.float32(found[1])
        plain, fused = (steps - point) * scale, fused_multiply_add(steps, scale + 0 * steps, 0 * steps - scale * point)
        if np.any((plain > told["threshold"]) != (fused > told["threshold"])):
            raise Error(
                f"the threshold {told['threshold']} is a stored value",
                where=where,
                remedy="move it off the steps of the scale",
            )
        return pair(torch, torch.nn.functional.threshold(*told.values()), *found)
    if named in POOLS and _pooled(torch, args, kwargs):
        x = args[0]
        return pair(
            torch, _symbolic(torch, "GlobalAveragePool", x, (*x.shape[:2], *[1] * (x.dim() - 2)), {}, 18), *found
        )
    return None


def _factor(factor: float, where: str) -> float:
    """A float32 whose reciprocal is that of a scale factor: ONNX holds factors as float32, torch steps by ``f32(1 / factor)``."""
    near = np.float32(factor)
    for one in (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        if np.float32(1 / float(one)) == np.float32(1 / factor):
            return float(one)
    raise Error(f"the scale factor {factor} is no float32", where=where, remedy="give a size in its place")


def _symbolic(torch: Any, op: str, x: Any, shape: Any, attributes: Mapping[str, Any], version: int) -> Any:
    """An ONNX operator by its name, where torch.onnx would write another."""
    with unmarked(x):
        return torch.onnx.ops.symbolic(op, (x,), attributes, dtype=torch.float32, shape=tuple(shape), version=version)


def _pooled(torch: Any, args: Any, kwargs: Any) -> bool:
    """Whether an adaptive pool of a batch leaves one pixel; of other sizes torch.onnx writes windows."""
    x, size = args[0], kwargs.get("output_size", args[1] if len(args) > 1 else None)
    rank = x.dim() - 2
    wanted = [size] * rank if isinstance(size, int) else list(size or ())
    made = [whole if one is None else int(one) for one, whole in zip(wanted, x.shape[2:], strict=False)]
    return rank in (1, 2) and made == [1] * rank


def _marked(torch: Any, named: str, found: Pair, made: Any, where: str) -> Any:
    """The result of one function of a stored value, stored as torch does."""
    if named in KEPT or (named.startswith("max_pool") and named.removeprefix("max_pool")[:1] in "12"):
        for one in _tensors(made):
            setattr(one, MARK, found)
        return made
    if named in FIXED:
        return pair(torch, made, *FIXED[named])
    if named in SAME:
        return pair(torch, made, *found)
    raise Error(
        f"torch's {named.rstrip('_')} of quantized tensors is not reproduced",
        where=where,
        remedy="dequantize before it",
    )


def _own(torch: Any, name: str, args: Any, kwargs: Any, where: str) -> Any:
    """``torch.ops.quantized``: the float operator between the pairs."""
    given = [*args, *kwargs.values()]
    if name == "relu6":
        return pair(torch, torch.nn.functional.relu6(given[0]), *getattr(given[0], MARK))
    if name not in OWN or len(given) < 3 or not isinstance(given[-2], (int, float)):
        raise Error(
            f"torch.ops.quantized.{name} is not reproduced", where=where, remedy=f"those that are: {', '.join(OWN)}"
        )
    scale = float(given[-2])
    if name in {"hardswish", "sigmoid"} and np.float32(1 / scale) != np.float32(1) / np.float32(scale):
        raise Error(
            f"the scale {scale!r} of torch.ops.quantized.{name} is no float32, and torch divides by it in float64",
            where=where,
            remedy="give scales as float32 values, as torch's observers do",
        )
    return pair(torch, OWN[name](torch, given), scale, int(given[-1]))


def _stored(torch: Any, args: Any, kwargs: Any, where: str) -> Any:
    names = ("input", "scale", "zero_point", "dtype")
    told = {**dict(zip(names, args, strict=False)), **kwargs}
    if told["dtype"] != torch.quint8:
        raise Error(f"activations of type {told['dtype']} are not reproduced", where=where, remedy="quint8 is")
    return pair(torch, told["input"], float(told["scale"]), int(told["zero_point"]))


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "untyped_storage"):
        yield value


def checked(torch: Any, module: Any, example_inputs: Any, where: str) -> None:
    """Run the module once, as it is, and look at its averages.

    Raises
    ------
    Error
        It does not run, or it breaks ties of an average in a way of its own.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
            if name in AVERAGES and args[0].is_quantized:
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
    except (RuntimeError, NotImplementedError) as error:
        raise Error(
            "torch cannot run this module",
            where=where,
            why=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="give a module that runs on the example inputs",
        ) from error
    finally:
        torch.backends.quantized.engine = before


def _without_ties(name: str, args: Any, kwargs: Any, made: Any, where: str) -> None:
    """Refuse an average whose ties torch breaks in a way that is not reproduced.

    Means that are not of the last dimensions add real numbers in an order of their own, and adaptive windows of several sizes
    or pixels have no operator: there, an odd number has no ties, and sums over a power of two are exact.
    """
    x = args[0]
    count, nhwc = x.numel() // max(made.numel(), 1), not x.is_contiguous()
    odd = bool(count % 2) or (count & (count - 1) == 0 and not (nhwc and (name == "mean" or int(x.q_zero_point()) % 2)))
    plain = True
    if name == "avg_pool2d":
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        told = {**dict(zip(names, args[1:], strict=False)), **kwargs}
        size = told["kernel_size"]
        count = math.prod(size) if len(size) > 1 else int(size[0]) ** 2
        plain = told.get("divisor_override") is None
    elif name == "mean":
        axes = sorted(int(one) % x.dim() for one in (args[1] if len(args) > 1 else kwargs.get("dim")) or range(x.dim()))
        plain = odd or (not nhwc and axes == list(range(x.dim() - len(axes), x.dim())))
    elif made.shape[-2:].numel() > 1 or x.dim() != 4:
        plain = odd and all(whole % one == 0 for whole, one in zip(x.shape[-2:], made.shape[-2:], strict=True))
    if not plain or count >= 1 << 14:
        raise Error(
            f"torch's {name} over {count} quantized values is not reproduced",
            where=where,
            why="torch breaks its ties by memory format, channel and CPU",
            remedy="average an odd number or a power of two of values, whole windows, or dequantize before it",
        )
