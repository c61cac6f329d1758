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
from .simd import FUSED, fused, kept


class Reduction(NamedTuple):
    """What takes exp(s x), s = 1 or 2, to 2^n exp(s r), with x = n ln 2 / s + r."""

    log2_e: Any  # of exp(s)
    minus_ln2: Any  # (high, low) / s: x + n · high is exact
    tail: Any  # ((exp(s r) - 1) / s - r) / r², constant term first
    early: bool = False  # the tail takes x + n · high for r

    def doubled(self, early: bool = False) -> "Reduction":
        """That of exp(2 x): powers of two change no bit of a result."""
        number = type(self.log2_e)
        minus_ln2 = tuple(y / number(2) for y in self.minus_ln2)
        tail = tuple(y * number(2 << k) for k, y in enumerate(self.tail))
        return Reduction(self.log2_e * number(2), minus_ln2, tail, early)


class Constants(NamedTuple):
    """The numbers of one dtype."""

    lowest: Any  # exp rounds to 0 below
    magic: Any  # 1.5 · 2^(bits of the significand - 1): adding it rounds to an integer
    lifted: Any  # a power of two that lifts every subnormal among the normal numbers
    lowered: Any  # and its inverse
    exp: Reduction
    exp_twice: Reduction
    flat: Any  # tanh's slope rounds to 0 above


