"""How one language's segments become what jobs read: packed tokens, and surveys of what there is.

``tokens/<language>-<key>/`` holds ``private``, ``public`` and ``heldout`` (``.bin`` and ``.idx``),
``heldout.bytes`` and ``contents.json``; ``surveys/`` remembers what each (language, access) holds for as long
as no file changes; ``preparing/`` holds segments of what is not done yet.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consortium.canonical import Fact, decode, digest_of_fact, encode, replace
from consortium.errors import BadInput, Unavailable
from consortium.files import make_folder, move_into_place, sync_file, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import Digest, Language
from consortium.manifests import FileRef, Holding
from consortium.store import ref_of
from site_agent.config import Text
from site_agent.data.merging import PARTS, Access, Counting, Part, Range, Segments
from site_agent.data.segments import (
    FORMAT,
    SEGMENT_BYTES,
    Findings,
    Split,
    Unit,
    Words,
    findings_of,
    read_head,
    reading_of,
    segment_path,
    units_of,
)
from site_agent.data.streams import state_of
from site_agent.packed import Packed, PackedWriter

_COPIED = 1024  # documents at a time


class Contents(Fact):
    """``contents.json``: what a prepared folder holds. Written last."""

    language: Language
    tokenizer: Digest
    eos: int
    dtype: str  #: of a token, as numpy spells it
    split: Split
    private: Part  #: to train on
    public: Part  #: to train on
    heldout: Part  #: private and public together
    files: dict[str, FileRef]

    @property
    def words(self) -> Words:
        """What it was made with; the size of the vocabulary as far as it matters."""
        size = 1 << 16 if self.dtype == "<u2" else (1 << 16) + 1
        return Words(digest=self.tokenizer, eos=self.eos, vocabulary_size=size)


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


class Survey(Fact):
    """What one pass over the text of one language in one class of access found."""

    holding: Holding
    heldout: Digest  #: over the held-out documents
    duplicates: int = 0  #: documents whose text was there already
    files: int = 0
    newest: int = 0  #: of the files: time of change in ns since the epoch
    findings: Findings = Findings()


class Plan(Fact):
    """One language's text that is to be prepared; without ``words`` it is only surveyed."""

    language: Language
    units: tuple[Unit, ...]
    words: Words | None
    split: Split
    cache: str
    segment_bytes: int = SEGMENT_BYTES

    @property
    def folder(self) -> Path:
        """For segments; another one if the tokens would be others."""
        mark = digest_of_fact([FORMAT, self.words.mark if self.words else None, self.split])
        return Path(self.cache) / "preparing" / f"{self.language}-{mark[:16]}"

    @property
    def size(self) -> int:
        """Bytes on disk of the text."""
        return sum(unit.size for unit in self.units)

    def accesses(self) -> tuple[Access, ...]:
        return tuple(sorted({unit.source.access for unit in self.units}))

    def units_in(self, access: Access) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.source.access == access)

    def key_of(self, unit: Unit) -> str:
        return unit.key(self.words, self.split, self.segment_bytes)

    def segments_of(self, unit: Unit) -> list[Path]:
        """The segments' files of a unit that is done, in order. Raises Unavailable if it is not."""
        key = self.key_of(unit)
        found: list[Path] = []
        while not found or not read_head(found[-1]).is_last:
            found.append(segment_path(self.folder, key, len(found)))
        return found


def plan_of(
    sources: Sequence[Text],
    words: Words | None,
    split: Split,
    cache: Path,
    segment_bytes: int = SEGMENT_BYTES,
) -> Plan:
    """What is to be done for sources that are all of one language. Raises BadInput if there is no text."""
    ordered = sorted(sources, key=lambda source: source.access)  # private first; else as the config has them
    return Plan(
        language=sources[0].language,
        units=units_of(ordered, segment_bytes),
        words=words,
        split=split,
        cache=str(cache),
        segment_bytes=segment_bytes,
    )


def remembered_surveys(plan: Plan) -> tuple[Survey, ...] | None:
    """The surveys of a plan's text, private first; None unless all are known and no file changed since."""
    found: list[Survey] = []
    for access in plan.accesses():
        path = _survey_path(plan, access)
        try:
            found.append(decode(path.read_bytes(), Survey, str(path)))
        except (FileNotFoundError, BadInput):
            return None
    licences = {access: _licence(plan, access) for access in plan.accesses()}
    return tuple(  # the licence is not read from text, and may be corrected without reading it again
        replace(one, holding=replace(one.holding, licence=licences[one.holding.access])) for one in found
    )


def remembered(plan: Plan) -> Prepared | None:
    """The prepared text, if that is done and no file changed since."""
    surveys = remembered_surveys(plan)
    if surveys is None or plan.words is None:
        return None
    with contextlib.suppress(FileNotFoundError, BadInput):
        return opened(_place(plan, surveys))
    return None


def opened(folder: Path) -> Prepared:
    """Raises FileNotFoundError, or BadInput for what is no prepared folder."""
    path = folder / "contents.json"
    return Prepared(folder, decode(path.read_bytes(), Contents, str(path)))


