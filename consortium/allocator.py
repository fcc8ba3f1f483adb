"""Whether malloc gives freed memory back to the system, or keeps it for what is needed next.

A fresh page costs a fault and a zeroing by the kernel, 0.85 s of processor a gigabyte on the machine that we measured.
A program that needs the same megabytes again and again (chunks that are received, activations of a training step)
pays that each time, unless malloc keeps them.
"""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # mallopt(3)
MOST = (2 << 30) - 1  #: that malloc can be told to keep: an int


def keep_freed_memory(bytes_max: int = 1 << 30) -> bool:
    """Let malloc keep what is freed, for the life of this process. What is larger than 256 MiB, it gives back.

    Call once when a program starts. Two arenas, for what is freed in one is not there for the others: else each thread
    keeps memory of its own.

    bytes_max  free at the end of the heap before all of that is given back; MOST at most
    Returns whether it took effect: only glibc has these options.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wishes = (
        (_MMAP_THRESHOLD, 256 << 20),
        (_TRIM_THRESHOLD, bytes_max),
        (_TOP_PAD, 64 << 20),
        (_ARENA_MAX, 2),
    )
    return mallopt is not None and all(mallopt(option, value) for option, value in wishes)
