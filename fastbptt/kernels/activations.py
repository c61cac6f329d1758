"""Activations: a tag each, its value, and its slope with it.

Slopes in a Jacobian product come from the pre-activation a: in float32 1 - h*h is 44 % wrong at
|a| = 8.5 and 0 from about 9 on, where the true slope is not (design.md D3).  BPTT, whose terms are
added and not multiplied, may take them from the stored value h.
"""

from typing import Any, NamedTuple

from .elementary import sigmoid, sigmoid_and_slope, tanh, tanh_and_slope
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


def value_and_slope(act: Any, a: Any) -> Any:
    """f(a), as `value` has it, and f'(a), to full relative accuracy in the tails.

    Both stand on one exponential and one division.
    """


def slope_at_value(act: Any, h: Any) -> Any:
    """f'(a) where f(a) = h, to absolute accuracy."""


@implements(value, Tanh)
def _tanh_value(act, a):
    return tanh(a)


@implements(value_and_slope, Tanh)
def _tanh_value_and_slope(act, a):
    return tanh_and_slope(a)


@implements(slope_at_value, Tanh)
def _tanh_slope_at_value(act, h):
    return (type(h)(1) - h) * (type(h)(1) + h)


@implements(value, Relu)
def _relu_value(act, a):
    return type(a)(0) if a <= type(a)(0) else a  # in this order a NaN stays one


@implements(value_and_slope, Relu)
def _relu_value_and_slope(act, a):
    return value(act, a), slope_at_value(act, a)


@implements(slope_at_value, Relu)
def _relu_slope_at_value(act, h):
    # a NaN's is NaN: with 0 or 1 a product over a state that overflowed had a finite norm
    zero, one = type(h)(0), type(h)(1)
    return zero if h <= zero else one if h > zero else h


@implements(value, Sigmoid)
def _sigmoid_value(act, a):
    return sigmoid(a)


@implements(value_and_slope, Sigmoid)
def _sigmoid_value_and_slope(act, a):
    return sigmoid_and_slope(a)


@implements(slope_at_value, Sigmoid)
def _sigmoid_slope_at_value(act, h):
    return h * (type(h)(1) - h)
