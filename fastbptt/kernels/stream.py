"""One pass over a sequence with tangents riding along: the state and k probes share each panel.

Memory does not grow with T.  Frames are orthonormalised when their measured conditioning asks for
it (spectral.md sections 1 and 6), each sequence on its own: its bits depend neither on the batch
nor on how the sequence is cut into chunks.
"""

import math
from typing import NamedTuple

import numpy as np

from .cells import tangent
from .frames import EMPTY, multiply_factor, orthonormalise
from .jit import kernel
from .panels import BLOCK, panel_matmul
from .simd import rows, shifted
from .sweeps import matmul_steps

LONGEST = 64  # steps between two orthonormalisations, at most
BLOCKS = 128  # blocks of exponents kept for the standard error; when full, pairs are merged


class Stream(NamedTuple):
    """What is carried from chunk to chunk, for each of B sequences."""

    panel: np.ndarray  # (2,B,1+k,Hp): h and k tangents, at the parity of the step
    U: np.ndarray  # (B,k,k) and
    e: np.ndarray  # (B,k): the triangular factor diag(2^e) U
    since: np.ndarray  # (B,): steps since the last orthonormalisation
    interval: np.ndarray  # (B,): steps until the next
    running: np.ndarray  # (B,k): sum of log R_ii in the open block
    running_steps: np.ndarray  # (B,)
    blocks: np.ndarray  # (B,BLOCKS,k): sums of log R_ii, nats
    block_steps: np.ndarray  # (B,BLOCKS)
    block_count: np.ndarray  # (B,)
    block_length: np.ndarray  # (B,)


@kernel
def _close_block(s, b):
    """The open block is put beside the others; when there is no more room, pairs become one."""
    n = s.block_count[b]
    s.blocks[b, n] = s.running[b]
    s.block_steps[b, n] = s.running_steps[b]
    s.running[b] = 0
    s.running_steps[b] = 0
    s.block_count[b] = n + 1
    if n + 1 == BLOCKS:
        for m in range(BLOCKS // 2):
            s.blocks[b, m] = s.blocks[b, 2 * m] + s.blocks[b, 2 * m + 1]
            s.block_steps[b, m] = s.block_steps[b, 2 * m] + s.block_steps[b, 2 * m + 1]
        s.block_count[b] = BLOCKS // 2
        s.block_length[b] *= 2


@kernel
def _settle(s, b, frame, R, row):
    """Orthonormalise one frame, multiply its factor, note its growth, choose the next interval."""
    k = R.shape[0]
    orthonormalise(frame, R)
    multiply_factor(R, s.U[b], s.e[b], row)
    steps = s.since[b]
    low, high = math.inf, -math.inf
    for i in range(k):
        growth = math.log(R[i, i]) if R[i, i] > 0 else (-math.inf if R[i, i] == 0 else math.nan)
        s.running[b, i] += growth
        if growth > -math.inf:
            low, high = min(low, growth), max(high, growth)
    s.running_steps[b] += steps
    if s.running_steps[b] >= s.block_length[b]:
        _close_block(s, b)
    # The condition of the frame may reach eps^-1/4 by the rate just seen: a sudden change of rate
    # has the square of that, 1/sqrt(eps), as its room.
    room = -0.25 * math.log(np.finfo(frame.dtype).eps)
    spread = high - low
    longest = min(2 * s.interval[b], LONGEST)
    if spread * longest > room * steps:
        longest = max(1, int(room * steps / spread))
    s.interval[b] = longest
    s.since[b] = 0


@kernel
def _leaves_range(s, b, side, far):
    """Whether the first tangent, if the product has not become zero, nears the end of its range."""
    panel = s.panel
    energy = panel.dtype.type(0)
    for j in range(panel.shape[3]):
        energy += panel[side, b, 1, j] * panel[side, b, 1, j]
    # an energy of 0 may have underflowed
    return s.e[b, 0] > EMPTY and (energy > far or energy * far < 1)


@kernel
def stream(cell, x, ax, width, start, b0, b1, s):
    """Carry s over the steps of x (T,B,I), the first of them step `start`, for rows b0..b1-1.

    ax (chunk,B,Hp) is work space.
    """
    T, B, I = x.shape
    chunk, _, Hp = ax.shape
    k = s.U.shape[1]
    H = cell.w_hh.size // Hp
    M, block = b1 - b0, BLOCK * width
    panel = s.panel
    w_ih, w_hh, bias = rows(cell.w_ih, 0, 0), rows(cell.w_hh, 0, 0), rows(cell.bias, 0, 0)
    R, row, slopes = np.empty((k, k)), np.empty(k), np.empty(Hp, panel.dtype)
    far = math.sqrt(np.finfo(panel.dtype).max)
    for c in range(0, T, chunk):
        steps = min(chunk, T - c)
        to = rows(ax, b0 * Hp, Hp)
        matmul_steps(rows(x, (c * B + b0) * I, I), w_ih, I, width, Hp, bias, to, steps, B, M)
        for t in range(steps):
            now = (start + c + t) % 2
            after = 1 - now
            for b in range(b0, b1):
                for j in range(Hp):
                    panel[after, b, 0, j] = ax[t, b, j]
                for r in range(1, 1 + k):
                    for j in range(Hp):
                        panel[after, b, r, j] = 0
            state = rows(panel, (now * B + b0) * (1 + k) * Hp, Hp)
            last = (Hp - 1) // block
            for q in range(last + 1):
                j0 = block * (q if now == 0 else last - q)
                j1 = min(j0 + block, Hp)
                a = rows(panel, (after * B + b0) * (1 + k) * Hp + j0, Hp)
                w = shifted(w_hh, j0 * H, 0)
                panel_matmul(state, M * (1 + k), w, H, width, j1 - j0, a, a)
                tangent(cell, panel, after, slopes, b0, b1, np.uintp(j0), np.uintp(j1))
            for b in range(b0, b1):
                s.since[b] += 1
                if s.since[b] >= s.interval[b] or _leaves_range(s, b, after, far):
                    _settle(s, b, panel[after, b, 1:], R, row)
