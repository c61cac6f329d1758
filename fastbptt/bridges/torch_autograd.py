"""A net of fastbptt as one function of torch's autograd.

What the pass back needs lies in tensors that torch keeps: it frees them with the graph's others,
offloads them or has them made again as its hooks and checkpoints say.
"""

import contextlib
import ctypes
import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from ..network import Network
from ..openmp import OpenMP
from ..threads import num_threads
from ..trace import Trace

_PLAIN = torch.nn.Parameter, torch.Tensor
_numbers = itertools.count()  # of passes: a checkpoint's second one has another
_openmp = OpenMP.found()
# With the GIL, so that no other thread gives a parameter other memory while this one is read.
_memcmp = ctypes.PyDLL("msvcrt" if os.name == "nt" else None).memcmp
_memcmp.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
# Multiply-adds, some 4 ms, of a call on threads of ours, which share the cores with torch's.
_WORTH_SHARING = 5e8
INSTEAD = "use torch.nn's own layer, which fastbptt.bridges.torch.restore(model) brings back"


def array(y: torch.Tensor) -> np.ndarray:
    """The tensor's memory as an array, a copy of what only a bit of the tensor makes negative."""
    return y.numpy(force=True)


class Held:
    """The parameters of a net, to be compared with tensors, bit by bit.

    By NumPy to compare four small ones takes 20 us, by C's own function 5.
    """

    def __init__(self, net: Network) -> None:
        self.net, self._weights = net, net.weights  # which keeps what lies at the addresses
        arrays = net.weights.arrays
        self._places = [(name, y.ctypes.data, y.nbytes, y.shape) for name, y in arrays.items()]

    def are(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether the net still has them, and these, of its dtype, under its names, are the same.

        Of a tensor of another class nobody knows where its numbers lie, if anywhere.
        """
        if self.net.weights is not self._weights:
            return False
        for name, address, size, shape in self._places:
            y = tensors[name]
            if type(y) not in _PLAIN or y.shape != shape:
                return False
            y = y.contiguous().resolve_neg()  # which must not go while its address is in use
            if _memcmp(address, y.data_ptr(), size):
                return False
        return True


def tensor(y: np.ndarray) -> torch.Tensor:
    """The array's memory as a tensor, contiguous as torch.nn's results are."""
    return torch.from_numpy(np.ascontiguousarray(y))


def state_of(parts: tuple[Any, ...]) -> Any:
    """A state as nets take it, from its parts: None from none, of an LSTM both."""
    return parts if len(parts) > 1 else parts[0] if parts else None


def parts_of(state: Any) -> tuple[Any, ...]:
    """The parts of a state that a net gave."""
    return state if isinstance(state, tuple) else (state,)


def under_functorch() -> bool:
    """Whether one of torch.func's transforms is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def transform_of(*given: torch.Tensor) -> str | None:
    """What follows tensors where the bridge cannot: no tangents, or constants for results."""
    if under_functorch():
        return "torch.func's transforms"
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "torch.jit.trace and torch.export"
    forward_mode = forward_ad._current_level >= 0
    if forward_mode and any(forward_ad.unpack_dual(y).tangent is not None for y in given):
        return "forward-mode derivatives"
    return None


class _Second(torch.autograd.Function):
    """The identity, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, *_: Any) -> torch.Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"fastbptt: second derivatives are not implemented; {INSTEAD}")


class Layers(torch.autograd.Function):
    """(net, lengths, x, states, parameters) -> (output, states), x and output (T,B,.)."""

    @staticmethod
    def forward(
        ctx: Any, net: Network, lengths: Any, x: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Run the net; what the pass back needs is saved."""
        parts = 1 + net.weights.design.has_c
        states = tuple(array(y) for y in tensors[:parts])
        given = array(x)
        with threads(net, x):
            trace = net.trace(given, state_of(states), lengths)
        results = _results(trace)
        ctx.trace, kept = trace.taken_apart()
        ctx.net, ctx.parts, ctx.given, ctx.number = net, parts, len(tensors), next(_numbers)
        ctx.kept = [(y.shape, y.dtype) for y in (given, *kept)]
        ctx.set_materialize_grads(False)
        # what was given as well, so that changes of it in place are noticed
        saved = (torch.from_numpy(y) for y in kept)
        ctx.save_for_backward(x, *tensors, torch.from_numpy(np.array(ctx.number)), *saved)
        return results

    @staticmethod
    def backward(
        ctx: Any, d_output: torch.Tensor | None, *d_states: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """BPTT, for what is wanted."""
        x, *saved = ctx.saved_tensors
        tensors, number, kept = saved[: ctx.given], saved[ctx.given], saved[ctx.given + 1 :]
        given = [y for y in (d_output, *d_states) if y is not None]
        if under_functorch() or any(torch._C._functorch.is_legacy_batchedtensor(y) for y in given):
            raise NotImplementedError(
                "fastbptt: batches of gradients (is_grads_batched, vectorize) are not implemented; "
                f"call backward for each, or {INSTEAD}"
            )
        arrays = [np.ascontiguousarray(array(y)) for y in (x, *kept)]  # hooks may turn them
        if (got := [(y.shape, y.dtype) for y in arrays]) != ctx.kept:
            raise RuntimeError(
                f"fastbptt: a hook of saved tensors returned {got}, expected {ctx.kept} as saved"
            )
        weights = None
        if number != ctx.number:  # of a checkpoint, whose weights may be others
            weights = ctx.net.weights.having([array(y) for y in tensors[ctx.parts :]])
        trace = ctx.trace.put_together(arrays[0], arrays[1:], weights)
        gradients = _gradients(ctx, trace, x, d_output, d_states, tensors)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = [
                y if y is None else _Second.apply(y, *given, x, *tensors) for y in gradients
            ]
        return None, None, *gradients


def threads(net: Network, x: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """torch's threads, or as many of ours where a call over x (T,B,I) is long enough."""
    if _openmp is not None and _openmp.usable():
        return num_threads(torch.get_num_threads(), _openmp.side_by_side)
    layers = [one.hidden_size * (one.input_size + one.hidden_size) for one in net.weights.layers]
    cost = x.size(0) * x.size(1) * len(net.weights.design.gates) * sum(layers)
    return num_threads(torch.get_num_threads() if cost >= _WORTH_SHARING else 1)


def _results(trace: Trace) -> tuple[torch.Tensor, ...]:
    """The output, a copy that may be changed in place as torch.nn's, and the states."""
    output = np.array(trace.output, order="C")  # 1 % of a step of B = 1, H = 64
    return torch.from_numpy(output), *(torch.from_numpy(y) for y in parts_of(trace.state))


@torch.no_grad()
def _gradients(
    ctx: Any,
    trace: Trace,
    x: torch.Tensor,
    d_output: torch.Tensor | None,
    d_states: tuple[torch.Tensor | None, ...],
    tensors: list[torch.Tensor],
) -> list[torch.Tensor | None]:
    """Of x, the states and the parameters, where wanted."""
    _, _, wants_x, *wanted = ctx.needs_input_grad
    d_state: Any = None
    if any(y is not None for y in d_states):
        shapes = zip(d_states, tensors, strict=False)
        d_state = state_of(
            tuple(np.zeros_like(array(s)) if y is None else array(y) for y, s in shapes)
        )
    with threads(ctx.net, x):
        gradients = trace.backward(
            None if d_output is None else array(d_output), d_state, input_gradient=wants_x
        )
    every = [
        *parts_of(gradients.state),
        *(gradients.params[name] for name in ctx.net.weights.arrays),
    ]
    own = [torch.from_numpy(y) if want else None for y, want in zip(every, wanted, strict=True)]
    return [torch.from_numpy(gradients.x) if wants_x else None, *own]
