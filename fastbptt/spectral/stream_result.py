"""What a stream says so far."""

from typing import Any, NamedTuple

import numpy as np


class StreamResult(NamedTuple):
    """What `JacobianStream.result` returns; arrays over the batch (B,), or scalars if unbatched.

    Logs are natural, so norms are in nats and exponents in nats per step.
    """

    steps: int
    lower: Any  # log ||P V||: log ||dh_T/dh_0|| is at least this, but for rounding
    estimate: Any
    upper: Any  # log ||dh_T/dh_0|| is at most this, but with probability delta
    delta: float
    note: str  # how the estimate was made
    exponents: np.ndarray  # (B,k): finite-time Lyapunov exponents after the burn-in
    standard_error: np.ndarray  # (B,k); NaN with fewer than 8 blocks of steps
    # (C,): the ends of the chunks; of more than 4096 of every second, fourth and so on
    curve_steps: np.ndarray
    curve_lower: np.ndarray  # (C,B), and so on
    curve_estimate: np.ndarray
    curve_upper: np.ndarray
    state: Any  # as the net's: after the last step
