"""What the numbers of Golub-Kahan-Lanczos say of the largest singular value (spectral.md 2).

alpha_i u_i = P v_i - beta_{i-1} u_{i-1}, beta_i v_{i+1} = P' u_i - alpha_i v_i.  Along a singular
vector of value x the vectors' components obey the same recurrence, from 1 for v_1; beyond the
largest Ritz value they grow, and none can exceed 1/|that of v_1|.  Times all numbers before it the
i-th component is a polynomial p_i of x with i real roots, and the largest Ritz value after m
half-sweeps is the largest root of p_{m+1}.  From above Newton's method never passes it, and from x
it is no farther than (m + 1) p/p'.  Beyond it log p_m is concave: from below Newton's method never
passes the x where that has a given value.
"""

import math

from .jit import kernel

_CLOSE = 4e-15  # relative: nearer to a root than that rounding decides
_NEAR = 1e-9  # nats of a component
_MOST = 200  # steps of Newton's method, which takes about ten: for numbers that make no sense


@kernel(part=True)
def _last_two(numbers, halves, x):
    """Whether x is beyond all Ritz values; p/p' of p_{halves+1}; log p and p'/p of p_halves."""
    before, now, slope_before, slope = 0.0, 1.0, 0.0, 0.0
    square, scale = 0.0, 0.0
    for i in range(halves):
        after = x * now - square * before
        if not after > 0:
            return False, 0.0, 0.0, 0.0
        slope_after = now + x * slope - square * slope_before
        before, now, slope_before, slope = now, after, slope, slope_after
        square = numbers[i] * numbers[i]
        if now > 1e100 or now < 1e-100:
            scale += math.log(now)
            before, slope_before, slope = before / now, slope_before / now, slope / now
            now = 1.0
    after = x * now - square * before
    if not after > 0:
        return False, 0.0, 0.0, 0.0
    slope_after = now + x * slope - square * slope_before
    return True, after / slope_after, math.log(now) + scale, slope / now


@kernel(part=True)
def _largest_ritz(numbers, halves, low, above):
    """The largest Ritz value or a little more, between what is no more and what is no less.

    Where many lie together Newton's method halves the distance in as many steps: bisection does in
    one.
    """
    x, by = above, 1e-15
    beyond, step = _last_two(numbers, halves, x)[:2]
    while not beyond and x < math.inf:  # by rounding
        x *= 1 + by
        by *= 4
        beyond, step = _last_two(numbers, halves, x)[:2]
    for _ in range(_MOST):
        low = max(low, x - (halves + 1) * step)
        width = x - low
        if not width > _CLOSE * x:
            break
        for way in range(2):
            lower = x - step if way == 0 else 0.5 * (low + x)
            beyond, other = _last_two(numbers, halves, lower)[:2]
            if beyond:
                x, step = lower, other
                low = max(low, x - (halves + 1) * step)
            else:
                low = lower
            if not x - low > 0.5 * width:
                break
    return x


@kernel
def bounds(numbers, halves, room, out):
    """out (G,2) <- largest Ritz value after `halves` half-sweeps, and where a component is e^room.

    numbers (G,.): alpha_1, beta_1, alpha_2, .. in the order in which they came about, of a size
    that their squares are in the range of float64.
    """
    for g in range(out.shape[0]):
        own = numbers[g]
        square, least, widest, before, product, nats = 0.0, 0.0, 0.0, 0.0, 1.0, 0.0
        for i in range(halves):
            one = own[i]
            square += one * one
            least = max(least, before * before + one * one)
            widest = max(widest, before + one)
            before = one
            product *= one
            if product > 1e100 or product < 1e-100:
                nats += math.log(product)
                product = 1.0
        nats += math.log(product)  # -inf where one is zero: the Krylov space is all there is
        if not 0 < square < math.inf:  # all are zero, or there are NaN
            out[g, 0] = out[g, 1] = math.sqrt(square)
            continue
        # a row is no longer; Frobenius' norm, and the largest sum along a row, are no less
        low, above = math.sqrt(least) * (1 - 1e-15), min(math.sqrt(square), widest) * (1 + 1e-15)
        x = _largest_ritz(own, halves, low, above)
        out[g, 0] = x
        for _turn in range(_MOST):
            beyond, _, log, rate = _last_two(own, halves, x)
            missing = room + nats - log
            # beside a root x may be beyond it there and not here: rounding, compiled twice
            if beyond and not missing > _NEAR:
                break
            x += max(missing / rate, _CLOSE * x) if beyond else _CLOSE * x
        out[g, 1] = x


@kernel
def orthogonalise(y, basis, which, count, expected, norms, discord):
    """y (G,N) less its parts along the first `count` vectors of basis[which] (.,.,N), found twice.

    norms[g] <- ||y[g]||; discord[g] <- the largest of the parts found at first, of which the last
    should be expected[g] and the others nothing.
    """
    N = y.shape[1]
    for g in range(y.shape[0]):
        own, most = basis[which[g]], 0.0
        for again in range(2):
            for i in range(count):
                part = 0.0
                for j in range(N):
                    part += own[i, j] * y[g, j]
                for j in range(N):
                    y[g, j] -= part * own[i, j]
                if again == 0:
                    apart = abs(part - expected[g]) if i == count - 1 else abs(part)
                    most = apart if apart > most else most
        square = 0.0
        for j in range(N):
            square += y[g, j] * y[g, j]
        norms[g], discord[g] = math.sqrt(square), most
