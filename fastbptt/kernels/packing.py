"""A cell's weights, packed into the panels that its products read (kernels/panels.py, slots.py).

One kernel packs all that a pass reads: slices, and a call for each gate, made new weights of a
plain net of 64 units take as long as 60 of its steps, and a call for each matrix as 8.
"""

import functools
from typing import NamedTuple

import numpy as np

from .cells import Design
from .jit import kernel
from .panels import BLOCK, VECTORS, copy_panel_row
from .simd import lanes_of, rows, turn_block


class Order(NamedTuple):
    """Where each gate of the weights goes."""

    x: np.ndarray  # the gate of each slot that W_ih x goes to, by its number in the weights
    h: np.ndarray  # of each slot that W_hh h or the gated state goes to
    first: int  # the first of those slots
    # The slots of one product lie between two of these,
    whole: np.ndarray  # of x,
    forward: np.ndarray  # of h, counted from `first`,
    adjoint: np.ndarray  # and back through the step.


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
    cuts = [0, x.size], [0, gate, alone, h.size], [0, gate, h.size]
    return Order(x, h, slots.first, *(np.array(each) for each in cuts))


@kernel(part=True)
def pack(weights, gates, cuts, H, panels):
    """Weights (G·H,K), whose `gates` the slots get, -> flat panels, padded(H)·K for each slot.

    The slots of a product, if no more than a BLOCK each, are packed as one matrix, so that few wide
    tiles cover them all.
    """
    K, width = weights.shape[1], lanes_of(weights)
    Hp, panel = (H + width - 1) // width * width, VECTORS * width
    for product in range(cuts.size - 1):
        first, count = cuts[product], cuts[product + 1] - cuts[product]
        size = count * Hp if Hp <= BLOCK * width else Hp  # outputs of one matrix
        for n in range(0, count * Hp, width):
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


@kernel(part=True)
def pack_transposed(weights, gates, cuts, H, panels):
    """The panels of W' (K,slots·Hp) of each product; zeros from H to Hp = padded(H).

    What a panel holds lies next to each other in W: nothing is turned round on the way.
    """
    K, width = weights.shape[1], lanes_of(weights)
    panel = VECTORS * width
    Hp, Kp = (H + width - 1) // width * width, (K + width - 1) // width * width
    for product in range(cuts.size - 1):
        first, count = cuts[product], cuts[product + 1] - cuts[product]
        for slot in range(count):
            row = gates[first + slot] * H
            for j in range(0, Kp, panel):
                wide = min(panel, Kp - j)
                origin = (first * Kp + j * count + slot * wide) * Hp
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


@kernel
def pack_cell(parameters, order, H, panels, adjoint):
    """What a step reads (see `_pack_forward`), and a step back: W' for each product.

    `parameters` are W_ih (G·H,I), W_hh (G·H,H) and the biases (G·H,), none of them if they are 0;
    `order` is a tuple of `Order`'s.  Of `panels`, three arrays, and `adjoint`, two, those without
    elements are not wanted.
    """
    (w_ih, w_hh, _, _), how = parameters, Order(*order)
    if panels[0].size > 0:
        _pack_forward(parameters, how, H, panels)
    to_ih, to_hh = adjoint
    if to_ih.size > 0:
        pack_transposed(w_ih, how.x, how.whole, H, to_ih)
        pack_transposed(w_hh, how.h, how.adjoint, H, to_hh)


@kernel(part=True)
def _pack_forward(parameters, how, H, panels):
    """Panels of W_ih and W_hh, and of each slot the sum of its biases."""
    (w_ih, w_hh, bias_ih, bias_hh), (to_ih, to_hh, bias) = parameters, panels
    pack(w_ih, how.x, how.whole, H, to_ih)
    pack(w_hh, how.h, how.forward, H, to_hh)
    width = lanes_of(bias)
    Hp = (H + width - 1) // width * width
    bias[:] = 0
    if bias_ih.size > 0:
        for slot in range(how.x.size):
            for i in range(H):
                bias[slot * Hp + i] += bias_ih[how.x[slot] * H + i]
        for slot in range(how.h.size):
            for i in range(H):
                bias[(how.first + slot) * Hp + i] += bias_hh[how.h[slot] * H + i]
