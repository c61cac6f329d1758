"""The chain of Jacobians of one sequence of a trace: its weights, and the factors of every step."""

import copy
import math

import numpy as np

from . import checks, matrix_norms
from .chains import CompiledChain
from .kernels import chain as kernels
from .kernels.activations import MAX_SLOPE, TAGS
from .kernels.memory import aligned
from .kernels.panels import padded
from .layers import LayerPass
from .weights import Weights

_ROWS = 512  # steps linearised at once: their pre-activations stay in L2
_NUMBERS = 1 << 20  # of the rows of steps that are bounded at once


class TraceChain(CompiledChain):
    """dh_t/dh_{t-1} of one sequence of a trace; made by `Trace.chain`.

    The state is that of all layers, in the order h of layer 0, of an LSTM its c, h of layer 1, and
    so on.  What it keeps is the slopes: 1 number a unit and step for the plain net, 5 for GRU and
    MGU, 6 for LSTM.  They are computed from the pre-activations, so that in the tails of a
    nonlinearity they keep their relative accuracy.
    """

    def __init__(self, weights: Weights, passes: list[LayerPass], b: int) -> None:
        layers, design, dtype = weights.layers, weights.design, weights.dtype
        H, L, parts = weights.hidden_size, len(layers), 1 + design.has_c
        Hp, wide = padded(H, dtype), design.slots.width * padded(H, dtype)
        self.dtype, self._wide, self._N = dtype, wide, L * parts * H
        sequences = passes[0].sequences
        T = self._steps = int(sequences.lengths[sequences.piece(b)])
        states = sequences.starts[: T + 1] + sequences.piece(b)  # rows of h and c
        factors = aligned((T * L, design.slots.factors * Hp), dtype)
        after, a = aligned((1, parts * Hp), dtype), aligned((min(T, _ROWS), wide), dtype)
        for l, (layer, one) in enumerate(zip(layers, passes, strict=True)):
            for t0 in range(0, T, _ROWS):
                at = states[t0 : min(t0 + _ROWS, T)]
                state = np.concatenate([y[at] for y in one.kept_states()], axis=1)
                # step t has the row of state t + 1, less the N of state 0
                x = one.x[states[t0 + 1 : t0 + 1 + len(at)] - sequences.N]
                kernels.linearise_layer(
                    layer.cell,
                    checks.read_only(x),
                    state,
                    after,
                    a[: len(at)],
                    factors,
                    (t0 * L + l, L),
                )
        # 0 · inf, of an x with infinite numbers, is NaN, which the way back would spread
        factors.reshape(T * L, design.slots.factors, Hp)[:, :, H:] = 0
        self._chain = kernels.Linearised(
            weights.stacked_cell,
            weights.stacked_adjoint_cell,
            factors,
            np.zeros(max(wide, Hp), dtype),
            H,
            layers[0].input_size,
            Hp,
            padded(layers[0].input_size, dtype),
            parts,
            L,
        )
        self._blocks, self._H, self._Hp, self._weights = L * parts, H, Hp, weights

    @property
    def classical_rate(self) -> float:
        """log(max|f'| ||W_hh||) of a plain net of one layer, nats a step; NaN of others."""
        act = getattr(self._chain.cell, "act", None)
        if act is None or self._blocks > 1:
            return math.nan
        name = next(name for name, tag in TAGS.items() if type(tag) is type(act))
        norm = matrix_norms.norms(self._weights.layers[0].w_hh[None])[0]
        return math.log(MAX_SLOPE[name]) + float(norm)

    def classical_bound(self, t: int, s: int) -> float:
        """As `Chain.classical_bound`: t - s times the rate."""
        return (t - s) * self.classical_rate if t > s else 0.0

    def _loose_bounds(self) -> np.ndarray:
        """By the norms of each gate's weights and a step's largest factors.

        With these in their place every H x H block of J_t becomes a bound of its norm, as tangents
        are sums of products; the norm of the matrix of these bounds is one of ||J_t||.  Of a plain
        net of one layer it is max|f'(a_t)| ||W_hh||, which is at most the classical one.
        """
        P, T, one = self._blocks, self._steps, self._of_one_unit()
        some = max(1, _NUMBERS // (P * P * one._Hp))
        bounds = np.empty(T)
        for i in range(0, T, some):
            steps = np.arange(i, min(i + some, T))
            units = np.broadcast_to(np.eye(P, dtype=self.dtype), (len(steps), P, P))
            M = one.push_groups(steps, 1, units).astype(np.float64)
            known = np.asarray(np.isfinite(M).all(axis=(1, 2)))  # LAPACK refuses NaN
            norms = np.linalg.norm(np.where(known[:, None, None], M, 0.0), 2, axis=(1, 2))
            with np.errstate(divide="ignore"):
                bounds[steps] = np.log(np.where(known, norms, np.nan))
        return bounds

    def _of_one_unit(self) -> "TraceChain":
        """The chain of the same cells of one unit: norms for weights, the largest for factors."""
        weights, H, dtype = self._weights, self._H, self.dtype
        design, chain = weights.design, self._chain
        norms = {}
        for name, w in weights.arrays.items():
            if name.startswith("weight"):
                gates = w.reshape(len(design.gates), H, -1).astype(np.float64)
                known = np.isfinite(gates).all()
                norm = (
                    np.linalg.norm(gates, 2, axis=(1, 2)) if known else np.full(len(gates), np.nan)
                )
                norms[name] = norm[:, None].astype(dtype)
        small = Weights(norms, design, weights.layers[0].make)
        Hp, n = padded(1, dtype), design.slots.factors
        factors = aligned((len(chain.factors), n * Hp), dtype)
        factors[:] = 0
        each, whole = factors.reshape(-1, n, Hp), chain.factors.reshape(-1, n, self._Hp)
        for i in range(0, len(each), _ROWS):
            each[i : i + _ROWS, :, 0] = np.abs(whole[i : i + _ROWS, :, :H]).max(axis=2)
        one = copy.copy(self)
        one._H, one._Hp, one._N, one._wide = 1, Hp, self._blocks, design.slots.width * Hp
        one._weights = small
        one._chain = chain._replace(
            cell=small.stacked_cell,
            adjoint=small.stacked_adjoint_cell,
            factors=factors,
            zeros=np.zeros(one._wide, dtype),
            H=1,
            I=1,
            Hp=Hp,
            Ip=Hp,
        )
        return one

    def weight_gradient(
        self, steps: np.ndarray, cotangents: np.ndarray, tangents: np.ndarray, weight: np.ndarray
    ) -> np.ndarray:
        """sum_r weight_r u_r' (dJ_r/dW_hh) v_{r-1}, the factors of every step held.

        steps (n,): r; cotangents (n,N): u_r; tangents (n,N): v_{r-1}; weight (n,).  Returns (G·H,H)
        in float64, of several layers (L,G·H,H).
        """
        self._check(steps, 1, cotangents[:, None], forward=False)
        self._check(steps - 1, 1, tangents[:, None], forward=True)
        design, L, H = self._weights.design, self._chain.layers, self._H
        slots = design.slots
        total = np.zeros((L, len(design.h_gates), H, H))
        for i in range(0, len(steps), _ROWS):
            some = slice(i, i + _ROWS)
            a_dot = self._slots(steps[some] - 1, tangents[some], forward=True)
            da = self._slots(steps[some], cotangents[some], forward=False)
            da = da * weight[some, None, None, None]
            h_dot = tangents[some].reshape(len(da), L, -1)[:, :, :H]
            for l in range(L):
                for g in range(len(design.h_gates)):
                    slot = slots.first + g
                    # what W_hh multiplies: h, or what the gate has left of it
                    gated = slots.gate > slots.first and slot >= slots.gate
                    read = a_dot[:, l, slots.last] if gated else h_dot[:, l]
                    total[l, g] += da[:, l, slot].T @ read
        order = [design.h_gates.index(letter) for letter in design.gates]
        by_layer = total[:, order].reshape(L, -1, H)
        return by_layer if L > 1 else by_layer[0]

    def _slots(self, firsts: np.ndarray, rows: np.ndarray, forward: bool) -> np.ndarray:
        """What one step of rows (n,N), each from a state of its own, leaves in every layer's slots.

        Returns (n,L,slots,H) in float64: tangents of what each slot holds, or cotangents.
        """
        now, L = self._rows(rows), self._chain.layers
        after, a = self._work(now, L * self._wide)
        block = kernels.Block(now, after, a, 1)
        kept = aligned((0, *now.shape), self.dtype)
        (kernels.push if forward else kernels.pull)(self._chain, firsts, 1, block, kept)
        return a.reshape(len(now), L, -1, self._Hp)[..., : self._H].astype(np.float64)

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        wide = aligned((len(rows), self._blocks * self._Hp), self.dtype)
        apart = wide.reshape(len(rows), self._blocks, self._Hp)
        apart[:, :, : self._H] = rows.reshape(len(rows), self._blocks, self._H)
        apart[:, :, self._H :] = 0
        return wide

    def _plain(self, rows: np.ndarray) -> np.ndarray:
        if self._Hp == self._H:
            return rows
        apart = rows.reshape(*rows.shape[:-1], self._blocks, self._Hp)[..., : self._H]
        return apart.reshape(*rows.shape[:-1], self._N)