def finish(plan: Plan, beat: Callable[[], None] = lambda: None) -> None:
    """Make of all segments of a plan what jobs read, then remove the segments.

    beat  called for every range of documents
    Raises Unavailable if a segment is missing, or a file changed since the plan was made.
    """
    surveys, folder = _merged(plan, beat)
    try:
        for unit in plan.units:
            for state, _ in unit.files:
                if state_of(Path(state.path)) != state:
                    raise Unavailable(
                        f"{state.path}: changed while the {plan.language} text was read; let it come to rest, "
                        "then start again"
                    )
        if folder is not None:
            place = _place(plan, surveys)
            make_folder(place.parent)
            with contextlib.suppress(OSError):  # somebody else was faster: the same bytes are there
                move_into_place(folder, place)
            opened(place)
        for one in surveys:
            write_bytes_atomically(_survey_path(plan, one.holding.access), encode(one))
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(plan.folder, ignore_errors=True)


def ranges_of(plan: Plan) -> Iterator[Range]:
    """The distinct documents of a plan whose segments are all there, in order of digest."""
    return _segments(plan).ranges()


def _segments(plan: Plan) -> Segments:
    places = [(unit.source.access, path) for unit in plan.units for path in plan.segments_of(unit)]
    return Segments(places)


def _merged(plan: Plan, beat: Callable[[], None]) -> tuple[tuple[Survey, ...], Path | None]:
    """The surveys, and a folder of packed tokens that is still to be moved into its place."""
    segments = _segments(plan)
    counting = _Counting({access: Counting() for access in plan.accesses()}, {}, {})
    counting.heldout.update({access: Counting() for access in plan.accesses()})
    counting.parts.update({part: Counting() for part in PARTS})
    folder = None
    if plan.words is None:
        for found in segments.ranges():
            beat()
            counting.add(found)
    else:
        # a name of its own: another process may be at the same, and who is killed here is removed with the segments
        folder = plan.folder / f"done-{secrets.token_hex(8)}"
        with fresh_folder(folder) as filling:
            _pack(segments, plan.words, filling, counting, beat)
            _describe(filling, plan, plan.words, counting.parts)
    surveys = [
        _survey(plan, access, counting.every[access], counting.heldout[access]) for access in plan.accesses()
    ]
    return tuple(surveys), folder


@dataclass(frozen=True, slots=True)
class _Counting:
    every: dict[Access, Counting]
    heldout: dict[Access, Counting]
    parts: dict[str, Counting]

    def add(self, found: Range) -> None:
        for access, counted in self.every.items():
            counted.add(found, found.is_in[access])
            self.heldout[access].add(found, found.is_held[access])
        for index, part in enumerate(PARTS):
            self.parts[part].add(found, found.parts_N == index)


def _pack(
    segments: Segments, words: Words, folder: Path, counting: _Counting, beat: Callable[[], None]
) -> None:
    """Write the documents' tokens, part by part, in order of digest."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(PackedWriter(folder / part, words.dtype)) for part in PARTS]
        sizes = stack.enter_context(open(folder / "heldout.bytes", "wb"))
        for found in segments.ranges():
            counting.add(found)
            for index, writer in enumerate(writers):
                chosen = np.flatnonzero(found.parts_N == index)
                for begin in range(0, len(chosen), _COPIED):
                    beat()
                    writer.add(list(segments.tokens(found, chosen[begin : begin + _COPIED])))
            held = found.bytes_N[found.parts_N == PARTS.index("heldout")]
            sizes.write(held.astype("<i8").tobytes())
    sync_file(folder / "heldout.bytes")


def _describe(folder: Path, plan: Plan, words: Words, parts: dict[str, Counting]) -> None:
    names = sorted(path.name for path in folder.iterdir())
    contents = Contents(
        language=plan.language,
        tokenizer=words.digest,
        eos=words.eos,
        dtype=words.dtype.str,
        split=plan.split,
        files={name: ref_of(folder / name) for name in names},
        **{part: counted.done() for part, counted in parts.items()},
    )
    write_bytes_atomically(folder / "contents.json", encode(contents))


def _survey(plan: Plan, access: Access, every: Counting, heldout: Counting) -> Survey:
    units = plan.units_in(access)
    found = findings_of([read_head(path).findings for unit in units for path in plan.segments_of(unit)])
    files = [state for unit in units for state, _ in unit.files]
    documents = every.done()
    return Survey(
        holding=Holding(
            language=plan.language,
            access=access,
            documents=documents.documents,
            bytes=documents.bytes,
            heldout_documents=heldout.documents,
            licence=_licence(plan, access),
            digest=documents.digest,
        ),
        heldout=heldout.done().digest,
        duplicates=found.documents - documents.documents,
        files=len(files),
        newest=max(state.mtime_ns for state in files),
        findings=found,
    )


def _licence(plan: Plan, access: Access) -> str:
    return " AND ".join(sorted({unit.source.licence for unit in plan.units_in(access)}))


def _survey_path(plan: Plan, access: Access) -> Path:
    files = [(reading_of(unit.source), file) for unit in plan.units_in(access) for file in unit.files]
    state = digest_of_fact([FORMAT, files, plan.split])
    return Path(plan.cache) / "surveys" / f"{state}.json"


def _place(plan: Plan, surveys: Sequence[Survey]) -> Path:
    named = [(one.holding.access, one.holding.digest, one.heldout) for one in surveys]
    mark = plan.words.mark if plan.words else None
    key = digest_of_fact([FORMAT, plan.language, mark, plan.split, named])
    return Path(plan.cache) / "tokens" / f"{plan.language}-{key[:32]}"
