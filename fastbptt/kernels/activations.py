"""Activations: a tag each, its value and its slope.

Slopes in a Jacobian product come from the pre-activation a: in float32 1 - h*h is 44 % wrong at
|a| = 8.5 and 0 from about 9 on, where the true slope is not (design.md D3).  BPTT, whose terms are
added and not multiplied, may take them from the stored value h.
"""

from typing import Any, NamedTuple

from .elementary import exp, sigmoid, tanh
from .jit import implements


class Tanh(NamedTuple):
    """Tag of the hyperbolic tangent."""


class Relu(NamedTuple):
    """Tag of max(a, 0)."""


class Sigmoid(NamedTuple):
    """Tag of the logistic function 1 / (1 + exp(-a))."""


TAGS: dict[str, Any] = {"tanh": Tanh(), "relu": Relu(), "sigmoid": Sigmoid()}
MAX_SLOPE = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25}


def value(act: Any, a: Any) -> Any:
    """f(a)."""


def slope(act: Any, a: Any) -> Any:
    """f'(a), to full relative accuracy in the tails."""


def slope_at_value(act: Any, h: Any) -> Any:
    """f'(a) where f(a) = h, to absolute accuracy."""


@implements(value, Tanh)
def _tanh_value(act, a):
    return tanh(a)


@implements(slope, Tanh)
def _tanh_slope(act, a):
    """1 / cosh^2 a = 4 e / (1 + e)^2 with e = exp(-2 |a|)."""
    e = exp(-type(a)(2) * abs(a))
    r = type(a)(1) / (type(a)(1) + e)
    return type(a)(4) * e * r * r


@implements(slope_at_value, Tanh)
def _tanh_slope_at_value(act, h):
    return (type(h)(1) - h) * (type(h)(1) + h)


@implements(value, Relu)
def _relu_value(act, a):
    return type(a)(0) if a <= type(a)(0) else a  # in this order a NaN stays one


@implements(slope, Relu)
def _relu_slope(act, a):
    return type(a)(0) if a <= type(a)(0) else type(a)(1)


@implements(slope_at_value, Relu)
def _relu_slope_at_value(act, h):
    return type(h)(0) if h <= type(h)(0) else type(h)(1)


@implements(value, Sigmoid)
def _sigmoid_value(act, a):
    return sigmoid(a)


@implements(slope, Sigmoid)
def _sigmoid_slope(act, a):
    """sigmoid(a) sigmoid(-a) = e / (1 + e)^2 with e = exp(-|a|)."""
    e = exp(-abs(a))
    r = type(a)(1) / (type(a)(1) + e)
    return e * r * r


@implements(slope_at_value, Sigmoid)
def _sigmoid_slope_at_value(act, h):
    return h * (type(h)(1) - h)
