"""What a kernel may do."""

import pickle

import numpy as np
import pytest
from numba.core.errors import NumbaError

from fastbptt.kernels import panels
from fastbptt.kernels.jit import kernel


@kernel(allocates=True)
def says_so(n):
    return np.zeros(n).size


@kernel
def does_not(n):
    return np.zeros(n).size


def test_a_kernel_that_makes_arrays_must_say_so():
    assert says_so(3) == 3
    with pytest.raises(NumbaError, match="zeros"):
        does_not(3)


@kernel(part=True)
def third(x, y):
    return x[2] * y


@kernel
def twice_the_third(x):
    return third(x, 2)


def test_a_part_is_pickled_by_its_name():
    for one in (third, panels.rows_matmul):
        assert pickle.loads(pickle.dumps(one)) is one
    assert third.__name__ == "third"


def test_a_part_is_called_by_kernels_only():
    x = np.arange(5.0)
    with pytest.raises(TypeError, match="third is a part of other kernels"):
        third(x, 2)
    assert twice_the_third(x) == 4
    with pytest.raises(TypeError, match="third is a part of other kernels"):
        third._dispatcher(x, 2)  # which has code, that no one may call
    with pytest.raises(TypeError, match="third is a part of other kernels"):
        third(x, 2)  # compiled by now
    assert twice_the_third(x.astype(np.float32)) == 4
