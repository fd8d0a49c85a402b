"""Functions of one element: which operators compute them, chains of them, and their exactly rounded tables.

A chain is any set of operators with one source: `x * sigmoid(x)`, a GELU spelled out in five nodes. Between a
DequantizeLinear and a QuantizeLinear of bytes it has 256 possible inputs, so it is a table; of int16 it is samples of one,
computed in float64 and interpolated. Entries are computed in 60
decimal digits, the intermediate values never rounded to floats, and rounded once: nearest, ties to even.

That they are exact: a byte's real value and every constant is a rational number with less than 2^-200 to spare, so a chain of
rational operators is either on a tie or farther from one than 10^-40; a chain with an exponential, a logarithm or an error
function of a nonzero rational is irrational (Lindemann), so no tie at all. It can lie very near one all the same: softplus(92.5)
is 92.5 + 10^-40.2, GELU(14) is 14 - 10^-43. Within 10^-40 it is computed again: rational chains in fractions, others in 1,000
digits that are never rounded to an end in 0 or 5, so that what is too small for them still shows its side.
"""

from __future__ import annotations

import decimal
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import NotSupportedYet
from hwq.graph import Array, Node, carrier
from hwq.ops.rational import Irrational, bounds_of, evaluate_rational, number
from hwq.ops.storage import integer_range

__all__ = [
    "BYTES",
    "CLAMPS",
    "FUNCTIONS",
    "NONLINEAR",
    "chain_function",
    "close_samples",
    "is_unary",
    "sample_table",
    "sources",
    "table",
    "value_at",
]

DIGITS = 60
# Nearer to a half than this is looked at twice.
TIE = Decimal(10) ** -40
# Digits of the second look.
SHARP_DIGITS = 1000
# No traps: overflow, division by zero and invalid operations give infinities and NaN, as IEEE's do.
CONTEXT = decimal.Context(prec=DIGITS, rounding=decimal.ROUND_HALF_EVEN, Emin=-999999, Emax=999999, traps=[])
BYTES = frozenset({"int8", "uint8"})
CLAMPS = frozenset({"Relu", "Clip"})
# erf(12) is 1 - 10^-64.
ERF_LIMIT = Decimal(12)
# A second look changes the context for its time: others that compute meanwhile only gain digits.
_SHARP = threading.Lock()
ONE, TWO, HALF = Decimal(1), Decimal(2), Decimal("0.5")

Function = Callable[..., Decimal]


def _exp(x: Decimal) -> Decimal:
    return CONTEXT.exp(x)


def _tanh(x: Decimal) -> Decimal:
    # 1 - 2 / (e^2x + 1) loses digits near 0, where x is its own value to 60 digits only below 10^-30.
    power = _exp(CONTEXT.multiply(TWO, x.copy_abs()))
    if power.is_infinite():
        return CONTEXT.next_minus(ONE).copy_sign(x)
    return CONTEXT.divide(CONTEXT.subtract(power, ONE), CONTEXT.add(power, ONE)).copy_sign(x)


def _sigmoid(x: Decimal) -> Decimal:
    return CONTEXT.divide(ONE, CONTEXT.add(ONE, _exp(CONTEXT.minus(x))))


def _softplus(x: Decimal) -> Decimal:
    return CONTEXT.add(max(x, Decimal(0)), CONTEXT.ln(CONTEXT.add(ONE, _exp(CONTEXT.minus(x.copy_abs())))))


@functools.cache
def _root_pi_of(digits: int) -> Decimal:
    # One entry for each precision. Machin: pi / 4 = 4 atan(1/5) - atan(1/239), by the Taylor series.
    def arc(inverse: int) -> Decimal:
        total, term, n = Decimal(0), CONTEXT.divide(ONE, Decimal(inverse)), 1
        while term.adjusted() > -digits - 5:
            total = CONTEXT.add(total, CONTEXT.divide(term, Decimal(n if n % 4 == 1 else -n)))
            term, n = CONTEXT.divide(term, Decimal(inverse * inverse)), n + 2
        return total

    pi = CONTEXT.multiply(Decimal(4), CONTEXT.subtract(CONTEXT.multiply(Decimal(4), arc(5)), arc(239)))
    return CONTEXT.sqrt(pi)


def _root_pi() -> Decimal:
    return _root_pi_of(CONTEXT.prec)


def _erf(x: Decimal) -> Decimal:
    """``2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!``: all terms positive (Abramowitz and Stegun 7.1.6)."""
    size = x.copy_abs()
    if not size.is_finite() or size > ERF_LIMIT:
        return x if x.is_nan() else CONTEXT.next_minus(ONE).copy_sign(x)
    twice, term, total, n = CONTEXT.multiply(TWO, CONTEXT.multiply(x, x)), size, size, 1
    while term and term.adjusted() > total.adjusted() - CONTEXT.prec - 2:
        n += 2
        term = CONTEXT.divide(CONTEXT.multiply(term, twice), Decimal(n))
        total = CONTEXT.add(total, term)
    factor = CONTEXT.divide(CONTEXT.multiply(TWO, _exp(CONTEXT.minus(CONTEXT.multiply(x, x)))), _root_pi())
    return CONTEXT.multiply(factor, total).copy_sign(x)


