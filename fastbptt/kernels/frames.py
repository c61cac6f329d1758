"""Orthonormal frames that ride along a product of Jacobians, and the triangular factor they leave.

P V = Q R with V (N,k) orthonormal: Q is the frame, stored as k rows; R = diag(2^e) U keeps its rows
scaled by exact powers of two, so that nothing overflows however long the product
(Benettin et al. 1980; Geist, Parlitz, Lauterborn 1990; spectral.md sections 1 and 6).
"""

import math

import numpy as np

from .jit import kernel
from .lines import line

EMPTY = -(2**62)  # the exponent of a row of zeros
_FAR_BELOW = 500  # powers of two


@kernel(part=True, inlined=True)
def _exponent(x):
    """n with 2^(n-1) <= |x| < 2^n, of a normal float64; no call of C's frexp."""
    return ((np.float64(x).view(np.int64) >> 52) & 2047) - 1022


@kernel(part=True, inlined=True)
def _power(n):
    """2^n for a normal float64."""
    return np.int64((n + 1023) << 52).view(np.float64)


@kernel(part=True, inlined=True)
def _scaled(x, n):
    """x 2^n for n from -2044 to 2046: beyond its range 0 or infinite; no call of C's ldexp."""
    half = n >> 1
    return x * _power(half) * _power(n - half)


@kernel(part=True, inlined=True)
def _four(m, i):
    """The rows m .. m+3, those from i on being i-1 once more."""
    return m, min(m + 1, i - 1), min(m + 2, i - 1), min(m + 3, i - 1)


@kernel(part=True, inlined=True)
def _project_out(frame, i, r, z):
    """Take from z, row i, what of it the rows before it span, and add that to column i of R.

    By four rows at a time, so that z is read once for them: one by one it took twice as long.
    """
    (k, N), nothing = frame.shape, frame.dtype.type(0)
    for m in range(0, i, 4):
        m0, m1, m2, m3 = _four(m, i)
        q0, q1 = line(frame, m0 * N, "state"), line(frame, m1 * N, "state")
        q2, q3 = line(frame, m2 * N, "state"), line(frame, m3 * N, "state")
        dot0, dot1, dot2, dot3 = nothing, nothing, nothing, nothing
        for j in range(N):
            dot0 += q0[j] * z[j]
            dot1 += q1[j] * z[j]
            dot2 += q2[j] * z[j]
            dot3 += q3[j] * z[j]
        row = i * k  # for a moment
        r[row + m0], r[row + m1] = np.float64(dot0), np.float64(dot1)
        r[row + m2], r[row + m3] = np.float64(dot2), np.float64(dot3)
    for m in range(0, i, 4):
        m0, m1, m2, m3 = _four(m, i)
        q0, q1 = line(frame, m0 * N, "state"), line(frame, m1 * N, "state")
        q2, q3 = line(frame, m2 * N, "state"), line(frame, m3 * N, "state")
        dot0 = frame.dtype.type(r[i * k + m])
        dot1 = frame.dtype.type(r[i * k + m1]) if m + 1 < i else nothing
        dot2 = frame.dtype.type(r[i * k + m2]) if m + 2 < i else nothing
        dot3 = frame.dtype.type(r[i * k + m3]) if m + 3 < i else nothing
        for j in range(N):
            z[j] -= (dot0 * q0[j] + dot1 * q1[j]) + (dot2 * q2[j] + dot3 * q3[j])
    for m in range(i):
        r[m * k + i] += r[i * k + m]
        r[i * k + m] = 0.0


@kernel(part=True)
def orthonormalise(frame, R, work):
    """frame (k,N) <- Q' and R (k,k) of frame' = Q R; R in float64, work (N,) in frame's dtype.

    By classical Gram-Schmidt done twice: twice is enough (Giraud, Langou, Rozloznik 2005), and its
    products do not wait for each other.
    A row that lies in the span of those before it to rounding becomes zero, as does its R_ii.
    """
    k, N = frame.shape
    number = frame.dtype.type
    tiny = N * np.finfo(frame.dtype).eps
    far = number(math.sqrt(np.finfo(frame.dtype).max))
    r, z = line(R, 0, "R"), line(work, 0, "work")
    # all rows at first: no sum waits for another's
    for i in range(k):
        y = line(frame, i * N, "state")
        square = number(0)
        for j in range(N):
            square += y[j] * y[j]
        exponent = (_exponent(square) + 1) >> 1
        if not (square < far and square * far > 1):
            size = 0.0
            for j in range(N):
                size = max(size, abs(np.float64(y[j])))
            # of float64 2^1024 is none: a row of larger numbers is scaled to less than 2
            exponent = min(math.frexp(size)[1], 1023)
        if -exponent < np.finfo(frame.dtype).maxexp:
            scale = number(_scaled(1.0, -exponent))
            for j in range(N):
                y[j] *= scale
        else:  # subnormal numbers alone: their scale would overflow
            for j in range(N):
                y[j] = number(math.ldexp(np.float64(y[j]), -exponent))
        r[i * k + i] = _scaled(1.0, exponent)
    for i in range(k):
        y, unscale = line(frame, i * N, "state"), r[i * k + i]
        for m in range(i):
            r[m * k + i] = 0.0
        for j in range(N):
            z[j] = y[j]
        for _ in range(2):
            _project_out(frame, i, r, z)
        square = number(0)
        for j in range(N):
            square += z[j] * z[j]
        norm = math.sqrt(square)
        if norm <= tiny:
            norm = number(0)
        inverse = number(1) / norm if norm > number(0) else norm * number(0)  # 0, or a NaN kept
        for j in range(N):
            y[j] = z[j] * inverse
        for m in range(i):
            r[m * k + i] *= unscale
        r[i * k + i] = norm * unscale


