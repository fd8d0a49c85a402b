"""Float32 functions of one element, and softmax, as onnxruntime computes them: polynomials of MLAS and Eigen.

Measured on onnxruntime 1.31.1 and confirmed bit for bit (`hwq dialects --verify ort`). MLAS (core/mlas/lib/logistic.cpp, tanh.cpp,
erf.cpp, compute.cpp) runs fused multiply-adds on every x86-64 CPU that has them; Eigen's vectors are SSE's, without. Softmax adds
its exponentials up in 8 lanes, with AVX-512 in 16: beyond 16 elements the sum, and so the bits, are then the CPU's. So are
exponentials below 2^-126: 0 with AVX2, rounded once with AVX-512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hwq.execution.steps import Kernel, Scope, Settings, adapt, interpret, present, register
from hwq.graph import Array, Node
from hwq.numerics import exp_c, fused_multiply_add
from hwq.ops.tflite_functions import apply_vectors

__all__ = ["logistic", "softmax", "tanh"]

f32 = np.float32
# Numerators in odd, denominators in even powers of x, the highest first; x is clipped to what the fit covers.
TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
     6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
    9.0,
)  # fmt: skip
LOGISTIC = (
    (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01),
    (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01,
     9.93151921023180e-01),
    18.0,
)  # fmt: skip
# exp(r) on [-ln(2) / 2, ln(2) / 2]; ln(2) in two parts. Adding MAGIC (1.5 * 2^23) rounds to an integer.
EXPONENTIAL = tuple(float.fromhex(c) for c in ("0x1.694p-10", "0x1.125edcp-7", "0x1.555b5ap-5", "0x1.55545p-3", "0x1.fffff6p-2", "0x1p+0"))  # fmt: skip
LOG2E, LN2, MAGIC = f32(1.44269504088896341), (f32(-6.93145752e-1), f32(-1.42860677e-6)), f32(12582912)
EXPONENTIAL_REACH, SUMMED_REACH = (f32(-103.9720840454), f32(88.7762626647950)), f32(-88.3762626647949)
# erf up to SPLIT in powers of x^2, beyond as 1 - exp(-p(x)), whose exponential has terms of its own; 1 from REACH on.
ERF_SMALL = (-5.99104969e-4, 4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1, 1.28379151e-1)
ERF_BIG = (1.72948930e-5, -3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1, 6.34846687e-1, 1.28717512e-1)
ERF_EXPONENTIAL = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)
SPLIT, REACH = f32(0.921875), f32(3.925)
# Eigen's exp(r) = 1 + r + r^2 * (even + r * odd); its ln(2) has other parts.
EIGEN_EVEN = tuple(f32(c) for c in (1.37449637986719608306884765625e-3, 4.166965186595916748046875e-2, 0.49999988079071044921875))  # fmt: skip
EIGEN_ODD = (f32(8.36894474923610687255859375e-3), f32(0.16666518151760101318359375))
# sqrt(2 / pi) times the cubic and the linear term of the approximate GELU.
GELU_TANH = (f32(0.044715 * 0.7978845608028654), f32(0.7978845608028654))
EIGEN_LN2, EIGEN_REACH = (f32(-0.693359375), f32(2.12194440e-4)), (f32(-104), f32(88.723))
# Eigen's ln(1 + t) = p(t) / q(t) on [sqrt(1/2) - 1, sqrt(2) - 1], the highest powers first.
LOGARITHM = (
    tuple(f32(c) for c in (0.18256296349849254, 1.0000000190281063, 1.0000000190281136)),
    tuple(f32(c) for c in (0.049616247954120038, 0.59923249590823520, 1.4999999999999927, 1.0)),
)
ROOT_HALF, LN2_WHOLE = f32(0.707106781186547524), f32(np.log(2.0))
# Eigen's sine and cosine: pi / 2 in four parts, exact up to where it goes over to another reduction; powers of r^2, the highest first.
HALF_PI = tuple(f32(c) for c in (-1.5703125, -0.000483989715576171875, 1.62865035235881805419921875e-07, 5.5644315544167710640977020375430583953857421875e-11))  # fmt: skip
TURNS, SINE_REACH, COSINE_REACH = f32(0.636619746685028076171875), f32(25966), f32(18838)
COSINE = tuple(f32(c) for c in (2.4372266125283204019069671630859375e-05, -0.00138865201734006404876708984375, 0.041666619479656219482421875, -0.5, 1.0))  # fmt: skip
SINE = tuple(f32(c) for c in (-0.00019592341140837, 0.00833268736556168517, -0.16666662039822982556))


def _fused(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    return fused_multiply_add(a, np.asarray(b), np.asarray(c))


def _polynomial(x: Array, terms: Sequence[float]) -> Array:
    made = np.full_like(x, f32(terms[0]))
    for term in terms[1:]:
        made = _fused(made, x, f32(term))
    return made


def _rational(x: Array, above: Sequence[float], below: Sequence[float], bound: float) -> Array:
    x = np.clip(x, f32(-bound), f32(bound))
    square = x * x
    made: Array = (_polynomial(square, above) * x) / _polynomial(square, below)
    return made


def tanh(x: Array) -> Array:
    """MLAS' tanh of float32."""
    return _rational(x, *TANH)


