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
# The third is `cut_to_h`.


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


# ---- Every cell: one sequence, one step.  Each step returns the next state and what its adjoint
# ---- reads; each adjoint returns da (of x, of h), the gradient of the state before, and what W_hh
# ---- was multiplied with.


def _split(a, count):
    return np.split(a, count, axis=-1)


def _rnn_step(p, x, state, options):
    (h,) = state
    a = p["w_ih"] @ x + p["b_ih"] + p["w_hh"] @ h + p["b_hh"]
    return (VALUE[options["nonlinearity"]](a),), {"a": a, "h": h, "gates": {}}


def _rnn_adjoint(p, cache, d_state, options):
    da = d_state[0] * SLOPE[options["nonlinearity"]](cache["a"])
    return da, da, (p["w_hh"].T @ da,), cache["h"]


def _lstm_step(p, x, state, options):
    h, c = state
    i, f, g, o = _split(p["w_ih"] @ x + p["b_ih"] + p["w_hh"] @ h + p["b_hh"], 4)
    i, f, g, o = logistic(i), logistic(f), np.tanh(g), logistic(o)
    c_next = f * c + i * g
    gates = {"i": i, "f": f, "g": g, "o": o}
    return (o * np.tanh(c_next), c_next), {"h": h, "c": c, "c_next": c_next, "gates": gates}


def _lstm_adjoint(p, cache, d_state, options):
    dh, dc = d_state
    i, f, g, o = cache["gates"].values()
    tanh_c = np.tanh(cache["c_next"])
    dc = dc + dh * o * (1 - tanh_c**2)
    da = np.concatenate(
        [
            dc * g * i * (1 - i),
            dc * cache["c"] * f * (1 - f),
            dc * i * (1 - g**2),
            dh * tanh_c * o * (1 - o),
        ]
    )
    return da, da, (p["w_hh"].T @ da, dc * f), cache["h"]


def _gru_step(p, x, state, options):
    (h,) = state
    x_r, x_z, x_n = _split(p["w_ih"] @ x + p["b_ih"], 3)
    w_r, w_z, w_n = np.split(p["w_hh"], 3)
    b_r, b_z, b_n = np.split(p["b_hh"] + np.zeros(3 * len(h)), 3)
    r, z = logistic(x_r + w_r @ h + b_r), logistic(x_z + w_z @ h + b_z)
    hn = w_n @ h + b_n
    of_h = r * hn if options["reset_after"] else w_n @ (r * h) + b_n
    n = np.tanh(x_n + of_h)
    cache = {"h": h, "hn": hn, "gates": {"r": r, "z": z, "n": n}}
    return ((1 - z) * n + z * h,), cache


def _gru_adjoint(p, cache, d_state, options):
    (dh,), h, w = d_state, cache["h"], np.split(p["w_hh"], 3)
    r, z, n = cache["gates"].values()
    da_n = dh * (1 - z) * (1 - n**2)
    da_z = dh * (h - n) * z * (1 - z)
    before = dh * z + w[1].T @ da_z
    if options["reset_after"]:
        da_r = da_n * cache["hn"] * r * (1 - r)
        before = before + w[2].T @ (da_n * r) + w[0].T @ da_r
        of_h = np.concatenate([da_r, da_z, da_n * r])
        return np.concatenate([da_r, da_z, da_n]), of_h, (before,), h
    d_rh = w[2].T @ da_n
    da_r = d_rh * h * r * (1 - r)
    da = np.concatenate([da_r, da_z, da_n])
    return da, da, (before + d_rh * r + w[0].T @ da_r,), (h, h, r * h)


def _mgu_step(p, x, state, options):
    (h,) = state
    x_f, x_n = _split(p["w_ih"] @ x + p["b_ih"] + p["b_hh"], 2)
    w_f, w_n = np.split(p["w_hh"], 2)
    f = logistic(x_f + w_f @ h)
    n = np.tanh(x_n + w_n @ (f * h))
    return ((1 - f) * h + f * n,), {"h": h, "gates": {"f": f, "n": n}}


