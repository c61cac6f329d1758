"""tanh, sigmoid and the slopes of both, of a float32 or float64 scalar, without a branch.

A loop over them becomes vector code in either dtype, which a loop over `math.exp` does not: Numba
calls libm once an element.  The error bounds are in ulp of the result: the roundings added up at
their likely worst, which tests/test_elementary.py finds nearly reached: in float32 it looks at all
numbers.  Results may be subnormal.

All stand on exp(x) = 2^n (1 + expm1(r)) with x = n ln 2 + r and |r| <= ln(2) / 2; ln 2 in two
parts follows Cody & Waite, Software Manual for the Elementary Functions (1980), the chapter on
exp; see also Muller, Elementary Functions (3rd ed. 2016), chapters 3 and 11, and design.md D3.
tests/make_coefficients.py makes the coefficients.  All are inlined: constants leave a loop that
they stand in, and LLVM by itself finds those of float64 too many to be inlined.
"""

from typing import Any, NamedTuple

import numba
import numpy as np

from .jit import implements, kernel
from .simd import kept


class Constants(NamedTuple):
    """The numbers of one dtype, all of that dtype."""

    lowest: Any  # exp rounds to 0 below
    magic: Any  # 1.5 · 2^(bits of the significand - 1): adding it rounds to an integer
    log2_e: Any
    lift: Any  # a power of two that lifts every subnormal among the normal numbers; as bits
    lifted: Any  # 1, lifted
    lowered: Any  # and the inverse
    ln2: Any  # (high, low): n · high is exact
    expm1: Any  # (exp(r) - 1 - r - r²/2) / r³, constant term first
    flat: Any  # tanh's slope rounds to 0 above