def _gelu(x: Decimal, node: Node) -> Decimal:
    word = node.attributes.get("approximate", "none")
    if word == "tanh":
        # ONNX Gelu-20: sqrt(2 / pi) (x + 0.044715 x^3).
        inner = CONTEXT.multiply(x, CONTEXT.add(ONE, CONTEXT.multiply(Decimal("0.044715"), CONTEXT.multiply(x, x))))
        inner = CONTEXT.multiply(inner, CONTEXT.divide(CONTEXT.sqrt(TWO), _root_pi()))
        return CONTEXT.multiply(CONTEXT.multiply(HALF, x), CONTEXT.add(ONE, _tanh(inner)))
    return CONTEXT.multiply(CONTEXT.multiply(HALF, x), CONTEXT.add(ONE, _erf(CONTEXT.divide(x, CONTEXT.sqrt(TWO)))))


def _expm1(x: Decimal) -> Decimal:
    return CONTEXT.subtract(_exp(x), ONE)


def _elu(x: Decimal, node: Node) -> Decimal:
    return x if x >= 0 else CONTEXT.multiply(number(node, "alpha", 1.0), _expm1(x))


def _celu(x: Decimal, node: Node) -> Decimal:
    alpha = number(node, "alpha", 1.0)
    return x if x >= 0 else CONTEXT.multiply(alpha, _expm1(CONTEXT.divide(x, alpha)))


def _selu(x: Decimal, node: Node) -> Decimal:
    inner = x if x >= 0 else CONTEXT.multiply(number(node, "alpha", 1.67326319217681884765625), _expm1(x))
    return CONTEXT.multiply(number(node, "gamma", 1.05070102214813232421875), inner)


def _hard_sigmoid(x: Decimal, node: Node) -> Decimal:
    inner = CONTEXT.add(CONTEXT.multiply(number(node, "alpha", 0.2), x), number(node, "beta", 0.5))
    return min(max(inner, Decimal(0)), ONE)


def _hard_swish(x: Decimal, node: Node) -> Decimal:
    # x (x + 3) clamped to [0, 6], over 6: rational, so its ties are found exactly.
    return CONTEXT.divide(CONTEXT.multiply(x, min(max(CONTEXT.add(x, Decimal(3)), Decimal(0)), Decimal(6))), Decimal(6))


def _swish(x: Decimal, node: Node) -> Decimal:
    return CONTEXT.multiply(x, _sigmoid(CONTEXT.multiply(number(node, "alpha", 1.0), x)))


FUNCTIONS: Mapping[str, Function] = {
    "Identity": lambda x, node: x,
    "Neg": lambda x, node: CONTEXT.minus(x),
    "Abs": lambda x, node: x.copy_abs(),
    "Exp": lambda x, node: _exp(x),
    "Log": lambda x, node: CONTEXT.ln(x),
    "Sqrt": lambda x, node: CONTEXT.sqrt(x),
    "Reciprocal": lambda x, node: CONTEXT.divide(ONE, x),
    "Erf": lambda x, node: _erf(x),
    "Sigmoid": lambda x, node: _sigmoid(x),
    "Tanh": lambda x, node: _tanh(x),
    "Softplus": lambda x, node: _softplus(x),
    "Softsign": lambda x, node: CONTEXT.divide(x, CONTEXT.add(ONE, x.copy_abs())),
    "Mish": lambda x, node: CONTEXT.multiply(x, _tanh(_softplus(x))),
    "Relu": lambda x, node: max(x, Decimal(0)),
    "LeakyRelu": lambda x, node: x if x >= 0 else CONTEXT.multiply(number(node, "alpha", 0.01), x),
    "ThresholdedRelu": lambda x, node: x if x > number(node, "alpha", 1.0) else Decimal(0),
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Swish": _swish,
    "Gelu": _gelu,
    "com.microsoft::Gelu": _gelu,
}  # fmt: skip
BINARY: Mapping[str, Callable[[Decimal, Decimal], Decimal]] = {
    "Add": CONTEXT.add, "Sub": CONTEXT.subtract, "Mul": CONTEXT.multiply, "Div": CONTEXT.divide, "Min": min, "Max": max,
    "Pow": lambda x, y: CONTEXT.power(x, y) if y else ONE,
}  # fmt: skip


