"""Settings of all tests."""

import os

from hypothesis import settings

# Kernels that PyTorch keeps, one for each shape in bfloat16: thousands of shapes take gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

# A busy machine is no fault of the code: no example has a deadline.
settings.register_profile("gradvac", deadline=None)
settings.load_profile("gradvac")
