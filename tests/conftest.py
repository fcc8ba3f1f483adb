"""What holds for all tests: none of them asserts on time."""

from hypothesis import settings

settings.register_profile("sprachbund", deadline=None)  # Hypothesis's own assertion on time
settings.load_profile("sprachbund")
