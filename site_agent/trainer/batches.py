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
from site_agent.trainer.mixture import Ints, apportion, interleave, permutation, tempered, unimax

_COUNTED_STEPS = 64  # at a time: adding up a vocabulary for every step would cost more than counting


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One language's tokens in one class of access."""

    language: Language
    access: Literal["private", "public"]
    tokens: Tokens


class Batches:
    """All the batches of a training job.

    streams  with at least one token each; private ones share ``1 - replay_share`` of the sequences, public
             ones the rest; where one of the two kinds is missing, the other has all
    """

    def __init__(self, work: Train, streams: Sequence[Stream]) -> None:
        self._work = work
        self._streams = tuple(streams)
        self._sizes = [num_sequences(stream.tokens.size, work.sequence_tokens) for stream in self._streams]
        self._counts = self._apportion()
        self._stream_of, self._place_of = interleave(self._counts, work.seed)
        self._order = functools.lru_cache(2 * len(self._streams))(self._permutation)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> npt.NDArray[np.int64]:
        """(sequences, sequence_tokens + 1) token ids of ``rank``'s part of the batch of ``step``, from 0.

        The parts of all ranks are the rows of the whole batch, each once; a rank's part may be empty.
        """
        begin = step * self._work.batch_sequences
        indices = range(begin + rank, begin + self._work.batch_sequences, world)
        rows = np.empty((len(indices), self._work.sequence_tokens + 1), np.int64)
        for row, index in zip(rows, indices, strict=True):
            stream = int(self._stream_of[index])
            epoch, place = divmod(int(self._place_of[index]), self._sizes[stream])
            number = int(self._order(stream, epoch)[place])
            row[:] = sequence(self._streams[stream].tokens, number, self._work.sequence_tokens)
        return rows

    def languages(self, step: int, rank: int = 0, world: int = 1) -> list[Language]:
        """Of each of ``rows``."""
        begin = step * self._work.batch_sequences
        indices = range(begin + rank, begin + self._work.batch_sequences, world)
        return [self._streams[int(self._stream_of[index])].language for index in indices]

    def tokens(self, steps: int) -> tuple[dict[Language, int], dict[Language, int]]:
        """Tokens trained on after ``steps``, per language: in all, and public ones."""
        seen = np.bincount(
            self._stream_of[: steps * self._work.batch_sequences], minlength=len(self._streams)
        )
        in_all: dict[Language, int] = {}
        public: dict[Language, int] = {}
        for stream, count in zip(self._streams, seen, strict=True):
            tokens = int(count) * self._work.sequence_tokens
            in_all[stream.language] = in_all.get(stream.language, 0) + tokens
            if stream.access == "public":
                public[stream.language] = tokens
        return dict(sorted(in_all.items())), dict(sorted(public.items()))

    def token_counts(self, steps: int, vocabulary: int) -> npt.NDArray[np.int64]:
        """(vocabulary,) how often each token was read or predicted in the first ``steps`` batches."""
        counts_V = np.zeros(vocabulary, np.int64)
        for begin in range(0, steps, _COUNTED_STEPS):
            rows = [self.rows(step) for step in range(begin, min(begin + _COUNTED_STEPS, steps))]
            counts_V += np.bincount(np.concatenate(rows).reshape(-1), minlength=vocabulary)
        return counts_V

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