# Those that cost more than a comparison or a copy: what machines keep tables for.
NONLINEAR = frozenset(FUNCTIONS) - CLAMPS - {"Identity", "Neg", "Abs", "LeakyRelu", "ThresholdedRelu"}


def is_unary(node: Node, data: Sequence[str], constants: Sequence[str]) -> bool:
    """Whether the node is a function of one element, its operands being `data` (computed) and `constants` (single numbers).

    The caller sees to it that all of `data` have one source.
    """
    if len(data) + len(constants) != sum(bool(name) for name in node.inputs) or not data or len(node.outputs) != 1:
        return False
    if node.kind == "Clip":
        return len(data) == 1 and node.inputs[0] == data[0]
    if node.kind in FUNCTIONS:
        return len(node.inputs) == 1
    return node.kind in BINARY and len(node.inputs) == 2


def sources(
    nodes: Iterable[Node],
    starts: Mapping[str, str],
    single: Callable[[str, Node], bool],
    computed: Callable[[str], bool],
) -> dict[str, str]:
    """The one value of which each node's output is a function, element by element: output name to that value's name.

    Parameters
    ----------
    nodes : iterable of Node
        In order of execution.
    starts : mapping
        Names that stand for another value (a dequantized one for the stored one).
    single : callable (name, node)
        Whether a name is a constant number that does not widen the node's result.
    computed : callable (name)
        Whether a name is no constant.
    """
    found: dict[str, str] = {}
    for node in nodes:
        data = [name for name in node.inputs if name and computed(name)]
        constants = [name for name in node.inputs if name and not computed(name) and single(name, node)]
        roots = {found.get(name, starts.get(name, name)) for name in data}
        if len(roots) == 1 and is_unary(node, data, constants):
            (found[node.outputs[0]],) = roots
    return found


def chain_function(
    nodes: Sequence[Node], source: str, result: str, constants: Mapping[str, Array]
) -> Callable[[Any], Any]:
    """The function that `nodes`, in order, compute of the value called `source`: a Decimal, or a Fraction (`Irrational`)."""
    known = {name: Decimal(float(np.asarray(value).reshape(()))) for name, value in constants.items()}

    def function(x: Any) -> Any:
        values: dict[str, Any] = {**known, source: x}
        for node in nodes:
            values[node.outputs[0]] = _evaluate(node, [values[name] if name else None for name in node.inputs])
        return values[result]

    return function


def _evaluate(node: Node, operands: Sequence[Any]) -> Any:
    first = operands[0]
    assert first is not None
    if any(isinstance(one, Fraction) for one in operands):
        return evaluate_rational(node, operands)
    if any(one is not None and one.is_nan() for one in operands):
        return Decimal("NaN")
    if node.kind == "Clip":
        low, high = bounds_of(node, operands)
        first = first if low is None else max(first, low)
        return first if high is None else min(first, high)
    if node.kind in FUNCTIONS:
        return FUNCTIONS[node.kind](first, node)
    second = operands[1]
    if node.kind not in BINARY or second is None:
        raise NotSupportedYet(f"a table of {node.kind}", where=f"node {node.name}")
    return BINARY[node.kind](first, second)


def value_at(function: Callable[[Any], Any], real: Decimal, scale: Decimal, low: int, high: int) -> int:
    """``function(real) / scale`` to the nearest integer, ties to even, within [low, high]; NaN gives `low`."""
    steps = CONTEXT.divide(function(real), scale)
    if steps.is_nan() or steps <= low:
        return low
    if steps >= high:
        return high
    floor = int(steps.to_integral_value(decimal.ROUND_FLOOR))
    above: Any = CONTEXT.subtract(CONTEXT.subtract(steps, Decimal(floor)), HALF)
    if above.copy_abs() <= TIE:
        above = _sharply(function, real, scale, floor)
    return floor + (floor % 2 if not above else int(above > 0))


def _sharply(function: Callable[[Any], Any], real: Decimal, scale: Decimal, floor: int) -> Any:
    """How far the value lies above ``floor + 1/2``, its sign certain."""
    try:
        return function(Fraction(real)) / Fraction(scale) - floor - Fraction(1, 2)
    except Irrational:
        pass
    with _SHARP:
        CONTEXT.prec, CONTEXT.rounding = SHARP_DIGITS, decimal.ROUND_05UP
        try:
            steps = CONTEXT.divide(function(real), scale)
            return CONTEXT.subtract(steps, CONTEXT.add(Decimal(floor), HALF))
        finally:
            CONTEXT.prec, CONTEXT.rounding = DIGITS, decimal.ROUND_HALF_EVEN