def logistic(x: Array) -> Array:
    """MLAS' logistic function of float32: ``clip(p / q + 1/2, 0, 1)``."""
    return np.clip(_rational(x, *LOGISTIC) + f32(0.5), f32(0), f32(1))


def _reduced(x: Array) -> tuple[Array, Array]:
    """m and r of ``x = m ln(2) + r``."""
    whole = _fused(x, LOG2E, MAGIC) - MAGIC
    return whole, _fused(whole, LN2[1], _fused(whole, LN2[0], x))


def _power(whole: Array) -> Array:
    """2 to integers; NaN to anything, which a NaN beside it takes over."""
    return np.ldexp(f32(1), np.nan_to_num(whole).astype(np.int32))


def exponential(x: Array) -> Array:
    """MLAS' exp of float32, scaled in two steps, so that subnormal results are rounded once."""
    whole, rest = _reduced(np.clip(x, *EXPONENTIAL_REACH))
    normal = np.clip(whole, -126, 127)
    overflow = _power(whole - normal)
    return _fused(_polynomial(rest, EXPONENTIAL), rest * overflow, overflow) * _power(normal)


def erf(x: Array) -> Array:
    """MLAS' error function of float32."""
    size = np.minimum(np.abs(x), REACH)
    small = _fused(_polynomial(size * size, ERF_SMALL), size, size)
    whole, rest = _reduced(np.maximum(SUMMED_REACH, -_fused(_polynomial(size, ERF_BIG), size, size)))
    big = f32(1) - _polynomial(rest, ERF_EXPONENTIAL) * _power(whole)
    return np.asarray(np.copysign(np.where(size > SPLIT, big, small), x))


def _exponentials(x: Array, lanes: int) -> tuple[Array, Array]:
    """exp(x - largest) along the last axis, and a row's sum of them in 8 or 16 lanes."""
    less = x - x.max(axis=-1, keepdims=True)
    if lanes == 8:  # the power of 2 is made of its bits: what would be subnormal is 0
        whole, rest = _reduced(np.maximum(SUMMED_REACH, less))
        factor = np.where(whole < -126, f32(0), _power(whole))
        powers = _fused(_polynomial(rest, EXPONENTIAL), rest, f32(1)) * factor
    else:  # AVX-512 scales, and rounds once
        whole, rest = _reduced(np.maximum(less, f32(-256)))
        grown = _fused(_polynomial(rest, EXPONENTIAL), rest, f32(1))
        powers = np.ldexp(grown.astype(np.float64), np.nan_to_num(whole).astype(np.int32)).astype(f32)
    rows = np.pad(powers.reshape(-1, x.shape[-1]), ((0, 0), (0, -x.shape[-1] % lanes)))
    total = np.add.accumulate(rows.reshape(len(rows), -1, lanes), axis=1)[:, -1]
    if lanes == 16:
        total = total[:, :8] + total[:, 8:]
    a, b, c, d = total.reshape(-1, 2, 4).transpose(2, 1, 0)
    halves = (a + b) + (c + d)
    return powers, (halves[0] + halves[1]).reshape(*x.shape[:-1], 1)


