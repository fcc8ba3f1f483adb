"""One language's text as tokens, made once for each tokenizer and kept: own, public and held-out documents.

What is trained on is what is left of the distinct texts when the held-out ones are taken away: by their own
id or digest, and public text also if its words are those of a private held-out or private training document.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput, Unavailable
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Digest, Language
from site_agent.config import Text
from site_agent.holdings import Survey, digest_of_documents, documents, survey, verdicts
from site_agent.packed import Packed, PackedWriter, dtype_for
from site_agent.text import Document, Faults

_FORMAT = 1  # raised when the same text would give other tokens or another layout
_BATCH = 512  # documents tokenised at a time
_PARTS = ("private", "public", "heldout")

Encode = Callable[[list[str]], list[list[int]]]


class Part(Fact):
    """A set of documents."""

    documents: int
    bytes: int  #: UTF-8
    tokens: int  #: one EOS a document included
    digest: Digest


class Contents(Fact):
    """``contents.json``: what a prepared folder holds. Written last."""

    language: Language
    private: Part  #: to train on
    public: Part  #: to train on
    heldout: Part  #: private and public together


@dataclass(frozen=True, slots=True)
class Prepared:
    folder: Path
    contents: Contents

    def tokens(self, part: str) -> Packed:
        return Packed(self.folder / part)

    @property
    def heldout_bytes(self) -> npt.NDArray[np.int64]:
        """(documents,) UTF-8 bytes of each held-out document, in order of document digest."""
        return np.fromfile(self.folder / "heldout.bytes", "<i8")


class Words(Fact):
    """The tokenizer, as far as prepared text depends on it."""

    digest: Digest
    eos: int
    vocabulary_size: int


def prepare(
    sources: Sequence[Text],
    words: Words,
    encode_texts: Callable[[], Encode],
    heldout_share: float,
    split_seed: int,
    cache: Path,
) -> Prepared:
    """The prepared text of one language; from the cache if the same text was prepared before.

    sources       all of one language, private and public
    encode_texts  makes the tokenizer, when it is needed at all
    Two processes may do this at once: both do the work, one result stays.
    """
    language = sources[0].language
    classes = by_access(sources)
    surveys = _surveys(classes, heldout_share, split_seed, cache)
    named = [(found.holding.access, found.holding.digest, found.heldout) for found in surveys]
    key = digest_of_fact([_FORMAT, language, words, named])
    place = cache / "tokens" / f"{language}-{key[:32]}"
    with contextlib.suppress(FileNotFoundError, BadInput):
        return _opened(place)
    try:
        with fresh_folder(place) as folder:
            _fill(folder, language, classes, words, encode_texts(), heldout_share, split_seed)
    except (BadInput, Unavailable):
        if not place.is_dir():  # else somebody else was faster
            raise
    if surveys != _surveys(classes, heldout_share, split_seed, cache):
        raise Unavailable(
            f"the {language} text changed while it was read; let it come to rest, then start again"
        )
    return _opened(place)


def _surveys(
    classes: dict[str, list[Text]], heldout_share: float, split_seed: int, cache: Path
) -> list[Survey]:
    return [survey(group, heldout_share, split_seed, cache) for group in classes.values() if group]


def _opened(place: Path) -> Prepared:
    path = place / "contents.json"
    return Prepared(place, decode(path.read_bytes(), Contents, str(path)))


def by_access(sources: Sequence[Text]) -> dict[str, list[Text]]:
    """The sources of one language, private and public ones apart; both there, perhaps empty."""
    return {
        access: [source for source in sources if source.access == access] for access in ("private", "public")
    }


def training_split(
    classes: dict[str, list[Text]], heldout_share: float, split_seed: int
) -> dict[str, dict[bytes, int]]:
    """``private``, ``public`` and ``heldout``: document digest -> UTF-8 bytes. No text is in two of them."""
    found = {
        access: verdicts(sources, heldout_share, split_seed, Faults()) for access, sources in classes.items()
    }
    heldout = {
        digest: size
        for documents_of in found.values()
        for digest, (size, held) in documents_of.items()
        if held
    }
    parts: dict[str, dict[bytes, int]] = {"heldout": heldout}
    taken = set(heldout)
    for access in ("private", "public"):
        parts[access] = {digest: size for digest, (size, _) in found[access].items() if digest not in taken}
        taken.update(parts[access])
    return parts


def _fill(
    folder: Path,
    language: Language,
    classes: dict[str, list[Text]],
    words: Words,
    encode_texts: Encode,
    heldout_share: float,
    split_seed: int,
) -> None:
    parts = training_split(classes, heldout_share, split_seed)
    part_of = {digest: part for part in _PARTS for digest in parts[part]}
    tokens = dict.fromkeys(_PARTS, 0)
    dtype = dtype_for(words.vocabulary_size)
    with contextlib.ExitStack() as stack:
        writers = {part: stack.enter_context(PackedWriter(folder / part, dtype)) for part in _PARTS}
        for batch in _distinct(classes):
            encoded = encode_texts([document.text for _, document in batch])
            for (digest, _), ids in zip(batch, encoded, strict=True):
                part = part_of[digest]
                writers[part].add(digest, [*ids, words.eos])
                tokens[part] += len(ids) + 1
    sizes = np.asarray([size for _, size in sorted(parts["heldout"].items())], "<i8")
    write_bytes_atomically(folder / "heldout.bytes", sizes.tobytes())
    described = {
        part: Part(
            documents=len(parts[part]),
            bytes=sum(parts[part].values()),
            tokens=tokens[part],
            digest=digest_of_documents(parts[part]),
        )
        for part in _PARTS
    }
    write_bytes_atomically(folder / "contents.json", encode(Contents(language=language, **described)))


def _distinct(classes: dict[str, list[Text]]) -> Iterator[list[tuple[bytes, Document]]]:
    """Batches of documents with their digests, each text once."""
    seen: set[bytes] = set()
    batch: list[tuple[bytes, Document]] = []
    for sources in classes.values():
        for document in documents(sources, Faults()):
            digest = document.digest
            if digest in seen:
                continue
            seen.add(digest)
            batch.append((digest, document))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch
