"""Settings of all tests."""

from hypothesis import settings

# A busy machine is no fault of the code: no example has a deadline.
settings.register_profile("gradvac", deadline=None)
settings.load_profile("gradvac")
