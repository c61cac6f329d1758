"""The parameters of a net, unchangeable, and their packed copies."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .kernels.cells import Design
from .kernels.memory import aligned, pieces
from .kernels.packing import add_biases, order, pack, pack_transposed
from .kernels.panels import padded
from .kernels.simd import lanes


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

    @functools.cached_property
    def cell(self) -> Any:
        """What a forward step reads; packed at the first use."""
        dtype, slots, H = self.dtype, self.design.slots, self.hidden_size
        Hp, width, how = padded(H, dtype), lanes(dtype), order(self.design)
        shapes = (len(how.x) * Hp * self.input_size,), (len(how.h) * Hp * H,), (slots.last * Hp,)
        w_ih, w_hh, bias = pieces(dtype, *shapes)
        pack(self._w_ih, how.x, how.whole, H, width, w_ih)
        pack(self.w_hh, how.h, how.forward, H, width, w_hh)
        bias.fill(0)
        if self._bias_ih is not None:
            add_biases(self._bias_ih, self._bias_hh, how, H, width, bias)
        return self.make(w_ih, w_hh, bias)

    @functools.cached_property
    def adjoint_cell(self) -> Any:
        """What a backward step reads: W' for each product, zeros for the bias."""
        dtype, slots, H = self.dtype, self.design.slots, self.hidden_size
        Hp, Ip = padded(H, dtype), padded(self.input_size, dtype)
        width, how = lanes(dtype), order(self.design)
        shapes = (len(how.x) * Hp * Ip,), (len(how.h) * Hp * Hp,), (max(slots.last * Hp, Ip),)
        w_ih, w_hh, zeros = pieces(dtype, *shapes)
        pack_transposed(self._w_ih, how.x, how.whole, H, width, w_ih)
        pack_transposed(self.w_hh, how.h, how.adjoint, H, width, w_hh)
        zeros.fill(0)
        return self.make(w_ih, w_hh, zeros)

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
            value.setflags(write=False)
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
        stacked = []
        for name in ("w_ih", "w_hh", "bias"):
            parts = [getattr(cell, name) for cell in cells]
            stacked.append(aligned((sum(part.size for part in parts),), self.dtype))
            np.concatenate(parts, out=stacked[-1])
        return self.layers[0].make(*stacked)

    @functools.cached_property
    def stacked_cell(self) -> Any:
        """What a step of all layers reads."""
        return self._stacked([layer.cell for layer in self.layers])

    @functools.cached_property
    def stacked_adjoint_cell(self) -> Any:
        """What a step back through all layers reads."""
        return self._stacked([layer.adjoint_cell for layer in self.layers])
