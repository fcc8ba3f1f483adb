"""What a site holds of each language: counts and digests, remembered until a file changes."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from consortium.canonical import Fact, decode, digest_of_fact, encode
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.ids import Digest, Language, SiteName
from consortium.manifests import DataManifest, Holding
from site_agent.config import Text
from site_agent.text import Document, Faults, files_of, is_heldout, read

_FORMAT = 1  # of what is remembered; raised when the reading of text changes


class Survey(Fact):
    """What one pass over the text of one language in one class of access found."""

    holding: Holding
    heldout: Digest  #: over the held-out documents
    faults: dict[str, int] = msgspec.field(default_factory=dict)  #: kind -> lines that could not be read
    first_fault: str = ""


def describe(
    site: SiteName, sources: Iterable[Text], heldout_share: float, split_seed: int, cache: Path
) -> DataManifest:
    """The manifest of all the text a site has. Fast when no file changed since the last time.

    cache  folder that remembers surveys, by path, size and time of change of every file
    Raises BadInput or Corrupt naming the source that cannot be read.
    """
    surveys = surveys_of(sources, heldout_share, split_seed, cache)
    return DataManifest(site=site, holdings=tuple(survey.holding for survey in surveys))


def surveys_of(
    sources: Iterable[Text], heldout_share: float, split_seed: int, cache: Path
) -> tuple[Survey, ...]:
    """One survey for every (language, access) there is, sorted by it."""
    groups: dict[tuple[Language, str], list[Text]] = {}
    for source in sources:
        groups.setdefault((source.language, source.access), []).append(source)
    return tuple(survey(groups[key], heldout_share, split_seed, cache) for key in sorted(groups))


def survey(sources: Sequence[Text], heldout_share: float, split_seed: int, cache: Path) -> Survey:
    """The survey of sources that share language and access; from memory if no file changed."""
    files = [
        (str(path), stat.st_size, stat.st_mtime_ns)
        for source in sources
        for path, _ in files_of(source)
        for stat in [path.stat()]
    ]
    state = digest_of_fact([_FORMAT, list(sources), heldout_share, split_seed, files])
    remembered = cache / "surveys" / f"{state}.json"
    with contextlib.suppress(FileNotFoundError, BadInput):
        return decode(remembered.read_bytes(), Survey, str(remembered))
    found = _survey(sources, heldout_share, split_seed)
    write_bytes_atomically(remembered, encode(found))
    return found


def verdicts(
    sources: Sequence[Text], heldout_share: float, split_seed: int, faults: Faults
) -> dict[bytes, tuple[int, bool]]:
    """Document digest -> (UTF-8 bytes, held out) of every distinct text.

    A text that occurs under several ids is held out if any of them is. Memory: about 200 bytes a document.
    """
    found: dict[bytes, tuple[int, bool]] = {}
    for document in documents(sources, faults):
        digest = document.digest
        size, held = found.get(digest, (len(document.text.encode()), False))
        key = digest.hex() if document.id is None else document.id
        found[digest] = size, held or is_heldout(key, split_seed, heldout_share)
    return found


def documents(sources: Sequence[Text], faults: Faults) -> Iterator[Document]:
    for source in sources:
        yield from read(source, faults)


def digest_of_documents(digests: Iterable[bytes]) -> Digest:
    """The name of a set of documents: sha256 over their sorted digests."""
    return Digest(hashlib.sha256(b"".join(sorted(digests))).hexdigest())


def _survey(sources: Sequence[Text], heldout_share: float, split_seed: int) -> Survey:
    faults = Faults()
    found = verdicts(sources, heldout_share, split_seed, faults)
    heldout = [digest for digest, (_, held) in found.items() if held]
    licences = sorted({source.licence for source in sources})
    holding = Holding(
        language=sources[0].language,
        access=sources[0].access,
        documents=len(found),
        bytes=sum(size for size, _ in found.values()),
        heldout_documents=len(heldout),
        licence=" AND ".join(licences),
        digest=digest_of_documents(found),
    )
    return Survey(
        holding=holding,
        heldout=digest_of_documents(heldout),
        faults=dict(faults.counts),
        first_fault=faults.first,
    )
