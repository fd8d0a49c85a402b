"""Epilogue: how an int32 accumulator becomes an output. Binary: elementwise operators on quantized tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from hwq import _kernels
from hwq.errors import Error
from hwq.kernels.operands import RANGES, TYPES, Array, dense, dtype_of, floats, integer, one_of, output, real

__all__ = ["ROUNDINGS", "Binary", "Epilogue", "quantize_multiplier", "requantize"]

ROUNDINGS = ("gemmlowp", "f64", "ruy", "fp32", "mbqm64", "xnn-fixed", "single")  # R1..R7, in the C enum's order
_KINDS = ("int32", "requant", "float")
_FIXED = {"gemmlowp": (-31, 31), "ruy": (-31, 31), "mbqm64": (-31, 7), "xnn-fixed": (1, 31), "single": (-31, 30)}
_FORMULAS = (
    "ort-add",
    "ort-mul",
    "tflite-add",
    "tflite-sub",
    "tflite-mul",
    "xnnpack-add",
    "xnnpack-sub",
    "xnnpack-mul",
    "torch-add",
    "torch-mul",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Binary:
    """An elementwise operator on two quantized tensors, in one runtime's arithmetic (formulas: kernels/README.md).

    Attributes
    ----------
    formula : str
        ``ort-add ort-mul tflite-add tflite-sub tflite-mul xnnpack-add xnnpack-sub xnnpack-mul torch-add torch-mul``.
    a_scale, b_scale, scale : float
        Exact float32 scales of first operand, second operand and result.
    a_zero_point, b_zero_point, zero_point : int
    a_dtype, b_dtype, dtype : str
        ``uint8`` or ``int8``; ``int16`` for the tflite formulas.
    clamp : (int, int), optional
        Bounds of the result (a fused activation); the type's range if absent.

    Raises
    ------
    Error
        Unknown formula, a scale that is not positive and finite, or scales that the runtime's formula cannot represent.
    """

    formula: str
    a_scale: float
    b_scale: float
    scale: float
    a_zero_point: int = 0
    b_zero_point: int = 0
    zero_point: int = 0
    a_dtype: str = "uint8"
    b_dtype: str = "uint8"
    dtype: str = "uint8"
    clamp: tuple[int, int] | None = None
    _door: _kernels.Binary = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.formula, _FORMULAS, "elementwise formula")
        allowed = ("uint8", "int8", "int16") if self.formula.startswith("tflite") else ("uint8", "int8")
        for dtype, point in (
            (self.a_dtype, self.a_zero_point),
            (self.b_dtype, self.b_zero_point),
            (self.dtype, self.zero_point),
        ):
            if not isinstance(dtype, str) or dtype not in allowed:
                raise Error(f"{self.formula} does not take {dtype}", remedy=f"one of: {', '.join(allowed)}")
            lo, hi = RANGES[dtype]
            point = integer(point, "zero point")
            if not lo <= point <= hi or (dtype == "int16" and point):
                raise Error(f"zero point {point} is not allowed for {dtype}")
        for scale in (self.a_scale, self.b_scale, self.scale):
            if not (np.isfinite(real(scale, "a scale")) and floats(scale, np.float32) > 0):
                raise Error(f"scale {scale} is not positive and finite")
        lo, hi = clamp_bounds(self.clamp, self.dtype)
        try:
            door = _kernels.Binary(
                _FORMULAS.index(self.formula),
                _kernels.TYPES[self.a_dtype],
                _kernels.TYPES[self.b_dtype],
                _kernels.TYPES[self.dtype],
                (real(self.a_scale, "a_scale"), integer(self.a_zero_point, "a_zero_point")),
                (real(self.b_scale, "b_scale"), integer(self.b_zero_point, "b_zero_point")),
                (real(self.scale, "scale"), integer(self.zero_point, "zero_point")),
                lo,
                hi,
            )
        except ValueError as error:
            raise Error(
                f"{self.formula} cannot represent scales {self.a_scale}, {self.b_scale} -> {self.scale}", why=str(error)
            ) from None
        object.__setattr__(self, "_door", door)

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), _given(self))


@dataclass(frozen=True, eq=False, kw_only=True)
class Epilogue:
    """What happens to an int32 accumulator on its way out.

    Attributes
    ----------
    kind : {"int32", "requant", "float"}
        The accumulator itself; requantized to `dtype`; or float32 ``f32(f32(acc) * multiplier) + float_bias``, never
        fused.
    rounding : {"gemmlowp", "f64", "ruy", "fp32", "mbqm64", "xnn-fixed", "single"}
        R1..R7 of kernels/README.md. ``fp32``: ``rint(clip(f32(acc) * multiplier, lo - zp, hi - zp)) + zp``.
    multipliers : scalar or array (columns,)
        float32 for ``fp32`` and kind ``float``; float64 for ``f64``; int32 otherwise.
    shifts : scalar or int array (columns,), optional
        Left shifts beside int32 multipliers (see `quantize_multiplier`); for ``xnn-fixed`` the right shift.
    zero_point, clamp, dtype
        Result: ``clip(rounded + zero_point, *clamp)`` as uint8, int8, int16 or uint16; clamp defaults to the
        type's range.
    float_bias : float32 array (columns,), optional
        With ``fp32``: added to ``f32(acc)`` before the product, as torch fbgemm does. With kind ``float``: added last.
    lut : array of 256, optional
        Replaces a byte output; indexed by value - lowest value.
    residual : Binary, optional
        Applied last: ``out = residual(out, tensor)``; calls then take the tensor as ``residual=``.
    columns : int or None
        Length of the per-column arrays, if there are any.

    Raises
    ------
    Error
        A field that does not fit the others.
    """

    kind: str = "int32"
    rounding: str = "fp32"
    multipliers: Any = None
    shifts: Any = None
    zero_point: int = 0
    clamp: tuple[int, int] | None = None
    dtype: str = "int8"
    float_bias: Any = None
    lut: Any = None
    residual: Binary | None = None
    columns: int | None = field(init=False, repr=False)
    _door: _kernels.Epilogue = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.kind, _KINDS, "epilogue")
        one_of(self.rounding, ROUNDINGS, "rounding")
        dtype = dtype_of({"int32": "int32", "float": "float32"}.get(self.kind, self.dtype), "dtype")
        if self.residual is not None and not isinstance(self.residual, Binary):
            raise Error("the residual of an epilogue is a Binary, not a tensor")
        if self.kind == "requant" and dtype.name not in ("uint8", "int8", "int16", "uint16"):
            raise Error(f"requantized output cannot be {dtype}", remedy="uint8, int8, int16 or uint16")
        if self.kind != "requant" and (self.lut is not None or self.residual is not None):
            raise Error(f"an epilogue of kind {self.kind} takes no table and no residual")
        object.__setattr__(self, "dtype", dtype.name)
        scales_f32, scales_f64, multipliers, shifts, bias, columns = self._arrays()
        lo, hi = clamp_bounds(self.clamp, dtype.name) if self.kind == "requant" else (0, 0)
        point = integer(self.zero_point, "zero point")
        if self.kind == "requant" and not RANGES[dtype.name][0] <= point <= RANGES[dtype.name][1]:
            raise Error(f"zero point {point} does not fit {dtype}")
        if self.residual is not None and self.residual.a_dtype != dtype.name:
            raise Error(f"the residual operator takes {self.residual.a_dtype}, the epilogue gives {dtype}")
        if self.residual is not None and self.residual.dtype != dtype.name:
            raise Error("the residual operator must keep the output's dtype")
        table = None if self.lut is None else dense(self.lut, "lut", ["uint8", "int8"]).copy()
        if table is not None and (table.shape != (256,) or table.dtype != dtype):
            raise Error(f"lut must hold 256 {dtype} values", why=f"it is {table.shape} {table.dtype}")
        per_column = any(a is not None and a.ndim == 1 for a in (scales_f32, scales_f64, multipliers))
        door = _kernels.Epilogue(
            _KINDS.index(self.kind),
            ROUNDINGS.index(self.rounding),
            TYPES[dtype],
            columns,
            per_column,
            scales_f32,
            scales_f64,
            multipliers,
            shifts,
            bias,
            point,
            lo,
            hi,
            table,
            None if self.residual is None else self.residual._door,
        )
        object.__setattr__(
            self, "columns", columns if columns != 1 or per_column or self.float_bias is not None else None
        )
        object.__setattr__(self, "_door", door)

    def _arrays(self) -> tuple[Array | None, Array | None, Array | None, Array | None, Array | None, int]:
        """scales_f32, scales_f64, multipliers, shifts, float_bias for the door, and the number of columns."""
        bias = None if self.float_bias is None else dense(self.float_bias, "float_bias", ["float32"]).copy()
        if self.kind == "int32":
            if self.multipliers is not None or bias is not None:
                raise Error("an int32 epilogue takes no multipliers and no float bias")
            return None, None, None, None, None, 1
        if self.multipliers is None:
            raise Error("the epilogue needs multipliers")
        if bias is not None and not (bias.ndim == 1 and (self.kind == "float" or self.rounding == "fp32")):
            raise Error("float_bias is one value a column, with kind float or rounding fp32")
        scales_f32 = scales_f64 = multipliers = shifts = None
        if self.kind == "float" or self.rounding == "fp32":
            main = scales_f32 = _values(self.multipliers, np.float32)
        elif self.rounding == "f64":
            main = scales_f64 = _values(self.multipliers, np.float64)
        else:
            main = multipliers = _values(self.multipliers, np.int32)
            shifts = np.broadcast_to(_values(0 if self.shifts is None else self.shifts, np.int32), main.shape)
            shifts = np.ascontiguousarray(shifts).reshape(main.shape)
            lo, hi = _FIXED[self.rounding]
            if shifts.size and not (lo <= shifts.min() and shifts.max() <= hi):
                raise Error(f"shifts of {self.rounding} lie in [{lo}, {hi}]")
        columns = {a.shape[0] for a in (main, bias) if a is not None and a.ndim == 1} or {1}
        if len(columns) > 1:
            raise Error(f"per-column arrays differ in length: {sorted(columns)}")
        return scales_f32, scales_f64, multipliers, shifts, bias, columns.pop()

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), _given(self))


def _given(made: Binary | Epilogue) -> dict[str, Any]:
    return {one.name: getattr(made, one.name) for one in fields(made) if one.init}


def _again(kind: type[Binary] | type[Epilogue], given: dict[str, Any]) -> Binary | Epilogue:
    return kind(**given)


def finishing(epilogue: Any, default: Epilogue) -> Epilogue:
    """An epilogue as given, or the default."""
    if epilogue is None:
        return default
    if not isinstance(epilogue, Epilogue):
        raise Error(f"epilogue must be an Epilogue, not {type(epilogue).__name__}")
    return epilogue


def _values(given: Any, dtype: type[np.generic]) -> Array:
    values = np.asarray(given)
    kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
    if values.dtype.kind not in kinds or values.ndim > 1:
        raise Error(f"multipliers and shifts must be scalars or 1-D arrays of {np.dtype(dtype).name}")
    if kinds == "iu" and values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise Error("multipliers and shifts must fit int32")
    if kinds == "iuf" and not np.isfinite(values).all():
        raise Error("multipliers must be finite")
    frozen = floats(values, dtype)
    frozen.flags.writeable = False
    return frozen


def clamp_bounds(clamp: tuple[int, int] | None, dtype: str) -> tuple[int, int]:
    """The clamp inside the type's range, or that range."""
    least, most = RANGES[dtype]
    if clamp is None:
        return least, most
    try:
        lo, hi = (integer(bound, "clamp") for bound in clamp)
    except (TypeError, ValueError):
        raise Error("clamp must be two integers") from None
    if not least <= lo <= hi <= most:
        raise Error(f"clamp ({lo}, {hi}) does not lie in [{least}, {most}]")
    return lo, hi