def softmax(x: Array, lanes: int = 8) -> Array:
    """Shares along the last axis: exponentials, their sum in 8 or 16 lanes, its reciprocal."""
    if not x.size:
        return x.copy()
    powers, total = _exponentials(x, lanes)
    return np.asarray(powers * (f32(1) / total))


def log_softmax(x: Array, lanes: int = 8) -> Array:
    """Logarithms of shares along the last axis: the C library's of the sum of exponentials, off the distance to the largest."""
    if not x.size:
        return x.copy()
    _, total = _exponentials(x, lanes)
    return np.asarray((x - x.max(axis=-1, keepdims=True)) - np.log(total.astype(np.float64)).astype(np.float32))


def _eigen_exponential(x: Array) -> Array:
    """Eigen's exp of float32 on vectors without fused multiply-add."""
    inside = np.minimum(x, EIGEN_REACH[1])
    whole = np.floor(inside * LOG2E + f32(0.5))
    rest = whole * EIGEN_LN2[1] + (whole * EIGEN_LN2[0] + inside)
    square = rest * rest
    even = square * (square * EIGEN_EVEN[0] + EIGEN_EVEN[1]) + EIGEN_EVEN[2]
    made = square * (rest * (square * EIGEN_ODD[0] + EIGEN_ODD[1]) + even) + (rest + f32(1))
    wide = np.ldexp(made.astype(np.float64), np.nan_to_num(whole).astype(np.int32)).astype(np.float32)
    return np.asarray(np.where(x < EIGEN_REACH[0], f32(0), np.maximum(wide, x)))


def _grown(x: Array) -> Array:
    """exp(x) where Eigen computes it: what is left behind the last whole vector takes the C library's."""
    return apply_vectors(_eigen_exponential, exp_c, x, 0)


def _eigen_logarithm(x: Array) -> Array:
    """Eigen's ln of float32 on vectors without fused multiply-add: 2^e times what lies between sqrt(1/2) and sqrt(2)."""
    part, power = np.frexp(x)
    low = part < ROOT_HALF
    rest = (part - f32(1)) + np.where(low, part, f32(0))
    whole = power.astype(np.float32) - low.astype(np.float32)
    above, below = (np.full_like(rest, terms[0]) for terms in LOGARITHM)
    for term in LOGARITHM[0][1:]:
        above = rest * above + term
    for term in LOGARITHM[1][1:]:
        below = rest * below + term
    made = whole * LN2_WHOLE + rest * above / below
    made = np.where(np.isnan(x) | (x < 0), f32(np.nan), np.where(x == np.inf, x, made))
    return np.asarray(np.where(x == 0, f32(-np.inf), made), np.float32)


def _log(x: Array) -> Array:
    """ln(x): Eigen's vectors, and the C library's function (within a half ulp and a little) behind the last whole one."""
    return apply_vectors(_eigen_logarithm, lambda rest: np.log(rest.astype(np.float64)).astype(np.float32), x, 0)


def _eigen_wave(x: Array, sine: bool) -> Array:
    """Eigen's sine or cosine of float32 on vectors without fused multiply-add; of large numbers the exact one."""
    size = np.abs(x)
    shifted = size * TURNS + MAGIC
    turns, quarter = shifted - MAGIC, shifted.view(np.int32)
    rest = size
    for part in HALF_PI:
        rest = turns * part + rest
    square = rest * rest
    even, odd = np.full_like(rest, COSINE[0]), np.full_like(rest, SINE[0])
    for term in COSINE[1:]:
        even = even * square + term
    for term in SINE[1:]:
        odd = odd * square + term
    odd = (odd * square) * rest + rest
    flat = (quarter & 1) == 0
    made = np.where(flat, odd, even) if sine else np.where(flat, even, odd)
    negative = ((quarter & 2) != 0) ^ np.signbit(x) if sine else ((quarter + 1) & 2) != 0
    exact = (np.sin if sine else np.cos)(x.astype(np.float64)).astype(np.float32)
    return np.asarray(np.where(size >= (SINE_REACH if sine else COSINE_REACH), exact, np.where(negative, -made, made)))


