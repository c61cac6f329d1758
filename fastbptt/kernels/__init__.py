"""The compiled floor.

Its contract (design.md D10): kernels do not check, do not allocate results and do not raise.
The floor above passes C-contiguous arrays of one dtype whose shapes fit together; last axes that
vectors are written along are padded to a multiple of `simd.lanes` (see `panels.padded`).  Numba
checks no bounds: a wrong shape corrupts memory.  Kernels that make work space say so (jit.py), and
hand it to the one with the loop.
"""
