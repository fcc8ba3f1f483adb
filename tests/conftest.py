"""What holds for all tests: none of them asserts on time, Hypothesis's included."""

from hypothesis import settings

settings.register_profile("sprachbund", deadline=None)
settings.load_profile("sprachbund")
