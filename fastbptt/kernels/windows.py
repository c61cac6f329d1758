"""Norms of small factors: of every state along a block, of every window between two passes.

All matrices are k x k, float64 (spectral.md sections 1 and 3).
"""

import math
from typing import NamedTuple

import numpy as np

from .frames import EMPTY
from .jit import kernel


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
def _multiply(A, B, C):
    """C = A B and the exponent by which C was scaled down."""
    k = A.shape[0]
    for i in range(k):
        for j in range(k):
            C[i, j] = 0
        for m in range(k):
            one = A[i, m]
            for j in range(k):  # along rows: this loop is one register wide
                C[i, j] += one * B[m, j]
    largest = 0.0
    for i in range(k):
        for j in range(k):
            largest = max(largest, abs(C[i, j]))
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    scale = math.ldexp(1.0, -exponent)
    for i in range(k):
        for j in range(k):
            C[i, j] *= scale
    return exponent


@kernel
def _norm(A, G, work, squarings):
    """||A|| of A (k,k) or a little less, by the power method; G and work are scratch.

    With 6 squarings it is (A'A)^64 that is applied, and no more than 2e-3 is missing; with 3, 2e-2.
    For one value it takes half the time of `largest_two`.
    """
    k = A.shape[0]
    for i in range(k):
        for j in range(k):
            G[i, j] = 0
    for m in range(k):
        for i in range(k):
            one = A[m, i]
            for j in range(k):
                G[i, j] += one * A[m, j]
    for _ in range(squarings):
        trace = 0.0
        for i in range(k):
            trace += G[i, i]
        if trace == 0:
            return 0.0
        scale = 1 / trace
        for i in range(k):
            for j in range(k):
                work[i, j] = G[i, j] * scale
        for i in range(k):
            for j in range(k):
                G[i, j] = 0
            for m in range(k):
                one = work[i, m]
                for j in range(k):
                    G[i, j] += one * work[m, j]
    best = 0
    for i in range(k):
        if G[i, i] > G[best, best]:
            best = i
    square, energy = 0.0, 0.0
    for j in range(k):
        square += G[best, j] * G[best, j]
    for i in range(k):
        total = 0.0
        for j in range(k):
            total += A[i, j] * G[best, j]
        energy += total * total
    return math.sqrt(energy / square)


@kernel
def products(A, B, C):
    """C[t] = A[t] B[t]' in float64, A and B (n,k,N)."""
    n, k, N = A.shape
    wide = np.empty((2, k, N))
    for t in range(n):
        for i in range(k):
            for m in range(N):
                wide[0, i, m] = A[t, i, m]
                wide[1, i, m] = B[t, i, m]
        for i in range(k):
            for j in range(k):
                total = 0.0
                for m in range(N):
                    total += wide[0, i, m] * wide[1, j, m]
                C[t, i, j] = total


@kernel
def history_norms(G, U, e, R0, out):
    """out (T,3) <- log ||R_t F||, log ||R_t F R0|| and s2/s1, F = diag(2^e) U, R_t'R_t = G_t.

    G (T,k,k); e as `multiply_factor` leaves it.
    """
    T, k = G.shape[0], G.shape[1]
    F, FR0, R, A = np.empty((k, k)), np.empty((k, k)), np.empty((k, k)), np.empty((k, k))
    top = EMPTY
    for i in range(k):
        top = max(top, e[i])
    for i in range(k):
        scale = math.ldexp(1.0, max(e[i] - top, -4000)) if top > EMPTY else 0.0
        for j in range(k):
            F[i, j] = U[i, j] * scale if scale > 0 else 0.0
    shift = _multiply(F, R0, FR0)
    nats = math.log(2.0) * (top if top > EMPTY else 0)
    for t in range(T):
        triangle(G[t], R)
        up = _multiply(R, F, A)
        first, second = largest_two(A)
        out[t, 0] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf
        out[t, 2] = second / first if first > 0 else 1.0
        up = _multiply(R, FR0, A) + shift
        first, _ = largest_two(A)
        out[t, 1] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf


