"""Which pieces of documents share a sequence, so that hardly a place is empty and no document is cut without need.

A document of n + 1 tokens gives n places: each token but the last is read, each but the first predicted. One that is
longer than a sequence is cut into pieces of a whole sequence and a rest. Pieces are put by best fit decreasing
(Johnson et al. 1974, SIAM J. Comput. 3; for training text Ding et al. 2024, arXiv:2404.10830): the longest first, each
where it leaves the least room. A pure function of the lengths: no seed, no order of arrival.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from site_agent.trainer.mixture import Ints

_BLOCK = 1 << 16  # documents packed among themselves: bounds memory, and hardly a place is lost by it


@dataclass(frozen=True, slots=True)
class Bins:
    """Sequences of one language's text, each with its pieces.

    firsts   (bins + 1,) where in the pieces each bin begins
    begins   (pieces,) of the piece's first token in the text
    lengths  (pieces,) places that it takes; its tokens are one more
    """

    firsts: Ints
    begins: Ints
    lengths: Ints

    def __len__(self) -> int:
        return len(self.firsts) - 1

    @property
    def most(self) -> int:
        """Pieces of the bin that has most."""
        return int(np.diff(self.firsts).max(initial=0))

    def pieces(self, number: int) -> tuple[Ints, Ints]:
        """Begins and lengths of the pieces of a bin, in the order in which they lie in it."""
        part = slice(self.firsts[number], self.firsts[number + 1])
        return self.begins[part], self.lengths[part]

    def places(self) -> Ints:
        """(bins,) that are taken."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        return np.diff(ends[self.firsts])


def best_fit(document_tokens: npt.NDArray[np.integer], capacity: int, block: int = _BLOCK) -> Bins:
    """Bins of ``capacity`` places for all documents, one after the other in a text, of so many tokens each."""
    tokens_D = document_tokens.astype(np.int64)
    begins_D = np.cumsum(tokens_D) - tokens_D
    bins: list[list[int]] = []
    begins_P: list[Ints] = []
    lengths_P: list[Ints] = []
    pieces = 0
    for start in range(0, len(tokens_D), block):
        begins, lengths = _pieces(begins_D[start : start + block], tokens_D[start : start + block], capacity)
        bins += [[pieces + piece for piece in members] for members in _fitted(lengths, capacity)]
        pieces += len(lengths)
        begins_P.append(begins)
        lengths_P.append(lengths)
    order = np.asarray([piece for members in bins for piece in members], np.int64)
    firsts = np.cumsum([0, *(len(members) for members in bins)], dtype=np.int64)
    none = np.zeros(0, np.int64)
    return Bins(
        firsts=firsts,
        begins=np.concatenate([none, *begins_P])[order],
        lengths=np.concatenate([none, *lengths_P])[order],
    )


def _pieces(begins_D: Ints, tokens_D: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Begins and lengths in places; a document of one token has nothing to predict and gives none."""
    counts_D = -(-(tokens_D - 1) // capacity)
    document_P = np.repeat(np.arange(len(tokens_D)), counts_D)
    number_P = np.arange(counts_D.sum()) - np.repeat(np.cumsum(counts_D) - counts_D, counts_D)
    lengths_P = np.minimum(tokens_D[document_P] - 1 - number_P * capacity, capacity)
    return begins_D[document_P] + number_P * capacity, lengths_P


def _fitted(lengths_P: Ints, capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room left -> the bins that have it
    rooms: list[int] = []  # the keys, sorted
    order = np.argsort(-lengths_P, kind="stable")
    for piece, length in zip(order.tolist(), lengths_P[order].tolist(), strict=True):
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[at]
        bins[number].append(piece)
        if room > length:
            if room - length not in open_bins:
                open_bins[room - length] = []
                bisect.insort(rooms, room - length)
            open_bins[room - length].append(number)
    return bins


def bounds_of(rows: Sequence[Sequence[int]], row_places: int) -> list[int]:
    """Where documents begin and end in rows laid end to end: 0, then every end, the last that of the last row.

    rows  the lengths of each row's documents; places that they leave are a document of their own
    """
    bounds = [0]
    for number, lengths in enumerate(rows):
        end = number * row_places
        for length in lengths:
            end += length
            bounds.append(end)
        if end < (number + 1) * row_places:
            bounds.append((number + 1) * row_places)
    return bounds
