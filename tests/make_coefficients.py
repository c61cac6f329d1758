"""Makes the coefficients in fastbptt/kernels/elementary.py: `python tests/make_coefficients.py`.

Remez's exchange algorithm in 60 digits: Muller, Elementary Functions (3rd ed. 2016), chapter 3.
"""

import mpmath as mp
import numpy as np

DIGITS = 60
GRID = 400  # points among which the extrema of the error are sought

# Bits of the high part of ln 2: with the bits of the largest n they fit into a significand, so
# that n times it is exact, Cody & Waite, Software Manual for the Elementary Functions (1980); or
# all of float32's, where an instruction multiplies and adds and rounds once.
HIGH_BITS = {np.float32: 15, np.float64: 41}
FUSED_BITS = 24
# The least degrees that add less than 1/20 ulp to a result.
EXPM1 = {np.float32: 4, np.float64: 9}


def tail(r):
    """(exp(r) - 1 - r - r²/2) / r³, by its series: nothing cancels."""
    return mp.nsum(lambda k: r**k / mp.factorial(k + 3), [0, mp.inf], method="direct")


def remez(f, low, high, degree):
    """The polynomial of least largest error, constant term first."""
    count = degree + 2
    nodes = [mp.cos(mp.pi * k / (count - 1)) for k in range(count)]
    points = [(low + high - (high - low) * node) / 2 for node in nodes]
    grid = [low + (high - low) * mp.mpf(k) / GRID for k in range(GRID + 1)]
    values = [f(x) for x in grid]
    while True:
        rows = [[x**i for i in range(degree + 1)] + [(-1) ** k] for k, x in enumerate(points)]
        *P, level = mp.lu_solve(mp.matrix(rows), mp.matrix([f(x) for x in points]))
        errors = [mp.polyval(P[::-1], x) - value for x, value in zip(grid, values, strict=True)]
        worst = max(map(abs, errors))
        if worst < abs(level) * mp.mpf("1.001"):
            return P
        points = _extrema(grid, errors)


def _extrema(grid, errors):
    """The grid point of the largest error between each two changes of its sign."""
    best = [0]
    for k in range(1, len(grid)):
        if mp.sign(errors[k]) != mp.sign(errors[best[-1]]):
            best.append(k)
        elif abs(errors[k]) > abs(errors[best[-1]]):
            best[-1] = k
    return [grid[k] for k in best]


def minus_ln2(dtype, bits):
    """(high, low) of -ln 2 with so many bits of the high part."""
    with mp.workdps(DIGITS):
        scale = mp.mpf(2) ** bits
        high = mp.nint(mp.log(2) * scale) / scale
        return dtype(-high), dtype(high - mp.log(2))


def coefficients(dtype):
    """{field of elementary.Reduction: value}, those of exp(x)."""
    with mp.workdps(DIGITS):
        # Rounding x / ln 2 moves the ends of the reduced range by far less than a thousandth.
        end = mp.log(2) / 2 * mp.mpf("1.001")
        expm1 = remez(tail, -end, end, EXPM1[dtype])
        return {
            "log2_e": dtype(1 / mp.log(2)),
            "minus_ln2": minus_ln2(dtype, HIGH_BITS[dtype]),
            "tail": tuple(map(dtype, (0.5, *expm1))),
        }


def main():
    for name, dtype in (("SINGLE", np.float32), ("DOUBLE", np.float64)):
        print(name)
        for field, value in coefficients(dtype).items():
            print(f"    {field}: " + ", ".join(map(str, np.atleast_1d(value))))
    print("    minus_ln2, fused:", *minus_ln2(np.float32, FUSED_BITS))


if __name__ == "__main__":
    main()
