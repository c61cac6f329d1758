"""The parameters of a net, unchangeable, and their packed copies."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernels.cells import Design
from .kernels.jit import Entry
from .kernels.memory import Pieces, aligned, pieces, row_stride
from .kernels.packing import order, pack_cell
from .kernels.panels import padded
from .kernels.simd import VECTORS, lanes
from .kernels.sweeps import descend, forward

_PACKED_AHEAD = 1 << 20  # bytes that are packed for BPTT before it is known to come


@dataclass(frozen=True, eq=False)
class Sizes:
    """What cell, dtype, I and H decide, found once: in a call of few steps that took a tenth."""

    pack: Entry  # `pack_cell`,
    forward: Entry  # `sweeps.forward`
    descend: Entry  # and `sweeps.descend` for such cells

    dtype: np.dtype
    parts: int  # of a state: 2 with a c
    Ip: int
    Hp: int
    work: int  # multiply-adds of a sequence's step
    wide: int  # elements of a row of `a` and da: Hp for each slot, see `row_stride`
    order: tuple[Any, ...]  # an `Order`, as kernels take it
    cell: Pieces  # what `Layer.cell` packs,
    adjoint: Pieces  # what `Layer.adjoint_cell` does,
    both: Pieces  # the two together,
    gradients: Pieces  # and dw_ih, dw_hh and db, by slots
    no_panels: tuple[np.ndarray, ...]  # of a cell that is not wanted
    zeros: np.ndarray  # in place of an adjoint cell's bias
    no_state: np.ndarray  # (0,Hp),
    no_slots: np.ndarray  # and (0,wide): of what a pass does without


@functools.lru_cache
def _entries(make: Callable[..., Any], dtype: np.dtype) -> tuple[Entry, Entry, Entry]:
    """For the cells that `make` makes: their type is what chooses a kernel's code."""
    return Entry(pack_cell), Entry(forward), Entry(descend)


@functools.lru_cache
def sizes(design: Design, make: Callable[..., Any], dtype: np.dtype, I: int, H: int) -> Sizes:
    """The `Sizes` of a layer."""
    slots, of_x, of_h = design.slots, len(design.x_gates), len(design.h_gates)
    Ip, Hp, panel = padded(I, dtype), padded(H, dtype), VECTORS * lanes(dtype)
    bias = slots.last * Hp
    whole_I, whole_H = (-(-n // panel) * panel for n in (I, H))
    wide = row_stride(slots.width * Hp, dtype)
    cell = (of_x * Hp * I,), (of_h * Hp * H,), (bias,)
    adjoint = (of_x * Hp * Ip,), (of_h * Hp * Hp,)
    zeros = aligned((max(bias, Ip),), dtype)
    zeros[:] = 0
    return Sizes(
        *_entries(make, dtype),
        dtype,
        1 + design.has_c,
        Ip,
        Hp,
        len(design.gates) * H * (I + H),
        wide,
        tuple(order(design)),
        Pieces(dtype, cell),
        Pieces(dtype, adjoint),
        Pieces(dtype, cell + adjoint),
        Pieces(dtype, ((of_x * Hp, whole_I), (of_h * Hp, whole_H), (bias,))),
        (np.empty(0, dtype),) * 3,
        zeros,
        np.empty((0, Hp), dtype),
        np.empty((0, wide), dtype),
    )


@functools.cache
def _no_bias(dtype: np.dtype) -> np.ndarray:
    bias = np.empty(0, dtype)
    bias.setflags(write=False)  # as those that there are
    return bias


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
        self.sizes = sizes(design, make, self.dtype, self.input_size, self.hidden_size)
        self.w_hh = w_hh
        biases = (_no_bias(self.dtype),) * 2 if bias_ih is None else (bias_ih, bias_hh)
        self._parameters = (w_ih, w_hh, *biases)

    @functools.cached_property
    def cell(self) -> Any:
        """What a forward step reads; packed at the first use, or by `pack`."""
        panels = tuple(pieces(self.sizes.cell))
        self._pack(panels, self.sizes.no_panels[:2])
        return self.make(*panels)

    @functools.cached_property
    def adjoint_cell(self) -> Any:
        """What a backward step reads: W' for each product, and zeros for the bias; as `cell`."""
        panels = tuple(pieces(self.sizes.adjoint))
        self._pack(self.sizes.no_panels, panels)
        return self.make(*panels, self.sizes.zeros)

    def pack(self) -> None:
        """Both, by one call, if neither is there: of a few units that takes as long as one."""
        known, both = vars(self), self.sizes.both
        if both.bytes <= _PACKED_AHEAD and "cell" not in known and "adjoint_cell" not in known:
            panels = tuple(pieces(both))
            cell, adjoint = panels[:3], panels[3:]
            self._pack(cell, adjoint)
            known["cell"] = self.make(*cell)
            known["adjoint_cell"] = self.make(*adjoint, self.sizes.zeros)

    def _pack(self, panels: tuple[Any, ...], adjoint: tuple[Any, ...]) -> None:
        self.sizes.pack.call(self._parameters, self.sizes.order, self.hidden_size, panels, adjoint)

    def parameter_gradients(
        self, dw_ih: np.ndarray, dw_hh: np.ndarray, db: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Of w_ih, w_hh, bias_ih and bias_hh, from what has a row for each unit of each slot."""
        design, H, Hp = self.design, self.hidden_size, self.sizes.Hp

        def in_order(
            matrix: np.ndarray, width: int, bias: np.ndarray, letters: str
        ) -> tuple[np.ndarray, np.ndarray]:
            whole = matrix if matrix.shape[1] == width else matrix[:, :width]
            if Hp == H and letters == design.gates:
                return np.ascontiguousarray(whole), bias[: len(matrix)].copy()
            starts = [letters.index(letter) * Hp for letter in design.gates]
            matrix, bias = (np.concatenate([y[s : s + H] for s in starts]) for y in (whole, bias))
            return matrix, bias

        w_ih, b_ih = in_order(dw_ih, self.input_size, db, design.x_gates)
        w_hh, b_hh = in_order(dw_hh, H, db[design.slots.first * Hp :], design.h_gates)
        return w_ih, w_hh, b_ih, b_hh


@functools.lru_cache
def _suffixes(names: tuple[str, ...]) -> list[str]:
    """What the names of each layer and direction end with."""
    return [name[len("weight_hh") :] for name in names if name.startswith("weight_hh")]


class Weights:
    """All parameters of a net under PyTorch's names, and its layers.

    The arrays are copied and read-only, so that what was packed cannot go stale and a trace keeps
    the weights it was made with.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], design: Design, make: Callable[..., Any]
    ) -> None:
        self.arrays = own = {name: value.copy() for name, value in arrays.items()}
        for value in own.values():
            value.setflags(write=False)
        self.design = design
        self.layers = [
            Layer(
                design,
                make,
                own["weight_ih" + suffix],
                own["weight_hh" + suffix],
                own.get("bias_ih" + suffix),
                own.get("bias_hh" + suffix),
            )
            for suffix in _suffixes(tuple(own))
        ]
        self.dtype = self.layers[0].dtype
        self.hidden_size = self.layers[0].hidden_size

    def having(self, arrays: Sequence[np.ndarray]) -> "Weights":
        """These, if the arrays are theirs, or others of the same cell."""
        given = dict(zip(self.arrays, arrays, strict=True))
        if all(np.array_equal(self.arrays[name], y) for name, y in given.items()):
            return self
        return Weights(given, self.design, self.layers[0].make)

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
