"""Nets that are driven by noise, and what streams make of them."""

import math

import numpy as np

import fastbptt as fb


def driven(H, gain=1.0, I=3, T=60, B=2, nonlinearity="tanh", dtype=np.float64, seed=0):
    """A net with a dense W_hh of spectral radius about `gain`, and an input that moves it."""
    rng = np.random.default_rng(seed)
    net = fb.RNN(I, H, nonlinearity=nonlinearity, dtype=dtype, rng=seed)
    net.weight_hh_l0 = (rng.normal(size=(H, H)) * gain / math.sqrt(H)).astype(dtype)
    return net, rng.normal(size=(T, B, I)).astype(dtype)


def streamed(net, x, probes=8, rng=0, delta=0.05):
    stream = fb.JacobianStream(net, probes=probes, rng=rng)
    stream.update(x)
    return stream.result(delta)
