"""A cell's weights, packed into the panels that its products read (kernels/panels.py, slots.py).

One kernel for all that a pass reads: by a call for each gate and matrix, new weights of a plain net
of 64 units took 29 us, as long as 60 of its steps, and take 16.
"""

import functools
from typing import NamedTuple

import numpy as np

from .cells import Design
from .jit import kernel
from .panels import BLOCK, VECTORS, copy_panel_row
from .simd import rows, turn_block


class Order(NamedTuple):
    """Where each gate of the weights goes."""

    x: np.ndarray  # the gate of each slot that W_ih x goes to, by its number in the weights
    h: np.ndarray  # of each slot that W_hh h or the gated state goes to
    first: int  # the first of those slots
    forward: np.ndarray  # slots of h in one product lie between two of these, counted from `first`
    adjoint: np.ndarray  # the same, back through the step


@functools.cache
def order(design: Design) -> Order:
    """The `Order` of a cell."""
    slots = design.slots
    x, h = (
        np.array([design.gates.index(letter) for letter in letters])
        for letters in (design.x_gates, design.h_gates)
    )
    gate = slots.gate - slots.first
    alone = max(gate, min(slots.x, slots.last) - slots.first)
    return Order(x, h, slots.first, np.array([0, gate, alone, h.size]), np.array([0, gate, h.size]))


@kernel
def pack_cell(w_ih, w_hh, bias_ih, bias_hh, order, width, ih, hh, bias):
    """Of a forward pass: w_ih (G·H,I), w_hh (G·H,H) and biases (G·H,), or (0,), -> flat panels.

    bias (slots·Hp,) is in each slot the sum of what is added up there.
    """
    H = w_hh.shape[1]
    Hp = (H + width - 1) // width * width
    pack_product(w_ih, order.x, 0, order.x.size, H, width, ih)
    for product in range(order.forward.size - 1):
        first, last = order.forward[product], order.forward[product + 1]
        pack_product(w_hh, order.h, first, last, H, width, hh)
    for i in range(bias.size):
        bias[i] = 0
    if bias_ih.size > 0:
        for slot in range(order.x.size):
            for i in range(H):
                bias[slot * Hp + i] = bias_ih[order.x[slot] * H + i]
        for slot in range(order.h.size):
            for i in range(H):
                bias[(order.first + slot) * Hp + i] += bias_hh[order.h[slot] * H + i]


@kernel
def pack_adjoint(w_ih, w_hh, order, width, ih, hh, bias):
    """Of a pass back: W' of each product, zeros in `bias`."""
    H = w_hh.shape[1]
    pack_transposed(w_ih, order.x, 0, order.x.size, H, width, ih)
    for product in range(order.adjoint.size - 1):
        first, last = order.adjoint[product], order.adjoint[product + 1]
        pack_transposed(w_hh, order.h, first, last, H, width, hh)
    for i in range(bias.size):
        bias[i] = 0


@kernel
def pack_product(weights, gates, first, last, H, width, panels):
    """The slots first .. last-1, of gates of `weights` (G·H,K), where they belong in `panels`.

    Slots within one block are packed as one matrix, so that few wide tiles cover them all.
    """
    K = weights.shape[1]
    Hp, panel = (H + width - 1) // width * width, VECTORS * width
    size = (last - first) * Hp if Hp <= BLOCK * width else Hp  # outputs of one matrix
    for n in range(0, (last - first) * Hp, width):
        j = n % size
        begin = j // panel * panel
        wide = min(panel, size - begin)
        origin = (first * Hp + n - j + begin) * K + j - begin
        unit = n % Hp
        i0 = gates[first + n // Hp] * H + unit
        k0 = K // width * width if unit + width <= H else 0
        for k in range(0, k0, width):
            turn_block(rows(weights, i0 * K + k, K), rows(panels, origin + k * wide, wide))
        for k in range(k0, K):
            for i in range(width):
                panels[origin + k * wide + i] = weights[i0 + i, k] if unit + i < H else 0


@kernel
def pack_transposed(weights, gates, first, last, H, width, panels):
    """The panels of W' (K,slots·Hp) of the same slots; zeros from H to Hp.

    What a panel holds lies next to each other in W: nothing is turned round on the way.
    """
    K, slots = weights.shape[1], last - first
    panel = VECTORS * width
    Hp, Kp = (H + width - 1) // width * width, (K + width - 1) // width * width
    for slot in range(slots):
        row = gates[first + slot] * H
        for j in range(0, Kp, panel):
            wide = min(panel, Kp - j)
            origin = (first * Kp + j * slots + slot * wide) * Hp
            if j + panel <= K:
                for h in range(H):
                    source = rows(weights, (row + h) * K + j, 0)
                    copy_panel_row(source, rows(panels, origin + h * panel, 0))
            else:
                for h in range(H):
                    for i in range(wide):
                        target = origin + h * wide + i
                        panels[target] = weights[row + h, j + i] if j + i < K else 0
            for i in range(H * wide, Hp * wide):
                panels[origin + i] = 0
