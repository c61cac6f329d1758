"""Everything fastbptt computes, slowly: plain float64 NumPy from the formulas.  Never imports it.

h_t = f(a_t),  a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh,
J_t = dh_t/dh_{t-1} = diag(f'(a_t)) W_hh
"""

import math

import numpy as np


def logistic(a):
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1, e) / (1 + e)


# f and its slope from the pre-activation, right in both tails
VALUE = {"tanh": np.tanh, "relu": lambda a: np.where(a <= 0, 0.0, a), "sigmoid": logistic}
SLOPE = {
    "tanh": lambda a: 4 * logistic(2 * a) * logistic(-2 * a),
    "relu": lambda a: np.where(a <= 0, 0.0, 1.0),
    "sigmoid": lambda a: logistic(a) * logistic(-a),
}


def rnn_forward(params, x, h0, nonlinearity):
    """h (T+1,B,H) and a (T,B,H) from x (T,B,I) and h0 (B,H)."""
    T = len(x)
    w_ih, w_hh = params["weight_ih_l0"], params["weight_hh_l0"]
    bias = params.get("bias_ih_l0", 0) + params.get("bias_hh_l0", 0)
    h, a = np.zeros((T + 1, *h0.shape)), np.zeros((T, *h0.shape))
    h[0] = h0
    for t in range(T):
        a[t] = x[t] @ w_ih.T + h[t] @ w_hh.T + bias
        h[t + 1] = VALUE[nonlinearity](a[t])
    return h, a


def rnn_backward(params, x, h, a, d_output, d_state, nonlinearity):
    """BPTT: the gradient of every parameter, dx (T,B,I) and dh0 (B,H)."""
    w_ih, w_hh = params["weight_ih_l0"], params["weight_hh_l0"]
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    dx, dh = np.zeros_like(x), d_state.copy()
    for t in reversed(range(len(x))):
        dh = dh + d_output[t]
        da = dh * SLOPE[nonlinearity](a[t])  # (B,H): through the activation
        grads["weight_ih_l0"] += da.T @ x[t]
        grads["weight_hh_l0"] += da.T @ h[t]
        for name in grads.keys() & {"bias_ih_l0", "bias_hh_l0"}:
            grads[name] += da.sum(axis=0)
        dx[t] = da @ w_ih
        dh = da @ w_hh
    return {**grads, "dx": dx, "dh0": dh}


def rnn_jacobians(params, a, nonlinearity, b):
    """J_1 .. J_T (T,H,H) of batch row b."""
    return SLOPE[nonlinearity](a[:, b])[:, :, None] * params["weight_hh_l0"]


def curve_of_log_norms(J):
    """log ||J_t ... J_1|| for t = 1 .. T; -inf where the product is zero."""
    product, nats, curve = np.eye(J.shape[-1]), 0.0, []
    for step in J:
        product = step @ product
        largest = np.abs(product).max()
        if largest > 0:
            product, nats = product / largest, nats + math.log(largest)
        norm = np.linalg.norm(product, 2)
        curve.append(nats + math.log(norm) if norm > 0 else -math.inf)
    return np.array(curve)


def log_norm_of_product(J):
    """log ||J_T ... J_1||; 0 for no factors."""
    return curve_of_log_norms(J)[-1] if len(J) else 0.0


def triangular_factors(J, k, rng):
    """R_1 .. R_T of J_t Q_{t-1} = Q_t R_t from a random orthonormal Q_0 (N,k)."""
    Q, _ = np.linalg.qr(rng.normal(size=(J.shape[-1], k)))
    factors = []
    for step in J:
        Q, R = np.linalg.qr(step @ Q)
        factors.append(R)
    return np.array(factors)


def lyapunov_exponents(J, k, rng):
    """Mean log |R_ii| per step, (k,)."""
    return np.log(np.abs(np.diagonal(triangular_factors(J, k, rng), axis1=1, axis2=2))).mean(axis=0)


# Mistakes found in published code (spectral.md section 7); the tests must see that they are wrong.
# The third, the LSTM's Jacobian cut to H x H, needs a cell with more state than h.


def wrong_order(J):
    """The norm of J_1 ... J_T: the factors applied while time runs forward, from the wrong side."""
    return log_norm_of_product(J[::-1])


def only_r11(J, k, rng):
    """|R_11| of the k-block called the norm: it is the k = 1 estimate."""
    return np.log(np.abs(triangular_factors(J, k, rng)[:, 0, 0])).sum()


def sum_of_log_diagonal(J, k, rng):
    """The largest sum of log |R_ii| called the norm: each has an offset of its own."""
    diagonal = np.diagonal(triangular_factors(J, k, rng), axis1=1, axis2=2)
    return np.log(np.abs(diagonal)).sum(axis=0).max()


def mean_field_exponent(g):
    """Largest Lyapunov exponent of h' = tanh(W h), W ~ N(0, g²/N), N -> infinity, and q.

    q = g² E tanh²(sqrt(q) z), exponent = log(g² E sech⁴(sqrt(q) z)) / 2, z normal.
    """
    z, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / weight.sum()
    q = g**2
    for _ in range(2000):
        q = g**2 * weight @ np.tanh(np.sqrt(q) * z) ** 2
    return math.log(g**2 * weight @ np.cosh(np.sqrt(q) * z) ** -4.0) / 2, q