def _single(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


# The high part as few bits, for machines without `fused`, and all of float32's.
SINGLE_LN2 = {False: _single(-0.69314575, -1.4286068e-06), True: _single(-0.6931472, 1.9046542e-09)}
_SINGLE_EXP = Reduction(
    log2_e=np.float32(1.442695),
    minus_ln2=SINGLE_LN2[FUSED],
    tail=_single(0.5, 0.16666667, 0.041666552, 0.008333301, 0.0013926256, 0.00019899392),
)
_DOUBLE_EXP = Reduction(
    log2_e=1.4426950408889634,
    minus_ln2=(-0.6931471805601177, 1.7239444525614835e-13),
    tail=(
        0.5,
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
)
SINGLE = Constants(
    lowest=np.float32(-104),
    magic=np.float32(1.5 * 2**23),
    lifted=np.float32(2.0**24),
    lowered=np.float32(2.0**-24),
    exp=_SINGLE_EXP,
    exp_twice=_SINGLE_EXP.doubled(early=FUSED),
    flat=np.float32(53),
)
DOUBLE = Constants(
    lowest=-746.0,
    magic=1.5 * 2**52,
    lifted=2.0**54,
    lowered=2.0**-54,
    exp=_DOUBLE_EXP,
    exp_twice=_DOUBLE_EXP.doubled(),
    flat=374.0,
)


def _constants(x: Any) -> Any:
    """The constants of the dtype of x."""


def _bits(x: Any) -> Any:
    """The bits of x as an unsigned integer of its width."""


def _times_power(scale: Any, bits: Any) -> Any:
    """2^n `scale`, a normal number as `scale` is; n stands in the low bits of `bits`.

    The constant is a number's bits, as that of a sign is -0's: where LLVM does not know those
    (`simd.kept`), an instruction takes the whole vector from memory by itself.
    """


def _negative(x: Any) -> Any:
    """Whether the sign bit of x is set: a select by that bit needs no comparison."""


def _signed(value: Any, x: Any) -> Any:
    """`value` with its sign bit set where x has it set."""


def _magnitude(x: Any) -> Any:
    """|x|."""


def _expm1(x: Any, n: Any, by: Reduction) -> Any:
    """(exp(s r) - 1) / s of r = x - n ln 2 / s.

    The loops wait for chains of dependent steps: on Zen 3 a register of tanh takes 11.7 cycles, not
    12.9, if the tail does not wait for the low part of ln 2.  That is n / 60 ulp of 1 where it is
    what float32 leaves of ln 2, and the tail loses four tenths of it at most: tanh is as near as
    before, its slope has room for it, but sigmoid, whose n goes to -150, would be 2.1 ulp off.
    In float64 the low part is added last: a rounded r is four tenths of an ulp off for every x with
    n = 1 and r < -1/4, as chance has it for ln 2, and in float32 a sixteenth: there it would leave
    tanh 2.1 ulp off, here it does not.
    """


def _polynomial(c: Any, r: Any) -> Any:
    """Of the coefficients of `Reduction.tail`.

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


@implements(_times_power, numba.float32, exact=True)
def _single_times_power(scale, bits):
    return np.uint32(_bits(scale) + (bits << np.uint32(23))).view(np.float32)


@implements(_times_power, numba.float64, exact=True)
def _double_times_power(scale, bits):
    return np.uint64(_bits(scale) + (bits << np.uint64(52))).view(np.float64)


@implements(_negative, numba.float32, exact=True)
def _single_negative(x):
    return np.float32(x).view(np.int32) < 0


@implements(_negative, numba.float64, exact=True)
def _double_negative(x):
    return np.float64(x).view(np.int64) < 0


@implements(_signed, numba.float32, exact=True)
def _single_signed(value, x):
    return np.uint32(_bits(value) | (_bits(x) & _bits(kept(np.float32(-0.0))))).view(np.float32)


@implements(_signed, numba.float64, exact=True)
def _double_signed(value, x):
    return np.uint64(_bits(value) | (_bits(x) & _bits(kept(-0.0)))).view(np.float64)


@implements(_magnitude, numba.float32, exact=True)
def _single_magnitude(x):
    return np.uint32(_bits(x) & ~_bits(kept(np.float32(-0.0)))).view(np.float32)


@implements(_magnitude, numba.float64, exact=True)
def _double_magnitude(x):
    return np.uint64(_bits(x) & ~_bits(kept(-0.0))).view(np.float64)


@implements(_expm1, numba.float32, exact=True)
def _single_expm1(x, n, by):
    begun = fused(n, by.minus_ln2[0], x) if FUSED else x + n * by.minus_ln2[0]
    r = begun + n * by.minus_ln2[1]
    near = begun if by.early else r
    return r + near * near * _polynomial(by.tail, near)


@implements(_expm1, numba.float64, exact=True)
def _double_expm1(x, n, by):
    begun = x + n * by.minus_ln2[0]
    r = begun + n * by.minus_ln2[1]
    low = n * by.minus_ln2[1] + (begun - r)
    return r + (r * r * _polynomial(by.tail, r) + low)


@implements(_polynomial, numba.types.UniTuple(numba.float32, 6), exact=True)
def _single_polynomial(c, r):
    s = r * r
    return (c[0] + r * c[1]) + s * ((c[2] + r * c[3]) + s * (c[4] + r * c[5]))


@implements(_polynomial, numba.types.UniTuple(numba.float64, 11), exact=True)
def _double_polynomial(c, r):
    s = r * r
    low = (c[0] + r * c[1]) + s * (c[2] + r * c[3])
    high = (c[4] + r * c[5]) + s * (c[6] + r * c[7])
    return low + (s * s) * (high + (s * s) * ((c[8] + r * c[9]) + s * c[10]))


@kernel(part=True, exact=True, inlined=True)
def _reduced(x, by):
    """(expm1(s r) / s, a number whose bits end in those of n) with x = n ln 2 / s + r."""
    magic = _constants(x).magic
    shifted = x * by.log2_e + magic
    return _expm1(x, shifted - magic, by), shifted


@kernel(part=True, exact=True, inlined=True)
def _tanh(p, shifted):
    """(m, q) with tanh(a) = m - m q for a >= 0, from what `_reduced` makes of exp(2 a).

    With y = expm1(2 a) / 2 it is y / (1 + y); with m = min(y, 1) and q = m / (1 + y) the relative
    error of the quotient counts by min(y, 1 / y).  Tried in float32: to choose between
    x - x³ P / Q and 1 - 2 t / (1 + t), at most 1.5 ulp off, took a quarter longer, as selects need
    the ports of the FMAs; y / (1 + y) itself is up to 2.4 ulp off, and m - m² r, r = 1 / (1 + y),
    up to 2.1.
    """
    one, half = kept(type(p)(1)), kept(type(p)(0.5))
    power = _times_power(one, _bits(shifted))
    y = power * p + (power * half - half)
    m = y if y < one else one
    return m, m / (one + y)


@kernel(exact=True, inlined=True)
def tanh(x):
    """y / (1 + y) with y = expm1(2 |x|) / 2; within 1.9 ulp.  From |x| = 20 on the value is 1."""
    a, most = _magnitude(x), kept(type(x)(20))
    a = most if a > most else a  # in this order a NaN stays one
    m, q = _tanh(*_reduced(a, _constants(x).exp_twice))
    return _signed(m - m * q, x)


@kernel(exact=True, inlined=True)
def tanh_and_slope(x):
    """tanh(x), the same bits, and 1 / cosh(x)², within 3.8 ulp also where the value is 1.

    The slope is (1 - value) (1 + value), where 1 - value is q + (1 - m) (1 - q): nothing cancels.
    n stops at 64, where 1 + y is y, so that y does not overflow; the rest goes to the slope alone.
    """
    k, a, one = _constants(x), _magnitude(x), kept(type(x)(1))
    a = k.flat if a > k.flat else a  # in this order a NaN stays one, here and below
    p, shifted = _reduced(a, k.exp_twice)
    most = kept(type(x)(k.magic + type(x)(64)))
    near = most if shifted > most else shifted
    m, q = _tanh(p, near)
    value, other = m - m * q, q + (one - m) * (one - q)
    power = _times_power(one, _bits(near) - _bits(shifted))
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
    a = _signed(x, kept(type(x)(-0.0)))  # -|x|
    p, shifted = _reduced(k.lowest if a < k.lowest else a, k.exp)  # in this order a NaN stays one
    power = _times_power(k.lifted, _bits(shifted))
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
