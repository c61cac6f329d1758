"""Norms of small factors: of every state along a block, of every window between two passes.

All matrices are k x k, float64, their rows padded with zeros to `columns(k)` (spectral.md sections
1 and 3).
"""

import math
from typing import NamedTuple

import numpy as np

from .frames import EMPTY
from .jit import kernel
from .panels import padded, panel_matmul
from .simd import VECTORS, lanes, rows

_AT_ONCE = 4  # dot products of one row: they share its loads
_LANES = lanes(np.float64)
_PANEL = VECTORS * _LANES


def columns(k: int) -> int:
    """k rounded up, so that a row fills registers and groups of dot products."""
    return padded(-(-k // _AT_ONCE) * _AT_ONCE, np.float64)


@kernel
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


@kernel
def largest_two(A):
    """The two largest singular values of A (k,k), by Jacobi rotations of its columns; A is spent.

    Hestenes 1958; Demmel and Veselic 1992 for its accuracy.
    """
    k = A.shape[0]
    for _ in range(30):
        off = 0.0
        for i in range(k - 1):
            for j in range(i + 1, k):
                a, b, c = 0.0, 0.0, 0.0
                for m in range(k):
                    a += A[m, i] * A[m, i]
                    b += A[m, j] * A[m, j]
                    c += A[m, i] * A[m, j]
                # a value is off by the square of the angle that is left
                if c * c > 1e-18 * a * b and c != 0:
                    off = max(off, c * c / (a * b))
                    z = (b - a) / (2 * c)
                    t = math.copysign(1.0, z) / (abs(z) + math.sqrt(1 + z * z))
                    cosine = 1 / math.sqrt(1 + t * t)
                    sine = cosine * t
                    for m in range(k):
                        x, y = A[m, i], A[m, j]
                        A[m, i], A[m, j] = cosine * x - sine * y, sine * x + cosine * y
        if off <= 1e-9:  # the rotations just made leave its square
            break
    first, second = 0.0, 0.0
    for j in range(k):
        square = 0.0
        for m in range(k):
            square += A[m, j] * A[m, j]
        norm = math.sqrt(square)
        if not norm <= first:  # a NaN too
            first, second = norm, first
        elif norm > second:
            second = norm
    return first, second


@kernel
def _times(A, B, zeros, C):
    """C = A B; zeros (columns,)."""
    k, wide = A.shape
    if wide <= _PANEL:  # then B as it lies is one packed panel
        c = rows(C, 0, wide)
        panel_matmul(rows(A, 0, wide), k, rows(B, 0, 0), k, _LANES, wide, rows(zeros, 0, 0), c)
        return
    for i in range(k):
        for j in range(wide):
            C[i, j] = 0
        for m in range(k):
            one = A[i, m]
            for j in range(wide):
                C[i, j] += one * B[m, j]


@kernel
def _multiply(A, B, zeros, C):
    """C = A B and the exponent by which C was scaled down."""
    _times(A, B, zeros, C)
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


@kernel
def _norm(A, zeros, scratch, squarings):
    """||A|| of A (k,columns) or a little less, by the power method; scratch (2,k,columns).

    With 6 squarings it is (AA')^64 that is applied, and no more than 2e-3 is missing; with 3, 2e-2.
    """
    k, wide = A.shape
    G, other = scratch[0], scratch[1]
    for i in range(k):
        for j in range(k):
            other[i, j] = A[j, i]
    _times(A, other, zeros, G)
    trace = 0.0
    for i in range(k):
        trace += G[i, i]
    if trace == 0:
        return 0.0
    for i in range(k):
        for j in range(wide):
            G[i, j] /= trace  # then the largest value of G^64 is 1/k^64 at least: it stays in range
    for _ in range(squarings):
        _times(G, G, zeros, other)
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


@kernel
def _widen(A, wide):
    """wide (columns,N) <- A (k,N) in float64."""
    k, N = A.shape
    for i in range(k):
        for m in range(N):
            wide[i, m] = A[i, m]


@kernel
def _dots(a, b, symmetric, C):
    """C (k,columns) = a b' of a and b (columns,N); of a symmetric one what `triangle` reads."""
    k, N = C.shape[0], a.shape[1]
    for i in range(0, k, 2):  # two rows share what is read of b
        below = min(i + 1, k - 1)
        first = i // _AT_ONCE * _AT_ONCE if symmetric else 0
        for j in range(first, k, _AT_ONCE):
            c0, c1, c2, c3 = 0.0, 0.0, 0.0, 0.0
            d0, d1, d2, d3 = 0.0, 0.0, 0.0, 0.0
            for m in range(N):
                one, other = a[i, m], a[below, m]
                c0 += one * b[j, m]
                c1 += one * b[j + 1, m]
                c2 += one * b[j + 2, m]
                c3 += one * b[j + 3, m]
                d0 += other * b[j, m]
                d1 += other * b[j + 1, m]
                d2 += other * b[j + 2, m]
                d3 += other * b[j + 3, m]
            C[i, j], C[i, j + 1], C[i, j + 2], C[i, j + 3] = c0, c1, c2, c3
            C[below, j], C[below, j + 1], C[below, j + 2], C[below, j + 3] = d0, d1, d2, d3


@kernel(allocates=True)
def gram(A, G, shifts):
    """4^shifts[t] G[t] (k,columns) = A[t] A[t]' in float64, its upper half, of A (n,k,N).

    Shifts are 0 but where squares leave the range of float64.
    """
    _gram(A, G, shifts, np.zeros((G.shape[2], A.shape[2])))


@kernel
def _gram(A, G, shifts, wide):
    """`gram`; wide (columns,N), its last rows zeros, is work space."""
    k = A.shape[1]
    least = np.finfo(np.float64).tiny / np.finfo(np.float64).eps
    for t in range(A.shape[0]):
        _widen(A[t], wide)
        _dots(wide, wide, True, G[t])
        shifts[t] = 0
        inside = True
        for i in range(k):
            inside = inside and least < G[t, i, i] < math.inf
        if not inside:
            largest = 0.0
            for i in range(k):
                for j in range(A.shape[2]):
                    largest = max(largest, abs(wide[i, j]))
            shifts[t] = max(math.frexp(largest)[1], -1000)  # a larger scale would overflow
            scale = math.ldexp(1.0, -shifts[t])
            for i in range(k):
                for j in range(A.shape[2]):
                    wide[i, j] *= scale
            _dots(wide, wide, True, G[t])


@kernel(allocates=True)
def history_norms(G, shifts, U, e, R0, out):
    """out (T,3) <- log ||R_t F||, log ||R_t F R0|| and s2/s1, F = diag(2^e) U, R_t'R_t = 4^s_t G_t.

    G (T,k,columns) and shifts s (T,) as `gram` leaves them; e as `multiply_factor` leaves it.
    """
    _, k, wide = G.shape
    _history_norms(G, shifts, U, e, R0, out, np.zeros((4, k, wide)), np.zeros(wide))


@kernel
def _history_norms(G, shifts, U, e, R0, out, work, zeros):
    """`history_norms`; work (4,k,columns), all zeros."""
    T, k, _ = G.shape
    F, FR0, R, A = work[0], work[1], work[2], work[3]
    top = EMPTY
    for i in range(k):
        top = max(top, e[i])
    for i in range(k):
        scale = math.ldexp(1.0, max(e[i] - top, -4000)) if top > EMPTY else 0.0
        for j in range(k):
            F[i, j] = U[i, j] * scale if scale > 0 else 0.0
    for i in range(k):
        for j in range(k):
            A[i, j] = R0[i, j]
    shift = _multiply(F, A, zeros, FR0)
    nats = math.log(2.0) * (top if top > EMPTY else 0)
    for t in range(T):
        triangle(G[t], R)
        up = _multiply(R, F, zeros, A) + shifts[t]
        first, second = largest_two(A)
        out[t, 0] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf
        out[t, 2] = second / first if first > 0 else 1.0
        up = _multiply(R, FR0, zeros, A) + shift + shifts[t]
        first, _ = largest_two(A)
        out[t, 1] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf


@kernel
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


@kernel
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


@kernel(allocates=True)
def meet(first, later, g, begin, pulled, h, at, R_v, R_v_inverse, ends):
    """What two frames leave at n states where windows begin, s the first (spectral.md 3).

    first (k,N): the forward frame, orthonormal, `begin` states before s; later (.,.,k,N), group g:
    at the states after it; pulled (.,.,k,N), group h: the reverse frame, at s + i in place at - i.
    R_v_inverse[i] <- R^-1 at s + i; ends[i] <- (U V')^-1 R_u'; R_v[i] <- R at s + i + 1.
    """
    _, k, wide = ends.shape
    frames, work = np.zeros((2, wide, first.shape[1])), np.zeros((3, k, wide))
    _meet(first, later, g, begin, pulled, h, at, R_v, R_v_inverse, ends, frames, work)


@kernel
def _meet(first, later, g, begin, pulled, h, at, R_v, R_v_inverse, ends, frames, work):
    """`meet`; frames (2,columns,N) and work (3,k,columns), all zeros."""
    n, k, _ = ends.shape
    forward, reverse = frames[0], frames[1]
    G, R, C = work[0], work[1], work[2]
    for i in range(-1, n):
        if begin + i >= 0:
            _widen(later[begin + i, g], forward)
            _dots(forward, forward, True, G)
            triangle(G, R)
        else:
            _widen(first, forward)
            for j in range(k):
                R[j, j] = 1
        if i >= 0:
            for j in range(k):
                for m in range(k):
                    R_v[i, j, m] = R[j, m]
        if i + 1 < n:
            inverse(R, R_v_inverse[i + 1])
            _widen(pulled[at - i - 1, h], reverse)
            _dots(reverse, forward, False, C)
            _dots(reverse, reverse, True, G)
            triangle(G, R)
            for j in range(k):
                for m in range(k):
                    ends[i + 1, j, m] = R[m, j]
            solve(C, ends[i + 1])


class Windows(NamedTuple):
    """What the frames of two passes leave for the norms of windows, k x columns each."""

    R_v: np.ndarray  # (T+1,.): R of the frame pushed to t, in the stretch that t ends or is in
    R_v_inverse: np.ndarray  # (T+1,.): of R in the stretch that t begins or is in
    ends: np.ndarray  # (T+1,.): (L_s' Q_s)^-1 R_u'
    D: np.ndarray  # (G,.), times 2^shifts: D[i] takes the frame of stretch i - 1 to that of i
    shifts: np.ndarray  # (G,)
    stretch: np.ndarray  # (T+1,2): that of t as the end of a window and as the beginning of one


@kernel(allocates=True)
def window_norms(w, lag, s0, out):
    """out (n,2) <- log norms of the windows (s, s+lag), s = s0 on: on the frame, and of all of P.

    The product of the D between is kept as a queue of two stacks (Tangwongsan, Hirzel, Schneider).
    """
    k, wide = w.R_v.shape[1:]
    count = w.D.shape[0] + 1
    back, exponents = np.zeros((count, k, wide)), np.zeros(count, np.int64)
    _window_norms(w, lag, s0, out, back, exponents, np.zeros((7, k, wide)), np.zeros(wide))


@kernel
def _copy(A, B):
    """B <- A, of one shape."""
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            B[i, j] = A[i, j]


@kernel
def _window_norms(w, lag, s0, out, back, exponents, work, zeros):
    """`window_norms`; back (G+1,k,columns), exponents (G+1,) and work (7,k,columns), all zeros."""
    identity, front, middle, A, joint, scratch = (
        work[0],
        work[1],
        work[2],
        work[3],
        work[4],
        work[5:],
    )
    for i in range(identity.shape[0]):
        identity[i, i] = front[i, i] = 1
    between, moved, front_exponent = 0, True, 0
    # `back` holds products for beginnings head .. bound; w.D[tail] is next
    bound = head = tail = w.stretch[s0, 1]
    _copy(identity, back[head])
    for i in range(out.shape[0]):
        s = s0 + i
        t = s + lag
        while tail < w.stretch[t, 0]:  # D[tail + 1] from the left
            front_exponent += _multiply(w.D[tail + 1], front, zeros, A) + w.shifts[tail + 1]
            _copy(A, front)
            tail += 1
            moved = True
        while head < w.stretch[s, 1]:
            head += 1
            moved = True
            if head > bound:  # the old stack is used up: make one of all that is left
                _copy(identity, back[tail])
                exponents[tail] = 0
                for m in range(tail - 1, head - 1, -1):
                    up = _multiply(back[m + 1], w.D[m + 1], zeros, back[m])
                    exponents[m] = exponents[m + 1] + up + w.shifts[m + 1]
                bound = tail
                _copy(identity, front)
                front_exponent = 0
        if moved:
            up = _multiply(front, back[head], zeros, joint)
            between = up + exponents[head] + front_exponent
            moved = False
        nats = between + _multiply(w.R_v[t], joint, zeros, middle)
        up = _multiply(middle, w.ends[s], zeros, A)
        first = _norm(A, zeros, scratch, 6)
        out[i, 1] = (nats + up) * math.log(2.0) + math.log(first) if first != 0 else -math.inf
        _times(middle, w.R_v_inverse[s], zeros, A)
        first = _norm(A, zeros, scratch, 3)  # any vector gives a lower bound
        out[i, 0] = nats * math.log(2.0) + math.log(first) if first != 0 else -math.inf
