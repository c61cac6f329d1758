"""A module of torch.nn and the bridge's, from the same seed, and what they return."""

import torch

from fastbptt.bridges import torch as bridge

KINDS = ("RNN", "GRU", "LSTM")

DTYPES = (torch.float32, torch.float64)


def twins(kind, *arguments, **keywords):
    """torch.nn's module and the bridge's, from the same seed."""
    modules = []
    for library in (torch.nn, bridge):
        torch.manual_seed(0)
        modules.append(getattr(library, kind)(*arguments, **keywords))
    return modules


def parts_of(state):
    return state if isinstance(state, tuple) else (state,)


def close(one, other):
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    scale = max(1, other.detach().abs().max().item()) if other.numel() else 1
    atol = scale * (1e-12 if other.dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(one, other, rtol=0, atol=atol)