def quantize_multiplier(real: Any) -> tuple[Array, Array]:
    """Real multipliers (float64) as (int32 31-bit multipliers, int32 left shifts): TFLite's QuantizeMultiplier."""
    values = dense(real, "real", ["float64", "float32", "float16", "int64", "int32"]).astype(np.float64)
    if not np.isfinite(values).all():
        raise Error("a real multiplier must be finite")
    pairs = [_kernels.quantize_multiplier(float(v)) for v in values.reshape(-1)]
    table = np.array(pairs, np.int32).reshape(*values.shape, 2)
    return table[..., 0], table[..., 1]


def requantize(acc: Any, epilogue: Epilogue, *, residual: Any = None, out: Array | None = None) -> Array:
    """Apply an epilogue to accumulators.

    Parameters
    ----------
    acc : int32 array (..., columns), or int64 for roundings ``f64`` and ``mbqm64``
    epilogue : Epilogue
    residual : array like acc, optional
        Second operand of ``epilogue.residual``.
    out : array, optional
        Of acc's shape and the epilogue's dtype.
    """
    epilogue = finishing(epilogue, Epilogue())
    wide = epilogue.kind == "requant" and epilogue.rounding in ("f64", "mbqm64")
    given = dense(acc, "acc", ["int32", "int64"] if wide else ["int32"])
    if wide and epilogue.rounding == "mbqm64" and given.size and not -(2**47) < given.min() <= given.max() < 2**47:
        raise Error("rounding mbqm64 takes accumulators of 47 bits")
    columns = given.shape[-1] if given.ndim else 1
    rows = given.size // columns if columns else 0
    second = residual_operand(residual, epilogue, given.shape)
    result = output(out, given.shape, epilogue.dtype, given, second)
    check_columns(epilogue, columns)
    epilogue._door.run(given, TYPES[given.dtype], rows, columns, second, result)
    return result


def residual_operand(residual: Any, epilogue: Epilogue, shape: tuple[int, ...]) -> Array | None:
    """The second operand of the residual operator, checked against the epilogue and the output's shape."""
    if (residual is None) != (epilogue.residual is None):
        raise Error("residual= goes with an epilogue that has a residual operator")
    if residual is None or epilogue.residual is None:
        return None
    given = dense(residual, "residual", [epilogue.residual.b_dtype])
    if given.shape != shape:
        raise Error(f"residual has shape {given.shape}, the output {shape}")
    return given


def check_columns(epilogue: Epilogue, columns: int) -> None:
    """Per-column arrays must have one value a column."""
    if epilogue.columns is not None and epilogue.columns != columns:
        raise Error(f"the epilogue's arrays have {epilogue.columns} values", why=f"there are {columns} output columns")
