"""The elementwise part of a dense layer."""

from .activations import value_and_slope
from .jit import kernel


@kernel
def activate(act, a, h, slopes):
    """h = f(a) and slopes = f'(a), from flat a."""
    for j in range(a.size):
        h[j], slopes[j] = value_and_slope(act, a[j])
