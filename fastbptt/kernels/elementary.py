"""exp, tanh, sigmoid and the slopes of both, of a float32 or float64 scalar, without a branch.

A loop over them becomes vector code in either dtype, which a loop over `math.exp` does not: Numba
calls libm once an element.  The error bounds are in ulp of the result: the roundings added up at
their worst, which tests/test_elementary.py finds nearly reached.  Results may be subnormal.

All stand on exp(x) = 2^n (1 + expm1(r)) with x = n ln 2 + r and |r| <= ln(2) / 2; ln 2 in two
parts and the quotient in tanh follow Cody & Waite, Software Manual for the Elementary Functions
(1980), the chapters on exp and tanh; see also Muller, Elementary Functions (3rd ed. 2016), chapters
3 and 11.  See also design.md D3.  tests/make_coefficients.py makes the coefficients.  All are
inlined: constants leave a loop that they stand in, and LLVM by itself finds those of float64 too
many to be inlined.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np

from .jit import implements, kernel
from .simd import kept


class Constants(NamedTuple):
    """The numbers of one dtype, all of that dtype."""

    lowest: Any  # exp rounds to 0 below
    highest: Any  # and overflows above
    magic: Any  # 1.5 · 2^(bits of the significand - 1): adding it rounds to an integer
    log2_e: Any
    lift: Any  # a power of two that lifts every subnormal among the normal numbers; as bits
    lowered: Any  # and its inverse
    ln2: Any  # (high, low): n · high is exact
    expm1: Any  # (exp(r) - 1 - r - r²/2) / r³, constant term first
    tanh_p: Any  # P and Q of (1 - tanh(x) / x) / x² = P(x²) / Q(x²); Q's highest term is 1
    tanh_q: Any


def _single(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


SINGLE = Constants(
    lowest=np.float32(-104),
    highest=np.float32(89),
    magic=np.float32(1.5 * 2**23),
    log2_e=np.float32(1.442695),
    lift=np.uint32(24),
    lowered=np.float32(2.0**-24),
    ln2=_single(0.69314575, 1.4286068e-06),
    expm1=_single(0.16666667, 0.041666552, 0.008333301, 0.0013926256, 0.00019899392),
    tanh_p=_single(0.8237053, 0.0038541807),
    tanh_q=_single(2.471116),
)
DOUBLE = Constants(
    lowest=-746.0,
    highest=710.0,
    magic=1.5 * 2**52,
    log2_e=1.4426950408889634,
    lift=np.uint64(54),
    lowered=2.0**-54,
    ln2=(0.6931471805601177, -1.7239444525614835e-13),
    expm1=(
        0.16666666666666669,
        0.04166666666666667,
        0.008333333333330037,
        0.0013888888888880886,
        0.00019841269863174067,
        2.480158733412832e-05,
        2.7557268273567713e-06,
        2.755726411628982e-07,
        2.510047389245446e-08,
        2.0918212752506956e-09,
    ),
    tanh_p=(1612.7230851469976, 99.19256390136738, 0.9643618227072476),
    tanh_q=(4838.169255440993, 2232.845393880495, 112.70860166337788),
)


def _constants(x: Any) -> Any:
    """The constants of the dtype of x."""


def _bits(x: Any) -> Any:
    """The bits of x as an unsigned integer of its width."""


def _power_of_two(bits: Any) -> Any:
    """2^n for the n in the low bits; whatever stands above them is shifted out."""


def _expm1_tail(r: Any) -> Any:
    """(exp(r) - 1 - r - r²/2) / r³.

    By pairs (Estrin): Horner's chain of dependent steps is longer than what the processor looks
    ahead, and costs a tenth of the speed.
    """


def _tanh_tail(s: Any) -> Any:
    """(P, Q) of (1 - tanh(x) / x) / s = P / Q, s = x²."""


@implements(_constants, numba.float32, exact=True)
def _single_constants(x):
    return kept(SINGLE)


@implements(_constants, numba.float64, exact=True)
def _double_constants(x):
    return kept(DOUBLE)


@implements(_bits, numba.float32, exact=True)
def _single_bits(x):
    return np.float32(x).view(np.uint32)


@implements(_bits, numba.float64, exact=True)
def _double_bits(x):
    return np.float64(x).view(np.uint64)


@implements(_power_of_two, numba.uint32, exact=True)
def _single_power_of_two(bits):
    return np.uint32((bits + np.uint32(127)) << np.uint32(23)).view(np.float32)


@implements(_power_of_two, numba.uint64, exact=True)
def _double_power_of_two(bits):
    return np.uint64((bits + np.uint64(1023)) << np.uint64(52)).view(np.float64)


@implements(_expm1_tail, numba.float32, exact=True)
def _single_expm1_tail(r):
    c, s = _constants(r).expm1, r * r
    return (c[0] + r * c[1]) + s * ((c[2] + r * c[3]) + s * c[4])


@implements(_expm1_tail, numba.float64, exact=True)
def _double_expm1_tail(r):
    c, s = _constants(r).expm1, r * r
    low = (c[0] + r * c[1]) + s * (c[2] + r * c[3])
    high = (c[4] + r * c[5]) + s * (c[6] + r * c[7])
    return low + (s * s) * (high + (s * s) * (c[8] + r * c[9]))


@implements(_tanh_tail, numba.float32, exact=True)
def _single_tanh_tail(s):
    k = _constants(s)
    p, q = k.tanh_p, k.tanh_q
    return p[0] + s * p[1], q[0] + s


@implements(_tanh_tail, numba.float64, exact=True)
def _double_tanh_tail(s):
    k = _constants(s)
    p, q = k.tanh_p, k.tanh_q
    return p[0] + s * (p[1] + s * p[2]), q[0] + s * (q[1] + s * (q[2] + s))


@kernel(part=True, exact=True, inlined=True)
def _reduced(x):
    """(expm1(r), the bits of a number that ends in those of n) with x = n ln 2 + r."""
    k = _constants(x)
    shifted = x * k.log2_e + k.magic
    n = shifted - k.magic
    r = (x - n * k.ln2[0]) - n * k.ln2[1]
    return r + r * r * (kept(type(x)(0.5)) + r * _expm1_tail(r)), _bits(shifted)


@kernel(exact=True, inlined=True)
def exp(x):
    """2^n (1 + expm1(r)); within 1 ulp.

    The power comes in two halves, because 2^128 and 2^-150 are no float32.
    """
    k = _constants(x)
    x = k.lowest if x < k.lowest else x  # in this order a NaN stays one
    x = k.highest if x > k.highest else x
    p, bits = _reduced(x)
    half = type(bits)(bits >> type(bits)(1))
    power = _power_of_two(half)
    return (power + power * p) * _power_of_two(type(bits)(bits - half))


@kernel(part=True, exact=True, inlined=True)
def _tanh(a, t):
    """(tanh, slope) of a >= 0, t = exp(-2 a).

    The value is 1 - q with q = 2 t / (1 + t), so that the slope, 1 - value², is q (2 - q).
    """
    one = kept(type(a)(1))
    P, Q = _tanh_tail(a * a)
    small = a < kept(type(a)(0.55))
    m = a if small else one
    ratio = (a * a * P if small else t + t) / (Q if small else one + t)
    value = m - m * ratio
    return value, one - value * value if small else ratio * (one + (one - ratio))


@kernel(exact=True, inlined=True)
def tanh(x):
    """x - x³ P / Q for |x| < 0.55, else 1 - 2 t / (1 + t) with t = exp(-2 |x|); within 1.7 ulp.

    One division: the operands are chosen, not the quotients.  From |x| = 20 on the value is 1.
    """
    a, most = abs(x), kept(type(x)(20))
    p, bits = _reduced(kept(-type(x)(2)) * (most if a > most else a))
    power = _power_of_two(bits)
    value, _ = _tanh(a, power + power * p)
    return math.copysign(value, x)


@kernel(exact=True, inlined=True)
def tanh_and_slope(x):
    """tanh(x), the same bits, and 1 / cosh(x)², within 3.8 ulp also where the value is 1."""
    a = abs(x)
    value, slope = _tanh(a, exp(kept(-type(x)(2)) * a))
    return math.copysign(value, x), slope


@kernel(part=True, exact=True, inlined=True)
def _sigmoid(x):
    """(m, t / (1 + t)) with t = exp(-|x|) and m = t for x < 0, else 1.

    Its own exp: t <= 1 needs one power of two only, and a layer spends a fifth of its time here.
    """
    k, one = _constants(x), kept(type(x)(1))
    a = -abs(x)
    p, bits = _reduced(k.lowest if a < k.lowest else a)  # in this order a NaN stays one
    power = _power_of_two(type(bits)(bits + k.lift))
    t = (power + power * p) * k.lowered
    return t if x < type(x)(0) else one, t / (one + t)


@kernel(exact=True, inlined=True)
def sigmoid(x):
    """m - m t / (1 + t) with t = exp(-|x|) and m = t for x < 0, else 1; within 1.9 ulp.

    Nearer than m / (1 + t), where a 1 + t just above 1 has been rounded by a whole ulp of m.
    """
    m, other = _sigmoid(x)
    return m - m * other


@kernel(exact=True, inlined=True)
def sigmoid_and_slope(x):
    """sigmoid(x), the same bits, and sigmoid(x) sigmoid(-x), within 3.3 ulp in both tails."""
    m, other = _sigmoid(x)
    return m - m * other, other - other * other
