"""Which of a language's documents are trained on and which held out, from its segments, in order of digest.

What is trained on is what is left of the distinct texts when the held-out ones are taken away: those held out
by their own id or digest, and of the public text also what is private training text. All segments are walked
side by side, a range of digests at a time, so memory does not grow with the text.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact
from consortium.ids import Digest
from site_agent.data.segments import Segment, map_segment
from site_agent.packed import Tokens

Access = Literal["private", "public"]
PARTS = ("private", "public", "heldout")

_DOCUMENTS = 500_000  # of a range, about: 100 MB
_MAPPED = 30_000  # segments at once; Linux maps at most 65,530 ranges a process

Digests = npt.NDArray[np.bytes_]
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Range(NamedTuple):
    """The distinct documents in a range of digests, sorted."""

    digests_N: Digests
    bytes_N: Counts
    lengths_N: Counts  #: tokens, EOS included; 0 without a tokenizer
    parts_N: npt.NDArray[np.int64]  #: index into PARTS
    is_in: dict[Access, Flags]
    is_held: dict[Access, Flags]  #: by the texts of that access alone
    segments_N: npt.NDArray[np.int64]  #: where the tokens lie
    begins_N: Counts


class Segments:
    """The segments of one language.

    places  (access, file), in the order of units: the first to have a text gives its tokens
    """

    def __init__(self, places: Sequence[tuple[Access, Path]]) -> None:
        self._places = places
        self._mapped = functools.lru_cache(_MAPPED)(lambda index: map_segment(places[index][1]))

    def segment(self, index: int) -> Segment:
        return self._mapped(index)

    def ranges(self) -> Iterator[Range]:
        """All distinct documents, range after range."""
        heads = [self.segment(index).head for index in range(len(self._places))]
        number = 1
        while number * _DOCUMENTS < sum(head.documents for head in heads):
            number *= 2
        number = min(number, 1 << 16)
        marks = [(index << 16) // number for index in range(number + 1)]
        edges = np.array([mark.to_bytes(2, "big") for mark in marks[1:-1]], "S32")
        cuts = [
            np.concatenate(([0], np.searchsorted(self.segment(index).digests_N, edges), [head.documents]))
            for index, head in enumerate(heads)
        ]
        tokens = [0] * len(heads)
        for index in range(number):
            yield self._range([(int(cut[index]), int(cut[index + 1])) for cut in cuts], tokens)

    def tokens(self, found: Range, chosen: npt.NDArray[np.int64]) -> Iterator[Tokens]:
        """The tokens of the documents at these places of a range."""
        rows = zip(
            found.segments_N[chosen].tolist(),
            found.begins_N[chosen].tolist(),
            found.lengths_N[chosen].tolist(),
            strict=True,
        )
        for segment, begin, length in rows:
            yield self.segment(segment).tokens[begin : begin + length]

    def _range(self, spans: Sequence[tuple[int, int]], tokens: list[int]) -> Range:
        """The documents of one span of each segment; ``tokens`` before each span move on to behind it."""
        digests, sizes, lengths, held, public, segments, begins = ([] for _ in range(7))
        for index, (begin, end) in enumerate(spans):
            if begin == end:
                continue
            one = self.segment(index)
            length = one.lengths_N[begin:end].astype(np.int64)
            ends = tokens[index] + np.cumsum(length)
            digests.append(one.digests_N[begin:end])
            sizes.append(one.bytes_N[begin:end].astype(np.int64))
            lengths.append(length)
            held.append(one.heldout_N[begin:end])
            public.append(np.full(end - begin, self._places[index][0] == "public"))
            segments.append(np.full(end - begin, index))
            begins.append(ends - length)
            tokens[index] = int(ends[-1])
        if not digests:
            none = np.zeros(0, np.int64)
            flags = {"private": none > 0, "public": none > 0}
            return Range(none.astype("S32"), none, none, none, flags, flags, none, none)  # type: ignore[arg-type]
        return _distinct(
            *(np.concatenate(column) for column in (digests, sizes, lengths, held, public)),
            *(np.concatenate(column) for column in (segments, begins)),
        )


def _distinct(
    digests: Digests,
    sizes: Counts,
    lengths: Counts,
    held: Flags,
    public: Flags,
    segments: npt.NDArray[np.int64],
    begins: Counts,
) -> Range:
    order = np.argsort(digests, kind="stable")
    digests, held, public = digests[order], held[order], public[order]
    firsts = np.flatnonzero(np.concatenate(([True], digests[1:] != digests[:-1])))

    def any_of(flags: Flags) -> Flags:
        return np.logical_or.reduceat(flags, firsts)

    is_in: dict[Access, Flags] = {"private": any_of(~public), "public": any_of(public)}
    is_held: dict[Access, Flags] = {"private": any_of(held & ~public), "public": any_of(held & public)}
    chosen = order[firsts]
    parts = np.where(
        is_held["private"] | is_held["public"],
        PARTS.index("heldout"),
        np.where(is_in["private"], PARTS.index("private"), PARTS.index("public")),
    )
    return Range(
        digests_N=digests[firsts],
        bytes_N=sizes[chosen],
        lengths_N=lengths[chosen],
        parts_N=parts,
        is_in=is_in,
        is_held=is_held,
        segments_N=segments[chosen],
        begins_N=begins[chosen],
    )


class Part(Fact):
    """A set of documents."""

    documents: int
    bytes: int  #: UTF-8
    tokens: int
    digest: Digest  #: over the sorted digests


@dataclass
class Counting:
    """A set of documents while it is counted, in order of digest."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, found: Range, chosen: Flags) -> None:
        self.documents += int(chosen.sum())
        self.bytes += int(found.bytes_N[chosen].sum())
        self.tokens += int(found.lengths_N[chosen].sum())
        self._hash.update(found.digests_N[chosen].tobytes())

    def done(self) -> Part:
        return Part(
            documents=self.documents,
            bytes=self.bytes,
            tokens=self.tokens,
            digest=Digest(self._hash.hexdigest()),
        )


def digest_of_documents(digests: Iterable[bytes]) -> Digest:
    """The name of a set of documents: sha256 over their sorted digests."""
    return Digest(hashlib.sha256(b"".join(sorted(digests))).hexdigest())