@kernel
def solve(A, B):
    """B <- A^-1 B, A and B (k,k), by elimination with row pivots; A is spent.  Inf if singular."""
    k = A.shape[0]
    for i in range(k):
        best = i
        for m in range(i + 1, k):
            if abs(A[m, i]) > abs(A[best, i]):
                best = m
        for j in range(k):
            A[i, j], A[best, j] = A[best, j], A[i, j]
            B[i, j], B[best, j] = B[best, j], B[i, j]
        inverse = 1 / A[i, i]
        for m in range(i + 1, k):
            factor = A[m, i] * inverse
            for j in range(i, k):
                A[m, j] -= factor * A[i, j]
            for j in range(k):
                B[m, j] -= factor * B[i, j]
    for i in range(k - 1, -1, -1):
        for j in range(k):
            total = B[i, j]
            for m in range(i + 1, k):
                total -= A[i, m] * B[m, j]
            B[i, j] = total / A[i, i]


@kernel
def ends_of_windows(G_v, C, G_u, R_v, ends):
    """R_v with R_v'R_v = G_v; ends <- C^-1 R_u', R_u'R_u = G_u (spectral.md 3); all (n,k,k)."""
    n, k = G_v.shape[0], G_v.shape[1]
    R = np.empty((k, k))
    for t in range(n):
        triangle(G_v[t], R_v[t])
        triangle(G_u[t], R)
        for i in range(k):
            for j in range(k):
                ends[t, i, j] = R[j, i]
        solve(C[t], ends[t])


class Windows(NamedTuple):
    """What the frames of two passes leave for the norms of windows, k x k each."""

    R_v: np.ndarray  # (T+1,k,k): R of the frame pushed to t, in the stretch that t ends or is in
    R_s: np.ndarray  # (T+1,k,k): the same in the stretch that t begins or is in
    ends: np.ndarray  # (T+1,k,k): (L_s' Q_s)^-1 R_u'
    D: np.ndarray  # (G,k,k), times 2^shifts: D[i] takes the frame of stretch i - 1 to that of i
    shifts: np.ndarray  # (G,)
    stretch: np.ndarray  # (T+1,2): that of t as the end of a window and as the beginning of one


@kernel
def window_norms(w, lag, s0, out):
    """out (n,2) <- log norms of the windows (s, s+lag), s = s0 on: on the frame, and of all of P.

    The product of the D between is kept as a queue of two stacks (Tangwongsan, Hirzel, Schneider).
    """
    k = w.R_v.shape[1]
    count = w.D.shape[0]
    back, exponents = np.empty((count + 1, k, k)), np.zeros(count + 1, np.int64)
    front, middle, A = np.eye(k), np.empty((k, k)), np.empty((k, k))
    G, work = np.empty((k, k)), np.empty((k, k))
    joint, between, moved = np.empty((k, k)), 0, True
    front_exponent = 0
    bound = head = tail = w.stretch[
        s0, 1
    ]  # `back` holds products for beginnings head .. bound; w.D[tail] next
    back[head] = np.eye(k)
    for i in range(out.shape[0]):
        s = s0 + i
        t = s + lag
        while tail < w.stretch[t, 0]:  # D[tail + 1] from the left
            front_exponent += _multiply(w.D[tail + 1], front, A) + w.shifts[tail + 1]
            front[:] = A
            tail += 1
            moved = True
        while head < w.stretch[s, 1]:
            head += 1
            moved = True
            if head > bound:  # the old stack is used up: make one of all that is left
                back[tail] = np.eye(k)
                exponents[tail] = 0
                for m in range(tail - 1, head - 1, -1):
                    up = _multiply(back[m + 1], w.D[m + 1], back[m])
                    exponents[m] = exponents[m + 1] + up + w.shifts[m + 1]
                bound = tail
                front[:] = np.eye(k)
                front_exponent = 0
        if moved:
            between = _multiply(front, back[head], joint) + exponents[head] + front_exponent
            moved = False
        nats = between + _multiply(w.R_v[t], joint, middle)
        up = _multiply(middle, w.ends[s], A)
        first = _norm(A, G, work, 6)
        out[i, 1] = (nats + up) * math.log(2.0) + math.log(first) if first != 0 else -math.inf
        # on the frame alone: middle R_s^-1, by columns from the left
        for r in range(k):
            for j in range(k):
                total = middle[r, j]
                for m in range(j):
                    total -= A[r, m] * w.R_s[s, m, j]
                A[r, j] = total / w.R_s[s, j, j] if w.R_s[s, j, j] != 0 else 0.0
        first = _norm(A, G, work, 3)  # any vector gives a lower bound
        out[i, 0] = nats * math.log(2.0) + math.log(first) if first != 0 else -math.inf