def _mgu_adjoint(p, cache, d_state, options):
    (dh,), h, (w_f, w_n) = d_state, cache["h"], np.split(p["w_hh"], 2)
    f, n = cache["gates"].values()
    da_n = dh * f * (1 - n**2)
    d_fh = w_n.T @ da_n
    da_f = (dh * (n - h) + d_fh * h) * f * (1 - f)
    da = np.concatenate([da_f, da_n])
    return da, da, (dh * (1 - f) + d_fh * f + w_f.T @ da_f,), (h, f * h)


CELLS = {
    "RNN": (_rnn_step, _rnn_adjoint),
    "GRU": (_gru_step, _gru_adjoint),
    "LSTM": (_lstm_step, _lstm_adjoint),
    "MGU": (_mgu_step, _mgu_adjoint),
}
# the gates in the order of the rows of the weights; the plain net has none, and rows all the same
LETTERS = {"RNN": "", "GRU": "rzn", "LSTM": "ifgo", "MGU": "fn"}
GATES = {kind: max(len(letters), 1) for kind, letters in LETTERS.items()}


def _of_layer(params, suffix):
    p = {"w_ih": params[f"weight_ih{suffix}"], "w_hh": params[f"weight_hh{suffix}"]}
    return p | {b: params.get(f"bias_{b[2:]}{suffix}", 0.0) for b in ("b_ih", "b_hh")}


def pieces(T, length, reset, reverse):
    """Lists of steps, in the order in which they are read, between resets of one sequence."""
    starts = [0, *(t for t in range(1, length) if reset is not None and reset[t])]
    runs = [list(range(s, e)) for s, e in zip(starts, [*starts[1:], length], strict=True)]
    return [run[::-1] for run in runs[::-1]] if reverse else runs


def net_forward(
    params, x, state, kind, options, num_layers=1, bidirectional=False, lengths=None, reset=None
):
    """Every step of every layer and direction.

    x (T,B,I); state a tuple of (L·D,B,H).  Returns a dict: output (T,B,D·H), state, inside (dict of
    (L·D,T,B,H)), and what `net_backward` reads.
    """
    T, B, _ = x.shape
    D, H = 1 + bidirectional, state[0].shape[2]
    step, _ = CELLS[kind]
    lengths = [T] * B if lengths is None else lengths
    names = ["h", *("c" if kind == "LSTM" else ""), *LETTERS[kind]]
    inside = {name: np.zeros((num_layers * D, T, B, H)) for name in names}
    last = tuple(part.copy() for part in state)
    caches, inputs, y = {}, [], x
    for layer in range(num_layers):
        inputs.append(y)
        for d in range(D):
            n, p = layer * D + d, _of_layer(params, f"_l{layer}" + "_reverse" * d)
            for b in range(B):
                marks = None if reset is None else reset[:, b]
                for i, run in enumerate(pieces(T, lengths[b], marks, bool(d))):
                    given = i == 0 and (d == 1 or marks is None or not run or not marks[0])
                    now = tuple(part[n, b] * given for part in state)
                    for t in run:
                        now, caches[n, t, b] = step(p, y[t, b], now, options)
                        for name, part in zip("hc", now, strict=False):
                            inside[name][n, t, b] = part
                        for name, gate in caches[n, t, b]["gates"].items():
                            inside[name][n, t, b] = gate
                    for part, value in zip(last, now, strict=True):
                        part[n, b] = value
        y = np.concatenate([inside["h"][layer * D + d] for d in range(D)], axis=-1)
    given = (params, kind, options, num_layers, D, lengths, reset)
    return {
        "output": y, "state": last, "inside": inside, "caches": caches, "inputs": inputs,
        "given": given, "shape": (T, B, H),
    }  # fmt: skip


