"""Where the dice of a simulation come from: one seed, a stream of its own for every purpose.

A stream is named by what it decides (``"queue", "lumi"``), so that a kind of fault that is added, or left out, draws
from its own stream and changes nothing that the others draw.
"""

import random

from consortium.ids import digest_of


def stream(seed: int, *names: str | int) -> random.Random:
    """The dice for one purpose; the same for the same seed and names, in every process and on every machine."""
    spelt = "\n".join(str(name) for name in (seed, *names))
    return random.Random(int(digest_of(spelt.encode()), 16))
