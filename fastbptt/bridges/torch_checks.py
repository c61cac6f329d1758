"""What a layer of the bridge cannot compute, and arguments that do not fit, in torch.nn's words."""

import collections
from collections.abc import Mapping
from typing import Any

import torch

_DTYPES = (torch.float32, torch.float64)


def refusal(module: torch.nn.RNNBase, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Why fastbptt cannot compute a module, None if it can."""
    if getattr(module, "proj_size", 0):
        return f"proj_size={module.proj_size} is not implemented, only 0: no kernel has projections"
    for name, y in weights.items():
        if (reason := refusal_of(y)) is not None:
            return f"{name} {reason}"
    return None


def refusal_of(y: torch.Tensor) -> str | None:
    """Why it cannot read a tensor, None if it can."""
    if not y.is_cpu:
        return f"is on {y.device}; fastbptt computes on the CPU: use .cpu(), or torch.nn's layer"
    if y.dtype not in _DTYPES:
        return f"is of {y.dtype}; fastbptt computes in float32 and float64: use .float()"
    return None


def of_one_dtype(weights: Mapping[str, torch.Tensor]) -> None:
    """Parameters of one dtype, or an error that names those unlike most."""
    dtypes = [y.dtype for y in weights.values()]
    if len(set(dtypes)) > 1:
        most = collections.Counter(dtypes).most_common(1)[0][0]
        odd = {name: y.dtype for name, y in weights.items() if y.dtype != most}
        raise TypeError(
            f"{', '.join(odd)}: expected {most} as the other parameters, got "
            f"{', '.join(sorted({str(y) for y in odd.values()}))}; convert all by module.float() "
            "or module.double()"
        )


def states_of(hx: Any, pair: bool) -> tuple[torch.Tensor, ...]:
    """h_0, or of an LSTM's pair h_0 and c_0; none if there are none."""
    if pair and hx is not None and not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx: expected a tuple (h_0, c_0), got {type(hx).__name__}")
    states = () if hx is None else tuple(hx) if pair else (hx,)
    if pair and len(states) not in (0, 2):
        raise RuntimeError(f"lstm expects two hidden states, got {len(states)}")
    for y in states:
        if not isinstance(y, torch.Tensor):
            raise TypeError(f"hx: expected a Tensor, got {type(y).__name__}")
    return states


def of_rank(states: tuple[torch.Tensor, ...], rank: int, which: str) -> None:
    """States of as many dimensions as the input, or torch.nn's error."""
    if any(y.dim() != rank for y in states):
        names = "hx" if len(states) == 1 else "hx and cx"
        got = ", ".join(f"{y.dim()}-D" for y in states)
        got = f"{got} tensor" if len(states) == 1 else f"({got}) tensors"
        raise RuntimeError(
            f"For {which} {rank}-D input, {names} should also be {rank}-D but got {got}"
        )
