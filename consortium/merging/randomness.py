"""Which stream of random numbers a tensor of a contribution draws from.

Numbers are functions of (stream, place), ``kernels.draw32``: no order of drawing, chunk, thread or process
can change them.
"""

import hashlib

from consortium.canonical import encode


def key_of(seed: int, tensor: str, contribution: str) -> int:
    """The stream, 64 bits: the first eight bytes of the SHA-256 of the three, spelt canonically.

    seed          of the recipe
    contribution  what is the same wherever the contribution lies: its digest
    """
    return int.from_bytes(hashlib.sha256(encode([seed, tensor, contribution])).digest()[:8], "big")
