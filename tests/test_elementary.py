"""tanh and sigmoid: every float32, float64 against mpmath, the special values, the IR."""

import concurrent.futures
import math
import re

import make_coefficients
import mpmath as mp
import numba
import numpy as np
import pytest
from numba.core.caching import NullCache

from fastbptt.kernels import elementary, simd
from fastbptt.kernels.jit import kernel

DTYPES = (np.float32, np.float64)
INF = np.inf


@kernel
def tanh(x, out):
    for i in range(x.size):
        out[i] = elementary.tanh(x[i])


@kernel
def sigmoid(x, out):
    for i in range(x.size):
        out[i] = elementary.sigmoid(x[i])


@kernel
def tanh_and_slope(x, out):
    for i in range(x.size):
        _, out[i] = elementary.tanh_and_slope(x[i])


@kernel
def sigmoid_and_slope(x, out):
    for i in range(x.size):
        _, out[i] = elementary.sigmoid_and_slope(x[i])


@kernel
def tanh_in_place(x, slope):
    for i in range(x.size):
        x[i], slope[i] = elementary.tanh_and_slope(x[i])


@kernel
def sigmoid_in_place(x, slope):
    for i in range(x.size):
        x[i], slope[i] = elementary.sigmoid_and_slope(x[i])


@kernel
def lstm_gates(x, out):
    """Five calls in one loop: what LLVM inlines once it might not inline five times."""
    for i in range(x.size):
        c = elementary.sigmoid(x[i]) * elementary.tanh(x[i] + x[0]) + elementary.sigmoid(-x[i])
        out[i] = elementary.sigmoid(c * x[i]) * elementary.tanh(c)


FUNCTIONS = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "tanh_and_slope": tanh_and_slope,
    "sigmoid_and_slope": sigmoid_and_slope,
}
# In float64 with an error below 1e-8 ulp of float32, and to any number of digits.
DOUBLE = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh_and_slope": lambda x: 4 * np.exp(-2 * abs(x)) / (1 + np.exp(-2 * abs(x))) ** 2,
    "sigmoid_and_slope": lambda x: np.exp(-abs(x)) / (1 + np.exp(-abs(x))) ** 2,
}
EXACT = {
    "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "tanh_and_slope": lambda x: mp.sech(x) ** 2,
    "sigmoid_and_slope": lambda x: mp.sech(x / 2) ** 2 / 4,
}
# ulp: what the docstrings promise.
BOUND = {"tanh": 1.9, "sigmoid": 1.9, "tanh_and_slope": 3.8, "sigmoid_and_slope": 3.3}


def values(name, x):
    x = np.asarray(x)
    out = np.empty_like(x)
    FUNCTIONS[name](x, out)
    return out


def same_bits(a, b):
    return np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))


@numba.njit(nogil=True)
def worst_error(got, wanted):
    """The largest error of float32 values in ulp, inf where a NaN is missing or out of place."""
    worst = 0.0
    for i in range(got.size):
        g, w = np.float64(got[i]), wanted[i]
        if np.isnan(g) or np.isnan(w):
            error = 0.0 if np.isnan(g) and np.isnan(w) else np.inf
        else:
            ulp = math.ldexp(1.0, math.frexp(w)[1] - 24) if abs(w) > 2.0**-126 else 0.0
            error = abs(g - w) / max(ulp, 2.0**-149)
        worst = max(worst, error)
    return worst


