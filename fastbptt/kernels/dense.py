"""The elementwise part of a dense layer."""

from .activations import slope, value
from .jit import kernel


@kernel
def activate(act, a, h, slopes):
    """h = f(a) and slopes = f'(a), from flat a."""
    for j in range(a.size):
        h[j] = value(act, a[j])
    for j in range(a.size):
        slopes[j] = slope(act, a[j])
