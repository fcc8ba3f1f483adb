"""What holds for all tests: none of them asserts on time, and none is deaf to Ctrl-C."""

import signal

from hypothesis import settings

settings.register_profile("sprachbund", deadline=None)  # Hypothesis's own assertion on time
settings.load_profile("sprachbund")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that programs under test hear it, too