def check_singles(name, bits):
    """(largest error, whether the result is in range and as odd as it should be)."""
    x = bits.view(np.float32)
    y = values(name, x)
    with np.errstate(all="ignore"):
        error = worst_error(y, DOUBLE[name](x.astype(float)))
    number = y[~np.isnan(y)]
    if name == "tanh":
        return error, np.all(abs(number) <= 1) and same_bits(values(name, -x), -y)
    return error, np.all(number >= 0) and np.all(number <= 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_4093rd_single(name):
    error, sound = check_singles(name, np.arange(0, 2**32, 4093, np.uint64).astype(np.uint32))
    assert error <= BOUND[name]
    assert sound


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_single(name):
    size = 2**18

    def check(chunk):
        return check_singles(name, np.arange(size, dtype=np.uint32) + np.uint32(chunk * size))

    # tanh of a negative number is checked with that of the positive one; slopes begin with |x|
    chunks = range(2 ** (32 if name == "sigmoid" else 31) // size)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        errors, sound = zip(*pool.map(check, chunks), strict=True)
    assert max(errors) <= BOUND[name]
    assert all(sound)


def doubles():
    """Everywhere, and densely where a formula changes."""
    rng = np.random.default_rng(0)
    n = np.arange(-1076, 1026)
    edges = np.concatenate([(n + 0.5) * np.log(2), rng.permutation(n)[:100] * np.log(2)])
    changes = [np.log(3) / 2, 19.06, 20, 32 * np.log(2), 374, -745.13, -746]
    edges = np.concatenate([edges, edges / 2, changes])
    spread = np.concatenate(
        [
            rng.uniform(-3, 3, 1500),
            rng.uniform(0.2, 0.225, 4000),  # where tanh is furthest off
            rng.uniform(-45, 45, 500),
            rng.uniform(-746, -708, 500),  # subnormal results of sigmoid
            rng.uniform(-374, -354, 300),  # and slopes of tanh
            np.geomspace(5e-324, 1e300, 500),
        ]
    )
    near = np.concatenate([np.nextafter(edges, -INF), edges, np.nextafter(edges, INF)])
    return np.concatenate([spread, -spread, rng.permutation(near)[:3000], changes])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_doubles(name):
    x = doubles()
    y = values(name, x)
    worst = 0.0
    with mp.workdps(40):
        for argument, got in zip(x, y, strict=True):
            wanted = EXACT[name](mp.mpf(argument))
            ulp = mp.mpf(2) ** max(mp.frexp(wanted)[1] - 53, -1074)
            worst = max(worst, abs(mp.mpf(got) - wanted) / ulp)
    assert worst <= BOUND[name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("tanh", [-INF, -1e30, -0.0, 0.0, 1e30, INF], [-1, -1, -0.0, 0.0, 1, 1]),
        ("sigmoid", [-INF, -1e30, -0.0, 0.0, 1e30, INF], [0, 0, 0.5, 0.5, 1, 1]),
        ("tanh_and_slope", [-INF, -1e30, -0.0, 0.0, 1e30, INF], [0, 0, 1, 1, 0, 0]),
        ("sigmoid_and_slope", [-INF, -1e30, -0.0, 0.0, 1e30, INF], [0, 0, 0.25, 0.25, 0, 0]),
    ],
)
def test_special_values(name, x, y, dtype):
    assert same_bits(values(name, np.array(x, dtype)), np.array(y, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_stays_one(name, dtype):
    quiet = np.array([np.nan, -np.nan] * 20, dtype)  # long enough for the vector code
    assert np.isnan(values(name, quiet)).all()
    assert np.isnan(values(name, quiet[:1])).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "pair"), [("tanh", tanh_in_place), ("sigmoid", sigmoid_in_place)])
def test_the_value_beside_a_slope_has_the_bits_of_the_value(name, pair, dtype):
    bits = np.arange(0, 2**32, 4093, np.uint64).astype(np.uint32)
    x = bits.view(np.float32) if dtype == np.float32 else doubles()
    x = x[~np.isnan(x)]
    value, slope = x.copy(), np.empty_like(x)
    pair(value, slope)
    assert same_bits(value, values(name, x))
    assert same_bits(slope, values(f"{name}_and_slope", x))
    assert np.all((slope >= 0) & (slope <= 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_of_a_tiny_number_is_the_number(dtype):
    info = np.finfo(dtype)
    x = np.geomspace(info.smallest_subnormal, info.eps / 4, 1000).astype(dtype)
    x = np.concatenate([x, -x, [info.tiny, info.smallest_subnormal * 3]], dtype=dtype)
    assert same_bits(values("tanh", x), x)


def test_tanh_of_doubles_is_odd_and_at_most_one():
    x = doubles()
    y = values("tanh", x)
    assert same_bits(values("tanh", -x), -y)
    assert np.all(abs(y) <= 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loop",
    [*FUNCTIONS.values(), tanh_in_place, sigmoid_in_place, lstm_gates],
    ids=lambda loop: loop.__name__,
)
def test_a_loop_is_vector_code_of_one_dtype_without_a_branch(loop, dtype):
    fresh = kernel(loop.py_func)
    fresh._cache = NullCache()  # Numba shows no IR of what it loads
    fresh(np.zeros(64, dtype), np.zeros(64, dtype))
    (text,) = fresh.inspect_llvm().values()
    body = re.search(r"^(vector\.body\S*):(.*?)^  br (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert body is not None, "LLVM did not vectorise the loop"
    label, code, jump = body.groups()
    assert f"label %{label}" in jump, "a branch inside the loop"
    word, other = ("float", "double") if dtype == np.float32 else ("double", "float")
    assert re.search(rf"fmul contract <\d+ x {word}>", code)
    assert not re.search(rf"\b{other}\b", code)
    for call in re.findall(r"call [^@\n]*@([^\s(]+)", code):
        assert re.match(r"llvm\.(fabs|fma|fmuladd|min\w*|max\w*)\.v", call)
    assert re.search(rf"fdiv contract <\d+ x {word}>", code)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_result_has_the_dtype_of_the_argument(name, dtype):
    function = getattr(elementary, name)
    number = numba.from_dtype(np.dtype(dtype))
    function(dtype(1))
    given_back = function.overloads[(number,)].signature.return_type
    pair = numba.types.UniTuple(number, 2)
    assert given_back == (pair if name.endswith("slope") else number)


@pytest.mark.parametrize(
    ("constants", "dtype"), [(elementary.SINGLE, np.float32), (elementary.DOUBLE, np.float64)]
)
def test_the_coefficients_are_those_of_the_script(constants, dtype):
    for name, value in make_coefficients.coefficients(dtype).items():
        if (name, dtype) != ("minus_ln2", np.float32):
            assert getattr(constants.exp, name) == value, name


def test_both_pairs_of_ln2_are_those_of_the_script():
    several = {False: make_coefficients.HIGH_BITS[np.float32], True: make_coefficients.FUSED_BITS}
    for fused, bits in several.items():
        assert elementary.SINGLE_LN2[fused] == make_coefficients.minus_ln2(np.float32, bits)
    assert elementary.SINGLE.exp.minus_ln2 == elementary.SINGLE_LN2[simd.FUSED]
