"""A pytest plugin: let fastbptt see the processor NUMBA_CPU_NAME, without some features.

Those are named in NARROW_REGISTERS.
"""

import os

from llvmlite import binding

_features = binding.get_host_cpu_features()
for _name in os.environ.get("NARROW_REGISTERS", "").split():
    _features[_name] = False
binding.get_host_cpu_features = lambda: _features
binding.get_host_cpu_name = lambda: os.environ["NUMBA_CPU_NAME"]
