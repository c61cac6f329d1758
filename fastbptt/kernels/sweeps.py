"""The loops over time, forward and backward, blind to the cell (design.md D4).

Only what is sequential stays in the loop over t: the products with the input weights are done for
a chunk of steps ahead of it and the weight gradients (`panels.weight_gradient`) behind it.
"""

import numpy as np

from .cells import adjoint, step
from .jit import kernel
from .panels import BLOCK, panel_matmul
from .simd import rows, shifted

CHUNK_ROWS = 128  # rows projected ahead: they are still in L1 or L2 when the recurrence needs them


@kernel
def matmul_steps(A, W, K, width, N, S, C, T, B, M):
    """C[t,b] = S + A[t,b] W' for T steps and M of B rows each, as few products of many rows."""
    if M == B:
        panel_matmul(A, T * B, W, K, width, N, S, C)
    elif M > T:
        for t in range(T):
            c = shifted(C, t * B * C[1], C[1])
            panel_matmul(shifted(A, t * B * A[1], A[1]), M, W, K, width, N, S, c)
    else:
        for b in range(M):
            c = shifted(C, b * C[1], B * C[1])
            panel_matmul(shifted(A, b * A[1], B * A[1]), T, W, K, width, N, S, c)


@kernel
def forward(cell, x, h, width, t0, t1, b0, b1):
    """h[t0+1 .. t1] from h[t0] and x, for rows b0..b1-1.  x (T,B,I), h (T+1,B,Hp)."""
    B, I = x.shape[1:]
    Hp = h.shape[2]
    H = cell.w_hh.size // Hp
    M, block = b1 - b0, BLOCK * width
    chunk = max(1, CHUNK_ROWS // M)
    w_ih, w_hh, bias = rows(cell.w_ih, 0, 0), rows(cell.w_hh, 0, 0), rows(cell.bias, 0, 0)
    for c in range(t0, t1, chunk):
        steps = min(chunk, t1 - c)
        a = rows(h, ((c + 1) * B + b0) * Hp, Hp)  # pre-activations wait where the states will be
        matmul_steps(rows(x, (c * B + b0) * I, I), w_ih, I, width, Hp, bias, a, steps, B, M)
        for t in range(c, c + steps):
            last = (Hp - 1) // block
            for q in range(last + 1):
                # to and fro: what of W_hh the last step left in the cache is read first
                j0 = block * (q if t % 2 == 0 else last - q)
                j1 = min(j0 + block, Hp)
                a = rows(h, ((t + 1) * B + b0) * Hp + j0, Hp)
                w = shifted(w_hh, j0 * H, 0)
                panel_matmul(rows(h, (t * B + b0) * Hp, Hp), M, w, H, width, j1 - j0, a, a)
                step(cell, h, t, b0, b1, np.uintp(j0), np.uintp(j1))


@kernel
def backward(cell, dy, h, da, dx, dh, width, t0, t1, b0, b1):
    """da, dx[t0..t1-1] and dh = dL/dh[t0] from dh = dL/dh[t1], for rows b0..b1-1.

    dy (T,B,Hp), h (T+1,B,Hp), da (t1-t0,B,Hp), dx (T,B,Ip), dh (B,Hp).  dh holds all of dL/dh[t]
    but what comes through h[t+1]; at t0 it holds dy[t0-1] too, so that chunks sum in one order.
    """
    B, Hp = h.shape[1:]
    Ip = dx.shape[2]
    H = cell.w_hh.size // Hp
    M, block = b1 - b0, BLOCK * width
    chunk = max(1, CHUNK_ROWS // M)
    w_ih, w_hh, zeros = rows(cell.w_ih, 0, 0), rows(cell.w_hh, 0, 0), rows(cell.zeros, 0, 0)
    for b in range(b0, b1):
        for j in range(Hp):
            da[t1 - 1 - t0, b, j] = dh[b, j]
    adjoint(cell, h, t1 - 1, da, t1 - 1 - t0, b0, b1, np.uintp(0), np.uintp(Hp))
    for c in range(t1, t0, -chunk):
        c0 = max(t0, c - chunk)
        for t in range(c - 1, c0 - 1, -1):
            later = rows(da, ((t - t0) * B + b0) * Hp, Hp)
            last = (Hp - 1) // block
            for q in range(last + 1):
                j0 = block * (q if t % 2 == 0 else last - q)
                j1 = min(j0 + block, Hp)
                w = shifted(w_hh, j0 * H, 0)
                start = rows(dy, ((t - 1) * B + b0) * Hp + j0, Hp) if t > 0 else zeros
                if t > t0:
                    earlier = rows(da, ((t - 1 - t0) * B + b0) * Hp + j0, Hp)
                    panel_matmul(later, M, w, H, width, j1 - j0, start, earlier)
                    s0, s1 = np.uintp(j0), np.uintp(j1)
                    adjoint(cell, h, t - 1, da, t - 1 - t0, b0, b1, s0, s1)
                else:
                    panel_matmul(later, M, w, H, width, j1 - j0, start, rows(dh, b0 * Hp + j0, Hp))
        source = rows(da, ((c0 - t0) * B + b0) * Hp, Hp)
        target = rows(dx, (c0 * B + b0) * Ip, Ip)
        matmul_steps(source, w_ih, H, width, Ip, zeros, target, c - c0, B, M)