def _single(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


SINGLE = Constants(
    lowest=np.float32(-104),
    magic=np.float32(1.5 * 2**23),
    log2_e=np.float32(1.442695),
    lift=np.uint32(24),
    lifted=np.float32(2.0**24),
    lowered=np.float32(2.0**-24),
    ln2=_single(0.69314575, 1.4286068e-06),
    expm1=_single(0.16666667, 0.041666552, 0.008333301, 0.0013926256, 0.00019899392),
    flat=np.float32(53),
)
DOUBLE = Constants(
    lowest=-746.0,
    magic=1.5 * 2**52,
    log2_e=1.4426950408889634,
    lift=np.uint64(54),
    lifted=2.0**54,
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
    flat=374.0,
)


def _constants(x: Any) -> Any:
    """The constants of the dtype of x."""


def _bits(x: Any) -> Any:
    """The bits of x as an unsigned integer of its width."""


def _power_of_two(bits: Any) -> Any:
    """2^n for the n in the low bits; whatever stands above them is shifted out."""


def _negative(x: Any) -> Any:
    """Whether the sign bit of x is set: a select by that bit needs no comparison."""


def _signed(value: Any, x: Any) -> Any:
    """`value`, which has no sign yet, with that of x."""


def _remainder(x: Any, n: Any) -> Any:
    """(r, c) with x - n ln 2 = r - c; c is 0 where r is near enough.

    In float64 r is four tenths of an ulp off for every x with n = 1 and r < -1/4, as chance has it
    for ln 2, and in float32 a sixteenth: there it would leave tanh 2.1 ulp off, here it does not.
    """


def _expm1_tail(r: Any) -> Any:
    """(exp(r) - 1 - r) / r².

    By pairs (Estrin): Horner's chain of dependent steps is longer than what the processor looks
    ahead, and costs a tenth of the speed.
    """


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


@implements(_negative, numba.float32, exact=True)
def _single_negative(x):
    return np.float32(x).view(np.int32) < 0


@implements(_negative, numba.float64, exact=True)
def _double_negative(x):
    return np.float64(x).view(np.int64) < 0


@implements(_signed, numba.float32, exact=True)
def _single_signed(value, x):
    return np.uint32(_bits(value) | (_bits(x) & np.uint32(1 << 31))).view(np.float32)


@implements(_signed, numba.float64, exact=True)
def _double_signed(value, x):
    return np.uint64(_bits(value) | (_bits(x) & np.uint64(1 << 63))).view(np.float64)


@implements(_remainder, numba.float32, exact=True)
def _single_remainder(x, n):
    ln2 = _constants(x).ln2
    return (x - n * ln2[0]) - n * ln2[1], np.float32(0)


@implements(_remainder, numba.float64, exact=True)
def _double_remainder(x, n):
    ln2 = _constants(x).ln2
    begun = x - n * ln2[0]
    r = begun - n * ln2[1]
    return r, n * ln2[1] - (begun - r)


@implements(_expm1_tail, numba.float32, exact=True)
def _single_expm1_tail(r):
    c, s = _constants(r).expm1, r * r
    return (kept(np.float32(0.5)) + r * c[0]) + s * ((c[1] + r * c[2]) + s * (c[3] + r * c[4]))


@implements(_expm1_tail, numba.float64, exact=True)
def _double_expm1_tail(r):
    c, s = _constants(r).expm1, r * r
    low = (kept(0.5) + r * c[0]) + s * (c[1] + r * c[2])
    high = (c[3] + r * c[4]) + s * (c[5] + r * c[6])
    return low + (s * s) * (high + (s * s) * ((c[7] + r * c[8]) + s * c[9]))


@kernel(part=True, exact=True, inlined=True)
def _reduced(x):
    """(expm1(r), a number whose bits end in those of n) with x = n ln 2 + r."""
    k = _constants(x)
    shifted = x * k.log2_e + k.magic
    r, c = _remainder(x, shifted - k.magic)
    return r + (r * r * _expm1_tail(r) - c), shifted


@kernel(part=True, exact=True, inlined=True)
def _tanh(p, shifted):
    """(m, q) with tanh(a) = m - m q for a >= 0, from what `_reduced` makes of 2 a.

    With y = expm1(2 a) / 2 it is y / (1 + y); with m = min(y, 1) and q = m / (1 + y) the relative
    error of the quotient counts by min(y, 1 / y).  Tried in float32: to choose between
    x - x³ P / Q and 1 - 2 t / (1 + t), at most 1.5 ulp off, took a quarter longer, as selects need
    the ports of the FMAs; y / (1 + y) itself is up to 2.4 ulp off, and m - m² r, r = 1 / (1 + y),
    up to 2.1.
    """
    one, bits = kept(type(p)(1)), _bits(shifted)
    half = _power_of_two(type(bits)(bits - type(bits)(1)))
    y = half * p + (half - kept(type(p)(0.5)))
    m = y if y < one else one
    return m, m / (one + y)


@kernel(exact=True, inlined=True)
def tanh(x):
    """y / (1 + y) with y = expm1(2 |x|) / 2; within 1.9 ulp.  From |x| = 20 on the value is 1."""
    a, most = abs(x), kept(type(x)(20))
    a = most if a > most else a  # in this order a NaN stays one
    m, q = _tanh(*_reduced(a + a))
    return _signed(m - m * q, x)


@kernel(exact=True, inlined=True)
def tanh_and_slope(x):
    """tanh(x), the same bits, and 1 / cosh(x)², within 3.8 ulp also where the value is 1.

    The slope is (1 - value) (1 + value), where 1 - value is q + (1 - m) (1 - q): nothing cancels.
    n stops at 64, where 1 + y is y, so that y does not overflow; the rest goes to the slope alone.
    """
    k, a, one = _constants(x), abs(x), kept(type(x)(1))
    a = k.flat if a > k.flat else a  # in this order a NaN stays one, here and below
    p, shifted = _reduced(a + a)
    most = kept(type(x)(k.magic + type(x)(64)))
    near = most if shifted > most else shifted
    m, q = _tanh(p, near)
    value, other = m - m * q, q + (one - m) * (one - q)
    power = _power_of_two(type(_bits(x))(_bits(near) - _bits(shifted)))
    return _signed(value, x), (other * (one + value)) * power


@kernel(part=True, exact=True, inlined=True)
def _sigmoid(x):
    """(m, t / (1 + t)) with t = exp(-|x|) and m = t for x < 0, else 1.

    Its power of two is lifted, so that it is never subnormal, and lowered beside the division: a
    layer spends a fifth of its time here.  Tried on Zen 5: one division for two or three quotients
    took 1.07 and 1.15 of the time, the approximate reciprocal and a correction 1.15 (tanh 1.2, on
    Zen 4 1.1).
    """
    k, one = _constants(x), kept(type(x)(1))
    a = -abs(x)
    p, shifted = _reduced(k.lowest if a < k.lowest else a)  # in this order a NaN stays one
    bits = _bits(shifted)
    power = _power_of_two(type(bits)(bits + k.lift))
    t = power + power * p
    return t * k.lowered if _negative(x) else one, t / (k.lifted + t)


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
