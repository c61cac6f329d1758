"""What a kernel may do."""

import numpy as np
import pytest
from numba.core.errors import NumbaError

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
