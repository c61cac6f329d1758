"""Orthonormal frames that ride along a product of Jacobians, and the triangular factor they leave.

P V = Q R with V (N,k) orthonormal: Q is the frame, stored as k rows; R = diag(2^e) U keeps its rows
scaled by exact powers of two, so that nothing overflows however long the product
(Benettin et al. 1980; Geist, Parlitz, Lauterborn 1990; spectral.md sections 1 and 6).
"""

import math

import numpy as np

from .jit import kernel

EMPTY = -(2**62)  # the exponent of a row of zeros


@kernel
def orthonormalise(frame, R):
    """frame (k,N) <- Q' and R (k,k) of frame' = Q R, by Gram-Schmidt done twice; R float64.

    A row that lies in the span of those before it to rounding becomes zero, as does its R_ii.
    """
    k, N = frame.shape
    number = frame.dtype.type
    tiny = N * np.finfo(frame.dtype).eps
    for i in range(k):
        for m in range(k):
            R[m, i] = 0
        energy = 0.0  # in float64: float32 squares overflow from 2^64 on
        for j in range(N):
            energy += np.float64(frame[i, j]) * np.float64(frame[i, j])
        exponent = math.frexp(math.sqrt(energy))[1]
        scale = number(math.ldexp(1.0, -exponent))
        for j in range(N):
            frame[i, j] *= scale
        for _ in range(2):
            for m in range(i):
                dot = number(0)
                for j in range(N):
                    dot += frame[m, j] * frame[i, j]
                for j in range(N):
                    frame[i, j] -= dot * frame[m, j]
                R[m, i] += dot
        square = number(0)
        for j in range(N):
            square += frame[i, j] * frame[i, j]
        norm = math.sqrt(square)
        if norm <= tiny:
            norm = number(0)
        inverse = number(1) / norm if norm > number(0) else norm * number(0)  # 0, or a NaN kept
        for j in range(N):
            frame[i, j] *= inverse
        R[i, i] = norm
        unscale = math.ldexp(1.0, exponent)
        for m in range(i + 1):
            R[m, i] *= unscale


@kernel
def multiply_factor(R, U, e, row):
    """diag(2^e) U <- R diag(2^e) U for upper triangular R, U (k,k); row (k,) is work space."""
    k = R.shape[0]
    for i in range(k):
        top = EMPTY
        for m in range(i, k):
            if R[i, m] != 0 and e[m] > EMPTY:
                top = max(top, e[m] + math.frexp(R[i, m])[1])
        for j in range(k):
            row[j] = 0
        for m in range(i, k):
            if e[m] > EMPTY:
                shift = max(e[m] - top, -4000)  # below every double: so little adds nothing
                weight = math.ldexp(R[i, m], shift)
                for j in range(m, k):
                    row[j] += weight * U[m, j]
        total = 0.0
        for j in range(i, k):
            total += abs(row[j])
        exponent = math.frexp(total)[1]
        scale = math.ldexp(1.0, -exponent)
        for j in range(k):
            U[i, j] = row[j] * scale
        e[i] = top + exponent if total != 0 else EMPTY


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
                if abs(c) > 1e-15 * math.sqrt(a * b) and c != 0:
                    off = max(off, abs(c) / math.sqrt(a * b))
                    z = (b - a) / (2 * c)
                    t = math.copysign(1.0, z) / (abs(z) + math.sqrt(1 + z * z))
                    cosine = 1 / math.sqrt(1 + t * t)
                    sine = cosine * t
                    for m in range(k):
                        x, y = A[m, i], A[m, j]
                        A[m, i], A[m, j] = cosine * x - sine * y, sine * x + cosine * y
        if off <= 1e-14:
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
    largest = 0.0
    for i in range(k):
        for j in range(k):
            total = 0.0
            for m in range(k):
                total += A[i, m] * B[m, j]
            C[i, j] = total
            largest = max(largest, abs(total))
    exponent = math.frexp(largest)[1] if largest > 0 else 0
    scale = math.ldexp(1.0, -exponent)
    for i in range(k):
        for j in range(k):
            C[i, j] *= scale
    return exponent


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


@kernel
def window_norms(R_v, R_s, ends, D, shifts, stretch, lag, out):
    """out (T+1-lag,2) <- log norms of all windows (s, s+lag): on the frame at s, and of all of P.

    R_v (T+1,k,k) of the frame pushed to t, R_s the same at the beginning of its stretch; D (G,k,k)
    with exponents `shifts`: the factors between stretches; stretch (T+1,2): that of t as an end and
    as a beginning.  The product of the D between is kept as a queue of two stacks
    (Tangwongsan, Hirzel and Schneider).
    """
    k = R_v.shape[1]
    G = D.shape[0]
    back, exponents = np.empty((G + 1, k, k)), np.zeros(G + 1, np.int64)
    front, middle, A = np.eye(k), np.empty((k, k)), np.empty((k, k))
    front_exponent = 0
    bound, head, tail = 0, 0, 0  # `back` holds products for beginnings head .. bound; D[tail] next
    back[0] = np.eye(k)
    for s in range(out.shape[0]):
        t = s + lag
        while tail < stretch[t, 0]:  # append D[tail + 1], from the left
            front_exponent += _multiply(D[tail + 1], front, A) + shifts[tail + 1]
            front[:] = A
            tail += 1
        while head < stretch[s, 1]:
            head += 1
            if head > bound:  # the old stack is used up: make one of all that is left
                back[tail] = np.eye(k)
                exponents[tail] = 0
                for m in range(tail - 1, head - 1, -1):
                    up = _multiply(back[m + 1], D[m + 1], back[m])
                    exponents[m] = exponents[m + 1] + up + shifts[m + 1]
                bound = tail
                front[:] = np.eye(k)
                front_exponent = 0
        nats = _multiply(front, back[head], middle) + exponents[head] + front_exponent
        nats += _multiply(R_v[t], middle, A)
        middle[:] = A
        up = _multiply(middle, ends[s], A)
        first, _ = largest_two(A)
        out[s, 1] = (nats + up) * math.log(2.0) + math.log(first) if first != 0 else -math.inf
        # on the frame alone: middle R_s^-1, by columns from the left
        for i in range(k):
            for j in range(k):
                total = middle[i, j]
                for m in range(j):
                    total -= A[i, m] * R_s[s, m, j]
                A[i, j] = total / R_s[s, j, j] if R_s[s, j, j] != 0 else 0.0
        first, _ = largest_two(A)
        out[s, 0] = nats * math.log(2.0) + math.log(first) if first != 0 else -math.inf


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