def table(
    function: Callable[[Any], Any],
    given: tuple[str, float, int],
    made: tuple[str, float, int],
) -> Array:
    """256 entries, from the lowest byte of the input up; `given` and `made` are (type, scale, zero point)."""
    (kind, scale, zero), (made_kind, made_scale, made_zero) = given, made
    first, last = integer_range(kind)
    low, high = (bound - made_zero for bound in integer_range(made_kind))
    step, made_step = Decimal(scale), Decimal(made_scale)
    entries = [
        value_at(function, CONTEXT.multiply(step, Decimal(q - zero)), made_step, low, high) + made_zero
        for q in range(first, last + 1)
    ]
    return np.array(entries, np.int64).astype(carrier(made_kind))


def sample_table(
    function: Callable[[Any], Any], given: tuple[float, int], made: tuple[float, int], shift: int = 7
) -> tuple[NDArray[np.int16], int]:
    """Samples, ``2^shift`` steps apart, of a function of int16 for `hwq.kernels.lut_int16` (513 at 7); and the worst error over
    all 65,536 inputs.

    The samples are the best that the interpolation's integers allow: of the values around each exact sample those are chosen
    (Viterbi) that make the largest error least, then the sum of squares. A straight line through samples h apart leaves
    ``h^2 max|f''| / 16`` in the middle however the samples are moved, in output steps; where that is above 1/2, no table of
    that many stays within one step.

    Parameters
    ----------
    function : callable
        On float64 arrays. NaN gives the lowest value.
    given, made : (scale, zero point)
        Of input and output, both int16.
    shift : int
        From 7 to 0; at 0 every input has its sample.

    Returns
    -------
    samples : int16 array (65536 / 2^shift + 1,)
    worst : int
        Largest distance to the function's value rounded to the nearest, in steps of the output.
    """
    exact = _steps_of(function, given, made)
    if shift == 0:
        return np.clip(np.rint(exact), -32768, 32767).astype(np.int16), 0
    gap = 1 << shift
    count = 65536 // gap
    target = np.clip(np.rint(exact[:-1]), -32768, 32767).astype(np.int64).reshape(count, gap)
    around = np.clip(np.rint(exact[::gap])[:, None] + np.arange(-3, 4), -32768, 32767).astype(np.int64)
    steps = np.arange(gap)
    slopes = around[1:, None, :] - around[:-1, :, None]
    lines = around[:-1, :, None, None] + ((slopes[..., None] * steps + gap // 2) >> shift)
    wrong = np.abs(lines - target[:, None, None, :])
    # One number orders by the largest error first: squares of 65,536 errors below 2^16 stay below 2^48, errors below 2^14 above.
    key = (np.minimum(wrong.max(axis=-1), (1 << 14) - 1) << 48) + np.square(wrong).sum(axis=-1)
    low = (1 << 48) - 1
    reached, back = np.zeros(7, np.int64), np.empty((count, 7), np.int64)
    for index in range(count):
        along = np.maximum(reached[:, None] & ~low, key[index] & ~low) + (reached[:, None] & low) + (key[index] & low)
        back[index] = along.argmin(axis=0)
        reached = along.min(axis=0)
    path = [int(reached.argmin())]
    found = int(wrong.max(initial=0)) if reached.min() >> 48 == (1 << 14) - 1 else int(reached.min() >> 48)
    for index in range(count - 1, -1, -1):
        path.append(int(back[index][path[-1]]))
    chosen = around[np.arange(count + 1), path[::-1]]
    return chosen.astype(np.int16), found


def close_samples(
    function: Callable[[Any], Any], given: tuple[float, int], made: tuple[float, int]
) -> NDArray[np.int16]:
    """The shortest table of samples that stays within one step of the rounded function over all 65,536 inputs.

    513 samples where the function bends little enough, else 1,025 to 4,097, else one for every input.
    """
    exact = _steps_of(function, given, made)
    inside = np.clip(exact, -32768, 32767)
    for shift in (7, 6, 5, 4):
        # What a straight line misses, halved by the best choice of its ends: above 3 no choice is within 1.5 of it.
        ends, part = inside[:: 1 << shift], np.arange(1 << shift) / (1 << shift)
        lines = ends[:-1, None] + np.diff(ends)[:, None] * part
        if np.abs(inside[:-1].reshape(lines.shape) - lines).max() > 3.0:
            continue
        samples, worst = sample_table(function, given, made, shift)
        if worst <= 1:
            return samples
    return sample_table(function, given, made, 0)[0]


def _steps_of(function: Callable[[Any], Any], given: tuple[float, int], made: tuple[float, int]) -> NDArray[np.float64]:
    """The function's values in steps of the output over all int16 and 32768, one step beyond the type."""
    (scale, zero), (made_scale, made_zero) = given, made
    places = np.arange(-32768, 32769, dtype=np.int64)
    with np.errstate(all="ignore"):
        exact = np.asarray(function((places - zero) * np.float64(scale)), np.float64) / made_scale + made_zero
    return np.clip(np.where(np.isnan(exact), -32768.0, exact), -(2.0**40), 2.0**40)