@kernel
def factorise(frame, R, work):
    """`orthonormalise`, for Python."""
    orthonormalise(frame, R, work)


@kernel(part=True)
def log_condition(R, x):
    """log of ||R|| ||R^-1||, R (k,k) upper triangular, or less, of the rows with R_ii > 0.

    Cline, Moler, Stewart, Wilkinson 1979: R x = a vector of +-1 whose signs make x large, x (k,).
    Of products far from normal it is large where all R_ii are alike.
    """
    k = R.shape[0]
    most, far = 0.0, 0.0
    for i in range(k - 1, -1, -1):
        x[i] = 0.0
        if R[i, i] > 0:
            total = 0.0
            for m in range(i, k):
                if R[m, m] > 0:
                    most = max(most, abs(R[i, m]))
                    total += R[i, m] * x[m]
            x[i] = -(total + math.copysign(1.0, total)) / R[i, i]
            far = max(far, abs(x[i]))
    return math.log(most) + math.log(far) if far > 0 else 0.0


@kernel(part=True)
def finite(matrix):
    """Whether all its numbers are finite."""
    total = nothing = matrix.dtype.type(0)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            total += matrix[i, j] * nothing
    return total == nothing


@kernel
def settle(frame, R, e, work, x):
    """`orthonormalise`, unless the frame is not finite, and how far its directions have grown.

    Returns (finite, most, spread, largest) in nats: |log R_ii| at most; `log_condition`; |log R_ii|
    at most of the directions that grew by a finite factor; of those with e > EMPTY.  x (k,) is
    work space.
    """
    k = frame.shape[0]
    if not finite(frame):
        return False, 0.0, 0.0, 0.0
    orthonormalise(frame, R, work)
    spread = log_condition(R, x)
    most, low, high = 0.0, math.inf, -math.inf
    for i in range(k):
        if e[i] > EMPTY:
            growth = math.log(abs(R[i, i])) if R[i, i] != 0 else -math.inf
            most = max(most, abs(growth))
            if math.isfinite(growth):
                low, high = min(low, growth), max(high, growth)
    if high < low:
        return True, most, 0.0, 0.0
    return True, most, spread, max(abs(low), abs(high))


@kernel
def multiply_factor(R, U, e, row):
    """`factor_times`, for Python."""
    factor_times(R, U, e, row)


@kernel(part=True)
def factor_times(R, U, e, row):
    """diag(2^e) U <- R diag(2^e) U for upper triangular R, U (k,k); row (k,) is work space."""
    k = R.shape[0]
    for i in range(k):
        top = EMPTY
        for m in range(i, k):
            if R[i, m] != 0 and e[m] > EMPTY:
                top = max(top, e[m] + _exponent(R[i, m]))
        for j in range(k):
            row[j] = 0
        for m in range(i, k):
            # What lies that far below `top` adds nothing but subnormal numbers, each of which takes
            # some processors 150 cycles.
            if R[i, m] != 0 and e[m] > EMPTY and e[m] + _exponent(R[i, m]) > top - _FAR_BELOW:
                weight = _scaled(R[i, m], e[m] - top)
                for j in range(m, k):
                    row[j] += weight * U[m, j]
        total = 0.0
        for j in range(i, k):
            total += abs(row[j])
        exponent = _exponent(total)
        for j in range(k):
            U[i, j] = _scaled(row[j], -exponent)
        e[i] = top + exponent if total != 0 else EMPTY


@kernel
def graded_singular_values(X, e, out):
    """out (N,) <- log2 of the singular values of diag(2^e) X, X (N,N) with rows of about 1.

    Jacobi rotations of the rows, each kept with an exponent of its own, so that small values keep
    their digits beside large ones however far apart (Demmel and Veselic 1992).  X and e are spent.
    """
    N = X.shape[0]
    for _ in range(60):
        off = 0.0
        for p in range(N - 1):
            for q in range(p + 1, N):
                i, j = (p, q) if e[p] >= e[q] else (q, p)
                if e[j] <= EMPTY:
                    continue
                d = max(e[j] - e[i], -500)
                a, b, c = 0.0, 0.0, 0.0
                for m in range(N):
                    a += X[i, m] * X[i, m]
                    b += X[j, m] * X[j, m]
                    c += X[i, m] * X[j, m]
                if not abs(c) > 1e-16 * N * math.sqrt(a * b):
                    continue
                off = max(off, abs(c) / math.sqrt(a * b))
                r = math.ldexp(1.0, d)  # row j is r times as large as X[j] says, beside row i
                z = (b * r * r - a) / (2 * c)  # r times the usual one
                # t = r / (z + sign(z) sqrt(r² + z²)): t of row j on row i, t / r the other way
                divisor = z + math.copysign(math.sqrt(r * r + z * z), z)
                t, s = r / divisor, 1 / divisor
                cosine = 1 / math.sqrt(1 + t * t)
                for m in range(N):
                    x, y = X[i, m], X[j, m]
                    X[i, m], X[j, m] = cosine * (x - t * r * y), cosine * (y + s * x)
                for row in (i, j):
                    largest = 0.0
                    for m in range(N):
                        largest = max(largest, abs(X[row, m]))
                    if largest == 0:
                        e[row] = EMPTY
                    elif largest < 0.25 or largest > 2:
                        shift = math.frexp(largest)[1]
                        scale = math.ldexp(1.0, -shift)
                        for m in range(N):
                            X[row, m] *= scale
                        e[row] += shift
        if off <= 1e-15 * N:
            break
    for i in range(N):
        square = 0.0
        for m in range(N):
            square += X[i, m] * X[i, m]
        empty = e[i] <= EMPTY or square == 0
        out[i] = -math.inf if empty else e[i] + 0.5 * math.log2(square)
