import math

from .jit import kernel


@kernel(exact=True)
def exp(x):
    return type(x)(math.exp(x))


@kernel(exact=True)
def tanh(x):
    x = min(max(x, type(x)(-4.97)), type(x)(4.97))
    s = x * x
    p = x * (type(x)(135135) + s * (type(x)(17325) + s * (type(x)(378) + s)))
    q = type(x)(135135) + s * (type(x)(62370) + s * (type(x)(3150) + s * type(x)(28)))
    return p / q


@kernel(exact=True)
def sigmoid(x):
    return type(x)(1) / (type(x)(1) + exp(-x))