def net_backward(record, d_output, d_state):
    """BPTT over `net_forward`: gradients of params by name, dx, dstate and per_step."""
    params, kind, options, num_layers, D, lengths, reset = record["given"]
    T, B, H = record["shape"]
    _, adjoint = CELLS[kind]
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    d_begin = tuple(np.zeros_like(part) for part in d_state)
    per_step = [np.zeros((num_layers * D, T, B, H)) for _ in d_state]
    dy = d_output
    for layer in reversed(range(num_layers)):
        dx = np.zeros_like(record["inputs"][layer])
        for d in range(D):
            n, suffix = layer * D + d, f"_l{layer}" + "_reverse" * d
            p = _of_layer(params, suffix)
            for b in range(B):
                marks = None if reset is None else reset[:, b]
                runs = pieces(T, lengths[b], marks, bool(d))
                for i, run in enumerate(runs):
                    now = tuple(part[n, b] * (i == len(runs) - 1) for part in d_state)
                    for t in reversed(run):
                        now = (now[0] + dy[t, b, d * H : (d + 1) * H], *now[1:])
                        per_step[0][n, t, b] = now[0]
                        cache = record["caches"][n, t, b]
                        if kind == "LSTM":
                            o, c = cache["gates"]["o"], cache["c_next"]
                            per_step[1][n, t, b] = now[1] + now[0] * o * (1 - np.tanh(c) ** 2)
                        of_x, of_h, now, read = adjoint(p, cache, now, options)
                        dx[t, b] += p["w_ih"].T @ of_x
                        grads[f"weight_ih{suffix}"] += np.outer(of_x, record["inputs"][layer][t, b])
                        reads = read if isinstance(read, tuple) else (read,) * GATES[kind]
                        products = zip(np.split(of_h, GATES[kind]), reads, strict=True)
                        grads[f"weight_hh{suffix}"] += np.concatenate(
                            [np.outer(da, h) for da, h in products]
                        )
                        if f"bias_ih{suffix}" in grads:
                            grads[f"bias_ih{suffix}"] += of_x
                            grads[f"bias_hh{suffix}"] += of_h
                    given = i == 0 and (d == 1 or marks is None or not run or not marks[0])
                    for part, value in zip(d_begin, now, strict=True):
                        part[n, b] += value * given
        dy = dx
    by_name = dict(zip("hc", per_step, strict=False))
    return {**grads, "dx": dy, "dstate": d_begin, "per_step": by_name}


def jacobians(record, b, weights=None):
    """J_1 .. J_T (T,N,N) of row b's joint state [h_l0, (c_l0), h_l1, ...] of one direction.

    Column by column from the adjoint: row m of J_t is the gradient of state m after step t.  With
    `weights` in place of the net's own the states, slopes and gates stay those of the record.
    """
    params, kind, options, num_layers, _, lengths, _ = record["given"]
    params = params if weights is None else weights
    H = record["shape"][2]
    _, adjoint = CELLS[kind]
    parts = 2 if kind == "LSTM" else 1
    N = num_layers * parts * H
    J = np.zeros((lengths[b], N, N))
    for t in range(lengths[b]):
        for m in range(N):
            d_states = [[np.zeros(H) for _ in range(parts)] for _ in range(num_layers)]
            block, j = divmod(m, H)
            d_states[block // parts][block % parts][j] = 1
            row = []
            for layer in reversed(range(num_layers)):
                p = _of_layer(params, f"_l{layer}")
                cache = record["caches"][layer, t, b]
                of_x, _, before, _ = adjoint(p, cache, tuple(d_states[layer]), options)
                row = [*before, *row]
                if layer:
                    d_states[layer - 1][0] = d_states[layer - 1][0] + p["w_ih"].T @ of_x
            J[t, m] = np.concatenate(row)
    return J


def slope_of_log_norm(record, b, t, s, directions, step=1e-6):
    """d log ||P(t,s)|| of row b as the weights move along `directions` (name to array).

    By a central difference, the states, slopes and gates held.
    """
    params, values = record["given"][0], []
    for move in (step, -step):
        moved = {name: y + move * directions.get(name, 0.0) for name, y in params.items()}
        values.append(log_norm_of_product(jacobians(record, b, moved)[s:t]))
    return (values[0] - values[1]) / (2 * step)


def cut_to_h(J, H):
    """The third published mistake: an LSTM's Jacobian cut to dh_t/dh_{t-1}."""
    return J[:, :H, :H]