def _wave(x: Array, sine: bool) -> Array:
    """sin(x) or cos(x): Eigen's vectors, and the C library's function behind the last whole one."""
    rest = np.sin if sine else np.cos
    return apply_vectors(
        lambda part: _eigen_wave(part, sine), lambda part: rest(part.astype(np.float64)).astype(np.float32), x, 0
    )


def _hard_sigmoid(x: Array, node: Node) -> Array:
    slope, offset = (f32(node.attributes.get(name, usual)) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    return np.asarray(np.maximum(f32(0), np.minimum(f32(1), x * slope + offset)))


def _elu(x: Array, node: Node) -> Array:
    return np.where(x >= 0, x, f32(node.attributes.get("alpha", 1.0)) * (_grown(x) - f32(1)))


def _celu(x: Array, node: Node) -> Array:
    alpha = f32(node.attributes.get("alpha", 1.0))
    return np.asarray(np.maximum(x, f32(0)) + np.minimum(f32(0), alpha * (_grown(x / alpha) - f32(1))))


def _swish(x: Array, node: Node) -> Array:
    return x * logistic(x * f32(node.attributes.get("alpha", 1.0)))


def _gelu(x: Array, node: Node) -> Array:
    if node.attributes.get("approximate", "none") == "tanh":
        return f32(0.5) * x * (tanh(x * (GELU_TANH[0] * x * x + GELU_TANH[1])) + f32(1))
    return f32(0.5) * x * (erf(x * f32(np.sqrt(0.5))) + f32(1))


FUNCTIONS: Mapping[str, Callable[[Array, Node], Array]] = MappingProxyType(
    {
        "Sigmoid": lambda x, node: logistic(x),
        "Tanh": lambda x, node: tanh(x),
        "Erf": lambda x, node: erf(x),
        "Exp": lambda x, node: exponential(x),
        "Log": lambda x, node: _log(x),
        "Sin": lambda x, node: _wave(x, True),
        "Cos": lambda x, node: _wave(x, False),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": lambda x, node: x * np.maximum(f32(0), np.minimum(f32(1), x * f32(1 / 6) + f32(0.5))),
        "Softsign": lambda x, node: x * (f32(1) / (f32(1) + np.abs(x))),
        "Elu": _elu,
        "Celu": _celu,
        "Gelu": _gelu,
        "com.microsoft::Gelu": _gelu,
        "Swish": _swish,
    }
)


@register(*(name if "::" in name else f"float:{name}" for name in FUNCTIONS))
def function(scope: Scope) -> Kernel:
    """A float32 function in the dialect's arithmetic where it names one; others as `hwq.ops` computes them."""
    node, x = scope.node, scope.operand(0)
    if scope.dialect.formulas.get("float-function") != "mlas" or x is None or x.dtype != "float32":
        return interpret(scope)

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            return np.asarray(FUNCTIONS[node.kind](present(operands[0]), node), np.float32)

    return adapt(run)


@register("float:Softmax", "float:LogSoftmax")
def float_softmax(scope: Scope) -> Kernel:
    """A float32 softmax, or its logarithm, along any axis, as `function`."""
    node, x = scope.node, scope.operand(0)
    if scope.dialect.formulas.get("float-function") != "mlas" or x is None or x.dtype != "float32":
        return interpret(scope)

    lanes = int(scope.dialect.formulas["float-lanes"])

    def run(operands: Sequence[Array | None], settings: Settings) -> Array:
        axis = int(node.attributes.get("axis", -1))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            along = softmax if node.op == "Softmax" else log_softmax
            made = along(np.ascontiguousarray(np.moveaxis(present(operands[0]), axis, -1)), lanes)
        return np.ascontiguousarray(np.moveaxis(made, -1, axis))

    return adapt(run)
