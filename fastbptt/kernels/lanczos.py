"""What the numbers of Golub-Kahan-Lanczos say of the largest singular value (spectral.md 2).

alpha_i u_i = P v_i - beta_{i-1} u_{i-1}, beta_i v_{i+1} = P' u_i - alpha_i v_i.  Along a singular
vector of value x the vectors' components obey the same recurrence, from 1 for v_1; beyond the
largest Ritz value they grow, and none can exceed 1/|that of v_1|.
"""

import math

from .jit import kernel


@kernel
def _component(alpha, beta, halves, x):
    """log of the last vector's component beside v_1's, and whether x is beyond all Ritz values."""
    before, now, scale = 0.0, 1.0, 0.0
    for i in range(halves + 1):
        other = 0.0
        if i > 0:
            other = alpha[i // 2] if i % 2 == 1 else beta[i // 2 - 1]
        top = x * now - other * before
        if not top > 0:
            return -math.inf, False
        if i < halves:
            divisor = alpha[i // 2] if i % 2 == 0 else beta[i // 2]
            if divisor == 0:
                return math.inf, True
            before, now = now, top / divisor
            if now > 1e100 or now < 1e-100:
                scale += math.log(now)
                before, now = before / now, 1.0
    return math.log(now) + scale, True


@kernel
def bounds(alpha, beta, halves, room, out):
    """out (G,2) <- largest Ritz value after `halves` half-sweeps, and where a component is e^room.

    alpha, beta (G,.): in the order in which they came about, alpha_1 first.
    """
    for g in range(out.shape[0]):
        a, b = alpha[g], beta[g]
        low, square = 0.0, 0.0
        for i in range(halves):
            one = a[i // 2] if i % 2 == 0 else b[i // 2]
            low, square = max(low, one), square + one * one
        high = math.sqrt(square) * (1 + 1e-15)
        low *= 1 - 1e-15
        for _ in range(80):
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            if _component(a, b, halves, middle)[1]:
                high = middle
            else:
                low = middle
        out[g, 0] = high
        low, step = high, 1e-15
        while high < math.inf and _component(a, b, halves, high)[0] < room:
            low = high
            high *= 1 + step
            step *= 4
        for _ in range(80):
            middle = 0.5 * (low + high)
            if not low < middle < high:
                break
            if _component(a, b, halves, middle)[0] < room:
                low = middle
            else:
                high = middle
        out[g, 1] = high
