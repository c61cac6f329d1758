"""torch.nn's recurrent layers, computed by fastbptt inside autograd, on the CPU.

`RNN`, `GRU` and `LSTM` are torch.nn's classes with another forward: constructor, parameters,
initialisation and `state_dict` are inherited.  `accelerate(model)` makes them of a model's own
layers, in place, and `restore(model)` undoes it.  `from_module(layer)` is a net of fastbptt, for
`fb.diagnose`, traces and chains of Jacobians.

An input is read where it lies if it is contiguous as (T, B, I); one of a PackedSequence, with
`batch_first` or with other strides is copied.  So are parameters that have changed, and the output
where gradients are wanted: it may then be changed in place as torch.nn's.
"""

import warnings
import weakref
from typing import Any, TypeAlias

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import networks
from ..loading import from_state_dict
from ..network import Network
from .torch_autograd import (
    INSTEAD,
    Held,
    Layers,
    array,
    parts_of,
    state_of,
    tensor,
    threads,
    transform_of,
)
from .torch_checks import of_one_dtype, of_rank, refusal, refusal_of, states_of

# The net of each module and span of layers, and what it was made for.  Beside the modules and not
# in them: neither pickled nor copied with them.
_Nets: TypeAlias = dict[tuple[int, int], tuple[tuple[Any, ...], Held]]
_nets: weakref.WeakKeyDictionary[torch.nn.Module, _Nets] = weakref.WeakKeyDictionary()


def _node(module: torch.nn.RNNBase, x: Any, hx: Any) -> Any:
    """The call as a node of the graph that torch.fx traces, as of torch.nn's layers, if it does."""
    given = (x, *hx) if isinstance(hx, (tuple, list)) else (x, hx)
    tracer: Any = next((y.tracer for y in given if isinstance(y, torch.fx.Proxy)), None)
    if tracer is None:
        return None
    path = tracer.path_of_module(module)
    # the node would call hooks whose traces are in the graph already
    if not path or module._forward_pre_hooks or module._forward_hooks:
        raise NotImplementedError(
            "fastbptt: torch.fx's traces of a layer by itself or with hooks are not implemented; "
            f"{INSTEAD}"
        )
    return tracer.create_proxy("call_module", path, (x, hx), {})


