"""The parameters of a net, unchangeable, and their packed copies."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .kernels.cells import Design
from .kernels.memory import aligned
from .kernels.panels import BLOCK, pack, pack_transposed, padded
from .kernels.simd import lanes

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def pack_slots(*products: list[np.ndarray]) -> np.ndarray:
    """The gates (H,K) of each product -> the panels that `slots.slots_matmul` reads.

    Gates within one block are packed as one matrix, so that few wide tiles cover them all.
    """
    blocks = []
    for gates in products:
        Hp = padded(len(gates[0]), gates[0].dtype) if gates else 0
        if len(gates) <= 1 or Hp > BLOCK * lanes(gates[0].dtype):
            blocks += gates
        else:
            H, K = gates[0].shape
            together = np.zeros((len(gates), Hp, K), gates[0].dtype)
            together[:, :H] = gates
            blocks.append(together.reshape(-1, K))
    return pack(*blocks)


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Packed parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    total = aligned((sum(part.size for part in parts),), dtype)
    np.concatenate(parts, out=total)
    return total


class Layer:
    """The parameters of one layer in one direction, in float32 or float64.

    Parameters
    ----------
    design : Design
    make : callable
        (w_ih, w_hh, bias) -> the cell, from the packed arrays.
    w_ih, w_hh : ndarray (G·H,I), (G·H,H)
    bias_ih, bias_hh : ndarray (G·H,) or None
    """

    def __init__(
        self,
        design: Design,
        make: Callable[..., Any],
        w_ih: np.ndarray,
        w_hh: np.ndarray,
        bias_ih: np.ndarray | None = None,
        bias_hh: np.ndarray | None = None,
    ) -> None:
        self.design, self.make = design, make
        self.dtype, self.hidden_size, self.input_size = w_ih.dtype, w_hh.shape[1], w_ih.shape[1]
        self._w_ih, self.w_hh, self._bias_ih, self._bias_hh = w_ih, w_hh, bias_ih, bias_hh

    def _gates(self, w: np.ndarray, letters: str) -> list[np.ndarray]:
        """The gates of w (G·H,.) that the letters name, (H,.) each."""
        H, gates = self.hidden_size, self.design.gates
        return [w[gates.index(letter) * H : (gates.index(letter) + 1) * H] for letter in letters]

    def _bias(self) -> np.ndarray:
        """(slots·Hp,): in each slot the biases of what is added up there."""
        design, H = self.design, self.hidden_size
        bias = np.zeros((design.slots.last, padded(H, self.dtype)), self.dtype)
        if self._bias_ih is not None and self._bias_hh is not None:
            bias[: design.slots.x, :H] += self._gates(self._bias_ih, design.x_gates)
            bias[design.slots.first :, :H] += self._gates(self._bias_hh, design.h_gates)
        return bias.reshape(-1)

    @functools.cached_property
    def cell(self) -> Any:
        """What a forward step reads; packed at the first use."""
        slots = self.design.slots
        x = self._gates(self._w_ih, self.design.x_gates)
        h = self._gates(self.w_hh, self.design.h_gates)
        gate = slots.gate - slots.first  # gates of each product with W_hh lie together
        alone = max(gate, min(slots.x, slots.last) - slots.first)
        w_hh = pack_slots(h[:gate], h[gate:alone], h[alone:])
        return self.make(pack_slots(x), w_hh, self._bias())

    @functools.cached_property
    def adjoint_cell(self) -> Any:
        """What a backward step reads: W' for each product, zeros for the bias."""
        slots, H = self.design.slots, self.hidden_size
        Hp, Ip = padded(H, self.dtype), padded(self.input_size, self.dtype)
        x = self._gates(self._w_ih, self.design.x_gates)
        h = self._gates(self.w_hh, self.design.h_gates)
        gate = slots.gate - slots.first
        w_hh = [pack_transposed(gates) for gates in (h[:gate], h[gate:]) if gates]
        zeros = np.zeros(max(slots.last * Hp, Ip), self.dtype)
        return self.make(pack_transposed(x), _joined(w_hh, self.dtype), zeros)

    def parameter_gradients(
        self, dw_ih: np.ndarray, dw_hh: np.ndarray, db: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Of w_ih, w_hh, bias_ih and bias_hh, from what has a row for each unit of each slot."""
        design, H = self.design, self.hidden_size
        Hp = padded(H, self.dtype)

        def in_order(y: np.ndarray, letters: str) -> np.ndarray:
            if letters == design.gates and Hp == H:
                return np.ascontiguousarray(y[: len(letters) * H])
            starts = [letters.index(letter) * Hp for letter in design.gates]
            return np.concatenate([y[s : s + H] for s in starts])

        return (
            in_order(dw_ih[:, : self.input_size], design.x_gates),
            in_order(dw_hh[:, :H], design.h_gates),
            in_order(db, design.x_gates),
            in_order(db[design.slots.first * Hp :].copy(), design.h_gates),
        )


class Weights:
    """All parameters of a net under PyTorch's names, and its layers.

    The arrays are copied and read-only, so that what was packed cannot go stale and a trace keeps
    the weights it was made with.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], design: Design, make: Callable[..., Any]
    ) -> None:
        self.arrays = {name: np.array(value, order="C") for name, value in arrays.items()}
        for value in self.arrays.values():
            value.flags.writeable = False
        self.design = design
        self.suffixes = [
            name[len("weight_hh") :] for name in arrays if name.startswith("weight_hh")
        ]
        self.layers = [
            Layer(
                design,
                make,
                self.arrays[f"weight_ih{suffix}"],
                self.arrays[f"weight_hh{suffix}"],
                self.arrays.get(f"bias_ih{suffix}"),
                self.arrays.get(f"bias_hh{suffix}"),
            )
            for suffix in self.suffixes
        ]
        self.directions = 1 + any(suffix.endswith("_reverse") for suffix in self.suffixes)
        self.dtype = self.layers[0].dtype
        self.hidden_size = self.layers[0].hidden_size

    def __reduce__(self) -> tuple[Any, ...]:
        """The arrays alone: NumPy's own copies and pickles of them could be written to."""
        return Weights, (self.arrays, self.design, self.layers[0].make)

    def _stacked(self, cells: list[Any]) -> Any:
        """The cells of all layers as one, their arrays one after the other."""
        if len(cells) == 1:
            return cells[0]
        parts = ([getattr(cell, n) for cell in cells] for n in ("w_ih", "w_hh", "bias"))
        return self.layers[0].make(*(_joined(part, self.dtype) for part in parts))

    @functools.cached_property
    def stacked_cell(self) -> Any:
        """What a step of all layers reads."""
        return self._stacked([layer.cell for layer in self.layers])

    @functools.cached_property
    def stacked_adjoint_cell(self) -> Any:
        """What a step back through all layers reads."""
        return self._stacked([layer.adjoint_cell for layer in self.layers])
