"""Matrices k x k in float64, their rows padded with zeros to `columns(k)`."""

import math

import numpy as np

from .jit import kernel
from .panels import packed, padded, panel_matmul
from .simd import VECTORS, lanes, rows

AT_ONCE = 4  # dot products of one row: they share its loads
_PANEL = VECTORS * lanes(np.float64)


def columns(k: int) -> int:
    """k rounded up, so that a row fills registers and groups of dot products."""
    return padded(-(-k // AT_ONCE) * AT_ONCE, np.float64)


@kernel(part=True)
def triangle(G, R):
    """R (k,k) upper triangular with R'R = G, of G symmetric; a row that G has lost becomes zero."""
    k = G.shape[0]
    top = 0.0
    for i in range(k):
        top = max(top, G[i, i])
    for i in range(k):
        for j in range(i):
            R[i, j] = 0
        pivot = G[i, i]
        for m in range(i):
            pivot -= R[m, i] * R[m, i]
        lost = pivot <= 4e-16 * k * G[i, i] or pivot <= 1e-300 * top
        root = 0.0 if lost else math.sqrt(pivot)
        R[i, i] = root
        for j in range(i + 1, k):
            total = G[i, j]
            for m in range(i):
                total -= R[m, i] * R[m, j]
            R[i, j] = total / root if not lost else 0.0


@kernel(part=True)
def largest_two(A):
    """The two largest singular values of A (k,columns), by Jacobi rotations of its rows.

    A is spent.  Hestenes 1958; Demmel and Veselic 1992 for its accuracy.
    """
    k, wide = A.shape
    for _ in range(30):
        off = 0.0
        for i in range(k - 1):
            for j in range(i + 1, k):
                a, b, c = 0.0, 0.0, 0.0
                for m in range(wide):
                    a += A[i, m] * A[i, m]
                    b += A[j, m] * A[j, m]
                    c += A[i, m] * A[j, m]
                # a value is off by the square of the angle that is left
                if c * c > 1e-18 * a * b and c != 0:
                    off = max(off, c * c / (a * b))
                    z = (b - a) / (2 * c)
                    t = math.copysign(1.0, z) / (abs(z) + math.sqrt(1 + z * z))
                    cosine = 1 / math.sqrt(1 + t * t)
                    sine = cosine * t
                    for m in range(wide):
                        x, y = A[i, m], A[j, m]
                        A[i, m], A[j, m] = cosine * x - sine * y, sine * x + cosine * y
        if off <= 1e-9:  # the rotations just made leave its square
            break
    first, second = 0.0, 0.0
    for i in range(k):
        square = 0.0
        for m in range(wide):
            square += A[i, m] * A[i, m]
        norm = math.sqrt(square)
        if not norm <= first:  # a NaN too, which `triangle` carries on to the last
            first, second = norm, first
        elif norm > second:
            second = norm
    return first, second


@kernel(part=True)
def times(A, B, zeros, C):
    """C = A B; zeros (columns,)."""
    k, wide = A.shape
    if wide <= _PANEL:  # then B as it lies is one packed panel
        c = rows(C, 0, wide)
        panel_matmul(rows(A, 0, wide), k, packed(B, 0, k), wide, rows(zeros, 0, 0), c)
        return
    for i in range(k):
        for j in range(wide):
            C[i, j] = 0
        for m in range(k):
            one = A[i, m]
            for j in range(wide):
                C[i, j] += one * B[m, j]


@kernel(part=True)
def multiply(A, B, zeros, C):
    """C = A B and the exponent by which C was scaled down."""
    times(A, B, zeros, C)
    k, wide = C.shape
    total = 0.0  # a sum and no maximum: that would not vectorise
    for i in range(k):
        for j in range(wide):
            total += abs(C[i, j])
    exponent = math.frexp(total)[1] if total > 0 else 0
    scale = math.ldexp(1.0, -exponent)
    for i in range(k):
        for j in range(wide):
            C[i, j] *= scale
    return exponent


@kernel(part=True)
def norm(A, zeros, scratch, squarings):
    """||A|| of A (k,columns) or a little less, by the power method; scratch (2,k,columns).

    With s squarings M = (AA')^(2^s) is applied to the axis of its largest diagonal element, which
    is trace(M) / k at least: no more than log(k) / 2^(s+1) nats are missing, as a rule a tenth.
    """
    k, wide = A.shape
    G, other = scratch[0], scratch[1]
    for i in range(k):
        for j in range(k):
            other[i, j] = A[j, i]
    times(A, other, zeros, G)
    trace = 0.0
    for i in range(k):
        trace += G[i, i]
    if trace == 0:
        return 0.0
    for i in range(k):
        for j in range(wide):
            G[i, j] /= trace  # then the largest value of G^64 is 1/k^64 at least: it stays in range
    for _ in range(squarings):
        times(G, G, zeros, other)
        G, other = other, G
    best = 0
    for i in range(k):
        if G[i, i] > G[best, best]:
            best = i
    square, energy = 0.0, 0.0
    for j in range(k):
        square += G[best, j] * G[best, j]
        other[0, j] = 0
    for i in range(k):
        one = G[best, i]
        for j in range(k):
            other[0, j] += one * A[i, j]
    for j in range(k):
        energy += other[0, j] * other[0, j]
    return math.sqrt(energy / square)


@kernel(part=True)
def copy(A, B):
    """B <- A, of one shape and any dtype; in registers, which an assignment of arrays is not."""
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            B[i, j] = A[i, j]


@kernel(part=True)
def solve(A, B):
    """B <- A^-1 B, A and B (k,columns), by elimination with row pivots; A is spent.

    Inf if A is singular.  Whole rows, zeros too: short loops of many lengths would be slower.
    """
    k, wide = A.shape
    for i in range(k):
        best = i
        for m in range(i + 1, k):
            if abs(A[m, i]) > abs(A[best, i]):
                best = m
        for j in range(wide):
            A[i, j], A[best, j] = A[best, j], A[i, j]
            B[i, j], B[best, j] = B[best, j], B[i, j]
        inverse = 1 / A[i, i]
        for m in range(i + 1, k):
            factor = A[m, i] * inverse
            for j in range(wide):
                A[m, j] -= factor * A[i, j]
                B[m, j] -= factor * B[i, j]
    for i in range(k - 1, -1, -1):
        inverse = 1 / A[i, i]
        for j in range(wide):
            B[i, j] *= inverse
        for m in range(i):
            factor = A[m, i]
            for j in range(wide):
                B[m, j] -= factor * B[i, j]


@kernel(part=True)
def inverse(R, out):
    """out = R^-1 of R (k,.) upper triangular; a column that R has lost becomes zero."""
    k = R.shape[0]
    for j in range(k):
        for i in range(k):
            out[i, j] = 0
        if R[j, j] != 0:
            out[j, j] = 1 / R[j, j]
            for i in range(j - 1, -1, -1):
                total = 0.0
                for m in range(i + 1, j + 1):
                    total += R[i, m] * out[m, j]
                out[i, j] = -total * out[i, i]