class _Recurrent(torch.nn.RNNBase):
    """The forward pass that all three share."""

    def _net(self, first: int, last: int, weights: dict[str, torch.Tensor]) -> Network:
        """fastbptt's net of the layers first .. last-1, with the parameters as they are now.

        Their contents are compared: a version counter does not see what goes through `.data`.
        """
        D = 1 + self.bidirectional
        own = {
            name.replace(f"_l{layer}", f"_l{layer - first}") if first else name: weights[name]
            for layer in range(first, last)
            for names in self._all_weights[layer * D : (layer + 1) * D]
            for name in names
        }
        I, H = self.input_size if first == 0 else D * self.hidden_size, self.hidden_size
        dtype = own["weight_hh_l0"].dtype
        made_for = self.mode, I, H, last - first, self.bias, self.bidirectional, dtype
        nets = _nets.setdefault(self, {})
        known, held = nets.get((first, last), (None, None))
        if held is not None and known == made_for:
            if held.are(own):
                return held.net
            net = held.net
        else:
            kind, _, nonlinearity = self.mode.partition("_")
            # not self.nonlinearity, which torch.nn does not read
            options: dict[str, Any] = {"nonlinearity": nonlinearity.lower()} if nonlinearity else {}
            options |= {"bias": self.bias, "bidirectional": self.bidirectional}
            options |= {"dtype": array(own["weight_hh_l0"]).dtype}
            net = getattr(networks, kind)(I, H, last - first, rng=0, **options)
        net.load_state_dict({name: array(y) for name, y in own.items()})
        nets[first, last] = made_for, Held(net)
        return net

    def _checked(self, y: torch.Tensor, name: str, weights: dict[str, torch.Tensor]) -> None:
        """What torch.nn's own checks leave to the kernels."""
        if (reason := refusal_of(y)) is not None:
            raise NotImplementedError(f"fastbptt: {name} {reason}")
        if torch.is_autocast_enabled("cpu"):
            raise NotImplementedError(
                "fastbptt: autocast asks for half precision; leave it by "
                'torch.autocast("cpu", enabled=False)'
            )
        if y.dtype != (dtype := weights["weight_ih_l0"].dtype):
            raise ValueError(
                f"{name} must have the same dtype as weight, got {name} {y.dtype} and weight "
                f"{dtype}; convert it by {name}.to({dtype}), or the module by .to({y.dtype})"
            )

    @torch.compiler.disable  # a compiled model runs this layer between two of its graphs
    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """As torch.nn's: (output, h_n), or (output, (h_n, c_n)) of an LSTM.

        No steps, of which torch.nn raises, give an empty output and the state as it was given.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            For shapes and dtypes that do not fit, as torch.nn's.  RuntimeError where second
            derivatives are asked for.
        NotImplementedError
            For other devices than the CPU, other dtypes than float32 and float64, autocast,
            torch.func, forward-mode derivatives, torch.jit.trace, torch.export, and torch.fx's
            traces of a layer by itself or with hooks.  In the backward pass, for several
            gradients at once (`is_grads_batched`).
        """
        if (node := _node(self, input, hx)) is not None:
            return node
        packed = isinstance(input, PackedSequence)
        if not packed and not isinstance(input, torch.Tensor):
            got = type(input).__name__
            raise TypeError(f"input: expected a Tensor or PackedSequence, got {got}")
        if not packed and input.dim() not in (2, 3):
            raise ValueError(
                f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D tensor instead"
            )
        if packed and input.data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {input.data.dim()}")
        pair, batched = self.mode == "LSTM", packed or input.dim() == 3
        states = states_of(hx, pair)
        data = input.data if packed else input
        # Read once: a parametrization may draw each anew, or count how often it is asked.
        weights = {name: getattr(self, name) for name in self._flat_weights_names}
        if (what := transform_of(data, *states, *weights.values())) is not None:
            raise NotImplementedError(f"fastbptt: {what} are not implemented; {INSTEAD}")
        if (reason := refusal(self, weights)) is not None:
            raise NotImplementedError(f"fastbptt: {reason}")
        of_one_dtype(weights)
        for y, name in [(data, "input"), *((y, "hx") for y in states)]:
            self._checked(y, name, weights)
        if not batched:
            of_rank(states, 2, "unbatched")
            states = tuple(y.unsqueeze(1) for y in states)
        else:
            of_rank(states, 3, "batched")

        lengths = None
        if packed:
            sizes, order, back = input.batch_sizes, input.sorted_indices, input.unsorted_indices
            states = tuple(y if order is None else y.index_select(1, order) for y in states)
            x, lengths = pad_packed_sequence(PackedSequence(input.data, sizes))
        else:
            x = input if batched else input.unsqueeze(1)
            x = x.transpose(0, 1) if self.batch_first and batched else x
        B = x.size(1)
        if x.size(2) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got "
                f"{x.size(2)}"
            )
        expected = (self.num_layers * (1 + self.bidirectional), B, self.hidden_size)
        for i, y in enumerate(states):
            which = f"hidden[{i}]" if pair else "hidden"
            self.check_hidden_size(y, expected, f"Expected {which} size {{}}, got {{}}")

        output, states = self._run(x, states, lengths, weights)

        if lengths is not None:
            data = pack_padded_sequence(output, lengths).data
            states = tuple(y if back is None else y.index_select(1, back) for y in states)
            return PackedSequence(data, sizes, order, back), (states if pair else states[0])
        if not batched:
            output, states = output.squeeze(1), tuple(y.squeeze(1) for y in states)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, (states if pair else states[0])

    def _run(
        self,
        x: torch.Tensor,
        states: tuple[torch.Tensor, ...],
        lengths: torch.Tensor | None,
        weights: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """All layers over x (T,B,I): as one net, or where dropout lies between them as several."""
        D, L = 1 + self.bidirectional, self.num_layers
        between = self.dropout > 0 and self.training
        steps = None if lengths is None else lengths.numpy()
        ends: list[tuple[torch.Tensor, ...]] = []
        for first in range(L) if between else (0,):
            last = first + 1 if between else L
            own = tuple(y[first * D : last * D] for y in states)  # none if none were given
            names = [n for group in self._all_weights[first * D : last * D] for n in group]
            parameters = [weights[name] for name in names]
            net = self._net(first, last, weights)
            if torch.is_grad_enabled() and any(y.requires_grad for y in (x, *own, *parameters)):
                if not own:
                    shape = (last - first) * D, x.size(1), self.hidden_size
                    zeros = torch.zeros(shape, dtype=x.dtype, device=x.device)
                    own = (zeros,) * (1 + net.weights.design.has_c)
                x, *end = Layers.apply(net, steps, x, *own, *parameters)
            else:
                given = tuple(array(y) for y in own)
                with threads(net, x):
                    output, state = net(array(x), state_of(given), steps)
                x = tensor(output)
                end = [torch.from_numpy(y) for y in parts_of(state)]
            ends.append(tuple(end))
            if last < L:
                x = self._dropped(x, lengths)
        if len(ends) == 1:
            return x, ends[0]
        return x, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))

    def _dropped(self, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """x (T,B,I) by torch.nn's masks: drawn for the packed data if there are lengths."""
        if lengths is None:
            return torch.nn.functional.dropout(x, self.dropout)
        data, *rest = pack_padded_sequence(x, lengths)
        data = torch.nn.functional.dropout(data, self.dropout)
        return pad_packed_sequence(PackedSequence(data, *rest))[0]


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN, computed by fastbptt.

    Examples
    --------
    >>> import torch
    >>> from fastbptt.bridges.torch import RNN
    >>> output, h = RNN(3, 5, batch_first=True)(torch.ones(2, 7, 3))
    >>> output.shape
    torch.Size([2, 7, 5])
    """


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU, computed by fastbptt."""


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM, computed by fastbptt; `proj_size` raises a NotImplementedError when called."""


_FORWARDS = {kind.forward for kind in (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM, _Recurrent)}
_TWINS: dict[type, type] = {torch.nn.RNN: RNN, torch.nn.GRU: GRU, torch.nn.LSTM: LSTM}


def from_module(module: torch.nn.RNNBase) -> Network:
    """The net that a layer of torch.nn or of the bridge is, with a copy of its parameters.

    Parameters
    ----------
    module : torch.nn.RNN, torch.nn.GRU or torch.nn.LSTM
        On the CPU, in float32 or float64.  Its dropout is left out, as in `eval()`.

    Returns
    -------
    RNN, GRU or LSTM
        Of fastbptt.

    Raises
    ------
    TypeError
        If it is no such layer but a subclass with a forward pass of its own, or something else, or
        if its parameters are of two dtypes.
    NotImplementedError
        For projections, other devices and other dtypes.

    Examples
    --------
    >>> import torch
    >>> from fastbptt.bridges.torch import from_module
    >>> from_module(torch.nn.RNN(3, 5, nonlinearity="relu", batch_first=True))
    RNN(3, 5, nonlinearity='relu', batch_first=True, dtype=float32)
    """
    if not isinstance(module, torch.nn.RNNBase):
        got = type(module).__name__
        raise TypeError(f"module: expected a torch.nn.RNN, GRU or LSTM, got {got}")
    if type(module).forward not in _FORWARDS:  # not by type: parametrizing makes a subclass
        got = type(module).__name__
        raise TypeError(f"module: expected torch.nn's own forward pass, {got} has another")
    weights = {name: getattr(module, name) for name in module._flat_weights_names}
    if (reason := refusal(module, weights)) is not None:
        raise NotImplementedError(f"module: {reason}")
    of_one_dtype(weights)
    kind, _, nonlinearity = module.mode.lower().partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    return from_state_dict(weights, kind.upper(), batch_first=module.batch_first, **options)


def _of_another_kind(module: torch.nn.Module) -> str | None:
    """Why a recurrent layer that is none of torch.nn's own is left alone; None of other modules."""
    kind = type(module).__name__
    names = [layer.__name__ + suffix for layer in _TWINS for suffix in ("", "Cell")]
    if isinstance(module, torch.jit.ScriptModule):
        of = getattr(module, "original_name", "")
        return f"{of} is scripted or traced" if of in names else None
    if isinstance(module, torch.nn.RNNCellBase):
        return f"{kind} computes one step"
    if isinstance(module, torch.nn.RNNBase):
        return f"{kind} is a subclass and may compute something else"
    quantized = type(module).__module__.startswith("torch.ao.nn.quanti")  # quantized, quantizable
    return f"{kind} is quantized" if quantized and kind in names else None


def accelerate(model: torch.nn.Module) -> torch.nn.Module:
    """Let fastbptt compute every torch.nn.RNN, GRU and LSTM in a model, which is changed in place.

    Parameters, hooks, names and mode stay what and where they are: optimisers stay valid.  What
    goes by a layer's exact type, as torch.ao.quantization does, passes over them, and torch.jit's
    scripts cannot be made of them: call `restore` before.

    Parameters
    ----------
    model : torch.nn.Module
        May be such a layer itself.

    Returns
    -------
    torch.nn.Module
        The model.

    Warns
    -----
    UserWarning
        Naming the recurrent layers left as they were, cells, subclasses and scripted ones among
        them, and why.

    Raises
    ------
    TypeError
        If it is no torch.nn.Module.

    Examples
    --------
    >>> import torch
    >>> from fastbptt.bridges.torch import accelerate
    >>> accelerate(torch.nn.Sequential(torch.nn.LSTM(3, 5)))[0].__class__.__module__
    'fastbptt.bridges.torch'
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    left = []
    for name, module in model.named_modules():
        if isinstance(module, _Recurrent):
            continue
        if type(module) in _TWINS:
            reason = refusal(module, dict(module.named_parameters(recurse=False)))
            if reason is None:
                module.__class__ = _TWINS[type(module)]
        else:
            reason = _of_another_kind(module)
        if reason is not None:
            left.append(f"{name or 'the model'} ({reason})")
    if left:
        warnings.warn(f"fastbptt leaves alone {'; '.join(left)}", stacklevel=2)
    return model


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `accelerate`: every layer of a model, which is returned, is torch.nn's again.

    Parameters
    ----------
    model : torch.nn.Module

    Warns
    -----
    UserWarning
        Naming the layers left as they were: subclasses of the bridge's, as a parametrization makes
        one; remove it first.
    """
    back, left = {twin: kind for kind, twin in _TWINS.items()}, []
    for name, module in model.named_modules():
        if type(module) in back:
            module.__class__ = back[type(module)]
            _nets.pop(module, None)
        elif isinstance(module, _Recurrent):
            left.append(f"{name or 'the model'} ({type(module).__name__} is a subclass)")
    if left:
        warnings.warn(f"fastbptt leaves as they are {'; '.join(left)}", stacklevel=2)
    return model
