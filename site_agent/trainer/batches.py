"""The batch of a step, for a rank: a pure function of the assignment, the text, and the step."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from consortium.ids import Language
from consortium.jobs import Train
from site_agent.packed import Tokens, num_sequences, sequence
from site_agent.trainer.head import IGNORED
from site_agent.trainer.mixture import Ints, apportion, interleave, permutation, tempered, unimax
from site_agent.trainer.packing import Bins, best_fit

_COUNTED_STEPS = 64  # at a time: adding up a vocabulary for every step would cost more than counting


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One language's tokens in one class of access.

    document_tokens  (documents,) how many tokens each has, EOS included; only packing asks for it
    """

    language: Language
    access: Literal["private", "public"]
    tokens: Tokens
    document_tokens: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A rank's sequences of one step, in main memory.

    ids_BS, targets_BS  what is read and what is predicted; IGNORED where nothing is
    documents           of each sequence, the lengths of the documents in it; None: a sequence is one stretch of text
    """

    ids_BS: Ints
    targets_BS: Ints
    documents: tuple[tuple[int, ...], ...] | None = None


class Batches:
    """All the batches of a training job.

    streams  with at least one token each; private ones share ``1 - replay_share`` of the sequences, public
             ones the rest; where one of the two kinds is missing, the other has all
    """

    def __init__(self, work: Train, streams: Sequence[Stream]) -> None:
        self._work = work
        self._streams = tuple(streams)
        self._bins = (
            [self._packed(stream) for stream in self._streams] if work.packing == "documents" else None
        )
        self._sizes = (
            [len(bins) for bins in self._bins]
            if self._bins
            else [num_sequences(stream.tokens.size, work.sequence_tokens) for stream in self._streams]
        )
        self._counts = self._apportion()
        self._stream_of, self._place_of = interleave(self._counts, work.seed)
        self._order = functools.lru_cache(2 * len(self._streams))(self._permutation)

    @property
    def documents_max(self) -> int | None:
        """The most documents in one sequence, what is empty counted as one; None: sequences are not packed."""
        return None if self._bins is None else 1 + max((bins.most for bins in self._bins), default=0)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """``rank``'s part of the batch of ``step``, from 0.

        The parts of all ranks are the sequences of the whole batch, each once; a rank's part may be empty.
        """
        if self._bins is None:
            rows = self.rows(step, rank, world)
            return Batch(ids_BS=rows[:, :-1], targets_BS=rows[:, 1:])
        chosen = [self._sequence(index) for index in self._indices(step, rank, world)]
        ids_BS = np.zeros((len(chosen), self._work.sequence_tokens), np.int64)
        targets_BS = np.full_like(ids_BS, IGNORED)
        documents = []
        for ids_S, targets_S, (stream, number) in zip(ids_BS, targets_BS, chosen, strict=True):
            at = 0
            lengths = []
            for piece in self._pieces(stream, number):
                end = at + len(piece) - 1
                ids_S[at:end], targets_S[at:end] = piece[:-1], piece[1:]
                lengths.append(end - at)
                at = end
            documents.append(tuple(lengths))
        return Batch(ids_BS=ids_BS, targets_BS=targets_BS, documents=tuple(documents))

    def rows(self, step: int, rank: int = 0, world: int = 1) -> Ints:
        """(sequences, sequence_tokens + 1) token ids of the same, where they are not packed."""
        indices = self._indices(step, rank, world)
        rows = np.empty((len(indices), self._work.sequence_tokens + 1), np.int64)
        for row, index in zip(rows, indices, strict=True):
            stream, number = self._sequence(index)
            row[:] = sequence(self._streams[stream].tokens, number, self._work.sequence_tokens)
        return rows

    def languages(self, step: int, rank: int = 0, world: int = 1) -> list[Language]:
        """Of each sequence of the same."""
        indices = self._indices(step, rank, world)
        return [self._streams[int(self._stream_of[index])].language for index in indices]

    def num_targets(self, step: int) -> int:
        """Tokens predicted in ``step`` by all ranks."""
        if self._bins is None:
            return self._work.batch_sequences * self._work.sequence_tokens
        return int(self._places(step, step + 1).sum())

    def tokens(self, steps: int) -> tuple[dict[Language, int], dict[Language, int]]:
        """Tokens trained on after ``steps``, per language: in all, and public ones."""
        streams = self._stream_of[: steps * self._work.batch_sequences]
        places = None if self._bins is None else self._places(0, steps)
        seen = np.bincount(streams, places, len(self._streams))
        in_all: dict[Language, int] = {}
        public: dict[Language, int] = {}
        for stream, count in zip(self._streams, seen, strict=True):
            tokens = int(count) * (self._work.sequence_tokens if self._bins is None else 1)
            in_all[stream.language] = in_all.get(stream.language, 0) + tokens
            if stream.access == "public":
                public[stream.language] = tokens
        return dict(sorted(in_all.items())), dict(sorted(public.items()))

    def token_counts(self, steps: int, vocabulary: int) -> npt.NDArray[np.int64]:
        """(vocabulary,) how often each token was read or predicted in the first ``steps`` batches."""
        counts_V = np.zeros(vocabulary, np.int64)
        for begin in range(0, steps, _COUNTED_STEPS):
            read = [self._read(step) for step in range(begin, min(begin + _COUNTED_STEPS, steps))]
            counts_V += np.bincount(np.concatenate(read), minlength=vocabulary)
        return counts_V

    def _read(self, step: int) -> Ints:
        """Every token of a step's batch, as often as it is there."""
        if self._bins is None:
            return self.rows(step).reshape(-1)
        chosen = [self._sequence(index) for index in self._indices(step, 0, 1)]
        return np.concatenate([piece.astype(np.int64) for each in chosen for piece in self._pieces(*each)])

    def _indices(self, step: int, rank: int, world: int) -> range:
        """Which of the job's sequences."""
        begin = step * self._work.batch_sequences
        return range(begin + rank, begin + self._work.batch_sequences, world)

    def _sequence(self, index: int) -> tuple[int, int]:
        """The stream of a sequence of the job, and which of the stream's sequences it is."""
        stream = int(self._stream_of[index])
        epoch, place = divmod(int(self._place_of[index]), self._sizes[stream])
        return stream, int(self._order(stream, epoch)[place])

    def _pieces(self, stream: int, number: int) -> list[Tokens]:
        """The tokens of the pieces in a bin, each with the one after its last place."""
        assert self._bins is not None
        text = self._streams[stream].tokens
        begins, lengths = self._bins[stream].pieces(number)
        pairs = zip(begins.tolist(), lengths.tolist(), strict=True)
        return [text[begin : begin + length + 1] for begin, length in pairs]

    def _places(self, begin: int, end: int) -> Ints:
        """(sequences,) tokens predicted in each sequence of steps ``begin`` to ``end``."""
        assert self._bins is not None
        numbers = range(begin * self._work.batch_sequences, end * self._work.batch_sequences)
        found = [self._sequence(index) for index in numbers]
        return np.asarray([self._taken[stream][number] for stream, number in found], np.int64)

    @functools.cached_property
    def _taken(self) -> list[Ints]:
        """Of each stream, the places that are taken in each of its bins."""
        return [bins.places() for bins in self._bins or ()]

    def _packed(self, stream: Stream) -> Bins:
        assert stream.document_tokens is not None
        return best_fit(stream.document_tokens, self._work.sequence_tokens)

    def _apportion(self) -> list[int]:
        """Sequences of each stream in the whole job."""
        total = self._work.steps * self._work.batch_sequences
        kinds = [stream.access for stream in self._streams]
        replay = self._work.replay_share if "private" in kinds else 1.0
        if "public" not in kinds:
            replay = 0.0
        counts = [0] * len(kinds)
        for access, budget in zip(("private", "public"), apportion([1 - replay, replay], total), strict=True):
            members = [index for index, kind in enumerate(kinds) if kind == access]
            shares = self._shares([self._sizes[index] for index in members], budget)
            for index, count in zip(members, apportion(shares, budget), strict=True):
                counts[index] = count
        return counts

    def _shares(self, sizes: Sequence[int], budget: int) -> list[float]:
        if self._work.sampling == "temperature":
            return tempered(sizes, budget, self._work.epochs_max, self._work.temperature)
        return unimax(sizes, budget, self._work.epochs_max)

    def _permutation(self, stream: int, epoch: int) -> Ints:
        named = self._streams[stream]
        return permutation(self._sizes[stream], self._work.seed, named.language, named.access, epoch)
