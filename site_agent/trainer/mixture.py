"""Which text each sequence of a job comes from: decided for the whole job before it starts.

Everything here is a pure function of the assignment and of how much text there is. So the data of step t is
known without the steps before it, resume is one integer, and the shares are exact rather than drawn.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def unimax(available: Sequence[int], budget: int, epochs_max: float) -> list[float]:
    """Shares of the languages: as even as can be without repeating one more than ``epochs_max`` times.

    available  sequences in one epoch of each language
    budget     sequences to draw in all
    Returns shares that sum to one, 0 where there is nothing. If all languages together cannot fill the budget
    within the cap, the cap gives way: the shares are then those of the sizes.
    Source: UniMax, Chung et al. 2023, arXiv:2304.09151, algorithm 1.
    """
    order = sorted(range(len(available)), key=lambda index: (available[index], index))
    drawn = [0.0] * len(available)
    left = float(budget)
    for rank, index in enumerate(order):
        drawn[index] = min(left / (len(order) - rank), epochs_max * available[index])
        left -= drawn[index]
    total = math.fsum(drawn)
    return [each / total for each in drawn] if total else drawn


def tempered(available: Sequence[int], budget: int, epochs_max: float, temperature: float) -> list[float]:
    """Shares of the languages in proportion to size ** (1 / temperature), none repeated more than ``epochs_max`` times.

    temperature  1: in proportion to size; the larger, the more even
    What a capped language leaves goes to the others in their proportions. Arguments and what is returned otherwise
    as for ``unimax``, also where all languages together cannot fill the budget.
    Source: Arivazhagan et al. 2019, arXiv:1907.05019, section 4.2; the cap is UniMax's.
    """
    # Twelve digits: the last bit of a power differs between libraries of mathematics, and a sequence hangs on it.
    wanted = [float(f"{size ** (1 / temperature):.12g}") if size else 0.0 for size in available]
    drawn = [0.0] * len(available)
    left, weight = float(budget), math.fsum(wanted)
    # from the language that its proportion would repeat most
    order = sorted(
        (index for index, size in enumerate(available) if size),
        key=lambda index: (-wanted[index] / available[index], index),
    )
    for index in order:
        drawn[index] = min(left * wanted[index] / weight, epochs_max * available[index])
        left, weight = left - drawn[index], weight - wanted[index]
    total = math.fsum(drawn)
    return [each / total for each in drawn] if total else drawn


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to ``shares`` that sum to ``total``; by largest remainders."""
    whole = math.fsum(shares)
    if not whole:
        return [0] * len(shares)
    exact = [share / whole * total for share in shares]
    counts = [int(each) for each in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def interleave(counts: Sequence[int], seed: int) -> tuple[Ints, Ints]:
    """Spread ``counts[s]`` sequences of each stream s evenly over the job.

    Returns for each of the job's sequences (N,) its stream, and its place among the sequences of that stream.
    Stratified: the k-th of n sequences of a stream falls at a random point of the k-th n-th of the job, so
    every stretch of the job has nearly the shares of the whole.
    """
    stream = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    place = np.concatenate([np.arange(count, dtype=np.int64) for count in counts] or [np.zeros(0, np.int64)])
    jitter = random_bits(len(stream), seed, "interleave") / 2.0**64
    position = (place + jitter) / np.asarray(counts, np.float64)[stream]
    order = np.argsort(position, kind="stable")
    return stream[order], place[order]


def permutation(size: int, seed: int, *purpose: object) -> Ints:
    """The numbers below ``size`` in an order of their own for each (seed, purpose)."""
    return np.argsort(random_bits(size, seed, *purpose), kind="stable")


def random_bits(size: int, seed: int, *purpose: object) -> npt.NDArray[np.uint64]:
    """(size,) uniform 64-bit numbers from Philox, keyed by seed and purpose; the same with every NumPy."""
    key = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()[:16]
    bits: npt.NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
    return bits
