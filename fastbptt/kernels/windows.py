"""Norms of small factors: of every state along a block, of every window between two passes.

All matrices are those of `small` (spectral.md sections 1 and 3).
"""

import math
from typing import NamedTuple

import numpy as np

from .frames import EMPTY, finite, log_condition
from .jit import kernel
from .small import AT_ONCE, copy, inverse, largest_two, multiply, norm, solve, times, triangle


@kernel(part=True)
def _widen(A, wide):
    """wide (columns,N) <- A (k,N) in float64."""
    k, N = A.shape
    for i in range(k):
        for m in range(N):
            wide[i, m] = A[i, m]


@kernel(part=True)
def _squares(a, C):
    """C (k,columns) = a a' of a (columns,N): what `triangle` reads of it."""
    k, N = C.shape[0], a.shape[1]
    for i in range(0, k, 2):  # two rows share what is read of the others
        below = min(i + 1, k - 1)
        for j in range(i // AT_ONCE * AT_ONCE, k, AT_ONCE):
            c0, c1, c2, c3 = 0.0, 0.0, 0.0, 0.0
            d0, d1, d2, d3 = 0.0, 0.0, 0.0, 0.0
            for m in range(N):
                one, other = a[i, m], a[below, m]
                c0 += one * a[j, m]
                c1 += one * a[j + 1, m]
                c2 += one * a[j + 2, m]
                c3 += one * a[j + 3, m]
                d0 += other * a[j, m]
                d1 += other * a[j + 1, m]
                d2 += other * a[j + 2, m]
                d3 += other * a[j + 3, m]
            C[i, j], C[i, j + 1], C[i, j + 2], C[i, j + 3] = c0, c1, c2, c3
            C[below, j], C[below, j + 1], C[below, j + 2], C[below, j + 3] = d0, d1, d2, d3


@kernel(allocates=True)
def gram(A, G, shifts):
    """4^shifts[t] G[t] (k,columns) = A[t] A[t]' in float64, its upper half, of A (n,k,N).

    Shifts are 0 but where squares leave the range of float64.
    """
    _gram(A, G, shifts, np.zeros((G.shape[2], A.shape[2])))


@kernel(part=True)
def _gram(A, G, shifts, wide):
    """`gram`; wide (columns,N), its last rows zeros, is work space."""
    k = A.shape[1]
    least = np.finfo(np.float64).tiny / np.finfo(np.float64).eps
    for t in range(A.shape[0]):
        _widen(A[t], wide)
        _squares(wide, G[t])
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
            _squares(wide, G[t])


@kernel(allocates=True)
def history_norms(G, shifts, U, e, R0, out):
    """out (T,3) <- log ||R_t F||, log ||R_t F R0|| and s2/s1, F = diag(2^e) U, R_t'R_t = 4^s_t G_t.

    G (T,k,columns) and shifts s (T,) as `gram` leaves them; e as `multiply_factor` leaves it.
    """
    _, k, wide = G.shape
    _history_norms(G, shifts, U, e, R0, out, np.zeros((4, k, wide)), np.zeros(wide))


@kernel(allocates=True)
def block_norms(frames, U, e, R0, wide, out):
    """out (3,B) <- what `history_norms` says of each of B products whose frame is the last alone.

    frames (B,k,N), U (B,k,k), e (B,k), R0 (k,k), wide = columns(k).  NaN, NaN and 1 of one that is
    not finite.
    """
    _, k, N = frames.shape
    G, shifts, one = np.empty((1, k, wide)), np.zeros(1, np.int64), np.empty((1, 3))
    work, zeros, frame = np.zeros((4, k, wide)), np.zeros(wide), np.zeros((wide, N))
    _block_norms(frames, U, e, R0, out, (G, shifts, one), (work, zeros, frame))


@kernel(part=True)
def _block_norms(frames, U, e, R0, out, of_one, scratch):
    """`block_norms`; of_one is room for a sequence's G, shift and norms, the scratch all zeros."""
    (G, shifts, one), (work, zeros, frame) = of_one, scratch
    for b in range(frames.shape[0]):
        if finite(frames[b]) and finite(U[b]):
            _gram(frames[b : b + 1], G, shifts, frame)
            _history_norms(G, shifts, U[b], e[b], R0, one, work, zeros)
        else:
            one[0, 0], one[0, 1], one[0, 2] = math.nan, math.nan, 1.0
        for i in range(3):
            out[i, b] = one[0, i]


@kernel(part=True)
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
    shift = multiply(F, A, zeros, FR0)
    nats = math.log(2.0) * (top if top > EMPTY else 0)
    for t in range(T):
        triangle(G[t], R)
        up = multiply(R, F, zeros, A) + shifts[t]
        first, second = largest_two(A)
        out[t, 0] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf
        out[t, 2] = second / first if first > 0 else 1.0
        up = multiply(R, FR0, zeros, A) + shift + shifts[t]
        first, _ = largest_two(A)
        out[t, 1] = math.log(first) + nats + up * math.log(2.0) if first != 0 else -math.inf


@kernel(part=True)
def _factor(A, R, far, frame, G, x):
    """R <- the triangle with R'R = A A', of A (k,N), NaN where it is too far from orthogonal.

    frame (columns,N), zeros at first, G (k,columns) and x (k,) are work space.
    """
    k = R.shape[0]
    _widen(A, frame)
    _squares(frame, G)
    triangle(G, R)
    if log_condition(R, x) > far:  # then what is small in R is the rounding of G
        for i in range(k):
            for j in range(k):
                R[i, j] = math.nan


@kernel(allocates=True)
def forward_factors(A, far, last, R, R_inverse):
    """R[i] <- the triangle with R'R = A[i] A[i]', of A (n,k,N), the last as it is given.

    NaN where `log_condition` is beyond `far`.  R_inverse[0] <- the identity, of the orthonormal
    frame before A[0]; R_inverse[i + 1] <- R[i]^-1 of all but the last.
    """
    k, wide = R.shape[1:]
    frame, work = np.zeros((wide, A.shape[2])), np.zeros((2, k, wide))
    _forward_factors(A, far, last, R, R_inverse, frame, work, np.zeros(k))


@kernel(part=True)
def _forward_factors(A, far, last, R, R_inverse, frame, work, x):
    """`forward_factors`; frame (columns,N), work (2,k,columns) and x (k,), all zeros."""
    n, k, _ = R.shape
    G, triangular = work[0], work[1]
    for j in range(k):
        triangular[j, j] = 1
    for i in range(n):
        inverse(triangular, R_inverse[i])
        if i < n - 1:
            _factor(A[i], triangular, far, frame, G, x)
            copy(triangular, R[i])
    for i in range(k):
        for j in range(k):
            R[n - 1, i, j] = last[i, j]


@kernel(allocates=True)
def reverse_factors(A, far, last, R_transposed):
    """R_transposed[-1 - i] <- R' of what `forward_factors` finds, of A (n,k,N)."""
    k, wide = R_transposed.shape[1:]
    frame, work = np.zeros((wide, A.shape[2])), np.zeros((2, k, wide))
    _reverse_factors(A, far, last, R_transposed, frame, work, np.zeros(k))


@kernel(part=True)
def _reverse_factors(A, far, last, R_transposed, frame, work, x):
    """`reverse_factors`; frame (columns,N), work (2,k,columns) and x (k,), all zeros."""
    n, k, _ = R_transposed.shape
    G, R = work[0], work[1]
    for i in range(n):
        if i < n - 1:
            _factor(A[i], R, far, frame, G, x)
        for j in range(k):
            for m in range(k):
                R_transposed[n - 1 - i, j, m] = R[m, j] if i < n - 1 else last[m, j]


@kernel(allocates=True)
def meet(C, states, ends):
    """ends[s] <- C[i]^-1 ends[s], s = states[0,i] .. states[1,i] - 1; C (n,k,columns) is spent.

    Inf or NaN where a C is singular.
    """
    _, k, wide = C.shape
    _meet(C, states, ends, np.zeros((2, k, wide)), np.zeros(wide))


@kernel(part=True)
def _meet(C, states, ends, work, zeros):
    """`meet`; work (2,k,columns) and zeros (columns,), all zeros."""
    C_inverse, A = work[0], work[1]
    k, wide = A.shape
    for i in range(C.shape[0]):
        for j in range(k):
            for m in range(wide):
                C_inverse[j, m] = 1 if j == m else 0
        solve(C[i], C_inverse)
        for s in range(states[0, i], states[1, i]):
            times(C_inverse, ends[s], zeros, A)
            copy(A, ends[s])


class Windows(NamedTuple):
    """What the frames of two passes leave for the norms of windows, k x columns each."""

    R_v: np.ndarray  # (T+1,.): R of the frame pushed to t, in the stretch that t ends or is in
    R_v_inverse: np.ndarray  # (T+1,.): of R in the stretch that t begins or is in
    ends: np.ndarray  # (T+1,.): (U_s V_s')^-1 R_u'
    D: np.ndarray  # (G,.), times 2^shifts: D[i] takes the frame of stretch i - 1 to that of i
    shifts: np.ndarray  # (G,)
    stretch: np.ndarray  # (T+1,2): that of t as the end of a window and as the beginning of one


@kernel(allocates=True)
def window_norms(w, lag, s0, out):
    """out (n,3) <- log norms of the windows (s, s+lag), s = s0 on: on the frame, and of all of P.

    And log of ||A|| ||B|| / ||A B||, A and B the two stacks of the queue that the product of the D
    between is kept as (Tangwongsan, Hirzel, Schneider): by so much more than 1 rounding counts.
    """
    k, wide = w.R_v.shape[1:]
    count = w.stretch[s0 + out.shape[0] - 1 + lag, 0] - w.stretch[s0, 1] + 2
    back, exponents = np.zeros((count, k, wide)), np.zeros(count, np.int64)
    _window_norms(w, lag, s0, out, back, exponents, np.zeros((7, k, wide)), np.zeros(wide))


@kernel(part=True)
def _window_norms(w, lag, s0, out, back, exponents, work, zeros):
    """`window_norms`; back (G,k,columns), exponents (G,) and work (7,k,columns), all zeros.

    G, of the stretches that the windows lie in, and one.
    """
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
    between, moved, front_exponent, lost = 0, True, 0, 0.0
    # `back` holds products for beginnings head .. bound, from `origin` on; w.D[tail] is next
    bound = head = tail = origin = w.stretch[s0, 1]
    copy(identity, back[0])
    for i in range(out.shape[0]):
        s = s0 + i
        t = s + lag
        while tail < w.stretch[t, 0]:  # D[tail + 1] from the left
            front_exponent += multiply(w.D[tail + 1], front, zeros, A) + w.shifts[tail + 1]
            copy(A, front)
            tail += 1
            moved = True
        while head < w.stretch[s, 1]:
            head += 1
            moved = True
            if head > bound:  # the old stack is used up: make one of all that is left
                copy(identity, back[tail - origin])
                exponents[tail - origin] = 0
                for m in range(tail - 1, head - 1, -1):
                    later = m + 1 - origin
                    up = multiply(back[later], w.D[m + 1], zeros, back[later - 1])
                    exponents[later - 1] = exponents[later] + up + w.shifts[m + 1]
                bound = tail
                copy(identity, front)
                front_exponent = 0
        if moved:
            up = multiply(front, back[head - origin], zeros, joint)
            between = up + exponents[head - origin] + front_exponent
            lost = -up * math.log(2.0)
            moved = False
        nats = between + multiply(w.R_v[t], joint, zeros, middle)
        up = multiply(middle, w.ends[s], zeros, A)
        first = norm(A, zeros, scratch, 6)
        out[i, 1] = (nats + up) * math.log(2.0) + math.log(first) if first != 0 else -math.inf
        times(middle, w.R_v_inverse[s], zeros, A)
        first = norm(A, zeros, scratch, 3)  # any vector gives a lower bound
        out[i, 0] = nats * math.log(2.0) + math.log(first) if first != 0 else -math.inf
        out[i, 2] = lost
