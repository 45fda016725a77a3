"""What all tests share: property tests draw the same examples every time, and are never failed by a slow machine."""

from hypothesis import settings

settings.register_profile("moesim", derandomize=True, deadline=None)
settings.load_profile("moesim")
